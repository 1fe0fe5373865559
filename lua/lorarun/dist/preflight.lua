-- preflight.lua: the launcher's checks before it starts ranks. What would fail later, on all ranks at once, fails here.
--   preflight.check(settings, what, say)
--     settings  of settings.resolve
--     what      { model =, revision =, data =, output = }, as lr.load_model and lr.train take them; each may be missing
--     say(line) is called for each check that passes. The first that does not is an error.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local data_folder = require "lorarun.formats.data_folder"
local dtypes = require "lorarun.base.dtypes"
local fs = require "lorarun.base.fs"
local hardware = require "lorarun.dist.hardware"
local memory = require "lorarun.tensor.memory"
local run_paths = require "lorarun.dist.run_paths"
local safetensors = require "lorarun.formats.safetensors"
local sorted = require "lorarun.base.sorted"
local units = require "lorarun.base.units"

local preflight = {}

local PACKED_COPIES = 2    -- of frozen weights on a CPU: packed for the forward product and for the backward one
local LARGEST_FILE = 5e9   -- larger models are written in several files
local SMALL = 64 * 2 ^ 20  -- adapters, optimizer state, logs and checkpoints of a run, before the adapter is known

local gib = units.gib

--- weights_in(folder): the bytes of the weights in their files, how many there are, and how many of these are tables of embeddings.
function preflight.weights_in(folder)
  local file, bytes, count, tables = safetensors.open_folder(folder), 0, 0, 0
  for _, name in ipairs(file:names()) do
    local info, elements = file:info(name), 1
    for _, n in ipairs(info.shape) do elements = elements * n end
    bytes, count = bytes + info.bytes, count + elements
    if name:find "embed[^.]*%.weight$" then tables = tables + elements end
  end
  file:close()
  return bytes, count, tables
end

-- The model's folder and the results of weights_in, for an adapter those of its base.
local function weights_of(model, revision)
  local folder = require("lorarun.formats.hub").resolve(model, revision)
  local at = fs.join(folder, require("lorarun.formats.sentence_transformers").read(folder).transformer)
  if fs.is_file(fs.join(at, "adapter_config.json")) and not require("lorarun.formats.hub").has_weights(at) then
    return folder, select(2, weights_of(require("lorarun.formats.adapter_folder").base(at)))
  end
  if not fs.is_file(fs.join(at, "config.json")) then
    check.fail("model folder %s has neither config.json nor adapter_config.json", at)
  end
  return folder, preflight.weights_in(at)
end

local function ranks_text(s)
  local text = ("%d rank%s here"):format(s.ranks_here, s.ranks_here == 1 and "" or "s")
  if s.ranks_here == s.num_processes then return text end
  return ("%s, %d to %d of %d"):format(text, s.first_rank, s.first_rank + s.ranks_here - 1, s.num_processes)
end

--- must_have_ids(s, gpus): an error where the settings name a GPU that is none of the machine's.
function preflight.must_have_ids(s, gpus)
  for _, id in ipairs(s.gpus or {}) do
    if id >= gpus then
      check.fail("gpu_ids is %s (%s), and the GPUs here are numbered 0 to %d", s.gpu_ids, s.origin.gpu_ids, gpus - 1)
    end
  end
end

-- Counting GPUs starts none of them, so the launcher takes no memory there.
local function look_at_gpus(s, gpus, say)
  preflight.must_have_ids(s, gpus)
  if s.ranks_here > gpus then
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

--- must_have_gpu(s): an error where the settings ask for GPUs and there are none.
function preflight.must_have_gpu(s)
  if s.needs_gpu then
    check.fail("%s asks for GPUs, and lorarun finds none it can use (%s); give --cpu to train on the CPU", s.needs_gpu,
      ffi.string(C.lr_device_missing(C.LR_CUDA)))
  end
end

local function look_at_cpu(s, say)
  preflight.must_have_gpu(s)
  if s.precision == "fp16" then
    check.fail("mixed_precision is fp16 (%s), which needs a GPU; on the CPU give --mixed-precision bf16, which is as fast and does "
      .. "not overflow", s.origin.mixed_precision)
  end
  local cores = C.lr_cores()
  say("devices", ("%s, %s"):format(ranks_text(s), memory.device_text()))
  if s.ranks_here > cores then
    say("", ("more ranks than the %d cores of this machine: they will take turns"):format(cores))
  end
