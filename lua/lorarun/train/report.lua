-- report.lua: what a run tells its user: the banner before the first step, evaluation lines, the summary after the last. These
-- functions take plain values and ask no other module for more.
local data_folder = require "lorarun.formats.data_folder"
local say = require "lorarun.base.say"
local sorted = require "lorarun.base.sorted"
local units = require "lorarun.base.units"

local report = {}

--- A title and rows { name, text }, in two columns.
function report.block(title, rows)
  local lines, width = { title }, 0
  for _, row in ipairs(rows) do width = math.max(width, #row[1]) end
  for _, row in ipairs(rows) do
    lines[#lines + 1] = ("  %s%s  %s"):format(row[1], (" "):rep(width - #row[1]), row[2])
  end
  return table.concat(lines, "\n")
end
local block = report.block

-- What was skipped of each split, "bad rows".
local function add_skipped(rows, sets)
  for _, split in ipairs(data_folder.SPLITS) do
    local set = sets[split]
    if set and set.skipped > 0 then
      rows[#rows + 1] = { "skipped", ("%d bad rows of %s; the first: %s"):format(set.skipped, split, set.first_skip) }
    end
  end
end

--- The opening banner of a run, of the facts that setup.lua lists.
function report.banner(f)
  local targets = f.lora.target_modules
  if type(targets) == "table" then targets = table.concat(targets, ", ") end
  local function rows_in(set) return set and units.count(set.rows) or "no" end
  local rows = { { "device", f.device } }
  if f.ranks > 1 then rows[2] = { "ranks", ("%d"):format(f.ranks) } end
  for _, row in ipairs {
    { "model", f.name == f.folder and f.name or ("%s (%s)"):format(f.name, f.folder) },
    { "data", f.data },
    { "output", f.output },
    { "LoRA", ("rank %d, alpha %g, dropout %g on %s"):format(f.lora.r, f.lora.lora_alpha, f.lora.lora_dropout, tostring(targets)) },
    { "parameters", ("%s trainable of %s (%.3f%%)"):format(units.count(f.trainable), units.count(f.trainable + f.frozen),
      100 * f.trainable / (f.trainable + f.frozen)) },
    { "embedding", ("dimension %d, %s pooling%s, at most %d tokens a text"):format(f.dimension, f.pooling,
      f.normalize and ", normalised" or "", f.max_length) },
    { "batch", ("%d a device, %d effective%s"):format(f.batch, f.global_batch, f.part == f.batch and ""
      or (", in parts of %d that fit the memory"):format(f.part)) },
    { "optimizer", ("AdamW, learning rate %g, warmup %s, weight decay %g, clip %g"):format(f.learning_rate,
      f.warmup and ("%d steps"):format(f.warmup) or "by the recipe's schedule", f.weight_decay, f.clip) },
    { "compute", ("%s, gradient checkpointing %s"):format(f.precision, f.recompute) },
    { "loss", f.loss or "the recipe's own" },
    { "sampling", f.sampling },
    { "rows", ("%s train, %s validation, %s test"):format(rows_in(f.sets.train), rows_in(f.sets.validation),
      rows_in(f.sets.test)) },
  } do rows[#rows + 1] = row end
  for _, c in ipairs(f.classes or {}) do
    rows[#rows + 1] = { "  class " .. ("%g"):format(c.value), ("%s rows, weight %.4f"):format(units.count(c.count), c.weight) }
  end
  add_skipped(rows, f.sets)
  rows[#rows + 1] = { "steps", ("%s an epoch, %s in all (%g epochs); evaluation and checkpoint every %s"):format(
    units.count(f.steps_per_epoch), units.count(f.total_steps), f.epochs, units.count(f.evaluation_steps)) }
  local title = f.title and " " .. f.title or ""
  return block(("lorarun %s: fine-tuning %s%s"):format(require "lorarun.base.version", f.name, title), rows)
end

local function percent(x) return x and ("%.2f%%"):format(100 * x) or "-" end
local function score(x) return x and ("%.4f"):format(x) or "-" end

-- Spearman and Pearson, and where they do not exist why not.
local function correlations(r)
  local why = r.undefined and r.undefined.spearman
  return score(r.spearman), score(r.pearson), why and (" (undefined: %s)"):format(why) or ""
end

--- One line of an evaluation.
function report.evaluation(name, step, r)
  local binary = r.accuracy and ("  accuracy %s  F1 %s  ROC-AUC %s  PR-AUC %s"):format(percent(r.accuracy), score(r.f1),
    score(r.roc_auc), score(r.pr_auc)) or ""
  local spearman, pearson, why = correlations(r)
  return ("%s at step %d: Spearman %s  Pearson %s%s%s  (%s rows, %.1f s)"):format(name, step, spearman, pearson, why, binary,
    units.count(r.rows), r.seconds)
end

local function details(name, r)
  local rows = { { "Spearman, Pearson", ("%s, %s%s"):format(correlations(r)) } }
  if r.accuracy then
    rows[#rows + 1] = { "accuracy", ("%s at threshold %.4f"):format(percent(r.accuracy), r.accuracy_threshold) }
    rows[#rows + 1] = { "precision, recall, F1", ("%s, %s, %s at threshold %.4f"):format(score(r.precision), score(r.recall),
      score(r.f1), r.f1_threshold) }
    rows[#rows + 1] = { "ROC-AUC, PR-AUC", score(r.roc_auc) .. ", " .. score(r.pr_auc) }
    local c = r.confusion
    rows[#rows + 1] = { "confusion matrix", ("true positive %d, false positive %d, true negative %d, false negative %d"):format(
      c.tp, c.fp, c.tn, c.fn) }
  end
  local groups = {}
  for group in sorted(r.by_group or {}) do groups[#groups + 1] = group end
  for _, group in ipairs(groups) do
    local g = r.by_group[group]
    rows[#rows + 1] = { "  " .. group, ("Spearman %s, accuracy %s, F1 %s, ROC-AUC %s (%s rows)"):format(score(g.spearman),
      percent(g.accuracy), score(g.f1), score(g.roc_auc), units.count(g.rows)) }
  end
  return block(name, rows)
end

--- The closing summary. f: { results = { validation, test } as evaluate.run gives them, each nil where there are no such data, best
--- = { step, spearman }, baseline = { spearman } or nil, seconds = of the run, steps, ranks, global_batch, output, skipped = steps,
--- training_seconds, exchange_seconds, counts = of the steps (train/step.lua) }
function report.summary(f)
  local lines = {}
  for _, name in ipairs { "validation", "test" } do
    if f.results[name] then
      lines[#lines + 1] = details(("%s (%s model, step %d)"):format(name, f.best.spearman and "best" or "newest", f.best.step),
        f.results[name])
    end
  end
  local counts, seconds = f.counts, f.training_seconds
  local rows = {
    { "trained", ("%s steps in %s on %d device%s, effective batch %d"):format(units.count(f.steps), units.duration(f.seconds),
      f.ranks, f.ranks == 1 and "" or "s", f.global_batch) },
  }
  if seconds > 0 then
    rows[#rows + 1] = { "speed", ("%.1f pairs/s, %s tokens/s"):format(counts.pairs / seconds,
      units.count(counts.tokens / seconds)) }
    rows[#rows + 1] = { "padding avoided", ("%.1fx: %s real tokens, %s if every column were padded to its longest"):format(
      counts.padded / counts.tokens, units.count(counts.tokens), units.count(counts.padded)) }
  end
  if seconds > 0 and f.ranks > 1 then
    rows[#rows + 1] = { "ranks", ("tokens %.1f%% even (the mean rank beside the fullest), %.1f%% of the time exchanging"):format(
      100 * counts.tokens / f.ranks / counts.fullest, 100 * f.exchange_seconds / seconds) }
  end
  if f.skipped > 0 then
    rows[#rows + 1] = { "skipped", ("%d step%s whose gradient was not finite"):format(f.skipped, f.skipped == 1 and "" or "s") }
  end
  if f.baseline and f.results.validation then
    rows[#rows + 1] = { "validation Spearman", ("%s before training, %s after"):format(score(f.baseline.spearman),
      score(f.results.validation.spearman)) }
  end
  rows[#rows + 1] = { "saved", f.output }
  lines[#lines + 1] = block("done", rows)
  lines[#lines + 1] = ("\nTo use it in Python:\n  from sentence_transformers import SentenceTransformer\n"
    .. "  model = SentenceTransformer(%s)"):format(say.python(f.output))
  return table.concat(lines, "\n")
end

return report
