-- memory.lua: what holds the memory, and what an out-of-memory error says of it.
local ffi = require "ffi"
local C = require "lorarun.c"
local check = require "lorarun.check"

local memory = {}
local stats = ffi.new "lr_memory"
local text = ffi.new "char[4096]"

--- stats(device): { live_bytes, live_tensors, peak_bytes, reserved_bytes, host_objects }
function memory.stats()
  check(C.lr_memory_stats(C.LR_CPU, stats))
  return { live_bytes = tonumber(stats.live_bytes), live_tensors = tonumber(stats.live_storages),
    peak_bytes = tonumber(stats.peak_bytes), reserved_bytes = tonumber(stats.reserved_bytes),
    host_objects = tonumber(stats.host_objects) }
end

--- Count the peak anew from what is held now.
function memory.reset_peak() check(C.lr_memory_reset_peak(C.LR_CPU)) end

--- holders(lines): { { name, buffers, bytes } ... }, largest first.
function memory.holders(lines)
  check(C.lr_memory_holders(C.LR_CPU, lines or 10, text, 4096))
  local list = {}
  for name, count, bytes in ffi.string(text):gmatch("([^\t\n]*)\t(%d+)\t(%d+)\n") do
    list[#list + 1] = { name = name, buffers = tonumber(count), bytes = tonumber(bytes) }
  end
  return list
end

--- 1234567 -> "1.2 MB"
function memory.size_text(bytes)
  local units = { "B", "KB", "MB", "GB", "TB" }
  local u = 1
  while bytes >= 1000 and u < #units do bytes, u = bytes / 1000, u + 1 end
  return (u == 1 and "%d %s" or "%.1f %s"):format(bytes, units[u])
end

--- explain(message): the text of an out-of-memory error with the table of holders and what would need less.
function memory.explain(message)
  local lines = { message, "  held now, largest first:" }
  for _, h in ipairs(memory.holders(8)) do
    lines[#lines + 1] = ("    %10s  %5d  %s"):format(memory.size_text(h.bytes), h.buffers, h.name)
  end
  lines[#lines + 1] = "  to need less: a smaller --batch, a smaller --max-length, --recompute all, or --precision bf16"
  return table.concat(lines, "\n")
end

return memory
