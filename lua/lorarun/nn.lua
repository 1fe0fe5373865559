-- nn.lua: frozen layers read from a model folder, and how they meet the adapters.
--
-- A linear layer here may be several of the model's: q, k and v (or gate and up) read the same input, so their weights are
-- stacked and one product computes all. The parts keep their names, which is what LoRA's targets and PEFT's files speak of.
local ffi = require "ffi"
local check = require "lorarun.check"
local tensor = require "lorarun.tensor"
local ops = require "lorarun.ops"
local joined = require "lorarun.joined"
local backend = require "lorarun.backend"

local nn = {}

-- ---- reading weights -------------------------------------------------------------------------------------------------------
--- file_loader(file, prefixes, probe): a function load(name, t) that fills t from a safetensors folder (lorarun.safetensors), and
--- the prefix its names have: the first of `prefixes` with which the tensor `probe` exists.
function nn.file_loader(file, prefixes, probe)
  local prefix
  for _, p in ipairs(prefixes) do
    if file:has(p .. probe) then prefix = p break end
  end
  if not prefix then
    check.fail("%s: there is no tensor '%s' (nor with prefix '%s'); this is not the model that config.json describes", file.path,
      probe, table.concat(prefixes, "' or '", 2))
  end
  return function(name, t)
    local full = prefix .. name
    if not file:has(full) then check.fail("%s: tensor '%s' is missing", file.path, full) end
    local shape = file:info(full).shape
    if table.concat(shape, ", ") ~= table.concat(t.shape, ", ") then
      check.fail("%s: tensor '%s' has shape [%s]; config.json makes it [%s]", file.path, full, table.concat(shape, ", "),
        table.concat(t.shape, ", "))
    end
    file:load(full, t)
  end, prefix
end

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
    if backend.of(source.device).lora_in_product then layer.weight = w else w:free() end
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
  local projection = x.reader == layer and joined.projection or ops.projection
  return projection(x, layer, {
    a = lora.a, a_grad = lora.a.grad, adapters = lora.adapters, dropout = ctx.training and lora.dropout or 0,
    keys = ctx.keys, seed = ctx.seed or 0, step = ctx.step or 0, purpose = lora.purpose,
  }, r)
end

--- norm(norm, x, r, reader): y = norm(s), s = x (+ r). Returns y, s. reader: the linear layer that reads y, if any.
function nn.norm(norm, x, r, reader)
  local room = reader and reader.joined and reader.joined.room
  local y, s
  if norm.b then
    y, s = ops.layer_norm(x, r, norm.w, norm.b, norm.eps, room)
  else
    y, s = ops.rms_norm(x, r, norm.w, norm.eps, room)
  end
  if room then y.reader = reader end
  return y, s
end

--- add_and_norm(x[T,K], layer, r[T,N], norm, ctx, reader): the layer's output goes onto the residual stream, s = r + layer(x),
--- y = norm(s), which the linear layer `reader` reads, if any. Returns y, s. x and r are released.
function nn.add_and_norm(x, layer, r, norm, ctx, reader)
  local in_product = backend.of(x.device).residual_in_product
  local sum = nn.linear(x, layer, ctx, in_product and r or nil)
  x:release()
  if in_product then
    r:release()
    return nn.norm(norm, sum, nil, reader)
  end
  local y, s = nn.norm(norm, sum, r, reader)
  sum:release()
  r:release()
  return y, s
end

--- at_pooled(ctx, a, b): behind the last attention nothing but the pooled rows is needed: those of a and b (all rows, which are
--- released), and ctx for them.
function nn.at_pooled(ctx, a, b)
  local a_rows, b_rows = ops.gather_rows(a, ctx.pooled.rows), ops.gather_rows(b, ctx.pooled.rows)
  a:release()
  b:release()
  return setmetatable({ keys = ctx.pooled.keys }, { __index = ctx }), a_rows, b_rows
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
