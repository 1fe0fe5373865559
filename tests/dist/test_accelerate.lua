-- test_accelerate.lua: Accelerate's configuration files. Those that it writes are accepted as they are; the rest is refused with
-- the key, the line and the remedy.
local accelerate = require "lorarun.dist.accelerate"
local fs = require "lorarun.base.fs"
local settings = require "lorarun.dist.settings"

local SAMPLES = fs.join(os.getenv "LORARUN_TESTS", "dist", "accelerate")

local function sample(name) return fs.join(SAMPLES, name .. ".yaml") end

-- The settings that follow from a sample file, or from the text of a file.
local function resolved(name_or_text, recipe, ...)
  settings.forget()
  local argv = { ... }
  for i = 1, #argv, 2 do settings.take_flag(argv, i) end
  local own = name_or_text:find "\n"
  local path = own and os.tmpname() or sample(name_or_text)
  if own then fs.write(path, name_or_text) end
  recipe = recipe or {}
  recipe.config = path
  local ok, result = pcall(settings.resolve, recipe)
  if own then os.remove(path) end
  if not ok then error(own and (tostring(result):gsub(path:gsub("%p", "%%%0"), "FILE", 1)) or result, 0) end
  return result
end

test("files as accelerate config writes them", function()
  local s = resolved "single_gpu"
  check.equal(s.num_processes, 1)
  check.equal(s.precision, "fp16")
  check.equal(s.needs_gpu, nil, "a single process takes the GPU that there is")
  s = resolved "multi_gpu"
  check.equal(s.num_processes, 4)
  check.equal(s.gpu_ids, "0,1,2,3")
  check.equal(s.precision, "bf16")
  check.equal(s.needs_gpu, sample "multi_gpu" .. ":3")
  check.equal(s.origin.num_processes, sample "multi_gpu" .. ":11")
  s = resolved "multi_cpu"
  check.equal(s.use_cpu, true)
  check.equal(s.precision, "fp32")
  s = resolved "multi_cpu_ipex" -- written by Accelerate 1.12, which asks for Intel's extension on every CPU
  check.equal(s.num_processes, 2)
  check.equal(s.use_cpu, true)
  check.equal(#s.warnings, 0)
  s = resolved "old_fp16"
  check.equal(s.precision, "fp16")
end)

test("two machines", function()
  local secret = os.tmpname()
  fs.write(secret, "long and random enough")
  local s = resolved("two_machines", nil, "--secret-file", secret)
  check.equal(s.ranks_here, 8)
  check.equal(s.first_rank, 8)
  check.equal(s.main_process_port, 29501)
  check.equal(resolved("two_machines", nil, "--secret-file", secret, "--machine-rank", "0").first_rank, 0)
  os.remove(secret)
end)

test("the command line comes before the file, the file before the recipe", function()
  local s = resolved("multi_cpu", { processes = 7, precision = "bf16", max_restarts = 2 }, "--num-processes", "3")
  check.equal(s.num_processes, 3)
  check.equal(s.precision, "fp32")
  check.equal(s.max_restarts, 2)
end)

test("other ways to train are refused", function()
  check.raises("deepspeed.yaml:3: deepspeed_config is set, and DeepSpeed is not supported", resolved, "deepspeed")
  check.raises("fsdp_config is set, and fully sharded data parallelism is not supported", resolved, "fsdp")
  check.raises("dynamo_config is set, and torch.compile is not supported", resolved, "torch_compile")
  check.raises("FILE:2: distributed_type is FSDP, which is not supported. Use MULTI_GPU", resolved,
    "num_processes: 2\ndistributed_type: FSDP\n")
  check.raises("distributed_type is MULTIGPU, which is not supported; did you mean 'MULTI_GPU'?", resolved,
    "num_processes: 2\ndistributed_type: MULTIGPU\n")
  check.raises("FILE:1: compute_environment is AMAZON_SAGEMAKER", resolved,
    "compute_environment: AMAZON_SAGEMAKER\ndistributed_type: NO\n")
  check.raises("FILE:2: mixed_precision is fp8, which is not supported", resolved, "distributed_type: NO\nmixed_precision: fp8\n")
  check.raises("FILE:2: dynamo_backend is INDUCTOR", resolved, "distributed_type: NO\ndynamo_backend: INDUCTOR\n")
end)

test("sections that set nothing", function()
  for _, section in ipairs { "ipex_config:\n  ipex: false\n  use_xpu: false", "deepspeed_config: {}", "fsdp_config: null",
    "fsdp_config:\n  fsdp_sync_module_states: false", "megatron_lm_config: ''", "parallelism_config: []",
    "dynamo_config:\n  dynamo_backend: 'no'\n  dynamo_mode: default", "dynamo_config:\n  dynamo_mode: default",
    "dynamo_config:\n  dynamo_backend: NO", "dynamo_backend: NO", "dynamo_backend: 'no'" } do
    check.equal(#resolved("distributed_type: NO\n" .. section .. "\n").warnings, 0, section)
  end
  check.raises("FILE:2: ipex_config is set, and Intel's extension for PyTorch is not supported", resolved,
    "distributed_type: NO\nipex_config:\n  ipex: true\n")
  check.raises("FILE:2: dynamo_config is set", resolved, "distributed_type: NO\ndynamo_config:\n  dynamo_backend: EAGER\n")
end)

test("keys of a newer Accelerate: a warning if they change nothing, an error if they do", function()
  for _, value in ipairs { "{}", "null", "[]", "''", "false", "~", "{ a: false, b: [{}] }" } do
    local warnings = resolved("distributed_type: NO\nsome_config: " .. value .. "\n").warnings
    check.equal(#warnings, 1, value)
    check.that(warnings[1]:find(":2: the key 'some_config' is unknown and left out", 1, true), warnings[1])
  end
  check.that(resolved("distributed_type: NO\nuse_cpuu: false\n").warnings[1]:find "did you mean 'use_cpu'")
  for _, value in ipairs { "true", "1", "x", "{ a: [0] }", "'no'" } do
    check.raises("FILE:2: unknown key 'some_config'", resolved, "distributed_type: NO\nsome_config: " .. value .. "\n")
  end
end)

test("aliases of aliases are read only once", function()
  local lines = { "distributed_type: NO", "a: &a0 [{}, {}]" }
  for i = 1, 40 do lines[#lines + 1] = ("b%d: &a%d [*a%d, *a%d]"):format(i, i, i - 1, i - 1) end -- 2^40 empty tables
  check.equal(#resolved(table.concat(lines, "\n") .. "\n").warnings, 41)
  lines[#lines + 1] = "gpu_ids: *a40"
  check.raises("FILE:43: gpu_ids is", resolved, table.concat(lines, "\n") .. "\n")
end)

test("byte order marks", function()
  local text = "distributed_type: MULTI_CPU\nnum_processes: 2\n"
  check.equal(resolved("\239\187\191" .. text).num_processes, 2)
  check.equal(resolved("\255\254" .. text:gsub(".", "%0\0")).num_processes, 2, "UTF-16, little end first")
  check.equal(resolved("\254\255" .. text:gsub(".", "\0%0")).num_processes, 2, "UTF-16, big end first")
  check.raises("FILE: not valid YAML: invalid", resolved, "\239\187\191distributed_type: \255\n")
end)

test("gpu_ids as a number, a text and a list", function()
  local function ids(text) return resolved("distributed_type: NO\ngpu_ids: " .. text .. "\n").gpu_ids end
  check.equal(ids "3", "3")
  check.equal(ids "0,1", "0,1")
  check.equal(ids "[0, 1]", "0,1")
  check.equal(ids "\n- '2'\n- 3", "2,3")
  check.raises("FILE:2: gpu_ids is '[\"...\", 2]', expected numbers with commas", ids, "[[0, 1], 2]")
  check.raises("FILE:2: gpu_ids is '{\"a\": 1}', expected numbers", ids, "{ a: 1 }")
  check.raises("FILE:2: gpu_ids is '0.1', expected numbers", ids, "0.1") -- a typing mistake for 0,1
  check.raises("FILE:2: gpu_ids is '[]'", ids, "[]")
end)

test("values that Accelerate would read differently than they look", function()
  check.equal(resolved("distributed_type: NO\nmixed_precision: null\nfp16: true\n").precision, "fp32")
  check.equal(resolved("distributed_type: NO\nmixed_precision: BF16\n").precision, "bf16")
  check.raises("FILE:2: fp16 is the text 'no', which Accelerate takes for true", resolved, "distributed_type: NO\nfp16: 'no'\n")
  check.raises("FILE:3: use_cpu is true, but distributed_type is MULTI_GPU", resolved,
    "distributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true\n")
  check.that(resolved("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: false\n").warnings[1]:find "ranks run on the CPU")
  check.raises("FILE:4: rdzv_backend is etcd", resolved,
    "distributed_type: MULTI_CPU\nnum_processes: 2\nnum_machines: 2\nrdzv_backend: etcd\n")
  check.raises("FILE:1: compute_environment is AMAZON_SAGEMAKER", resolved,
    "compute_environment: AMAZON_SAGEMAKER\nbase_job_name: a\ndistributed_type: NO\n")
  check.raises("FILE:2: num_processes is '1e3', expected a whole number", resolved,
    "distributed_type: MULTI_CPU\nnum_processes: 1e3\n")
  check.raises("FILE:2: num_processes is '0x2', expected a whole number", resolved,
    "distributed_type: MULTI_CPU\nnum_processes: '0x2'\n")
  check.equal(resolved("distributed_type: MULTI_CPU\nnum_processes: '2'\n").num_processes, 2)
  check.raises("FILE:2: main_process_ip is '12.5', expected a word", resolved, "distributed_type: NO\nmain_process_ip: 12.5\n")
  check.equal(resolved("distributed_type: NO\nuse_cpu: 'Off'\n").use_cpu, false)
end)

test("mistakes in a file", function()
  check.raises("FILE:2: unknown key 'num_proceses'; did you mean 'num_processes'? (Accelerate's keys are command_file, commands,",
    resolved, "distributed_type: MULTI_CPU\nnum_proceses: 4\n")
  check.raises("FILE has no distributed_type", resolved, "num_processes: 4\n")
  check.raises("FILE:1: the file does not say how many ranks there are", resolved, "distributed_type: MULTI_CPU\n\n")
  check.raises("FILE:2: the file does not say how many", resolved, "distributed_type: MULTI_CPU\nnum_processes: -1\n")
  check.equal(resolved("distributed_type: MULTI_CPU\nnum_processes: -1\n", nil, "--num-processes", "2").num_processes, 2)
  check.raises("FILE:2: num_processes is 'four', expected a whole number", resolved,
    "distributed_type: MULTI_CPU\nnum_processes: four\n")
  check.raises("FILE:2: num_processes is 4, but distributed_type is NO", resolved, "distributed_type: NO\nnum_processes: 4\n")
  check.raises("FILE:2: mixed_precision is 'half'", resolved, "distributed_type: NO\nmixed_precision: half\n")
  check.raises("FILE:3: main_process_port: main_process_port is 70000", function()
    local ok, err = pcall(resolved, "distributed_type: MULTI_CPU\nnum_processes: 2\nmain_process_port: 70000\n")
    error(not ok and (err:gsub("main_process_port is 70000", "main_process_port: %0", 1)) or "accepted", 0)
  end)
  check.raises("num_processes is 5 (FILE:3), which num_machines is 2 (FILE:2) does not divide", function()
    local ok, err = pcall(resolved, "distributed_type: MULTI_CPU\nnum_machines: 2\nnum_processes: 5\n")
    error(not ok and (err:gsub("/%S+:2", "FILE:2")) or "accepted", 0)
  end)
  check.raises("FILE:2:1: the key 'debug' occurs twice", resolved, "debug: false\ndebug: true\n")
end)

test("the variables that accelerate launch sets for its programs", function()
  local function environment(variables)
    return accelerate.environment(function(name) return variables["ACCELERATE_" .. name:match "^ACCELERATE_(.*)"] end).values
  end
  check.equal(environment({}).mixed_precision, nil)
  local values = environment { ACCELERATE_MIXED_PRECISION = "bf16", ACCELERATE_USE_CPU = "True", ACCELERATE_DYNAMO_BACKEND = "NO",
    ACCELERATE_USE_FSDP = "false" }
  check.equal(values.mixed_precision, "bf16")
  check.equal(values.use_cpu, true)
  check.equal(environment({ ACCELERATE_USE_CPU = "False" }).use_cpu, nil)
  check.raises("ACCELERATE_USE_FSDP is set, and fully sharded data parallelism is not supported", environment,
    { ACCELERATE_USE_FSDP = "true" })
  check.raises("ACCELERATE_DYNAMO_BACKEND is 'inductor'", environment, { ACCELERATE_DYNAMO_BACKEND = "INDUCTOR" })
  check.raises("ACCELERATE_USE_CPU is 'maybe', expected true or false", environment, { ACCELERATE_USE_CPU = "maybe" })

  local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
  local function shown(words) return shell.run("ACCELERATE_MIXED_PRECISION=bf16 $L config --show " .. words) end
  check.that(shown("").out:find "mixed_precision +bf16 +ACCELERATE_MIXED_PRECISION\n", "the variable beats the default")
  check.that(shown("--mixed-precision no").out:find "mixed_precision +no +command line\n", "the command line beats the variable")
  check.that(shown("--config " .. shell.quote(sample "old_fp16")).out:find "mixed_precision +fp16 ", "so does a file")
  check.that(shell.run("ACCELERATE_MIXED_PRECISION=half $L config --show").err:find(
    "ACCELERATE_MIXED_PRECISION is 'half', expected one of no, fp16, bf16", 1, true))
end)

test("words that YAML reads as values of another type", function()
  local s = resolved "distributed_type: NO\nmixed_precision: no\nuse_cpu: 'yes'\ngpu_ids: 0\nmain_process_ip: null\n"
  check.equal(s.precision, "fp32")
  check.equal(s.use_cpu, true)
  check.equal(s.gpu_ids, "0")
  check.equal(s.main_process_ip, nil)
end)

test("JSON, and the place where Accelerate keeps its file", function()
  local path = os.tmpname() .. ".json"
  fs.write(path, '{"distributed_type": "MULTI_CPU", "num_processes": 2}')
  settings.forget()
  check.equal(settings.resolve({ config = path }).num_processes, 2)
  fs.write(path, '\239\187\191{"distributed_type": "MULTI_CPU", "num_processes": 3}')
  check.equal(settings.resolve({ config = path }).num_processes, 3)
  fs.write(path, "null")
  check.raises("is no Accelerate configuration", settings.resolve, { config = path })
  os.remove(path)
  check.that(accelerate.default_path():find "/accelerate/default_config%.yaml$")
  check.raises("no-such-file.yaml", settings.resolve, { config = "no-such-file.yaml" })
end)
