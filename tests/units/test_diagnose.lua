-- What lorarun doctor finds: each thing that can be wrong with a machine, from made-up facts.
local diagnose = require "lorarun.cli.diagnose"

local GIB = 2 ^ 30

local function gpu(number, changes)
  local g = { number = number, name = "H100", uuid = "GPU-" .. number, capability = { 9, 0 }, nvlinks = 18, ecc_uncorrected = 0,
    load = { used = 0.5 * GIB, free = 79.5 * GIB, total = 80 * GIB, utilization = 0 }, processes = {}, cuda = number }
  for key, value in pairs(changes or {}) do g[key] = value end
  return g
end

local function passed(name, device) return { name = name, device = device, right = true, wrong = {} } end

-- A machine with two GPUs on which nothing is wrong.
local function sound()
  return { driver = { kernel = "580.65.06", version = "580.65.06", cuda = { 13, 0 } }, gpus = { gpu(0), gpu(1) },
    links = { { from = 0, to = 1, peer = true, nvlink = true } }, pci_gpus = 2,
    cuda = { built = "13.0.88", devices = 2 }, cublas = { version = "13.1.0" }, nccl = { version = "2.28.9" },
    cpu = { text = "CPU", cores = 8, threads = 8, total = 64 * GIB, available = 60 * GIB },
    limits = { shm_free = 32 * GIB, locked = math.huge, infiniband = true }, libraries = { gloo = true }, cache = {},
    tests = { passed("GPU 0", "cuda"), passed("GPU 1", "cuda"), passed("CPU", "cpu") } }
end

-- CUDA finds no GPU, and says why.
local function blind(why)
  local facts = sound()
  facts.cuda.devices, facts.cuda.missing = 0, why
  for _, g in ipairs(facts.gpus) do g.cuda = nil end
  facts.tests = { passed("CPU", "cpu") }
  return facts
end

