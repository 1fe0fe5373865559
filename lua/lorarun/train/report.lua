-- report.lua: what a run tells its user: the banner before the first step, evaluation lines, the summary after the last.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local comm = require "lorarun.dist.comm"
local memory = require "lorarun.tensor.memory"
local say = require "lorarun.base.say"
local sorted = require "lorarun.base.sorted"

local report = {}

--- 1704039 -> "1,704,039"
function report.count(n)
  local s = ("%d"):format(n)
  repeat
    local k
    s, k = s:gsub("^(%d+)(%d%d%d)", "%1,%2")
  until k == 0
  return s
end

--- Bytes as "1.0 GiB".
function report.gib(bytes) return ("%.1f GiB"):format(bytes / 2 ^ 30) end

--- Seconds as 1:02:03 or 2:03.
function report.duration(seconds)
  local s = math.floor(seconds + 0.5)
  local h, m = math.floor(s / 3600), math.floor(s / 60) % 60
  return h > 0 and ("%d:%02d:%02d"):format(h, m, s % 60) or ("%d:%02d"):format(m, s % 60)
end

--- One line about a device, "cpu" unless told otherwise.
function report.device(device)
  local text = ffi.new "char[512]"
  check(C.lr_device_describe(memory.DEVICES[device or "cpu"], text, 512))
  return ffi.string(text)
end

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

--- The opening banner of a run (trainer.lua's table).
function report.banner(run)
  local o, model, adapter = run.options, run.model, run.model.lora
  local trainable, frozen = adapter.parameters.count, model:frozen_count()
  local targets = adapter.config.target_modules
  if type(targets) == "table" then targets = table.concat(targets, ", ") end
  local rows = {
    { "device", report.device(model.device) },
    { "world size", ("%d (rank 0, main process)"):format(comm.world_size) },
    { "model", model.name == model.folder and model.name or ("%s (%s)"):format(model.name, model.folder) },
    { "data", run.data_text },
    { "output", o.output },
    { "LoRA", ("rank %d, alpha %g, dropout %g on %s"):format(adapter.config.r, adapter.config.lora_alpha,
      adapter.config.lora_dropout, tostring(targets)) },
    { "parameters", ("%s trainable of %s (%.3f%%)"):format(report.count(trainable), report.count(trainable + frozen),
      100 * trainable / (trainable + frozen)) },
    { "embedding", ("dimension %d, %s pooling%s, at most %d tokens a text"):format(model.dimension, model.pooling,
      model.normalize and ", normalised" or "", model.max_length) },
    { "batch", ("%d a device, %d effective%s"):format(o.batch, run.fixed.global_batch, run.part == o.batch and ""
      or (", in parts of %d that fit the memory"):format(run.part)) },
    { "optimizer", ("AdamW, learning rate %g, warmup %s, weight decay %g, clip %g"):format(o.learning_rate,
      o.warmup and ("%d steps"):format(o.warmup) or "by the recipe's schedule", o.weight_decay, o.clip) },
    { "compute", ("%s, gradient checkpointing %s"):format(model.precision, run.recompute.text) },
    { "loss", run.loss.name or "the recipe's own" },
    { "sampling", run.sampling_text },
    { "rows", ("%s train, %s validation, %s test"):format(report.count(run.train.rows),
      run.validation and report.count(run.validation.rows) or "no", run.test and report.count(run.test.rows) or "no") },
  }
  for _, c in ipairs(run.classes or {}) do
    rows[#rows + 1] = { "  class " .. ("%g"):format(c.value), ("%s rows, weight %.4f"):format(report.count(c.count), c.weight) }
  end
  for _, name in ipairs { "train", "validation", "test" } do
    local set = run[name]
    if set and set.skipped > 0 then
      rows[#rows + 1] = { "skipped", ("%d bad rows of %s; the first: %s"):format(set.skipped, name, set.first_skip) }
    end
  end
  rows[#rows + 1] = { "steps", ("%s an epoch, %s in all (%g epochs); evaluation and checkpoint every %s"):format(
    report.count(run.steps_per_epoch), report.count(run.total_steps), o.epochs, report.count(o.evaluation_steps)) }
  return block(("lorarun %s: fine-tuning %s to tell buggy lines from correct ones"):format(require "lorarun.base.version",
    model.name), rows)
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
    report.count(r.rows), r.seconds)
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
      percent(g.accuracy), score(g.f1), score(g.roc_auc), report.count(g.rows)) }
  end
  return block(name, rows)
end

--- The closing summary.
function report.summary(run, results, seconds)
  local o, lines = run.options, {}
  for _, name in ipairs { "validation", "test" } do
    if results[name] then
      lines[#lines + 1] = details(("%s (%s model, step %d)"):format(name, run.best.spearman and "best" or "newest", run.best.step),
        results[name])
    end
  end
  local totals = run.totals
  local rows = {
    { "trained", ("%s steps in %s on %d device%s, effective batch %d"):format(report.count(run.total_steps),
      report.duration(seconds), comm.world_size, comm.world_size == 1 and "" or "s", run.fixed.global_batch) },
  }
  if totals.seconds > 0 then
    rows[#rows + 1] = { "speed", ("%.1f pairs/s, %s tokens/s"):format(totals.pairs / totals.seconds,
      report.count(totals.tokens / totals.seconds)) }
    rows[#rows + 1] = { "padding avoided", ("%.1fx: %s real tokens, %s if every column were padded to its longest"):format(
      totals.padded / totals.tokens, report.count(totals.tokens), report.count(totals.padded)) }
  end
  if totals.seconds > 0 and comm.world_size > 1 then
    rows[#rows + 1] = { "ranks", ("tokens %.1f%% even (the mean rank beside the fullest), %.1f%% of the time exchanging"):format(
      100 * totals.tokens / comm.world_size / totals.fullest, 100 * totals.exchange / totals.seconds) }
  end
  if run.skipped > 0 then
    rows[#rows + 1] = { "skipped", ("%d step%s whose gradient was not finite"):format(run.skipped, run.skipped == 1 and "" or "s") }
  end
  if run.baseline and results.validation then
    rows[#rows + 1] = { "validation Spearman", ("%s before training, %s after"):format(score(run.baseline.spearman),
      score(results.validation.spearman)) }
  end
  rows[#rows + 1] = { "saved", o.output }
  lines[#lines + 1] = block("done", rows)
  lines[#lines + 1] = ("\nTo use it in Python:\n  from sentence_transformers import SentenceTransformer\n"
    .. "  model = SentenceTransformer(%s)"):format(say.python(o.output))
  return table.concat(lines, "\n")
end

return report
