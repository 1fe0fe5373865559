-- Training compared with sentence-transformers + PEFT: the same model, rows, batch size, adapters and threads, one after the other:
--   lorarun bench/reference.lua [--data FOLDER] [--max-length 128] [--batch 32] [--steps 10]
-- Needs the Python environment of `make interop`; without it, says so and ends. Both train with sentence-transformers' loss on the
-- first rows of the file in order; the first two steps of each do not count. Prints pairs/s of both and their ratio.
local lr = require "lorarun"
local fs = lr.fs

local args = lr.args {
  { "model", "", "folder; empty: the small model" },
  { "data", "", "folder with train.jsonl; empty: the small preset's" },
  { "max-length", 128, "tokens a text", type = "integer", min = 1 },
  { "batch", 32, "pairs a step", type = "integer", min = 1 },
  { "steps", 10, "timed", type = "integer", min = 1 },
  { "targets", "query,key,value", "of LoRA" },
  { "threads", 2, "of each", type = "integer", min = 1 },
}

local root = fs.dirname(fs.dirname(fs.real(arg[0])))
local beside = dofile(fs.join(root, "bench", "lib", "beside.lua"))

-- The environment is not made here, since that takes a gigabyte and minutes: `make interop` makes it.
local text = beside.output_of(beside.quote(fs.join(root, "tests", "interop", "setup.sh")) .. " --check 2>/dev/null")
local environment = text:match "([^\n]+)\n*$"
if not environment then
  print "sentence-transformers is not set up here (make interop does that): no comparison"
  os.exit(0)
end

local o = { root = root, python = fs.join(environment, "bin", "python"),
  model = args.model ~= "" and args.model or lr.hub.small_model(),
  data = args.data ~= "" and args.data or lr.bugdata.from_this_machine {}, batch = args.batch, steps = args.steps,
  max_length = args.max_length, targets = args.targets, threads = args.threads, device = "cpu" }

local function rate(run, precision, sorted)
  o.precision, o.sorted = precision, sorted
  local result, why = run(o)
  return result or error(why, 0)
end

print(("%s, %s, batch %d, at most %d tokens, %d threads"):format(fs.basename(o.model), o.data, args.batch, args.max_length,
  args.threads))
for _, precision in ipairs { "fp32", "bf16" } do
  local mine = rate(beside.lorarun, precision)
  local theirs, sorted = rate(beside.reference, precision, false), rate(beside.reference, precision, true)
  print(("%-4s  lorarun %6.1f pairs/s, %6.0f tokens/s   sentence-transformers + PEFT %6.1f pairs/s, %6.0f tokens/s, padded %.1fx "
    .. "(sorted by length %6.1f pairs/s)   ratio %.2f (%.2f)"):format(precision, mine.pairs_per_second, mine.tokens_per_second,
    theirs.pairs_per_second, theirs.tokens_per_second, theirs.padding, sorted.pairs_per_second,
    mine.pairs_per_second / theirs.pairs_per_second, mine.pairs_per_second / sorted.pairs_per_second))
end
