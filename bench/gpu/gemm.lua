-- gemm.lua: every matrix product of a training step of the 7B at several counts of tokens, as a share of the large square product.
-- The first call of each chooses its algorithm (see kernels/cuda/choices.h), and the time of that choice is measured, too.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local tensor = require "lorarun.tensor.tensor"

local RANK = 16

-- A layer's products: name, the weight's rows and columns, how it is used. And q's width, which LoRA's largest B has.
local function products(s)
  local q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
  return { { "q, k, v", q + 2 * kv, s.hidden }, { "o", s.hidden, q, "residual" }, { "gate, up", 2 * s.intermediate, s.hidden },
    { "down", s.hidden, s.intermediate, "residual" } }, q
end

return function(bench)
  local report, s = bench.report, bench.synthetic.SHAPES[bench.shape]
  local ceiling = bench.ceilings.bf16
  report:table("gemm", "Products of the 7B in bf16", { "product", "tokens", "ms", "TFLOP/s", "of ceiling", "choosing, ms" })
  for _, tokens in ipairs(bench.tiny and { 48 } or { 4096, 8192, 16384, 22528 }) do
    local work, seconds = 0, 0
    local function measure(name, flops, fn)
      if not bench.time_for(5, ("product %s at %d tokens"):format(name, tokens)) then return end
      local t = C.lr_time()
      fn()
      bench.wait()
      local choosing = C.lr_time() - t
      t = bench.seconds(fn)
      report:row("gemm", { name, tokens, 1e3 * t, flops / t / 1e12, ceiling and ("%.1f%%"):format(100 * flops / t / ceiling) or "",
        1e3 * choosing }, { flops = flops, seconds = t })
      work, seconds = work + flops, seconds + t
    end
    local list, q = products(s)
    for _, p in ipairs(list) do
      local name, n, k, residual = unpack(p)
      tensor.scope(function()
        local x, y = bench.random(tokens, k, "bf16"), bench.random(tokens, n, "bf16")
        local r = residual and bench.random(tokens, n, "bf16").handle or nil
        local forward, backward = bench.weight(n, k, "bf16")
        local flops = 2 * tokens * n * k
        measure(name .. (residual and " + residual" or ""), flops, function()
          check(C.lr_op_linear(y.handle, x.handle, forward.handle, nil, r))
        end)
        measure(name .. " backward", flops, function()
          check(C.lr_op_linear_backward(x.handle, y.handle, backward.handle, 0))
        end)
      end)
    end
    if seconds > 0 then
      report:row("gemm", { "a layer's, together", tokens, 1e3 * seconds, work / seconds / 1e12,
        ceiling and ("%.1f%%"):format(100 * work / seconds / ceiling) or "", "" }, { flops = work, seconds = seconds })
      report:headline("%-34s %8.0f TFLOP/s%s", ("a layer's products, %d tokens"):format(tokens), work / seconds / 1e12,
        ceiling and (" = %.1f%% of the ceiling"):format(100 * work / seconds / ceiling) or "")
    end
    tensor.scope(function() -- thin products are limited by bandwidth
      local x, h = bench.random(tokens, s.hidden, "bf16"), bench.random(tokens, 3 * RANK, "bf16")
      local y, a, b = bench.random(tokens, q, "bf16"), bench.random(3 * RANK, s.hidden, "f32"), bench.random(q, RANK, "f32")
      local part = h:slice_columns(0, RANK)
      local da, db = tensor.zeros({ 3 * RANK, s.hidden }, "f32", "da"), tensor.zeros({ q, RANK }, "f32", "db")
      local wide, thin = 2 * tokens * s.hidden * 3 * RANK, 2 * tokens * q * RANK
      measure("LoRA x A^T", wide, function() check(C.lr_op_matmul_nt(h.handle, x.handle, a.handle, 1, 0)) end)
      measure("LoRA y += h B^T", thin, function() check(C.lr_op_matmul_nt(y.handle, part.handle, b.handle, 2, 1)) end)
      measure("LoRA dh = dy B", thin, function() check(C.lr_op_matmul_nn(part.handle, y.handle, b.handle, 2, 0)) end)
      measure("LoRA dx = dh A", wide, function() check(C.lr_op_matmul_nn(x.handle, h.handle, a.handle, 1, 0)) end)
      measure("LoRA dA = dh^T x", wide, function() check(C.lr_op_matmul_tn(da.handle, h.handle, x.handle, 1, 1)) end)
      measure("LoRA dB = dy^T h", thin, function() check(C.lr_op_matmul_tn(db.handle, y.handle, part.handle, 1, 1)) end)
    end)
  end
end
