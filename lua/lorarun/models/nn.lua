-- nn.lua: frozen layers read from a model folder, and how they meet the adapters.
--
-- A linear layer here may be several of the model's: q, k and v (or gate and up) read the same input, so their weights are
-- stacked and one product computes all. The parts keep their names, which is what LoRA's targets and PEFT's files speak of.
local ffi = require "ffi"
local tensor = require "lorarun.tensor.tensor"
local ops = require "lorarun.tensor.ops"
local autograd = require "lorarun.tensor.autograd"
local fused_lora = require "lorarun.models.fused_lora"
local device_traits = require "lorarun.tensor.device_traits"

local nn = {}

-- ---- reading weights -------------------------------------------------------------------------------------------------------
--- source{ load = function(name, t), dtype = of activations and big weights, device }: makes a model's frozen layers.
function nn.source(options)
  local source = { dtype = options.dtype, device = options.device, linears = {} }

  local function load_into(name, t)
    options.load(name, t)
    return t
  end

  --- A norm weight or the like: f32 in every precision.
  function source.vector(name, n)
    return load_into(name, tensor.new({ n }, "f32", name, source.device))
  end

  --- A norm over rows of n, RMSNorm or with `biased` LayerNorm, of the weights name.weight and name.bias.
  function source.norm(name, n, eps, biased)
    return { w = source.vector(name .. ".weight", n), b = biased and source.vector(name .. ".bias", n) or nil, eps = eps }
  end

  --- An embedding table in the model's dtype.
  function source.table(name, rows, width)
    return load_into(name, tensor.new({ rows, width }, source.dtype, name, source.device))
  end

  --- A stack of linear layers over one input.  parts: { { name = "layers.0.self_attn.q_proj", out = n, bias = boolean }, ... }
  --- after_norm: that input is a norm's output, which was told so (nn.norm's `reader`).
  function source.linear(label, width, parts, after_norm)
    local layer = { name = label, k = width, n = 0, parts = {}, after_norm = after_norm }
    local biased = false
    for _, part in ipairs(parts) do
      layer.parts[#layer.parts + 1] = { name = part.name, from = layer.n, to = layer.n + part.out }
      layer.n = layer.n + part.out
      biased = biased or part.bias
    end
    local w = tensor.new({ layer.n, width }, source.dtype, label .. ".weight", source.device)
    layer.bias = biased and tensor.zeros({ layer.n }, "f32", label .. ".bias", source.device) or nil
    for i, part in ipairs(parts) do
      local from, to = layer.parts[i].from, layer.parts[i].to
      local rows = w:slice_rows(from, to)
      load_into(part.name .. ".weight", rows)
      rows:free()
      if part.bias then
        local b = layer.bias:view({ part.out }, from)
        load_into(part.name .. ".bias", b)
        b:free()
      end
    end
    layer.forward, layer.backward = tensor.pack(w, 1), tensor.pack(w, 2)
    if device_traits.of(source.device).lora_in_product then layer.weight = w else w:free() end
    source.linears[#source.linears + 1] = layer
    return layer
  end

  return source
end

-- ---- applying --------------------------------------------------------------------------------------------------------------
--- linear(x[T,K], layer, ctx, r): y[T,N], with the layer's adapters where it has some, plus r[T,N] where that is given.
---   ctx: what a forward pass knows besides its input: { keys = [T] i64, training = boolean, seed, step }
function nn.linear(x, layer, ctx, r)
  local lora = layer.lora
  if not lora then return ops.projection(x, layer, nil, r) end
  local projection = x.reader == layer and fused_lora.projection or ops.projection
  return projection(x, layer, {
    a = lora.a, a_grad = lora.a.grad, adapters = lora.adapters, dropout = ctx.training and lora.dropout or 0,
    keys = ctx.keys, seed = ctx.seed or 0, step = ctx.step or 0, purpose = lora.purpose,
  }, r)
end

--- norm(norm, x, r, reader): y = norm(s), s = x (+ r). Returns y, s. x and r are released. reader: the linear layer that reads y,
--- if any.
function nn.norm(norm, x, r, reader)
  local room = reader and reader.joined and reader.joined.room
  local y, s
  if norm.b then
    y, s = ops.layer_norm(x, r, norm.w, norm.b, norm.eps, room)
  else
    y, s = ops.rms_norm(x, r, norm.w, norm.eps, room)
  end
  x:release()
  if r then r:release() end
  if room then y.reader = reader end
  return y, s
end

--- onto(r[T,N], x[T,K], layer, ctx): the layer's output goes onto the residual stream r. Returns the new stream as nn.norm takes
--- it: its sum, or two tensors whose sum it is, where the norm behind adds them at less cost. x is released, and r where it was
--- added.
function nn.onto(r, x, layer, ctx)
  local in_product = device_traits.of(x.device).residual_in_product
  local y = nn.linear(x, layer, ctx, in_product and r or nil)
  x:release()
  if not in_product then return y, r end
  r:release()
  return y
end

-- ---- a stack of layers -----------------------------------------------------------------------------------------------------
-- Behind the last attention nothing but the pooled rows is needed: the context there.
local function context_of_pooled(ctx) return setmetatable({ keys = ctx.pooled.keys }, { __index = ctx }) end

--- at_pooled(ctx, behind, a, b): a and b (all rows) behind attention: in the last layer their pooled rows, for which they are
--- released.
function nn.at_pooled(ctx, behind, a, b)
  if behind == ctx then return a, b end
  local a_rows, b_rows = ops.gather_rows(a, ctx.pooled.rows), ops.gather_rows(b, ctx.pooled.rows)
  a:release()
  b:release()
  return a_rows, b_rows
end

--- layers(list, x, norm, ctx, block): a model's layers on the residual stream x [T,hidden], which is released, and the norm behind
--- them: hidden states [T,hidden], or with ctx.pooled those of these rows alone.
---   list    layers, whose last product is that of `down`
---   block   function(layer, x, r, ctx, behind, unread): what is before that product, on the stream x (+ r), which it releases.
---           behind: ctx for what is behind attention, see at_pooled. Returns the stream and the product's input; unread: of that
---           input the gradient alone is wanted.
--- Of the first ctx.recompute layers the stream alone is kept, and block runs again in backward. The product does not, nor what
--- makes its input, unless it has adapters: frozen, its gradient is that of its output by its weight.
function nn.layers(list, x, norm, ctx, block)
  local r
  for i, layer in ipairs(list) do
    local down, behind = layer.down, ctx.pooled and i == #list and context_of_pooled(ctx) or ctx
    local function run(from, onto, again)
      local stream, h = block(layer, from, onto, ctx, behind, again and not down.lora)
      if down.lora then return nn.onto(stream, h, down, behind) end
      return stream, h
    end
    local stream, h -- or, with adapters, the stream behind the layer
    if i <= (ctx.recompute or 0) then
      local kept = x
      if r then -- one tensor is less to keep than two
        kept = ops.add(x, r)
        x:release()
        r:release()
      end
      stream, h = autograd.recompute(function(from) return run(from, nil, autograd.recording()) end, kept)
      kept:release()
    else
      stream, h = run(x, r)
    end
    if down.lora then x, r = stream, h else x, r = nn.onto(stream, h, down, behind) end
  end
  local y, s = nn.norm(norm, x, r)
  s:release()
  return y
end

--- again(list): of the layers' weights the share that nn.layers multiplies by once more where it recomputes them all.
function nn.again(list)
  local all, again = 0, 0
  for _, layer in ipairs(list) do
    for _, linear in pairs(layer) do
      if linear.k then
        all = all + linear.n * linear.k
        if linear ~= layer.down or linear.lora then again = again + linear.n * linear.k end
      end
    end
  end
  return again / all
end

--- RoPE's table cos|sin [positions, head_dim] for frequencies theta^(-2i/head_dim) (Su et al., RoFormer, 2021).
function nn.rope_table(positions, head_dim, theta, device)
  local half = head_dim / 2
  local values = ffi.new("float[?]", positions * head_dim)
  for i = 0, half - 1 do
    -- The angle is computed in f32 steps as transformers does, so that both agree in the last bit that matters.
    local inv = tonumber(ffi.new("float", 1 / tonumber(ffi.new("float", theta ^ (2 * i / head_dim)))))
    for p = 0, positions - 1 do
      local angle = tonumber(ffi.new("float", p * inv))
      values[p * head_dim + i] = math.cos(angle)
      values[p * head_dim + half + i] = math.sin(angle)
    end
  end
  return tensor.from(values, { positions, head_dim }, "f32", "rope table", device)
end

return nn
