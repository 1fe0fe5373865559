-- test_args.lua: the options of a recipe: values, mistakes, --help, and the strict result.
local args = require "lorarun.base.args"
local suggest = require "lorarun.base.suggest"

local SPEC = {
  { "model", "base", "folder of the base model" },
  { "batch", 64, "pairs a step", type = "integer", min = 1, max = 1024 },
  { "learning-rate", 3e-4, "of AdamW" },
  { "fp16", true, "half precision" },
  { "dry_run", false, "change nothing" },
  { "schedule", "linear", "after warmup", choices = { "linear", "cosine" } },
  { "levels", 2, "choices need not be texts", choices = { 1, 2, 3 } },
  { "resume", nil, "checkpoint to go on from" },
}

local function read(...) return args.read(SPEC, { [0] = "recipe.lua", ... }) end
local function value(name, ...)
  local result, mistake = read(...)
  check.equal(mistake, nil, "mistake")
  return result[name]
end
local function mistake(text, ...)
  local result, message = read(...)
  check.equal(result, nil, "result")
  check.equal(message, text, "message")
end

test("an option that is not given has its default", function()
  local r = read()
  check.equal(r.model, "base")
  check.equal(r.batch, 64)
  check.equal(r.learning_rate, 3e-4)
  check.equal(r.fp16, true)
  check.equal(r.dry_run, false)
  check.equal(r.levels, 2)
  check.equal(r.resume, nil)
end)

test("a value after a space or after =, and a name with - or _", function()
  check.equal(value("batch", "--batch", "10"), 10)
  check.equal(value("batch", "--batch=10"), 10)
  check.equal(value("learning_rate", "--learning-rate", "1"), 1)
  check.equal(value("learning_rate", "--learning_rate=1"), 1)
  check.equal(value("dry_run", "--dry-run"), true)
  check.equal(value("dry_run", "--dry_run"), true)
  check.equal(value("model", "--model", ""), "")
  check.equal(value("model", "--model="), "")
  check.equal(value("model", "--model=a=b"), "a=b")
  check.equal(value("model", "--model", "-"), "-")
  check.equal(value("model", "--model=--odd"), "--odd")
  check.equal(value("batch", "--batch", "1", "--batch", "2"), 2, "the last one counts")
end)

test("booleans are switched on and off", function()
  check.equal(value("fp16", "--no-fp16"), false)
  check.equal(value("dry_run", "--no-dry_run"), false)
  check.equal(value("fp16", "--no-fp16", "--fp16"), true)
  check.equal(value("fp16", "--fp16=false"), false)
  check.equal(value("dry_run", "--dry-run=yes"), true)
  mistake("--fp16 is 'maybe'; it must be true or false", "--fp16=maybe")
  mistake("--no-fp16 takes no value", "--no-fp16=1")
  mistake("unexpected argument 'false'; options look like --name value (--help lists them)", "--fp16", "false")
end)

test("numbers are accepted in the usual notations, and in no other", function()
  local good = { ["3e-4"] = 3e-4, ["1E+2"] = 100, ["-1.5"] = -1.5, [".5"] = 0.5, ["+7"] = 7, ["2."] = 2, ["0"] = 0 }
  for text, number in pairs(good) do check.equal(value("learning_rate", "--learning-rate", text), number, text) end
  for _, text in ipairs { "1_000", "0x10", "inf", "nan", "1e999", "", " 1", "1 ", "1,5", "ten", "1e", "." } do
    mistake(("--learning-rate is '%s'; it must be a number"):format(text), "--learning-rate=" .. text)
  end
end)

test("integers and their bounds", function()
  check.equal(value("batch", "--batch", "1e2"), 100)
  mistake("--batch is '2.5'; it must be an integer", "--batch", "2.5")
  mistake("--batch is 'x'; it must be an integer", "--batch", "x")
  mistake("--batch is '0'; it must be at least 1", "--batch", "0")
  mistake("--batch is '1025'; it must be at most 1024", "--batch", "1025")
  check.equal(value("batch", "--batch", "1"), 1)
  check.equal(value("batch", "--batch", "1024"), 1024)
end)

test("choices", function()
  check.equal(value("schedule", "--schedule", "cosine"), "cosine")
  check.equal(value("levels", "--levels", "3"), 3)
  mistake("--schedule is 'cosin'; it must be one of linear, cosine; did you mean 'cosine'?", "--schedule", "cosin")
  mistake("--levels is '4'; it must be one of 1, 2, 3", "--levels=4")
end)

