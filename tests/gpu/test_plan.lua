-- lorarun plan compared with a step on a GPU: the peak of its tensors, and the working memory of its kernels. With LORARUN_SIMT=1
-- CUDA's kernels run on the CPU, and the plan is compared with such a step.
if not require("lorarun").has_gpu() then skip "no GPU" end
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local golden = fs.join(os.getenv "LORARUN_TESTS", "golden")
local TARGETS = { bert = "query,key,value", qwen2 = "q_proj,k_proj,v_proj" }

-- Takes one step, or plans it, and writes how much memory it took, or will take.
local RECIPE = [[
local lr, memory = require "lorarun", require "lorarun.tensor.memory"
local folder, model_folder, targets, precision, recompute = unpack(arg)
local model = lr.load_model(model_folder, { max_length = 64, precision = precision, device = "cuda" })
model:add_lora { rank = 4, alpha = 8, dropout = 0.1, targets = lr.split(targets, ",") }
local seen
local ok, planned = pcall(lr.train, { model = model, data = folder .. "/data", output = folder .. "/out", batch = 6, max_steps = 1,
  sampling = "shuffled", columns = { "current_line", "context" }, recompute = recompute, on_step = function()
    local s = memory.stats "cuda"
    seen = { peak = s.peak_bytes, workspace = s.scratch_bytes }
    error "seen"
  end })
if not seen then
  assert(ok, planned)
  local held = planned.held
  seen = { peak = held.weights + held.adapters + held.gradients + held.optimizer + planned.batch.step,
    workspace = planned.batch.workspace }
end
lr.fs.write(folder .. "/result.json", lr.json.encode(seen))
]]

local function run(folder, command, ...)
  local words = { fs.join(folder, "recipe.lua"), folder, ... }
  for i, word in ipairs(words) do words[i] = shell.quote(word) end
  local r = shell.run("$L " .. command .. " " .. table.concat(words, " "))
  check.equal(r.status, 0, r.err)
  return json.decode_file(fs.join(folder, "result.json"))
end

for arch, targets in pairs(TARGETS) do
  for _, precision in ipairs { "fp32", "bf16" } do
    test(("%s in %s: the peak of a real step is the plan's, and so is its working memory"):format(arch, precision), function()
      shell.with_folder(function(folder)
        local lines = {}
        for i = 1, 12 do
          lines[i] = json.encode { current_line = ("x = %d"):format(i), score = i % 2,
            context = ("y = f(x, %d)\n"):format(i):rep(i % 7 + 1) }
        end
        fs.make(fs.join(folder, "data"))
        fs.write(fs.join(folder, "data", "train.jsonl"), table.concat(lines, "\n") .. "\n")
        fs.write(fs.join(folder, "recipe.lua"), RECIPE)
        for _, recompute in ipairs { "none", "all" } do
          local planned = run(folder, "plan --gpu-memory 8GB", fs.join(golden, arch), targets, precision, recompute)
          local seen = run(folder, "", fs.join(golden, arch), targets, precision, recompute)
          check.near(seen.peak / planned.peak, 1, 0.001, ("of %d bytes planned and %d taken the ratio"):format(planned.peak,
            seen.peak))
          check.equal(seen.workspace, planned.workspace, "bytes of working memory")
        end
      end)
    end)
  end
end
