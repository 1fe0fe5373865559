-- setup.lua: a run up to its first step: open the data, choose the rows, count the steps, compare the ranks, make the objects.
local ffi = require "ffi"
local batches = require "lorarun.data.batches"
local check = require "lorarun.base.check"
local comm = require "lorarun.dist.comm"
local data_folder = require "lorarun.formats.data_folder"
local data_parallel = require "lorarun.dist.data_parallel"
local dataset = require "lorarun.data.dataset"
local divergence = require "lorarun.train.divergence"
local files = require "lorarun.train.files"
local journals = require "lorarun.train.journal"
local memory = require "lorarun.tensor.memory"
local optim = require "lorarun.tensor.optim"
local options = require "lorarun.base.options"
local output = require "lorarun.train.output"
local recompute = require "lorarun.train.recompute"
local report = require "lorarun.train.report"
local resume = require "lorarun.train.resume"
local run_settings = require "lorarun.train.run_settings"
local sampler = require "lorarun.data.sampler"
local say = require "lorarun.base.say"
local training_step = require "lorarun.train.step"
local validate = require "lorarun.train.validate"

local setup = {}

-- ---- the data ------------------------------------------------------------------------------------------------------------------

--- open_data(o): the three data sets, two of which may be nil. A loss that reads no labels needs no scores to train; evaluation
--- needs them, and of the texts only the two that it compares.
function setup.open_data(o)
  local function open(split, max_rows)
    local path = data_folder.path(o.data, split)
    if not path then return nil end
    local training = split == "train"
    local columns = { { name = o.score, kind = "number", optional = training and not o.loss.needs_labels } }
    for c, name in ipairs(o.columns) do
      if name == o.score or name == o.group then
        check.fail("lr.train: '%s' is in columns, and is the %s as well", name, name == o.score and "score" or "group")
      end
      if training or c <= 2 then columns[#columns + 1] = { name = name, kind = "text" } end
    end
    if o.group then columns[#columns + 1] = { name = o.group, kind = "text", optional = true } end
    return dataset.open(path, { columns = columns, on_bad_row = o.on_bad_row, max_rows = max_rows > 0 and max_rows or nil })
  end
  data_folder.train_path(o.data) -- an error where there is none
  local train = open("train", o.max_train_rows)
  local validation, test = open("validation", o.max_evaluation_rows), open("test", o.max_evaluation_rows)
  local scored = validation or test
  if o.group and scored and not scored:has(o.group) and comm.rank == 0 then
    say.note("note: %s has no column '%s': figures are not split by it", scored.path, o.group)
  end
  return train, validation, test
end

-- The recipe's own sampler, with a check of each row that it gives.
local function own_sampler(o, train, labels)
  local positives = o.loss.positives_only and labels
  return function(draw)
    local row = o.sampling(draw)
    if not (type(row) == "number" and row % 1 == 0 and row >= 0 and row < train.rows) then
      check.fail("sampling gave %s for draw %d, expected a row from 0 to %d", options.shown(row), draw, train.rows - 1)
    elseif positives and positives[row] < 0.5 then
      check.fail("sampling gave row %d for draw %d, whose score is %g; the loss '%s' takes rows with score 1", row, draw,
        positives[row], o.loss.name or "of the recipe")
    end
    return row
  end
end

-- The rows for a loss that reads positives only: a C array of their numbers, and how many there are.
local function positives_among(o, train, labels)
  local list, n = ffi.new("int64_t[?]", train.rows), 0
  for i = 0, train.rows - 1 do
    if labels[i] >= 0.5 then list[n] = i n = n + 1 end
  end
  if n == 0 then check.fail("the loss '%s' trains on rows with score 1, and there is none", o.loss.name or "of the recipe") end
  return list, n
end

-- Where a loss compares each pair with the batch's other pairs and nothing else, a pair that is alone in its batch has a loss and a
-- gradient of 0. A run of such batches is refused; where only the last batch of an epoch is one, a note says so.
local function check_batches(o, draws, world)
  if not o.loss.in_batch or #o.columns > o.loss.columns then return end
  local alone = o.loss.gather and 1 or world -- pairs in a batch of all ranks of which none has another to be compared with
  local name, batch = o.loss.name or "of the recipe", o.batch * world
  if math.min(batch, draws) <= alone then
    check.fail("the loss '%s' compares each pair with the others of its batch, and %s: it would learn nothing; give %s", name,
      draws == 1 and "there is one row to train on" or draws <= alone and ("there are %d rows to train on"):format(draws)
        or "a batch has one pair",
      draws <= alone and "more rows" or "a larger batch, or a column of hard negatives")
  end
  local last = draws % batch
  if last > 0 and last <= alone and comm.rank == 0 then
    say.note("note: the last batch of an epoch has %s, of which the loss '%s' learns nothing: %d rows in batches of %d",
      last == 1 and "one pair" or ("%d pairs on as many ranks"):format(last), name, draws, batch)
  end
end

--- choose_rows(o, train, labels, world): the sampler of the run: sample(draw) -> row, draws an epoch, a line for the banner,
--- classes. world: the ranks, those of the job unless told otherwise.
---   weighted     every class equally likely: there must be labels, and a loss that reads more than one class
---   shuffled     every row once an epoch; of a loss that reads positives only, those with a score of 0.5 or more
---   sequential   the same, in file order
---   auto         weighted where it can be; a loss that reads positives only, and rows without labels, are shuffled
function setup.choose_rows(o, train, labels, world)
  world = world or comm.world_size
  local sampling = o.sampling
  if sampling == "auto" then sampling = labels and not o.loss.positives_only and "weighted" or "shuffled" end
  if type(sampling) == "function" then
    check_batches(o, train.rows, world)
    return own_sampler(o, train, labels), train.rows, "the recipe's own"
  elseif sampling == "weighted" then
    if o.loss.positives_only then
      check.fail("sampling = \"weighted\" draws every class equally often, and the loss '%s' takes rows with score 1 alone; say "
        .. "\"shuffled\" or \"sequential\"", o.loss.name or "of the recipe")
    elseif not labels then
      check.fail("sampling = \"weighted\" draws by the column '%s', which %s does not have; say \"shuffled\" or \"sequential\"",
        o.score, train.path)
    end
    check_batches(o, train.rows, world)
    local sample, classes = sampler.weighted(labels, train.rows, o.seed)
    return sample, train.rows, "weighted by class, with replacement", classes
  end
  local list, n, which = nil, train.rows, ""
  if o.loss.positives_only and labels then
    list, n = positives_among(o, train, labels)
    which = (", the %d rows with score 1"):format(n)
  end
  check_batches(o, n, world)
  local shuffled = sampling == "shuffled"
  local sample = shuffled and sampler.shuffled(n, o.seed) or sampler.sequential(n)
  return list and sampler.among(list, sample) or sample, n, (shuffled and "shuffled every epoch" or "in file order") .. which
end

-- ---- a run's data --------------------------------------------------------------------------------------------------------------
local Data = {}
Data.__index = Data

--- count_steps(o, draws, world): the steps of an epoch of this many draws, and of a run, on `world` ranks.
function setup.count_steps(o, draws, world)
  local epoch = math.ceil(draws / (o.batch * o.accumulate * world))
  local total = math.ceil(epoch * o.epochs)
  return epoch, o.max_steps > 0 and math.min(total, o.max_steps) or total
end

--- data(o): { train, validation, test = data sets, two of which may be nil; labels = C array of the training rows' or nil; sample,
--- draws = the sampler and how often an epoch draws from it; sampling, classes = for the banner; steps_per_epoch, total_steps }
function setup.data(o)
  local data = setmetatable({}, Data)
  data.train, data.validation, data.test = setup.open_data(o)
  data.labels = data.train:has(o.score) and data.train:numbers(o.score) or nil
  data.sample, data.draws, data.sampling, data.classes = setup.choose_rows(o, data.train, data.labels)
  data.steps_per_epoch, data.total_steps = setup.count_steps(o, data.draws, comm.world_size)
  return data
end

--- batches(o, plan, first): the stream of micro-batches (batches.lua) from step `first` on, in the parts of the batch plan.
function Data:batches(o, plan, first)
  return batches.new { set = self.train, model = o.model, columns = o.columns, labels = self.labels, draws = self.draws,
    sample = self.sample, batch = o.batch, accumulate = o.accumulate, part = plan.part, passes = plan.cached and 2 or 1,
    prefixes = o.prefixes, threads = o.loader_threads, first_step = first, last_step = self.total_steps }
end

function Data:close()
  for _, set in pairs { self.train, self.validation, self.test } do set:close() end
end

-- ---- before the first step -----------------------------------------------------------------------------------------------------

-- A rank with other arguments, data or adapters would wait for what the others never send, or learn
-- something else: an error on every rank.
local function compare_ranks(o, settings)
  if comm.world_size == 1 then return end
  local values = run_settings.of_ranks(settings)
  values["checksum of the adapters"] = data_parallel.checksum(o.model.lora.parameters.value)
  data_parallel.agree("before the first step", values)
end

-- What the banner tells (report.lua).
local function facts(o, data, plan, settings)
  local model, sets = o.model, {}
  for _, split in ipairs(data_folder.SPLITS) do
    local set = data[split]
    sets[split] = set and { rows = set.rows, skipped = set.skipped, first_skip = set.first_skip }
  end
  return { title = o.title, device = memory.device_text(model.device), ranks = comm.world_size, name = model.name,
    folder = model.folder, data = type(o.data) == "string" and o.data or o.data.train, output = o.output, lora = model.lora.config,
    trainable = model.lora.parameters.count, frozen = model:frozen_count(), dimension = model.dimension, pooling = model.pooling,
    normalize = model.normalize, max_length = model.max_length, precision = model.precision, batch = o.batch,
    global_batch = settings.global_batch, part = plan.part, recompute = plan.text, learning_rate = o.learning_rate,
    warmup = o.warmup, weight_decay = o.weight_decay, clip = o.clip, loss = o.loss.name, sampling = data.sampling, sets = sets,
    classes = data.classes, steps_per_epoch = data.steps_per_epoch, total_steps = data.total_steps, epochs = o.epochs,
    evaluation_steps = o.evaluation_steps }
end

--- run(o, lock): a run (trainer.lua) before its first step: its objects are made, and where it goes on from a checkpoint that is
--- read. o: options as train_options.complete gives them; lock: on the output folder. Returns the run and the step after which it
--- goes on.
function setup.run(o, lock)
  local data = setup.data(o)
  local settings, parameters = run_settings.of(o, data), o.model.lora.parameters
  compare_ranks(o, settings)
  comm.on_rank_0(function() output.check_room(o, data.total_steps) end)
  data_parallel.connect(parameters, o.loss.gather and { o.batch * #o.columns, o.model.dimension })
  local plan = recompute.new(o, data)
  settings.batch_parts = math.ceil(o.batch / plan.part)
  local optimizer = optim.adamw(parameters, { weight_decay = o.weight_decay, max_grad_norm = o.clip,
    scaled = o.model.precision == "fp16" })
  local run = { options = o, data = data, settings = settings, plan = plan, lock = lock, files = data_parallel.silent }
  comm.on_rank_0(function()
    run.files = files.new(o.output)
    say.line(report.banner(facts(o, data, plan, settings)))
  end)
  run.scores = validate.new(o, data)
  run.checkpoints = resume.new { options = o, optimizer = optimizer, scores = run.scores, settings = settings,
    total_steps = data.total_steps }
  local first, evaluation_due = run.checkpoints:go_on()
  run.evaluation_due, run.divergence = evaluation_due, divergence.new(o, first - optimizer.steps)
  run.step = training_step.new { model = o.model, loss = o.loss, source = data:batches(o, plan, first), optimizer = optimizer,
    columns = #o.columns, seed = o.seed, plan = plan }
  run.journal = journals.new { files = run.files, data = data, counts = run.step.counts, first = first, device = o.model.device }
  run.scores.journal = run.journal
  return run, first
end

return setup
