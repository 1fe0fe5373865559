-- diagnose.lua: what keeps a machine from training, or from training well, and the cure of each. It asks the machine nothing: facts
-- are passed in, so that tests can make them up.
--   diagnose.of(facts)      facts as doctor.lua gathers them -> { { level = "error" or "warning", what =, cure = } ... }
--   diagnose.verdict(facts) -> works, text   does training work, and on what
-- An error keeps a GPU, or all training, from working. A warning makes training slower, or will hinder several ranks.
local units = require "lorarun.base.units"

local diagnose = {}

local GIB = units.GIB
local LEAST_FREE = 2 * GIB       -- of a GPU's or the machine's memory: a model with its adapters and a batch needs more
local OTHERS_SHARE = 0.1         -- of a GPU's memory: where other processes hold more, that is a warning
local LEAST_FILE = 2 * GIB       -- a model's weights are one file
local LEAST_SHM = GIB            -- of /dev/shm, for NCCL between the GPUs of a machine; containers have 64 MiB by default
local OLDEST = { 8, 0 }          -- compute capability: bf16 tensor cores
local gib = units.gib

local function version_text(v) return ("%d.%d"):format(v[1], v[2]) end
local function older(a, b) return a[1] < b[1] or a[1] == b[1] and a[2] < b[2] end

local function gpu_text(g) return ("GPU %d%s"):format(g.number, g.name and (" (%s)"):format(g.name) or "") end

