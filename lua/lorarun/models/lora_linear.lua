-- lora_linear.lua: LoRA on a frozen linear layer (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021; PEFT's
-- scale and dropout). T rows, K columns in, N out; the layer's adapters have R rows of A together.
--
--   h = dropout(x) A^T              [T,R]    one product and one mask for all adapters of the layer
--   y = x W^T + b (+ r) + s h B^T   [T,N]    each adapter's s h B^T goes into the columns of its part of the layer
--
--   dh  = s dy B                    [T,R]
--   dB += s dy^T h                  [out,r]  of each adapter
--   dA += dh^T dropout(x)           [R,K]
--   dx  = dy W + mask (dh A) / (1 - p)       [T,K]
--
-- W has no gradient. A, B and their gradients are f32; products take A and B in the dtype of x, as under autocast. Of x nothing is
-- copied: dropout(x) is made again in backward, since a mask costs less than [T,K] numbers kept.
--
-- What meets W is done in one of two ways, the adapter's strategy, which attach() chooses:
--
--   apart    W in whatever layout the device likes. s h B^T and dh are products of their own.
--   inside   W plain, with S = s B beside it: [W | S] is one matrix [N,K+R], S block-diagonal. The layer owns a buffer [x | h],
--            whose first K columns the norm before the layer writes, and then
--              y = [x | h] [W | S]^T + b + r        one product
--              [dx | dh] = dy [W | S]               one for both gradients
--            S is written again in every forward pass, from the f32 adapters. That costs what rounding them costs anyway, and a
--            stale S cannot be. W itself is never changed.
--
-- The layer: { name, k = K, n = N, forward, backward = W packed for each direction, bias = f32 [N] or nil, weight = W as a plain
-- matrix where the device multiplies such, after_norm, lora = the adapter: see attach() }.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local tensor = require "lorarun.tensor.tensor"
local autograd = require "lorarun.tensor.autograd"

local lora_linear = {}
local new, like, call = tensor.new, tensor.like, check.call

-- ---- apart -----------------------------------------------------------------------------------------------------------------
local apart = { name = "apart" }

function apart.attach() end
function apart.detach() end
function apart.buffer() end -- a norm writes x where it likes

