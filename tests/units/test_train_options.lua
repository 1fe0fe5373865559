-- The options of lr.train: what each does, and that a value that makes no sense is one error before the first step. No step
-- is taken here.
local ffi = require "ffi"
local fs = require "lorarun.base.fs"
local losses = require "lorarun.train.loss"
local load = require("lorarun.models.model").load
local say = require "lorarun.base.say"
local schedules = require "lorarun.train.schedule"
local setup = require "lorarun.train.setup"
local train_options = require "lorarun.train.train_options"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local FOLDER = fs.join(os.getenv "LORARUN_TESTS", "golden", "qwen2") -- its prompts are document and query

local function with_model(fn)
  local model = load(FOLDER, { max_length = 16 })
  model:add_lora { rank = 2, targets = { "q_proj" } }
  local ok, err = pcall(fn, model)
  model:free()
  if not ok then error(err, 0) end
end

-- The options of a run, complete, with others in place of these.
local function complete(model, changes)
  local given = { model = model, data = "data", output = "out", columns = { "current_line", "context" } }
  for key, value in pairs(changes or {}) do given[key] = value end
  return train_options.complete(given)
end

test("every option of lr.train has a kind: a value of another kind is refused, and the option named", function()
  with_model(function(model)
    check.equal(complete(model).batch, 64)
    for name in pairs(train_options.DEFAULTS) do
      -- a coroutine is no valid value of any option
      local text = check.raises(name, complete, model, { [name] = coroutine.create(function() end) })
      check.that(text:find("a thread", 1, true), text)
    end
    for _, name in ipairs { "batch", "accumulate", "evaluation_steps", "keep", "loader_threads", "max_steps", "max_train_rows",
      "max_evaluation_rows", "seed" } do
      local least = type(train_options.DEFAULTS[name]) == "number" and name:find "^max_" and 0 or name == "seed" and 0 or 1
      for _, value in ipairs { least - 1, -1, 1.5, 0 / 0, math.huge, 2 ^ 60, "64", true } do
        check.raises(("expected a whole number of at least %d"):format(least), complete, model, { [name] = value })
      end
      check.equal(complete(model, { [name] = least })[name], least)
    end
    for _, name in ipairs { "learning_rate", "weight_decay", "clip", "epochs" } do
      for _, value in ipairs { -1, 0 / 0, math.huge, "1e-3", {} } do
        check.raises(name .. " is ", complete, model, { [name] = value })
      end
    end
    check.equal(complete(model, { resume = "" }).resume, false)
    check.equal(complete(model, { group = false }).group, false)
    for _, case in ipairs {
      { { bacth = 3 }, "lr.train has no option 'bacth'; did you mean 'batch'?" },
      { { batch = 1.5 }, "batch is 1.5, expected a whole number of at least 1" },
      { { max_train_rows = -1 }, "max_train_rows is -1, expected a whole number of at least 0" },
      { { max_evaluation_rows = -5 }, "max_evaluation_rows is -5" }, { { max_steps = -1 }, "max_steps is -1" },
      { { learning_rate = 0 / 0 }, "learning_rate is" }, { { learning_rate = math.huge }, "learning_rate is inf" },
      { { on_bad_row = "ignore" }, "on_bad_row is 'ignore', expected 'error' or 'skip'" },
      { { sampling = "shufled" }, "did you mean 'shuffled'?" }, { { recompute = "most" }, "recompute is 'most'" },
      { { batch = "64" }, "batch is '64', expected" }, { { score = false }, "score is false" },
      { { group = true }, "group is true" },
      { { evaluate_first = 1 }, "evaluate_first is 1, expected true or false" }, { { seed = "1" }, "seed is '1'" },
      { { data = {} }, "data has no train" }, { { data = { train = "a", test = 3 } }, "data.test is 3, expected a path" },
      { { data = { train = "a", valid = "b" } }, "data has no option 'valid'; did you mean 'validation'?" },
      { { data = "" }, "data is '', expected a folder" }, { { output = "" }, "output is '', expected a folder" },
      { { model = FOLDER }, "load it first, lr.load_model(" },
      { { model = {} }, "lr.train takes a model, got a table" },
      { { columns = {} }, "columns names 0 text columns, and a pair needs two" },
      { { columns = { "a" } }, "columns names 1 text column, and a pair needs two" },
      { { columns = { "a", "a" } }, "columns has 'a' twice" }, { { columns = { "a", 3 } }, "it has 2 = 3" },
      { { columns = { anchor = "a", positive = "b" } }, "columns must be a list of the names" },
    } do
      check.raises(case[2], complete, model, case[1])
    end
    check.raises("lr.train takes a table of options, got 'x'", train_options.complete, "x")
    check.raises("lr.train takes a table of options", train_options.complete, nil)
    check.raises("lr.train needs 'output'", train_options.complete, { model = model, data = "data" })
    check.raises("lr.train needs 'columns'", train_options.complete, { model = model, data = "data", output = "out" })
    model.lora:free()
    model.lora = nil
    check.raises("call model:add_lora first", complete, model)
  end)
end)

