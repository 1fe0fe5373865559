-- The tape: every composite rule against finite differences, sharing and accumulation of gradients, recompute, lifetimes.
local C = require "lorarun.base.c"
local ffi = require "ffi"
local tensor = require "lorarun.tensor.tensor"
local autograd = require "lorarun.tensor.autograd"
local ops = require "lorarun.tensor.ops"
local memory = require "lorarun.tensor.memory"
local lora_linear = require "lorarun.models.lora_linear"
local call = require "lorarun.base.check"

local seed = 0
local function random(shape, lo, hi, name)
  seed = seed + 1
  local t = tensor.new(shape, "f32", name or "random")
  call(C.lr_tensor_uniform(t.handle, 17, seed, lo or -1, hi or 1))
  return t
end

-- A scalar function of fn's results: their dot product with fixed weights, accumulated in double.
local function weighted_sum(weights, ...)
  local s = 0
  for i = 1, select("#", ...) do
    local values, n = select(i, ...):data()
    local w = weights[i]:data()
    for k = 0, n - 1 do s = s + values[k] * w[k] end
  end
  return s
end

-- Compare the gradients of fn(unpack(inputs)) with central differences at every element of every input. (If fn uses tensors with a
-- .grad that are not among its inputs, `leaves` lists those instead.)
local function check_gradients(what, fn, inputs, leaves, tolerance)
  tensor.scope(function()
    local weights = {}
    for i, y in ipairs { autograd.no_grad(fn, unpack(inputs)) } do weights[i] = random(y.shape) end
    for _, leaf in ipairs(leaves or {}) do leaf.grad:fill(0) end
    local grads = { autograd.gradient_of(fn, inputs, { unpack(weights) }) }
    local all = {}
    for i, t in ipairs(inputs) do all[#all + 1] = { t = t, g = grads[i] } end
    for _, leaf in ipairs(leaves or {}) do all[#all + 1] = { t = leaf, g = leaf.grad } end
    local step = 2e-3
    for i, item in ipairs(all) do
      check.that(item.g, ("%s: no gradient for input %d"):format(what, i))
      local g = item.g:data()
      local values, n = item.t:data()
      for k = 0, n - 1 do
        local old = values[k]
        local function at(x)
          values[k] = x
          item.t:write(values)
          return tensor.scope(function() return weighted_sum(weights, autograd.no_grad(fn, unpack(inputs))) end)
        end
        local numeric = (at(old + step) - at(old - step)) / (2 * step)
        at(old)
        check.near(g[k], numeric, tolerance or 4e-3 * math.max(1, math.abs(numeric)),
          ("%s: input %d element %d"):format(what, i, k))
      end
    end
  end)
end

local function pack(w, direction)
  local out = ffi.new "lr_tensor *[1]"
  call(C.lr_tensor_pack(out, w.handle, direction, C.LR_F32))
  return tensor.adopt(out[0], "packed")
end

-- A stacked layer of two parts, with adapters on both or only on the second, as lora.lua lays them out; the context of a forward
-- pass; and the adapters' matrices.
local function lora_layer(dropout, only_second)
  local w = random({ 7, 6 }, -0.5, 0.5)
  local layer = { forward = pack(w, 1), backward = pack(w, 2), bias = random { 7 }, k = 6, n = 7, name = "layer" }
  local parts = only_second and { { 4, 7 } } or { { 0, 4 }, { 4, 7 } }
  local a = random({ 2 * #parts, 6 }, -1, 1, "A")
  a.grad = tensor.zeros { 2 * #parts, 6 }
  local lora = { a = a, adapters = {}, dropout = dropout, purpose = 1 }
  local ctx = { training = true, seed = 3, step = 1,
    keys = tensor.from(ffi.new("int64_t[5]", 1, 2, 3, 70000, 70001), { 5 }, "i64") }
  local leaves = { a }
  for i, part in ipairs(parts) do
    local b = random({ part[2] - part[1], 2 }, -1, 1, "B")
    b.grad = tensor.zeros(b.shape)
    leaves[#leaves + 1] = b
    lora.adapters[i] = { b = b, b_grad = b.grad, from = part[1], to = part[2], r_from = 2 * i - 2, r_to = 2 * i, scale = 0.7 }
  end
  lora_linear.attach(layer, lora)
  return layer, ctx, leaves
end

-- The layer of lora_layer with its adapters; if ctx is nil, without them.
local function linear(x, layer, ctx, r)
  if ctx then return lora_linear.forward(x, layer, ctx, r) end
  return ops.linear(x, layer, r)
end

-- ---- every input of every op ---------------------------------------------------------------------------------------------------
-- A check of the gradient of one input, with the function of ops.lua that records it.
local function differs(name, what, fn, inputs, leaves)
  return { name = name, check = function() check_gradients(what, fn, inputs(), leaves and leaves()) end }
end

-- An input that has no gradient: fn(t) is refused if t needs one, and works if it needs none.
local function refused(name, what, fn, input)
  return { name = name, check = function()
    local t = input()
    local y = autograd.no_grad(fn, t)
    check.raises("has no gradient for '", autograd.gradient_of, fn, { t }, { y })
    check.equal(t.needs_grad, false, what)
  end }
end

local function one(...) local shape = { ... } return function() return { random(shape) } end end
local function two(...) local shape = { ... } return function() return { random(shape), random(shape) } end end
local function of(...) local shape = { ... } return function() return random(shape, 0.5, 1.5) end end

-- "op.input" of ops.def -> how its gradient is covered. An op that is missing here must have no function in ops.lua.
local function coverage()
  local rows, ids = tensor.from({ 2, 0 }, { 2 }, "i32"), tensor.from({ 1, 0, 1 }, { 3 }, "i32")
  local cu = tensor.from({ 0, 1, 3 }, { 3 }, "i32")
  local positions = tensor.from({ 0, 0, 1 }, { 3 }, "i32")
  local w, b = random({ 4 }, 0.5, 1.5), random { 4 }
  local qkv = function() return { random { 3, 24 } } end
  local function spec(rope) return { heads = 1, kv_heads = 1, head_dim = 8, causal = true, cu_seqlens = cu, max_length = 2,
    rope = rope, positions = positions } end
  local table_ = require("lorarun.models.nn").rope_table(2, 8, 10, tensor.default_device)
  local function attend(x) return ops.self_attention(ops.scale(x, 1), spec(table_)) end
  local function layer_with(changes)
    local layer = lora_layer(0)
    for key, value in pairs(changes) do layer[key] = value end
    return layer
  end
  local dropped = {}
  dropped.layer, dropped.ctx = lora_layer(0.4)
  local list = {
    ["embedding.table"] = refused("embedding", "table", function(t) return ops.embedding(t, ids) end, of(2, 4)),
    ["embedding.y"] = refused("embedding", "into", function(t) return ops.embedding(random { 2, 4 }, ids, t) end, of(3, 4)),
    ["cast.x"] = differs("cast", "cast", function(x) return ops.cast(x, "f32") end, one(3, 4)),
    ["gather_rows.x"] = differs("gather_rows", "gather_rows", function(x) return ops.gather_rows(x, rows) end, one(3, 4)),
    ["linear.w"] = refused("linear", "w", function(t) return linear(random { 5, 6 }, layer_with { forward = t }) end,
      function() return pack(random { 7, 6 }, 1) end),
    ["linear.b"] = refused("linear", "b", function(t) return linear(random { 5, 6 }, layer_with { bias = t }) end,
      of(7)),
    ["rms_norm.w"] = refused("rms_norm", "w", function(t) return (ops.rms_norm(random { 3, 4 }, nil, t, 1e-6)) end, of(4)),
    ["layer_norm.w"] = refused("layer_norm", "w", function(t) return (ops.layer_norm(random { 3, 4 }, nil, t, b, 1e-6)) end, of(4)),
    ["layer_norm.b"] = refused("layer_norm", "b", function(t) return (ops.layer_norm(random { 3, 4 }, nil, w, t, 1e-6)) end, of(4)),
    ["rope.cos_sin"] = refused("self_attention", "rope", function(t) return ops.self_attention(random { 3, 24 }, spec(t)) end,
      function() return require("lorarun.models.nn").rope_table(2, 8, 10, tensor.default_device) end),
    ["gelu.x"] = differs("gelu", "gelu", function(x) return ops.gelu(x) end, one(3, 4)),
    ["swiglu.gu"] = differs("swiglu", "swiglu", function(x) return ops.swiglu(x) end, one(3, 8)),
    ["pool.x"] = differs("pool", "pool", function(x) return ops.pool(x, cu, "mean") end, one(3, 4)),
    ["l2_normalize.x"] = differs("normalize", "normalize", ops.normalize, one(3, 4)),
    ["cross_entropy.scores"] = differs("cross_entropy", "cross_entropy", function(x) return ops.cross_entropy(x, ids) end,
      one(3, 4)),
    ["dropout.x"] = differs("lora_linear", "dropout", function(x)
      return linear(x, dropped.layer, dropped.ctx)
    end, one(5, 6)),
    -- functions that stand for no single op of ops.def
    ["scale"] = differs("scale", "scale", function(x) return ops.scale(x, -2) end, one(3, 4)),
    ["rows"] = differs("rows", "rows", function(x) return ops.rows(x, 1, 3), x:slice_rows(0, 2) end, one(3, 4)),
    ["columns"] = differs("columns", "columns", function(x)
      return ops.cast(ops.columns(x, 1, 3), "f32"), ops.cast(x:slice_columns(0, 2), "f32")
    end, one(3, 4)),
    ["view"] = differs("view", "view", function(x) return ops.view(x, { 2, 2 }, 4), x:view { 12 } end, one(3, 4)),
  }
  -- Several inputs: check_gradients looks at each of them.
  local function both(names, row)
    for name in names:gmatch "%S+" do list[name] = row end
  end
  both("add.a add.b", differs("add", "add", function(x, y) return ops.add(x, y, 0.5, -2) end, two(3, 4)))
  both("mul.a mul.b", differs("mul", "mul", ops.mul, two(3, 4)))
  both("matmul_nt.a matmul_nt.b", differs("matmul_nt", "matmul_nt", function(x, y) return ops.matmul_nt(x, y, 1.5) end, two(3, 4)))
  both("row_dot.a row_dot.b", differs("row_dot", "row_dot", ops.row_dot, two(3, 4)))
  both("mse.x mse.y", differs("mse", "mse", ops.mse, two(4)))
  both("rms_norm.x rms_norm.r", differs("rms_norm", "rms_norm", function(x, r) return ops.rms_norm(x, r, w, 1e-6) end, two(3, 4)))
  both("layer_norm.x layer_norm.r", differs("layer_norm", "layer_norm", function(x, r)
    return ops.layer_norm(x, r, w, b, 1e-5)
  end, two(3, 4)))
  both("rope.x attention.q attention.k attention.v", differs("self_attention", "attention", attend, qkv))
  both("linear.x linear.r", { name = "linear", check = function()
    local layer = lora_layer(0)
    check_gradients("linear", function(x, r) return linear(x, layer, nil, r) end, { random { 5, 6 }, random { 5, 7 } })
  end })
  return list
end

local FLOATS = { a = true, f32 = true, x = true, y = true, z = true, pf = true, pb = true }

test("every floating-point input of every op of ops.def has its gradient, or is refused if it would need one", function()
  tensor.scope(function()
    local list, functions, checked = coverage(), {}, {}
    for _, spec in ipairs(require "lorarun.ops_spec") do
      check.that(ops.gradients[spec.name], ("%s: ops.lua says nothing of its gradient"):format(spec.name))
      local covered = false
      for _, arg in ipairs(spec.args) do
        covered = covered or list[spec.name .. "." .. arg.name] ~= nil
      end
      -- only a gradient rule or the optimizer calls it, so it is never recorded
      if not covered then check.equal(ops[spec.name], nil, ("ops.%s, of which no gradient is checked,"):format(spec.name)) end
      for _, arg in ipairs(covered and spec.args or {}) do
        if not arg.output and FLOATS[arg.dtype] then
          local key = spec.name .. "." .. arg.name
          check.that(list[key], key .. ": no check of its gradient, nor that it is refused")
        end
      end
    end
    for _, row in pairs(list) do
      functions[row.name] = true
      if not checked[row] then row.check() end
      checked[row] = true
    end
    for name, fn in pairs(ops) do
      check.that(type(fn) ~= "function" or functions[name], ("ops.%s: no check of its gradients"):format(name))
      check.that(type(fn) ~= "function" or ops.tensors[name], ("ops.tensors lacks ops.%s"):format(name))
    end
  end)
end)

test("a loss that could teach nothing is refused: no tensor, no scalar, independent of parameters, values overwritten", function()
  tensor.scope(function()
    local x, target = random { 3, 4 }, random { 3, 4 }
    x.grad = tensor.zeros { 3, 4 }
    local function mean(a, b) return ops.mse(a:view { 12 }, b:view { 12 }) end
    for part, fn in pairs {
      ["the loss is a number, expected a tensor of one element: without :item()"] = function() return 1.5 end,
      ["the loss is a nil, expected a tensor of one element"] = function() end,
      ["the loss has the shape [3], expected one element"] = function() return ops.row_dot(x, target) end,
      ["the loss depends on no parameter"] = function() return ops.mse(random { 3 }, random { 3 }) end,
      ["the loss is bf16, expected f32"] = function() return ops.cast(mean(x, target):view { 1, 1 }, "bf16") end,
      ["'random' is a view of a tensor that needs a gradient"] = function() return ops.gelu(x:matrix():view({ 12 }):matrix()) end,
      ["no gradient for 'sum', which needs one"] = function()
        return ops.row_dot(require("lorarun.dist.comm").all_gather(ops.add(x, x)), target)
      end,
      ["fill(): 'sum' is part of a loss"] = function() return ops.add(x, x):fill(0) end,
      ["write(): 'random' is part of a loss"] = function()
        local y = ops.mul(x, target)
        target:write(target:data())
        return y
      end,
      ["lr.gradients takes a function that returns the loss, got a nil"] = false,
    } do
      check.raises(part, autograd.gradients, fn or nil)
      check.equal(target.saved, 0, "what was saved for a backward that never came")
    end
    target:fill(0) -- no tape entry needs it any more
    -- a parameter itself, and the tensor that it is a view of
    local flat, grad = random { 6 }, tensor.zeros { 6 }
    local part = flat:view({ 3 }, 3)
    flat.grad, part.grad = grad, grad:view({ 3 }, 3)
    autograd.gradients(function() return ops.mse(flat, tensor.zeros { 6 }) end)
    autograd.gradients(function() return ops.mse(part, tensor.zeros { 3 }) end)
    local g, v = grad:data(), flat:data()
    for i = 0, 5 do check.near(g[i], 2 * v[i] / 6 + (i >= 3 and 2 * v[i] / 3 or 0), 1e-6) end
  end)
end)

test("add, scale, mul, rows, gather_rows, cast", function()
  tensor.scope(function()
    local a, b = random { 4, 3 }, random { 4, 3 }
    check_gradients("add", function(x, y) return ops.add(x, y) end, { a, b })
    check_gradients("add with factors", function(x, y) return ops.add(x, y, 0.5, -2) end, { a, b })
    check_gradients("operators", function(x, y) return x * 3 - y * x + (-y) end, { a, b })
    check_gradients("the same tensor twice", function(x) return ops.mul(ops.add(x, x), x) end, { a })
    check_gradients("rows", function(x) return ops.rows(x, 1, 3), ops.rows(x, 2, 4) end, { a })
    local rows = tensor.from({ 3, 0 }, { 2 }, "i32")
    check_gradients("gather_rows", function(x) return ops.gather_rows(x, rows) end, { a })
    check_gradients("cast", function(x) return ops.cast(x, "f32") end, { a })
  end)
end)

test("matmul_nt, row_dot, normalize, mse, cross_entropy", function()
  tensor.scope(function()
    local a, b = random { 3, 5 }, random { 4, 5 }
    check_gradients("matmul_nt", function(x, y) return ops.matmul_nt(x, y, 1.5) end, { a, b })
    local c = random { 3, 5 }
    check_gradients("row_dot", ops.row_dot, { a, c })
    check_gradients("normalize", ops.normalize, { a })
    local labels = tensor.from { 0, 1, 0.5 }
    check_gradients("mse", function(x) return ops.mse(x, labels) end, { random { 3 } })
    local index = tensor.from({ 2, 0, 4 }, { 3 }, "i32")
    check_gradients("cross_entropy", function(x) return ops.cross_entropy(x, index) end, { a })
  end)
end)

test("norms with and without a residual, both outputs in use", function()
  tensor.scope(function()
    local x, r, w, b = random { 3, 8 }, random { 3, 8 }, random({ 8 }, 0.5, 1.5), random { 8 }
    check_gradients("rms_norm", function(a) return (ops.rms_norm(a, nil, w, 1e-6)) end, { x })
    check_gradients("rms_norm + residual", function(a, c) return ops.rms_norm(a, c, w, 1e-6) end, { x, r })
    check_gradients("layer_norm", function(a) return (ops.layer_norm(a, nil, w, b, 1e-5)) end, { x })
    check_gradients("layer_norm + residual", function(a, c) return ops.layer_norm(a, c, w, b, 1e-5) end, { x, r })
    check_gradients("residual used again", function(a, c)
      local y, s = ops.rms_norm(a, c, w, 1e-6)
      return ops.add(y, s), (ops.rms_norm(y, s, w, 1e-6))
    end, { x, r })
    check_gradients("only the sum used", function(a, c) return (select(2, ops.rms_norm(a, c, w, 1e-6))) end, { x, r })
  end)
end)

test("activations and pooling", function()
  tensor.scope(function()
    local x = random({ 3, 8 }, -3, 3)
    check_gradients("gelu", function(a) return ops.gelu(a) end, { x })
    check_gradients("gelu tanh", function(a) return ops.gelu(a, "tanh") end, { x })
    check_gradients("swiglu", ops.swiglu, { x })
    local cu = tensor.from({ 0, 1, 3 }, { 3 }, "i32")
    for mode in pairs(ops.pooling_modes) do
      check_gradients("pool " .. mode, function(a) return ops.pool(a, cu, mode) end, { x })
    end
    check.raises("there is no pooling 'max'", ops.pool, x, cu, "max")
  end)
end)

test("self_attention: causal and full, grouped heads, RoPE, packed lengths 1 to 5", function()
  tensor.scope(function()
    local cu = tensor.from({ 0, 1, 6, 8 }, { 4 }, "i32")
    local positions = tensor.from({ 0, 0, 1, 2, 3, 4, 0, 1 }, { 8 }, "i32")
    local rope = require("lorarun.models.nn").rope_table(5, 8, 10, tensor.default_device)
    for _, spec in ipairs {
      { heads = 2, kv_heads = 2, causal = false }, { heads = 2, kv_heads = 1, causal = true },
      { heads = 4, kv_heads = 2, causal = true, rope = rope, positions = positions } } do
      spec.head_dim, spec.cu_seqlens, spec.max_length = 8, cu, 5
      local qkv = random { 8, (spec.heads + 2 * spec.kv_heads) * 8 }
      check_gradients("attention", function(x)
        return ops.self_attention(ops.scale(x, 1), spec) -- a copy: RoPE overwrites its input
      end, { qkv })
    end
  end)
end)

test("a linear layer with adapters, dropout on and off, on all and on some columns", function()
  tensor.scope(function()
    for _, dropout in ipairs { 0, 0.4 } do
      for _, only_second in ipairs { false, true } do
        local layer, ctx, leaves = lora_layer(dropout, only_second)
        check_gradients("linear", function(x) return linear(x, layer, ctx) end, { random { 5, 6 } }, leaves)
      end
    end
    local layer = lora_layer(0)
    check_gradients("frozen linear", function(x) return linear(x, layer) end, { random { 5, 6 } })
  end)
end)

test("a linear layer that adds to a residual, frozen and with adapters", function()
  tensor.scope(function()
    local layer, ctx, leaves = lora_layer(0.4)
    for _, adapted in ipairs { false, true } do
      check_gradients("residual", function(x, r) return linear(x, layer, adapted and ctx or nil, r) end,
        { random { 5, 6 }, random { 5, 7 } }, adapted and leaves or nil)
      local x, r = random { 5, 6 }, random { 5, 7 }
      local y = linear(x, layer, adapted and ctx or nil, r):data()
      local apart = ops.add(linear(x, layer, adapted and ctx or nil), r):data()
      for i = 0, 34 do check.near(y[i], apart[i], 1e-6) end
    end
  end)
end)

test("the output of a linear layer is freed when nothing holds it any more, although adapters wrote into its columns", function()
  tensor.scope(function()
    local layer, ctx = lora_layer(0.4)
    local x = random { 5, 6 }
    local before = memory.stats(x.device).live_bytes
    autograd.no_grad(linear, x, layer, ctx):release()
    check.equal(memory.stats(x.device).live_bytes, before)
  end)
end)

test("a frozen layer keeps nothing for backward, one with adapters only its input", function()
  tensor.scope(function()
    for _, adapted in ipairs { false, true } do
      local layer, ctx = lora_layer(0.4)
      local start = random { 5, 6 }
      start.grad = tensor.zeros { 5, 6 }
      autograd.gradients(function()
        local x = ops.scale(start, 2)
        local y = linear(x, layer, adapted and ctx or nil)
        check.equal(x.saved, adapted and 1 or 0, "holders of the input")
        check.equal(y.saved, 0, "holders of the output")
        local before = memory.stats(x.device).live_bytes
        x:release()
        check.equal(memory.stats(x.device).live_bytes < before, not adapted, "the input was freed")
        return ops.mse(ops.row_dot(y, y), tensor.zeros { 5 })
      end)
    end
  end)
end)

test("recompute gives the same bits as keeping, and less memory", function()
  tensor.scope(function()
    local layer, ctx = lora_layer(0.3)
    local x = random { 5, 6 }
    local wide = random { 6, 7 }
    local function block(t)
      local y = linear(t, layer, ctx)
      local z = ops.gelu(ops.matmul_nt(y, wide))
      y:release()
      return z
    end
    local function run(wrap)
      local lora = layer.lora
      lora.a.grad:fill(0)
      for _, adapter in ipairs(lora.adapters) do adapter.b_grad:fill(0) end
      local value = autograd.gradients(function()
        local t = ops.scale(x, 1)
        for _ = 1, 3 do
          local before = t
          t = wrap and autograd.recompute(block, t) or block(t)
          before:release()
        end
        local n = t:view { 30 }
        return ops.mse(n, tensor.zeros { 30 })
      end)
      local grads = { value }
      for _, g in ipairs { lora.a.grad, lora.adapters[1].b_grad, lora.adapters[2].b_grad } do
        for _, row in ipairs(g:to_table()) do
          for _, v in ipairs(row) do grads[#grads + 1] = v end
        end
      end
      return grads
    end
    check.array(run(true), run(false), 0, "loss and gradients")
  end)
end)

test("gradients() frees everything it made, also after an error", function()
  tensor.scope(function()
    local layer, ctx = lora_layer(0)
    local x = random { 5, 6 }
    local before = memory.stats().live_tensors
    for _ = 1, 3 do
      autograd.gradients(function()
        return ops.mse(linear(x, layer, ctx):view { 35 }, tensor.zeros { 35 })
      end)
      check.equal(memory.stats().live_tensors, before, "live tensors")
    end
    check.raises("planted", autograd.gradients, function()
      linear(x, layer, ctx)
      error "planted"
    end)
    check.equal(memory.stats().live_tensors, before, "live tensors after an error")
    check.raises("expected one element", autograd.gradients, function() return x end)
  end)
end)

test("scope frees all but what it returns; using a freed tensor is an error that says so", function()
  local kept, other = tensor.scope(function()
    local a, b = random { 2, 2 }, random { 2, 2 }
    return ops.add(a, b), { inner = random { 2 } }
  end)
  check.equal(#kept:to_table(), 2)
  check.equal(#other.inner:to_table(), 2)
  kept:free()
  other.inner:free()
  check.raises("'sum' was freed and is used again", kept.to_table, kept)
  check.raises("was freed and is used again", ops.add, kept, kept)
end)

test("a wrong shape, dtype or device is one clear error", function()
  tensor.scope(function()
    local a, b = random { 2, 3 }, random { 2, 4 }
    check.raises("expected [N,W] with W = 3 as in y", ops.add, a, b)
    check.raises("is i32, expected", ops.add, a, tensor.from({ 1, 2, 3, 4, 5, 6 }, { 2, 3 }, "i32"))
    check.raises("is on meta but", ops.add, a, tensor.new({ 2, 3 }, "f32", "m", "meta"))
    check.raises("every dimension must be at least 1", tensor.new, { 0, 3 })
    check.raises("there is no dtype 'f64'", tensor.new, { 3 }, "f64")
  end)
end)

test("the meta device takes the same steps without bytes", function()
  tensor.scope(function()
    local x = tensor.new({ 1000000, 1000 }, "f32", "huge", "meta")
    local y = ops.gelu(x)
    check.equal(y.device, "meta")
    check.equal(y.shape[1], 1000000)
    check.raises("has no values", y.data, y)
  end)
end)
