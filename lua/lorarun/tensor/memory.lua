-- memory.lua: how much memory there is, what holds it, and what an out-of-memory error says of it. Devices have the names that
-- tensors give theirs, device_traits.lua's "cpu" (the default), "cuda" and "meta".
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local device_traits = require "lorarun.tensor.device_traits"
local fs = require "lorarun.base.fs"
local sorted = require "lorarun.base.sorted"
local units = require "lorarun.base.units"

local memory = {}
local stats = ffi.new "lr_memory"
local text = ffi.new "char[16384]"

--- Numbers of devices by name.
memory.DEVICES = device_traits.DEVICES

--- number_of(device): its number in C; an error where there is no such device.
function memory.number_of(device)
  return memory.DEVICES[device or "cpu"] or check.fail("there is no device '%s'; there are %s", tostring(device),
    table.concat(sorted.keys(memory.DEVICES), ", "))
end

--- stats(device): { live_bytes, live_tensors, peak_bytes, reserved_bytes, scratch_bytes, host_objects }
function memory.stats(device)
  check(C.lr_memory_stats(memory.number_of(device), stats))
  return { live_bytes = tonumber(stats.live_bytes), live_tensors = tonumber(stats.live_storages),
    peak_bytes = tonumber(stats.peak_bytes), reserved_bytes = tonumber(stats.reserved_bytes),
    scratch_bytes = tonumber(stats.scratch_bytes), host_objects = tonumber(stats.host_objects) }
end

--- Count the peak again from what is held now.
function memory.reset_peak(device) check(C.lr_memory_reset_peak(memory.number_of(device))) end

-- The most that tensors of a device may take, by its number: what the user set, and what a run keeps to. The smaller counts.
local own_limits, run_limits = {}, {}

local function set_limit(limits, bytes, device)
  local number = memory.number_of(device)
  limits[number] = bytes
  local least = math.min(own_limits[number] or math.huge, run_limits[number] or math.huge)
  check(C.lr_memory_limit(number, least < math.huge and math.floor(least) or 0))
end

--- limit(bytes, device): let tensors take no more than this many bytes, for which memory kept for reuse is given back. nil: no
--- limit. It holds until the next call; a run keeps within it, and may keep to less.
function memory.limit(bytes, device)
  if bytes ~= nil and not (type(bytes) == "number" and bytes >= 1 and bytes <= 2 ^ 53) then
    check.fail("memory.limit: %s is no number of bytes; nil takes the limit away", type(bytes) == "string" and "'" .. bytes .. "'"
      or tostring(bytes))
  end
  set_limit(own_limits, bytes, device)
end

--- restrict(bytes, device): the limit of a run (recompute.lua), beside the user's own, which stays as it is; nil: none.
function memory.restrict(bytes, device) set_limit(run_limits, bytes and math.max(1, bytes), device) end

--- left(device): bytes that tensors may still take by the user's limit; math.huge where there is none.
function memory.left(device)
  local limit = own_limits[memory.number_of(device)]
  return limit and limit - memory.stats(device).live_bytes or math.huge
end

