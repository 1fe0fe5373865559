-- report.lua: a plan (plan/init.lua) as text.
local units = require "lorarun.base.units"
local device_traits = require "lorarun.tensor.device_traits"

local report = {}
local size, count = units.size, units.count

-- Rows of texts as indented lines: the first column to the left, the others to the right, what follows the last as it is.
local function aligned(rows, columns)
  local width, lines = {}, {}
  for _, row in ipairs(rows) do
    for c = 1, columns do width[c] = math.max(width[c] or 0, #(row[c] or "")) end
  end
  for i, row in ipairs(rows) do
    local parts = {}
    for c = 1, columns do
      local gap = (" "):rep(width[c] - #(row[c] or ""))
      parts[c] = c == 1 and row[1] .. gap or gap .. (row[c] or "")
    end
    parts[columns + 1] = row[columns + 1]
    lines[i] = ("  " .. table.concat(parts, "  ")):gsub("%s+$", "")
  end
  return table.concat(lines, "\n")
end

local function policy(layers, all)
  return layers == 0 and "none" or layers == all and ("all %d layers"):format(all) or ("%d of %d layers"):format(layers, all)
end

local function title(p)
  local planned, model = p.planned, p.model
  local gpu = device_traits.itself(planned.device).own_memory
  local where = gpu and ("a GPU of %s"):format(size(planned.memory)) or "this machine's CPU"
  if not gpu and planned.processes > 1 then where = ("one of %d ranks on %s"):format(planned.processes, where) end
  local pooling = model.pooling .. " pooling" .. (model.pooling_assumed and " (assumed: there is no modules.json)" or "")
  return ([[plan: %s (%s, %d layers, dimension %d, %s) in %s, LoRA rank %d, on %s
Nothing was loaded. Memory is what lorarun will hold, found by a step without bytes; estimates are marked.]]):format(
    model.name, tostring(model.config.model_type), p.layers, model.dimension, pooling, model.precision, model.lora.config.r, where)
end

local function memory_block(p)
  local h = p.held
  local rows = {
    { "weights", size(h.weights), count(p.frozen) .. " parameters" },
    { "adapters", size(h.adapters), count(p.parameters) .. " trained parameters" },
    { "gradients", size(h.gradients) },
    { "optimizer", size(h.optimizer) },
  }
  if p.driver > 0 then rows[#rows + 1] = { "driver and libraries", size(p.driver), "estimated" } end
  rows[#rows + 1] = { "left for a batch", size(math.max(0, p.room)),
    ("of %s%s"):format(size(p.memory), device_traits.itself(p.planned.device).own_memory and ""
      or ", nine tenths of what is free now") }
  return "memory\n" .. aligned(rows, 2)
end

-- What to change where the batch does not fit.
local function remedy(p)
  if p.room <= 0 then
    local alone = ("the model alone takes %s; take a device with more memory"):format(size(p.memory - p.room))
    return p.model.precision == "fp32" and alone .. ", or give --precision bf16" or alone
  end
  local most = p.policies[#p.policies].pairs
  local list, auto = { "a smaller --max-length" }, p.batch.chosen ~= "as the recipe says"
  if auto and p.batch.splittable then -- it is in parts already; what compares all of it is not
    if p.batch.cached then table.insert(list, 1, "a smaller --batch") end
  elseif most >= 1 and most < p.batch.pairs then
    table.insert(list, 1, ("--batch %d"):format(most))
  end
  if not auto then table.insert(list, 1, "--recompute auto") end
  if p.model.precision == "fp32" then list[#list + 1] = "--precision bf16" end
  return "give " .. table.concat(list, ", or ")
end

local function batch_block(p)
  local b, rows, kept = p.batch, {}, 0
  for _, k in ipairs(b.kept) do
    kept = kept + k.bytes
    local buffers = ("%d buffer%s"):format(k.buffers, k.buffers == 1 and "" or "s")
    if k.bytes > b.step / 500 then rows[#rows + 1] = { "  " .. k.name, size(k.bytes), buffers } end
  end
  table.insert(rows, 1, { "kept for backward", size(kept) })
  rows[#rows + 1] = { "backward's own, at its peak", size(b.step - kept) }
  if b.workspace > 0 then rows[#rows + 1] = { "working memory of kernels", size(b.workspace), "at most" } end
  rows[#rows + 1] = { "all told", size(b.peak), b.fits and "fits" or "does not fit: " .. remedy(p) }
  local sample = b.batches == 1 and "1 batch" or b.batches .. " batches"
  local longest = b.longest and policy(b.longest, p.layers) or "it would not fit"
  local parts = ""
  if b.part < b.pairs then
    parts = ("\n  in %d parts of %d pair%s, at most %s tokens, since it does not fit at once%s"):format(math.ceil(b.pairs / b.part),
      b.part, b.part == 1 and "" or "s", count(b.tokens), b.cached and "; each embedded twice (GradCache)" or "")
  end
  return ([[batch of %d pairs, %d texts%s
  tokens: %s on average, %s in the largest of %s (%s)
  recompute: %s (%s); if all its texts had %d tokens: %s
%s]]):format(b.pairs, b.texts, parts, count(b.mean), count(b.largest), sample, b.source, policy(b.layers, p.layers), b.chosen,
    p.model.max_length, longest, aligned(rows, 2))
end

local function policies_block(p)
  local rows = { { "recompute", "tokens", "pairs", "time" } }
  for _, r in ipairs(p.policies) do
    rows[#rows + 1] = { policy(r.layers, p.layers), (r.unbounded and ">= " or "") .. count(r.tokens), count(r.pairs),
      ("+%.0f%%"):format(100 * r.slower) }
  end
  return "the largest batch that fits\n" .. aligned(rows, 4)
end

local function evaluation_block(p)
  local e = p.evaluation
  return ("evaluation of %s rows\n  %s at most: %s"):format(count(e.rows), size(e.bytes),
    e.fits and "fits" or "may not fit; a smaller --max-evaluation-rows needs less")
end

local function hours(x) return x and (x >= 10 and "%.0f" or x >= 1 and "%.1f" or "%.2f"):format(x) or "-" end

-- What the hours are of.
local function steps_line(p)
  local t = p.times[1]
  if not t.steps then return "" end
  return ("\n  %s steps on %d %s%s, of %s training rows%s"):format(count(t.steps), t.ranks,
    device_traits.itself(p.planned.device).own_memory and "GPU" or "rank", t.ranks == 1 and "" or "s", count(p.draws),
    p.assumed and " (as many as the recipe takes at most: there is no data yet)" or "")
end

local function times_block(p)
  if #p.times == 0 then
    return ("time\n  unknown: no run of twenty seconds or more in %s has been timed on this CPU yet"):format(p.model.precision)
  end
  local gpu = device_traits.itself(p.planned.device).own_memory
  local rows = { { gpu and "GPUs" or "ranks", "pairs a step", gpu and "memory a GPU" or "memory a rank", "s a step", "pairs/s",
    "hours to the end", "of them evaluating, at most" } }
  for _, t in ipairs(p.times) do
    local known = p.measured and t.ranks == 1 and "measured" or "estimated"
    rows[#rows + 1] = { count(t.ranks), count(t.batch), size(t.memory), ("%.3g"):format(t.seconds), ("%.1f"):format(t.pairs),
      hours(t.training and t.training + t.evaluating), hours(t.evaluating), known }
  end
  return ("time\n%s\n  speed: %s%s"):format(aligned(rows, 7), p.rate_source, steps_line(p))
end

function report.text(p)
  local blocks = { title(p), memory_block(p), batch_block(p), policies_block(p) }
  if p.evaluation then blocks[#blocks + 1] = evaluation_block(p) end
  blocks[#blocks + 1] = times_block(p)
  return table.concat(blocks, "\n\n")
end

return report
