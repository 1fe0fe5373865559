-- training.lua: for tests: small runs of recipes/bugdetect.lua in the program, as a user starts them:
--   local training = dofile(os.getenv "LORARUN_TESTS" .. "/cli/training.lua")
--   training.with_data(function(folder, data) local r = training.train(data, folder .. "/out", "--max-steps 2") end)
-- `data` and the strings made from it are words of a shell command; results are { status, out, err }.
local fs = require "lorarun.base.fs"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local data_files = dofile(os.getenv "LORARUN_TESTS" .. "/data.lua")
local quote, run = shell.quote, shell.run

local root = fs.dirname(os.getenv "LORARUN_TESTS")
local training = { recipe = quote(fs.join(root, "recipes", "bugdetect.lua")),
  bert = fs.join(os.getenv "LORARUN_TESTS", "golden", "bert"),
  SMALL = " --rank 4 --batch 8 --warmup 2 --learning-rate 5e-3 --max-length 32 --threads 1 " }

--- Makes a data folder: the label of a row follows from its text, so that there is something to learn.
function training.make_data(folder, rows)
  return data_files.make(folder, rows, function(i)
    local good = i % 3 ~= 0
    return { current_line = good and ("x = %d"):format(i) or ("x == %d"):format(i), context = ("def f%d(y):\n"
      .. "    x = %d\n    return x + y"):format(i, i), score = good and 1 or 0,
      context_type = i % 2 == 0 and "context_full" or "context_before" }
  end)
end

function training.with_data(fn)
  shell.with_folder(function(folder) fn(folder, quote(training.make_data(fs.join(folder, "data"), 48))) end)
end

--- The command of a run; recipe: a file to use instead of bugdetect.lua.
function training.command(data, output, options, recipe)
  return ("$L %s --model %s --data %s --output %s %s %s"):format(recipe and quote(recipe) or training.recipe, quote(training.bert),
    data, quote(output), training.SMALL, options or "")
end

function training.train(data, output, options) return run(training.command(data, output, options)) end

--- Writes a recipe into `folder`: bugdetect.lua with other text in place of its `lr.train {`. Returns its path.
function training.hooked(folder, hook)
  local path = fs.join(folder, "hooked.lua")
  local text, n = fs.read(fs.join(root, "recipes", "bugdetect.lua")):gsub("lr%.train {", function() return hook end, 1)
  assert(n == 1, "the recipe calls lr.train")
  fs.write(path, text)
  return path
end

--- As train(), with that recipe.
function training.train_with(folder, hook, data, output, options)
  return run(training.command(data, output, options, training.hooked(folder, hook)))
end

--- As train(), with a recipe that gives lr.train these options (the text of a Lua table) in place of its own.
function training.train_changed(folder, changes, data, output, options)
  local hook = "local function go(o) for k, v in pairs(%s) do o[k] = v end return lr.train(o) end go {"
  return training.train_with(folder, hook:format(changes), data, output, options)
end

--- As train(), with a recipe that sends itself a signal after a step.
function training.train_and_stop(folder, step, signal, data, output, options)
  return training.train_with(folder, ("lr.train { on_step = function(s) if s.step == %d then os.execute('kill -%s $PPID') end end,")
    :format(step, signal), data, output, options)
end

function training.lines_of(path)
  local list = {}
  for line in fs.read(path):gmatch "[^\n]+" do list[#list + 1] = line end
  return list
end

--- The adapter's bytes, which must be the same in two runs.
function training.adapter_bytes(output) return fs.read(fs.join(output, "adapter", "adapter_model.safetensors")) end

return training
