-- lorarun doctor as a user runs it: with an NVML whose numbers the test sets, and without; its tests of devices; exit status; JSON.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local NVML = os.getenv "LORARUN_NVML"
local simulates = shell.run([[LORARUN_SIMT=1 $L -e 'print(require("lorarun.train.report").device "cuda")']]).out
  :find "kernels on the CPU"

local function doctor(words, settings, kind)
  local path = kind and fs.join(NVML, kind) or ""
  return shell.run(("LD_LIBRARY_PATH=%s %s $L doctor %s"):format(shell.quote(path), settings or "", words or ""))
end

local function has(text, ...)
  for _, part in ipairs { ... } do check.that(text:find(part, 1, true), ("'%s' is missing in\n%s"):format(part, text)) end
end

test("the CPU side, and its self-test", function()
  local r = doctor()
  check.equal(r.err, "")
  check.equal(r.status, 0, r.out)
  has(r.out, "driver ", "cuBLASLt ", "NCCL ", "CPU ", " threads", "oneDNN ", "libsodium ", "Gloo loads", "/dev/shm", "locked",
    "CPU: f32 products at ", "results right", "Training works")
end)

test("JSON for bug reports", function()
  local r = doctor("--json", "FAKE_NVML_total=85899345920 FAKE_NVML_used=1073741824", "whole")
  check.equal(r.err, "")
  local facts = json.decode(r.out)
  check.equal(facts.driver.version, "580.65.06")
  check.equal(#facts.gpus, 2)
  check.equal(facts.gpus[2].name, "Fake H100 number 1")
  check.equal(facts.gpus[1].load.free, 79 * 2 ^ 30)
  check.equal(facts.gpus[1].capability[1], 9)
  check.equal(facts.links[1].nvlink, true)
  check.equal(facts.works, r.status == 0)
  check.that(json.is_array(facts.findings) and json.is_array(facts.tests) and facts.verdict:find "Training", r.out)
  check.equal(facts.tests[#facts.tests].name, "CPU")
  check.that(facts.tests[#facts.tests].flops > 1e6 and facts.tests[#facts.tests].right)
  for _, name in ipairs { "gpus", "links" } do
    check.that(json.is_array(json.decode(doctor("--json").out)[name]), name .. " is an array where it is empty")
  end
end)

test("GPUs that this program cannot use are named, and the CPU works", function()
  local r = doctor("", ("FAKE_NVML_pid=%d FAKE_NVML_used_1=%d"):format(1, 79.5 * 2 ^ 30), "whole")
  check.equal(r.status, 0, r.out)
  has(r.out, "GPU 0 ", "Fake H100 number 1, compute capability 9.0, 0.5 GiB of 80.0 GiB free", "NVLink: 0-1", "error: ", "cure: ",
    "GPU 1 (Fake H100 number 1) has 0.5 GiB of 80.0 GiB free: process 1", "Training works, on the CPU only")
end)

test("a library that answers nothing, and one of an old driver", function()
  local r = doctor("", "FAKE_NVML_nvmlInit_v2=18", "whole")
  check.equal(r.status, 0)
  has(r.out, "NVML: fake error 18; the driver was updated")
  r = doctor("", "FAKE_NVML_nvmlDeviceGetHandleByIndex_v2=15", "whole")
  has(r.out, "GPU 0 does not answer: NVML: opening a GPU: fake error 15")
  r = doctor("", "", "old")
  check.equal(r.err, "")
  has(r.out, "79.0 GiB of 80.0 GiB free")
end)

test("a GPU is tested by a process of its own", function()
  if not simulates then return end
  local r = doctor("", "LORARUN_SIMT=1", "whole")
  check.equal(r.status, 0, r.out)
  has(r.out, "GPU 0: bf16 products at ", "copies to it at ", "results right", "Training works on 1 GPU.", "not used by CUDA here")
  r = doctor("", "LORARUN_SIMT=1 FAKE_NVML_used_0=85000000000", "whole")
  check.equal(r.status, 1, r.out)
  has(r.out, "Training does not work: GPU 0 (Fake H100 number 0) has too little free memory.")
end)

test("a device that computes nonsense, dies, or cannot be started fails the machine", function()
  local lua = fs.join(fs.dirname(os.getenv "LORARUN_TESTS"), "lua")
  for _, case in ipairs {
    { "local run = ops.rms_norm ops.rms_norm = function(x, r, w) return run(x, r, w, 1) end",
      "self-test of CPU: a norm is off by" },
    { "os.exit(3)", "self-test of CPU: it ended with status 3" },
    { "require('ffi').cdef 'int raise(int);' require('ffi').C.raise(9)", "self-test of CPU: it ended with status -9" },
    { "error('oneDNN is tired', 0)", "oneDNN is tired" } } do
    shell.with_folder(function(folder) -- the modules of the program, with one that is ill
      shell.run(("cp -r %s/. %s"):format(shell.quote(lua), shell.quote(folder)))
      local path = fs.join(folder, "lorarun", "cli", "self_test.lua")
      local text, n = fs.read(path):gsub("function self_test%.run%(device, index%)\n", "%0 do " .. case[1] .. " end\n", 1)
      check.equal(n, 1)
      fs.write(path, text)
      local r = doctor("", "LORARUN_LUA_PATH=" .. shell.quote(folder))
      check.equal(r.status, 1, r.out)
      has(r.out, case[2], "Training does not work: the self-test of CPU failed.")
    end)
  end
end)

test("words it does not know", function()
  local r = doctor "--jsn"
  check.equal(r.status, 1)
  check.that(r.err:find("lorarun doctor does not know '--jsn'", 1, true), r.err)
  has(doctor("--help").out, "usage: lorarun doctor [--json]")
end)
