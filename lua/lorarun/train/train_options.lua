-- train_options.lua: the options of lr.train: which there are, what each may be, and what follows from them before the first step.
-- A value that cannot be meant is refused here by the option's name; no option that was given is ignored.
local args = require "lorarun.base.args"
local check = require "lorarun.base.check"
local data_folder = require "lorarun.formats.data_folder"
local fs = require "lorarun.base.fs"
local losses = require "lorarun.train.loss"
local options = require "lorarun.base.options"
local recompute = require "lorarun.train.recompute"
local schedules = require "lorarun.train.schedule"
local sorted = require "lorarun.base.sorted"
local suggest = require "lorarun.base.suggest"

local train_options = {}

-- docs/reference.md lists them; tests/units/test_documented.lua compares the defaults.
train_options.DEFAULTS = {
  model = false, data = false, output = false, columns = false, -- these four must be given
  score = "score", group = false, prompts = {}, loss = "cosine", schedule = "linear", warmup = 0,
  batch = 64, accumulate = 1, epochs = 3, max_steps = 0, learning_rate = 3e-4, weight_decay = 0, clip = 1,
  sampling = "auto", evaluation_steps = 2000, evaluate_first = false, keep = 3, seed = 1, recompute = "auto",
  resume = false, on_bad_row = "error", max_train_rows = 0, max_evaluation_rows = 0, loader_threads = 1,
  title = false, settings = false, recipe = false, on_step = false, deterministic = true,
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
  max_evaluation_rows = whole(0), loader_threads = whole(1), title = maybe(options.text),
  settings = maybe(options.table), recipe = maybe(options.text),
  on_step = maybe(options.func), deterministic = options.boolean,
}

-- ---- each option ---------------------------------------------------------------------------------------------------------------

-- A list of different names, two or more.
local function check_columns(columns)
  if not columns then check.fail "lr.train needs 'columns', the names of the data's text columns: columns = { name, name }" end
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

local function check_data(given, may_be_missing)
  if given == "" and not may_be_missing then
    check.fail "data is '', expected a folder, or { train = path, validation = path, test = path }"
  end
  if type(given) ~= "table" then return end
  suggest.refuse_unknown("data", given, { train = 1, validation = 1, test = 1 })
  for _, split in ipairs(data_folder.SPLITS) do
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

-- The schedule as a function. o.warmup becomes the schedule's own; nil for a function of the recipe's, whose warmup is not known.
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

--- complete(given, planned): all options, with defaults: loss is a table with compute, schedule a function, prefixes[c] the text
--- before those of column c. An error names an option that does not exist or cannot be meant. planned: the run is only planned, so
--- its data may be yet to be made (data = "").
function train_options.complete(given, planned)
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
  check_data(o.data, planned)
  check_columns(o.columns)
  o.loss = loss_of(o)
  complete_schedule(o, given)
  if o.recipe and not fs.is_file(o.recipe) then
    check.fail("lr.train: recipe is %s, and there is no such file; it is the path of the recipe, which is kept with the model",
      options.shown(o.recipe))
  end
  o.prefixes = o.model:prefixes(o.columns, o.prompts)
  recompute.number(o.recompute, o.model.layer_count)
  local asked, left_to_train = args.resume()
  if asked and (left_to_train or given.resume == nil) then o.resume = asked end
  o.settings = o.settings or args.settings() or {}
  return o
end

--- notes(o): what valid options do that a user may not expect: a list of sentences.
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
      .. "again"
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

return train_options
