-- Fine-tune an embedding model with LoRA to tell buggy lines of code from correct ones, by their similarity to their context.
--
--   lorarun recipes/bugdetect.lua                              the whole job, or its small preset where there is no GPU
--   lorarun recipes/bugdetect.lua --model DIR --data DIR       your model, your data
--   lorarun recipes/bugdetect.lua --processes 4                on four ranks, each with --batch pairs a step
--
-- Data: a folder with train, validation and test .jsonl (or .csv) whose rows hold current_line, context, score (0 = buggy,
-- 1 = correct) and context_type. recipes/bugdata.lua makes such folders.
local lr = require "lorarun"

local args = lr.args {
  { "model", "nomic-ai/nomic-embed-code", "folder or Hugging Face id of the base model" },
  { "data", "", "folder with train/validation/test .jsonl; empty: made from the Python sources on this machine" },
  { "output", "", "folder to write; empty: models/finetuned-<model>" },
  { "processes", 1, "ranks that share the work", type = "integer", min = 1 },
  { "batch", 64, "pairs a step on each device", type = "integer", min = 1 },
  { "accumulate", 1, "batches a step", type = "integer", min = 1 },
  { "epochs", 3, "passes over the training rows", type = "number" },
  { "max-steps", 0, "stop after this many steps; 0: no limit", type = "integer", min = 0 },
  { "learning-rate", 3e-4, "AdamW's, at the end of warmup" },
  { "warmup", 1000, "steps from 0 to the full learning rate", type = "integer", min = 0 },
  { "schedule", "linear", "after warmup", choices = { "linear", "cosine", "constant" } },
  { "weight-decay", 0.0, "AdamW's" },
  { "clip", 1.0, "largest global gradient norm; 0: none" },
  { "rank", 16, "of the LoRA adapters", type = "integer", min = 1 },
  { "alpha", 32.0, "their scale is alpha / rank" },
  { "dropout", 0.1, "on the adapters' input" },
  { "targets", "auto", "layers to adapt: names with commas, all-linear, or a regex; auto: queries, keys and values" },
  { "max-length", 512, "tokens a text is cut to", type = "integer", min = 1 },
  { "pooling", "", "of token embeddings: mean, cls, last ...; empty: as the model's folder says" },
  { "precision", "auto", "of the forward and backward pass; auto: bf16 on a GPU, fp32 on a CPU",
    choices = { "auto", "fp32", "bf16", "fp16" } },
  { "tf32", false, "in fp32 on a GPU: multiply with 10 bits of each number, which is several times as fast" },
  { "loss", "cosine", "cosine similarity, or multiple negatives ranking", choices = { "cosine", "mnr" } },
  { "sampling", "auto", "order of the rows; auto: weighted by class, with --loss mnr shuffled",
    choices = { "auto", "weighted", "shuffled", "sequential" } },
  { "evaluation-steps", 2000, "steps from one evaluation and checkpoint to the next", type = "integer", min = 1 },
  { "keep", 3, "checkpoints kept, besides the best", type = "integer", min = 1 },
  { "max-train-rows", 850000, "use only the first N training rows; 0: all", type = "integer", min = 0 },
  { "max-evaluation-rows", 780000, "use only the first N rows of validation and of test; 0: all", type = "integer", min = 0 },
  { "on-bad-row", "error", "what happens at a malformed row", choices = { "error", "skip" } },
  { "recompute", "auto", "layers computed again in backward instead of kept: none, all, a number; auto: as few as fit the memory" },
  { "threads", 0, "compute threads; 0: all cores", type = "integer", min = 0 },
  { "seed", 1, "of everything random", type = "integer", min = 0 },
  { "resume", "", "go on from a checkpoint: its path; alone, or latest: the newest" },
}

-- Without a GPU, and where no model was chosen: the same job at a size that a CPU finishes while you watch.
local function small_preset()
  print(("No GPU and no --model: taking the small preset, all-MiniLM-L6-v2 on %s."):format(args.data ~= "" and args.data
    or "bugs planted in this machine's Python sources"))
  local preset = { model = lr.hub.small_model(), batch = 32, epochs = 1, warmup = 50,
    learning_rate = 1e-3, max_length = 128, max_steps = 300, evaluation_steps = 100, max_evaluation_rows = 3000 }
  for name, value in pairs(preset) do
    if not lr.given(args, name) then args[name] = value end
  end
end

local small = not lr.given(args, "model") and not lr.has_gpu()
if small then small_preset() end
if args.output == "" then args.output = "models/finetuned-" .. lr.fs.basename(args.model) end
if args.precision == "auto" then args.precision = lr.has_gpu() and "bf16" or "fp32" end
local job = lr.launch { processes = args.processes, precision = args.precision, args = args,
  model = args.model, data = args.data, output = args.output } -- these are checked; from here on, every rank runs this
lr.threads(args.threads)
lr.tf32(args.tf32)
if args.data == "" then args.data = lr.bugdata.from_this_machine { seed = args.seed } end

local model = lr.load_model(args.model, { max_length = args.max_length, precision = job.precision,
  pooling = args.pooling ~= "" and args.pooling or nil })
if args.targets == "auto" then args.targets = table.concat(model:attention_targets(), ",") end
local targets = args.targets
if targets:find("^[%w_,.]+$") and targets ~= "all-linear" then targets = lr.split(targets, ",") end
model:add_lora { rank = args.rank, alpha = args.alpha, dropout = args.dropout, targets = targets, seed = args.seed }

lr.train {
  model = model, data = args.data, output = args.output,
  title = "to tell buggy lines from correct ones",
  columns = { "current_line", "context" }, score = "score", group = "context_type",
  loss = args.loss, schedule = args.schedule, warmup = args.warmup,
  learning_rate = args.learning_rate, weight_decay = args.weight_decay, clip = args.clip,
  batch = args.batch, accumulate = args.accumulate, epochs = args.epochs, max_steps = args.max_steps,
  sampling = args.sampling, seed = args.seed, recompute = args.recompute,
  evaluation_steps = args.evaluation_steps, evaluate_first = small, keep = args.keep,
  max_train_rows = args.max_train_rows, max_evaluation_rows = args.max_evaluation_rows, on_bad_row = args.on_bad_row,
  resume = args.resume ~= "" and args.resume,
}
