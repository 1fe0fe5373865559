-- One training step and one evaluation pass of a tiny Qwen2 and a tiny BERT on the GPU, in the given precisions. test_sanitizer.lua
-- runs this under compute-sanitizer. Prints the losses.
local lr = require "lorarun"
local dataset = require "lorarun.data.dataset"
local load_model = require("lorarun.models.model").load
local autograd, ops, tensor = lr.autograd, lr.ops, lr.tensor

local TEXTS = { "x = 1", "def f(x):\n    return x * 2 + 1\n", "for i in range(10):\n    print(i)\n", "y" }
local LOSS = { qwen2 = lr.loss.multiple_negatives_ranking(), bert = lr.loss.cosine_similarity() }

for _, arch in ipairs { "qwen2", "bert" } do
  for i = 1, #arg do
    local model = load_model(lr.fs.join(os.getenv "LORARUN_TESTS", "golden", arch), { device = "cuda", precision = arg[i] })
    model:add_lora { rank = 4, alpha = 8, dropout = 0.1, targets = "all-linear" }
    local optimizer = lr.adamw(model:parameters(), { max_grad_norm = 1 })
    local loss = autograd.gradients(function()
      local batch = dataset.pack(model.tokenizer, TEXTS, model.max_length)
      local e = model:forward(model:context(batch, { training = true, recompute = 1, seed = 1, step = 1 }))
      batch:close()
      local labels = tensor.from({ 1, 0 }, { 2 }, "f32", "labels", "cuda")
      return LOSS[arch].compute({ ops.rows(e, 0, 2), ops.rows(e, 2, 4) }, labels, e)
    end)
    optimizer:step(1e-3)
    lr.scope(function() model:encode(TEXTS) end)
    print(("%s %s %.6f"):format(arch, arg[i], loss))
    optimizer:free()
    model:free()
  end
end