test("unknown options, missing values and stray words are named", function()
  mistake("unknown option --bacth; did you mean --batch? (--help lists the options)", "--bacth", "3")
  mistake("unknown option --bacth; did you mean --batch? (--help lists the options)", "--bacth=3")
  mistake("unknown option --no-fp1; did you mean --no-fp16? (--help lists the options)", "--no-fp1")
  mistake("unknown option --no-batch; did you mean --batch? (--help lists the options)", "--no-batch")
  mistake("unknown option -b; did you mean --batch? (--help lists the options)", "-b")
  mistake("--batch needs a value: --batch INTEGER", "--batch")
  mistake("--batch needs a value: --batch INTEGER", "--batch", "--fp16")
  mistake("unexpected argument 'word'; options look like --name value (--help lists them)", "word")
end)

test("a required option", function()
  local spec = { { "data", nil, "folder of the rows", required = true } }
  local _, message = args.read(spec, {})
  check.equal(message, "--data is required: folder of the rows")
  check.equal(args.read(spec, { "--data", "d" }).data, "d")
end)

test("an option with a value of its own if none is given: the next word is its value, or another option", function()
  local spec = { { "from", nil, "where from", alone = "here" }, { "batch", 1 } }
  local function from(...)
    local r = args.read(spec, { ... })
    return tostring(r.from) .. " " .. r.batch
  end
  check.equal(from(), "nil 1")
  check.equal(from "--from", "here 1")
  check.equal(from("--from", "--batch", "4"), "here 4")
  check.equal(from("--batch", "4", "--from"), "here 4")
  check.equal(from("--from", "there", "--batch", "4"), "there 4")
  check.equal(from("--from=there"), "there 1")
  check.equal(from("--from="), " 1")
end)

test("every recipe that calls lr.args has --resume, which means latest if no value follows", function()
  local function asked(spec, ...)
    local r = args.of_recipe(spec, { [0] = "recipe.lua", ... })
    local said, left = args.resume()
    return ("%s %s %s | %s"):format(tostring(said), tostring(left), tostring(r.resume), args.to_resume())
  end
  local none, text, switch = { { "batch", 1 } }, { { "batch", 1 }, { "resume", "" } }, { { "batch", 1 }, { "resume", false } }
  check.equal(asked(none), "nil true nil | --resume latest")
  check.equal(asked(none, "--resume"), "latest true latest | --resume latest")
  check.equal(asked(none, "--resume", "--batch", "4"), "latest true latest | --resume latest")
  check.equal(asked(none, "--resume=latest"), "latest true latest | --resume latest")
  check.equal(asked(none, "--resume", "step-00000123"), "step-00000123 true step-00000123 | --resume latest")
  check.equal(asked(text), "nil false  | --resume latest")
  check.equal(asked(text, "--resume", "--batch", "4"), "latest false latest | --resume latest")
  check.equal(asked(text, "--resume", "step-00000123"), "step-00000123 false step-00000123 | --resume latest")
  check.equal(asked(text, "--resume="), "nil false  | --resume latest")
  check.equal(asked(switch), "nil false false | --resume")
  check.equal(asked(switch, "--resume", "--batch", "4"), "true false true | --resume")
end)

