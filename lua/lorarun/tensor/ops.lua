-- ops.lua: the ops as functions of tensors, each with its gradient rule beside it.
--
-- A function allocates its outputs, calls lr_op_NAME, and records a backward function that calls lr_op_NAME_backward. A backward
-- owns the gradient it is given: it may overwrite it (autograd.writable says whether it is the only holder) and return it.
-- self_attention is one rule for several ops, because keeping the parts apart would cost memory or a pass over it.
--
-- Shapes: T tokens packed, H hidden, B sequences. Frozen weights get no gradient anywhere; only LoRA's adapters are parameters.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local tensor = require "lorarun.tensor.tensor"
local autograd = require "lorarun.tensor.autograd"

local ops = {}
local new, like, record, writable = tensor.new, tensor.like, autograd.record, autograd.writable
local refuse, raw_columns = autograd.refuse, tensor.raw_columns
local call = check.call

local function handle(t) return t and t.handle or nil end

-- Every op of ops.def has an entry here: how its gradient comes about. An input that has none is refused while a tape records.
-- tests/units/test_autograd.lua goes through all inputs of ops.def.
ops.gradients = {}
local function rule(names, how)
  for name in names:gmatch("%S+") do ops.gradients[name] = how end
end

-- An activation's output. unread: nobody reads its values, they are not computed; a stand-in for its gradient (nn.layers).
local function activation(shape, dtype, device, unread)
  return unread and new({ 1 }, dtype, "stand-in", device) or new(shape, dtype, "activation", device)
end

-- ---- movement --------------------------------------------------------------------------------------------------------------
rule("embedding", "none: tables are frozen")
--- y[T,H] = table[V,H][ids[T]]; with `into`, added to it.
function ops.embedding(table_, ids, into)
  refuse(table_, "embedding")
  refuse(into, "embedding: what it is added to")
  local y = into or new({ ids.shape[1], table_.shape[2] }, table_.dtype, "embeddings", table_.device)
  call(C.lr_op_embedding, y.handle, table_.handle, ids.handle, into and 1 or 0)
  return y
end

rule("cast", "rule")
--- x[N,W] (rows may be strided) as another dtype, contiguous.
function ops.cast(x, dtype)
  local y = new(x.shape, dtype, x.name, x.device)
  local m = x:matrix()
  call(C.lr_op_cast, y:matrix().handle, m.handle)
  record({ x }, { y }, {}, function(dy) return ops.cast(dy, x.dtype) end)
  return y
end

rule("add", "rule")
--- alpha * a + beta * b, equal shapes.
function ops.add(a, b, alpha, beta)
  alpha, beta = alpha or 1, beta or 1
  local y = like(a, "sum")
  call(C.lr_op_add, y:matrix().handle, a:matrix().handle, b:matrix().handle, alpha, beta)
  record({ a, b }, { y }, {}, function(dy)
    if alpha == 1 and beta == 1 then return autograd.share(dy, 2), dy end
    return ops.scale(dy, alpha), ops.scale(dy, beta)
  end)
  return y
end

--- factor * x
function ops.scale(x, factor)
  local y = like(x, "scaled")
  local m = x:matrix()
  call(C.lr_op_add, y:matrix().handle, m.handle, m.handle, factor, 0)
  record({ x }, { y }, {}, function(dy) return ops.scale(dy, factor) end)
  return y
end

rule("mul", "rule")
--- a * b, element by element, equal shapes.
function ops.mul(a, b)
  local y = like(a, "product")
  call(C.lr_op_mul, y:matrix().handle, a:matrix().handle, b:matrix().handle)
  record({ a, b }, { y }, { a, b }, function(dy)
    return ops.mul(dy, b), ops.mul(dy, a)
  end)
  return y
end