test("a loss: a name, a function or a table; it must read all columns", function()
  with_model(function(model)
    local two, three = { "a", "b" }, { "a", "b", "c" }
    local function own() end
    check.equal(complete(model, { loss = "mnr" }).loss.name, "multiple_negatives_ranking")
    check.equal(complete(model).loss.name, "cosine_similarity")
    check.equal(complete(model, { loss = own }).loss.compute, own)
    check.equal(complete(model, { loss = "mnr", columns = three }).loss.columns, 2)
    for _, case in ipairs {
      { "mrn", two, "there is no loss 'mrn'" }, { losses.cosine_similarity, two, "call it: lr.loss.cosine_similarity()" },
      { {}, two, "loss has no compute" }, { { compute = 1 }, two, "compute is 1, expected a function" },
      { { compute = own, gathr = true }, two, "lr.train: loss has no option 'gathr'; did you mean 'gather'?" },
      { losses.cosine_similarity(), three, "cosine_similarity takes 2 columns, and would leave 'c' unread" },
      { { name = "three", compute = own, columns = 3 }, two, "three takes 3 columns, and columns has 2: a, b" },
    } do
      check.raises(case[3], complete, model, { loss = case[1], columns = case[2] })
    end
  end)
  check.raises("lr.loss.multiple_negatives_ranking has no option 'scael'", losses.multiple_negatives_ranking, { scael = 30 })
  check.raises("scale is -1, expected a number above 0", losses.multiple_negatives_ranking, { scale = -1 })
  check.raises("gather is 1, expected true or false", losses.multiple_negatives_ranking, { gather = 1 })
  check.raises("lr.loss.cosine_similarity has no option 'scale'", losses.cosine_similarity, { scale = 2 })
  check.raises("there is no loss nil", losses.by_name, nil)
  check.equal(losses.by_name("mnr", { gather = false }).gather, false)
end)

test("schedules: linear by default, a name with one warmup, or a function whose results are checked", function()
  with_model(function(model)
    local function described(given)
      local o = complete(model, given)
      local known = schedules.describe(o.schedule)
      return known.name .. " " .. known.warmup .. " " .. o.warmup
    end
    check.equal(described {}, "linear 0 0")
    check.equal(described { warmup = 5 }, "linear 5 5")
    check.equal(described { schedule = "cosine", warmup = 5 }, "cosine 5 5")
    check.equal(described { schedule = schedules.constant(7) }, "constant 7 7")
    check.equal(described { schedule = schedules.constant(7), warmup = 7 }, "constant 7 7")
    check.near(train_options.rate(complete(model), 25, 100), 3e-4 * 0.75, 1e-18)
    local function own(step) return step == 1 and 0.5 or nil end
    for _, case in ipairs {
      { { warmup = 0.1 }, "warmup is 0.1, expected a whole number of steps, at least 0" },
      { { warmup = -1 }, "a whole number of steps" },
      { { schedule = schedules.constant(7), warmup = 3 }, "warmup is 3, and the schedule was made with 7" },
      { { schedule = own, warmup = 3 }, "warmup is 3, and the schedule is a function of the recipe's" },
      { { schedule = "polynomial" }, "there is no schedule 'polynomial'; there are linear, cosine and constant" },
      { { schedule = "linaer" }, "did you mean 'linear'?" }, { { warmup = "3" }, "warmup is '3', expected a number" },
      { { schedule = schedules.warmup_linear }, "schedule is the function lr.schedule.warmup_linear itself; call it" },
    } do
      check.raises(case[2], complete, model, case[1])
    end
    local o = complete(model, { schedule = own })
    check.near(train_options.rate(o, 1, 9), 1.5e-4, 1e-18)
    check.equal(o.warmup, nil)
    check.raises("the schedule gave nil for step 2 of 9, expected a number", train_options.rate, o, 2, 9)
    o = complete(model, { schedule = function() return 0 / 0 end })
    check.raises("for step 0 of 9, expected a number", train_options.rate, o, 0, 9)
  end)
end)

