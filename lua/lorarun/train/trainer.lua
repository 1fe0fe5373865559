-- trainer.lua: lr.train: the training loop, over the same public pieces that a recipe may use by itself.
--
--   lr.train { model = model, data = "data/bugs", columns = { "current_line", "context" }, score = "score",
--              loss = lr.loss.cosine_similarity(), schedule = lr.schedule.warmup_linear(1000), learning_rate = 3e-4, ... }
--
-- Every step is a function of its number: rows, dropout masks, learning rate. So a run that is stopped and resumed ends in the same
-- bits as one that was not. State that is not such a function is the adapter, AdamW's m and v, and the best score so far.
--
-- On several ranks every one of them runs this loop with the same arguments. A step is the same pairs as on one rank of as many
-- times the batch; the ranks share them, add up their gradients (data_parallel.lua) and hold the same bits after it. `pairs`,
-- `tokens` and `loss` are those of all ranks together. Rank 0 prints and writes.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local args = require "lorarun.base.args"
local checkpoint = require "lorarun.train.checkpoint"
local fs = require "lorarun.base.fs"
local batches = require "lorarun.data.batches"
local comm = require "lorarun.dist.comm"
local evaluate = require "lorarun.train.evaluate"
local export = require "lorarun.models.export"
local gpu = require "lorarun.dist.gpu"
local memory = require "lorarun.tensor.memory"
local training_step = require "lorarun.train.step"
local optim = require "lorarun.tensor.optim"
local planning = require "lorarun.base.planning"
local preflight = require "lorarun.dist.preflight"
local probes = require "lorarun.models.probes"
local progress = require "lorarun.train.progress"
local data_parallel = require "lorarun.dist.data_parallel"
local throughput = require "lorarun.train.throughput"
local recompute = require "lorarun.train.recompute"
local report = require "lorarun.train.report"
local files = require "lorarun.train.files"
local run_lock = require "lorarun.dist.run_lock"
local run_paths = require "lorarun.dist.run_paths"
local run_settings = require "lorarun.train.run_settings"
local resume = require "lorarun.train.resume"
local say = require "lorarun.base.say"
local train_options = require "lorarun.train.train_options"

local trainer = {}

local SIGINT = require("lorarun.dist.signals").INT
local LOGS = 16 * 2 ^ 20 -- bytes of a tokenizer, logs and other small files of a run
local MOST_OVERFLOWS = 40 -- on end: the scale of an fp16 run's loss has then been halved from 2^16 to 2^-24

-- Steps of an epoch, and of a run on so many ranks.
local function count_steps(o, draws, world)
  local epoch = math.ceil(draws / (o.batch * o.accumulate * world))
  local total = math.ceil(epoch * o.epochs)
  return epoch, o.max_steps > 0 and math.min(total, o.max_steps) or total
end

-- The signal where it is one that ends the run, or nil. SIGUSR1 asks for a checkpoint, and to go on.
local function ending(signal) return signal ~= 0 and signal ~= data_parallel.SIGUSR1 and signal or nil end

-- An evaluation may take much longer than a step, so a signal ends it: nil then, and run.ended_by says which, on every rank.
local function evaluate_split(run, step, name, set)
  local o = run.options
  C.lr_rank_report(step, run.total_steps, "evaluating " .. name)
  local bar = run.main and progress.new { description = "evaluating " .. name, total = 1, transient = true } or nil
  local result, ended_by = evaluate.run(run.model, set, { columns = { o.columns[1], o.columns[2] }, score = o.score,
    group = o.group and set:has(o.group) and o.group or nil, prefixes = run.prefixes, threads = o.loader_threads, sweep = 21,
    ended = function() return ending(C.lr_signal_pending()) end,
    on_progress = bar and function(done, total) bar:update(done, nil, total) end or nil })
  if bar then bar:close() end
  run.ended_by = ended_by
  return result
end

local function why_undefined(result) return result.undefined and result.undefined.spearman or "the figure is not a number" end

