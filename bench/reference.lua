-- Training beside sentence-transformers + PEFT: the same model, rows, batch size, adapters and threads, one after the other:
--   lorarun bench/reference.lua [--data FOLDER] [--max-length 128] [--batch 32] [--steps 10]
-- Needs the environment of `make interop`; without it, says so and ends. Both train with sentence-transformers' loss on the first
-- rows of the file in order; the first two steps of each do not count. Prints pairs/s of both and their ratio.
local lr = require "lorarun"
local fs, json = lr.fs, lr.json

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
local program = fs.real("/proc/self/exe")
local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end
local function output_of(command)
  local pipe = io.popen(command, "r")
  local text = pipe:read "*a"
  pipe:close()
  return text
end

-- Not made here: that takes a gigabyte and minutes. `make interop` does.
local python = output_of(quote(root .. "/tests/interop/setup.sh") .. " --check 2>/dev/null"):match "([^\n]+)\n*$"
if not python then
  print "sentence-transformers is not set up here (make interop does that): no comparison"
  os.exit(0)
end
python = python .. "/bin/python"

local model = args.model ~= "" and args.model or lr.hub.small_model()
local data = args.data ~= "" and args.data or lr.bugdata.from_this_machine {}
local WARMUP = 2

local function lorarun(precision)
  local folder = os.tmpname()
  os.remove(folder)
  local command = ("%s %s --model %s --data %s --output %s --targets %s --max-length %d --batch %d --max-steps %d --threads %d "
    .. "--precision %s --sampling sequential --warmup 0 --evaluation-steps 100000 --max-evaluation-rows 2 >/dev/null"):format(
    quote(program), quote(root .. "/recipes/bugdetect.lua"), quote(model), quote(data), quote(folder), quote(args.targets),
    args.max_length, args.batch, args.steps + WARMUP, args.threads, precision)
  if os.execute(command) ~= 0 then error "lorarun's own run failed" end
  local first, last, pairs_, tokens = nil, nil, 0, 0
  for line in fs.read(fs.join(folder, "log.jsonl")):gmatch "[^\n]+" do
    local record = json.decode(line, "log.jsonl")
    if record.kind == "step" and record.step == WARMUP then first = record.seconds end
    if record.kind == "step" and record.step > WARMUP then
      last, pairs_, tokens = record.seconds, pairs_ + record.pairs, tokens + record.tokens
    end
  end
  fs.remove(folder)
  return pairs_ / (last - first), tokens / (last - first)
end

local function reference(precision, sorted)
  local text = output_of(("%s %s %s %s --batch %d --steps %d --warmup %d --threads %d --precision %s --max-length %d --targets %s "
    .. "%s 2>/dev/null"):format(quote(python), quote(root .. "/tests/interop/bench_reference.py"), quote(model),
    quote(fs.join(data, "train.jsonl")), args.batch, args.steps, WARMUP, args.threads, precision, args.max_length,
    quote(args.targets), sorted and "--sorted" or ""))
  local result = json.decode(text:match "%b{}" or error "bench_reference.py failed", "bench_reference.py")
  return result.pairs_per_second, result.tokens_per_second, result.padding
end

print(("%s, %s, batch %d, at most %d tokens, %d threads"):format(fs.basename(model), data, args.batch, args.max_length,
  args.threads))
for _, precision in ipairs { "fp32", "bf16" } do
  local mine, my_tokens = lorarun(precision)
  local theirs, their_tokens, padding = reference(precision, false)
  local sorted = reference(precision, true)
  print(("%-4s  lorarun %6.1f pairs/s, %6.0f tokens/s   sentence-transformers + PEFT %6.1f pairs/s, %6.0f tokens/s, padded %.1fx "
    .. "(sorted by length %6.1f pairs/s)   ratio %.2f (%.2f)"):format(precision, mine, my_tokens, theirs, their_tokens, padding,
    sorted, mine / theirs, mine / sorted))
end
