-- nn.lua: frozen layers read from a model folder, and what models apply them with: linear layers with their adapters, norms, the
-- residual stream, a stack of layers. Ops and gradients are tensor/ops.lua's; LoRA is lora_linear.lua's.
--
-- A linear layer here may be several of the model's: q, k and v (or gate and up) read the same input, so their weights are
-- stacked and one product computes all. The parts keep their names, which is what LoRA's targets and PEFT's files speak of.
local ffi = require "ffi"
local check = require "lorarun.base.check"
local tensor = require "lorarun.tensor.tensor"
local ops = require "lorarun.tensor.ops"
local autograd = require "lorarun.tensor.autograd"
local device_traits = require "lorarun.tensor.device_traits"
local lora_linear = require "lorarun.models.lora_linear"

local nn = {}

-- ---- reading weights -------------------------------------------------------------------------------------------------------
--- source{ load = function(name, t), dtype = of activations and big weights, device }: makes a model's frozen layers.
--- source.linears are its linear layers, source.count the numbers in all of its weights.
function nn.source(options)
  local source = { dtype = options.dtype, device = options.device, linears = {}, count = 0 }

  local function load_into(name, t)
    options.load(name, t)
    return t
  end

  local function loaded(name, t)
    source.count = source.count + t:elements()
    return load_into(name, t)
  end

  --- A norm's weight or the like, [n]: f32 in every precision.
  function source.vector(name, n)
    return loaded(name, tensor.new({ n }, "f32", name, source.device))
  end

  --- A norm over rows of n numbers, of the weights name.weight and, with `biased`, name.bias: LayerNorm with a bias, else RMSNorm.
  function source.norm(name, n, eps, biased)
    return { w = source.vector(name .. ".weight", n), b = biased and source.vector(name .. ".bias", n) or nil, eps = eps }
  end

  --- An embedding table in the model's dtype.
  function source.table(name, rows, width)
    return loaded(name, tensor.new({ rows, width }, source.dtype, name, source.device))
  end

  --- A stack of linear layers over one input of `width` numbers a row, of the weights NAME.weight [out,width] and NAME.bias [out].
  ---   parts   { { name = "layers.0.self_attn.q_proj", out = n, bias = boolean }, ... }
  ---   norm    of source.norm: the norm whose output this layer reads, if one does; a norm has one such layer at most. It then
  ---           writes where the layer wants its input (lora_linear.lua).
  function source.linear(label, width, parts, norm)
    local layer = { name = label, k = width, n = 0, parts = {}, after_norm = norm ~= nil }
    if norm and norm.feeds then
      check.fail("the norm before '%s' feeds '%s' already: leave it out for one of them, or stack the two", label, norm.feeds.name)
    end
    if norm then norm.feeds = layer end
    local biased = false
    for _, part in ipairs(parts) do
      layer.parts[#layer.parts + 1] = { name = part.name, from = layer.n, to = layer.n + part.out }
      layer.n = layer.n + part.out
      biased = biased or part.bias
    end
    local w = tensor.new({ layer.n, width }, source.dtype, label .. ".weight", source.device)
    source.count = source.count + layer.n * width + (biased and layer.n or 0)
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
    if device_traits.of(source.device).plain_weights then layer.weight = w else w:free() end
    source.linears[#source.linears + 1] = layer
    return layer
  end

  return source
end

-- ---- applying --------------------------------------------------------------------------------------------------------------
-- What every function below calls ctx is what a forward pass knows besides its input, Model:context's table:
--   ids, positions [T] i32, cu_seqlens [B+1] i32, max_length    the packed texts
--   training, seed, step, keys [T] i64                          dropout; keys tell rows apart
--   recompute                                                   how many layers run again in backward, nil: none
--   pooled = { rows [B] i32, keys [B] i64 }                     the rows that pooling takes, nil where it reads all
-- A block of nn.layers gets one of its own, with unread besides.

--- linear(x[T,K], layer, ctx, r): y[T,N], with the layer's adapters where it has some, plus r[T,N] where that is given.
function nn.linear(x, layer, ctx, r)
  if layer.lora then return lora_linear.forward(x, layer, ctx, r) end
  return ops.linear(x, layer, r)
end

--- norm(norm, x, r): y = norm(s), s = x (+ r), all [T,n]. Returns y, s. x and r are released.
function nn.norm(norm, x, r)
  local into = norm.feeds and lora_linear.buffer(norm.feeds, x.shape[1], x.dtype, x.device)
  local y, s
  if norm.b then
    y, s = ops.layer_norm(x, r, norm.w, norm.b, norm.eps, into)
  else
    y, s = ops.rms_norm(x, r, norm.w, norm.eps, into)
  end
  x:release()
  if r then r:release() end
  return y, s
end

-- ---- the residual stream ---------------------------------------------------------------------------------------------------
-- The stream [T,hidden] that layers read and add to. It is x, or x + r where a norm is to add the two: on some devices that costs
-- less than adding in the product that made x (device_traits.lua).
local Stream = {}
Stream.__index = Stream

--- stream(x, r): the stream x (+ r), which owns the tensors from here on.
function nn.stream(x, r) return setmetatable({ x = x, r = r }, Stream) end

--- stream:norm(norm): y = norm(stream), [T,hidden], the caller's; the stream stays what it is. Pre-norm layers begin so.
function Stream:norm(norm)
  local y
  y, self.x = nn.norm(norm, self.x, self.r)
  self.r = nil
  return y
end

--- stream:renorm(norm): the stream becomes norm(stream). Returns it; it stays the stream's, which releases it. Post-norm layers.
function Stream:renorm(norm)
  local y, s = nn.norm(norm, self.x, self.r)
  s:release()
  self.x, self.r = y, nil
  return y
end

--- stream:sum(): the stream as one tensor, which stays the stream's.
function Stream:sum()
  if self.r then
    local x, r = self.x, self.r
    self.x, self.r = ops.add(x, r), nil
    x:release()
    r:release()
  end
  return self.x
end

--- stream:add(x[T,K], layer, ctx): the linear layer's output goes onto the stream. x is released.
function Stream:add(x, layer, ctx)
  local before = self:sum()
  local in_product = device_traits.of(x.device).residual_in_product
  local y = nn.linear(x, layer, ctx, in_product and before or nil)
  x:release()
  if in_product then before:release() end
  self.x, self.r = y, not in_product and before or nil
end

--- stream:after_attention(attended[T,n], ctx): what goes on after the attention of a layer: all rows, but in the last layer those
--- that pooling takes, of the stream, too. attended is released where rows were taken of it.
function Stream:after_attention(attended, ctx)
  if not ctx.last then return attended end
  local x, pooled = self:sum(), ctx.pooled
  local rows = ops.gather_rows(attended, pooled.rows)
  self.x = ops.gather_rows(x, pooled.rows)
  attended:release()
  x:release()
  ctx.keys = pooled.keys
  return rows
end

-- ---- a stack of layers -----------------------------------------------------------------------------------------------------
--- layers(list, x, norm, ctx, block): a model's layers on the residual stream x [T,hidden], which is released, then the norm after
--- them: hidden states [T,hidden], or with ctx.pooled those of these rows alone.
---   list    layers; layer.down is the linear layer that each ends with, onto the stream
---   block   function(layer, stream, ctx): a layer up to that product. Returns the product's input [T,n]. It calls
---           stream:after_attention after the attention. ctx.unread: backward runs the layer again and needs no value of that
---           input, only what makes its gradient: an activation need not be computed (ops.gelu).
--- Of the first ctx.recompute layers the stream alone is kept, and block runs again in backward. The last product does not, nor the
--- activation before it, unless it has adapters: frozen, its gradient is that of its output times its weight.
function nn.layers(list, x, norm, ctx, block)
  local stream = nn.stream(x)
  for i, layer in ipairs(list) do
    local down, last = layer.down, ctx.pooled ~= nil and i == #list
    local function run(at, again)
      local own = setmetatable({ last = last, unread = again and not down.lora, keys = ctx.keys }, { __index = ctx })
      local h = block(layer, at, own)
      if down.lora then at:add(h, down, own) else return h end
    end
    local h -- the last product's input, nil where run has made the product
    if i <= (ctx.recompute or 0) then
      local kept = stream:sum() -- one tensor is less to keep than two
      local function again(from)
        local at = nn.stream(from)
        local result = run(at, autograd.recording())
        if result then return at:sum(), result end
        return at.x, at.r
      end
      stream.x, h = autograd.recompute(again, kept)
      if down.lora then stream.r, h = h, nil end
      kept:release()
    else
      h = run(stream)
    end
    if h then stream:add(h, down, ctx) end
  end
  return stream:renorm(norm)
end

--- again(list): of the layers' weights the share that nn.layers multiplies by once more where it recomputes them all. list: nil
--- where a model has no such layers.
function nn.again(list)
  local all, again = 0, 0
  for _, layer in ipairs(list or {}) do
    for _, linear in pairs(layer) do
      if linear.k then
        all = all + linear.n * linear.k
        if linear ~= layer.down or linear.lora then again = again + linear.n * linear.k end
      end
    end
  end
  return all > 0 and again / all or 0
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
