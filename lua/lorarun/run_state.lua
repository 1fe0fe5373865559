-- run_state.lua: the state of a training run (trainer.lua's table) between its checkpoints and its ranks: writing one, going on
-- from one, and what to tell the user where the run is no longer the same.
--
-- Only rank 0 reads and writes; the others get everything from it, so that the output folder need be on its machine only.
local check = require "lorarun.check"
local checkpoint = require "lorarun.checkpoint"
local comm = require "lorarun.comm"
local fs = require "lorarun.fs"
local lora = require "lorarun.lora"
local ranks = require "lorarun.ranks"

local run_state = {}

local function folder_of(run) return fs.join(run.options.output, "checkpoints") end

local function note(fmt, ...) io.stderr:write("lorarun: ", fmt:format(...), "\n") end

local function prune(run)
  checkpoint.prune(folder_of(run), run.options.keep, run.best and { [run.best.step] = true } or {})
end

--- save(run, step, evaluation_due): write a checkpoint, remove those that are no longer wanted. evaluation_due: the step is yet to
--- be evaluated, and will be by whoever goes on from here.
function run_state.save(run, step, evaluation_due)
  comm.on_rank_0(function()
    checkpoint.save(folder_of(run), { model = run.model, optimizer = run.optimizer, state = { step = step, best = run.best,
      baseline = run.baseline, settings = run.fixed, evaluation_due = evaluation_due or false } })
    prune(run)
  end)
  run.saved = step
end

--- evaluated(run, step): the checkpoint of that step has its evaluation.
function run_state.evaluated(run, step)
  comm.on_rank_0(function()
    checkpoint.amend(folder_of(run), step, { best = run.best, baseline = run.baseline, evaluation_due = false })
    prune(run)
  end)
end

--- load_best(run): put the best checkpoint's adapter into the model.
function run_state.load_best(run)
  comm.on_rank_0(function() lora.read_into(run.model, checkpoint.path(folder_of(run), run.best.step)) end)
  comm.broadcast(run.model.lora.parameters.value, 0)
end

-- ---- going on ------------------------------------------------------------------------------------------------------------------
-- What decides which rows a step has; told together, because only what comes of them matters.
local SHARED_OUT = { world_size = true, batch = true, accumulate = true, global_batch = true, compared = true, total_steps = true }

local function ranks_text(settings)
  return ("%d rank%s of %d pairs%s"):format(settings.world_size, settings.world_size == 1 and "" or "s", settings.batch,
    settings.accumulate > 1 and (" %d times"):format(settings.accumulate) or "")
end

--- changes(before, now): what a user should know who goes on with settings `now` from a checkpoint that was written with `before`:
--- a list of sentences.
function run_state.changes(before, now)
  local list = {}
  local function say(fmt, ...) list[#list + 1] = fmt:format(...) end
  if before.global_batch ~= now.global_batch then
    say("warning: %s began the run, %s go on: a step takes %d pairs instead of %d, so the rows that follow are not those that "
      .. "would have followed. The order is kept where ranks x batch x accumulate stays %d", ranks_text(before), ranks_text(now),
      now.global_batch, before.global_batch, before.global_batch)
  elseif before.world_size ~= now.world_size or before.batch ~= now.batch then
    say("%s began the run, %s go on: a step takes the same %d pairs, in the same order; results agree up to rounding",
      ranks_text(before), ranks_text(now), now.global_batch)
  end
  if before.compared and now.compared and before.compared ~= now.compared then
    say("warning: the loss compares %d pairs with each other instead of %d", now.compared, before.compared)
  end
  if before.global_batch == now.global_batch and before.total_steps ~= now.total_steps then
    say("warning: the run has %d steps instead of %d", now.total_steps, before.total_steps)
  end
  local names = {}
  for name in pairs(now) do
    -- other ranks have other numbers of threads, and the bits are others for the ranks' sake already
    if not (name == "threads" and before.world_size ~= now.world_size) then names[#names + 1] = name end
  end
  table.sort(names)
  for _, name in ipairs(names) do
    if not SHARED_OUT[name] and before[name] ~= nil and before[name] ~= now[name] then
      say("warning: %s was %s when the checkpoint was written and is %s now: the run will not end in the same bits", name,
        tostring(before[name]), tostring(now[name]))
    end
  end
  return list
end

-- The checkpoint to go on from: path and state, or nil. A group of ranks that was started again goes on from where the one before
-- it came, whatever was asked for in the beginning.
local function choose(run)
  local folder, asked = folder_of(run), run.options.resume
  local restarted = (tonumber(os.getenv "LORARUN_GENERATION") or 0) > 0
  local function warn(text) note("warning: %s", text) end
  local path, state
  if restarted or asked == true or asked == "latest" then path, state = checkpoint.find(folder, "latest", warn) end
  if not path and asked and asked ~= true and asked ~= "latest" then path, state = checkpoint.find(folder, asked, warn) end
  if not path and asked then note("there is no checkpoint in %s yet; starting from the beginning", folder) end
  return path, state
end

--- resume(run): put a checkpoint into the run, where one is to be gone on from. Returns the step it was written after, or 0, and
--- whether that is yet to be evaluated.
function run_state.resume(run)
  local found = ranks.from_rank_0(function()
    local path, state = choose(run)
    if not path then return {} end
    if type(state.settings) ~= "table" then check.fail("%s: state.json lacks the settings", path) end
    for _, text in ipairs(run_state.changes(state.settings, run.fixed)) do note("%s", text) end
    checkpoint.load(path, state, run)
    if state.best and not fs.is_directory(checkpoint.path(folder_of(run), state.best.step)) then
      note("warning: the best checkpoint so far, step %d, is not in %s; the best from here on will count", state.best.step,
        folder_of(run))
      state.best = nil
    end
    state.evaluation_due = state.evaluation_due and fs.is_directory(checkpoint.path(folder_of(run), state.step))
    print(("resuming from %s, step %d of %d"):format(path, state.step, run.total_steps))
    return { state = state }
  end)
  local state = found.state
  if state then
    for _, t in ipairs { run.model.lora.parameters.value, run.optimizer.m, run.optimizer.v } do comm.broadcast(t, 0) end
    run.optimizer:restore(state.optimizer)
    run.best, run.baseline = state.best, state.baseline
  end
  local first = state and state.step or 0
  run.saved = state and first
  comm.on_rank_0(function()
    local aside = checkpoint.set_aside(folder_of(run), first)
    if aside then note("checkpoints beyond step %d are not of this run; they are in %s now", first, aside) end
  end)
  return first, state and state.evaluation_due
end

return run_state
