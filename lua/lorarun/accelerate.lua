-- accelerate.lua: the configuration files of Hugging Face Accelerate (what `accelerate config` writes), read for the settings that
-- say where and how ranks run. A file is read whole or refused: a key that would change the training is never passed over.
--   accelerate.read(path)      -> values, origins: setting -> value, and -> "FILE:LINE"
--   accelerate.default_path()  -> where Accelerate keeps the file that is read when none is named
local check = require "lorarun.check"
local fs = require "lorarun.fs"
local json = require "lorarun.json"
local suggest = require "lorarun.suggest"
local yaml = require "lorarun.yaml"

local accelerate = {}

-- What a key of the file may hold. `setting`: the value is a setting of the same name.
local KEYS = {
  distributed_type = { "word", no = "NO" }, compute_environment = { "word" }, mixed_precision = { "word", setting = true },
  fp16 = { "boolean" }, num_processes = { "integer", setting = true }, num_machines = { "integer", setting = true },
  machine_rank = { "integer", setting = true }, main_process_ip = { "word", setting = true },
  main_process_port = { "integer", setting = true }, gpu_ids = { "word", setting = true }, use_cpu = { "boolean", setting = true },
  dynamo_backend = { "word" },
}
-- Without a meaning here: entry points of Python, TPUs, tuning that the operating system does by itself. Real files hold the word
-- 'no' in some of them, so any value will do.
for _, key in ipairs { "rdzv_backend", "same_network", "debug", "enable_cpu_affinity", "main_training_function", "downcast_bf16",
  "tpu_name", "tpu_zone", "tpu_use_cluster", "tpu_use_sudo", "tpu_vm", "tpu_env", "command_file", "commands" } do
  KEYS[key] = { "any" }
end
-- Sections of other ways to train. An empty one says nothing.
local SECTIONS = {
  deepspeed_config = "DeepSpeed", fsdp_config = "fully sharded data parallelism", megatron_lm_config = "Megatron-LM",
  parallelism_config = "tensor, context and pipeline parallelism", fp8_config = "fp8", dynamo_config = "torch.compile",
  mpirun_config = "starting ranks by mpirun (run `mpirun lorarun RECIPE.lua` instead: ranks find each other)",
}
for key in pairs(SECTIONS) do KEYS[key] = { "section" } end

local OURS = { NO = true, MULTI_GPU = true, MULTI_CPU = true }
local THEIRS = { FSDP = true, DEEPSPEED = true, MEGATRON_LM = true, XLA = true, TPU = true }
local PRECISIONS = { no = true, fp16 = true, bf16 = true, fp8 = true }

local function is_empty(value)
  if value == json.null or value == "" then return true end
  if type(value) ~= "table" then return false end
  return next(value) == nil or next(value, (next(value))) == nil and value.dynamo_backend == "NO"
end

-- A value of the file as the key wants it, or nil where it is none. YAML reads an unquoted no as false, and 0 as a number.
local function as(spec, value)
  local kind = spec[1]
  if kind == "word" then
    if value == false then return spec.no or "no" end
    return (type(value) == "string" and value) or (type(value) == "number" and ("%.0f"):format(value)) or nil
  elseif kind == "integer" then
    local n = tonumber(value)
    return n and n % 1 == 0 and n or nil
  elseif type(value) == "boolean" then
    return value
  elseif value == "no" or value == "false" or value == "False" then
    return false
  elseif value == "yes" or value == "true" or value == "True" then
    return true
  end
end

local function read_file(path)
  if path:find "%.json$" then return json.decode_file(path), {} end
  return yaml.read(path)
end