rule("gather_rows scatter_rows", "each is the other's")
--- x[T,H] at rows[B] (i32, distinct): y[B,H]
function ops.gather_rows(x, rows)
  local y = new({ rows.shape[1], x.shape[2] }, x.dtype, x.name, x.device)
  call(C.lr_op_gather_rows, y.handle, x.handle, rows.handle)
  record({ x }, { y }, { rows }, function(dy)
    local dx = new({ x.shape[1], x.shape[2] }, x.dtype, "gradient", x.device)
    call(C.lr_op_scatter_rows, dx.handle, dy.handle, rows.handle)
    return dx
  end)
  return y
end

-- A view of x, with its gradient: 0 but where the view is. make(t): the same view of another tensor of x's shape.
local function recorded_view(x, make)
  local y = make(x)
  record({ x }, { y }, {}, function(dy)
    local dx = tensor.zeros(x.shape, x.dtype, "gradient", x.device)
    call(C.lr_op_cast, make(dx):matrix().handle, dy:matrix().handle)
    return dx
  end)
  return y
end

--- Rows from..to-1 (from 0) of a contiguous matrix, as a view. t:slice_rows(from, to) is this, too.
function ops.rows(x, from, to)
  return recorded_view(x, function(t) return tensor.raw_rows(t, from, to) end)
end

--- Columns from..to-1 (from 0) of a matrix, as a view whose rows keep their stride; t:slice_columns(from, to).
function ops.columns(x, from, to)
  return recorded_view(x, function(t) return tensor.raw_columns(t, from, to) end)
end

--- x's elements from `offset` (0) on in another shape, as a view; t:view(shape, offset).
function ops.view(x, shape, offset)
  return recorded_view(x, function(t) return tensor.raw_view(t, shape, offset) end)
end

tensor.set_recorded_views { rows = ops.rows, columns = ops.columns, view = ops.view }

-- ---- matrix products -------------------------------------------------------------------------------------------------------
rule("matmul_nt matmul_nn matmul_tn", "rule")
--- alpha * a[M,K] b[N,K]^T
function ops.matmul_nt(a, b, alpha)
  alpha = alpha or 1
  local y = new({ a.shape[1], b.shape[1] }, a.dtype, "product", a.device)
  call(C.lr_op_matmul_nt, y.handle, a.handle, b.handle, alpha, 0)
  record({ a, b }, { y }, { a, b }, function(dy)
    local da, db = like(a, "gradient"), like(b, "gradient")
    call(C.lr_op_matmul_nn, da.handle, dy.handle, b.handle, alpha, 0)
    call(C.lr_op_matmul_tn, db.handle, dy.handle, a.handle, alpha, 0)
    return da, db
  end)
  return y
end

rule("linear linear_backward", "rule: linear, and with adapters models/lora_linear.lua")
rule("dropout", "rule: models/lora_linear.lua")
--- linear(x[T,K], layer, r): y[T,N] = x W^T + b (+ r[T,N]), of a frozen layer: { forward, backward = W packed for each direction,
--- bias = f32 [N] or nil, n = N, name }. Nothing of x is saved. With adapters: models/lora_linear.lua.
function ops.linear(x, layer, r)
  refuse(layer.forward, "a linear layer: a frozen weight")
  refuse(layer.bias, "a linear layer: a frozen bias")
  local y = new({ x.shape[1], layer.n }, x.dtype, r and "residual" or layer.name, x.device)
  call(C.lr_op_linear, y.handle, x.handle, layer.forward.handle, handle(layer.bias), handle(r))
  record({ x, r or false }, { y }, {}, function(dy)
    local dx = new(x.shape, x.dtype, "gradient", x.device)
    call(C.lr_op_linear_backward, dx.handle, dy.handle, layer.backward.handle, 0)
    return dx, r and dy
  end)
  return y
end

-- ---- normalisation ---------------------------------------------------------------------------------------------------------
rule("rms_norm rms_norm_backward layer_norm layer_norm_backward", "rule")
-- What a norm's backward may overwrite with its result: the gradient of its output, unless other columns lie between its rows.
local function gradient_of_norm(dy, ds)
  if not dy.ld then return (writable(dy)) end
  return ds and (writable(ds)) or like(dy, "gradient")
