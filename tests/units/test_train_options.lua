-- The options of lr.train: what cannot be meant is one error that names the option, before anything is read.
local schedule = require "lorarun.schedule"
local train_options = require "lorarun.train_options"

local function complete(given)
  local all = { model = { lora = {} }, data = "data", output = "out" }
  for name, value in pairs(given) do all[name] = value end
  return train_options.complete(all)
end

local function refused(name, value, part)
  local text = check.raises(part, complete, { [name] = value })
  check.that(text:find(name, 1, true), text)
end

test("numbers that cannot be", function()
  local nan = 0 / 0
  for _, name in ipairs { "batch", "accumulate", "evaluation_steps", "keep", "loader_threads" } do
    for _, value in ipairs { 0, -1, 1.5, nan, math.huge, 2 ^ 60, "64", true } do
      refused(name, value, "expected a whole number of at least 1")
    end
  end
  for _, name in ipairs { "max_steps", "max_train_rows", "max_evaluation_rows", "seed" } do
    for _, value in ipairs { -1, 0.5, nan, math.huge, 2 ^ 60, "0", false } do
      refused(name, value, "expected a whole number of at least 0")
    end
    check.equal(complete({ [name] = 0 })[name], 0)
  end
  for _, name in ipairs { "learning_rate", "weight_decay", "clip" } do
    for _, value in ipairs { -1, nan, math.huge, "1e-3", {} } do refused(name, value, "expected a") end
  end
  for _, value in ipairs { 0, -1, nan, math.huge, "3" } do refused("epochs", value, "expected") end
  check.raises("batch is '64', expected", complete, { batch = "64" }) -- a text is told from a number
end)

test("values of another kind", function()
  for name, value in pairs { output = 3, data = 3, model = "m", loss = 3, schedule = 3, warmup = "3", columns = "a,b",
    score = false, group = true, prompts = "query", sampling = 3, evaluate_first = "yes", deterministic = 1, resume = 7,
    on_bad_row = false, settings = "s", recipe = true, on_step = "print" } do
    refused(name, value, ", expected ")
  end
  refused("output", "", "expected a folder")
  refused("data", "", "expected a folder")
  check.equal(complete({ resume = "" }).resume, false)
  check.equal(complete({ group = false }).group, false)
end)

test("columns are two names of texts, or more", function()
  for _, columns in ipairs { {}, { "a" } } do refused("columns", columns, "and a pair needs two") end
  refused("columns", { a = "b", c = "d" }, "columns must be a list")
  refused("columns", { "a", 3 }, "it has 2 = 3")
  check.equal(#complete({ columns = { "a", "b", "c" } }).columns, 3)
end)

test("data as paths: only splits that there are, and one to train on", function()
  refused("data", { train = "a", valid = "b" }, "data has no option 'valid'; did you mean 'validation'?")
  refused("data", { validation = "b" }, "data has no train")
  refused("data", { train = "a", test = 3 }, "data.test is 3, expected a path")
end)

test("schedules: by name, with one warmup", function()
  local function described(given)
    local o = complete(given)
    local known = schedule.describe(o.schedule)
    return known.name .. " " .. known.warmup .. " " .. o.warmup
  end
  check.equal(described {}, "linear 0 0")
  check.equal(described { warmup = 5 }, "linear 5 5")
  check.equal(described { schedule = "cosine", warmup = 5 }, "cosine 5 5")
  check.equal(described { schedule = schedule.constant(7) }, "constant 7 7")
  check.equal(described { schedule = schedule.constant(7), warmup = 7 }, "constant 7 7")
  refused("warmup", 0.1, "warmup is 0.1, expected a whole number of steps, at least 0")
  refused("warmup", -1, "expected a whole number of steps")
  refused("schedule", "polynomial", "there is no schedule 'polynomial'")
  check.raises("warmup is 3, and the schedule was made with 7", complete, { schedule = schedule.constant(7), warmup = 3 })
  local own = function() return 1 end
  check.raises("warmup is 3, and the schedule is a function of the recipe's", complete, { schedule = own, warmup = 3 })
  check.equal(complete({ schedule = own }).schedule, own)
end)
