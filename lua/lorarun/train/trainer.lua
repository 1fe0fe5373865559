-- trainer.lua: lr.train: the training loop, over the same public pieces that a recipe may use by itself.
--
--   lr.train { model = model, data = "data/pairs", columns = { "question", "answer" }, score = "score", output = "models/mine",
--              loss = lr.loss.cosine_similarity(), schedule = lr.schedule.warmup_linear(1000), learning_rate = 3e-4, ... }
--
-- Every step is a function of its number: rows, dropout masks, learning rate. So a run that is stopped and resumed ends in the same
-- bits as one that was not. State that is not such a function is the adapter, AdamW's m and v, and the best score so far.
--
-- On several ranks every one of them runs this loop with the same arguments. A step is the same pairs as on one rank of as many
-- times the batch; the ranks share them, add up their gradients (data_parallel.lua) and hold the same bits after it. `pairs`,
-- `tokens` and `loss` are those of all ranks together. Rank 0 prints and writes.
--
-- setup.lua makes the run: { options, data, settings, plan, step, divergence, scores, checkpoints, files, journal, lock }, each an
-- object with a module of its own. The trainer adds run.ended_by, the signal that ended it.
local C = require "lorarun.base.c"
local args = require "lorarun.base.args"
local check = require "lorarun.base.check"
local comm = require "lorarun.dist.comm"
local data_parallel = require "lorarun.dist.data_parallel"
local memory = require "lorarun.tensor.memory"
local output = require "lorarun.train.output"
local say = require "lorarun.base.say"
local setup = require "lorarun.train.setup"
local train_options = require "lorarun.train.train_options"

local trainer = {}

local SIGINT = require("lorarun.dist.signals").INT

-- Take step n. Returns { step, loss, lr, grad_norm, skipped, loss_scale, tokens, pairs, exchange, signal }. doing: memory.during's.
local function train_step(run, n, doing)
  local o, step, optimizer, total = run.options, run.step, run.step.optimizer, run.data.total_steps
  local parameters, counts = o.model.lora.parameters, run.step.counts
  local done = { step = n, tokens = -counts.tokens, pairs = -counts.pairs }
  step:run(doing)
  done.tokens, done.pairs = done.tokens + counts.tokens, done.pairs + counts.pairs
  done.exchange = data_parallel.reduce(parameters)
  done.lr = train_options.rate(o, optimizer.steps, total) -- of the steps that counted
  optimizer:apply(done.lr)
  if n < total then step:fetch_ahead() end
  done.loss, done.grad_norm, done.loss_scale, done.signal = data_parallel.outcome(parameters) -- one rank waits for its device here
  done.skipped = not optimizer:taken(done.grad_norm)
  return done
end

-- Evaluate a step that was saved before: a signal, or a failure, costs none.
local function evaluate_saved(run, n)
  run.ended_by = run.scores:validate(n)
  if run.ended_by then return end
  output.begin(run)
  run.checkpoints:evaluated(n)
end

-- Write a checkpoint after step n; evaluate where it is time for that.
local function save(run, n, evaluation, signal)
  run.journal:pause()
  C.lr_rank_report(n, run.data.total_steps, "writing a checkpoint")
  run.checkpoints:save(n, evaluation)
  if evaluation and not run.ended_by then evaluate_saved(run, n) end
  if signal == data_parallel.SIGUSR1 then
    run.journal:print(("signal %d: a checkpoint was written after step %d"):format(signal, n))
  end
  run.journal:begin()
end

-- The steps after `first`. Returns the number of the last step done.
local function loop(run, first)
  local o, total = run.options, run.data.total_steps
  for n = first + 1, total do
    C.lr_rank_report(n, total, "training")
    local doing = { step = n, saved = run.checkpoints.saved }
    local done = memory.during(doing, train_step, run, n, doing)
    run.divergence:check(n, done.loss, done.skipped)
    output.begin(run)
    run.journal:step(done)
    if o.on_step then o.on_step { step = n, total = total, loss = done.loss, grad_norm = done.grad_norm, lr = done.lr } end
    run.journal:next_window()
    local signal = done.signal or C.lr_signal_pending() -- one rank need not wait for the next sum to hear of it
    run.ended_by = data_parallel.ending(signal)
    local evaluation = n % o.evaluation_steps == 0 or n == total
    if evaluation or signal ~= 0 then save(run, n, evaluation, signal) end
    if run.ended_by then return n end
  end
  return total
end

-- All steps, and what is evaluated before the first. Returns the number of the last step done.
local function all_steps(run, first)
  if run.options.evaluate_first and first == 0 then
    run.ended_by = run.scores:validate(0)
  elseif run.evaluation_due then
    evaluate_saved(run, first)
  end
  run.journal:begin()
  return run.ended_by and first or loop(run, first)
end

-- A signal ended the run after step `last`: the process ends. Where Ctrl-C returns to a prompt, the result is the text of an error.
local function stop(run, last)
  local at_prompt = run.ended_by == SIGINT and C.lr_interrupt_enabled() ~= 0
  local words = not at_prompt and args.to_resume()
  local text = ("stopped by signal %d after step %d of %d; %s"):format(run.ended_by, last, run.data.total_steps,
    not run.checkpoints.saved and "there was nothing to save yet" or "a checkpoint was written. To go on: "
    .. (words and "the same command with " .. words or "the same lr.train with resume = \"latest\""))
  if at_prompt then return text end
  if comm.rank == 0 then say.line(text) end
  run.lock:release()
  os.exit(128 + run.ended_by, true)
end

-- The whole run, from the data to its last file.
local function train(o, lock)
  C.lr_deterministic(o.deterministic and 1 or 0)
  local run, first = setup.run(o, lock)
  check(C.lr_signal_catch(1))
  o.model.trained = true
  local ok, result = pcall(all_steps, run, first)
  local last = result
  run.step:close()
  run.journal:close()
  local seconds = run.journal:elapsed()
  if ok and not run.ended_by then
    ok, result, run.ended_by = pcall(run.scores.final, run.scores, run.data.total_steps, run.checkpoints)
  end
  C.lr_signal_catch(0)
  if ok and run.ended_by then
    ok, result = false, stop(run, last)
  elseif ok then
    ok, result = pcall(output.finish, run, result, seconds)
  end
  run.step.optimizer:free()
  run.plan:free()
  run.data:close()
  if not ok then error(result, 0) end
  return result
end

--- train(options): see train_options.lua and docs/reference.md. Returns the final evaluation { validation, test, best_step }.
function trainer.train(given)
  local o, lock = train_options.complete(given), data_parallel.silent
  comm.on_rank_0(function()
    for _, note in ipairs(train_options.notes(o)) do say.note("note: %s", note) end
    lock = output.take(o)
  end)
  local ok, result = pcall(train, o, lock)
  lock:release()
  if not ok then error(result, 0) end
  return result
end

return trainer
