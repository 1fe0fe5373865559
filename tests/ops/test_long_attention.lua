-- Long sequences: causal attention cannot look ahead, so the first part of a long sequence gives what it gives alone, forward
-- and backward (where nothing after it has a gradient).
local C = require "lorarun.base.c"
local call = require "lorarun.base.check"
local tensor = require "lorarun.tensor.tensor"
local ops = require "lorarun.tensor.ops"
local autograd = require "lorarun.tensor.autograd"

local LONG, SHORT, HEADS, KV, DIM = 2600, 700, 4, 2, 64
local WIDTH = (HEADS + 2 * KV) * DIM

local function run(qkv, d_out, length)
  local spec = { heads = HEADS, kv_heads = KV, head_dim = DIM, causal = true, max_length = length,
    cu_seqlens = tensor.from({ 0, length }, { 2 }, "i32") }
  local o
  local dqkv = autograd.gradient_of(function(x)
    o = ops.self_attention(x, spec)
    return o
  end, { qkv }, { d_out })
  return o, dqkv
end

test("the first 700 of 2,600 tokens, forward and backward", function()
  tensor.scope(function()
    local qkv = tensor.new({ LONG, WIDTH }, "f32", "qkv")
    call(C.lr_tensor_uniform(qkv.handle, 1, 1, -1, 1))
    local d_out = tensor.zeros { LONG, HEADS * DIM }
    local head = d_out:slice_rows(0, SHORT)
    call(C.lr_tensor_uniform(head.handle, 1, 2, -1, 1))
    local o, dqkv = run(qkv, d_out, LONG)
    local o_short, dqkv_short = run(qkv:slice_rows(0, SHORT), head, SHORT)
    for what, pair in pairs { output = { o, o_short }, gradient = { dqkv, dqkv_short } } do
      local a, b = pair[1]:data(), pair[2]:data()
      local worst = 0
      for i = 0, SHORT * pair[2].shape[2] - 1 do worst = math.max(worst, math.abs(a[i] - b[i])) end
      check.that(worst < 2e-5, ("%s differs by %.3g"):format(what, worst))
    end
    local rest, largest = dqkv:data(), 0
    for i = SHORT * WIDTH, LONG * WIDTH - 1 do largest = math.max(largest, math.abs(rest[i])) end
    check.equal(largest, 0, "gradient of tokens that nothing came from")
  end)
end)
