-- The recipe as a user runs it, on the GPU and on the CPU: both learn the same. 200 steps of the small preset (all-MiniLM-L6-v2,
-- bugs planted in this machine's Python sources) end at the CPU's score in every precision, and two runs end in the same bits. With
-- CUDA's kernels on the CPU (LORARUN_SIMT=1) there are only a few steps of a tiny model, which show that losses are close.
if not require("lorarun").has_gpu() then skip "no GPU" end
local lr = require "lorarun"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local tests = os.getenv "LORARUN_TESTS"
local recipe = shell.quote(fs.join(fs.dirname(tests), "recipes", "bugdetect.lua"))
local modelled = os.getenv "LORARUN_SIMT" ~= nil
local PRECISIONS = { "fp32", "bf16", "fp16" }

-- How far a run may differ from the CPU's in fp32: in the mean loss of its last steps, and in its score. Rounding makes runs
-- diverge slowly, faster with 16 bits than with 32.
local NEAR = { fp32 = { loss = 0.02, score = 0.01 }, bf16 = { loss = 0.04, score = 0.03 }, fp16 = { loss = 0.04, score = 0.03 } }

local function tiny_data(folder)
  fs.make(folder)
  for _, split in ipairs { "train", "validation", "test" } do
    local lines = {}
    for i = 1, 24 do
      lines[i] = json.encode { current_line = ("x = %d"):format(i), context = ("y = f(x, %d)\n"):format(i):rep(i % 4 + 1),
        score = i % 2, context_type = "context_full" }
    end
    fs.write(fs.join(folder, split .. ".jsonl"), table.concat(lines, "\n") .. "\n")
  end
  return folder
end

local function small_job(folder)
  if modelled then
    return { model = fs.join(tests, "golden", "bert"), data = tiny_data(fs.join(folder, "data")), steps = 4, rows = 24,
      words = "--batch 4 --max-length 32 --warmup 1 --learning-rate 1e-3" }
  end
  local model = lr.hub.small_model()
  if not fs.is_directory(model) then return nil end
  return { model = model, data = lr.bugdata.from_this_machine {}, steps = 200, rows = 3000,
    words = "--batch 32 --max-length 128 --warmup 50 --learning-rate 1e-3" }
end

-- Runs the recipe. Returns { losses, score, adapter = checksum }.
local function run(folder, job, flags, precision, steps)
  local output = fs.join(folder, "out")
  if fs.exists(output) then fs.remove(output) end
  local r = shell.run(("$L %s %s --model %s --data %s --output %s --targets query,key,value --max-steps %d --evaluation-steps %d "
    .. "--max-evaluation-rows %d --precision %s %s"):format(flags, recipe, shell.quote(job.model), shell.quote(job.data),
    shell.quote(output), steps, steps, job.rows, precision, job.words))
  check.equal(r.status, 0, ("%s in %s: %s\nstatus"):format(flags == "" and "GPU" or "CPU", precision, r.err))
  local result = { losses = {}, adapter = fs.crc32c(fs.join(output, "adapter", "adapter_model.safetensors")),
    score = json.decode_file(fs.join(output, "evaluation.json")).validation.spearman }
  for line in fs.read(fs.join(output, "log.jsonl")):gmatch "[^\n]+" do
    local record = json.decode(line, "log.jsonl")
    if record.kind == "step" then result.losses[record.step] = record.loss end
  end
  check.equal(#result.losses, steps, "steps in log.jsonl")
  return result
end

-- The mean of the last quarter, because single batches differ too much.
local function last_loss(result)
  local sum, n = 0, #result.losses
  local from = n - math.floor(n / 4) + 1
  for step = from, n do sum = sum + result.losses[step] end
  return sum / (n - from + 1)
end

test("the recipe ends at the CPU's score in every precision", function()
  shell.with_folder(function(folder)
    local job = small_job(folder)
    if not job then
      print "the small model is not here (make run fetches it): the recipe is not compared"
      return
    end
    local cpu = run(folder, job, "--cpu", "fp32", job.steps)
    for _, precision in ipairs(PRECISIONS) do
      local gpu = run(folder, job, "", precision, job.steps)
      print(("%s: loss %.4f (CPU in fp32: %.4f), score %.4f (%.4f) after %d steps"):format(precision, last_loss(gpu),
        last_loss(cpu), gpu.score, cpu.score, job.steps))
      check.near(gpu.losses[1], cpu.losses[1], NEAR[precision].loss * cpu.losses[1], precision .. ": the first step's loss")
      check.near(last_loss(gpu), last_loss(cpu), NEAR[precision].loss * last_loss(cpu), precision .. ": the last steps' loss")
      if not modelled then check.near(gpu.score, cpu.score, NEAR[precision].score, precision .. ": score") end
    end
  end)
end)

test("two runs end in the same bits", function()
  shell.with_folder(function(folder)
    local job = small_job(folder)
    if not job then return end
    local steps = modelled and 2 or 20
    for _, precision in ipairs(modelled and { "bf16" } or PRECISIONS) do
      local first, second = run(folder, job, "", precision, steps), run(folder, job, "", precision, steps)
      check.equal(second.adapter, first.adapter, precision .. ": checksum of the adapter")
      check.array(second.losses, first.losses, 0, precision .. ": losses")
    end
  end)
end)