-- Evaluate on validation and note whether it is the best so far. Before that: have the ranks come to different adapters?
local function evaluate_now(run, step)
  data_parallel.agree(("after step %d"):format(step), {
    ["checksum of the adapters"] = data_parallel.checksum(run.model.lora.parameters.value) })
  if not run.validation then return end
  local r = evaluate_split(run, step, "validation", run.validation)
  if run.ended_by then return end
  local epoch = step / run.steps_per_epoch
  run.files:evaluation("validation", epoch, step, r)
  run.files:log { kind = "evaluation", split = "validation", step = step, epoch = epoch, spearman = r.spearman,
    pearson = r.pearson, accuracy = r.accuracy, f1 = r.f1, roc_auc = r.roc_auc, pr_auc = r.pr_auc, seconds = r.seconds }
  run.bar:print(report.evaluation("validation", step, r))
  if step == 0 then
    run.baseline = { spearman = r.spearman }
    return
  end
  run.newest = { step = step, result = r }
  local value = r.spearman
  if not value or value ~= value then
    run.bar:print(("warning: the Spearman correlation, which says which adapter is best, is undefined (%s): %s"):format(
      why_undefined(r), run.best and ("that of step %d stays the best"):format(run.best.step) or "the newest is kept"))
  elseif not run.best or value > run.best.spearman then
    run.best = { step = step, spearman = value }
    run.best_result = r
  end
end

-- What was done since the last window began: rates follow it, the totals of the run add it up.
local function new_window() return { time = C.lr_time(), pairs = 0, tokens = 0, wait = 0, exchange = 0 } end

local function close_window(run, window)
  local t, seconds = run.totals, C.lr_time() - window.time
  t.pairs, t.tokens = t.pairs + window.pairs, t.tokens + window.tokens
  t.seconds, t.exchange = t.seconds + seconds, t.exchange + window.exchange
end

