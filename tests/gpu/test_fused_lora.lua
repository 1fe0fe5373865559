-- LoRA inside the product of its layer, and residuals in products: with these, models on a GPU (or its twin on the CPU) compute
-- what the CPU computes without them, and what the GPU computes with separate products.
local C = require "lorarun.base.c"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local call = require "lorarun.base.check"
local device_traits = require "lorarun.tensor.device_traits"
local memory = require "lorarun.tensor.memory"
local tensor = require "lorarun.tensor.tensor"
local autograd = require "lorarun.tensor.autograd"
local ops = require "lorarun.tensor.ops"
local optim = require "lorarun.tensor.optim"
local dataset = require "lorarun.data.dataset"
local nn = require "lorarun.models.nn"
local lora = require "lorarun.models.lora"
local load_model = require("lorarun.models.model").load

if C.lr_device_available(C.LR_CUDA) == 0 then skip "no GPU" end

local golden = fs.join(os.getenv "LORARUN_TESTS", "golden")
local texts = json.decode_file(fs.join(golden, "texts.json")).texts
local RANKS = { q_proj = 3, query = 3, v_proj = 5, value = 5 } -- the sums of ranks are no multiples of 8, and scales differ

-- A model on a device, with adapters as if trained for a while, and with the device's own traits (device_traits.lua) or these.
local function with_model(arch, device, options, fn)
  local own = device_traits.of(device)
  local before = { plain_weights = own.plain_weights, residual_in_product = own.residual_in_product }
  for key, value in pairs(options.traits or {}) do own[key] = value end
  local precision = device == "cpu" and options.precision == "fp16" and "fp32" or options.precision -- the CPU has no fp16
  local model = load_model(fs.join(golden, arch), { device = device, precision = precision })
  local ok, err = xpcall(function()
    model:add_lora { rank = 4, alpha = 8, dropout = options.dropout or 0.3, targets = options.targets or "all-linear",
      rank_pattern = RANKS }
    for i, m in ipairs(model.lora.modules) do call(C.lr_tensor_uniform(m.b.handle, 5, i, -0.2, 0.2)) end
    fn(model)
  end, debug.traceback)
  for key in pairs(options.traits or {}) do own[key] = before[key] end
  model:free()
  if not ok then error(err, 0) end
end

-- Adds the gradients of a loss that weights each number of the embeddings differently. Returns the embeddings, and the names of the
-- tensors that forward kept for backward.
local function step(model, number, recompute)
  local embeddings, kept = nil, {}
  autograd.gradients(function()
    local batch = dataset.pack(model.tokenizer, texts, model.max_length)
    local ctx = model:context(batch, { training = true, seed = 3, step = number, recompute = recompute })
    batch:close()
    local e = model:forward(ctx)
    embeddings = e:view({ e:elements() }):to_table()
    for _, holder in ipairs(memory.holders(1000, model.device)) do kept[holder.name] = true end
    local weights = {}
    for i = 1, e:elements() do weights[i] = math.sin(i) end
    local dots = ops.row_dot(e, tensor.from(weights, e.shape, "f32", "weights", model.device))
    return ops.mse(dots, tensor.zeros(dots.shape, "f32", "target", model.device))
  end)
  return embeddings, kept
end

-- Embeddings and gradients of a step, and the adapters after two steps of the optimizer.
local function train(arch, device, options)
  local result = {}
  with_model(arch, device, options, function(model)
    local parameters, weights = model.lora.parameters, {}
    for i, layer in ipairs(model.linears) do
      local inside = layer.lora ~= nil and layer.lora.strategy.name == "inside"
      check.equal(inside, device == "cuda" and options.traits == nil and layer.lora ~= nil and layer.after_norm,
        layer.name .. " has its adapter inside the product")
      weights[i] = inside and layer.weight:to_table()
    end
    result.embeddings, result.kept = step(model, 1, options.recompute)
    result.gradients = parameters.grad:to_table()
    local optimizer = optim.adamw(parameters, { max_grad_norm = 1 })
    for number = 2, 3 do
      optimizer:step(1e-2)
      step(model, number, options.recompute)
    end
    optimizer:free()
    result.adapters = parameters.value:to_table()
    for i, layer in ipairs(model.linears) do
      if weights[i] then
        for row, values in ipairs(layer.weight:to_table()) do check.array(values, weights[i][row], 0, layer.name) end
      end
    end
  end)
  return result
end