--- holders(lines, device): { { name, buffers, bytes } ... }, largest first.
function memory.holders(lines, device)
  check(C.lr_memory_holders(memory.number_of(device), lines or 10, text, ffi.sizeof(text)))
  local list = {}
  for name, count, bytes in ffi.string(text):gmatch("([^\t\n]*)\t(%d+)\t(%d+)\n") do
    list[#list + 1] = { name = name, buffers = tonumber(count), bytes = tonumber(bytes) }
  end
  return list
end

--- bounds(): what limits the memory of this process: a list of { bytes = how many are left, what = which limit, nil for the free
--- memory of the machine, each = does every process have this much for itself? }.
function memory.bounds()
  local list, bound = {}, ffi.new "lr_memory_bound"
  local kib = (fs.contents "/proc/meminfo" or ""):match "MemAvailable:%s+(%d+) kB"
  if kib then list[1] = { bytes = tonumber(kib) * 1024 } end
  local function add(status, each)
    if check(status) == C.LR_OK and bound.what[0] ~= 0 then
      list[#list + 1] = { bytes = tonumber(bound.left), what = ffi.string(bound.what), each = each }
    end
  end
  add(C.lr_memory_left_by_group(bound), false)
  add(C.lr_memory_left_by_data(bound), true)
  local addresses = memory.limit_text(C.LR_LIMIT_ADDRESSES)
  if addresses then
    list[#list + 1] = { bytes = tonumber(C.lr_memory_addresses_left(C.LR_CPU)), what = addresses, each = true }
  end
  return list
end

--- available(device): bytes of a device's memory that this process may still have, and what limits them where that is not the
--- memory itself; nil where the system does not say.
function memory.available(device)
  if device_traits.itself(device).own_memory then
    local free, total = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
    check(C.lr_device_memory(memory.DEVICES[device], free, total))
    return tonumber(free[0])
  end
  local least
  for _, bound in ipairs(memory.bounds()) do
    if not least or bound.bytes < least.bytes then least = bound end
  end
  if least then return least.bytes, least.what end
end

--- device_text(device): one line about a device: its name, cores or memory, libraries.
function memory.device_text(device)
  check(C.lr_device_describe(memory.number_of(device), text, 512))
  return ffi.string(text)
end

local OPTIONS = { [tonumber(C.LR_LIMIT_ADDRESSES)] = "-v", [tonumber(C.LR_LIMIT_DATA)] = "-d", [tonumber(C.LR_LIMIT_FILE_SIZE)] =
  "-f", [tonumber(C.LR_LIMIT_FILES)] = "-n", [tonumber(C.LR_LIMIT_PROCESSES)] = "-u" }

--- limit_text(kind): "ulimit -v: 4.1 GB" of a limit of this process (lr.h), or nil where there is none.
function memory.limit_text(kind)
  local limit = tonumber(C.lr_limit(kind))
  if limit < 0 then return nil end
  local counts = kind == C.LR_LIMIT_FILES or kind == C.LR_LIMIT_PROCESSES
  return ("ulimit %s: %s"):format(OPTIONS[tonumber(kind)], counts and ("%d"):format(limit) or units.size(limit))
end

local doing -- what a training run is doing: see during()

--- during(what, fn, ...): call fn; an out-of-memory error in it tells what it was doing. what: { step, tokens and pairs of the
--- micro-batch (nil: not known), saved = the step of the newest checkpoint or nil }; fn may change it. Returns fn's result.
function memory.during(what, fn, ...)
  local before = doing
  doing = what
  local ok, result = pcall(fn, ...)
  doing = before
  if not ok then error(result, 0) end
  return result
end

-- The device that a message of C is about: "out of cuda memory".
local function device_of(message)
  for device in sorted(device_traits.KINDS) do
    if message:find(device .. " memory", 1, true) then return device end
  end
  return "cpu"
end

--- explain(message): the text of an out-of-memory error: what was being done, the table of holders, what would need less.
function memory.explain(message)
  local lines, at = { message }, doing
  if at then
    lines[#lines + 1] = ("  in step %d%s"):format(at.step, at.tokens
      and (", in a batch of %d tokens (%d pairs)"):format(at.tokens, at.pairs) or "")
  end
  lines[#lines + 1] = "  held now, largest first:"
  for _, h in ipairs(memory.holders(8, device_of(message))) do
    lines[#lines + 1] = ("    %10s  %5d  %s"):format(units.size(h.bytes), h.buffers, h.name)
  end
  lines[#lines + 1] = "  to need less: a smaller --batch, a smaller --max-length, --recompute all, or --precision bf16"
  if at and at.saved then
    lines[#lines + 1] = ("  the checkpoint of step %d is whole: %s goes on from it"):format(at.saved,
      require("lorarun.base.args").to_resume() or "lr.train with resume = \"latest\"")
  end
  return table.concat(lines, "\n")
end
check.explain_out_of_memory(memory.explain)

return memory
