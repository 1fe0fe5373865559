-- train_options.lua: the options of lr.train: which there are, what each may be, and what follows from them before the first step.
-- What cannot be meant is refused here with the option's name; nothing that was given is left out of account.
local ffi = require "ffi"
local check = require "lorarun.base.check"
local comm = require "lorarun.dist.comm"
local fs = require "lorarun.base.fs"
local dataset = require "lorarun.data.dataset"
local losses = require "lorarun.train.loss"
local options = require "lorarun.base.options"
local planning = require "lorarun.base.planning"
local recompute = require "lorarun.train.recompute"
local sampler = require "lorarun.data.sampler"
local say = require "lorarun.base.say"
local schedules = require "lorarun.train.schedule"
local sorted = require "lorarun.base.sorted"
local suggest = require "lorarun.base.suggest"

local train_options = {}

-- docs/reference.md lists them; tests/units/test_documented.lua compares the defaults.
train_options.DEFAULTS = {
  model = false, data = false, output = false, loss = "cosine", schedule = "linear", warmup = 0, -- the first three must be given
  columns = { "current_line", "context" }, score = "score", group = "context_type", prompts = {},
  batch = 64, accumulate = 1, epochs = 3, max_steps = 0, learning_rate = 3e-4, weight_decay = 0, clip = 1,
  sampling = "auto", evaluation_steps = 2000, evaluate_first = false, keep = 3, seed = 1, recompute = "auto",
  resume = false, on_bad_row = "error", max_train_rows = 0, max_evaluation_rows = 0, loader_threads = 1,
  settings = false, recipe = false, on_step = false, deterministic = true,
}
local DEFAULTS = train_options.DEFAULTS

local whole, from, either, maybe = options.whole, options.from, options.either, options.maybe
local KINDS = {
  model = options.any, data = options.either(options.text, options.table), output = { test = function(v) return type(v) == "string"
    and v ~= "" end, text = "a folder" },
  loss = { test = function(v) return type(v) == "string" or type(v) == "function" or type(v) == "table" end,
    text = "a loss of lr.loss, its name, or a function of (columns, labels, embeddings)" },
  schedule = { test = function(v) return type(v) == "string" or type(v) == "function" end,
    text = "a schedule of lr.schedule, its name, or a function of (step, total)" },
  warmup = maybe(options.number), columns = options.table, score = options.text, group = maybe(options.text),
  prompts = options.table, batch = whole(1), accumulate = whole(1),
  epochs = { test = function(v) return options.number.test(v) and v > 0 end, text = "more than 0" },
  max_steps = whole(0), learning_rate = from(0), weight_decay = from(0), clip = from(0),
  sampling = either(options.choice { "auto", "weighted", "shuffled", "sequential" }, options.func),
  evaluation_steps = whole(1), evaluate_first = options.boolean, keep = whole(1), seed = whole(0),
  recompute = either(options.text, options.number),
  resume = either(options.boolean, options.text), on_bad_row = options.choice { "error", "skip" }, max_train_rows = whole(0),
  max_evaluation_rows = whole(0), loader_threads = whole(1), settings = maybe(options.table), recipe = maybe(options.text),
  on_step = maybe(options.func), deterministic = options.boolean,
}

-- ---- each by itself ------------------------------------------------------------------------------------------------------------

-- A list of different names, two or more.
local function check_columns(columns)
  local count, seen = 0, {}
  for key, name in sorted(columns) do
    if type(key) ~= "number" or type(name) ~= "string" then
      check.fail("columns must be a list of the names of text columns; it has %s = %s", tostring(key), options.shown(name))
    end
    if seen[name] then check.fail("columns has '%s' twice", name) end
    count, seen[name] = count + 1, true
  end
  if count < 2 or #columns ~= count then
    check.fail("columns names %d text column%s, and a pair needs two", count, count == 1 and "" or "s")
  end
end

local function check_data(given)
  if given == "" and not planning.job then
    check.fail "data is '', expected a folder, or { train = path, validation = path, test = path }"
  end
  if type(given) ~= "table" then return end
  suggest.refuse_unknown("data", given, { train = 1, validation = 1, test = 1 })
  for _, split in ipairs { "train", "validation", "test" } do
    local path = given[split]
    if path ~= nil and type(path) ~= "string" then check.fail("data.%s is %s, expected a path", split, options.shown(path)) end
  end
  if not given.train then check.fail "data has no train: give { train = path, validation = path, test = path }" end
end

