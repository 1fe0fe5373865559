-- GPU memory and utilisation in the training log and the progress line: with an NVML whose numbers are set (fake_nvml.c), with
-- ones that lack functions or return errors, and without any.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local quote = shell.quote

local NVML = os.getenv "LORARUN_NVML"
local bert = fs.join(os.getenv "LORARUN_TESTS", "golden", "bert")
local GIB = 2 ^ 30

-- Run code in a program that finds the fake NVML of this kind (nil: none); settings: "FAKE_NVML_used=1 ...".
local function run(kind, settings, code)
  local path = kind and fs.join(NVML, kind) or ""
  return shell.run(("LD_LIBRARY_PATH=%s %s $L -e %s"):format(quote(path), settings, quote(code)))
end

-- What a watch of the GPU says, whatever the device is called by CUDA.
local WATCH = [[
  local gpu, comm, C, ffi = require "lorarun.dist.gpu", require "lorarun.dist.comm", require "lorarun.base.c", require "ffi"
  comm.rank = tonumber(os.getenv "AS_RANK" or 0)
  local watch = gpu.watch "cpu"
  watch.number = 0
  local record, fields = {}, {}
  watch:tell(7, record, fields)
  io.write(lr.json.encode({ record = record, fields = fields }, { sort_keys = true }), "\n")
]]

local function watched(kind, settings)
  local r = run(kind, settings, WATCH)
  check.equal(r.err, "", "standard error")
  return json.decode(r.out:match "[^\n]+\n$"), r.out
end

test("memory and utilisation, for the log and for the line", function()
  local seen = watched("whole", ("FAKE_NVML_used=%d FAKE_NVML_total=%d FAKE_NVML_utilization=83"):format(31 * GIB, 80 * GIB))
  check.equal(seen.record.gpu_memory_used, 31 * GIB)
  check.equal(seen.record.gpu_memory_free, 49 * GIB)
  check.equal(seen.record.gpu_utilization, 83)
  check.equal(json.encode(seen.fields), '[["GPU", "83%"], ["memory", "31.0 GiB used, 49.0 free"]]')
end)

test("ranks other than 0 print it: it is their log", function()
  local _, text = watched("whole", "AS_RANK=0")
  check.that(not text:find "step 7", text)
  _, text = watched("whole", "AS_RANK=3")
  check.that(text:find("step 7: GPU 97%, memory 1.0 GiB used, 79.0 free\n", 1, true), text)
end)

test("what the driver does not tell is left out", function()
  local seen = watched("old", "")
  check.equal(seen.record.gpu_memory_used, GIB, "of a library without utilisation")
  check.equal(seen.record.gpu_utilization, nil)
  check.equal(#seen.fields, 1)
  seen = watched("whole", "FAKE_NVML_nvmlDeviceGetMemoryInfo=3")
  check.equal(seen.record.gpu_memory_used, nil, "memory that is refused")
  check.equal(seen.record.gpu_utilization, 97)
  for _, case in ipairs { { "broken", "" }, { "whole", "FAKE_NVML_nvmlInit_v2=9" }, { "whole", "FAKE_NVML_gpus=0" },
    { "whole", "FAKE_NVML_nvmlDeviceGetCount_v2=999" }, { "whole", "FAKE_NVML_nvmlDeviceGetHandleByIndex_v2=15" } } do
    seen = watched(case[1], case[2] .. " AS_RANK=1")
    check.equal(next(seen.record), nil, case[1] .. " " .. case[2])
    check.equal(#seen.fields, 0)
  end
end)

test("why there is no NVML", function()
  local function why(kind, settings)
    return run(kind, settings, [[
      local C, n = require "lorarun.base.c", require("ffi").new "int[1]"
      print(C.lr_gpu_count(n) == C.LR_EUNSUPPORTED and require("ffi").string(C.lr_last_error()) or n[0] .. " GPUs")]]).out
  end
  check.equal(why("whole", "FAKE_NVML_gpus=3"), "3 GPUs\n")
  check.equal(why("broken", ""), "libnvidia-ml.so.1 lacks nvmlDeviceGetHandleByIndex_v2: the driver is too old\n")
  check.equal(why("whole", "FAKE_NVML_nvmlInit_v2=9"), "NVML: fake error 9; the kernel module nvidia is not loaded\n")
  check.equal(why("whole", "FAKE_NVML_nvmlInit_v2=18"),
    "NVML: fake error 18; the driver was updated while it ran: restart the machine\n")
end)

test("it is asked once a second at most", function()
  local r = run("whole", "", [[
    local C = require "lorarun.base.c"
    local watch = require("lorarun.dist.gpu").watch "cpu"
    watch.number = 0
    require("ffi").cdef "int setenv(const char *, const char *, int);"
    local changes, last, started = 0, nil, C.lr_time()
    local turns = 0
    while C.lr_time() - started < 1.5 do
      turns = turns + 1
      require("ffi").C.setenv("FAKE_NVML_utilization", tostring(turns % 1000), 1)
      local now = watch:now().utilization
      if now ~= last then changes, last = changes + 1, now end
    end
    print(changes, turns)]])
  local changes, turns = r.out:match "(%d+)%s+(%d+)"
  check.equal(changes, "2", r.err)
  check.that(tonumber(turns) > 1000, turns)
end)

-- ---- a whole training run, where this program has a device that such an NVML knows -------------------------------------------
local function trained(kind, device)
  local result
  shell.with_folder(function(folder)
    local rows = {}
    for i = 1, 6 do rows[i] = json.encode { current_line = "x = " .. i, context = "y", score = i % 2 } end
    fs.make(fs.join(folder, "data"))
    fs.write(fs.join(folder, "data", "train.jsonl"), table.concat(rows, "\n") .. "\n")
    local r = run(kind, "LORARUN_SIMT=1", ([[
      local model = lr.load_model(%q, { max_length = 8, device = %q })
      model:add_lora { rank = 2, targets = { "query" } }
      lr.train { model = model, data = %q, output = %q, batch = 2, max_steps = 2,
        columns = { "current_line", "context" } }]]):format(bert, device,
      fs.join(folder, "data"), fs.join(folder, "out")))
    check.equal(r.status, 0, r.err)
    local log = fs.read(fs.join(folder, "out", "log.jsonl"))
    result = { out = r.out, step = json.decode(log:match "[^\n]+") }
  end)
  return result
end

test("training on cuda logs its GPU, on the CPU none", function()
  local cuda = shell.run([[LORARUN_SIMT=1 $L -e 'local t = require("lorarun.train.report").device "cuda" print(t)']])
  if cuda.out:find "CUDA kernels on the CPU" then
    local r = trained("whole", "cuda")
    check.equal(r.step.gpu_memory_used, GIB)
    check.equal(r.step.gpu_utilization, 97)
    check.that(r.out:find("device      CUDA kernels on the CPU", 1, true), r.out)
    check.that(r.out:find("GPU 97% memory 1.0 GiB used, 79.0 free", 1, true), r.out)
    check.equal(trained(nil, "cuda").step.gpu_memory_used, nil, "without NVML")
  end
  local r = trained("whole", "cpu")
  check.equal(r.step.gpu_memory_used, nil)
  check.that(not r.out:find "GPU 97", r.out)
end)
