-- self_test.lua: does a device compute the right results, and how fast? Takes about a second.
--   self_test.run("cuda", 1) -> { right, wrong = { "..." }, flops, dtype, to_device, from_device (bytes a second) }
-- A small product in each precision and a norm are compared with sums in doubles; large products and copies are timed. An error of
-- the device itself is raised.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local device_traits = require "lorarun.tensor.device_traits"
local dtypes = require "lorarun.base.dtypes"
local ops = require "lorarun.tensor.ops"
local tensor = require "lorarun.tensor.tensor"

local self_test = {}

local GEMM_SECONDS, COPY_SECONDS = 0.35, 0.15 -- each direction
local SMALLEST, LARGEST = 256, 8192 -- of the products: M = N = K
local COPY_BYTES = 2 ^ 26
local TOLERANCE = { f32 = 1e-5, bf16 = 2 ^ -7 } -- of a value, or of 1 where it is smaller

-- Numbers in [-1, 1), the same on every machine.
local function numbers(count, purpose)
  local list, four = {}, ffi.new "uint32_t[4]"
  for i = 1, count do
    C.lr_random(1, purpose, 0, i, four)
    list[i] = four[0] / 2 ^ 31 - 1
  end
  return list
end

local function pack(w, dtype)
  local out = ffi.new "lr_tensor *[1]"
  check(C.lr_tensor_pack(out, w.handle, 1, dtypes.number[dtype]))
  return tensor.adopt(out[0], "self-test")
end

-- The largest difference, as a multiple of its tolerance.
local function worst(got, expected, tolerance)
  local most = 0
  for i = 1, #expected do
    local difference = math.abs(got[i] - expected[i]) / (tolerance * math.max(1, math.abs(expected[i])))
    most = difference == difference and math.max(most, difference) or math.huge
  end
  return most
end

local function flat(t) return t:view({ t:elements() }):to_table() end

local function product_differs(device, dtype)
  local m, n, k = 37, 40, 72
  return tensor.scope(function()
    local x = tensor.from(numbers(m * k, 1), { m, k }, dtype, "self-test", device)
    local w = tensor.from(numbers(n * k, 2), { n, k }, dtype, "self-test", device)
    local y = tensor.new({ m, n }, dtype, "self-test", device)
    check(C.lr_op_linear(y.handle, x.handle, pack(w, dtype).handle, nil, nil))
    local a, b, expected = flat(x), flat(w), {} -- as the dtype holds them
    for i = 0, m - 1 do
      for j = 0, n - 1 do
        local sum = 0
        for l = 1, k do sum = sum + a[i * k + l] * b[j * k + l] end
        expected[#expected + 1] = sum
      end
    end
    return worst(flat(y), expected, TOLERANCE[dtype])
  end)
end

local function norm_differs(device)
  local rows, width, eps = 5, 96, 1e-6
  return tensor.scope(function()
    local x, weight, expected = numbers(rows * width, 3), numbers(width, 4), {}
    local y = ops.rms_norm(tensor.from(x, { rows, width }, "f32", "self-test", device), nil,
      tensor.from(weight, { width }, "f32", "self-test", device), eps)
    for i = 0, rows - 1 do
      local squares = 0
      for j = 1, width do squares = squares + x[i * width + j] ^ 2 end
      for j = 1, width do expected[i * width + j] = x[i * width + j] * weight[j] / math.sqrt(squares / width + eps) end
    end
    return worst(flat(y), expected, TOLERANCE.f32)
  end)
end

-- The best rate of work(), which does `amount` in each call, and the seconds that the last call took. The first call, in which
-- libraries start and pages are mapped, does not count.
local function best_rate(device, seconds, amount, work)
  local function once()
    work()
    check(C.lr_device_wait(device_traits.DEVICES[device]))
  end
  once()
  local best, ends, taken = 0, C.lr_time() + seconds
  repeat
    local started = C.lr_time()
    once()
    taken = C.lr_time() - started
    best = math.max(best, amount / taken)
  until C.lr_time() >= ends
  return best, taken
end

-- Products of growing size while there is time. Returns the best rate, and whether all values were right.
local function large_products(device, dtype)
  local best, right, size, ends = 0, true, SMALLEST, C.lr_time() + GEMM_SECONDS
  repeat
    local rate, taken = tensor.scope(function()
      local function square(value) return tensor.full({ size, size }, value, dtype, "self-test", device) end
      local x, y, packed = square(0.5), square(0), pack(square(0.25), dtype)
      local rate, taken = best_rate(device, GEMM_SECONDS / 16, 2 * size ^ 3, function()
        check(C.lr_op_linear(y.handle, x.handle, packed.handle, nil, nil))
      end)
      for row = 0, size - 1, size / 8 - 1 do
        for _, value in ipairs(flat(y:slice_rows(row, row + 1))) do right = right and value == size / 8 end -- exact in every dtype
      end
      return rate, taken
    end)
    best, size = math.max(best, rate), size * 2
  until size > LARGEST or C.lr_time() + 9 * taken > ends -- eight times the work, and a first call
  return best, right
end

local function copies(device)
  return tensor.scope(function()
    local host, t = ffi.new("char[?]", COPY_BYTES), tensor.new({ COPY_BYTES / 4 }, "f32", "self-test", device)
    for i = 0, COPY_BYTES - 1, 4096 do host[i] = i / 4096 % 128 end
    local to = best_rate(device, COPY_SECONDS, COPY_BYTES, function()
      check(C.lr_tensor_write(t.handle, 0, COPY_BYTES / 4, host))
    end)
    local back = ffi.new("char[?]", COPY_BYTES)
    local from = best_rate(device, COPY_SECONDS, COPY_BYTES, function()
      check(C.lr_tensor_read(t.handle, 0, COPY_BYTES / 4, back))
    end)
    return to, from, ffi.string(host, COPY_BYTES) == ffi.string(back, COPY_BYTES)
  end)
end

--- run(device, index): index is the GPU's number among those that this process may use.
function self_test.run(device, index)
  if device_traits.itself(device).own_memory then
    check(C.lr_device_choose(device_traits.DEVICES[device], index))
    local missing = C.lr_device_missing(device_traits.DEVICES[device])
    if missing ~= nil then error(ffi.string(missing), 0) end
  end
  local wrong, dtype = {}, device_traits.itself(device).fp16 and "bf16" or "f32" -- the fastest products
  for _, precision in ipairs { "f32", "bf16" } do
    local share = product_differs(device, precision)
    if share > 1 then
      wrong[#wrong + 1] = ("a small %s product is off by %.3g times what rounding explains"):format(precision, share)
    end
  end
  local share = norm_differs(device)
  if share > 1 then wrong[#wrong + 1] = ("a norm is off by %.3g times what rounding explains"):format(share) end
  local flops, right = large_products(device, dtype)
  if not right then wrong[#wrong + 1] = ("large %s products have wrong values"):format(dtype) end
  local to, from, same = copies(device)
  if not same then wrong[#wrong + 1] = "what was copied there came back changed" end
  return { right = #wrong == 0, wrong = wrong, flops = flops, dtype = dtype, to_device = to, from_device = from }
end

return self_test
