-- kernels.lua: every kernel at the sizes of the 7B, in bf16: kernels that move data as a share of the copy bandwidth, products as a
-- share of the large product. Bytes are the fewest that must move: each input is read once, each output written once.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local tensor = require "lorarun.tensor.tensor"

-- Sequences with the lengths of the real job, up to this many tokens.
local function batch_of(bench, tokens, vocabulary)
  local list, total, pairs_ = {}, 0, 1
  while total < tokens do
    pairs_ = pairs_ * 2
    list, total = bench.synthetic.lengths(pairs_), 0
    for _, n in ipairs(list) do total = total + n end
  end
  local kept, sum = {}, 0
  for _, n in ipairs(list) do
    if sum + n <= tokens then kept[#kept + 1], sum = n, sum + n end
  end
  if sum < tokens then kept[#kept + 1] = tokens - sum end
  return bench.synthetic.batch(kept, vocabulary)
end

local function same_lengths(bench, tokens, length)
  local list = {}
  for i = 1, tokens / length do list[i] = length end
  return bench.synthetic.batch(list)
end

local function context(batch)
  return tensor.from(batch.ids, { batch.tokens }, "i32", "ids"), tensor.from(batch.positions, { batch.tokens }, "i32", "positions"),
    tensor.from(batch.keys, { batch.tokens }, "i64", "keys"),
    tensor.from(batch.cu_seqlens, { batch.sequences + 1 }, "i32", "cu_seqlens")
end

-- measure(name, amount, unit, fn): unit "B" (bytes) or "F" (FLOP).
local function measurer(bench)
  local report = bench.report
  report:table("kernels", "Kernels in bf16", { "kernel", "ms", "rate", "unit", "of ceiling" })
  return function(name, amount, unit, fn)
    if not bench.time_for(2, "kernel " .. name) then return end
    local t = bench.seconds(fn)
    local ceiling = unit == "B" and bench.ceilings.copy or bench.ceilings.bf16
    report:row("kernels", { name, 1e3 * t, amount / t / (unit == "B" and 1e9 or 1e12), unit == "B" and "GB/s" or "TFLOP/s",
      ceiling and ("%.1f%%"):format(100 * amount / t / ceiling) or "" }, { amount = amount, seconds = t })
  end
end

local function movement(bench, measure, s, tokens, batch, vocabulary)
  local ids, positions, keys, cu = context(batch)
  local n = 2 * tokens * s.hidden -- bytes of one matrix of activations
  local x, y, z = bench.random(tokens, s.hidden, "bf16"), bench.random(tokens, s.hidden, "bf16"),
    bench.random(tokens, s.hidden, "bf16")
  local wide = tensor.new({ tokens, s.hidden }, "f32", "f32")
  local embeddings = bench.random(vocabulary, s.hidden, "bf16")
  local rows_of = {}
  for i = 0, tokens - 1 do rows_of[i + 1] = (i * 17) % tokens end
  local rows = tensor.from(rows_of, { tokens }, "i32", "rows")
  local q, d = s.heads * s.head_dim, s.head_dim
  local table_ = require("lorarun.models.nn").rope_table(s.positions, d, s.theta, bench.device)
  measure("embedding", 2 * n, "B", function() check(C.lr_op_embedding(x.handle, embeddings.handle, ids.handle, 0)) end)
  measure("cast bf16 to f32", 3 * n, "B", function() check(C.lr_op_cast(wide.handle, x.handle)) end)
  measure("add", 3 * n, "B", function() check(C.lr_op_add(y.handle, x.handle, z.handle, 1, 0.5)) end)
  measure("mul", 3 * n, "B", function() check(C.lr_op_mul(y.handle, x.handle, z.handle)) end)
  measure("gather_rows", 2 * n, "B", function() check(C.lr_op_gather_rows(y.handle, x.handle, rows.handle)) end)
  measure("scatter_rows", 3 * n, "B", function() check(C.lr_op_scatter_rows(y.handle, x.handle, rows.handle)) end)
  measure("dropout", 2 * n, "B", function() check(C.lr_op_dropout(y.handle, x.handle, keys.handle, 0.1, 1, 1, 1, 0)) end)
  measure("rope", 4 * tokens * q, "B", function()
    check(C.lr_op_rope(y.handle, x.handle, table_.handle, positions.handle, 1))
  end)
  local pooled = tensor.zeros({ batch.sequences, s.hidden }, "f32", "pooled")
  measure("pool mean", n, "B", function() check(C.lr_op_pool(pooled.handle, x.handle, cu.handle, 1)) end)
  measure("pool_backward mean", n, "B", function() check(C.lr_op_pool_backward(x.handle, pooled.handle, cu.handle, 1)) end)
end

local function norms(bench, measure, s, tokens)
  local n = 2 * tokens * s.hidden
  local x, r, y, sum = bench.random(tokens, s.hidden, "bf16"), bench.random(tokens, s.hidden, "bf16"),
    bench.random(tokens, s.hidden, "bf16"), bench.random(tokens, s.hidden, "bf16")
  local w = tensor.full({ s.hidden }, 1, "f32", "w")
  local mean, rstd = tensor.zeros({ tokens }, "f32", "mean"), tensor.full({ tokens }, 1, "f32", "rstd")
  measure("rms_norm", 2 * n, "B", function() check(C.lr_op_rms_norm(y.handle, nil, rstd.handle, x.handle, nil, w.handle, 1e-6)) end)
  measure("rms_norm with residual", 4 * n, "B", function()
    check(C.lr_op_rms_norm(y.handle, sum.handle, rstd.handle, x.handle, r.handle, w.handle, 1e-6))
  end)
  measure("rms_norm_backward", 4 * n, "B", function()
    check(C.lr_op_rms_norm_backward(y.handle, x.handle, sum.handle, w.handle, rstd.handle, r.handle))
  end)
  measure("layer_norm with residual", 4 * n, "B", function()
    check(C.lr_op_layer_norm(y.handle, sum.handle, mean.handle, rstd.handle, x.handle, r.handle, w.handle, w.handle, 1e-6))
  end)
  measure("layer_norm_backward", 4 * n, "B", function()
    check(C.lr_op_layer_norm_backward(y.handle, x.handle, sum.handle, w.handle, mean.handle, rstd.handle, r.handle))
  end)
end

local function activations(bench, measure, s, tokens)
  local n = 2 * tokens * s.intermediate
  local gu, h, dh = bench.random(tokens, 2 * s.intermediate, "bf16"), bench.random(tokens, s.intermediate, "bf16"),
    bench.random(tokens, s.intermediate, "bf16")
  measure("swiglu", 3 * n, "B", function() check(C.lr_op_swiglu(h.handle, gu.handle)) end)
  measure("swiglu_backward", 5 * n, "B", function() check(C.lr_op_swiglu_backward(gu.handle, dh.handle, gu.handle)) end)
  for approximate = 0, 1 do
    local name = approximate == 0 and "erf" or "tanh"
    measure("gelu " .. name, 2 * n, "B", function() check(C.lr_op_gelu(h.handle, dh.handle, approximate)) end)
    measure("gelu_backward " .. name, 3 * n, "B", function()
      check(C.lr_op_gelu_backward(h.handle, dh.handle, dh.handle, approximate))
    end)
  end
end

-- q k^T and p v take 2 FLOP each for every key that a query sees and every element of a head; backward has five such products.
local function attention(bench, measure, s, batch, what)
  local _, _, _, cu = context(batch)
  local q, kv, t = s.heads * s.head_dim, s.kv_heads * s.head_dim, batch.tokens
  local qkv, d = bench.random(t, q + 2 * kv, "bf16"), bench.random(t, q + 2 * kv, "bf16")
  local o, d_o, lse = bench.random(t, q, "bf16"), bench.random(t, q, "bf16"), tensor.zeros({ t, s.heads }, "f32", "lse")
  local function parts(m)
    return m:slice_columns(0, q).handle, m:slice_columns(q, q + kv).handle, m:slice_columns(q + kv, q + 2 * kv).handle
  end
  local pq, pk, pv = parts(qkv)
  local dq, dk, dv = parts(d)
  for _, causal in ipairs { 1, 0 } do
    local seen = 0
    for i = 0, batch.sequences - 1 do
      local n = batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]
      seen = seen + (causal == 1 and n * (n + 1) / 2 or n * n)
    end
    local flops, name = 4 * seen * q, (causal == 1 and "causal, " or "") .. what
    local scale = s.head_dim ^ -0.5
    measure("attention " .. name, flops, "F", function()
      check(C.lr_op_attention(o.handle, lse.handle, pq, pk, pv, cu.handle, s.head_dim, batch.max_length, scale, causal))
    end)
    measure("attention_backward " .. name, 2.5 * flops, "F", function()
      check(C.lr_op_attention_backward(dq, dk, dv, d_o.handle, pq, pk, pv, o.handle, lse.handle, cu.handle, s.head_dim,
        batch.max_length, scale, causal))
    end)
  end
end

local function losses_and_optimizer(bench, measure, s)
  local rows, n = bench.tiny and 8 or 4096, bench.tiny and 1000 or 6881280 -- adapters of rank 16 on q, k and v
  local x, y = bench.random(rows, s.hidden, "f32"), bench.random(rows, s.hidden, "f32")
  local norm = tensor.zeros({ rows }, "f32", "norm")
  local bytes = 4 * rows * s.hidden
  measure("l2_normalize", 2 * bytes, "B", function() check(C.lr_op_l2_normalize(y.handle, norm.handle, x.handle, 1e-12)) end)
  measure("l2_normalize_backward", 3 * bytes, "B", function()
    check(C.lr_op_l2_normalize_backward(x.handle, x.handle, y.handle, norm.handle, 1e-12))
  end)
  measure("row_dot", 2 * bytes, "B", function() check(C.lr_op_row_dot(norm.handle, x.handle, y.handle)) end)
  local scores, labels = bench.random(rows, rows, "f32"), ffi.new("int32_t[?]", rows)
  local label, loss = tensor.from(labels, { rows }, "i32", "labels"), tensor.full({ 1 }, 1, "f32", "loss")
  local d = tensor.new({ rows, rows }, "f32", "dscores")
  measure("cross_entropy", 4 * rows * rows, "B", function()
    check(C.lr_op_cross_entropy(loss.handle, norm.handle, scores.handle, label.handle))
  end)
  measure("cross_entropy_backward", 8 * rows * rows, "B", function()
    check(C.lr_op_cross_entropy_backward(d.handle, loss.handle, scores.handle, norm.handle, label.handle))
  end)
  local function state() return tensor.full({ n }, 0.01, "f32", "state") end
  local p, m, v, g = state(), state(), state(), state()
  local factor, grad_norm = tensor.full({ 1 }, 1, "f32", "factor"), tensor.zeros({ 1 }, "f32", "norm")
  measure("clip_factor", 4 * n, "B", function() check(C.lr_op_clip_factor(factor.handle, grad_norm.handle, g.handle, nil, 1)) end)
  measure("adamw", 28 * n, "B", function()
    check(C.lr_op_adamw(p.handle, m.handle, v.handle, g.handle, factor.handle, 1e-4, 0.9, 0.999, 1e-8, 0.01, 3))
  end)
end

return function(bench)
  local s, tokens = bench.synthetic.SHAPES[bench.shape], bench.tiny and 96 or 16384
  local measure = measurer(bench)
  local embeddings = math.min(s.vocabulary, 20005) -- rows of the table that are read
  local batch = batch_of(bench, tokens, embeddings)
  tensor.scope(movement, bench, measure, s, tokens, batch, embeddings)
  tensor.scope(norms, bench, measure, s, tokens)
  tensor.scope(activations, bench, measure, s, tokens)
  tensor.scope(attention, bench, measure, s, batch, "as in the job")
  for _, length in ipairs(bench.tiny and { 32 } or { 512, 4096 }) do
    tensor.scope(attention, bench, measure, s, same_lengths(bench, tokens, length), length .. " long")
  end
  tensor.scope(losses_and_optimizer, bench, measure, s)
end