end

-- The stream after a norm that adds nothing to it: x under another name, so that backward meets the gradients of both in the norm.
local function same(x) return tensor.raw_view(x, x.shape) end

--- rms_norm(x, r, w, eps, into): s = x + r (r nil: s = x), y = s / rms(s) * w, all [T,H]. Returns y, s. into: the tensor that y is
--- written to, rows with any stride; nil: a new one.
function ops.rms_norm(x, r, w, eps, into)
  refuse(w, "rms_norm: a frozen weight")
  local y = into or like(x, "normalised")
  local s = r and like(x, "residual") or same(x)
  local rstd = new({ x.shape[1] }, "f32", "norm statistics", x.device)
  call(C.lr_op_rms_norm, y.handle, r and s.handle or nil, rstd.handle, x.handle, handle(r), w.handle, eps)
  record({ x, r or false }, { y, s }, { s, rstd }, function(dy, ds)
    if not dy then return r and autograd.share(ds, 2) or ds, r and ds end
    local dx = gradient_of_norm(dy, ds)
    call(C.lr_op_rms_norm_backward, dx.handle, dy.handle, s.handle, w.handle, rstd.handle, handle(ds))
    if r then autograd.share(dx, 2) end
    return dx, r and dx
  end)
  rstd:release()
  return y, s
end

--- layer_norm(x, r, w, b, eps, into): s = x + r, y = (s - mean) / std * w + b. Returns y, s, as rms_norm does.
function ops.layer_norm(x, r, w, b, eps, into)
  refuse(w, "layer_norm: a frozen weight")
  refuse(b, "layer_norm: a frozen bias")
  local y = into or like(x, "normalised")
  local s = r and like(x, "residual") or same(x)
  local mean = new({ x.shape[1] }, "f32", "norm statistics", x.device)
  local rstd = new({ x.shape[1] }, "f32", "norm statistics", x.device)
  call(C.lr_op_layer_norm, y.handle, r and s.handle or nil, mean.handle, rstd.handle, x.handle, handle(r), w.handle, b.handle,
    eps)
  record({ x, r or false }, { y, s }, { s, mean, rstd }, function(dy, ds)
    if not dy then return r and autograd.share(ds, 2) or ds, r and ds end
    local dx = gradient_of_norm(dy, ds)
    call(C.lr_op_layer_norm_backward, dx.handle, dy.handle, s.handle, w.handle, mean.handle, rstd.handle, handle(ds))
    if r then autograd.share(dx, 2) end
    return dx, r and dx
  end)
  mean:release()
  rstd:release()
  return y, s
end

-- ---- attention -------------------------------------------------------------------------------------------------------------
rule("rope attention attention_backward", "rule: self_attention")
--- self_attention(qkv[T, (heads + 2 kv_heads) * head_dim], spec): o[T, heads * head_dim]. Each sequence attends to itself.
---   spec: { heads, kv_heads, head_dim, causal, cu_seqlens = [B+1] i32, max_length, and for RoPE: rope = cos|sin [P, head_dim],
---   positions = [T] i32 }
--- qkv is overwritten where there is RoPE: rotated once, used rotated by forward and backward.
function ops.self_attention(qkv, spec)
  refuse(spec.rope, "self_attention: a table of angles")
  local q_width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
  local scale, causal = 1 / math.sqrt(spec.head_dim), spec.causal and 1 or 0
  local tokens = qkv.shape[1]
  local function parts(t)
    return raw_columns(t, 0, q_width), raw_columns(t, q_width, q_width + kv_width),
      raw_columns(t, q_width + kv_width, q_width + 2 * kv_width)
  end
  local function rotate(t, sign) -- queries and keys lie side by side: one call turns both
    local qk = raw_columns(t, 0, q_width + kv_width).handle
    call(C.lr_op_rope, qk, qk, spec.rope.handle, spec.positions.handle, sign)
  end
  if spec.rope then rotate(qkv, 1) end
  local q, k, v = parts(qkv)
  local o = new({ tokens, q_width }, qkv.dtype, "attention", qkv.device)
  local lse = new({ tokens, spec.heads }, "f32", "attention statistics", qkv.device)
  call(C.lr_op_attention, o.handle, lse.handle, q.handle, k.handle, v.handle, spec.cu_seqlens.handle, spec.head_dim,
    spec.max_length, scale, causal)
  q:free() k:free() v:free()
  record({ qkv }, { o }, { qkv, o, lse }, function(d_o)
    local dqkv = like(qkv, "gradient")
    local dq, dk, dv = parts(dqkv)
    local q2, k2, v2 = parts(qkv)
    call(C.lr_op_attention_backward, dq.handle, dk.handle, dv.handle, d_o.handle, q2.handle, k2.handle, v2.handle, o.handle,
      lse.handle, spec.cu_seqlens.handle, spec.head_dim, spec.max_length, scale, causal)
    if spec.rope then rotate(dqkv, -1) end
    return dqkv
  end)
  lse:release()
  return o
