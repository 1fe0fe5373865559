-- checkpoint.lua: a run's state on disk. A checkpoint is a folder checkpoints/step-00000123 with
--   adapter_model.safetensors, adapter_config.json   the adapter, as PEFT writes it
--   optimizer.safetensors                             AdamW's m and v, flat, in the order of the adapter buffer
--   state.json                                        step, scores, settings, and the CRC-32C of the other files
-- Random numbers and the position in the data are functions of the step (sampler.lua), so nothing else is needed to go on to the
-- same bits.
--
-- It is written under a temporary name, every file is synced to the disk, then it is renamed: after a crash there is the old set of
-- checkpoints or the new one. A checkpoint whose CRC does not fit is named in a warning, and the one before it is used.
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local lora = require "lorarun.models.lora"
local safetensors = require "lorarun.formats.safetensors"
local sorted = require "lorarun.base.sorted"
local using = require "lorarun.base.using"

local checkpoint = {}
local FORMAT = 2
local FILES = { "adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors" }

local function remove_if_there(path)
  if fs.exists(path) then fs.remove(path) end
end

local function name_of(step) return ("step-%08d"):format(step) end

--- path(folder, step): where the checkpoint of a step is.
function checkpoint.path(folder, step) return fs.join(folder, name_of(step)) end

