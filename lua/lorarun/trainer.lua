-- trainer.lua: lr.train: the training loop, over the same public pieces that a recipe may use by itself.
--
--   lr.train { model = model, data = "data/bugs", columns = { "current_line", "context" }, score = "score",
--              loss = lr.loss.cosine_similarity(), schedule = lr.schedule.warmup_linear(1000), learning_rate = 3e-4, ... }
--
-- Every step is a function of its number: rows, dropout masks, learning rate. So a run that is stopped and resumed ends in the same
-- bits as one that was not. State that is not such a function is the adapter, AdamW's m and v, and the best score so far.
local ffi = require "ffi"
local C = require "lorarun.c"
local check = require "lorarun.check"
local fs = require "lorarun.fs"
local autograd = require "lorarun.autograd"
local batches = require "lorarun.batches"
local checkpoint = require "lorarun.checkpoint"
local data = require "lorarun.data"
local evaluate = require "lorarun.evaluate"
local export = require "lorarun.export"
local memory = require "lorarun.memory"
local ops = require "lorarun.ops"
local optim = require "lorarun.optim"
local progress = require "lorarun.progress"
local report = require "lorarun.report"
local run_files = require "lorarun.run_files"
local sampler = require "lorarun.sampler"
local schedules = require "lorarun.schedule"
local suggest = require "lorarun.suggest"

local trainer = {}

local DEFAULTS = {
  model = false, data = false, output = false, loss = false, schedule = false, -- given by the recipe
  columns = { "current_line", "context" }, score = "score", group = "context_type", prompts = {},
  batch = 64, accumulate = 1, epochs = 3, max_steps = 0, learning_rate = 3e-4, weight_decay = 0, clip = 1,
  sampling = "weighted", evaluation_steps = 2000, evaluate_first = false, keep = 3, seed = 1, recompute = "none",
  resume = false, on_bad_row = "error", max_train_rows = 0, max_evaluation_rows = 0, loader_threads = 1,
  settings = false, recipe = false, on_step = false, warmup = false,
}

