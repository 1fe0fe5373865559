-- synthetic.lua: for benchmarks: models with random weights, without files, and batches with the lengths of the real job:
--   local synthetic = dofile(.. "/bench/lib/synthetic.lua")
--
--   local model = synthetic.model(synthetic.SHAPES.nomic, "bf16", "cuda")
--   local batch = synthetic.batch(synthetic.lengths(32))
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local lora = require "lorarun.models.lora"
local nn = require "lorarun.models.nn"
local tensor = require "lorarun.tensor.tensor"

local synthetic = {}

--- Shapes of models, as their modules' configure() returns them, with what lr.load_model would read from the other files.
synthetic.SHAPES = {
  minilm = { arch = "bert", targets = { "query", "key", "value" }, pooling = "mean", hidden = 384, layers = 6, heads = 12,
    kv_heads = 12, head_dim = 32, intermediate = 1536, vocabulary = 30522, positions = 512, types = 2, eps = 1e-12, gelu = "erf" },
  qwen2 = { arch = "qwen2", targets = { "q_proj", "k_proj", "v_proj" }, pooling = "last", hidden = 768, layers = 12, heads = 12,
    kv_heads = 2, head_dim = 64, intermediate = 4096, vocabulary = 32000, positions = 512, eps = 1e-6, theta = 1e6 },
  nomic = { arch = "qwen2", targets = { "q_proj", "k_proj", "v_proj" }, pooling = "last", hidden = 3584, layers = 28, heads = 28,
    kv_heads = 4, head_dim = 128, intermediate = 18944, vocabulary = 151646, positions = 512, eps = 1e-6, theta = 1e6 },
  tiny = { arch = "qwen2", targets = { "q_proj", "k_proj", "v_proj" }, pooling = "last", hidden = 128, layers = 2, heads = 4,
    kv_heads = 2, head_dim = 32, intermediate = 192, vocabulary = 300, positions = 512, eps = 1e-6, theta = 1e6 },
}

local DRAWN, SHIFTS = 2 ^ 22, 2 ^ 20 -- how many numbers are drawn, and the largest offset at which a tensor begins in them
local blocks = {} -- drawn numbers, by device and range; for a GPU the host makes them, a hundred times slower than a copy

local function block_of(device, low, high)
  local key = ("%s %g %g"):format(device, low, high)
  blocks[key] = blocks[key] or tensor.persistent(function()
    local f = tensor.new({ DRAWN + SHIFTS }, "f32", "random", device)
    check(C.lr_tensor_uniform(f.handle, 1, #key, low, high))
    return f
  end)
  return blocks[key]
end

--- Fills t, of any float dtype, with random numbers of [low, high). Large tensors repeat them; number makes tensors differ.
function synthetic.fill(t, low, high, number)
  local width = t.shape[#t.shape]
  local rows = t:elements() / width
  tensor.scope(function()
    local matrix, drawn = t:matrix(), math.min(rows, math.max(1, math.floor(DRAWN / width)))
    local block = block_of(t.device, low, high):view({ drawn, width }, number * 7919 % SHIFTS)
    for from = 0, rows - 1, drawn do
      local n = math.min(drawn, rows - from)
      check(C.lr_op_cast(matrix:slice_rows(from, from + n).handle, block:slice_rows(0, n).handle))
    end
  end)
end

--- model(shape, dtype, device): what lr.load_model would have loaded, with adapters of rank 16 and dropout.
function synthetic.model(shape, dtype, device)
  local arch = require("lorarun.models." .. shape.arch)
  local index = 0
  local source = nn.source { dtype = dtype, device = device, load = function(name, t)
    index = index + 1
    if device == "meta" then return end
    local norm = #t.shape == 1 and not name:find "bias$"
    synthetic.fill(t, norm and 0.9 or -0.04, norm and 1.1 or 0.04, index)
  end }
  return tensor.persistent(function()
    local built = arch.build(shape, source)
    if arch.prepare then arch.prepare(built, shape.positions, device) end
    local model = setmetatable({ arch = arch, built = built, linears = source.linears, frozen = source.count, device = device,
      pooling = shape.pooling,
      normalize = true, dimension = shape.hidden, layer_count = shape.layers, sizes = shape, dtype = dtype, name = "random weights",
      precision = ({ f32 = "fp32", f16 = "fp16" })[dtype] or dtype, max_length = shape.positions },
      require("lorarun.models.model").Model)
    lora.add(model, { rank = 16, alpha = 32, dropout = 0.1, targets = shape.targets })
    return model
  end)
end

--- lengths(pairs): tokens of the pairs' lines (4 to 20) and contexts (30 to 512, mostly short), the same in every run.
function synthetic.lengths(pairs_)
  local word, list = ffi.new "uint32_t[4]", {}
  for i = 0, 2 * pairs_ - 1 do
    C.lr_random(7, 1, 0, i, word)
    local u = word[0] * 2 ^ -32
    list[i + 1] = i < pairs_ and 4 + math.floor(u * 17) or math.min(512, 30 + math.floor(240 * u * u + 300 * u ^ 8))
  end
  return list
end

--- batch(lengths, vocabulary): a packed batch, as the loader makes them.
function synthetic.batch(list, vocabulary)
  local tokens, longest = 0, 0
  for _, n in ipairs(list) do tokens, longest = tokens + n, math.max(longest, n) end
  local b = { tokens = tokens, sequences = #list, max_length = longest, ids = ffi.new("int32_t[?]", tokens),
    positions = ffi.new("int32_t[?]", tokens), cu_seqlens = ffi.new("int32_t[?]", #list + 1), keys = ffi.new("int64_t[?]", tokens) }
  local t = 0
  for i, n in ipairs(list) do
    for p = 0, n - 1 do
      b.ids[t], b.positions[t], b.keys[t] = 5 + (t * 7919) % ((vocabulary or 20005) - 5), p, i * 65536 + p
      t = t + 1
    end
    b.cu_seqlens[i] = t
  end
  return b
end

--- useful_work(model, batch): FLOP of a step that no implementation can avoid: 4 for each weight and row (forward 2, gradient of
--- activations 2; frozen weights need no third product). If pooling takes single rows, the linear layers after the last layer's
--- attention (all but its first) count only these rows.
function synthetic.useful_work(model, batch)
  local takes_rows = model.pooling == "last" or model.pooling == "cls"
  local work, spared = 0, takes_rows and #model.linears - #model.linears / model.layer_count + 1
  for i, layer in ipairs(model.linears) do
    work = work + 4 * layer.n * layer.k * (spared and i > spared and batch.sequences or batch.tokens)
  end
  return work
end

return synthetic