local function check_model(model)
  require("lorarun.models.model").expect(model, "lr.train")
  if not model.lora then check.fail("the model has nothing to train: call model:add_lora first") end
end

local LOSS = { name = options.text, compute = options.func, needs_labels = options.boolean, positives_only = options.boolean,
  stateless = options.boolean, mean_over_pairs = options.boolean, gather = options.boolean, columns = whole(1),
  more_columns = options.boolean, in_batch = options.boolean, settings = options.table }

-- The loss as a table that has compute.
local function loss_of(o)
  local loss = o.loss
  if type(loss) == "string" then loss = losses.by_name(loss) end
  if type(loss) == "function" then
    for name, make in sorted(losses) do
      if loss == make then check.fail("lr.train: loss is the function lr.loss.%s itself; call it: lr.loss.%s()", name, name) end
    end
    return { compute = loss, needs_labels = true }
  end
  options.check("lr.train: loss", loss, LOSS)
  if not loss.compute then
    check.fail "lr.train: loss has no compute: { name = \"mine\", compute = function(columns, labels, embeddings) ... end }"
  end
  local wanted, name = loss.columns, loss.name or "the loss"
  if wanted and #o.columns < wanted then
    check.fail("%s takes %d columns%s, and columns has %d: %s", name, wanted, loss.more_columns and " or more" or "", #o.columns,
      table.concat(o.columns, ", "))
  elseif wanted and #o.columns > wanted and not loss.more_columns then
    check.fail("%s takes %d columns, and would leave '%s' unread: give it %d", name, wanted, o.columns[wanted + 1], wanted)
  end
  return loss
end

-- The schedule as a function. warmup is then its own; false where it is the recipe's, of which nobody knows.
local function complete_schedule(o, given)
  for name, make in sorted(schedules) do
    if o.schedule == make then
      check.fail("schedule is the function lr.schedule.%s itself; call it: lr.schedule.%s(warmup)", name, name)
    end
  end
  if type(o.schedule) == "string" then o.schedule = schedules.by_name(o.schedule, o.warmup or 0) end
  local known = schedules.describe(o.schedule)
  if given.warmup and not known then
    check.fail("warmup is %s, and the schedule is a function of the recipe's, which it does not reach; give one of them",
      options.shown(given.warmup))
  elseif given.warmup and given.warmup ~= known.warmup then
    check.fail("warmup is %s, and the schedule was made with %s; give one of them", options.shown(given.warmup),
      options.shown(known.warmup))
  end
  o.warmup = known and known.warmup
end

--- complete(given): all options, with defaults: loss is a table with compute, schedule a function, prefixes[c] the text before
--- those of column c. An error names what nobody knows or cannot be.
function train_options.complete(given)
  options.check("lr.train", given, KINDS)
  if not given then check.fail "lr.train takes a table of options: lr.train { model = ..., data = ..., output = ... }" end
  local o = {}
  for key, value in pairs(DEFAULTS) do o[key] = value end
  for key, value in pairs(given) do o[key] = value end
  for _, key in ipairs { "model", "data", "output" } do
    if not o[key] then check.fail("lr.train needs '%s'", key) end
  end
  if o.resume == "" then o.resume = false end
  check_model(o.model)
  check_data(o.data)
  check_columns(o.columns)
  o.loss = loss_of(o)
  complete_schedule(o, given)
  if o.recipe and not fs.is_file(o.recipe) then
    check.fail("lr.train: recipe is %s, and there is no such file; it is the path of the recipe, which is kept with the model",
      options.shown(o.recipe))
  end
  o.group_given = given.group ~= nil
  o.prefixes = o.model:prefixes(o.columns, o.prompts)
  recompute.number(o.recompute, o.model.layer_count)
  return o
end