end

-- ---- activations -----------------------------------------------------------------------------------------------------------
rule("gelu gelu_backward swiglu swiglu_backward", "rule")
--- gelu(x[N,W], approximate): x Phi(x) exactly (erf), or with "tanh" its tanh form. unread: see activation.
function ops.gelu(x, approximate, unread)
  local form = approximate == "tanh" and 1 or 0
  local y = activation(x.shape, x.dtype, x.device, unread)
  if not unread then call(C.lr_op_gelu, y.handle, x.handle, form) end
  record({ x }, { y }, { x }, function(dy)
    local dx = writable(dy)
    call(C.lr_op_gelu_backward, dx.handle, dy.handle, x.handle, form)
    return dx
  end)
  return y
end

--- swiglu(gu[T,2I]): silu(gate) * up, gate the first I columns, up the others. unread: see activation.
function ops.swiglu(gu, unread)
  local y = activation({ gu.shape[1], gu.shape[2] / 2 }, gu.dtype, gu.device, unread)
  if not unread then call(C.lr_op_swiglu, y.handle, gu.handle) end
  record({ gu }, { y }, { gu }, function(dy)
    -- The largest activation of a layer: its gradient takes its place. Safe where this rule is all that saved it.
    local dgu = gu.saved == 1 and gu.released and gu:view(gu.shape) or like(gu, "gradient")
    call(C.lr_op_swiglu_backward, dgu.handle, dy.handle, gu.handle)
    return dgu
  end)
  return y
end

-- ---- pooling and similarity ------------------------------------------------------------------------------------------------
local POOLING = { cls = 0, mean = 1, last = 2, mean_sqrt_len = 3, weighted_mean = 4 }
ops.pooling_modes = POOLING

rule("pool pool_backward l2_normalize l2_normalize_backward row_dot row_scale", "rule")
--- pool(x[T,H], cu_seqlens[B+1], mode): one f32 row a sequence.
function ops.pool(x, cu_seqlens, mode)
  local code = POOLING[mode] or check.fail("there is no pooling '%s'", tostring(mode))
  local y = new({ cu_seqlens.shape[1] - 1, x.shape[2] }, "f32", "embeddings", x.device)
  call(C.lr_op_pool, y.handle, x.handle, cu_seqlens.handle, code)
  record({ x }, { y }, {}, function(dy)
    local dx = new(x.shape, x.dtype, "gradient", x.device)
    call(C.lr_op_pool_backward, dx.handle, dy.handle, cu_seqlens.handle, code)
    return dx
  end)
  return y
end

local EPS = 1e-12 -- torch.nn.functional.normalize's

