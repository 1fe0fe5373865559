-- load.lua: a model folder of the 7B's size: how fast it is written, and how fast it is loaded onto the GPU from the page cache
-- (without the time of the disk). The host's memory should hardly grow meanwhile: the peak is that of this process.
local lr = require "lorarun"
local C = require "lorarun.base.c"

local function peak_of_host()
  local status = lr.fs.read "/proc/self/status"
  return 1024 * tonumber(status:match "VmHWM:%s+(%d+)")
end

return function(bench)
  local report = bench.report
  report:table("load", "Loading", { "what", "GB", "s", "GB/s" })
  local folder, bytes, seconds = bench.model_folder()
  if seconds then report:row("load", { "write a folder of random weights", bytes / 1e9, seconds, bytes / seconds / 1e9 }) end
  for _, what in ipairs { "load, first", "load, again" } do
    if not bench.time_for(30, what) then return end
    local t = C.lr_time()
    local model = require("lorarun.models.model").load(folder, { precision = "bf16", device = bench.device })
    bench.wait()
    t = C.lr_time() - t
    model:free()
    report:row("load", { what, bytes / 1e9, t, bytes / t / 1e9 })
    report:headline("%-34s %8.2f GB/s", what, bytes / t / 1e9)
  end
  report:note("the host's memory was at most %.1f GB", peak_of_host() / 1e9)
end
