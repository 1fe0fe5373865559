-- run.lua: runs one file of Lua tests inside lorarun:  lorarun tests/run.lua FILE [name-part]
-- A file calls test("name", function() ... end) and, inside, the functions of `check`. After each test the allocator must hold
-- nothing that it did not hold before. Prints "N passed, N failed"; exits with 1 where a test failed or none ran. A file that this
-- machine cannot run calls skip("why") first: the status is then 77, which ctest shows as skipped.
-- LORARUN_TEST_DEVICE=cuda: tensors and models are there where the test does not say where.
local ffi = require "ffi"
local file, only = arg[1], arg[2]
local tests = {}

local SKIPPED = 77
function _G.skip(why)
  print("skipped: " .. why)
  os.exit(SKIPPED, true)
end

function _G.test(name, fn) tests[#tests + 1] = { name = name, fn = fn } end

local function fail(message) error(message, 3) end
local check = {}
_G.check = check
function check.that(ok, what) if not ok then fail(what or "not true") end return ok end
function check.equal(a, b, what)
  if a ~= b then fail(("%s is %s, expected %s"):format(what or "value", tostring(a), tostring(b))) end
end
function check.near(a, b, tolerance, what)
  if not (math.abs(a - b) <= tolerance) then
    fail(("%s is %.9g, expected %.9g within %.3g"):format(what or "value", a, b, tolerance))
  end
end
-- fn must raise an error whose text has `part` (plain) in it; returns the text
function check.raises(part, fn, ...)
  local ok, err = pcall(fn, ...)
  if ok then fail("no error was raised; expected one with '" .. part .. "'") end
  err = tostring(err)
  if not err:find(part, 1, true) then fail(("the error is '%s', which lacks '%s'"):format(err, part)) end
  return err
end
-- two arrays of numbers, element by element
function check.array(a, b, tolerance, what)
  check.equal(#a, #b, (what or "array") .. " length")
  for i = 1, #a do
    if not (math.abs(a[i] - b[i]) <= (tolerance or 0)) then
      fail(("%s[%d] is %.9g, expected %.9g within %.3g"):format(what or "array", i, a[i], b[i], tolerance or 0))
    end
  end
end
-- the distance of two arrays of numbers, |a - b| / |b|; b must not be all zero
function check.relative(a, b)
  local difference, size = 0, 0
  for i = 1, #b do difference, size = difference + (a[i] - b[i]) ^ 2, size + b[i] ^ 2 end
  check.that(size > 0, "there is nothing to compare")
  return math.sqrt(difference / size)
end

-- pairs() has no order that a result may depend on. With the compiler off it goes through every table backwards, so a test passes
-- in both runs only where what it looks at does not depend on it.
if not jit.status() then
  local sorted = require "lorarun.base.sorted"
  rawset(_G, "pairs", function(t)
    local keys = sorted.keys(t)
    local i = #keys + 1
    return function()
      repeat
        i = i - 1
      until i < 1 or rawget(t, keys[i]) ~= nil -- a key may be removed meanwhile
      if i >= 1 then return keys[i], t[keys[i]] end
    end
  end)
end

local C = require "lorarun.base.c"
local function held()
  jit.flush() -- compiled traces hold on to objects they saw
  collectgarbage() collectgarbage() collectgarbage()
  local m, tensors = ffi.new "lr_memory", 0
  for device = 0, tonumber(C.LR_DEVICE_COUNT) - 1 do
    C.lr_memory_stats(device, m)
    tensors = tensors + tonumber(m.live_storages)
  end
  return tensors, tonumber(m.host_objects)
end

-- Tests that say nothing of a device run on this one.
local device = os.getenv "LORARUN_TEST_DEVICE"
if device then
  if C.lr_device_available(require("lorarun.tensor.memory").DEVICES[device]) == 0 then _G.skip("no " .. device) end
  require("lorarun.tensor.tensor").default_device = device
end

assert(loadfile(file))()
local passed, failed = 0, 0
for _, t in ipairs(tests) do
  if not only or t.name:find(only, 1, true) then
    local tensors, objects = held()
    local ok, err = xpcall(t.fn, debug.traceback)
    if ok then
      local tensors_now, objects_now = held()
      if tensors_now > tensors or objects_now > objects then
        ok, err = false, ("leaked %d tensors, %d small allocations"):format(tensors_now - tensors, objects_now - objects)
      end
    end
    if ok then passed = passed + 1 else failed = failed + 1 end
    io.write(ok and "ok     " or "FAILED ", t.name, "\n", ok and "" or "    " .. tostring(err):gsub("\n", "\n    ") .. "\n")
    io.flush()
  end
end
print(("%d passed, %d failed"):format(passed, failed))
os.exit(failed == 0 and passed > 0 and 0 or 1, true)