function accelerate.read(path)
  local file, lines = read_file(path)
  local function place(key) return lines[key] and ("%s:%d"):format(path, lines[key]) or path end
  if type(file) ~= "table" or json.is_array(file) then check.fail("%s is no Accelerate configuration: it has no keys", path) end

  local values, origins, plain = {}, {}, {}
  local names = {}
  for key in pairs(file) do names[#names + 1] = key end
  table.sort(names)
  for _, key in ipairs(names) do
    local spec, value = KEYS[key], file[key]
    if not spec then
      local known = {}
      for name in pairs(KEYS) do known[#known + 1] = name end
      table.sort(known)
      check.fail("%s: unknown key '%s'%s (Accelerate's keys are %s)", place(key), key, suggest.did_you_mean(key, known),
        table.concat(known, ", "))
    elseif spec[1] == "section" then
      if not is_empty(value) then
        check.fail("%s: %s is set, and %s is not supported; remove the section, or use Accelerate for this job", place(key), key,
          SECTIONS[key])
      end
    elseif spec[1] ~= "any" and value ~= json.null then
      plain[key] = as(spec, value)
      if plain[key] == nil then
        check.fail("%s: %s is '%s', expected %s", place(key), key, tostring(value),
          ({ word = "a word", integer = "a whole number", boolean = "true or false" })[spec[1]])
      end
      if spec.setting then values[key], origins[key] = plain[key], place(key) end
    end
  end

  local environment = plain.compute_environment
  if environment and environment ~= "LOCAL_MACHINE" then
    check.fail("%s: compute_environment is %s, and only LOCAL_MACHINE is supported; start lorarun on the machines themselves",
      place "compute_environment", environment)
  end
  local kind = plain.distributed_type
  if not kind then
    check.fail("%s has no distributed_type; add one of: distributed_type: NO, distributed_type: MULTI_GPU, "
      .. "distributed_type: MULTI_CPU", path)
  elseif not OURS[kind] then
    local known = {}
    for name in pairs(OURS) do known[#known + 1] = name end
    check.fail("%s: distributed_type is %s, which is not supported%s. Use MULTI_GPU (every GPU holds the whole model; only "
      .. "adapters are trained), MULTI_CPU or NO", place "distributed_type", kind,
      (THEIRS[kind] or kind:find "^MULTI_") and "" or suggest.did_you_mean(kind, known))
  end
  if plain.dynamo_backend and plain.dynamo_backend ~= "NO" then
    check.fail("%s: dynamo_backend is %s, and torch.compile has no meaning here; set it to NO", place "dynamo_backend",
      plain.dynamo_backend)
  end
  local precision = values.mixed_precision
  if precision and not PRECISIONS[precision] then
    check.fail("%s: mixed_precision is '%s', expected no, fp16 or bf16", place "mixed_precision", precision)
  elseif not precision and plain.fp16 then -- how files said it before there was a choice
    values.mixed_precision, origins.mixed_precision = "fp16", place "fp16"
  end
  if kind == "NO" then
    if values.num_processes and values.num_processes > 1 then
      check.fail("%s: num_processes is %d, but distributed_type is NO; use MULTI_GPU or MULTI_CPU, or num_processes: 1",
        place "num_processes", values.num_processes)
    end
    values.num_processes, origins.num_processes = 1, origins.num_processes or place "distributed_type"
  elseif not values.num_processes or values.num_processes == -1 then
    -- -1: Accelerate's "told on the command line"
    values.num_processes, origins.num_processes = nil, nil
    values.needs_num_processes = place(file.num_processes and "num_processes" or "distributed_type")
  end
  if kind == "MULTI_CPU" then
    values.use_cpu, origins.use_cpu = true, place "distributed_type"
  elseif kind == "MULTI_GPU" and not values.use_cpu then
    values.needs_gpu = place "distributed_type"
  end
  return values, origins
end

function accelerate.default_path()
  local home = os.getenv "HF_HOME"
  if not home or home == "" then
    local cache = os.getenv "XDG_CACHE_HOME"
    home = fs.join(cache and cache ~= "" and cache or fs.join(os.getenv "HOME" or "", ".cache"), "huggingface")
  end
  return fs.join(home, "accelerate", "default_config.yaml")
end

return accelerate
