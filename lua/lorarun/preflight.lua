-- preflight.lua: what the launcher looks at before it starts a rank: what would fail later, on every rank at once, fails now.
--   preflight.check(settings, what, say)
--     settings  of settings.resolve
--     what      { model =, data =, output = }, as lr.load_model and lr.train take them; each may be missing
--     say(line) is called once for each thing that is well. The first that cannot work is an error.
local ffi = require "ffi"
local C = require "lorarun.c"
local check = require "lorarun.check"
local fs = require "lorarun.fs"
local hardware = require "lorarun.hardware"
local memory = require "lorarun.memory"
local report = require "lorarun.report"

local preflight = {}

local PACKED_COPIES = 2    -- frozen weights are held twice: packed for the forward product and for the backward one
local RUN_FOLDER_COPIES = 2 -- the model's weights are written once; while a file is replaced, old and new lie side by side
local SMALL = 64 * 2 ^ 20  -- adapters, optimizer state, logs and checkpoints of a run

local gib = report.gib

-- The folder of the model, and the bytes of its weights.
local function weights_of(model)
  local folder = require("lorarun.hub").resolve(model)
  local bytes = 0
  for _, name in ipairs(fs.list(folder)) do
    if name:find "%.safetensors$" then bytes = bytes + fs.stat(fs.join(folder, name)).size end
  end
  if not fs.is_file(fs.join(folder, "config.json")) and not fs.is_file(fs.join(folder, "adapter_config.json")) then
    check.fail("model folder %s has neither config.json nor adapter_config.json", folder)
  end
  return folder, bytes
end

local function ranks_text(s)
  local text = ("%d rank%s here"):format(s.ranks_here, s.ranks_here == 1 and "" or "s")
  if s.ranks_here == s.num_processes then return text end
  return ("%s, %d to %d of %d"):format(text, s.first_rank, s.first_rank + s.ranks_here - 1, s.num_processes)
end

-- Counting GPUs starts none: the launcher holds no memory there.
local function look_at_gpus(s, gpus, say)
  if s.ranks_here > gpus and not (s.gpu_ids and s.gpu_ids ~= "all") then
    check.fail("%d ranks on this machine need a GPU each, and it has %d; lower num_processes, or give --cpu", s.ranks_here, gpus)
  end
  say("devices", ("%s, %d GPU%s"):format(ranks_text(s), gpus, gpus == 1 and "" or "s"))
  local driver = hardware.driver()
  say("driver", ("%s, CUDA %s"):format(driver.kernel or driver.version or "none", hardware.cuda_built() or "none"))
  if s.num_processes > 1 then
    local version, missing = hardware.nccl()
    say("NCCL", version or check.fail("%s", missing))
  end
end

local function look_at_cpu(s, say)
  if s.needs_gpu then
    check.fail("%s asks for GPUs, and lorarun finds none it can use (%s); give --cpu to train on the CPU", s.needs_gpu,
      ffi.string(C.lr_device_missing(C.LR_CUDA)))
  end
  local cores = C.lr_cores()
  say("devices", ("%s, %s"):format(ranks_text(s), report.device()))
  if s.ranks_here > cores then
    say("", ("more ranks than the %d cores of this machine: they will take turns"):format(cores))
  end
end

local function look_at_model(s, model, say)
  local folder, bytes = weights_of(model)
  local needed = bytes * PACKED_COPIES * s.ranks_here
  local free = memory.available()
  if free and needed > free then
    check.fail("%d ranks of %s need at least %s of memory for weights, and %s are free; start fewer ranks on this machine, or give "
      .. "--mixed-precision bf16 to halve what fp32 needs", s.ranks_here, folder, gib(needed), gib(free))
  end
  say("model", ("%s, weights of %s"):format(folder, gib(bytes)))
  if free then say("memory", ("%s free"):format(gib(free))) end
  return bytes
end

local function must_be_readable(path)
  local f, why = io.open(path, "rb")
  if f then
    local _, error_text = f:read(1)
    f:close()
    why = error_text and ("%s: %s"):format(path, error_text)
  end
  if why then check.fail("the data cannot be read: %s", why) end
end

-- data: what lr.train takes: a folder, or a table of paths.
local function look_at_data(data, say)
  if type(data) == "table" then
    for _, path in pairs(data) do must_be_readable(path) end
    say("data", tostring(data.train))
    return
  end
  if not fs.is_directory(data) then check.fail("there is no data folder '%s'", data) end
  for _, name in ipairs { "train.jsonl", "train.csv" } do
    local path = fs.join(data, name)
    if fs.is_file(path) then
      must_be_readable(path)
      say("data", path)
      return
    end
  end
  check.fail("there is no train.jsonl (or train.csv) in '%s'", data)
end

local function look_at_output(output, weight_bytes, say)
  fs.make(output)
  local probe = fs.join(output, (".writable-%d"):format(math.random(2 ^ 30)))
  fs.write(probe, "")
  fs.remove(probe)
  local free = fs.disk_free(output)
  local needed = weight_bytes * RUN_FOLDER_COPIES + SMALL
  if free < needed then
    check.fail("%s has %s of disk space left, and the run may write %s; make room, or choose another --output", output, gib(free),
      gib(needed))
  end
  say("output", ("%s, %s free"):format(output, gib(free)))
end

function preflight.check(s, what, say)
  local function line(name, text) say(("  %-8s %s"):format(name, text)) end
  local gpus = s.use_cpu and 0 or C.lr_device_count(C.LR_CUDA)
  if gpus > 0 then look_at_gpus(s, gpus, line) else look_at_cpu(s, line) end
  local weight_bytes = what.model and look_at_model(s, what.model, line) or 0
  if what.data and what.data ~= "" then look_at_data(what.data, line) end
  if what.output and what.output ~= "" and s.machine_rank == 0 then look_at_output(what.output, weight_bytes, line) end
end

return preflight
