-- hardware.lua: facts about this machine, for the launcher's checks (preflight.lua) and for `lorarun doctor`. Nothing here rates
-- them, starts a GPU or raises an error; a fact that the system does not give is nil.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local fs = require "lorarun.base.fs"
local gpu = require "lorarun.dist.gpu"
local hub = require "lorarun.formats.hub"
local memory = require "lorarun.tensor.memory"

local hardware = {}

local MOST_PROCESSES = 64

-- The names in a folder; none where it cannot be read.
local function names_in(folder)
  local ok, names = pcall(fs.list, folder)
  return ok and names or {}
end

local function last_error() return ffi.string(C.lr_last_error()) end

local function told(value) return value >= 0 and tonumber(value) or nil end
local function text_told(value)
  local text = ffi.string(value)
  return text ~= "" and text or nil
end

-- ---- versions ---------------------------------------------------------------------------------------------------------------
-- 22809 -> "2.28.9", as NCCL and cuBLAS count.
local function library_version(code)
  return ("%d.%d.%d"):format(math.floor(code / 10000), math.floor(code / 100) % 100, code % 100)
end

local function asked_version(ask)
  local version = ffi.new "int[1]"
  if ask(version) < 0 then return nil, last_error() end
  return library_version(version[0])
end

--- NCCL's version, or nil and why there is none.
function hardware.nccl() return asked_version(C.lr_comm_nccl_version) end

--- cuBLASLt's version, or nil and why there is none; it is loaded for that.
function hardware.cublas() return asked_version(C.lr_gpu_blas_version) end

--- The version of CUDA this program was built with, "13.0.88", or nil.
function hardware.cuda_built()
  local version = C.lr_cuda_version()
  return version ~= nil and ffi.string(version) or nil
end

--- NVIDIA's driver: { kernel = version of its kernel module, version = of its library, cuda = the newest it runs, as { 13, 0 },
--- missing = why its library (NVML) cannot be asked }
function hardware.driver()
  local kernel = (fs.contents "/proc/driver/nvidia/version" or ""):match "Kernel Module%s[^\n]-(%d+%.[%d.]+)"
  local text, cuda = ffi.new "char[96]", ffi.new "int[1]"
  if C.lr_gpu_driver(text, 96, cuda) < 0 then return { kernel = kernel, missing = last_error() } end
  return { kernel = kernel, version = text_told(text),
    cuda = cuda[0] >= 0 and { math.floor(cuda[0] / 1000), math.floor(cuda[0] / 10) % 100 } or nil }
end

-- ---- GPUs -------------------------------------------------------------------------------------------------------------------
local function processes_on(number)
  local list, count = ffi.new("lr_gpu_process[?]", MOST_PROCESSES), ffi.new "int[1]"
  if C.lr_gpu_processes(number, list, MOST_PROCESSES, count) < 0 then return nil end
  local found = {}
  for i = 0, math.min(count[0], MOST_PROCESSES) - 1 do
    local pid = tonumber(list[i].pid)
    found[i + 1] = { pid = pid, used = told(list[i].used_bytes),
      name = fs.first_line(("/proc/%d/comm"):format(pid)) } -- a process of another container has no name here
  end
  return found
end

local function describe_gpu(number)
  local g = ffi.new "lr_gpu"
  if C.lr_gpu_describe(number, g) < 0 then return { number = number, error = last_error() } end
  return { number = number, name = text_told(g.name), uuid = text_told(g.uuid),
    capability = g.major >= 0 and { g.major, g.minor } or nil, nvlinks = told(g.nvlinks),
    ecc_uncorrected = told(g.ecc_uncorrected), load = gpu.load(number) or {}, processes = processes_on(number) }
end

--- The machine's GPUs as NVML numbers them, each { number, name, uuid, capability = { 9, 0 }, load (gpu.load), nvlinks,
--- ecc_uncorrected, processes = { { pid, name, used } ... }, cuda = the number by which this process may use it }.
function hardware.gpus()
  local count, number, list = ffi.new "int[1]", ffi.new "int[1]", {}
  if C.lr_gpu_count(count) < 0 then return list end
  for i = 0, count[0] - 1 do list[i + 1] = describe_gpu(i) end
  for i = 0, C.lr_device_count(C.LR_CUDA) - 1 do
    local known = C.lr_gpu_of_device(i, number) == C.LR_OK and list[number[0] + 1]
    if known then known.cuda = i end
  end
  return list
end