-- diagnose.of must give one entry of this level, with these parts in its text and in its remedy; and whether training still works.
local function expect(facts, level, what, cure, works)
  local list = diagnose.of(facts)
  local all = {}
  for i, f in ipairs(list) do all[i] = ("%s: %s | %s"):format(f.level, f.what, f.cure) end
  check.equal(#list, 1, "what is wrong: " .. table.concat(all, "\n") .. "\nnumber")
  check.equal(list[1].level, level, list[1].what)
  check.that(list[1].what:find(what, 1, true), list[1].what)
  check.that(list[1].cure:find(cure, 1, true), list[1].cure)
  local ok, text = diagnose.verdict(facts)
  check.equal(ok, works, text)
  return text
end

test("nothing is wrong", function()
  check.equal(#diagnose.of(sound()), 0)
  local works, text = diagnose.verdict(sound())
  check.that(works)
  check.equal(text, "Training works on 2 GPUs.")
end)

test("a machine without any GPU is not reported as faulty", function()
  local facts = blind "there is no NVIDIA driver"
  facts.gpus, facts.links, facts.pci_gpus, facts.driver = {}, {}, 0, { missing = "there is no NVML: not found" }
  check.equal(#diagnose.of(facts), 0)
  local works, text = diagnose.verdict(facts)
  check.that(works)
  check.equal(text, "Training works, on the CPU only: there is no NVIDIA driver.")
end)

test("GPUs without a driver, and drivers without their libraries", function()
  local facts = blind "there is no NVIDIA driver"
  facts.gpus, facts.links, facts.driver = {}, {}, { missing = "there is no NVML: not found" }
  expect(facts, "error", "2 NVIDIA GPUs and no driver", "driver for CUDA 13 or later", true)
  facts.driver.kernel = "580.65.06"
  expect(facts, "error", "its libraries are not found", "--gpus all", true)
  facts.driver.missing = "NVML: Driver/library version mismatch; the driver was updated while it ran: restart the machine"
  expect(facts, "error", "version mismatch", "restart the machine", true)
end)

test("a driver too old for this build", function()
  local facts = blind "CUDA driver version is insufficient for CUDA runtime version"
  facts.driver.cuda = { 12, 8 }
  expect(facts, "error", "runs CUDA up to 12.8, and this lorarun was built with CUDA 13.0.88",
    "a driver for CUDA 13, or build lorarun with the toolkit of CUDA 12", true)
end)

test("an older driver of the same major version is enough", function()
  local facts = sound()
  facts.cuda.built, facts.driver.cuda = "12.8.93", { 12, 4 }
  check.equal(#diagnose.of(facts), 0)
end)

test("a build without CUDA, hidden GPUs, a sleeping fabric, refused devices", function()
  local facts = blind "this lorarun was built without CUDA"
  facts.cuda.built = nil
  expect(facts, "error", "built without CUDA, and the machine has 2 NVIDIA GPUs", "and make again", true)
  facts = blind "there is no NVIDIA GPU"
  facts.cuda.visible_devices = ""
  expect(facts, "error", "CUDA_VISIBLE_DEVICES is ''", "unset it", true)
  expect(blind "system not yet initialized (driver for CUDA 13.0, built with 13.0)", "error", "not yet initialized",
    "nvidia-fabricmanager", true)
  local text = expect(blind "no CUDA-capable device is detected", "error", "CUDA finds no GPU: no CUDA-capable device",
    "/dev/nvidia0", true)
  check.equal(text, "Training works, on the CPU only: no CUDA-capable device is detected.")
end)

test("a GPU too old", function()
  local facts = sound()
  facts.gpus[2] = gpu(1, { name = "V100", capability = { 7, 0 } })
  facts.tests[2] = { name = "GPU 1", device = "cuda", error = "too old" }
  local list = diagnose.of(facts)
  check.equal(#list, 2)
  check.that(list[1].what:find("GPU 1 (V100) has compute capability 7.0; 8.0 (Ampere) is the oldest", 1, true), list[1].what)
  check.that(list[2].what:find("self-test of GPU 1: too old", 1, true), list[2].what)
  check.equal(diagnose.verdict(facts), false)
end)

test("too little memory, and the processes that hold it", function()
  local facts = sound()
  facts.gpus[1].load = { used = 79 * GIB, free = GIB, total = 80 * GIB }
  facts.gpus[1].processes = { { pid = 4242, name = "python3", used = 70 * GIB }, { pid = 7 } }
  expect(facts, "error", "GPU 0 (H100) has 1.0 GiB of 80.0 GiB free: process 4242 (python3) holds 70.0 GiB, process 7",
    "CUDA_VISIBLE_DEVICES", false)
  facts.gpus[1].processes = nil
  expect(facts, "error", "does not tell who", "CUDA_VISIBLE_DEVICES", false)
  facts.gpus[1].load = { used = 20 * GIB, free = 60 * GIB, total = 80 * GIB }
  expect(facts, "warning", "20.0 GiB of 80.0 GiB in use", "training gets what is left", true)
  facts.gpus[1].load = {}
  check.equal(#diagnose.of(facts), 0, "where it is not told")
  facts.gpus[1] = gpu(0, { load = { used = 79 * GIB, free = GIB, total = 80 * GIB } })
  facts.gpus[1].cuda = nil
  check.equal(#diagnose.of(facts), 0, "on a GPU that is not for this process")
end)

test("memory errors, GPUs that do not answer", function()
  local facts = sound()
  facts.gpus[1].ecc_uncorrected = 3
  expect(facts, "warning", "3 memory errors", "--gpu-reset", true)
  facts = sound()
  facts.gpus[1] = { number = 0, cuda = 0, error = "NVML: opening a GPU: GPU is lost" }
  expect(facts, "error", "GPU 0 does not answer", "restart", true)
end)

test("cuBLASLt, NCCL, /dev/shm, links, locked memory", function()
  local facts = sound()
  facts.cublas = { missing = "libcublasLt.so.13 was not found" }
  expect(facts, "error", "libcublasLt.so.13", "LD_LIBRARY_PATH", true)
  facts = sound()
  facts.nccl = { missing = "libnccl.so.2: cannot open" }
  expect(facts, "warning", "libnccl.so.2", "libnccl2", true)
  facts = sound()
  facts.limits.shm_free = 64 * 2 ^ 20
  expect(facts, "warning", "/dev/shm has 0.1 GiB free", "--shm-size", true)
  facts = sound()
  facts.links[1].peer = false
  expect(facts, "warning", "GPUs 0 and 1 cannot reach", "peer-to-peer", true)
  facts = sound()
  facts.limits.locked = 2 ^ 16
  expect(facts, "warning", "locked-memory limit is 65.5 KB", "ulimit -l unlimited", true)
  facts.limits.infiniband = false
  check.equal(#diagnose.of(facts), 0, "without InfiniBand")
  facts = sound()
  facts.limits.process = { "ulimit -v: 4.1 GB", "ulimit -n: 1024" }
  expect(facts, "warning", "ulimit -v: 4.1 GB, and CUDA needs more addresses", "ulimit -v unlimited", true)
  facts = sound()
  facts.limits.file_size = 10 ^ 6
  expect(facts, "warning", "a file may have 1.0 MB at most (ulimit -f)", "ulimit -f unlimited", true)
  facts = sound()
  facts.cpu.available, facts.cpu.limit = GIB, "the control group /job allows 1.1 GB"
  expect(facts, "warning", "1.0 GiB of memory are available (the control group /job allows 1.1 GB)", "raise the limit", true)
end)

test("one GPU needs no NCCL and no /dev/shm", function()
  local facts = sound()
  facts.gpus[2], facts.tests[2], facts.links, facts.cuda.devices = nil, facts.tests[3], {}, 1
  facts.tests[3] = nil
  facts.nccl, facts.limits.shm_free = { missing = "no" }, 0
  check.equal(#diagnose.of(facts), 0)
  local _, text = diagnose.verdict(facts)
  check.equal(text, "Training works on 1 GPU.")
end)

test("the processor: time, memory, Gloo", function()
  local facts = sound()
  facts.cpu.quota = 2.5
  expect(facts, "warning", "8 threads share the time of 2.5 processors", "OMP_NUM_THREADS=2", true)
  facts = sound()
  facts.cpu.available = GIB
  expect(facts, "warning", "1.0 GiB of memory", "end what uses it", true)
  facts = sound()
  facts.libraries = { gloo = false, gloo_missing = "lorarun_gloo.so: cannot open" }
  expect(facts, "warning", "lorarun_gloo.so", "libgloo", true)
end)

test("self-tests that fail", function()
  local facts = sound()
  facts.tests[2] = { name = "GPU 1", device = "cuda", right = false, wrong = { "large bf16 products have wrong values" } }
  check.equal(expect(facts, "error", "self-test of GPU 1: large bf16 products", "worthless", false),
    "Training does not work: the self-test of GPU 1 failed.")
  facts = sound()
  facts.tests[1] = { name = "GPU 0", device = "cuda", error = "no end within 60 seconds" }
  expect(facts, "error", "no end within 60 seconds", "leave this GPU out", false)
  facts = blind "there is no NVIDIA driver"
  facts.gpus, facts.pci_gpus = {}, 0
  facts.tests[1] = { name = "CPU", device = "cpu", right = false, wrong = { "a norm is off" } }
  expect(facts, "error", "self-test of CPU: a norm", "LORARUN_ISA", false)
end)
