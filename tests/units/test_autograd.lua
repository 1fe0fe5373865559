-- The tape: every composite rule against finite differences, sharing and accumulation of gradients, recompute, lifetimes.
local C = require "lorarun.c"
local ffi = require "ffi"
local tensor = require "lorarun.tensor"
local autograd = require "lorarun.autograd"
local ops = require "lorarun.ops"
local memory = require "lorarun.memory"
local call = require "lorarun.check"

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

-- Compare the gradients of fn(unpack(inputs)) with central differences at every element of every input (or of `leaves`, tensors
-- with a .grad that fn uses by itself).
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

test("every op of ops.def has a gradient rule or says that it has none", function()
  for _, spec in ipairs(require "lorarun.ops_spec") do
    check.that(ops.gradients[spec.name], "no rule for " .. spec.name)
  end
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
    local rope = require("lorarun.nn").rope_table(5, 8, 10, tensor.default_device)
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

-- A stacked layer of two parts, with adapters on both or only the second, as lora.lua lays them out.
local function lora_layer(dropout, only_second)
  local w = random({ 7, 6 }, -0.5, 0.5)
  local layer = { forward = pack(w, 1), backward = pack(w, 2), bias = random { 7 }, n = 7, name = "layer" }
  local parts = only_second and { { 4, 7 } } or { { 0, 4 }, { 4, 7 } }
  local a = random({ 2 * #parts, 6 }, -1, 1, "A")
  a.grad = tensor.zeros { 2 * #parts, 6 }
  local lora = { a = a, a_grad = a.grad, adapters = {}, dropout = dropout, seed = 3, step = 1, purpose = 1,
    keys = tensor.from(ffi.new("int64_t[5]", 1, 2, 3, 70000, 70001), { 5 }, "i64") }
  local leaves = { a }
  for i, part in ipairs(parts) do
    local b = random({ part[2] - part[1], 2 }, -1, 1, "B")
    b.grad = tensor.zeros(b.shape)
    leaves[#leaves + 1] = b
    lora.adapters[i] = { b = b, b_grad = b.grad, from = part[1], to = part[2], r_from = 2 * i - 2, r_to = 2 * i, scale = 0.7 }
  end
  return layer, lora, leaves
end

test("projection with adapters, dropout on and off, on all and on some columns", function()
  tensor.scope(function()
    for _, dropout in ipairs { 0, 0.4 } do
      for _, only_second in ipairs { false, true } do
        local layer, lora, leaves = lora_layer(dropout, only_second)
        check_gradients("projection", function(x) return ops.projection(x, layer, lora) end, { random { 5, 6 } }, leaves)
      end
    end
    local layer = lora_layer(0)
    check_gradients("frozen projection", function(x) return ops.projection(x, layer) end, { random { 5, 6 } })
  end)
end)

test("projection onto a residual, frozen and with adapters", function()
  tensor.scope(function()
    local layer, lora, leaves = lora_layer(0.4)
    for _, adapted in ipairs { false, true } do
      check_gradients("residual", function(x, r) return ops.projection(x, layer, adapted and lora or nil, r) end,
        { random { 5, 6 }, random { 5, 7 } }, adapted and leaves or nil)
      local x, r = random { 5, 6 }, random { 5, 7 }
      local y = ops.projection(x, layer, adapted and lora or nil, r):data()
      local apart = ops.add(ops.projection(x, layer, adapted and lora or nil), r):data()
      for i = 0, 34 do check.near(y[i], apart[i], 1e-6) end
    end
  end)
end)

test("the output of a projection is given back with its last holder, though adapters wrote into columns of it", function()
  tensor.scope(function()
    local layer, lora = lora_layer(0.4)
    local x = random { 5, 6 }
    local before = memory.stats(x.device).live_bytes
    autograd.no_grad(ops.projection, x, layer, lora):release()
    check.equal(memory.stats(x.device).live_bytes, before)
  end)
end)

test("a frozen layer keeps nothing of its input, an adapted one the input alone", function()
  tensor.scope(function()
    for _, adapted in ipairs { false, true } do
      local layer, lora = lora_layer(0.4)
      local start = random { 5, 6 }
      start.grad = tensor.zeros { 5, 6 }
      autograd.gradients(function()
        local x = ops.scale(start, 2)
        local y = ops.projection(x, layer, adapted and lora or nil)
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
    local layer, lora = lora_layer(0.3)
    local x = random { 5, 6 }
    local wide = random { 6, 7 }
    local function block(t)
      local y = ops.projection(t, layer, lora)
      local z = ops.gelu(ops.matmul_nt(y, wide))
      y:release()
      return z
    end
    local function run(wrap)
      lora.a_grad:fill(0)
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
      for _, g in ipairs { lora.a_grad, lora.adapters[1].b_grad, lora.adapters[2].b_grad } do
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
    local layer, lora = lora_layer(0)
    local x = random { 5, 6 }
    local before = memory.stats().live_tensors
    for _ = 1, 3 do
      autograd.gradients(function()
        return ops.mse(ops.projection(x, layer, lora):view { 35 }, tensor.zeros { 35 })
      end)
      check.equal(memory.stats().live_tensors, before, "live tensors")
    end
    check.raises("planted", autograd.gradients, function()
      ops.projection(x, layer, lora)
      error "planted"
    end)
    check.equal(memory.stats().live_tensors, before, "live tensors after an error")
    check.raises("must return a loss", autograd.gradients, function() return x end)
  end)
end)

test("scope frees all but what it returns; a freed tensor says so", function()
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