-- An adapter's matrix in the dtype of what it is multiplied with.
local function as_operand(matrix, dtype, own)
  if matrix.dtype == dtype then return matrix end
  local copy = new(matrix.shape, dtype, matrix.name, matrix.device)
  call(C.lr_op_cast, copy.handle, matrix.handle)
  own[#own + 1] = copy
  return copy
end

-- A pass through the layer: a and h, where the A's are and h goes; own: what this pass made for itself.
function apart.start(layer, x)
  local lora, own = layer.lora, {}
  local pass = { layer = layer, x = x, own = own, a = as_operand(lora.a, x.dtype, own), b = {},
    h = new({ x.shape[1], lora.a.shape[1] }, x.dtype, "lora h", x.device) }
  own[#own + 1] = pass.h
  for i, adapter in ipairs(lora.adapters) do pass.b[i] = as_operand(adapter.b, x.dtype, own) end
  return pass
end

-- y [T,N], from x and h.
function apart.output(pass, y, r, columns)
  local layer = pass.layer
  call(C.lr_op_linear, y.handle, pass.x.handle, layer.forward.handle, layer.bias and layer.bias.handle, r and r.handle)
  for i, adapter in ipairs(layer.lora.adapters) do
    call(C.lr_op_matmul_nt, columns(y, adapter.from, adapter.to), columns(pass.h, adapter.r_from, adapter.r_to), pass.b[i].handle,
      adapter.scale, 1)
  end
end

-- dy W, or nil where x needs no gradient, and dh.
function apart.gradients(pass, dy, columns)
  local x, layer = pass.x, pass.layer
  local dh = like(pass.h, "gradient")
  for i, adapter in ipairs(layer.lora.adapters) do
    call(C.lr_op_matmul_nn, columns(dh, adapter.r_from, adapter.r_to), columns(dy, adapter.from, adapter.to), pass.b[i].handle,
      adapter.scale, 0)
  end
  if not x.needs_grad then return nil, dh end
  local dx = new(x.shape, x.dtype, "gradient", x.device)
  call(C.lr_op_linear_backward, dx.handle, dy.handle, layer.backward.handle, 0)
  return dx, dh
end

-- ---- inside ----------------------------------------------------------------------------------------------------------------
local inside = { name = "inside" }
local ALIGNED = 8 -- columns: 16 bytes of 16-bit numbers

-- Lay the weight out again with `room` more columns to the right. layer.weight, forward and backward are then views of the first K.
local function widen(layer, room)
  local w, k = layer.weight, layer.k
  local whole = tensor.zeros({ layer.n, k + room }, w.dtype, w.name, w.device)
  layer.weight = whole:slice_columns(0, k)
  call(C.lr_op_cast, layer.weight.handle, w.handle)
  for _, t in ipairs { layer.forward, layer.backward, w } do t:free() end
  layer.forward, layer.backward = tensor.pack(layer.weight, 1), tensor.pack(layer.weight, 2)
  return whole
end

-- Room for S beside W. `room` is the sum of the ranks, rounded up so that rows stay aligned; what lies beyond the ranks is 0 in the
-- A's and in S.
function inside.attach(layer)
  local lora, k = layer.lora, layer.k
  local rank = lora.a.shape[1]
  local room = math.ceil(rank / ALIGNED) * ALIGNED
  local whole = widen(layer, room)
  local a = tensor.zeros({ room, k }, whole.dtype, "adapter operands", whole.device)
  local state = { room = room, forward = tensor.pack(whole, 1), backward = tensor.pack(whole, 2), a = a,
    a_rows = a:slice_rows(0, rank), s = {} }
  for i, adapter in ipairs(lora.adapters) do
    local rows = whole:slice_rows(adapter.from, adapter.to)
    state.s[i] = rows:slice_columns(k + adapter.r_from, k + adapter.r_to)
    rows:free()
  end
  whole:free() -- its views keep the bytes
  lora.inside = state
end

-- The weight keeps the room, without use.
function inside.detach(layer)
  local state = layer.lora.inside
  for _, t in ipairs { state.forward, state.backward, state.a, state.a_rows, unpack(state.s) } do t:free() end
end

-- The A's and S as they are now, in the dtype of the products.
local function refresh(lora)
  local state = lora.inside
  call(C.lr_op_cast, state.a_rows.handle, lora.a.handle)
  for i, adapter in ipairs(lora.adapters) do
    local s, b = state.s[i], adapter.b
    local scaled = s.dtype == b.dtype and s or like(b, "adapter operands")
    call(C.lr_op_add, scaled.handle, b.handle, b.handle, adapter.scale, 0)
    if scaled ~= s then
      call(C.lr_op_cast, s.handle, scaled.handle)
      scaled:free()
    end
  end
end

-- A matrix [T,K] whose rows have the room to their right, and the whole of it.
local function with_room(layer, rows, dtype, name, device)
  local whole = new({ rows, layer.k + layer.lora.inside.room }, dtype, name, device)
  return whole:slice_columns(0, layer.k), whole
end

function inside.buffer(layer, rows, dtype, device)
  local x, whole = with_room(layer, rows, dtype, "normalised", device)
  layer.lora.filled = { x = x, whole = whole }
  return x
end

function inside.start(layer, x)
  local lora = layer.lora
  local state, filled = lora.inside, lora.filled
  refresh(lora)
  lora.filled = nil
  local whole
  if filled and filled.x == x then
    whole = filled.whole
  else -- x came from elsewhere: a copy of it
    local copy
    copy, whole = with_room(layer, x.shape[1], x.dtype, "normalised", x.device)
    call(C.lr_op_cast, copy.handle, x.handle)
    copy:free()
  end
  local h = tensor.raw_columns(whole, layer.k, layer.k + state.room)
  return { layer = layer, x = x, whole = whole, a = state.a, h = h, own = { whole, h } }
end

function inside.output(pass, y, r)
  local layer = pass.layer
  call(C.lr_op_linear, y.handle, pass.whole.handle, layer.lora.inside.forward.handle, layer.bias and layer.bias.handle,
    r and r.handle)
end

function inside.gradients(pass, dy, columns)
  local x, layer, lora = pass.x, pass.layer, pass.layer.lora
  local state = lora.inside
  if x.needs_grad then
    local dx, whole = with_room(layer, x.shape[1], x.dtype, "gradient", x.device)
    call(C.lr_op_linear_backward, whole.handle, dy.handle, state.backward.handle, 0)
    local dh = tensor.raw_columns(whole, layer.k, layer.k + state.room)
    whole:free() -- its views keep the bytes
    return dx, dh
  end
  local dh = new({ x.shape[1], lora.a.shape[1] }, x.dtype, "gradient", x.device)
  for i, adapter in ipairs(lora.adapters) do
    call(C.lr_op_matmul_nn, columns(dh, adapter.r_from, adapter.r_to), columns(dy, adapter.from, adapter.to), state.s[i].handle,
      1, 0)
  end
  return nil, dh
end

-- ---- the layer -------------------------------------------------------------------------------------------------------------
--- attach(layer, adapter): the adapter goes on the layer, as layer.lora, with the strategy that suits it: inside where the device
--- multiplies plain matrices and a norm writes the layer's input, else apart.
---   adapter: { a = [R,K] all A's of the layer stacked, with a.grad, adapters = { { b = [out,r], b_grad, from, to (columns of y),
---     r_from, r_to (rows of a), scale } ... }, dropout = p, purpose = a number that tells its masks from those of other layers }
function lora_linear.attach(layer, adapter)
  layer.lora = adapter
  adapter.strategy = layer.weight and layer.after_norm and inside or apart
  adapter.strategy.attach(layer)
