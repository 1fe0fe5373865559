-- train_options.lua: the options of lr.train: their defaults, and which values they may have. What cannot be meant is refused by
-- the option's name before anything is read or written.
local check = require "lorarun.check"
local planning = require "lorarun.planning"
local schedules = require "lorarun.schedule"
local suggest = require "lorarun.suggest"

local train_options = {}

local MOST = 2 ^ 53 -- whole numbers beyond are not exact

local DEFAULTS = {
  model = false, data = false, output = false, loss = false, schedule = false, -- given by the recipe
  columns = { "current_line", "context" }, score = "score", group = "context_type", prompts = {},
  batch = 64, accumulate = 1, epochs = 3, max_steps = 0, learning_rate = 3e-4, weight_decay = 0, clip = 1,
  sampling = "weighted", evaluation_steps = 2000, evaluate_first = false, keep = 3, seed = 1, recompute = "auto",
  resume = false, on_bad_row = "error", max_train_rows = 0, max_evaluation_rows = 0, loader_threads = 1,
  settings = false, recipe = false, on_step = false, warmup = false, deterministic = true,
}

-- A value as a message shows it: texts in quotes, so that "64" is told from 64.
local function shown(value)
  return type(value) == "string" and ("'%s'"):format(value) or tostring(value)
end

local function expected(name, value, what) check.fail("%s is %s, expected %s", name, shown(value), what) end

-- Whole numbers, the least of each, and what 0 means where it means something.
local WHOLE = { { "batch", 1 }, { "accumulate", 1 }, { "evaluation_steps", 1 }, { "keep", 1 }, { "loader_threads", 1 },
  { "max_steps", 0, " (0: no limit)" }, { "max_train_rows", 0, " (0: all)" }, { "max_evaluation_rows", 0, " (0: all)" },
  { "seed", 0 } }

local function check_numbers(o)
  for _, row in ipairs(WHOLE) do
    local name, least, none = row[1], row[2], row[3]
    local value = o[name]
    if type(value) ~= "number" or not (value >= least and value <= MOST) or value % 1 ~= 0 then
      expected(name, value, ("a whole number of at least %d%s"):format(least, none or ""))
    end
  end
  for _, name in ipairs { "learning_rate", "weight_decay", "clip" } do
    local value = o[name]
    if type(value) ~= "number" or not (value >= 0) then expected(name, value, "a number of at least 0") end
    if value == math.huge then expected(name, value, "a finite number") end
  end
  if type(o.epochs) ~= "number" or not (o.epochs > 0) then expected("epochs", o.epochs, "more than 0") end
  if o.epochs == math.huge then expected("epochs", o.epochs, "a finite number; max_steps ends a run after so many steps") end
end

-- Types of what is no number. false: may be left out.
local TYPES = { { "model", "table" }, { "output", "string" }, { "data", "string", "table" },
  { "loss", "table", "function", "string", false }, { "schedule", "function", "string", false }, { "warmup", "number", false },
  { "columns", "table" }, { "score", "string" }, { "group", "string", false }, { "prompts", "table" },
  { "sampling", "string", "function" }, { "evaluate_first", "boolean" }, { "deterministic", "boolean" },
  { "resume", "string", "boolean" }, { "on_bad_row", "string" }, { "settings", "table", false }, { "recipe", "string", false },
  { "on_step", "function", false } }

local function check_types(o)
  for _, row in ipairs(TYPES) do
    local name = row[1]
    local value, fits, words = o[name], false, {}
    for i = 2, #row do
      local kind = row[i]
      fits = fits or (kind == false and value == false or type(value) == kind)
      words[#words + 1] = kind == "boolean" and "true or false" or kind and "a " .. kind or "false"
    end
    if not fits then expected(name, value, table.concat(words, " or ")) end
  end
  if o.output == "" then expected("output", o.output, "a folder") end
end

local function check_columns(columns)
  local count = 0
  for key, name in pairs(columns) do
    if type(key) ~= "number" or type(name) ~= "string" then
      check.fail("columns must be a list of the names of text columns; it has %s = %s", shown(key), shown(name))
    end
    count = count + 1
  end
  if count < 2 or #columns ~= count then
    check.fail("columns names %d text column%s, and a pair needs two", count, count == 1 and "" or "s")
  end
end

local function check_data(data)
  if data == "" and not planning.job then expected("data", data, "a folder, or { train = path, validation =, test = }") end
  if type(data) ~= "table" then return end
  suggest.refuse_unknown("data", data, { train = 1, validation = 1, test = 1 })
  for _, split in ipairs { "train", "validation", "test" } do
    local path = data[split]
    if path ~= nil and type(path) ~= "string" then expected("data." .. split, path, "a path") end
  end
  if not data.train then check.fail("data has no train: give { train = path, validation =, test = }") end
end

-- The schedule as a function, and that `warmup`, which is told beside it, is its own.
local function complete_schedule(o)
  if type(o.schedule) == "string" then o.schedule = schedules.by_name(o.schedule, o.warmup or 0) end
  if not o.schedule then o.schedule = schedules.warmup_linear(o.warmup or 0) end
  local known = schedules.describe(o.schedule)
  if o.warmup and not known then
    check.fail("warmup is %s, and the schedule is a function of the recipe's, which it does not reach; give one of them",
      shown(o.warmup))
  elseif o.warmup and o.warmup ~= known.warmup then
    check.fail("warmup is %s, and the schedule was made with %s; give one of them", shown(o.warmup), shown(known.warmup))
  end
  o.warmup = known and known.warmup
end

--- complete(given): the options with their defaults; an error where one is unknown, missing, or cannot be.
function train_options.complete(given)
  local o = {}
  for name, value in pairs(DEFAULTS) do o[name] = value end
  suggest.refuse_unknown("lr.train", given, DEFAULTS)
  for name, value in pairs(given) do o[name] = value end
  for _, name in ipairs { "model", "data", "output" } do
    if not o[name] then check.fail("lr.train needs '%s'", name) end
  end
  if o.resume == "" then o.resume = false end
  check_types(o)
  check_numbers(o)
  check_columns(o.columns)
  check_data(o.data)
  if not o.model.lora then check.fail("the model has nothing to train: call model:add_lora first") end
  o.loss = o.loss or require("lorarun.loss").cosine_similarity()
  if type(o.loss) == "string" then o.loss = require("lorarun.loss").by_name(o.loss) end
  if type(o.loss) == "function" then o.loss = { compute = o.loss, needs_labels = true } end
  complete_schedule(o)
  return o
end

return train_options
