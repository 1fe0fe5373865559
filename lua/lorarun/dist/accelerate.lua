-- accelerate.lua: reads the configuration files of Hugging Face Accelerate (`accelerate config` writes them) for the settings of
-- where and how ranks run. A key that would change the training and that lorarun does not follow is an error; none is ignored.
--   accelerate.read(path)      -> values, origins, warnings: setting -> value; setting -> "FILE:LINE"; a list of lines for the user
--   accelerate.environment([getenv])   -> { values, names }: the settings that `accelerate launch` passes in variables: setting ->
--                                         value, and setting -> variable. getenv(name) -> text or nil; default: os.getenv
--   accelerate.default_path()  -> the path of Accelerate's default file
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local hub = require "lorarun.formats.hub"
local json = require "lorarun.base.json"
local sorted = require "lorarun.base.sorted"
local suggest = require "lorarun.base.suggest"
local yaml = require "lorarun.base.yaml"

local accelerate = {}

-- The kind of each key's value. `setting`: it is a setting of the same name. `no`: what false means there; YAML reads an unquoted
-- no as false.
local KEYS = {
  distributed_type = { "word", no = "NO" }, compute_environment = { "word" },
  mixed_precision = { "word", no = "no", setting = true }, fp16 = { "boolean" },
  num_processes = { "integer", setting = true }, num_machines = { "integer", setting = true },
  machine_rank = { "integer", setting = true }, main_process_ip = { "word", setting = true },
  main_process_port = { "integer", setting = true }, gpu_ids = { "ids", setting = true }, use_cpu = { "boolean", setting = true },
  dynamo_backend = { "word", no = "NO" }, rdzv_backend = { "word", no = "static" },
}
-- Keys without a meaning for lorarun: entry points of Python, TPUs, tuning that the operating system does by itself. Any value is
-- accepted, since real files have the word 'no' in some.
for _, key in ipairs { "same_network", "debug", "enable_cpu_affinity", "main_training_function", "downcast_bf16", "tpu_name",
  "tpu_zone", "tpu_use_cluster", "tpu_use_sudo", "tpu_vm", "tpu_env", "command_file", "commands" } do
  KEYS[key] = { "any" }
end
-- Sections for other ways to train. One without any setting is accepted.
local SECTIONS = {
  deepspeed_config = "DeepSpeed", fsdp_config = "fully sharded data parallelism", megatron_lm_config = "Megatron-LM",
  parallelism_config = "tensor, context and pipeline parallelism", fp8_config = "fp8", dynamo_config = "torch.compile",
  ipex_config = "Intel's extension for PyTorch",
  mpirun_config = "starting ranks by mpirun (run `mpirun lorarun RECIPE.lua` instead: ranks find each other)",
}
for key in pairs(SECTIONS) do KEYS[key] = { "section" } end

local OURS = { NO = true, MULTI_GPU = true, MULTI_CPU = true }
local THEIRS = { FSDP = true, DEEPSPEED = true, MEGATRON_LM = true, XLA = true, TPU = true }
local PRECISIONS = { no = true, fp16 = true, bf16 = true, fp8 = true }
local BOM = "\239\187\191"

local BOOLEANS = {} -- as Accelerate reads words
for _, word in ipairs { "y", "yes", "t", "true", "on", "1" } do BOOLEANS[word] = true end
for _, word in ipairs { "n", "no", "f", "false", "off", "0" } do BOOLEANS[word] = false end

-- Is a value without a setting: null, false, an empty text, or a collection of only such values? seen: the collections looked at so
-- far; aliases may make one occur many times.
local function is_empty(value, seen)
  if value == json.null or value == "" or value == false then return true end
  if type(value) ~= "table" then return false end
  seen = seen or {}
  if seen[value] then return true end
  seen[value] = true
  for _, part in pairs(value) do
    if not is_empty(part, seen) then return false end
  end
  return true
end

local function is_unused(key, section)
  if key == "dynamo_config" and type(section) == "table" then -- without a backend nothing is compiled, whatever the other keys are
    local backend = section.dynamo_backend or false
    return is_empty(backend) or tostring(backend):lower() == "no"
  end
  return is_empty(section)
end

-- A whole number, of YAML or as text, or nil.
local function integer(value)
  if type(value) == "string" then value = value:match "^%s*[-+]?%d+%s*$" and tonumber(value) end
  return type(value) == "number" and value % 1 == 0 and value or nil
