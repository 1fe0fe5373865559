-- throughput.lua: how fast a device trains: measured, where a run on this machine was, or estimated.
--
-- A rate is the useful work of whole training steps in FLOP/s, counted as 4 N a token (N: weights of linear layers; forward 2 N,
-- gradients of activations 2 N, and frozen weights get none). Attention, LoRA and everything else count as loss, so a rate found
-- with one model serves for another, the better the more alike they are.
--
-- Measured rates are kept in lorarun's cache, throughput.json: { device = { precision = { flops, model, date } } }.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local comm = require "lorarun.dist.comm"
local fs = require "lorarun.base.fs"
local hub = require "lorarun.formats.hub"
local json = require "lorarun.base.json"
local device_traits = require "lorarun.tensor.device_traits"
local memory = require "lorarun.tensor.memory"
local sorted = require "lorarun.base.sorted"

local throughput = {}

local LEAST_SECONDS = 20 -- of training, for a rate to be kept

-- GPUs: memory in bytes, the data sheet's FLOP/s of dense products, and the share of them that whole steps of a large model are
-- expected to reach.
throughput.GPUS = {
  a100 = { memory = 80e9, bf16 = 312e12, tf32 = 156e12, fp32 = 19.5e12, share = 0.65 },
  h100 = { memory = 80e9, bf16 = 989e12, tf32 = 494e12, fp32 = 67e12, share = 0.55 },
  h200 = { memory = 141e9, bf16 = 989e12, tf32 = 494e12, fp32 = 67e12, share = 0.55 },
  l4 = { memory = 24e9, bf16 = 121e12, tf32 = 60e12, fp32 = 30e12, share = 0.55 },
  l40s = { memory = 48e9, bf16 = 362e12, tf32 = 183e12, fp32 = 91e12, share = 0.55 },
}

--- flops_a_token(model): the useful work of a training step.
function throughput.flops_a_token(model)
  local weights = 0
  for _, layer in ipairs(model.linears) do weights = weights + layer.n * layer.k end
  return 4 * weights
end

local function path() return fs.join(hub.lorarun_cache(), "rates.json") end

-- The file's table; an empty one where it cannot be read.
local function read()
  local ok, all = pcall(json.decode_file, path())
  return ok and type(all) == "table" and all or {}
end

local function record_of(records, precision)
  local record = type(records) == "table" and records[precision]
  if type(record) == "table" and type(record.flops) == "number" and record.flops > 0 then return record end
end

local function device_line(device)
  local text = ffi.new "char[512]"
  check(C.lr_device_describe(memory.DEVICES[device], text, 512))
  return ffi.string(text)
end

-- The name under which a model's rate is kept: where fp32 may be multiplied as TF32, that is a precision of its own.
local function kind_of(model)
  local tf32 = model.precision == "fp32" and device_traits.of(model.device).own_memory and C.lr_tf32(-1) ~= 0
  return tf32 and "tf32" or model.precision
end

--- remember(run): keep the rate of a training run that is done, where it was long enough and nothing was computed twice. run:
--- { model, tokens = of all ranks, seconds = of training, recomputed = was something computed twice }.
function throughput.remember(run)
  local model, seconds = run.model, run.seconds
  if seconds < LEAST_SECONDS or run.recomputed then return end
  pcall(function() -- a run that is done does not fail for this
    local all, device = read(), device_line(model.device)
    all[device] = type(all[device]) == "table" and all[device] or {}
    local sharing = device_traits.of(model.device).own_memory and 1 or comm.local_world_size -- ranks on this device
    all[device][kind_of(model)] = { flops = throughput.flops_a_token(model) * run.tokens / seconds / comm.world_size * sharing,
      model = model.name, date = os.date "%Y-%m-%d" }
    fs.make(fs.dirname(path()))
    fs.write(path(), json.encode(all, { indent = 2, sort_keys = true }) .. "\n")
  end)
end

local function measured(record)
  return record.flops, ("measured here on %s with %s"):format(tostring(record.date), tostring(record.model)), true
end

--- of_cpu(precision): the FLOP/s of this machine's CPU, a text that says where they come from, and true (measured); nil where no
--- run was measured.
function throughput.of_cpu(precision)
  local record = record_of(read()[device_line "cpu"], precision)
  if record then return measured(record) end
end

--- of_gpu(name, model): the same for a GPU of throughput.GPUS and a model's precision; where no such GPU was measured on this
--- machine, an estimate, its source, and false.
function throughput.of_gpu(name, model)
  local precision = kind_of(model)
  for device, records in sorted(read()) do
    local record = device:lower():find("%f[%w]" .. name .. "%f[%W]") and record_of(records, precision)
    if record then return measured(record) end
  end
  local gpu = throughput.GPUS[name]
  local flops = (gpu[precision] or gpu.bf16) * gpu.share -- fp16 is as fast as bf16
  return flops, ("estimated: %.0f TFLOP/s, %.0f%% of the peak of %s in %s"):format(flops / 1e12, 100 * gpu.share,
    name:upper(), precision), false
end

return throughput
