-- beside.lua: training compared with sentence-transformers + PEFT + torch on the same GPU: the same weights (bf16), rows, batch and
-- adapters. Their first row of figures takes batches in the order of the file; "sorted" is the best that padding allows: rows
-- ordered by length before they are cut into batches. If a batch does not fit the memory, they recompute every layer (gradient
-- checkpointing).
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"

local PROBE = "import torch, peft, sentence_transformers as s; assert torch.cuda.is_available(), 'torch sees no GPU'; "
  .. "print('sentence-transformers', s.__version__ + ', PEFT', peft.__version__ + ', torch', torch.__version__)"

-- Rows of random letters: in the model that make_model.lua writes, a letter is a token.
local function write_rows(bench, folder, rows)
  fs.make(folder)
  local lengths, lines, state = bench.synthetic.lengths(rows), {}, 1
  local function text(n)
    local letters = {}
    for i = 1, n do
      state = (state * 16807) % 2147483647
      letters[i] = string.char(97 + state % 26)
    end
    return table.concat(letters)
  end
  for i = 1, rows do
    lines[i] = json.encode { current_line = text(lengths[i]), context = text(lengths[rows + i]), score = i % 2 }
  end
  fs.write(fs.join(folder, "train.jsonl"), table.concat(lines, "\n") .. "\n")
  fs.write(fs.join(folder, "validation.jsonl"), lines[1] .. "\n" .. lines[2] .. "\n")
end

local function python_of(bench, beside)
  local python = bench.args.python ~= "" and bench.args.python or "python3"
  local probe = bench.device == "cuda" and PROBE or PROBE:gsub("assert [^;]*;", "")
  local text, ok = beside.output_of(("%s -c %s 2>&1"):format(beside.quote(python), beside.quote(probe)))
  local last = text:match "([^\n]*)\n*$"
  if ok then return python, last end
  bench.report:note("sentence-transformers + PEFT + torch with CUDA: skipped: %s: %s", python, last)
end

local function both(bench, beside, o)
  local report = bench.report
  local function add(what, r)
    report:row("beside", { what, o.batch, r.pairs_per_second, r.tokens_per_second, r.padding or 1, r.ratio or "" }, r)
  end
  if not bench.time_for(60, ("lorarun with batches of %d"):format(o.batch)) then return end
  if bench.device == "cuda" then beside.lorarun(o) end -- the first run chooses algorithms for each shape, later runs reuse them
  local mine, why = beside.lorarun(o)
  if not mine then
    report:note("lorarun with batches of %d: %s", o.batch, why)
    return
  end
  add("lorarun", mine)
  for _, sorted in ipairs(o.python and { false, true } or {}) do
    local name = "sentence-transformers + PEFT" .. (sorted and ", sorted" or "")
    if not bench.time_for(120, name) then return end
    o.sorted, o.checkpointing = sorted, false
    local theirs, problem = beside.reference(o)
    if not theirs and problem:find "[Oo]ut of memory" then
      o.checkpointing = true
      name = name .. ", checkpointing"
      theirs, problem = beside.reference(o)
    end
    if theirs then
      theirs.ratio = mine.pairs_per_second / theirs.pairs_per_second
      add(name, theirs)
      report:headline("%-34s %8.2f times %s", ("batches of %d"):format(o.batch), theirs.ratio, name)
    else
      report:note("%s with batches of %d: %s", name, o.batch, problem)
    end
  end
end

return function(bench)
  local beside = dofile(fs.join(bench.root, "bench", "lib", "beside.lua"))
  bench.report:table("beside", "Beside sentence-transformers + PEFT, the 7B in bf16 on the same GPU", { "program", "batch",
    "pairs/s", "tokens/s", "padding", "ratio" })
  local python, versions = python_of(bench, beside)
  if versions then bench.report:note("%s", versions) end
  local model = bench.model_folder()
  local data = os.tmpname()
  os.remove(data)
  local batches = bench.tiny and { 4 } or { 16, 64 }
  write_rows(bench, data, batches[#batches] * (bench.args.reference_steps + 4))
  for _, batch in ipairs(batches) do
    both(bench, beside, { root = bench.root, python = python, model = model, data = data, batch = batch,
      steps = bench.args.reference_steps, max_length = 512, targets = "q_proj,k_proj,v_proj", precision = "bf16", weights = "bf16",
      device = bench.device })
  end
  fs.remove(data)
end
