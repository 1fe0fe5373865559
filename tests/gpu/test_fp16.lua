-- Training in fp16 on a GPU: the scale of the loss, steps that overflow, what a checkpoint stores about both, and that a single
-- rank waits for its device once a step. Also runs on CUDA's kernels on the CPU (LORARUN_CUDA=host, LORARUN_SIMT=1).
if not require("lorarun").has_gpu() then skip "no GPU" end
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

-- How far a run may differ from one in fp32: in each step's loss, and in the final score.
local NEAR = { bf16 = { loss = 0.05, score = 0.05 }, fp16 = { loss = 0.02, score = 0.05 } }
local golden = fs.join(os.getenv "LORARUN_TESTS", "golden")

-- Makes data: lines that differ in one word, with score 1 for the right word.
local function make_data(folder)
  fs.make(folder)
  for split, count in pairs { train = 24, validation = 8 } do
    local lines = {}
    for i = 1, count do
      lines[i] = json.encode { current_line = i % 2 == 0 and "return total" or "return error", score = 1 - i % 2,
        context = ("total = sum(x%d)\n"):format(i) }
    end
    fs.write(fs.join(folder, split .. ".jsonl"), table.concat(lines, "\n") .. "\n")
  end
end

-- What two runs must have in common: every step, and the final adapters.
local RECIPE = [[
local lr = require "lorarun"
local folder, model_folder, precision, output, start, options = unpack(arg)
local optim = require "lorarun.tensor.optim"
if start ~= "" then -- a first scale other than 2^16
  local adamw = optim.adamw
  optim.adamw = function(parameters, o)
    o.loss_scale = tonumber(start)
    return adamw(parameters, o)
  end
end
lr.launch { precision = precision }
local model = lr.load_model(model_folder, { max_length = 32, precision = precision })
assert(model.device == "cuda")
model:add_lora { rank = 4, alpha = 8, dropout = 0.1, targets = "all-linear" }
local given = { model = model, data = folder .. "/data", output = output, batch = 4, epochs = 2, sampling = "shuffled",
  learning_rate = 5e-3, evaluation_steps = 4, columns = { "current_line", "context" },
  schedule = lr.schedule.warmup_linear(2) }
for key, value in pairs(assert(loadstring("return " .. options))()) do given[key] = value end
local result = lr.train(given)
print("RESULT " .. require("lorarun.base.json").encode { spearman = result.validation.spearman,
  adapters = require("lorarun.dist.data_parallel").checksum(model.lora.parameters.value) })
]]

local function train(folder, arch, precision, output, start, options)
  local script, out = fs.join(folder, "recipe.lua"), fs.join(folder, output)
  fs.write(script, RECIPE)
  if not fs.is_directory(fs.join(folder, "data")) then make_data(fs.join(folder, "data")) end
  local words = { "$L", script, folder, fs.join(golden, arch), precision, out, start or "", options or "{}" }
  for i = 2, #words do words[i] = shell.quote(words[i]) end
  local r = shell.run(table.concat(words, " "))
  local steps, result = {}, r.out:match "RESULT (%b{})"
  for line in fs.read(fs.join(out, "log.jsonl")):gmatch "[^\n]+" do
    local record = json.decode(line)
    if record.kind == "step" then steps[#steps + 1] = record end
  end
  return steps, result and json.decode(result), r
end

for _, arch in ipairs { "bert", "qwen2" } do
  test(arch .. ": bf16 and fp16 end where fp32 does", function()
    shell.with_folder(function(folder)
      local exact, expected, r = train(folder, arch, "fp32", "fp32")
      check.equal(r.status, 0, r.err)
      check.that(exact[#exact].loss < 0.7 * exact[1].loss, exact[#exact].loss)
      check.that(expected.spearman > 0.8, expected.spearman)
      check.equal(exact[1].loss_scale, nil)
      for precision, scale in pairs { bf16 = false, fp16 = 65536 } do
        local half, result, run = train(folder, arch, precision, precision)
        check.equal(run.status, 0, run.err)
        check.equal(#half, #exact)
        for i, step in ipairs(half) do
          check.near(step.loss, exact[i].loss, NEAR[precision].loss, ("loss of step %d in %s"):format(i, precision))
          check.equal(step.loss_scale or false, scale)
        end
        check.near(result.spearman, expected.spearman, NEAR[precision].score, "score in " .. precision)
      end
    end)
  end)
end

test("a step that overflows changes nothing but the scale, and the schedule waits for it", function()
  shell.with_folder(function(folder)
    local steps, result, r = train(folder, "bert", "fp16", "out", "1e9")
    check.equal(r.status, 0, r.err)
    local skipped = 0
    while steps[skipped + 1].grad_norm == "overflow" do
      skipped = skipped + 1
      check.near(steps[skipped].loss_scale, 1e9 / 2 ^ skipped, 1)
      check.equal(steps[skipped].learning_rate, 0)
    end
    check.that(skipped > 0 and skipped < 12, skipped)
    check.that(r.out:find(("skipped +%d step"):format(skipped)), r.out)
    local warmup = { 0, 2.5e-3, 5e-3 } -- two steps of warmup, then the rate falls
    for i = 1, 3 do check.near(steps[skipped + i].learning_rate, warmup[i], 1e-12) end
    check.that(steps[#steps].loss < 0.9 * steps[1].loss and result.spearman > 0, steps[#steps].loss)
  end)
end)

test("a run that was stopped goes on with its scale, to the same bits", function()
  shell.with_folder(function(folder)
    local _, whole, uninterrupted = train(folder, "bert", "fp16", "whole", "1e9")
    local _, none, r = train(folder, "bert", "fp16", "parts", "1e9",
      "{ on_step = function(s) if s.step == 7 then error('enough', 0) end end }")
    check.equal(none, nil)
    check.that(r.err:find "enough", r.err)
    local steps, parts, resumed = train(folder, "bert", "fp16", "parts", "", "{ resume = 'latest' }")
    check.equal(parts.adapters, whole.adapters)
    check.that(steps[5].loss_scale ~= 65536, steps[5].loss_scale)
    local skipped = uninterrupted.out:match "skipped +%d+ step"
    check.that(skipped, uninterrupted.out)
    check.equal(resumed.out:match "skipped +%d+ step", skipped)
  end)
end)

for _, precision in ipairs { "bf16", "fp16" } do
  test(precision .. ": one rank waits for its device once a step", function()
    shell.with_folder(function(folder)
      local steps, _, r = train(folder, "qwen2", precision, "out", "", [[{ accumulate = 2, on_step = (function()
        local tensor, reads = require "lorarun.tensor.tensor", 0
        local data = tensor.Tensor.data
        tensor.Tensor.data = function(t)
          reads = reads + 1
          return data(t)
        end
        return function(s)
          if s.step % 4 ~= 1 then print("READS " .. reads) end -- only of steps that do not follow an evaluation
          reads = 0
        end
      end)() }]])
      check.equal(r.status, 0, r.err)
      local count = 0
      for reads in r.out:gmatch "READS (%d+)" do
        count = count + 1
        check.equal(reads, "1")
      end
      check.that(count >= #steps / 2 and count > 2, count)
    end)
  end)
end