-- A layer of two parts after a norm, with adapters of different scales and ranks: its output, and the gradients of the norm's input
-- and of the adapters. apart: the layer does not know the norm, so its adapters get products of their own. copied: the norm does
-- not know the layer, so the layer's input is not in the layer's buffer.
local function one_layer(dtype, apart, copied)
  local result, index = nil, 0
  local source = nn.source { dtype = dtype, device = "cuda", load = function(_, t)
    index = index + 1
    local f = tensor.new({ t:elements() }, "f32", "random", "cuda")
    call(C.lr_tensor_uniform(f.handle, 2, index, -0.5, 0.5))
    call(C.lr_op_cast(t:matrix().handle, f:view({ t:elements() / t.shape[#t.shape], t.shape[#t.shape] }).handle))
  end }
  tensor.scope(function()
    local norm = source.norm("norm", 24, 1e-5, true)
    local layer = source.linear("layer", 24, { { name = "a", out = 16, bias = true }, { name = "b", out = 7, bias = true } },
      not apart and norm or nil)
    local model = { linears = source.linears, device = "cuda" }
    local adapter = lora.add(model, { rank = 3, alpha = 6, dropout = 0.3, targets = { "a", "b" }, rank_pattern = { b = 2 } })
    for i, m in ipairs(adapter.modules) do call(C.lr_tensor_uniform(m.b.handle, 5, i, -0.5, 0.5)) end
    local function random(shape, seed)
      local f = tensor.new(shape, "f32", "random", "cuda")
      call(C.lr_tensor_uniform(f.handle, 3, seed, -1, 1))
      return ops.cast(f, dtype)
    end
    local ctx = { keys = tensor.from({ 5, 6, 7, 80, 81 }, { 5 }, "i64", "keys", "cuda"), training = true, seed = 3, step = 1 }
    local x, dy, y = random({ 5, 24 }, 1), random({ 5, 23 }, 2), nil
    local dx = autograd.gradient_of(function(input)
      y = nn.linear(nn.norm(copied and { w = norm.w, b = norm.b, eps = norm.eps } or norm, input), layer, ctx)
      result = { y:view({ 115 }):to_table() }
      return y
    end, { x }, { dy })
    result[2], result[3] = dx:view({ 120 }):to_table(), adapter.parameters.grad:to_table()
    adapter:free()
    for _, t in ipairs { layer.forward, layer.backward, layer.weight } do t:free() end
  end)
  return result
end

for dtype, tolerance in pairs { f32 = 1e-6, bf16 = 2e-2, f16 = 3e-3 } do
  test("one layer in " .. dtype .. ": output and gradients as with separate products", function()
    local mine, apart, copied = one_layer(dtype), one_layer(dtype, true), one_layer(dtype, false, true)
    for i, what in ipairs { "output", "gradient of the input", "gradients of the adapters" } do
      local e = check.relative(mine[i], apart[i])
      check.that(e <= tolerance, ("%s: relative difference %.3g"):format(what, e))
      check.that(dtype == "f32" or e > 0, "the same rounding: is it computed in another way at all?")
      check.array(copied[i], mine[i], 0, what .. ", of an input that was copied")
    end
  end)
end

-- In fp32 every way of using adapters is tested, in 16 bits one for each dtype, since only rounding is new there.
local function ways(arch, precision)
  local targets = ({ qwen2 = { "q_proj", "v_proj" }, bert = { "query", "value" } })[arch]
  local all, some = { precision = precision }, { precision = precision, targets = targets, recompute = 1 }
  if precision == "fp16" then return { all } elseif precision == "bf16" then return { some } end
  return { all, { precision = precision, dropout = 0, targets = targets }, some }
end

for _, arch in ipairs { "qwen2", "bert" } do
  for precision, tolerance in pairs { fp32 = 1e-4, bf16 = 6e-2, fp16 = 1e-2 } do
    test(("%s in %s: as on the CPU, and as with separate products"):format(arch, precision), function()
      for _, options in ipairs(ways(arch, precision)) do
        local mine = train(arch, "cuda", options)
        local cpu = train(arch, "cpu", options)
        options.traits = { plain_weights = false, residual_in_product = false }
        local apart = train(arch, "cuda", options)
        for what, factor in pairs { embeddings = 1, gradients = 1, adapters = 10 } do -- AdamW enlarges small gradients
          for name, other in pairs { ["the CPU"] = cpu, ["products apart"] = apart } do
            local e = check.relative(mine[what], other[what])
            check.that(e <= factor * tolerance, ("%s differ from those of %s by %.3g"):format(what, name, e))
          end
        end
        check.that(apart.kept["lora h"] or options.recompute, "products apart keep h")
        check.equal(mine.kept["lora h"], options.targets == nil or nil, "h is kept by layers that no norm feeds alone")
      end
    end)
  end

  test(arch .. ": adapters can be taken off and others put on", function()
    with_model(arch, "cuda", { dropout = 0 }, function(model)
      local first = step(model, 1)
      model.lora:free()
      model.lora = nil
      tensor.scope(function() check.equal(#model:encode(texts):to_table(), #texts) end)
      model:add_lora { rank = 4, alpha = 8, targets = "all-linear", rank_pattern = RANKS }
      for i, m in ipairs(model.lora.modules) do call(C.lr_tensor_uniform(m.b.handle, 5, i, -0.2, 0.2)) end
      model.lora.parameters.grad:fill(0)
      local again = step(model, 1)
      for i = 1, #first do check.near(again[i], first[i], 1e-6) end
    end)
  end)
end