--- steps(folder): the steps for which there is a checkpoint in `folder`, ascending.
function checkpoint.steps(folder)
  local steps = {}
  if fs.is_directory(folder) then
    for _, name in ipairs(fs.list(folder)) do
      local step = name:match("^step%-(%d+)$")
      if step then steps[#steps + 1] = tonumber(step) end
    end
  end
  table.sort(steps)
  return steps
end

local function write_state(path, state)
  fs.write(fs.join(path, "state.json"), json.encode(state, { indent = 2, sort_keys = true }))
end

-- All files of a checkpoint in a new folder.
local function write_files(partial, run)
  lora.write(run.model, partial)
  local p, o = run.model.lora.parameters, run.optimizer
  safetensors.write(fs.join(partial, "optimizer.safetensors"), {
    { name = "adamw.m", dtype = "f32", shape = { p.count }, tensor = o.m },
    { name = "adamw.v", dtype = "f32", shape = { p.count }, tensor = o.v },
  }, { format = "pt" })
  local state = { format = FORMAT, optimizer = o:state(), crc32c = {} }
  for k, v in pairs(run.state) do state[k] = v end
  for _, file in ipairs(FILES) do state.crc32c[file] = fs.crc32c(fs.join(partial, file)) end
  write_state(partial, state)
end

--- save(folder, run): run = { model, optimizer, state = { step =, ... } }. Returns the checkpoint's path.
function checkpoint.save(folder, run)
  local path = checkpoint.path(folder, run.state.step)
  local partial = fs.join(folder, ".partial-" .. name_of(run.state.step))
  fs.make(folder)
  remove_if_there(partial)
  using.made(partial, remove_if_there, function() -- after an error, such as a full disk, the partial files go
    write_files(partial, run)
    remove_if_there(path)
    fs.rename(partial, path)
  end)
  return path
end

--- amend(folder, step, changes): change fields of a checkpoint's state, all at once.
function checkpoint.amend(folder, step, changes)
  local path = checkpoint.path(folder, step)
  local state = json.decode_file(fs.join(path, "state.json"))
  for k, v in pairs(changes) do state[k] = v end
  write_state(path, state)
end

--- prune(folder, keep, protect): remove all but the newest `keep` checkpoints and those in `protect` (a set of steps), and partial
--- ones that a crash left.
function checkpoint.prune(folder, keep, protect)
  local steps = checkpoint.steps(folder)
  for i = 1, #steps - keep do
    if not protect[steps[i]] then fs.remove(checkpoint.path(folder, steps[i])) end
  end
  checkpoint.sweep(folder)
end

--- sweep(folder): remove the partial checkpoints of ranks that were killed. No rank may be writing any more.
function checkpoint.sweep(folder)
  for _, name in ipairs(fs.is_directory(folder) and fs.list(folder) or {}) do
    if name:find("^%.partial%-step%-") then fs.remove(fs.join(folder, name)) end
  end
end

--- set_aside(folder, step): move checkpoints after `step` to another folder, when a run begins at `step`: they are another run's
--- (or damaged), and would be taken for this one's newest. Returns that folder, or nil where there was none to move.
function checkpoint.set_aside(folder, step)
  local aside
  for _, other in ipairs(checkpoint.steps(folder)) do
    if other > step then
      if not aside then
        local n = 1
        while fs.exists(("%s-before-%d"):format(folder, n)) do n = n + 1 end
        aside = ("%s-before-%d"):format(folder, n)
        fs.make(aside)
      end
      fs.rename(checkpoint.path(folder, other), checkpoint.path(aside, other))
    end
  end
  return aside
end

--- verify(path): its state, or nil and why it cannot be used.
function checkpoint.verify(path)
  local state_path = fs.join(path, "state.json")
  if not fs.is_file(state_path) then return nil, ("checkpoint %s is incomplete: state.json is missing"):format(path) end
  local ok, state = pcall(json.decode, fs.read(state_path), state_path)
  if not ok then return nil, ("checkpoint %s is damaged: %s"):format(path, state) end
  if state.format ~= FORMAT then
    return nil, ("checkpoint %s has format %s, this lorarun reads %d"):format(path, tostring(state.format), FORMAT)
  end
  if type(state.crc32c) ~= "table" or type(state.step) ~= "number" then
    return nil, ("checkpoint %s is damaged: state.json lacks step or crc32c"):format(path)
  end
  for _, file in ipairs(FILES) do
    local full = fs.join(path, file)
    if not fs.is_file(full) then return nil, ("checkpoint %s is incomplete: %s is missing"):format(path, file) end
    if fs.crc32c(full) ~= state.crc32c[file] then
      return nil, ("checkpoint %s is damaged: the checksum of %s is wrong"):format(path, file)
    end
  end
  return state
end

--- find(folder, which, warn): the checkpoint to resume from: which = "latest" (the newest that is whole; damaged ones are named
--- through warn) or a path. Returns path, state; nil where "latest" finds no checkpoint at all.
function checkpoint.find(folder, which, warn)
  if which ~= "latest" then
    local path = fs.is_directory(which) and which or fs.join(folder, which)
    if not fs.is_directory(path) then check.fail("--resume: there is no checkpoint '%s'", which) end
    local state, why = checkpoint.verify(path)
    if not state then check.fail("--resume: %s", why) end
    return path, state
  end
  local steps = checkpoint.steps(folder)
  for i = #steps, 1, -1 do
    local path = checkpoint.path(folder, steps[i])
    local state, why = checkpoint.verify(path)
    if state then return path, state end
    warn(why .. (i > 1 and "; trying the one before it" or ""))
  end
  if #steps > 0 then check.fail("--resume: none of the %d checkpoints in %s can be used", #steps, folder) end
  return nil
end

--- load(path, state, run): put a checkpoint's adapter and optimizer state into run.model and run.optimizer.
function checkpoint.load(path, state, run)
  local fits, why = pcall(lora.read_into, run.model, path)
  if not fits then
    error(why .. "; a run goes on with the rank and targets that it began with: give them, or begin again without --resume", 0)
  end
  local opened = safetensors.open(fs.join(path, "optimizer.safetensors"))
  using(opened, opened.close, function(file)
    for name, t in sorted { ["adamw.m"] = run.optimizer.m, ["adamw.v"] = run.optimizer.v } do
      if not file:has(name) or file:info(name).shape[1] ~= t.shape[1] then
        check.fail("%s: '%s' does not fit the run's %d trainable parameters", file.path, name, t.shape[1])
      end
      file:load(name, t)
    end
  end)
  run.optimizer:restore(state.optimizer)
end

return checkpoint