end

-- Each rank holds the weights in its device's memory. On the way to a GPU they need only a few buffers of the host's.
local function look_at_model(s, gpus, what, say)
  local folder, bytes, count, tables = weights_of(what.model, what.revision)
  local size = dtypes.bytes[dtypes.of_precision[s.precision]]
  local needed = ((count - tables) * PACKED_COPIES + tables) * size -- a table of embeddings is not packed
  for _, bound in ipairs(gpus == 0 and memory.bounds() or {}) do
    local ranks = bound.each and 1 or s.ranks_here
    if needed * ranks > bound.bytes then
      check.fail("%d rank%s of %s need%s at least %s of memory for weights, and %s; %s%s", ranks, ranks == 1 and "" or "s", folder,
        ranks == 1 and "s" or "", gib(needed * ranks),
        bound.what and ("%s are left (%s)"):format(gib(bound.bytes), bound.what) or gib(bound.bytes) .. " are free",
        ranks > 1 and "start fewer ranks on this machine" or bound.what and "raise the limit" or "take a machine with more",
        s.precision == "fp32" and ", or give --mixed-precision bf16, which takes half of that" or "")
    end
  end
  say("model", ("%s, weights of %s"):format(folder, gib(bytes)))
  local free, limit = memory.available()
  if gpus == 0 and free then say("memory", ("%s free%s"):format(gib(free), limit and (" (%s)"):format(limit) or "")) end
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
    for _, path in sorted(data) do must_be_readable(path) end
    say("data", tostring(data.train))
    return
  end
  if not fs.is_directory(data) then check.fail("there is no data folder '%s', and so there is no train.jsonl in it", data) end
  local path = data_folder.train_path(data)
  must_be_readable(path)
  say("data", path)
end

--- must_have_room(output, weight_bytes, others): an error where the folder's disk, or a limit, has no room for the merged model and
--- for `others`, the bytes of all other files of a run. An old file stays until the new one is complete, so none of its bytes count
--- as free. Returns the free bytes.
function preflight.must_have_room(output, weight_bytes, others)
  local largest = tonumber(C.lr_limit(C.LR_LIMIT_FILE_SIZE))
  if largest >= 0 and largest < math.min(weight_bytes, LARGEST_FILE) then
    check.fail("the run writes a model of %s to %s, and a file may not grow so large here (%s); raise the limit",
      units.size(weight_bytes), output, memory.limit_text(C.LR_LIMIT_FILE_SIZE))
  end
  local free = fs.disk_free(output)
  local needed = weight_bytes + others
  if free < needed then
    check.fail("%s has %s of disk space left, and the run may write %s; make room, or choose another --output", output,
      units.size(free), units.size(needed))
  end
  return free
end

local function look_at_output(what, weight_bytes, say)
  local output, inputs = what.output, run_paths.of_data(what.data)
  if what.model then inputs[#inputs + 1] = { "the model", require("lorarun.formats.hub").resolve(what.model, what.revision) } end
  run_paths.refuse_overlap("--output", output, inputs)
  fs.make(output)
  local probe = fs.join(output, (".writable-%d"):format(math.random(2 ^ 30)))
  fs.write(probe, "")
  fs.remove(probe)
  say("output", ("%s, %s free"):format(output, gib(preflight.must_have_room(output, weight_bytes, SMALL))))
end

function preflight.check(s, what, say)
  local function line(name, text) say(("  %-8s %s"):format(name, text)) end
  local gpus = s.use_cpu and 0 or C.lr_device_count(C.LR_CUDA)
  if gpus > 0 then look_at_gpus(s, gpus, line) else look_at_cpu(s, line) end
  local weight_bytes = what.model and look_at_model(s, gpus, what, line) or 0
  if what.data and what.data ~= "" then look_at_data(what.data, line) end
  if what.output and what.output ~= "" and s.machine_rank == 0 then look_at_output(what, weight_bytes, line) end
end

return preflight