test("prompts: by name or as text, for existing columns only; the same for encode()", function()
  with_model(function(model)
    model.settings.prompts = { query = "query: ", document = "doc: " }
    local function prefixes(given)
      return table.concat(complete(model, { columns = { "a", "b" }, prompts = given }).prefixes, "|")
    end
    check.equal(prefixes { a = "query", b = { text = "passage: " } }, "query: |passage: ")
    check.equal(prefixes { b = "document" }, "|doc: ")
    check.equal(prefixes {}, "|")
    for _, case in ipairs {
      { { c = "query" }, "prompts: there is no column 'c'; columns are a, b" },
      { { "query", "document" }, "prompts is a list, expected what comes before the texts of each column" },
      { "query: ", "prompts is 'query: ', expected a table" },
      { { a = "qury" }, "the model has no prompt named 'qury'; did you mean 'query'?; it has document, query" },
      { { a = "query: " }, "A text of your own is { text = \"query: \" }" }, { { a = 3 }, "prompts: 'a' is 3, expected the name" },
      { { a = { txt = "x" } }, "prompts: 'a' has no option 'txt'" }, { { a = {} }, "text is missing" },
      { { a = { text = 1 } }, "text is 1, expected a text" },
    } do
      check.raises(case[2], prefixes, case[1])
    end
    local function embedding(options) return model:encode({ "x = 1" }, options) end
    local function same(one, other) check.array(one:to_table()[1], other:to_table()[1], 0) end
    local expected = model:encode { "query: x = 1" }
    for _, options in ipairs { { prompt = "query: " }, { prompt = { text = "query: " } }, { prompt_name = "query" } } do
      same(embedding(options), expected)
    end
    model.settings.default_prompt = "query"
    same(embedding(nil), expected)
    check.raises("the model has no prompt named 'q'", embedding, { prompt_name = "q" })
    check.raises("prompt_name is 5, expected a text", embedding, { prompt_name = 5 })
    check.raises("prompt and prompt_name are both given", embedding, { prompt_name = "query", prompt = "x" })
    check.raises("encode() was given 5, expected a text or a list of texts", function() model:encode(5) end)
  end)
end)