test("the result refuses unknown names, for reading and for writing", function()
  local r = read("--batch", "2")
  check.raises("the recipe has no option 'bacth'; did you mean 'batch'?", function() return r.bacth end)
  check.raises("the recipe has no option 'bacth'; did you mean 'batch'?", function() r.bacth = 1 end)
  r.batch = 3
  r.resume = "latest"
  check.equal(r.batch .. r.resume, "3latest")
  local names = {}
  for name in pairs(r) do names[#names + 1] = name end
  table.sort(names)
  check.equal(table.concat(names, " "), "batch dry_run fp16 learning_rate levels model resume schedule")
end)

test("given tells the command line from the defaults", function()
  local r = read("--batch", "64", "--no-dry-run")
  check.equal(args.given(r, "batch"), true, "given with the default's value")
  check.equal(args.given(r, "dry_run"), true)
  check.equal(args.given(r, "dry-run"), true)
  check.equal(args.given(r, "model"), false)
  r.model = "other"
  check.equal(args.given(r, "model"), false, "set by the recipe")
  check.raises("no option 'modle'", args.given, r, "modle")
  check.raises("what lr.args returned", args.given, {}, "model")
end)

test("a spec with keys, sorted in --help", function()
  local spec = { zeta = 1, alpha = { default = "a", help = "the first" }, fp16 = false }
  local r = args.read(spec, { "--zeta=2", "--fp16" })
  check.equal(r.zeta, 2)
  check.equal(r.alpha, "a")
  check.equal(r.fp16, true)
  local _, _, help = args.read(spec, { "--help" })
  check.that(help:find "%-%-alpha TEXT.*%-%-fp16, %-%-no%-fp16.*%-%-zeta NUMBER", help)
end)

test("a row that makes no sense is an error at the recipe's line", function()
  local bad = {
    [{ { "batch", 64 }, { "batch", 1 } }] = "option 'batch' is there twice",
    [{ { "max-steps", 1 }, { "max_steps", 1 } }] = "option 'max_steps' is there twice",
    [{ { "help", 1 } }] = "option 'help' is taken",
    [{ { "a b", 1 } }] = "option 'a b' needs a name",
    [{ { 3, 1 } }] = "option '3' needs a name",
    [{ "batch" }] = "row 1 is a string",
    [{ { "x", 1, choises = { 1 } } }] = "unknown key 'choises'; did you mean 'choices'?",
    [{ { "x", 1, type = "float" } }] = "unknown type 'float'",
    [{ { "x", {} } }] = "default that is a table",
    [{ { "x", "a", type = "choice" } }] = "a choice without choices",
    [{ { "x", "c", choices = { "a", "b" } } }] = "the default 'c', which is none of its choices",
    [{ { "x", "1", type = "number" } }] = "is a number, but its default is a string",
    [{ { "x", 1.5, type = "integer" } }] = "must be an integer, but its default is 1.5",
    [{ { "x", 0, min = 1 } }] = "must be at least 1, but its default is 0",
  }
  for spec, part in pairs(bad) do
    local text = check.raises(part, function()
      local result = args.read(spec, {})
      return result
    end)
    check.that(text:find "^[^\n]*test_args.lua:%d+: lr.args: ", text)
  end
  check.raises("not a string", args.read, "batch", {})
end)

test("--help: usage, the recipe's first comment, every option with type and default, within the width", function()
  local path = os.tmpname()
  local f = assert(io.open(path, "w"))
  f:write "#!/usr/bin/env lorarun\n\n-- Trains things.\n--\n--   indented example\nlocal x = 1\n-- not this\n"
  f:close()
  local long = { "long", 1, ("word "):rep(40) }
  local spec = { long }
  for i, row in ipairs(SPEC) do spec[i + 1] = row end
  local _, message, help = args.read(spec, { [0] = path, "--batch", "2", "--help", "nonsense" })
  os.remove(path)
  check.equal(message, nil)
  local head = ("usage: lorarun %s [options]\n\nTrains things.\n\n  indented example\n\noptions:\n"):format(path)
  check.equal(help:sub(1, #head), head)
  for left, right in pairs {
    ["--model TEXT"] = "folder of the base model (default: base)", ["--batch INTEGER"] = "pairs a step (default: 64)",
    ["--learning-rate NUMBER"] = "of AdamW (default: 0.0003)", ["--fp16, --no-fp16"] = "half precision (default: on)",
    ["--dry-run, --no-dry-run"] = "change nothing (default: off)", ["--resume TEXT"] = "checkpoint to go on from",
    ["--schedule linear|cosine"] = "after warmup (default: linear)", ["--help"] = "show this and exit",
  } do
    local line = ("\n  %-26s%s\n"):format(left, right)
    check.that((help .. "\n"):find(line, 1, true), line .. " is missing in\n" .. help)
  end
  local wrapped = 0
  for line in help:gmatch "[^\n]+" do
    check.that(#line <= 100, line)
    if line:find "^ +word" then
      wrapped = wrapped + 1
      check.equal(#line:match "^ +", 28, "columns before a wrapped line")
    end
  end
  check.equal(wrapped, 2, "wrapped lines")
end)

test("did you mean: near names only, in one order", function()
  local names = { "batch", "batch_size", "patch", "learning_rate", "seed" }
  check.equal(suggest.closest("bacth", names), "batch")
  check.equal(suggest.closest("BATCH_SIZ", names), "batch_size")
  check.equal(suggest.closest("learning", names), "learning_rate")
  check.equal(suggest.closest("sed", names), "seed")
  check.equal(suggest.closest("xyz", names), nil)
  check.equal(suggest.closest("q", names), nil)
  check.equal(suggest.closest("hatch", { "patch", "batch" }), "batch", "ties go to the first of the alphabet")
  check.equal(suggest.did_you_mean("bacth", names), "; did you mean 'batch'?")
  check.equal(suggest.did_you_mean("bacth", names, "--%s"), "; did you mean --batch?")
  check.equal(suggest.did_you_mean("xyz", names), "")
end)
