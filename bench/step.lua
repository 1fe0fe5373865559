-- A whole training step (forward, backward, clipping, AdamW) as a share of what the matrix products alone could reach:
--   lorarun bench/step.lua [--model minilm|qwen2] [--precision fp32|bf16] [--pairs 32] [--steps 10]
-- Weights are random, of the models' real shapes; lengths are those of code lines and contexts. The ceiling is the best rate of
-- three large products (2048x2048x2048, the model's widest layer forward and backward), measured before and after the steps in
-- the same run, because machines differ and are noisy. Useful work is 4 N FLOP per token, N = weights of the linear layers
-- (forward 2 N, gradient of activations 2 N; frozen weights need no third product), less what last-token pooling saves in the
-- last layer. Attention, norms, LoRA, the optimizer and Lua count as overhead. Lua's share is the time of the same step on the
-- meta device, where kernels do nothing.
local ffi = require "ffi"
local lr = require "lorarun"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local autograd, loss, ops, optim, tensor = lr.autograd, lr.loss, lr.ops, lr.optim, lr.tensor
local synthetic = dofile(lr.fs.join(lr.fs.dirname(lr.fs.real(arg[0])), "lib", "synthetic.lua"))

local args = lr.args {
  { "model", "all", "whose shapes", choices = { "all", "minilm", "qwen2" } },
  { "precision", "all", "of the step", choices = { "all", "fp32", "bf16" } },
  { "pairs", 32, "a step", min = 1 },
  { "steps", 8, "timed", min = 1 },
  { "threads", 0, "compute threads; 0: all cores", min = 0 },
}
lr.threads(args.threads)

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

-- The best rate of large products, in FLOP/s.
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

local function run(name, precision)
  local shape, dtype = synthetic.SHAPES[name], precision == "bf16" and "bf16" or "f32"
  local list = synthetic.lengths(args.pairs)
  local batch = synthetic.batch(list)
  tensor.scope(function()
    local labels = {}
    for i = 1, args.pairs do labels[i] = i % 2 end
    local times = {}
    local gemm = ceiling(dtype, shape)
    local useful = 0
    for _, device in ipairs { "cpu", "meta" } do
      tensor.scope(function()
        local model = synthetic.model(shape, dtype, device)
        local optimizer = optim.adamw(model.lora.parameters)
        local y = tensor.from(labels, nil, "f32", "labels", device)
        for i = 1, 3 do step(model, batch, optimizer, y, i) end
        times[device] = median_time(args.steps, function(i) step(model, batch, optimizer, y, i) end)
        useful = synthetic.useful_work(model, batch)
        optimizer:free()
        model:free()
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
