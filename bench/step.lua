-- A whole training step (forward, backward, clipping, AdamW) as a share of what the matrix products alone could reach:
--   lorarun bench/step.lua [--model minilm|qwen2] [--precision fp32|bf16] [--pairs 32] [--steps 10]
-- Weights are random, of the models' real shapes; lengths are those of code lines and contexts. The ceiling is the best rate of
-- three large products (2048x2048x2048, the model's widest layer forward and backward), measured before and after the steps in
-- the same run, because machines differ and are noisy. Useful work is counted as 4 N a token, N = weights of linear layers
-- (forward 2 N, gradient of activations 2 N; frozen weights need no third product), less what last-token pooling spares the
-- last layer: attention, norms, LoRA, the optimizer and Lua all count as loss. Lua's share is the time of the same step on the
-- meta device, where kernels do nothing.
local ffi = require "ffi"
local lr = require "lorarun"
local C = require "lorarun.c"
local check = require "lorarun.check"
local autograd, nn, ops, optim, tensor = lr.autograd, require "lorarun.nn", lr.ops, lr.optim, lr.tensor
local lora, loss = require "lorarun.lora", lr.loss

local args = lr.args {
  { "model", "all", "whose shapes", choices = { "all", "minilm", "qwen2" } },
  { "precision", "all", "of the step", choices = { "all", "fp32", "bf16" } },
  { "pairs", 32, "a step", min = 1 },
  { "steps", 8, "timed", min = 1 },
  { "threads", 0, "compute threads; 0: all cores", min = 0 },
}
lr.threads(args.threads)

local SHAPES = {
  minilm = { arch = "bert", targets = { "query", "key", "value" }, pooling = "mean", hidden = 384, layers = 6, heads = 12,
    kv_heads = 12, head_dim = 32, intermediate = 1536, vocabulary = 30522, positions = 512, types = 2, eps = 1e-12, gelu = "erf" },
  qwen2 = { arch = "qwen2", targets = { "q_proj", "k_proj", "v_proj" }, pooling = "last", hidden = 768, layers = 12, heads = 12,
    kv_heads = 2, head_dim = 64, intermediate = 4096, vocabulary = 32000, positions = 512, eps = 1e-6, theta = 1e6 },
}

-- A model of random weights, without files: what lorarun.model would have loaded.
local function random_model(shape, dtype, device)
  local arch = require("lorarun.models." .. shape.arch)
  local index = 0
  local source = nn.source { dtype = dtype, device = device, load = function(name, t)
    index = index + 1
    if device == "meta" then return end
    local norm = #t.shape == 1 and not name:find "bias$"
    local f = tensor.new({ t:elements() }, "f32", "random", device)
    check(C.lr_tensor_uniform(f.handle, 1, index, norm and 0.9 or -0.04, norm and 1.1 or 0.04))
    check(C.lr_op_cast(t:matrix().handle, f:view({ t:elements() / t.shape[#t.shape], t.shape[#t.shape] }).handle))
    f:free()
  end }
  local built = arch.build(shape, source)
  arch.prepare(built, shape.positions, device)
  local model = setmetatable({ arch = arch, built = built, linears = source.linears, device = device, pooling = shape.pooling,
    normalize = true, dimension = shape.hidden, layer_count = shape.layers, sizes = shape, dtype = dtype },
    require("lorarun.model").Model)
  lora.add(model, { rank = 16, alpha = 32, dropout = 0.1, targets = shape.targets })
  return model
end

-- Packed lengths of `pairs` lines (about 12 tokens) and contexts (30 to 512, mostly short), the same in every run.
local function lengths(pairs_)
  local word, list = ffi.new "uint32_t[4]", {}
  for i = 0, 2 * pairs_ - 1 do
    C.lr_random(7, 1, 0, i, word)
    local u = word[0] * 2 ^ -32
    list[i + 1] = i < pairs_ and 4 + math.floor(u * 17) or math.min(512, 30 + math.floor(240 * u * u + 300 * u ^ 8))
  end
  return list
end

local function make_batch(list)
  local tokens, longest = 0, 0
  for _, n in ipairs(list) do tokens, longest = tokens + n, math.max(longest, n) end
  local b = { tokens = tokens, sequences = #list, max_length = longest, ids = ffi.new("int32_t[?]", tokens),
    positions = ffi.new("int32_t[?]", tokens), cu_seqlens = ffi.new("int32_t[?]", #list + 1), keys = ffi.new("int64_t[?]", tokens) }
  local t = 0
  for i, n in ipairs(list) do
    for p = 0, n - 1 do
      b.ids[t], b.positions[t], b.keys[t] = 5 + (t * 7919) % 20000, p, i * 65536 + p
      t = t + 1
    end
    b.cu_seqlens[i] = t
  end
  return b
end

local function step(model, batch, optimizer, labels, number)
  autograd.gradients(function()
    local e = model:forward(model:context(batch, { training = true, seed = 1, step = number }))
    local n = batch.sequences / 2
    return loss.cosine_similarity().compute({ ops.rows(e, 0, n), ops.rows(e, n, 2 * n) }, labels, e)
  end)
  optimizer:step(1e-4)
end

local function median_time(times, fn)
  local list = {}
  for i = 1, times do
    local t = C.lr_time()
    fn(i)
    list[i] = C.lr_time() - t
  end
  table.sort(list)
  return list[math.ceil(times / 2)]
end

-- Best rate of large products in FLOP/s.
local function ceiling(dtype, shape)
  local best = 0
  for _, size in ipairs { { 2048, 2048, 2048 }, { 4096, shape.intermediate, shape.hidden },
    { 4096, shape.hidden, shape.intermediate } } do
    local m, n, k = unpack(size)
    tensor.scope(function()
      local x, y = tensor.full({ m, k }, 0.01, dtype), tensor.new({ m, n }, dtype)
      local packed = ffi.new "lr_tensor *[1]"
      check(C.lr_tensor_pack(packed, tensor.full({ n, k }, 0.01, dtype).handle, 1, dtype == "bf16" and C.LR_BF16 or C.LR_F32))
      local w = tensor.adopt(packed[0], "ceiling")
      for _ = 1, 8 do
        local t = C.lr_time()
        check(C.lr_op_linear(y.handle, x.handle, w.handle, nil, nil))
        best = math.max(best, 2 * m * n * k / (C.lr_time() - t))
      end
    end)
  end
  return best
end

-- FLOP of a step that cannot be done without: 4 a weight and row. Where pooling takes rows, the last layer's linears behind its
-- attention, which are all of its own but the first, have no others.
local function useful_work(model, batch)
  local work, spared = 0, model:context(batch).pooled and #model.linears - #model.linears / model.layer_count + 1
  for i, layer in ipairs(model.linears) do
    work = work + 4 * layer.n * layer.k * (spared and i > spared and batch.sequences or batch.tokens)
  end
  return work
end

local function run(name, precision)
  local shape, dtype = SHAPES[name], precision == "bf16" and "bf16" or "f32"
  local list = lengths(args.pairs)
  local batch = make_batch(list)
  tensor.scope(function()
    local labels = {}
    for i = 1, args.pairs do labels[i] = i % 2 end
    local times = {}
    local gemm = ceiling(dtype, shape)
    local useful = 0
    for _, device in ipairs { "cpu", "meta" } do
      tensor.scope(function()
        local model = random_model(shape, dtype, device)
        local optimizer = optim.adamw(model.lora.parameters)
        local y = tensor.from(labels, nil, "f32", "labels", device)
        for i = 1, 3 do step(model, batch, optimizer, y, i) end
        times[device] = median_time(args.steps, function(i) step(model, batch, optimizer, y, i) end)
        useful = useful_work(model, batch)
        optimizer:free()
        model.lora:free()
      end)
    end
    gemm = math.max(gemm, ceiling(dtype, shape))
    local seconds = times.cpu
    local rate = useful / seconds
    print(("%-7s %-4s  %5d tokens, %d pairs: %6.1f ms a step, %6.0f tokens/s, %6.1f pairs/s, %5.0f of %5.0f GFLOP/s = %4.1f%% of "
      .. "the GEMM ceiling, Lua %.1f%%"):format(name, precision, batch.tokens, args.pairs, 1e3 * seconds, batch.tokens / seconds,
      args.pairs / seconds, rate / 1e9, gemm / 1e9, 100 * rate / gemm, 100 * times.meta / seconds))
  end)
end

for _, name in ipairs(args.model == "all" and { "minilm", "qwen2" } or { args.model }) do
  for _, precision in ipairs(args.precision == "all" and { "fp32", "bf16" } or { args.precision }) do run(name, precision) end
end