--- notes(o): what a user may not expect of options that are in order: a list of sentences.
function train_options.notes(o)
  local list, model, bare = {}, o.model, {}
  local default = model.settings.default_prompt
  if default and model:prompt() ~= "" then
    for c, name in ipairs(o.columns) do
      if o.prefixes[c] == "" then bare[#bare + 1] = name end
    end
  end
  if #bare > 0 then
    list[#list + 1] = ("model:encode puts the model's default prompt '%s' before a text; training, as in sentence-transformers, "
      .. "puts none before %s unless prompts = { %s = \"%s\" } says so"):format(default, table.concat(bare, ", "), bare[1], default)
  end
  if model.trained and not o.resume then
    list[#list + 1] = "the model was trained before: this run begins with the adapters as they are; model.lora:reset(seed) begins "
      .. "anew"
  end
  return list
end

--- rate(o, step, total): the learning rate of a step, by the schedule.
function train_options.rate(o, step, total)
  local factor = o.schedule(step, total)
  if not options.number.test(factor) then
    check.fail("the schedule gave %s for step %d of %d, expected a number: a factor of the learning rate", options.shown(factor),
      step, total)
  end
  return o.learning_rate * factor
end

-- ---- the data ------------------------------------------------------------------------------------------------------------------

local function path_of(o, split)
  if type(o.data) == "table" then return o.data[split] end
  local found = {}
  for _, suffix in ipairs { ".jsonl", ".csv" } do
    local path = fs.join(o.data, split .. suffix)
    if fs.is_file(path) then found[#found + 1] = path end
  end
  if #found > 1 then
    check.fail("there are both %s and %s: give what is meant, as in data = { train = path, validation = path, test = path }",
      found[1], found[2])
  end
  return found[1]
end

--- open_data(o): the three data sets, two of which may be nil. A loss that reads no labels needs no scores to train; evaluation
--- needs them, and of the texts only the two that it compares.
function train_options.open_data(o)
  local function open(split, max_rows)
    local path = path_of(o, split)
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
  local train = open("train", o.max_train_rows)
  if not train then check.fail("there is no train.jsonl (or train.csv) in '%s'", tostring(o.data)) end
  local validation, test = open("validation", o.max_evaluation_rows), open("test", o.max_evaluation_rows)
  local scored = validation or test
  if o.group_given and o.group and scored and not scored:has(o.group) and comm.rank == 0 then
    say.note("note: %s has no column '%s': figures are not split by it", scored.path, o.group)
  end
  return train, validation, test
end

-- The recipe's own sampler, what it gives looked at.
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

-- The rows that a loss takes which reads positives only: a C array of their numbers, or nil where all are; and how many.
local function positives_among(o, train, labels)
  local list, n = ffi.new("int64_t[?]", train.rows), 0
  for i = 0, train.rows - 1 do
    if labels[i] >= 0.5 then list[n] = i n = n + 1 end
  end
  if n == 0 then check.fail("the loss '%s' trains on rows with score 1, and there is none", o.loss.name or "of the recipe") end
  return list, n
end

-- Where a loss compares each pair with the batch's other pairs and nothing else, a pair that is alone in its batch has a loss and a
-- gradient of 0. A run of such batches is refused; of a last one in every epoch the user is told.
local function check_batches(o, draws)
  if not o.loss.in_batch or #o.columns > o.loss.columns then return end
  local world = planning.job and planning.job.processes or comm.world_size
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

--- choose_rows(o, train, labels): the sampler of the run: sample(draw) -> row, draws an epoch, a line for the banner, classes.
---   weighted     every class equally likely: there must be labels, and a loss that reads more than one class
---   shuffled     every row once an epoch; of a loss that reads positives only, those with a score of 0.5 or more
---   sequential   the same, in file order
---   auto         weighted where it can be; a loss that reads positives only, and rows without labels, are shuffled
function train_options.choose_rows(o, train, labels)
  local sampling = o.sampling
  if sampling == "auto" then sampling = labels and not o.loss.positives_only and "weighted" or "shuffled" end
  if type(sampling) == "function" then
    check_batches(o, train.rows)
    return own_sampler(o, train, labels), train.rows, "the recipe's own"
  elseif sampling == "weighted" then
    if o.loss.positives_only then
      check.fail("sampling = \"weighted\" draws every class equally often, and the loss '%s' takes rows with score 1 alone; say "
        .. "\"shuffled\" or \"sequential\"", o.loss.name or "of the recipe")
    elseif not labels then
      check.fail("sampling = \"weighted\" draws by the column '%s', which %s does not have; say \"shuffled\" or \"sequential\"",
        o.score, train.path)
    end
    check_batches(o, train.rows)
    local sample, classes = sampler.weighted(labels, train.rows, o.seed)
    return sample, train.rows, "weighted by class, with replacement", classes
  end
  local list, n, which = nil, train.rows, ""
  if o.loss.positives_only and labels then
    list, n = positives_among(o, train, labels)
    which = (", the %d rows with score 1"):format(n)
  end
  check_batches(o, n)
  local shuffled = sampling == "shuffled"
  local sample = shuffled and sampler.shuffled(n, o.seed) or sampler.sequential(n)
  return list and sampler.among(list, sample) or sample, n, (shuffled and "shuffled every epoch" or "in file order") .. which
end

return train_options