end

-- "0,1" from 0, "0,1" or [0, 1]; nil where the value is none of these.
local function ids(value)
  if not json.is_array(value) then
    return type(value) == "string" and value or integer(value) and ("%d"):format(value) or nil
  end
  local texts = {}
  for i, id in ipairs(value) do
    texts[i] = ids(id)
    if not texts[i] or json.is_array(id) then return nil end
  end
  return #texts > 0 and table.concat(texts, ",") or nil
end

-- A value of the file as the key wants it, or nil where it is none.
local function as(spec, value)
  local kind = spec[1]
  if kind == "word" then
    if value == false then return spec.no end
    return type(value) == "string" and value or nil
  elseif kind == "ids" then
    return ids(value)
  elseif kind == "integer" then
    return integer(value)
  elseif type(value) == "boolean" then
    return value
  end
  return BOOLEANS[tostring(value):lower()]
end

local EXPECTED = { word = "a word", integer = "a whole number", boolean = "true or false", ids = "numbers with commas, or all" }

-- A value for an error message. Nested collections are shown as "...", since aliases can make them huge.
local function shown(value)
  if type(value) ~= "table" or value == json.null then return tostring(value) end
  local flat = json.is_array(value) and json.array {} or {}
  for key, part in pairs(value) do
    flat[key] = type(part) == "table" and part ~= json.null and next(part) ~= nil and "..." or part
  end
  return json.encode(flat)
end

local function read_file(path)
  if path:find "%.json$" then return json.decode((fs.read(path):gsub("^" .. BOM, "")), path), {} end
  return yaml.read(path)
end

-- An unknown key is one of a newer Accelerate, which writes all its keys, or a mistake. Without a setting in it, it is harmless.
local function unknown(key, value, place, warnings)
  local known = sorted.keys(KEYS)
  local meant = suggest.did_you_mean(key, known)
  if not is_empty(value) then
    check.fail("%s: unknown key '%s'%s (Accelerate's keys are %s)", place(key), key, meant, table.concat(known, ", "))
  end
  warnings[#warnings + 1] = ("%s: the key '%s' is unknown and left out, as it says nothing (%s)%s"):format(place(key), key,
    shown(value), meant)
end