-- Tell log and progress line of a step that is done: { step, loss, lr, grad_norm, skipped, tokens, pairs, loss_scale }.
local function tell_step(run, window, done)
  local seconds = C.lr_time() - window.time
  local rate = { pairs = window.pairs / seconds, tokens = window.tokens / seconds, wait = window.wait / seconds,
    exchange = window.exchange / seconds }
  local record = { kind = "step", step = done.step, epoch = done.step / run.steps_per_epoch, loss = done.loss,
    learning_rate = done.lr, grad_norm = done.skipped and "overflow" or done.grad_norm, tokens = done.tokens, pairs = done.pairs,
    seconds = C.lr_time() - run.started, tokens_per_second = rate.tokens, pairs_per_second = rate.pairs, loader_wait = rate.wait,
    exchange = comm.world_size > 1 and rate.exchange or nil, loss_scale = done.loss_scale }
  local fields = { { "loss", ("%.4f"):format(done.loss) }, { "lr", ("%.2e"):format(done.lr) },
    { "grad", done.skipped and "overflow" or ("%.3f"):format(done.grad_norm) }, { "pairs/s", ("%.1f"):format(rate.pairs) },
    { "tok/s", ("%.0f"):format(rate.tokens) } }
  if rate.wait > 0.02 then fields[#fields + 1] = { "waiting for data", ("%.0f%%"):format(100 * rate.wait) } end
  if rate.exchange > 0.1 then fields[#fields + 1] = { "exchanging", ("%.0f%%"):format(100 * rate.exchange) } end
  run.gpu:tell(done.step, record, fields)
  run.files:log(record)
  run.bar:update(done.step, fields)
end

-- The next micro-batch.
local function next_batch(run, window)
  local ahead = run.ahead
  run.ahead = nil
  if ahead then return ahead.packed, ahead.info end
  local packed, info = run.stream:next()
  window.wait = window.wait + packed.wait
  return packed, info
end

-- The first micro-batch of the next step goes to the device while that is at work on this one.
local function fetch_ahead(run, window)
  local packed, info = next_batch(run, window)
  run.ahead = { packed = packed, info = info }
  training_step.prefetch(run, packed, info)
end

-- Forward and backward of a whole step. Returns tokens and pairs of all ranks.
local function accumulate(run, window)
  local tokens, pairs_, t, at = 0, 0, run.totals, memory.at
  local function take()
    local packed, info = next_batch(run, window)
    at.tokens, at.pairs = packed.tokens, #info.own
    if info.pass == 1 then
      tokens, pairs_ = tokens + info.tokens, pairs_ + #info.rows
      t.padded, t.fullest = t.padded + run.stream:padded_tokens(info), t.fullest + info.most_tokens
    end
    return packed, info
  end
  run.model.lora.parameters.step_scalars:fill(0)
  repeat until training_step.run(run, take)
  return tokens, pairs_
end

-- Can the run go on from what a step came to?
local function check_step(run, step, loss, skipped)
  if loss - loss ~= 0 then -- nan or inf
    check.fail("the loss%s is %s at step %d; %s", run.loss.name and (" '%s'"):format(run.loss.name) or "",
      loss ~= loss and "not a number" or tostring(loss), step, run.model.precision == "fp16"
      and "numbers of fp16 end at 65504, which this model may exceed: use --precision bf16"
      or step == 1 and "nothing was learned yet, so the loss itself or the model's weights are at fault"
      or "lower --learning-rate, or resume from a checkpoint before it")
  end
  run.overflows = skipped and run.overflows + 1 or 0
  run.skipped = run.skipped + (skipped and 1 or 0)
  if run.overflows == MOST_OVERFLOWS then
    check.fail("the gradients of %d steps on end, the last of them step %d, were not finite; %s", MOST_OVERFLOWS, step,
      run.model.precision == "fp16" and "no scale of the loss helps: use --precision bf16"
      or "lower --learning-rate, or resume from a checkpoint before them")
  end
end

-- What the files of the run begin with.
local function write_first(run)
  local o = run.options
  run.files:begin(run.own_until, run.evaluation_due)
  run.files:recipe(run_settings.recipe(o))
  local settings = {}
  for key, value in pairs(o.settings or {}) do settings[key] = value end -- a plain copy: lr.args gives a guarded table
  run.files:json("training_config.json", { settings = settings, fixed = run.fixed, lorarun = require "lorarun.base.version",
    jit = jit.version, lora = o.model.lora.config, loss = o.loss.name or "function", peak_memory = memory.stats().peak_bytes })
end

-- The output folder becomes this run's: when its first step is done, or what its last left to do. Until then an earlier run's files
-- are as they were, and what there is to log waits.
local function begin_files(run)
  if run.begun then return end
  run.begun = true
  comm.on_rank_0(function()
    resume.set_aside(run)
    write_first(run)
  end)
end

-- A step is saved before it is evaluated: a signal, or a failure, costs none.
local function evaluate_saved(run, step)
  evaluate_now(run, step)
  if run.ended_by then return end
  begin_files(run)
  resume.evaluated(run, step)
end

-- The steps from `first` to the last. Returns the number of the last step done. A signal that ended them is run.ended_by.
local function loop(run, first)
  local o, window = run.options, new_window()
  for step = first + 1, run.total_steps do
    C.lr_rank_report(step, run.total_steps, "training")
    memory.at = { step = step, saved = run.saved }
    local parameters = run.model.lora.parameters
    local tokens, pairs_ = accumulate(run, window)
    window.exchange = window.exchange + data_parallel.reduce(parameters)
    local lr = train_options.rate(o, run.optimizer.steps, run.total_steps) -- of the steps that counted
    run.optimizer:apply(lr)
    if step < run.total_steps then fetch_ahead(run, window) end
    local loss, grad_norm, loss_scale, signal = data_parallel.outcome(parameters) -- one rank alone waits for its device here only
    local skipped = not run.optimizer:taken(grad_norm)
    memory.at = nil
    check_step(run, step, loss, skipped)
    begin_files(run)
    window.pairs, window.tokens = window.pairs + pairs_, window.tokens + tokens
    tell_step(run, window, { step = step, loss = loss, lr = lr, grad_norm = grad_norm, skipped = skipped, tokens = tokens,
      pairs = pairs_, loss_scale = loss_scale })
    if o.on_step then o.on_step { step = step, total = run.total_steps, loss = loss, grad_norm = grad_norm, lr = lr } end
    if C.lr_time() - window.time > 20 then -- rates over the last tens of seconds, so that they follow what happens
      close_window(run, window)
      window = new_window()
    end
    signal = signal or C.lr_signal_pending() -- one rank need not wait for the next sum to hear of it
    run.ended_by = ending(signal)
    local evaluation = step % o.evaluation_steps == 0 or step == run.total_steps
    if evaluation or signal ~= 0 then
      close_window(run, window)
      C.lr_rank_report(step, run.total_steps, "writing a checkpoint")
      resume.save(run, step, evaluation)
      if evaluation and not run.ended_by then evaluate_saved(run, step) end
      if signal == data_parallel.SIGUSR1 then
        run.bar:print(("signal %d: a checkpoint was written after step %d"):format(signal, step))
      end
      run.bar:skip_time()
      window = new_window()
      if run.ended_by then return step end
    end
  end
  return run.total_steps
end

-- The best adapter, evaluated on everything.
local function evaluate_best(run)
  local last = run.total_steps
  run.best = run.best or { step = last } -- the newest, where no figure says which is best
  if run.best.step ~= last then resume.load_best(run) end
  local results = {}
  if run.validation then
    local known = run.best_result or run.newest and run.newest.step == run.best.step and run.newest.result
    results.validation = known or evaluate_split(run, last, "validation", run.validation)
  end
  if run.ended_by then return end
  if run.test then
    results.test = evaluate_split(run, last, "test", run.test)
    if run.ended_by then return end
    run.files:evaluation("test", last / run.steps_per_epoch, last, results.test)
  end
  return results
end

-- ... and written in every form. Of a large model each part takes minutes, in which the other ranks wait: they wait for each of
-- them anew, so that none has to be done within the patience for all.
local function finish(run, results, seconds)
  local o, model, last = run.options, run.model, run.total_steps
  local score = results.validation and results.validation.spearman
  local card = score and ("Validation Spearman %.4f at step %d of %d."):format(score, run.best.step, last)
    or results.validation and ("The newest adapter, of step %d: the validation Spearman is undefined (%s)."):format(run.best.step,
    why_undefined(results.validation)) or nil
  results.best_step, results.baseline = run.best.step, run.baseline
  C.lr_rank_report(last, last, "writing the model")
  begin_files(run)
  run.optimizer:free() -- room for a second copy of the model
  local adapter, measured, wrong = fs.join(o.output, "adapter"), nil, nil
  local function measure() -- once the first folder is whole
    measured = measured
      or probes.measure(model, probes.texts_of(run.validation or run.train, { o.columns[1], o.columns[2] }))
    return measured
  end
  local options = { card = card, probes = measure, check = false }
  -- the adapter first: it is small, and of it the other can be made again
  comm.on_rank_0(function() export.adapter(model, adapter, options) end)
  comm.on_rank_0(function()
    local ok, err = pcall(export.merged, model, o.output, options)
    if not ok then error(("%s; the adapter is written, in %s"):format(err, adapter), 0) end
    run.files:json("evaluation.json", results)
  end)
  C.lr_rank_report(last, last, "checking what was written")
  for _, folder in ipairs { adapter, o.output } do
    comm.on_rank_0(function() -- what is wrong is told last: the run has its other lines to print first
      local ok, line = pcall(probes.demand, model, folder)
      if not ok then wrong = wrong or line elseif line then say.line(line) end
    end)
  end
  comm.on_rank_0(function()
    say.line(report.summary(run, results, seconds))
    throughput.remember(run)
    if wrong then error(wrong, 0) end
  end)
  return results
end

-- A rank with other arguments, data or adapters would wait for what the others never send, or learn something else.
local function compare_ranks(run)
  local values = run_settings.of_ranks(run.fixed)
  values["checksum of the adapters"] = data_parallel.checksum(run.model.lora.parameters.value)
  data_parallel.agree("before the first step", values)
end

-- Is there room for all that the run will write: checkpoints (an adapter and AdamW's two numbers for each of its own; while one is
-- written, those that it makes superfluous are still there), the adapter, the merged model?
local function check_room(run)
  local o, adapter = run.options, 4 * run.model.lora.parameters.count
  local checkpoints = math.min(o.keep, math.ceil(run.total_steps / o.evaluation_steps)) + 2 -- the best, and the one being written
  if o.resume or resume.restarted() then
    checkpoints = math.max(1, checkpoints - #checkpoint.steps(fs.join(o.output, "checkpoints")))
  end
  preflight.must_have_room(o.output, (preflight.weights_in(run.model.weights_folder)), adapter + checkpoints * 3 * adapter + LOGS)
end

local function how_to_go_on(at_prompt)
  local words = not at_prompt and args.to_resume()
  return words and "the same command with " .. words or "the same lr.train with resume = \"latest\""
end

-- The whole run, from the data to its last file.
local function train(run)
  local o = run.options
  C.lr_deterministic(o.deterministic and 1 or 0)
  run.train, run.validation, run.test = train_options.open_data(o)
  run.data_text = type(o.data) == "string" and o.data or o.data.train
  run.prefixes = o.prefixes
  local labels = run.train:has(o.score) and run.train:numbers(o.score) or nil
  local sample, draws, text, classes = train_options.choose_rows(o, run.train, labels)
  run.sampling_text, run.classes = text, classes
  run.sample, run.draws = sample, draws
  local world = comm.world_size
  run.steps_per_epoch, run.total_steps = count_steps(o, draws, world)
  run.fixed = run_settings.of(run) -- what must stay the same for a resumed run to end in the same bits
  if world > 1 then compare_ranks(run) end
  comm.on_rank_0(function() check_room(run) end)
  data_parallel.connect(o.model.lora.parameters, o.loss.gather and { o.batch * #o.columns, o.model.dimension })
  run.recompute = recompute.new(run)
  run.fixed.batch_parts = math.ceil(o.batch / run.part)
  run.optimizer = optim.adamw(o.model.lora.parameters, { weight_decay = o.weight_decay, max_grad_norm = o.clip,
    scaled = o.model.precision == "fp16" })
  run.files = data_parallel.silent
  comm.on_rank_0(function()
    run.files = files.new(o.output)
    say.line(report.banner(run))
  end)

  local first, evaluation_due = resume.resume(run)
  run.evaluation_due = evaluation_due
  run.skipped = first - run.optimizer.steps
  run.stream = batches.new { set = run.train, model = o.model, columns = o.columns, labels = labels, draws = draws,
    sample = sample, batch = o.batch, accumulate = o.accumulate, part = run.part, passes = run.cached and 2 or 1,
    prefixes = run.prefixes, threads = o.loader_threads,
    first_step = first, last_step = run.total_steps }
  run.gpu = gpu.watch(o.model.device)
  run.bar = run.main and progress.new { total = run.total_steps, initial = first, description = "" } or data_parallel.silent
  check(C.lr_signal_catch(1))
  run.started = C.lr_time()
  run.model.trained = true
  local ok, step = pcall(function()
    if o.evaluate_first and first == 0 then
      evaluate_now(run, 0)
    elseif evaluation_due then
      evaluate_saved(run, first)
    end
    run.bar:skip_time()
    return run.ended_by and first or loop(run, first)
  end)
  memory.at = nil
  if run.ahead then training_step.discard(run.ahead.info) end -- the run ends before its last step
  run.bar:close()
  run.stream:close()
  local result, seconds = step, C.lr_time() - run.started
  if ok and not run.ended_by then ok, result = pcall(evaluate_best, run) end
  C.lr_signal_catch(0)
  if ok and run.ended_by then
    local at_prompt = run.ended_by == SIGINT and C.lr_interrupt_enabled() ~= 0 -- where Ctrl-C comes back to
    local stopped = ("stopped by signal %d after step %d of %d; %s"):format(run.ended_by, step, run.total_steps, run.saved
      and "a checkpoint was written. To go on: " .. how_to_go_on(at_prompt) or "there was nothing to save yet")
    if not at_prompt then
      if run.main then say.line(stopped) end
      run.lock:release()
      os.exit(128 + run.ended_by, true)
    end
    ok, result = false, stopped
  elseif ok then
    ok, result = pcall(finish, run, result, seconds)
  end
  run.optimizer:free()
  run.recompute:free()
  for _, set in pairs { run.train, run.validation, run.test } do set:close() end
  if not ok then error(result, 0) end
  return result
end

-- What must hold before anything is read or written: the output is apart from what is read, and nobody else's.
local function take_output(o)
  local inputs = run_paths.of_model(o.model)
  for _, input in ipairs(run_paths.of_data(o.data)) do inputs[#inputs + 1] = input end
  run_paths.refuse_overlap("output", o.output, inputs)
  export.refuse_mixture(o.output, "merged")
  export.refuse_mixture(fs.join(o.output, "adapter"), "adapter")
  return run_lock.take(o.output)
end

--- train(options): see train_options.lua and docs/reference.md. Returns the final evaluation { validation, test, best_step }.
function trainer.train(given)
  local o = train_options.complete(given)
  local asked, left_to_train = args.resume()
  if asked and (left_to_train or given.resume == nil) then o.resume = asked end
  if planning.job then return require("lorarun.plan").train(o, { count_steps = count_steps }) end
  local run = { options = o, model = o.model, loss = o.loss, main = comm.rank == 0, lock = data_parallel.silent,
    totals = { pairs = 0, tokens = 0, padded = 0, seconds = 0, fullest = 0, exchange = 0 }, overflows = 0, skipped = 0 }
  comm.on_rank_0(function()
    for _, note in ipairs(train_options.notes(o)) do say.note("note: %s", note) end
    run.lock = take_output(o)
  end)
  local ok, result = pcall(train, run)
  run.lock:release()
  if not ok then error(result, 0) end
  return result
end

return trainer
