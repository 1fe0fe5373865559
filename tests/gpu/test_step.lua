-- Whole LoRA training steps on the GPU compared with the same steps on the CPU: a two-layer Qwen2 and a two-layer BERT with
-- head_dims for tensor cores (32, with two query heads per key head; 64), adapters on every linear layer, dropout. In fp32 both
-- must come to the same loss, gradients and adapters, except for the order of their sums; in bf16 the GPU may differ from the CPU's
-- fp32 as much as the CPU's bf16 does. Also runs on CUDA's kernels on the CPU (LORARUN_CUDA=host, LORARUN_SIMT=1).
if not require("lorarun").has_gpu() then skip "no GPU" end
local ffi = require "ffi"
local C = require "lorarun.base.c"
local autograd = require "lorarun.tensor.autograd"
local dataset = require "lorarun.data.dataset"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local load_model = require("lorarun.models.model").load
local loss = require "lorarun.train.loss"
local ops = require "lorarun.tensor.ops"
local optim = require "lorarun.tensor.optim"
local safetensors = require "lorarun.formats.safetensors"
local tensor = require "lorarun.tensor.tensor"
local checked = require "lorarun.base.check"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local golden = fs.join(os.getenv "LORARUN_TESTS", "golden")
local texts = json.decode_file(fs.join(golden, "texts.json"))
local STEPS, LEARNING_RATE, MAX_LENGTH = 2, 1e-2, 100

-- What differs from the golden models: numbers of config.json, and the dimensions of tensors that follow from them.
local MODELS = {
  qwen2 = { sizes = { [64] = 128, [16] = 64, [40] = 96 }, loss = loss.multiple_negatives_ranking(),
    config = { hidden_size = 128, num_attention_heads = 4, num_key_value_heads = 2, intermediate_size = 96,
      num_hidden_layers = 2 } },
  bert = { sizes = { [48] = 128, [64] = MAX_LENGTH, [72] = 96 }, loss = loss.cosine_similarity(),
    config = { hidden_size = 128, num_attention_heads = 2, intermediate_size = 96, num_hidden_layers = 2,
      max_position_embeddings = MAX_LENGTH } },
}