-- Fill in defaults and refuse what nobody knows or cannot be.
local function complete(given)
  local o = {}
  for key, value in pairs(DEFAULTS) do o[key] = value end
  for key, value in pairs(given) do
    if DEFAULTS[key] == nil then
      local names = {}
      for name in pairs(DEFAULTS) do names[#names + 1] = name end
      check.fail("lr.train has no option '%s'%s", tostring(key), suggest.did_you_mean(tostring(key), names))
    end
    o[key] = value
  end
  for _, key in ipairs { "model", "data", "output" } do
    if not o[key] then check.fail("lr.train needs '%s'", key) end
  end
  for key, least in pairs { batch = 1, accumulate = 1, evaluation_steps = 1, keep = 1, max_steps = 0, loader_threads = 1 } do
    if type(o[key]) ~= "number" or o[key] % 1 ~= 0 or o[key] < least then
      check.fail("%s is %s, expected a whole number of at least %d", key, tostring(o[key]), least)
    end
  end
  if not o.model.lora then check.fail("the model has nothing to train: call model:add_lora first") end
  if not (o.learning_rate >= 0) then check.fail("learning_rate is %s", tostring(o.learning_rate)) end
  o.loss = o.loss or require("lorarun.loss").cosine_similarity()
  if type(o.loss) == "function" then o.loss = { compute = o.loss, needs_labels = true } end
  o.schedule = o.schedule or schedules.warmup_linear(o.warmup or 0)
  return o
end

-- The three data sets: data = folder with train/validation/test .jsonl or .csv, or { train = path, validation =, test = }.
local function open_data(o)
  local function path_of(split)
    if type(o.data) == "table" then return o.data[split] end
    for _, suffix in ipairs { ".jsonl", ".csv" } do
      local path = fs.join(o.data, split .. suffix)
      if fs.is_file(path) then return path end
    end
  end
  local function open(split, max_rows)
    local path = path_of(split)
    if not path then return nil end
    -- A ranking loss needs no scores to train; evaluation needs them, and of the texts only the two it compares.
    local training = split == "train"
    local columns = { { name = o.score, kind = "number", optional = training and o.loss.positives_only or false } }
    for c, name in ipairs(o.columns) do
      if training or c <= 2 then columns[#columns + 1] = { name = name, kind = "text" } end
    end
    if o.group then columns[#columns + 1] = { name = o.group, kind = "text", optional = true } end
    return data.open(path, { columns = columns, on_bad_row = o.on_bad_row, max_rows = max_rows > 0 and max_rows or nil })
  end
  local train = open("train", o.max_train_rows)
  if not train then check.fail("there is no train.jsonl (or train.csv) in '%s'", tostring(o.data)) end
  return train, open("validation", o.max_evaluation_rows), open("test", o.max_evaluation_rows)
end

-- The sampler of the run: sample(draw) -> row, draws an epoch, a line for the banner, classes.
local function choose_rows(o, train, labels)
  if type(o.sampling) == "function" then return o.sampling, train.rows, "the recipe's own" end
  if o.loss.positives_only and not labels then
    return sampler.shuffled(train.rows, o.seed), train.rows, "shuffled every epoch"
  elseif o.loss.positives_only then
    local list, n = ffi.new("int64_t[?]", train.rows), 0
    for i = 0, train.rows - 1 do
      if labels[i] >= 0.5 then list[n] = i n = n + 1 end
    end
    if n == 0 then check.fail("the loss '%s' trains on rows with score 1, and there is none", o.loss.name) end
    return sampler.among(list, sampler.shuffled(n, o.seed)), n, ("shuffled, the %s rows with score 1"):format(report.count(n))
  end
  if o.sampling == "weighted" then
    local sample, classes = sampler.weighted(labels, train.rows, o.seed)
    return sample, train.rows, "weighted by class, with replacement", classes
  elseif o.sampling == "shuffled" then
    return sampler.shuffled(train.rows, o.seed), train.rows, "shuffled every epoch"
  elseif o.sampling == "sequential" then
    return sampler.sequential(train.rows), train.rows, "in file order"
  end
  check.fail("there is no sampling '%s'; there are weighted, shuffled and sequential", tostring(o.sampling))
end

local function recompute_layers(o)
  local n = ({ none = 0, all = o.model.layer_count })[o.recompute] or tonumber(o.recompute)
  if not n or n < 0 then check.fail("recompute is '%s'; expected none, all or a number of layers", tostring(o.recompute)) end
  return math.min(n, o.model.layer_count)
end

-- Forward and backward of one micro-batch: adds to the gradients, returns its part of the loss.
local function micro_step(run, packed, info)
  local model, columns = run.model, #run.options.columns
  return autograd.gradients(function()
    local ctx = model:context(packed, { training = true, seed = run.options.seed, step = info.step, recompute = run.recompute })
    local e = model:forward(ctx)
    if not model.normalize then e = ops.normalize(e) end
    local n, parts = #info.rows, {}
    for c = 1, columns do parts[c] = ops.rows(e, (c - 1) * n, c * n) end
    local labels = run.loss.needs_labels and run.stream:label_tensor(info, model.device) or nil
    return run.loss.compute(parts, labels, e)
  end, info.share)
end

local function evaluate_split(run, name, set, quiet)
  local o = run.options
  local bar = not quiet and progress.new { description = "evaluating " .. name, total = 1, transient = true } or nil
  local result = evaluate.run(run.model, set, { columns = { o.columns[1], o.columns[2] }, score = o.score,
    group = o.group and set:has(o.group) and o.group or nil, prefixes = run.prefixes, threads = o.loader_threads, sweep = 21,
    on_progress = bar and function(done, total) bar:update(done, nil, total) end or nil })
  if bar then bar:close() end
  return result
end

-- Evaluate on validation and note whether it is the best so far.
local function evaluate_now(run, step)
  if not run.validation then return end
  local r = evaluate_split(run, "validation", run.validation)
  local epoch = step / run.steps_per_epoch
  run.files:evaluation("validation", epoch, step, r)
  run.files:log { kind = "evaluation", split = "validation", step = step, epoch = epoch, spearman = r.spearman,
    pearson = r.pearson, accuracy = r.accuracy, f1 = r.f1, roc_auc = r.roc_auc, pr_auc = r.pr_auc, seconds = r.seconds }
  run.bar:print(report.evaluation("validation", step, r))
  if step == 0 then run.baseline = { spearman = r.spearman } end
  local value = r.spearman or -1 -- undefined where all labels or all similarities are alike
  if step > 0 and (not run.best or value > run.best.spearman) then
    run.best = { step = step, spearman = value }
    run.best_result = r
  end
end

local function save_checkpoint(run, step)
  local folder = fs.join(run.options.output, "checkpoints")
  checkpoint.save(folder, { model = run.model, optimizer = run.optimizer, state = { step = step, best = run.best,
    baseline = run.baseline, settings = run.fixed } })
  checkpoint.prune(folder, run.options.keep, run.best and { [run.best.step] = true } or {})
end

-- Put a checkpoint into the run, if one was asked for. Returns the step to go on from.
local function resume(run)
  local o = run.options
  if not o.resume then return 0 end
  local folder = fs.join(o.output, "checkpoints")
  local path, state = checkpoint.find(folder, o.resume == true and "latest" or o.resume, function(text)
    io.stderr:write("lorarun: warning: ", text, "\n")
  end)
  if not path then
    io.stderr:write(("lorarun: there is no checkpoint in %s yet; starting from the beginning\n"):format(folder))
    return 0
  end
  for key, value in pairs(run.fixed) do
    local before = state.settings and state.settings[key]
    if before ~= nil and before ~= value then
      io.stderr:write(("lorarun: warning: %s was %s when %s was written and is %s now: the run will not end in the same bits\n")
        :format(key, tostring(before), path, tostring(value)))
    end
  end
  checkpoint.load(path, state, run)
  run.best, run.baseline = state.best, state.baseline
  print(("resuming from %s, step %d of %d"):format(path, state.step, run.total_steps))
  return state.step
end

-- What was done since the last window began: rates follow it, the totals of the run add it up.
local function new_window() return { time = C.lr_time(), pairs = 0, tokens = 0, wait = 0 } end

local function close_window(run, window)
  local t = run.totals
  t.pairs, t.tokens = t.pairs + window.pairs, t.tokens + window.tokens
  t.seconds = t.seconds + C.lr_time() - window.time
end

-- The steps from `first` to the last. Returns the number of the last step done, and the signal that stopped the run, if one did.
local function loop(run, first)
  local o = run.options
  local window = new_window()
  local step_loss, step_tokens, step_pairs, step = 0, 0, 0, first
  while step < run.total_steps do
    local packed, info = run.stream:next()
    window.wait = window.wait + packed.wait
    step_loss = step_loss + info.share * micro_step(run, packed, info)
    step_tokens, step_pairs = step_tokens + packed.tokens, step_pairs + #info.rows
    run.totals.padded = run.totals.padded + run.stream:padded_tokens(packed)
    if info.last then
      local lr = o.learning_rate * o.schedule(step, run.total_steps)
      local grad_norm, skipped = run.optimizer:step(lr)
      if step_loss ~= step_loss then
        check.fail("the loss is not a number at step %d; lower --learning-rate, or resume from a checkpoint before it", step + 1)
      end
      step = step + 1
      window.pairs, window.tokens = window.pairs + step_pairs, window.tokens + step_tokens
      local now = C.lr_time()
      local seconds = now - window.time
      local rate = { pairs = window.pairs / seconds, tokens = window.tokens / seconds, wait = window.wait / seconds }
      run.files:log { kind = "step", step = step, epoch = step / run.steps_per_epoch, loss = step_loss, learning_rate = lr,
        grad_norm = skipped and "overflow" or grad_norm, tokens = step_tokens, pairs = step_pairs, seconds = now - run.started,
        tokens_per_second = rate.tokens, pairs_per_second = rate.pairs, loader_wait = rate.wait }
      local fields = { { "loss", ("%.4f"):format(step_loss) }, { "lr", ("%.2e"):format(lr) },
        { "grad", ("%.3f"):format(grad_norm) }, { "pairs/s", ("%.1f"):format(rate.pairs) },
        { "tok/s", ("%.0f"):format(rate.tokens) } }
      if rate.wait > 0.02 then fields[#fields + 1] = { "waiting for data", ("%.0f%%"):format(100 * rate.wait) } end
      run.bar:update(step, fields)
      if o.on_step then o.on_step { step = step, total = run.total_steps, loss = step_loss, grad_norm = grad_norm, lr = lr } end
      if seconds > 20 then -- rates over the last tens of seconds, so that they follow what happens
        close_window(run, window)
        window = new_window()
      end
      step_loss, step_tokens, step_pairs = 0, 0, 0
      local signal = C.lr_signal_pending()
      if step % o.evaluation_steps == 0 or step == run.total_steps or signal ~= 0 then
        close_window(run, window)
        if signal == 0 then evaluate_now(run, step) end
        save_checkpoint(run, step)
        run.bar:skip_time()
        window = new_window()
        if signal ~= 0 then return step, signal end
      end
    end
  end
  return step
end

-- The best adapter, evaluated on everything, and written in every form.
local function finish(run, seconds)
  local o, model = run.options, run.model
  local last = run.total_steps
  run.best = run.best or { step = last, spearman = -1 }
  if run.best.step ~= last then
    require("lorarun.lora").read_into(model, checkpoint.path(fs.join(o.output, "checkpoints"), run.best.step))
  end
  local results = {}
  if run.validation then
    results.validation = run.best_result or evaluate_split(run, "validation", run.validation)
  end
  if run.test then
    results.test = evaluate_split(run, "test", run.test)
    run.files:evaluation("test", last / run.steps_per_epoch, last, results.test)
  end
  local score = results.validation and results.validation.spearman
  local card = score and ("Validation Spearman %.4f at step %d of %d."):format(score, run.best.step, last) or nil
  export.merged(model, o.output, { card = card })
  export.adapter(model, fs.join(o.output, "adapter"), { card = card })
  results.best_step, results.baseline = run.best.step, run.baseline
  run.files:json("evaluation.json", results)
  print(report.summary(run, results, seconds))
  return results
end

--- train(options): see DEFAULTS above and docs/reference.md. Returns the final evaluation { validation, test, best_step }.
function trainer.train(given)
  local o = complete(given)
  local run = { options = o, model = o.model, loss = o.loss, totals = { pairs = 0, tokens = 0, padded = 0, seconds = 0 } }
  run.train, run.validation, run.test = open_data(o)
  run.data_text = type(o.data) == "string" and o.data or o.data.train
  run.prefixes = {}
  for c, name in ipairs(o.columns) do
    run.prefixes[c] = o.prompts[name] and o.model:prompt { prompt_name = o.prompts[name] } or ""
  end
  local labels = run.train:has(o.score) and run.train:numbers(o.score) or nil
  local sample, draws, text, classes = choose_rows(o, run.train, labels)
  run.sampling_text, run.classes = text, classes
  run.recompute = recompute_layers(o)
  run.steps_per_epoch = math.ceil(draws / (o.batch * o.accumulate))
  run.total_steps = math.ceil(run.steps_per_epoch * o.epochs)
  if o.max_steps > 0 then run.total_steps = math.min(run.total_steps, o.max_steps) end
  -- What must stay the same for a resumed run to end in the same bits.
  run.fixed = { batch = o.batch, accumulate = o.accumulate, seed = o.seed, learning_rate = o.learning_rate,
    total_steps = run.total_steps, train_rows = run.train.rows, model = o.model.name, precision = o.model.precision,
    max_length = o.model.max_length, threads = C.lr_threads(), dropout = o.model.lora.config.lora_dropout }
  run.optimizer = optim.adamw(o.model.lora.parameters, { weight_decay = o.weight_decay, max_grad_norm = o.clip })
  run.files = run_files.new(o.output)
  print(report.banner(run))

  local first = resume(run)
  run.files:begin(first)
  run.files:recipe(o.recipe)
  local settings = {}
  for key, value in pairs(o.settings or {}) do settings[key] = value end -- a plain copy: lr.args gives a guarded table
  run.files:json("training_config.json", { settings = settings, fixed = run.fixed, lorarun = require "lorarun.version",
    jit = jit.version, lora = o.model.lora.config, loss = o.loss.name or "function", peak_memory = memory.stats().peak_bytes })
  run.stream = batches.new { set = run.train, model = o.model, columns = o.columns, labels = labels, draws = draws,
    sample = sample, batch = o.batch, accumulate = o.accumulate, prefixes = run.prefixes, threads = o.loader_threads,
    first_step = first, last_step = run.total_steps }
  run.bar = progress.new { total = run.total_steps, initial = first, description = "" }
  check(C.lr_signal_catch(1))
  run.started = C.lr_time()
  local ok, step, signal = pcall(function()
    if o.evaluate_first and first == 0 then
      evaluate_now(run, 0)
      run.bar:skip_time()
    end
    return loop(run, first)
  end)
  run.bar:close()
  run.stream:close()
  C.lr_signal_catch(0)
  local result
  if ok and signal then
    print(("stopped by signal %d after step %d of %d; a checkpoint was written. To go on: the same command with --resume latest")
      :format(signal, step, run.total_steps))
    os.exit(128 + signal, true)
  elseif ok then
    ok, result = pcall(finish, run, C.lr_time() - run.started)
  else
    result = step
  end
  run.optimizer:free()
  for _, set in pairs { run.train, run.validation, run.test } do set:close() end
  if not ok then error(result, 0) end
  return result
end

return trainer
