-- output.lua: a run's output folder, from the lock on it to the model in it. Checkpoints are resume.lua's, texts are files.lua's.
--
-- The folder becomes this run's when its first step is done (begin): until then an earlier run's files stay as they were, and lines
-- for the log wait. At the end (finish) the best adapter is written in every form, read back, and compared.
local C = require "lorarun.base.c"
local checkpoint = require "lorarun.train.checkpoint"
local comm = require "lorarun.dist.comm"
local export = require "lorarun.models.export"
local fs = require "lorarun.base.fs"
local memory = require "lorarun.tensor.memory"
local preflight = require "lorarun.dist.preflight"
local probes = require "lorarun.models.probes"
local report = require "lorarun.train.report"
local resume = require "lorarun.train.resume"
local run_lock = require "lorarun.dist.run_lock"
local run_paths = require "lorarun.dist.run_paths"
local run_settings = require "lorarun.train.run_settings"
local say = require "lorarun.base.say"
local throughput = require "lorarun.train.throughput"
local validate = require "lorarun.train.validate"

local output = {}

local LOGS = 16 * 2 ^ 20 -- bytes of a tokenizer, logs and other small files of a run

-- ---- before the first step -----------------------------------------------------------------------------------------------------

--- take(o): before anything is read or written, make sure that the output folder is apart from what is read, and no other run's.
--- Returns the lock on it.
function output.take(o)
  local inputs = run_paths.of_model(o.model)
  for _, input in ipairs(run_paths.of_data(o.data)) do inputs[#inputs + 1] = input end
  run_paths.refuse_overlap("output", o.output, inputs)
  export.refuse_mixture(o.output, "merged")
  export.refuse_mixture(fs.join(o.output, "adapter"), "adapter")
  return run_lock.take(o.output)
end

--- check_room(o, total_steps): is there room for all that the run will write: checkpoints (the adapter, AdamW's m and v of each
--- parameter; while one is written, those that it replaces are still there), the adapter, the merged model?
function output.check_room(o, total_steps)
  local adapter = 4 * o.model.lora.parameters.count
  local checkpoints = math.min(o.keep, math.ceil(total_steps / o.evaluation_steps)) + 2 -- the best, and the one being written
  if o.resume or resume.restarted() then
    checkpoints = math.max(1, checkpoints - #checkpoint.steps(fs.join(o.output, "checkpoints")))
  end
  preflight.must_have_room(o.output, (preflight.weights_in(o.model.weights_folder)), adapter + checkpoints * 3 * adapter + LOGS)
end

-- ---- the run begins ------------------------------------------------------------------------------------------------------------

--- begin(run): take over the output folder, once. run: see trainer.lua. Every rank calls it.
function output.begin(run)
  if run.begun then return end
  run.begun = true
  comm.on_rank_0(function()
    local o, files = run.options, run.files
    run.checkpoints:set_aside()
    files:begin(run.checkpoints.own_until, run.evaluation_due)
    files:recipe(run_settings.recipe(o))
    local settings = {}
    for key, value in pairs(o.settings) do settings[key] = value end -- a plain copy: lr.args gives a guarded table
    files:json("training_config.json", { settings = settings, fixed = run.settings, lorarun = require "lorarun.base.version",
      jit = jit.version, lora = o.model.lora.config, loss = o.loss.name or "function", peak_memory = memory.stats().peak_bytes })
  end)
end

-- ---- the run ends --------------------------------------------------------------------------------------------------------------

-- A line of the model card.
local function card_of(run, results)
  local validation, best, last = results.validation, run.scores.best, run.data.total_steps
  if not validation then return nil end
  if validation.spearman then return ("Validation Spearman %.4f at step %d of %d."):format(validation.spearman, best.step, last) end
  return ("The newest adapter, of step %d: the validation Spearman is undefined (%s)."):format(best.step,
    validate.why_undefined(validation))
end

local function summary_of(run, results, seconds)
  local journal, counts = run.journal, run.step.counts
  return report.summary { results = results, best = run.scores.best, baseline = run.scores.baseline, seconds = seconds,
    steps = run.data.total_steps, ranks = comm.world_size, global_batch = run.settings.global_batch, output = run.options.output,
    skipped = run.divergence.skipped, training_seconds = journal.seconds, exchange_seconds = journal.exchanged, counts = counts }
end

--- finish(run, results, seconds): write the model that is in memory in every form, check what was written, print the summary. Of a
--- large model each part takes minutes, in which the other ranks wait; each part restarts their timeout, so a slow part does
--- not end the job. Returns results with the scores of the whole run.
function output.finish(run, results, seconds)
  local o, model, last = run.options, run.options.model, run.data.total_steps
  results.best_step, results.baseline = run.scores.best.step, run.scores.baseline
  C.lr_rank_report(last, last, "writing the model")
  output.begin(run)
  run.step.optimizer:free() -- room for a second copy of the model
  local adapter, measured, wrong = fs.join(o.output, "adapter"), nil, nil
  local function measure() -- once the first folder is whole
    measured = measured
      or probes.measure(model, probes.texts_of(run.data.validation or run.data.train, { o.columns[1], o.columns[2] }))
    return measured
  end
  local options = { card = card_of(run, results), probes = measure, check = false }
  -- the adapter first: it is small, and with it the other can be made again
  comm.on_rank_0(function() export.adapter(model, adapter, options) end)
  comm.on_rank_0(function()
    local ok, err = pcall(export.merged, model, o.output, options)
    if not ok then error(("%s; the adapter is written, in %s"):format(err, adapter), 0) end
    run.files:json("evaluation.json", results)
  end)
  C.lr_rank_report(last, last, "checking what was written")
  for _, folder in ipairs { adapter, o.output } do
    comm.on_rank_0(function() -- an error waits until the summary is printed
      local ok, line = pcall(probes.demand, model, folder)
      if not ok then wrong = wrong or line elseif line then say.line(line) end
    end)
  end
  comm.on_rank_0(function()
    say.line(summary_of(run, results, seconds))
    throughput.remember { model = model, tokens = run.step.counts.tokens, seconds = run.journal.seconds,
      recomputed = run.plan:recomputes() }
    if wrong then error(wrong, 0) end
  end)
  return results
end

return output