end

--- detach(layer): the adapter comes off.
function lora_linear.detach(layer)
  layer.lora.strategy.detach(layer)
  layer.lora = nil
end

--- buffer(layer, rows, dtype, device): where the norm before the layer is to write the layer's input, [rows,K] with any stride, or
--- nil where that does not matter. The layer takes it over when forward() gets it as x; the caller releases it like any tensor.
function lora_linear.buffer(layer, rows, dtype, device)
  if layer.lora then return layer.lora.strategy.buffer(layer, rows, dtype, device) end
end

--- forward(x[T,K], layer, ctx, r): y[T,N] of a layer with an adapter, plus r[T,N] where that is given. Its gradient is recorded.
---   ctx: { training = boolean, and for dropout: keys = [T] i64, seed, step }
function lora_linear.forward(x, layer, ctx, r)
  local lora = layer.lora
  local strategy, a_grad, rank = lora.strategy, lora.a.grad, lora.a.shape[1]
  local p, keys, seed, step = ctx.training and lora.dropout or 0, ctx.keys, ctx.seed or 0, ctx.step or 0
  local function dropped(from, into, beta) -- into = mask from / (1 - p) + beta into
    call(C.lr_op_dropout, into.handle, from.handle, keys.handle, p, seed, lora.purpose, step, beta)
    return into
  end
  autograd.refuse(layer.forward, "a linear layer: a frozen weight")
  autograd.refuse(layer.bias, "a linear layer: a frozen bias")

  local pass = strategy.start(layer, x)
  local columns, free_columns = tensor.column_views()
  local xd = p > 0 and dropped(x, like(x, "lora dropout"), 0) or x
  call(C.lr_op_matmul_nt, pass.h.handle, xd.handle, pass.a.handle, 1, 0)
  if xd ~= x then xd:free() end
  local y = new({ x.shape[1], layer.n }, x.dtype, r and "residual" or layer.name, x.device)
  strategy.output(pass, y, r, columns)
  free_columns()

  autograd.record({ x, r or false, lora.a }, { y }, { x, unpack(pass.own) }, function(dy)
    columns, free_columns = tensor.column_views()
    local dx, dh = strategy.gradients(pass, dy, columns)
    for _, adapter in ipairs(lora.adapters) do
      call(C.lr_op_matmul_tn, adapter.b_grad.handle, columns(dy, adapter.from, adapter.to),
        columns(pass.h, adapter.r_from, adapter.r_to), adapter.scale, 1)
    end
    xd = p > 0 and dropped(x, like(x, "lora dropout"), 0) or x
    call(C.lr_op_matmul_tn, a_grad.handle, columns(dh, 0, rank), xd.handle, 1, 1)
    if dx and p > 0 then
      call(C.lr_op_matmul_nn, xd.handle, dh.handle, pass.a.handle, 1, 0)
      dropped(xd, dx, 1)
    elseif dx then
      call(C.lr_op_matmul_nn, dx.handle, dh.handle, pass.a.handle, 1, 1)
    end
    if xd ~= x then xd:free() end
    free_columns()
    dh:free()
    return dx, r and dy
  end)
  for _, t in ipairs(pass.own) do t:release() end
  return y
end

return lora_linear