function accelerate.read(path)
  local file, lines = read_file(path)
  local function place(key) return lines[key] and ("%s:%d"):format(path, lines[key]) or path end
  if not json.is_object(file) then
    check.fail("%s is no Accelerate configuration: it has no keys", path)
  end
  local environment = json.unless_null(file.compute_environment)
  if environment and environment ~= "LOCAL_MACHINE" then -- other environments have keys of their own
    check.fail("%s: compute_environment is %s, and only LOCAL_MACHINE is supported; start lorarun on the machines themselves",
      place "compute_environment", shown(environment))
  end

  local values, origins, plain, warnings = {}, {}, {}, {}
  for _, key in ipairs(sorted.keys(file)) do
    local spec, value = KEYS[key], file[key]
    if not spec then
      unknown(key, value, place, warnings)
    elseif spec[1] == "section" then
      if not is_unused(key, value) then
        check.fail("%s: %s is set, and %s is not supported; remove the section, or use Accelerate for this job", place(key), key,
          SECTIONS[key])
      end
    elseif spec[1] ~= "any" and value ~= json.null then
      plain[key] = as(spec, value)
      if plain[key] == nil then
        check.fail("%s: %s is '%s', expected %s", place(key), key, shown(value), EXPECTED[spec[1]])
      elseif key == "fp16" and plain.fp16 == false and type(value) == "string" then -- to Python, a text is true
        check.fail("%s: fp16 is the text '%s', which Accelerate takes for true; write fp16: false", place(key), value)
      end
      if spec.setting then values[key], origins[key] = plain[key], place(key) end
    end
  end

  local kind = plain.distributed_type
  if not kind then
    check.fail("%s has no distributed_type; add one of: distributed_type: NO, distributed_type: MULTI_GPU, "
      .. "distributed_type: MULTI_CPU", path)
  elseif not OURS[kind] then
    check.fail("%s: distributed_type is %s, which is not supported%s. Use MULTI_GPU (every GPU holds the whole model; only "
      .. "adapters are trained), MULTI_CPU or NO", place "distributed_type", kind,
      (THEIRS[kind] or kind:find "^MULTI_") and "" or suggest.did_you_mean(kind, sorted.keys(OURS)))
  end
  if plain.dynamo_backend and plain.dynamo_backend:upper() ~= "NO" then
    check.fail("%s: dynamo_backend is %s, and torch.compile has no meaning here; set it to NO", place "dynamo_backend",
      plain.dynamo_backend)
  end
  local backend = plain.rdzv_backend
  if backend and backend ~= "static" and backend ~= "c10d" and (values.num_machines or 1) > 1 then
    check.fail("%s: rdzv_backend is %s, where main_process_ip is a service that tells machines of each other; machines meet at "
      .. "machine 0 here: give its address, and rdzv_backend: static", place "rdzv_backend", backend)
  end
  local precision = values.mixed_precision and values.mixed_precision:lower() -- Accelerate takes any case
  values.mixed_precision = precision
  if precision and not PRECISIONS[precision] then
    check.fail("%s: mixed_precision is '%s', expected no, fp16 or bf16", place "mixed_precision", precision)
  elseif file.mixed_precision == nil and plain.fp16 then -- the key of files before mixed_precision
    values.mixed_precision, origins.mixed_precision = "fp16", place "fp16"
  end
  if kind == "NO" then
    if values.num_processes and values.num_processes > 1 then
      check.fail("%s: num_processes is %d, but distributed_type is NO; use MULTI_GPU or MULTI_CPU, or num_processes: 1",
        place "num_processes", values.num_processes)
    end
    values.num_processes, origins.num_processes = 1, origins.num_processes or place "distributed_type"
  elseif not values.num_processes or values.num_processes == -1 then
    -- -1 means in Accelerate: given on the command line
    values.num_processes, origins.num_processes = nil, nil
    values.needs_num_processes = place(file.num_processes and "num_processes" or "distributed_type")
  end
  if kind == "MULTI_CPU" then
    if values.use_cpu == false then
      warnings[#warnings + 1] = ("%s: use_cpu is false, but distributed_type is MULTI_CPU: ranks run on the CPU"):format(
        place "use_cpu")
    end
    values.use_cpu, origins.use_cpu = true, place "distributed_type"
  elseif kind == "MULTI_GPU" and values.use_cpu then -- Accelerate would take the GPUs
    check.fail("%s: use_cpu is true, but distributed_type is MULTI_GPU; use MULTI_CPU, or use_cpu: false", place "use_cpu")
  elseif kind == "MULTI_GPU" then
    values.needs_gpu = place "distributed_type"
  end
  return values, origins, warnings
end

local OTHER_WAYS = { { "DEEPSPEED", "DeepSpeed" }, { "FSDP", SECTIONS.fsdp_config }, { "MEGATRON_LM", "Megatron-LM" },
  { "PARALLELISM_CONFIG", SECTIONS.parallelism_config } }

function accelerate.environment(getenv)
  getenv = getenv or os.getenv
  local values, names = {}, {}
  local function variable(name)
    local text = getenv(name)
    return text and text ~= "" and text:lower() or nil
  end
  local function flag(name)
    local text = variable(name)
    if text and BOOLEANS[text] == nil then check.fail("%s is '%s', expected true or false", name, text) end
    return text and BOOLEANS[text]
  end
  for _, way in ipairs(OTHER_WAYS) do
    local name = "ACCELERATE_USE_" .. way[1]
    if flag(name) then check.fail("%s is set, and %s is not supported; unset it", name, way[2]) end
  end
  local dynamo = variable "ACCELERATE_DYNAMO_BACKEND"
  if dynamo and dynamo ~= "no" then
    check.fail("ACCELERATE_DYNAMO_BACKEND is '%s', and torch.compile has no meaning here; unset it", dynamo)
  end
  values.mixed_precision, names.mixed_precision = variable "ACCELERATE_MIXED_PRECISION", "ACCELERATE_MIXED_PRECISION"
  values.use_cpu, names.use_cpu = flag "ACCELERATE_USE_CPU" or nil, "ACCELERATE_USE_CPU"
  return { values = values, names = names }
end

function accelerate.default_path() return fs.join(hub.home(), "accelerate", "default_config.yaml") end

return accelerate
