-- memory.lua: how much memory there is, what holds it, and what an out-of-memory error says of it. Devices are named as tensors
-- name theirs: "cpu" (unless told otherwise), "cuda", "meta".
local ffi = require "ffi"
local C = require "lorarun.c"
local check = require "lorarun.check"

local memory = {}
local stats = ffi.new "lr_memory"
local text = ffi.new "char[16384]"

--- Numbers of devices by name.
memory.DEVICES = { cpu = C.LR_CPU, cuda = C.LR_CUDA, meta = C.LR_META }

local function number_of(device)
  return memory.DEVICES[device or "cpu"] or check.fail("there is no device '%s'; there are cpu, cuda, meta", tostring(device))
end

--- stats(device): { live_bytes, live_tensors, peak_bytes, reserved_bytes, scratch_bytes, host_objects }
function memory.stats(device)
  check(C.lr_memory_stats(number_of(device), stats))
  return { live_bytes = tonumber(stats.live_bytes), live_tensors = tonumber(stats.live_storages),
    peak_bytes = tonumber(stats.peak_bytes), reserved_bytes = tonumber(stats.reserved_bytes),
    scratch_bytes = tonumber(stats.scratch_bytes), host_objects = tonumber(stats.host_objects) }
end

--- Count the peak anew from what is held now.
function memory.reset_peak(device) check(C.lr_memory_reset_peak(number_of(device))) end

--- limit(bytes, device): let tensors take no more than so many bytes; what is kept for reuse gives way; nil: as many as there are.
function memory.limit(bytes, device) check(C.lr_memory_limit(number_of(device), bytes or 0)) end

--- holders(lines, device): { { name, buffers, bytes } ... }, largest first.
function memory.holders(lines, device)
  check(C.lr_memory_holders(number_of(device), lines or 10, text, ffi.sizeof(text)))
  local list = {}
  for name, count, bytes in ffi.string(text):gmatch("([^\t\n]*)\t(%d+)\t(%d+)\n") do
    list[#list + 1] = { name = name, buffers = tonumber(count), bytes = tonumber(bytes) }
  end
  return list
end

local function contents(path)
  local f = io.open(path, "r")
  local all = f and f:read "*a"
  if f then f:close() end
  return all
end

-- Bytes that the control group of this process (a container, a job of Slurm) leaves it, or nil where it sets no limit.
local function left_by_group()
  local group = (contents "/proc/self/cgroup" or ""):match "0::([^\n]*)"
  if not group then return nil end
  local folder = "/sys/fs/cgroup" .. group:gsub("/$", "")
  local most = tonumber(contents(folder .. "/memory.max") or "")
  local used = tonumber(contents(folder .. "/memory.current") or "")
  if not most or not used then return nil end
  local cached = tonumber((contents(folder .. "/memory.stat") or ""):match "inactive_file (%d+)") or 0 -- given up when asked for
  return math.max(0, most - used + cached)
end

--- available(device): bytes of a device's memory that this process may still have, or nil where the system does not say.
function memory.available(device)
  if device == "cuda" then
    local free, total = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
    check(C.lr_device_memory(C.LR_CUDA, free, total))
    return tonumber(free[0])
  end
  local kib = (contents "/proc/meminfo" or ""):match "MemAvailable:%s+(%d+) kB"
  local free, left = kib and tonumber(kib) * 1024, left_by_group()
  return free and left and math.min(free, left) or free or left
end

--- 1234567 -> "1.2 MB"
function memory.size_text(bytes)
  local units = { "B", "KB", "MB", "GB", "TB" }
  local u = 1
  while bytes >= 1000 and u < #units do bytes, u = bytes / 1000, u + 1 end
  return (u == 1 and "%d %s" or "%.1f %s"):format(bytes, units[u])
end

--- What the program is at, where that is training: { step, tokens and pairs of the micro-batch, saved = step of the last
--- checkpoint or nil }. Set by trainer.lua; for explain().
memory.at = nil

-- The device that a message of C is about.
local function device_of(message)
  return (message:find("cuda memory", 1, true) or message:find("out of memory in CUDA", 1, true)
    or message:find("out of memory in cuBLASLt", 1, true)) and "cuda" or "cpu"
end

--- explain(message): the text of an out-of-memory error: what was being done, the table of holders, what would need less.
function memory.explain(message)
  local lines, at = { message }, memory.at
  if at then
    lines[#lines + 1] = ("  in step %d%s"):format(at.step, at.tokens
      and (", in a batch of %d tokens (%d pairs)"):format(at.tokens, at.pairs) or "")
  end
  lines[#lines + 1] = "  held now, largest first:"
  for _, h in ipairs(memory.holders(8, device_of(message))) do
    lines[#lines + 1] = ("    %10s  %5d  %s"):format(memory.size_text(h.bytes), h.buffers, h.name)
  end
  lines[#lines + 1] = "  to need less: a smaller --batch, a smaller --max-length, --recompute all, or --precision bf16"
  if at and at.saved then
    lines[#lines + 1] = ("  the checkpoint of step %d is whole: --resume latest goes on from it"):format(at.saved)
  end
  return table.concat(lines, "\n")
end

return memory
