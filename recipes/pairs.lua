-- Fine-tune an embedding model with LoRA on your own pairs: texts that should lie near each other, such as questions and answers.
-- Every query learns to find its own passage among those of its batch (multiple negatives ranking).
local lr = require "lorarun"

local args = lr.args {
  { "data", "pairs.jsonl", 'one pair a line: {"query": "...", "passage": "..."}; or a .csv with these columns' },
  { "model", "all-MiniLM-L6-v2", "folder or Hugging Face id of the base model" },
  { "output", "models/pairs", "folder to write" },
}
local model = lr.load_model(args.model)
model:add_lora { rank = 16, alpha = 32, targets = "all-linear" }
lr.train {
  model = model, data = { train = args.data }, output = args.output,
  columns = { "query", "passage" }, loss = "mnr", batch = 64, epochs = 1, learning_rate = 3e-4,
}