-- 1 to 100 tokens (attention's tiles have 64); one text occurs twice.
local COLUMNS = { { texts.texts[5], texts.pairs[1].first, texts.pairs[2].first },
  { texts.texts[12], texts.texts[1], texts.pairs[2].first } }
local LABELS = { 1, 0, 0.5 }

-- Random weights with which values neither vanish nor explode in the layers.
local function draw(t, name, stream)
  local low, high = -0.1, 0.1 -- biases
  if name:lower():find "norm" and name:find "weight$" then
    low, high = 0.5, 1.5
  elseif #t.shape == 2 then
    high = math.sqrt(3 / t.shape[2])
    low = -high
  end
  checked(C.lr_tensor_uniform(t.handle, 3, stream, low, high))
end

-- The golden model's folder with other sizes and random weights.
local function make_model(arch, folder)
  local model, from = MODELS[arch], fs.join(golden, arch)
  fs.make(fs.join(folder, "1_Pooling"))
  fs.copy(fs.join(from, "1_Pooling", "config.json"), fs.join(folder, "1_Pooling", "config.json"))
  for _, name in ipairs(fs.list(from)) do
    if fs.is_file(fs.join(from, name)) then fs.copy(fs.join(from, name), fs.join(folder, name)) end
  end
  local config = json.decode_file(fs.join(from, "config.json"))
  for key, value in pairs(model.config) do config[key] = value end
  config.layer_types = nil
  fs.write(fs.join(folder, "config.json"), json.encode(config))
  local file, entries = safetensors.open_folder(from), {}
  for i, name in ipairs(file:names()) do
    local shape = {}
    for d, n in ipairs(file:info(name).shape) do shape[d] = model.sizes[n] or n end
    entries[i] = { name = name, dtype = "f32", shape = shape, tensor = function()
      local t = tensor.new(shape, "f32", name, "cpu")
      draw(t, name, i)
      return t, function() t:free() end
    end }
  end
  file:close()
  safetensors.write(fs.join(folder, "model.safetensors"), entries)
end

local function copy_of(t)
  local values, n = t:data()
  local copy = ffi.new("float[?]", n)
  ffi.copy(copy, values, n * ffi.sizeof "float")
  return { n = n, values = copy }
end

-- Takes the steps. Returns { losses, norms, gradient (the first step's), adapters }.
local function train(arch, folder, device, precision, recompute)
  local model = load_model(folder, { device = device, precision = precision, max_length = MAX_LENGTH })
  model:add_lora { rank = 4, alpha = 8, dropout = 0.1, targets = "all-linear" }
  local p, result = model.lora.parameters, { losses = {}, norms = {} }
  for i, m in ipairs(model.lora.modules) do -- with B = 0 the gradient of A would be 0
    checked(C.lr_tensor_uniform(m.b.handle, 4, i, -0.1, 0.1))
  end
  local optimizer = optim.adamw(p, { weight_decay = 0.01, eps = 1e-3 }) -- else the first step is only the gradient's sign
  local flat, n = {}, #LABELS
  for _, column in ipairs(COLUMNS) do
    for _, text in ipairs(column) do flat[#flat + 1] = text end
  end
  for step = 1, STEPS do
    result.losses[step] = autograd.gradients(function()
      local batch = dataset.pack(model.tokenizer, flat, model.max_length)
      local ctx = model:context(batch, { training = true, recompute = recompute or 0, seed = 1, step = step })
      batch:close()
      local e = model:forward(ctx)
      local labels = tensor.from(LABELS, { n }, "f32", "labels", device)
      return MODELS[arch].loss.compute({ ops.rows(e, 0, n), ops.rows(e, n, 2 * n) }, labels, e)
    end)
    result.gradient = result.gradient or copy_of(p.grad)
    result.norms[step] = optimizer:step(LEARNING_RATE)
  end
  result.adapters = copy_of(p.value)
  optimizer:free()
  model:free()
  return result
end

-- |a - b| / |b|
local function distance(a, b)
  local d, s = 0, 0
  for i = 0, a.n - 1 do
    d = d + (a.values[i] - b.values[i]) ^ 2
    s = s + b.values[i] ^ 2
  end
  return math.sqrt(d / s)
end

local function check_same_bits(a, b, what)
  for step = 1, STEPS do check.equal(a.losses[step], b.losses[step], what .. ": loss") end
  check.equal(distance(a.gradient, b.gradient), 0, what .. ": gradients")
  check.equal(distance(a.adapters, b.adapters), 0, what .. ": adapters")
end

for arch in pairs(MODELS) do
  test(arch .. ": training steps in fp32 and bf16 are the CPU's, and the same bits again", function()
    shell.with_folder(function(folder)
      make_model(arch, folder)
      local exact, mine = train(arch, folder, "cpu", "fp32"), train(arch, folder, "cuda", "fp32")
      for step = 1, STEPS do
        check.near(mine.losses[step], exact.losses[step], 1e-5 * math.max(1, exact.losses[step]), "fp32: loss of step " .. step)
        check.near(mine.norms[step], exact.norms[step], 1e-4 * exact.norms[step], "fp32: gradient's norm in step " .. step)
      end
      for _, what in ipairs { "gradient", "adapters" } do
        local d = distance(mine[what], exact[what])
        check.that(d < 2e-5, ("fp32: %s differs by %.3g"):format(what, d))
      end
      local cpu, gpu = train(arch, folder, "cpu", "bf16"), train(arch, folder, "cuda", "bf16")
      for step = 1, STEPS do
        check.near(gpu.losses[step], exact.losses[step], 0.02 * math.max(1, exact.losses[step]), "bf16: loss of step " .. step)
      end
      for what, most in pairs { gradient = 0.05, adapters = 0.02 } do
        local of_cpu, of_gpu = distance(cpu[what], exact[what]), distance(gpu[what], exact[what])
        check.that(of_cpu > 0 and of_gpu < 1.5 * of_cpu and of_gpu < most,
          ("bf16: %s differs by %.3g from fp32, on the CPU by %.3g"):format(what, of_gpu, of_cpu))
      end
      check_same_bits(train(arch, folder, "cuda", "bf16", 2), gpu, "recomputed")
    end)
  end)
end
