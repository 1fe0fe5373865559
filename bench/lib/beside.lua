-- beside.lua: the same training here and with sentence-transformers + PEFT: the same model folder, the same rows in the order of
-- their file, the same batch size, the same adapters. For bench/reference.lua and bench/gpu/beside.lua:
--   local beside = dofile(".../bench/lib/beside.lua")
--   beside.lorarun(o), beside.reference(o) -> { pairs_per_second, tokens_per_second, ... }, or nil and why not
-- o: { root, python (reference), model, data (folder with train.jsonl and validation.jsonl), batch, steps, max_length, targets,
--      precision, device = "cpu" or "cuda", threads, sorted, weights = "fp32" or "bf16" (reference), checkpointing (reference) }
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"

local beside = {}
local WARMUP = 2 -- steps that do not count
local program = fs.real "/proc/self/exe"

function beside.quote(text) return "'" .. tostring(text):gsub("'", "'\\''") .. "'" end
local quote = beside.quote

--- output_of(command): the command's output, and whether it succeeded.
function beside.output_of(command)
  local pipe = io.popen(command .. "; echo \"status $?\"", "r")
  local text = pipe:read "*a"
  pipe:close()
  local before, status = text:match "^(.*)status (%d+)\n$"
  return before, status == "0"
end

local function options(list)
  local words = {}
  for _, option in ipairs(list) do
    words[#words + 1] = "--" .. option[1]
    if option[2] ~= nil then words[#words + 1] = quote(option[2]) end
  end
  return table.concat(words, " ")
end

-- Trains until the last step that is timed; evaluation and writing the model are not timed.
local SCRIPT = [[
local lr = require "lorarun"
local args = lr.args { { "model", "" }, { "data", "" }, { "output", "" }, { "targets", "" }, { "max-length", 512 }, { "batch", 32 },
  { "steps", 10 }, { "threads", 0 }, { "precision", "fp32" } }
local job = lr.launch { precision = args.precision }
lr.threads(args.threads)
local model = lr.load_model(args.model, { max_length = args.max_length, precision = job.precision })
model:add_lora { rank = 16, alpha = 32, dropout = 0.1, targets = lr.split(args.targets, ",") }
local DONE = {}
local ok, err = pcall(lr.train, { model = model, data = args.data, output = args.output, batch = args.batch,
  max_steps = args.steps + 1, columns = { "current_line", "context" },
  sampling = "sequential", learning_rate = 3e-4, max_evaluation_rows = 2,
  evaluation_steps = 1e9, on_step = function(step) if step.step == args.steps then error(DONE, 0) end end })
if not ok and err ~= DONE then error(err, 0) end
]]

function beside.lorarun(o)
  local folder = os.tmpname()
  os.remove(folder)
  fs.make(folder)
  local script, output = fs.join(folder, "train.lua"), fs.join(folder, "out")
  fs.write(script, SCRIPT)
  local text, ok = beside.output_of(("%s %s %s %s 2>&1"):format(quote(program), o.device == "cpu" and "--cpu" or "", quote(script),
    options { { "model", o.model }, { "data", o.data }, { "output", output }, { "targets", o.targets },
      { "max-length", o.max_length }, { "batch", o.batch }, { "steps", o.steps + WARMUP }, { "threads", o.threads or 0 },
      { "precision", o.precision } }))
  local first, last, pairs_, tokens = nil, nil, 0, 0
  for line in (ok and fs.read(fs.join(output, "log.jsonl")) or ""):gmatch "[^\n]+" do
    local record = json.decode(line, "log.jsonl")
    if record.kind == "step" and record.step == WARMUP then first = record.seconds end
    if record.kind == "step" and record.step > WARMUP then
      last, pairs_, tokens = record.seconds, pairs_ + record.pairs, tokens + record.tokens
    end
  end
  fs.remove(folder)
  if not ok or not last then return nil, text:match "([^\n]*)\n*$" end
  return { pairs_per_second = pairs_ / (last - first), tokens_per_second = tokens / (last - first) }
end

function beside.reference(o)
  local list = { { "batch", o.batch }, { "steps", o.steps }, { "warmup", WARMUP }, { "threads", o.threads or 4 },
    { "precision", o.precision }, { "max-length", o.max_length }, { "targets", o.targets }, { "device", o.device },
    { "weights", o.weights or "fp32" } }
  if o.sorted then list[#list + 1] = { "sorted" } end
  if o.checkpointing then list[#list + 1] = { "gradient-checkpointing" } end
  local errors = os.tmpname()
  local text, ok = beside.output_of(("%s %s %s %s %s 2>%s"):format(quote(o.python),
    quote(fs.join(o.root, "tests", "interop", "bench_reference.py")), quote(o.model), quote(fs.join(o.data, "train.jsonl")),
    options(list), quote(errors)))
  local why = fs.read(errors):match "([^\n]*)\n*$"
  os.remove(errors)
  if not ok then return nil, why end
  return json.decode(text:match "%b{}\n*$" or text, "bench_reference.py")
end

return beside