--- The connection of every pair of GPUs: { { from, to, peer, nvlink } ... }, the last two true, false or nil.
function hardware.links(gpus)
  local list, peer, nvlink = {}, ffi.new "int[1]", ffi.new "int[1]"
  local function answer(value) if value[0] >= 0 then return value[0] == 1 end end
  for i, from in ipairs(gpus) do
    for j = i + 1, #gpus do
      if C.lr_gpu_link(from.number, gpus[j].number, peer, nvlink) == C.LR_OK then
        list[#list + 1] = { from = from.number, to = gpus[j].number, peer = answer(peer), nvlink = answer(nvlink) }
      end
    end
  end
  return list
end

--- The number of NVIDIA's GPUs among the PCI devices, which the system knows without a driver.
function hardware.pci_gpus()
  local root, count = "/sys/bus/pci/devices", 0
  for _, name in ipairs(names_in(root)) do
    local vendor, class = fs.contents(fs.join(root, name, "vendor")), fs.contents(fs.join(root, name, "class"))
    if vendor and class and vendor:find "^0x10de" and class:find "^0x03" then count = count + 1 end
  end
  return count
end

-- ---- the rest of the machine ------------------------------------------------------------------------------------------------
-- The processors whose time this process's control group and those above it allow, or nil for no limit. Version 1 of control groups
-- has the two numbers in two files, with -1 for no limit.
local function cpu_quota()
  local text, where, least, level = ffi.new "char[64]", ffi.new "char[4096]", nil, 0
  local function file(name, name_1) return C.lr_group_file("cpu", level, name, name_1, text, 64, where, 4096) end
  while true do
    local status = file("cpu.max", "cpu.cfs_quota_us")
    if status == C.LR_EEND then return least end
    local quota, period = (status == C.LR_OK and ffi.string(text) or ""):match "^(%d+)%s*(%d*)"
    if quota and period == "" then period = file("none", "cpu.cfs_period_us") == C.LR_OK and ffi.string(text):match "^%d+" end
    if quota and tonumber(period) then least = math.min(least or math.huge, tonumber(quota) / tonumber(period)) end
    level = level + 1
  end
end

--- { text = one line, cores, quota, threads, total, available (bytes) }
function hardware.cpu()
  local free, total = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
  local known = C.lr_device_memory(C.LR_CPU, free, total) == C.LR_OK
  local text = memory.device_text "cpu":gsub("; no GPU: .*", "") -- doctor has a line of its own for that
  local available, limit = memory.available()
  return { text = text, cores = C.lr_cores(), quota = cpu_quota(), threads = C.lr_threads(),
    total = known and tonumber(total[0]) or nil, available = available, limit = limit }
end

--- The limits of this process, where some are set: { "ulimit -v: 4.1 GB", ... }
local function process_limits()
  local list = {}
  for _, kind in ipairs { C.LR_LIMIT_ADDRESSES, C.LR_LIMIT_DATA, C.LR_LIMIT_FILE_SIZE, C.LR_LIMIT_FILES } do
    list[#list + 1] = memory.limit_text(kind)
  end
  return list
end

-- The soft limit of /proc/self/limits: bytes, math.huge where there is none, nil where the system does not give it.
local function locked_memory()
  local text = (fs.contents "/proc/self/limits" or ""):match "Max locked memory%s+(%S+)"
  return text == "unlimited" and math.huge or tonumber(text)
end

--- { shm_free, locked (bytes; math.huge: no limit), infiniband = are there adapters of that kind, process (list of texts),
--- file_size (bytes; nil: no limit) }
function hardware.limits()
  local shm = tonumber(C.lr_disk_free "/dev/shm")
  local file_size = tonumber(C.lr_limit(C.LR_LIMIT_FILE_SIZE))
  return { shm_free = shm >= 0 and shm or nil, locked = locked_memory(), infiniband = #names_in "/sys/class/infiniband" > 0,
    process = process_limits(), file_size = file_size >= 0 and file_size or nil }
end

--- The versions of libraries in use, and whether ranks on the CPU can talk: { text, gloo = true, or false and gloo_missing }
function hardware.libraries()
  local text = ffi.new "char[512]"
  local gloo = C.lr_comm_loadable() == C.LR_OK
  local missing = not gloo and last_error() or nil
  return { text = C.lr_library_versions(text, 512) == C.LR_OK and ffi.string(text) or nil, gloo = gloo, gloo_missing = missing }
end

--- The Hugging Face cache: { folder, models = their number, or nil where there is no cache }
function hardware.cache()
  local folder, models = hub.cache(), nil
  if fs.is_directory(folder) then
    models = 0
    for _, name in ipairs(names_in(folder)) do
      if name:find "^models%-%-" then models = models + 1 end
    end
  end
  return { folder = folder, models = models }
end

return hardware
