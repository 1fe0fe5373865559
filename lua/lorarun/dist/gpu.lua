-- gpu.lua: memory and utilisation of the GPUs while they work, from NVIDIA's driver (kernels/cuda/nvml.c).
--   local watch = gpu.watch(device)      of the GPU that this process uses; on other devices, and without NVML, it has no numbers
--   watch:now()                          { used, free, total (bytes), utilization (percent) }, each nil where it is unknown
--   watch:tell(step, record, fields)     adds them to a line of the log and to the fields of the progress line
-- The driver is asked at most once a second, by a few system calls, without waiting for a kernel.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local comm = require "lorarun.dist.comm"
local say = require "lorarun.base.say"
local device_traits = require "lorarun.tensor.device_traits"
local units = require "lorarun.base.units"

local gpu = {}
local Watch = {}
Watch.__index = Watch

local ASK_SECONDS = 1
local PRINT_SECONDS = 10 -- between two lines in the log of a rank that has no progress line

-- The driver gives -1 for a number that it does not know.
local function told(value) return value >= 0 and tonumber(value) or nil end

--- load(number): the same as now(), for the GPU with this number in NVML; nil where there is none.
function gpu.load(number)
  local load = ffi.new "lr_gpu_load"
  if C.lr_gpu_load_now(number, load) < 0 then return nil end
  return { used = told(load.used_bytes), free = told(load.free_bytes), total = told(load.total_bytes),
    utilization = told(load.utilization) }
end

--- ranks(): the number of ranks that use this rank's GPU; more than one where a machine has fewer GPUs than ranks. All ranks call
--- it.
function gpu.ranks()
  local own, count = ffi.new "char[64]", 0
  check(C.lr_device_uuid(C.LR_CUDA, -1, own, ffi.sizeof(own)))
  for _, other in ipairs(comm.all_gather_bytes(ffi.string(own))) do
    if other == ffi.string(own) then count = count + 1 end
  end
  return count
end

--- watch(device): of the device of a model, by its name.
function gpu.watch(device)
  local number = ffi.new "int[1]"
  local found = device_traits.itself(device).own_memory and C.lr_gpu_of_device(-1, number) == C.LR_OK
  return setmetatable({ number = found and number[0] or nil, asked = -math.huge, printed = -math.huge }, Watch)
end

function Watch:now()
  if not self.number then return {} end
  local time = C.lr_time()
  if time - self.asked >= ASK_SECONDS then
    self.asked, self.load = time, gpu.load(self.number)
  end
  return self.load or {}
end

local function memory_text(load) return ("%.1f GiB used, %.1f free"):format(load.used / units.GIB, load.free / units.GIB) end

--- Rank 0 shows progress for all ranks, but each has a GPU of its own, so the others print a line about theirs now and then.
function Watch:tell(step, record, fields)
  local load = self:now()
  record.gpu_memory_used, record.gpu_memory_free, record.gpu_utilization = load.used, load.free, load.utilization
  local texts = {}
  local function field(name, text)
    fields[#fields + 1] = { name, text }
    texts[#texts + 1] = name .. " " .. text
  end
  if load.utilization then field("GPU", ("%d%%"):format(load.utilization)) end
  if load.used then field("memory", memory_text(load)) end
  if comm.rank ~= 0 and #texts > 0 and self.asked - self.printed >= PRINT_SECONDS then
    self.printed = self.asked
    say.line(("step %d: %s"):format(step, table.concat(texts, ", ")))
  end
end

return gpu