--- Each row of x[B,D] (f32) divided by its length.
function ops.normalize(x)
  local y, norm = like(x, "embeddings"), new({ x.shape[1] }, "f32", "norms", x.device)
  call(C.lr_op_l2_normalize, y.handle, norm.handle, x.handle, EPS)
  record({ x }, { y }, { y, norm }, function(dy)
    local dx = like(dy, "gradient")
    call(C.lr_op_l2_normalize_backward, dx.handle, dy.handle, y.handle, norm.handle, EPS)
    return dx
  end)
  norm:release()
  return y
end

--- Dot product of each row of a[B,D] with the same row of b: y[B].
function ops.row_dot(a, b)
  local y = new({ a.shape[1] }, "f32", "similarities", a.device)
  call(C.lr_op_row_dot, y.handle, a.handle, b.handle)
  record({ a, b }, { y }, { a, b }, function(dy)
    local da, db = like(a, "gradient"), like(b, "gradient")
    call(C.lr_op_row_scale, da.handle, b.handle, dy.handle, 0)
    call(C.lr_op_row_scale, db.handle, a.handle, dy.handle, 0)
    return da, db
  end)
  return y
end

-- ---- losses ----------------------------------------------------------------------------------------------------------------
rule("mse mse_backward cross_entropy cross_entropy_backward", "rule")
--- mean (x - y)^2 of two vectors.
function ops.mse(x, y)
  local loss = new({ 1 }, "f32", "loss", x.device)
  call(C.lr_op_mse, loss.handle, x.handle, y.handle)
  record({ x, y }, { loss }, { x, y }, function(d)
    local function gradient(a, b) -- 2 (a - b) / n, of a
      local da = like(a, "gradient")
      call(C.lr_op_mse_backward, da.handle, d.handle, a.handle, b.handle)
      return da
    end
    return autograd.wants(x) and gradient(x, y), autograd.wants(y) and gradient(y, x)
  end)
  return loss
end

--- Cross-entropy of scores[B,N] against labels[B] (i32, from 0), mean over rows.
function ops.cross_entropy(scores, labels)
  local loss, lse = new({ 1 }, "f32", "loss", scores.device), new({ scores.shape[1] }, "f32", "lse", scores.device)
  call(C.lr_op_cross_entropy, loss.handle, lse.handle, scores.handle, labels.handle)
  record({ scores }, { loss }, { scores, lse, labels }, function(d)
    local dx = like(scores, "gradient")
    call(C.lr_op_cross_entropy_backward, dx.handle, d.handle, scores.handle, lse.handle, labels.handle)
    return dx
  end)
  return loss
end

rule("clip_factor adamw loss_scale", "none: they are the optimizer")

--- How many of its first arguments are tensors, for those who are told from a recipe (guard.lua).
ops.tensors = { embedding = 2, cast = 1, add = 2, scale = 1, mul = 2, gather_rows = 2, rows = 1, columns = 1, view = 1,
  matmul_nt = 2, linear = 1, rms_norm = 1, layer_norm = 1, self_attention = 1,
  gelu = 1, swiglu = 1, pool = 2, normalize = 1, row_dot = 2,
  mse = 2, cross_entropy = 2 }

-- ---- operators -------------------------------------------------------------------------------------------------------------
local Tensor = tensor.Tensor

local function both(a, b, sign)
  if getmetatable(a) ~= Tensor or getmetatable(b) ~= Tensor then
    local other = getmetatable(a) == Tensor and b or a
    check.fail("a tensor %s a %s: both must be tensors of one shape; lr.tensor.full(t.shape, x) is one of equal numbers", sign,
      type(other))
  end
end

function Tensor.__add(a, b)
  both(a, b, "+")
  return ops.add(a, b)
end
function Tensor.__sub(a, b)
  both(a, b, "-")
  return ops.add(a, b, 1, -1)
end
function Tensor.__unm(a) return ops.scale(a, -1) end
function Tensor.__mul(a, b)
  if type(a) == "number" then return ops.scale(b, a) end
  if type(b) == "number" then return ops.scale(a, b) end
  both(a, b, "*")
  return ops.mul(a, b)
end

return ops
