-- fused_lora.lua: LoRA inside the product of its frozen layer, where weights are multiplied as plain matrices (GPUs).
--
--   [x | h], h = dropout(x) A^T      beside each other in x.whole: a norm writes x there, a thin product writes h
--   [W | S], S = s B                 beside each other in one matrix [N, K + R], S block-diagonal: each adapter's s B in the rows
--                                    of its part and the columns of its rank
--   y = [x | h] [W | S]^T + b        one product with what else linear adds;  [dx | dh] = dy [W | S]  one for both gradients
--
-- R is the sum of the layer's ranks, rounded up so that rows stay aligned; A has that many rows, and what lies beyond the ranks is
-- 0 in A and in S. W is never changed: S is written beside it, from the f32 adapters, in the dtype of the products, as part of
-- every forward pass. That costs what it costs to round the adapters for products of their own, and a stale S cannot be.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local tensor = require "lorarun.tensor.tensor"
local autograd = require "lorarun.tensor.autograd"

local fused_lora = {}
local new, like, call = tensor.new, tensor.like, check.call
local ALIGNED = 8 -- columns: 16 bytes of 16-bit numbers

-- Lay the weight out anew with `room` columns behind its rows. layer.weight, forward and backward then are views of its columns.
local function widen(layer, room)
  local w, k = layer.weight, layer.k
  local whole = tensor.zeros({ layer.n, k + room }, w.dtype, w.name, w.device)
  layer.weight = whole:slice_columns(0, k)
  call(C.lr_op_cast, layer.weight.handle, w.handle)
  for _, t in ipairs { layer.forward, layer.backward, w } do t:free() end
  layer.forward, layer.backward = tensor.pack(layer.weight, 1), tensor.pack(layer.weight, 2)
  return whole
end

--- attach(layer): layer.joined for a layer with adapters (layer.lora, as lora.lua makes it).
function fused_lora.attach(layer)
  local lora, k = layer.lora, layer.k
  local rank = lora.a.shape[1]
  local room = math.ceil(rank / ALIGNED) * ALIGNED
  local weight = widen(layer, room)
  local a = tensor.zeros({ room, k }, weight.dtype, "adapter operands", weight.device)
  local state = { room = room, forward = tensor.pack(weight, 1), backward = tensor.pack(weight, 2), a = a,
    a_rows = a:slice_rows(0, rank), b = {} }
  for i, adapter in ipairs(lora.adapters) do
    local rows = weight:slice_rows(adapter.from, adapter.to)
    state.b[i] = rows:slice_columns(k + adapter.r_from, k + adapter.r_to)
    rows:free()
  end
  weight:free() -- its views keep the bytes
  layer.joined = state
end

--- detach(layer): the weight keeps the room, without use.
function fused_lora.detach(layer)
  local state = layer.joined
  for _, t in ipairs { state.forward, state.backward, state.a, state.a_rows, unpack(state.b) } do t:free() end
  layer.joined = nil
end

-- A and S as they are now, in the dtype of the products.
local function refresh(state, lora)
  call(C.lr_op_cast, state.a_rows.handle, lora.a.handle)
  for i, adapter in ipairs(lora.adapters) do
    local s, b = state.b[i], adapter.b
    local scaled = s.dtype == b.dtype and s or like(b, "adapter operands")
    call(C.lr_op_add, scaled.handle, b.handle, b.handle, adapter.scale, 0)
    if scaled ~= s then
      call(C.lr_op_cast, s.handle, scaled.handle)
      scaled:free()
    end
  end
end

--- projection(x, layer, lora, r): as ops.projection, for an x that a norm made for this layer (nn.norm's `reader`).
function fused_lora.projection(x, layer, lora, r)
  local state, k, p = layer.joined, layer.k, lora.dropout
  local rank = lora.a.shape[1]
  refresh(state, lora)
  local function dropped(beta, from, into)
    call(C.lr_op_dropout, into.handle, from.handle, lora.keys.handle, p, lora.seed, lora.purpose, lora.step, beta)
    return into
  end
  local columns, free_columns = tensor.column_views()
  local xd = p > 0 and dropped(0, x, like(x, "lora dropout")) or x
  call(C.lr_op_matmul_nt, columns(x.whole, k, k + state.room), xd.handle, state.a.handle, 1, 0)
  if xd ~= x then xd:free() end
  free_columns()
  local y = new({ x.shape[1], layer.n }, x.dtype, r and "residual" or layer.name, x.device)
  call(C.lr_op_linear, y.handle, x.whole.handle, state.forward.handle, layer.bias and layer.bias.handle, r and r.handle)

  -- The gradient of x, whose room has that of h; where x needs none, that of h alone, and in which column it begins.
  local function gradients_of_input(dy)
    if x.needs_grad then
      local dx = tensor.with_room(x.shape, state.room, x.dtype, "gradient", x.device)
      call(C.lr_op_linear_backward, dx.whole.handle, dy.handle, state.backward.handle, 0)
      return dx, dx.whole, k
    end
    local dh = new({ x.shape[1], rank }, x.dtype, "gradient", x.device)
    for i, adapter in ipairs(lora.adapters) do
      call(C.lr_op_matmul_nn, columns(dh, adapter.r_from, adapter.r_to), columns(dy, adapter.from, adapter.to),
        state.b[i].handle, 1, 0)
    end
    return nil, dh, 0
  end

  autograd.record({ x, r or false, lora.a }, { y }, { x }, function(dy)
    columns, free_columns = tensor.column_views()
    local dx, dh, at = gradients_of_input(dy)
    for _, adapter in ipairs(lora.adapters) do
      call(C.lr_op_matmul_tn, adapter.b_grad.handle, columns(dy, adapter.from, adapter.to),
        columns(x.whole, k + adapter.r_from, k + adapter.r_to), adapter.scale, 1)
    end
    xd = p > 0 and dropped(0, x, like(x, "lora dropout")) or x -- a mask is made again: cheaper than keeping [T,K]
    call(C.lr_op_matmul_tn, lora.a_grad.handle, columns(dh, at, at + rank), xd.handle, 1, 1)
    if dx and p > 0 then
      call(C.lr_op_matmul_nn, xd.handle, columns(dh, at, at + state.room), state.a.handle, 1, 0)
      dropped(1, xd, dx) -- dx += mask (dh A) / (1 - p)
    elseif dx then
      call(C.lr_op_matmul_nn, dx.handle, columns(dh, at, at + state.room), state.a.handle, 1, 1)
    end
    if xd ~= x then xd:free() end
    free_columns()
    if not dx then dh:free() end
    return dx, r and dy
  end)
  return y
end

return fused_lora