test("a recipe that is not a file is refused; a group that no row has is a note", function()
  with_model(function(model)
    check.raises("recipe is 'no.lua', and there is no such file", complete, model, { recipe = "no.lua" })
    shell.with_folder(function(folder)
      for _, split in ipairs { "train", "validation" } do
        fs.write(fs.join(folder, split .. ".jsonl"), '{"current_line": "a", "context": "b", "score": 1, "kind": "k"}\n')
      end
      local function notes(changes)
        changes.data = folder
        local o, told, real = complete(model, changes), {}, say.note
        say.note = function(...) told[#told + 1] = string.format(...) end
        local ok, train, validation = pcall(setup.open_data, o)
        say.note = real
        check.that(ok, train)
        train:close()
        validation:close()
        return table.concat(told, "\n")
      end
      check.that(notes { group = "nope" }:find("validation.jsonl has no column 'nope'", 1, true), "a group that is not there")
      check.equal(notes { group = "kind" }, "")
      check.equal(notes { group = false }, "")
      check.equal(notes {}, "", "no group by default")
    end)
  end)
end)

test("notes: a default prompt that training leaves out, adapters that were trained before", function()
  with_model(function(model)
    local function notes(given) return table.concat(train_options.notes(complete(model, given)), "|") end
    check.equal(notes(), "")
    model.settings.prompts, model.settings.default_prompt = { query = "query: " }, "query"
    local columns = { "a", "b" }
    check.that(notes { columns = columns }:find("default prompt 'query' before a text; training, as in sentence-transformers, puts "
      .. "none before a, b unless prompts = { a = \"query\" } says so", 1, true), notes { columns = columns })
    check.equal(notes { columns = columns, prompts = { a = "query", b = { text = "doc: " } } }, "")
    model.settings.default_prompt, model.trained = nil, true
    check.that(notes():find("the model was trained before", 1, true), notes())
    check.equal(notes { resume = "latest" }, "")
  end)
end)

-- Rows with these scores, or none at all.
local function rows_of(n, scores)
  local labels = scores and ffi.new("double[?]", n, scores) or nil
  return { rows = n, path = "train.jsonl" }, labels
end

test("sampling: every combination with losses and labels is obeyed or refused", function()
  local scores = { 1, 0, 1, 1, 0, 1 }
  local own = function(draw) return draw % 2 end
  -- expected: the rows of two epochs, or the error; "*": these rows, shuffled; "w": both classes, drawn with replacement
  local expected = {
    cosine = { [true] = { auto = "w", weighted = "w", shuffled = "*012345", sequential = "012345", own = "010101" },
      [false] = { auto = "*012345", weighted = "the column 'score', which train.jsonl does not have", shuffled = "*012345",
        sequential = "012345", own = "010101" } },
    mnr = { [true] = { auto = "*0235", weighted = "takes rows with score 1 alone", shuffled = "*0235", sequential = "0235",
        own = "sampling gave row 1 for draw 1, whose score is 0" },
      [false] = { auto = "*012345", weighted = "takes rows with score 1 alone", shuffled = "*012345", sequential = "012345",
        own = "010101" } } }
  with_model(function(model)
    for loss, by_labels in pairs(expected) do
      for labelled, by_sampling in pairs(by_labels) do
        for sampling, wanted in pairs(by_sampling) do
          local what = ("%s, %s, %s"):format(loss, sampling, labelled and "labels" or "no labels")
          local o = complete(model, { loss = loss, sampling = sampling == "own" and own or sampling })
          local set, labels = rows_of(6, labelled and scores or nil)
          local ok, got = pcall(function()
            local sample, draws = setup.choose_rows(o, set, labels)
            local list = {}
            for draw = 0, 2 * draws - 1 do list[#list + 1] = ("%d"):format(sample(draw)) end
            return list
          end)
          if wanted:find "^[%d*]" then
            check.that(ok, ("%s: %s"):format(what, tostring(got)))
            local rows = wanted:gsub("%*", "")
            for epoch = 0, 1 do
              local half = { unpack(got, epoch * #rows + 1, (epoch + 1) * #rows) }
              if wanted ~= rows then table.sort(half) end
              check.equal(table.concat(half), rows, what)
            end
          elseif wanted == "w" then
            check.that(ok and #got == 12, ("%s: %s"):format(what, tostring(got)))
          else
            check.that(not ok and tostring(got):find(wanted, 1, true), ("%s: '%s' lacks '%s'"):format(what, tostring(got), wanted))
          end
        end
      end
    end
    local o = complete(model, { sampling = function() return 6 end })
    local sample = setup.choose_rows(o, (rows_of(6)))
    check.raises("sampling gave 6 for draw 0, expected a row from 0 to 5", sample, 0)
    o = complete(model, { loss = "mnr" })
    check.raises("trains on rows with score 1, and there is none", setup.choose_rows, o, rows_of(2, { 0, 0 }))
    local graded = {}
    for i = 1, 101 do graded[i] = i end
    check.raises("say sampling = \"shuffled\"", setup.choose_rows, complete(model), rows_of(101, graded))
  end)
end)

test("multiple negatives ranking of one pair is refused; a last batch of one is a note", function()
  local fragment = [[
    local train_options, losses = require "lorarun.train.train_options", require "lorarun.train.loss"
    local setup = require "lorarun.train.setup"
    local loss = losses.multiple_negatives_ranking { gather = %s }
    local o = { loss = loss, batch = %d, columns = { %s }, sampling = "shuffled", seed = 1 }
    require("lorarun.dist.comm").world_size = %d
    setup.choose_rows(o, { rows = %d, path = "t" })
    print "done"
  ]]
  local function run(batch, rows, world, gather, columns)
    local code = fragment:format(tostring(gather ~= false), batch, columns or "'a', 'b'", world or 1, rows)
    return shell.run("$L -e " .. shell.quote(code))
  end
  for _, case in ipairs {
    { run(1, 6), "and a batch has one pair: it would learn nothing; give a larger batch, or a column of hard negatives" },
    { run(8, 1), "and there is one row to train on: it would learn nothing; give more rows" },
    { run(1, 6, 2, false), "a batch has one pair" }, { run(4, 2, 2, false), "there are 2 rows to train on" },
  } do
    check.equal(case[1].status, 1, case[2])
    check.that(case[1].err:find(case[2], 1, true), case[1].err)
  end
  for _, case in ipairs {
    { run(5, 6), "the last batch of an epoch has one pair, of which the loss 'multiple_negatives_ranking' learns nothing: 6 rows "
      .. "in batches of 5" },
    { run(2, 6, 2, false), "the last batch of an epoch has 2 pairs on as many ranks" },
    { run(4, 6), "" }, { run(6, 6), "" }, { run(1, 6, 2), "" }, { run(1, 6, 1, true, "'a', 'b', 'c'"), "" },
  } do
    check.equal(case[1].out, "done\n", case[1].err)
    if case[2] == "" then check.equal(case[1].err, "") end
    check.that(case[1].err:find(case[2], 1, true), case[1].err)
  end
end)