-- How many GPUs the machine has, used or not: the larger of what NVML and the PCI bus show.
local function present(facts) return math.max(#facts.gpus, facts.pci_gpus) end
local function gpus_text(n) return n == 1 and "an NVIDIA GPU" or ("%d NVIDIA GPUs"):format(n) end

-- ---- the driver, and whether CUDA finds GPUs -----------------------------------------------------------------------------------
local function built_version(facts)
  local major, minor = (facts.cuda.built or ""):match "^(%d+)%.(%d+)"
  return major and { tonumber(major), tonumber(minor) } or nil
end

local function look_at_driver(facts, add)
  local d, built = facts.driver, built_version(facts)
  if not d.kernel and d.missing then
    add("error", ("the machine has %s and no driver"):format(gpus_text(present(facts))),
      ("install NVIDIA's driver%s and restart the machine"):format(built and (" for CUDA %d or later"):format(built[1]) or ""))
  elseif d.missing and d.missing:find "there is no NVML" then
    add("error", ("the kernel has NVIDIA's driver %s, but its libraries are not found"):format(d.kernel),
      "in a container: start it with --gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility (NVIDIA Container Toolkit); else "
      .. "install the driver's libraries of the same version")
  elseif d.missing then
    add("error", ("NVIDIA's driver does not answer: %s"):format(d.missing),
      "run nvidia-smi; where it says the same, restart the machine or install the driver again")
  end
  if built and d.cuda and d.cuda[1] < built[1] then -- an older driver runs newer programs of the same major version
    add("error", ("the driver %s runs CUDA up to %s, and this lorarun was built with CUDA %s"):format(d.version or d.kernel or "",
      version_text(d.cuda), facts.cuda.built),
      ("install a driver for CUDA %d, or build lorarun with the toolkit of CUDA %d"):format(built[1], d.cuda[1]))
    return true
  end
  return d.missing ~= nil
end

local function look_at_visibility(facts, add)
  local hidden = facts.cuda.visible_devices
  if not facts.cuda.built then
    add("error", ("this lorarun was built without CUDA, and the machine has %s"):format(gpus_text(present(facts))),
      "install the CUDA toolkit (12.4 or later) and make again")
  elseif facts.cuda.devices == 0 and hidden then
    add("error", ("CUDA_VISIBLE_DEVICES is '%s', which hides every GPU"):format(hidden), "unset it, or name GPUs that are there")
  elseif facts.cuda.devices == 0 and (facts.cuda.missing or ""):find "not yet initialized" then
    add("error", ("CUDA: %s"):format(facts.cuda.missing),
      "GPUs behind NVSwitch need NVIDIA's Fabric Manager of the driver's version: systemctl start nvidia-fabricmanager")
  elseif facts.cuda.devices == 0 then
    add("error", ("CUDA finds no GPU: %s"):format(facts.cuda.missing or "it gives no reason"),
      "check that this user may open /dev/nvidia0 and /dev/nvidiactl, that a container was given the GPUs, what nvidia-smi says")
  end
end

-- ---- each GPU ------------------------------------------------------------------------------------------------------------------
local function holders(g)
  local texts = {}
  for i, p in ipairs(g.processes or {}) do
    texts[i] = ("process %d%s%s"):format(p.pid, p.name and (" (%s)"):format(p.name) or "",
      p.used and " holds " .. gib(p.used) or "")
  end
  return #texts > 0 and table.concat(texts, ", ") or "the driver does not tell who holds the memory"
end

local function look_at_gpu(g, add)
  if g.error then
    add("error", ("%s does not answer: %s"):format(gpu_text(g), g.error),
      "restart the machine; if that does not help, the GPU is broken")
    return
  end
  if g.capability and older(g.capability, OLDEST) then
    add("error", ("%s has compute capability %s; %s (Ampere) is the oldest that is supported"):format(gpu_text(g),
      version_text(g.capability), version_text(OLDEST)), "use another GPU, or train on the CPU with --cpu")
  end
  local free, total, used = g.load.free, g.load.total, g.load.used
  if free and free < LEAST_FREE then
    add("error", ("%s has %s of %s free: %s"):format(gpu_text(g), gib(free), gib(total), holders(g)),
      "end those processes or wait for them, or choose other GPUs with CUDA_VISIBLE_DEVICES or --gpu-ids")
  elseif used and used > total * OTHERS_SHARE then
    add("warning", ("%s has %s of %s in use: %s"):format(gpu_text(g), gib(used), gib(total), holders(g)),
      "training gets what is left, and shares the GPU's time with those processes")
  end
  if g.ecc_uncorrected and g.ecc_uncorrected > 0 then
    add("warning", ("%s had %d memory errors that it could not correct"):format(gpu_text(g), g.ecc_uncorrected),
      "reset the GPU (nvidia-smi --gpu-reset) while nothing uses it, or restart the machine; if they come back, have it replaced")
  end
end

-- ---- several GPUs --------------------------------------------------------------------------------------------------------------
local function look_at_exchange(facts, add)
  if not facts.nccl.version then
    add("warning", ("several GPUs need NCCL: %s"):format(facts.nccl.missing), "install NCCL 2.14 or later (libnccl2)")
  end
  local shm = facts.limits.shm_free
  if shm and shm < LEAST_SHM then
    add("warning", ("/dev/shm has %s free; NCCL exchanges data between GPUs through it"):format(gib(shm)),
      "start the container with --shm-size=8g or --ipc=host, or remove what fills /dev/shm")
  end
  local apart = {}
  for _, link in ipairs(facts.links) do
    if link.peer == false then apart[#apart + 1] = ("%d and %d"):format(link.from, link.to) end
  end
  if #apart > 0 then
    add("warning", ("GPUs %s cannot reach each other's memory: sums of gradients go through the processor"):format(
      table.concat(apart, ", ")), "in a virtual machine, or with the IOMMU on, allow peer-to-peer; consumer GPUs lack it")
  end
end

local function look_at_locked(facts, add)
  local locked = facts.limits.locked
  if facts.limits.infiniband and locked and locked < math.huge then
    add("warning", ("the locked-memory limit is %s, and InfiniBand needs to lock its buffers"):format(units.size(locked)),
      "ulimit -l unlimited, or LimitMEMLOCK=infinity for a service, or --ulimit memlock=-1 for a container")
  end
end

-- CUDA reserves addresses for the memory of all GPUs and of the machine.
local function look_at_addresses(facts, add)
  for _, limit in ipairs(facts.limits.process or {}) do
    if limit:find "^ulimit %-v" and present(facts) > 0 then
      add("warning", ("%s, and CUDA needs more addresses than there is memory in all GPUs"):format(limit), "ulimit -v unlimited")
    end
  end
end

-- ---- the processor -------------------------------------------------------------------------------------------------------------
local function look_at_cpu(facts, add)
  local c = facts.cpu
  if c.quota and c.quota < c.threads then
    add("warning", ("%d threads share the time of %.1f processors: this container is given no more"):format(c.threads, c.quota),
      ("set OMP_NUM_THREADS=%d, or give the container more processors"):format(math.max(1, math.floor(c.quota))))
  end
  if c.available and c.available < LEAST_FREE then
    add("warning", ("%s of memory are available%s"):format(gib(c.available), c.limit and (" (%s)"):format(c.limit) or ""),
      c.limit and "raise the limit, or train a small model in bf16" or "end what uses it, or train a small model in bf16")
  end
  local largest = facts.limits.file_size
  if largest and largest < LEAST_FILE then
    add("warning", ("a file may have %s at most (ulimit -f), and a model may be larger"):format(units.size(largest)),
      "ulimit -f unlimited, or LimitFSIZE=infinity for a service")
  end
  if not facts.libraries.gloo then
    add("warning", ("several ranks on the CPU cannot talk: %s"):format(facts.libraries.gloo_missing),
      "install lorarun with its module lorarun_gloo.so, and Gloo (libgloo)")
  end
end

local function look_at_tests(facts, add)
  for _, t in ipairs(facts.tests) do
    for _, text in ipairs(t.wrong or {}) do
      add("error", ("self-test of %s: %s"):format(t.name, text), t.device == "cpu"
        and "this processor or its memory is broken, or oneDNN is: try LORARUN_ISA=avx2, and another machine"
        or "leave this GPU out (CUDA_VISIBLE_DEVICES), and have it looked at: results trained on it would be worthless")
    end
    if t.error then
      add("error", ("self-test of %s: %s"):format(t.name, t.error), t.device == "cpu" and "run lorarun doctor --json and report it"
        or "leave this GPU out (CUDA_VISIBLE_DEVICES), or restart the machine where all GPUs fail")
    end
  end
end

-- Is it known which GPUs CUDA uses here?
local function mapped(facts)
  for _, g in ipairs(facts.gpus) do
    if g.cuda then return true end
  end
  return false
end

--- of(facts): everything that is wrong, in the order in which it is best cured.
function diagnose.of(facts)
  local list = {}
  local function add(level, what, cure) list[#list + 1] = { level = level, what = what, cure = cure } end
  if present(facts) > 0 and facts.cuda.devices == 0 then
    local unusable = look_at_driver(facts, add)
    if not unusable or not facts.cuda.built then look_at_visibility(facts, add) end
  end
  for _, g in ipairs(facts.gpus) do
    if g.cuda or not mapped(facts) then look_at_gpu(g, add) end -- one that is hidden from CUDA does not matter
  end
  if facts.cuda.devices > 0 and facts.cuda.built and facts.cublas.missing then
    add("error", ("products on GPUs need cuBLASLt: %s"):format(facts.cublas.missing),
      "install the cuBLAS of the CUDA that lorarun was built with (libcublas), or name its folder in LD_LIBRARY_PATH")
  end
  if facts.cuda.devices > 1 then look_at_exchange(facts, add) end
  look_at_locked(facts, add)
  look_at_addresses(facts, add)
  look_at_cpu(facts, add)
  look_at_tests(facts, add)
  return list
end

--- verdict(facts): training uses all GPUs that CUDA finds, and the CPU where it finds none.
function diagnose.verdict(facts)
  local device = facts.cuda.devices > 0 and "cuda" or "cpu"
  local tried, failed = 0, {}
  for _, t in ipairs(facts.tests) do
    if t.device == device then
      tried = tried + 1
      if t.error or not t.right then failed[#failed + 1] = t.name end
    end
  end
  if tried == 0 or #failed > 0 then
    return false, ("Training does not work: %s."):format(tried == 0 and "no device could be tried"
      or ("the self-test of %s failed"):format(table.concat(failed, ", ")))
  elseif device == "cpu" then
    return true, ("Training works, on the CPU only: %s."):format(facts.cuda.missing or "no GPU is found")
  end
  for _, g in ipairs(facts.gpus) do
    if g.cuda and g.load and g.load.free and g.load.free < LEAST_FREE then
      return false, ("Training does not work: %s has too little free memory."):format(gpu_text(g))
    end
  end
  return true, ("Training works on %d GPU%s."):format(tried, tried == 1 and "" or "s")
end

return diagnose
