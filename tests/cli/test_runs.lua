-- What happens to a run's folder when something goes wrong: a second run in it, an output folder among the inputs, starts that
-- fail, resuming with other settings, undefined figures, full disks.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local training = dofile(os.getenv "LORARUN_TESTS" .. "/cli/training.lua")
local quote, run = shell.quote, shell.run
local train, train_with, with_data = training.train, training.train_with, training.with_data

local function check_says(text, part) check.that(text:find(part, 1, true), ("'%s' lacks '%s'"):format(text, part)) end

-- ---- two runs in one folder ----------------------------------------------------------------------------------------------------
test("a second run in an output folder is refused and names the first, on one process and under a launcher", function()
  with_data(function(folder, data)
    for _, ranks in ipairs { 1, 2 } do
      local output = fs.join(folder, "out" .. ranks)
      local options = "--max-steps 3 --evaluation-steps 3"
      local second = training.command(data, output, options):gsub("^%$L", function() return quote(os.getenv "LORARUN_PROGRAM") end)
      -- in the middle of the first run, rank 0 starts another one as a user would, not as one of its own ranks
      local clean = "env -u RANK -u WORLD_SIZE -u LOCAL_RANK -u LOCAL_WORLD_SIZE -u LORARUN_LAUNCHER -u LORARUN_RUN_LOCK "
      local log = quote(folder .. "/second")
      local hook = "lr.train { on_step = function(s) if s.step == 2 and lr.comm.rank == 0 then os.execute(%q) end end,"
      local r = train_with(folder, hook:format(("%s %s >%s 2>&1; echo status $? >>%s"):format(clean, second, log, log)), data,
         output, options .. " --processes " .. ranks)
      check.equal(r.status, 0, r.err)
      local said = fs.read(folder .. "/second")
      check_says(said, output .. " is the output of another run, which is still at work there: process ")
      check_says(said, "status 1")
      check.that(not fs.exists(fs.join(output, "run.lock")), "the lock is left")
      local whole = fs.join(folder, "whole" .. ranks)
      check.equal(train(data, whole, options .. " --processes " .. ranks).status, 0)
      check.that(training.adapter_bytes(whole) == training.adapter_bytes(output), "the first run came to another end")
      check.equal(#training.lines_of(fs.join(output, "log.jsonl")), 4, "lines of the first run's log")
    end
  end)
end)

test("an error and a signal release the folder; a group that is started again goes on under its launcher's lock", function()
  with_data(function(folder, data)
    local output = fs.join(folder, "out")
    local r = train_with(folder, "lr.train { on_step = function() error 'of mine' end,", data, output, "--max-steps 2")
    check.equal(r.status, 1)
    check.that(not fs.exists(fs.join(output, "run.lock")), "the lock is left after an error")
    r = training.train_and_stop(folder, 1, "TERM", data, output, "--max-steps 3")
    check.equal(r.status, 143, r.err)
    check.that(not fs.exists(fs.join(output, "run.lock")), "the lock is left after a signal")
    r = run(training.command(data, output, "--max-steps 3", training.hooked(folder, [[
      lr.fs.append(args.output .. "/holders", lr.json.decode_file(args.output .. "/run.lock").pid .. "\n")
      lr.train { on_step = function(s) if s.step == 2 and job.generation == 0 then os.execute "kill -KILL $PPID" end end,]]))
      :gsub("^%$L", "$L --max-restarts 1"))
    check.equal(r.status, 0, r.err)
    local holders = training.lines_of(fs.join(output, "holders"))
    check.that(#holders == 2 and holders[1] == holders[2], "the holders of both generations: " .. table.concat(holders, " "))
    check.that(not fs.exists(fs.join(output, "run.lock")), "the lock is left")
  end)
end)

test("a group that is started again before its first step does not go on from an earlier run's checkpoint", function()
  with_data(function(folder, data)
    local output, options = fs.join(folder, "out"), "--max-steps 4 --evaluation-steps 2"
    check.equal(train(data, output, options .. " --seed 2").status, 0)
    local dies = training.hooked(folder, [[
      if job.generation == 0 then require("lorarun.tensor.optim").adamw = function() os.execute "kill -KILL $PPID" end end
      lr.train {]])
    local function restarted(more)
      return run((training.command(data, output, options .. more, dies):gsub("^%$L", "$L --max-restarts 1")))
    end
    local r = restarted ""
    check.equal(r.status, 0, r.err)
    check_says(r.err, "restart 1 of 1")
    check.that(not r.out:find "resuming", r.out)
    check.equal(#training.lines_of(fs.join(output, "log.jsonl")), 6, "four steps and two evaluations")
    -- a checkpoint that the user names is still used
    r = restarted " --resume step-00000002"
    check.equal(r.status, 0, r.err)
    check_says(r.out, "step-00000002, step 2 of 4")
  end)
end)

-- ---- an output folder among the inputs -----------------------------------------------------------------------------------------
test("an output that is, holds, or lies in the model or the data is refused before a file changes", function()
  with_data(function(folder, data)
    fs.make(fs.join(folder, "models/base/1_Pooling"))
    for _, name in ipairs { "config.json", "model.safetensors", "modules.json", "tokenizer.json", "sentence_bert_config.json",
      "1_Pooling/config.json" } do
      fs.copy(fs.join(training.bert, name), fs.join(folder, "models/base", name))
    end
    local model = fs.join(folder, "models/base")
    local function names() return run(("cd %s; find . | sort"):format(quote(folder))).out end
    os.execute(("cd %s; ln -s models/base link; ln -s nowhere dangling"):format(quote(folder)))
    local listed = names()
    local function refused(output, part, options)
      local r = run(("cd %s; $L %s --model %s --data %s --output %s %s --max-steps 1 %s"):format(quote(folder), training.recipe,
        quote(model), data, output, training.SMALL, options or ""))
      check.equal(r.status, 1, output .. ": " .. r.out)
      check_says(r.err, part)
      check.equal(names(), listed, "the files after " .. output)
    end
    refused("models/base", "output models/base is the model (" .. model .. ")")
    refused("models/base/new/out", "output models/base/new/out lies inside the model")
    refused("models", "output models holds the model")
    refused("./nothing/../link/x", "lies inside the model")
    refused("data", "output data is the data")
    refused(".", "output . holds the")
    refused("link", "output link is the model", "--processes 2")
    refused("data/out", "output data/out lies inside the data", "--processes 2")
    -- an adapter's folder, and files of data
    local function script(name, code)
      local path = fs.join(folder, name)
      fs.write(path, ([[
        local lr = require "lorarun"
        local function go(given)
          given.columns, given.max_steps, given.batch = { "current_line", "context" }, 1, 4
          return lr.train(given)
        end ]] .. code))
      return run(("cd %s; $L %s"):format(quote(folder), quote(path)))
    end
    check.equal(train(data, fs.join(folder, "first"), "--max-steps 1").status, 0)
    local r = script("adapter.lua", [[
      local model = lr.load_model("first/adapter", { max_length = 32 })
      local ok, why = pcall(go, { model = model, data = "data", output = "first" })
      assert(not ok and why:find("output first holds the adapter (first/adapter)", 1, true), why)
      ok, why = pcall(go, { model = model, data = { train = "data/train.jsonl" }, output = "data" })
      assert(not ok and why:find("output data holds the train data (data/train.jsonl)", 1, true), why)
      go { model = model, data = { train = "data/train.jsonl" }, output = "data/beside" } ]])
    check.equal(r.status, 0, r.err)
  end)
end)

-- ---- starts that fail ----------------------------------------------------------------------------------------------------------
-- All files below a folder and their bytes.
local function contents(folder)
  local list = {}
  for path in run(("cd %s; find . -type f | sort"):format(quote(folder))).out:gmatch "[^\n]+" do
    list[path] = fs.read(fs.join(folder, path))
  end
  return list
end

local function check_same(now, before, what)
  for path, text in pairs(before) do check.that(now[path] == text, ("%s changed %s"):format(what, path)) end
  for path in pairs(now) do check.that(before[path], ("%s made %s"):format(what, path)) end
end

test("a start that fails before its first step leaves the earlier run as it was", function()
  with_data(function(folder, data)
    local output = fs.join(folder, "out")
    check.equal(train(data, output, "--max-steps 4 --evaluation-steps 2").status, 0)
    local before = contents(output)
    local stopping = [[(function()
      require("lorarun.train.evaluate").run = function() os.execute "kill -TERM $PPID" return nil, 15 end
      return { evaluate_first = true }
    end)()]]
    for changes, status in pairs { ["{ loss = function() error 'in the loss' end }"] = 1,
      ["{ sampling = function() error 'no row' end }"] = 1, [stopping] = 143 } do
      local r = training.train_changed(folder, changes, data, output, "--max-steps 4 --evaluation-steps 2")
      check.equal(r.status, status, r.err)
      check_same(contents(output), before, changes)
    end
    local r = train(data, output, "--max-steps 4 --evaluation-steps 2 --resume step-00000002 --alpha 3")
    check.equal(r.status, 1)
    check_same(contents(output), before, "a resume that is refused")
    -- a start that succeeds begins the folder again, with the evaluation before its first step
    r = training.train_changed(folder, "{ evaluate_first = true }", data, output, "--max-steps 1")
    check.equal(r.status, 0, r.err)
    check_says(r.err, "checkpoints beyond step 0 are not of this run; they are in " .. output .. "/checkpoints-before-1 now")
    local scores = training.lines_of(fs.join(output, "similarity_evaluation_validation_results.csv"))
    check.equal(#scores, 3, "a head, step 0, step 1")
    check.that(scores[2]:find "^0,0," and scores[3]:find "^%S+,1,", scores[2])
    check.equal(#training.lines_of(fs.join(output, "log.jsonl")), 3, "two evaluations and a step")
  end)
end)

-- ---- going on ------------------------------------------------------------------------------------------------------------------
test("a run that goes on names every difference; one that changes what the adapter computes is refused", function()
  with_data(function(folder, data)
    local output, other = fs.join(folder, "out"), quote(training.make_data(fs.join(folder, "other"), 48))
    local path = fs.join(folder, "other", "train.jsonl")
    fs.write(path, (fs.read(path):gsub("x = 4", "x = 5")))
    local options = "--epochs 1 --evaluation-steps 3 "
    check.equal(train(data, output, options).status, 0)
    local r = train(data, output, options .. "--resume step-00000003")
    check.equal(r.status, 0, r.err)
    check.equal(r.err, "lorarun: checkpoints beyond step 3 are not of this run; they are in " .. output
      .. "/checkpoints-before-1 now\n", "the same again")
    local from, runs = " --resume " .. quote(fs.join(output, "checkpoints/step-00000003")), 0
    local function goes_on(more, parts, with)
      runs = runs + 1
      local out, words = fs.join(folder, "out" .. runs), options .. more:gsub("DATA", "") .. from
      r = with and training.train_changed(folder, with, data, out, words) or train(more:find "DATA" and other or data, out, words)
      check.equal(r.status, 0, r.err)
      for _, part in ipairs(parts) do check_says(r.err, part) end
    end
    goes_on("--schedule cosine --warmup 1 --clip 0.5 --weight-decay 0.1 --learning-rate 1e-3 --dropout 0.2 --max-length 30",
      { "warning: schedule was linear when the checkpoint was written and is cosine now: the run will not end in the same bits",
        "warmup was 2 ", "clip was 1 when", "is 0.5 now", "weight_decay was 0 ", "learning_rate was 0.005", "dropout was 0.1",
        "max_length was 32" })
    goes_on("--epochs 2 --sampling shuffled --evaluation-steps 2 --max-train-rows 47 --max-evaluation-rows 40",
      { "epochs was 1 ", "the run has 12 steps instead of 6", "sampling was weighted by class, with replacement",
        "is shuffled every epoch now", "train_rows was 48", "max_train_rows was ", "max_evaluation_rows was ",
        "validation_rows was 48",
        "evaluation_steps was 3 when the checkpoint was written and is 2 now: scores before and after do not compare" })
    goes_on("--loss mnr DATA", { "loss was cosine_similarity when", "is multiple_negatives_ranking {", "scale",
      "checksum of the train data was " })
    check.that(not r.err:find "validation data", r.err)
    goes_on("", { "columns was current_line, context when the checkpoint was written and is context, current_line now",
      "group was context_type when the checkpoint was written and is none now",
      "the recipe's text was another when the checkpoint was written" },
      "{ columns = { 'context', 'current_line' }, group = false }")
    local function refused(more, parts, model)
      r = run((training.command(data, output, options .. more .. from):gsub("%-%-model %S+", function(words)
        return model and "--model " .. quote(model) or words
      end)))
      check.equal(r.status, 1, r.err)
      for _, part in ipairs(parts) do check_says(r.err, part) end
    end
    refused("--alpha 8", { "alpha was 32 when the checkpoint was written and is 8 now",
      "That would make the adapter another function; a run goes on with the alpha that it began with: give them, or begin again" })
    refused("--rank 2 --targets query", { "rank was 4 when",
      "targets was key, query, value when the checkpoint was written and is query now",
      "a run goes on with the rank and targets that it began with" })
    -- the same modules in another notation are no difference
    goes_on("--targets 'encoder.layer.[0-9]+.attention.self.(query|key|value)'", {})
    check.that(not r.err:find "when the checkpoint was written", r.err)
    -- another model: its weights, and its pooling
    local model = fs.join(folder, "model")
    local function copy(name, text, other_text)
      fs.write(fs.join(model, name), (fs.read(fs.join(training.bert, name)):gsub(text or "", other_text or "", text and 1 or 0)))
    end
    fs.make(fs.join(model, "1_Pooling"))
    for _, name in ipairs { "config.json", "model.safetensors", "modules.json", "tokenizer.json", "sentence_bert_config.json",
      "1_Pooling/config.json" } do
      copy(name)
    end
    goes_on("--model " .. quote(model), {}) -- a copy is the same model
    check.that(not r.err:find "when the checkpoint was written", r.err)
    copy("config.json", "{", "{ ")
    goes_on("--model " .. quote(model), { "checksum of the model's config.json was " })
    local bytes = fs.read(fs.join(training.bert, "model.safetensors"))
    fs.write(fs.join(model, "model.safetensors"), bytes:sub(1, -2) .. string.char((bytes:byte(-1) + 1) % 128))
    refused("", { "checksum of the model's weights was " }, model)
    copy "model.safetensors"
    copy("1_Pooling/config.json", '"pooling_mode_mean_tokens": true', '"pooling_mode_mean_tokens": false')
    copy("1_Pooling/config.json", '"pooling_mode_cls_token": false', '"pooling_mode_cls_token": true')
    fs.write(fs.join(model, "1_Pooling/config.json"), (fs.read(fs.join(model, "1_Pooling/config.json")):gsub(
      '"pooling_mode_mean_tokens": true', '"pooling_mode_mean_tokens": false')))
    refused("", { "pooling was mean when the checkpoint was written and is cls now" }, model)
  end)
end)

test("going on from another folder's checkpoint does not mix with files in the output", function()
  with_data(function(folder, data)
    local options = "--max-steps 4 --evaluation-steps 2 "
    local function out(name) return fs.join(folder, name) end
    check.equal(train(data, out "one", options).status, 0)
    check.equal(train(data, out "two", options .. "--seed 2").status, 0)
    local from = options .. "--resume " .. quote(out "one/checkpoints/step-00000002")
    check.equal(train(data, out "empty", from).status, 0)
    local r = train(data, out "two", from)
    check.equal(r.status, 0, r.err)
    check_says(r.err, "checkpoints beyond step 0 are not of this run; they are in " .. out "two" .. "/checkpoints-before-1 now")
    check.equal(table.concat(fs.list(out "two/checkpoints-before-1"), " "), "step-00000002 step-00000004")
    check.that(training.adapter_bytes(out "two") == training.adapter_bytes(out "empty"), "the adapters differ")
    for _, name in ipairs { "similarity_evaluation_validation_results.csv", "similarity_evaluation_test_results.csv" } do
      check.equal(fs.read(fs.join(out "two", name)), fs.read(fs.join(out "empty", name)), name)
    end
    check.equal(#training.lines_of(out "two/log.jsonl"), 3, "steps 3 and 4 and an evaluation")
  end)
end)

test("a checkpoint of an older lorarun: what it does not record is named; what its adapter says counts", function()
  with_data(function(folder, data)
    local output = fs.join(folder, "out")
    check.equal(train(data, output, "--max-steps 4 --evaluation-steps 2").status, 0)
    local state_path = fs.join(output, "checkpoints/step-00000002/state.json")
    local state = json.decode_file(state_path)
    local old = {}
    for _, name in ipairs { "batch", "accumulate", "world_size", "global_batch", "seed", "learning_rate", "total_steps",
      "train_rows", "model", "precision", "max_length", "threads", "dropout", "tf32", "batch_parts" } do
      old[name] = state.settings[name]
    end
    state.settings = old
    local text = json.encode(state)
    fs.write(state_path, text)
    local r = train(data, output, "--max-steps 4 --evaluation-steps 2 --resume step-00000002")
    check.equal(r.status, 0, r.err)
    for _, part in ipairs { "an older lorarun wrote the checkpoint, and did not note ", "clip, ", "schedule, ",
      "checksum of the train data, ", "whether these are the same is not known" } do
      check_says(r.err, part)
    end
    check.that(not r.err:find "warning", r.err)
    fs.write(state_path, text)
    r = train(data, output, "--max-steps 4 --evaluation-steps 2 --resume step-00000002 --alpha 16")
    check.equal(r.status, 1)
    check_says(r.err, "alpha was 32 when the checkpoint was written and is 16 now")
  end)
end)

test("--resume alone means latest, whether the recipe declares it or not; the printed remedy works", function()
  with_data(function(folder, data)
    for name, words in pairs { declared = '{ "resume", "" },', undeclared = "", switch = '{ "resume", false },' } do
      local path, output = fs.join(folder, name .. ".lua"), fs.join(folder, name)
      local resume = name == "undeclared" and "" or "resume = args.resume,"
      fs.write(path, ([[
        local lr = require "lorarun"
        local args = lr.args { { "batch", 8 }, { "stop", 0 }, %s }
        local model = lr.load_model(%q, { max_length = 32 })
        model:add_lora { rank = 2, targets = { "query" } }
        lr.train { model = model, data = %s, output = %q, max_steps = 4, evaluation_steps = 2, batch = args.batch,
          columns = { "current_line", "context" }, %s
          on_step = function(s) if s.step == args.stop then os.execute "kill -TERM $PPID" end end }]]):format(words, training.bert,
        data, output, resume))
      local r = run(("$L %s --stop 1"):format(quote(path)))
      check.equal(r.status, 143, r.err)
      local remedy = r.out:match "To go on: the same command with (.-)\n"
      check.equal(remedy, name == "switch" and "--resume" or "--resume latest")
      r = run(("$L %s --stop 2 %s"):format(quote(path), remedy))
      check_says(r.out, "step-00000001, step 1 of 4")
      r = run(("$L %s --resume --batch 8"):format(quote(path)))
      check.equal(r.status, 0, r.err)
      check_says(r.out, "step-00000002, step 2 of 4")
      check.equal(fs.read(fs.join(output, "recipe.lua")), fs.read(path), "the recipe as it ran")
      check.equal(json.decode_file(fs.join(output, "training_config.json")).settings.batch, 8, "the options that lr.args gave")
    end
    -- a recipe without lr.args has no options
    local output = fs.join(folder, "none")
    local script = ([[
      local model = lr.load_model(%q, { max_length = 32 })
      model:add_lora { rank = 2, targets = { "query" } }
      lr.train { model = model, data = %q, output = %q, max_steps = 4, batch = 8, columns = { "current_line", "context" },
        on_step = function(s) os.execute "kill -TERM $PPID" end }]]):format(training.bert, fs.join(folder, "data"), output)
    local r = run("$L -e " .. quote(script))
    check.equal(r.status, 143, r.err)
    check_says(r.out, 'To go on: the same lr.train with resume = "latest"')
  end)
end)

test("a run that is resumed after its last evaluation, or whose log ends within a line: every row once and whole", function()
  with_data(function(folder, data)
    local output = fs.join(folder, "out")
    local options = "--max-steps 4 --evaluation-steps 2"
    check.equal(train(data, output, options).status, 0)
    local names = { "similarity_evaluation_validation_results.csv", "similarity_evaluation_test_results.csv", "log.jsonl",
      "evaluation.json", "adapter/adapter_model.safetensors", "model.safetensors" }
    local function without_times(text) return (text:gsub('"[%w_]*seconds": [^,}\n]*', "")) end
    local before = {}
    for _, name in ipairs(names) do before[name] = without_times(fs.read(fs.join(output, name))) end
    local function check_again(what)
      local r = train(data, output, options .. " --resume")
      check.equal(r.status, 0, r.err)
      for _, name in ipairs(names) do
        check.equal(without_times(fs.read(fs.join(output, name))), before[name], what .. ": " .. name)
      end
    end
    check_again "resumed at its end"
    check_again "and again"
    -- as they may be after a full disk or a power cut
    fs.append(fs.join(output, names[1]), "1.0,4")
    fs.append(fs.join(output, names[2]), "0.66,3,0.12345,0.1")
    fs.append(fs.join(output, names[3]), '{"kind": "step", "step": 2')
    check_again "cut off in a line"
    local r = train(data, output, "--max-steps 3 --evaluation-steps 2 --resume")
    check.equal(r.status, 1)
    check_says(r.err, "step-00000004 is of step 4, and the run has 3: nothing is left to do")
  end)
end)

-- ---- undefined figures ---------------------------------------------------------------------------------------------------------
test("an undefined metric chooses no best model: the run says so and keeps the newest; a defined one counts", function()
  with_data(function(folder, data)
    local same = training.make_data(fs.join(folder, "same"), 12)
    local path = fs.join(same, "validation.jsonl")
    fs.write(path, (fs.read(path):gsub('"score": 0', '"score": 1')))
    local output = fs.join(folder, "out")
    local options = "--max-steps 6 --evaluation-steps 1 --keep 1"
    local r = train(quote(same), output, options)
    check.equal(r.status, 0, r.err)
    local _, times = r.out:gsub("is undefined %(all labels are 1%): the newest is kept", "")
    check.equal(times, 6, "said at every evaluation")
    check_says(r.out, "test (newest model, step 6)")
    check.equal(table.concat(fs.list(fs.join(output, "checkpoints")), " "), "step-00000006")
    check.equal(json.decode_file(fs.join(output, "evaluation.json")).best_step, 6)
    check_says(fs.read(fs.join(output, "README.md")), "The newest adapter, of step 6: the validation Spearman is undefined")
    check.that(training.adapter_bytes(output) == fs.read(fs.join(output, "checkpoints/step-00000006/adapter_model.safetensors")),
      "the newest is written")
    -- defined only at steps 2 and 4: step 2 is better
    local mixed = fs.join(folder, "mixed")
    r = train_with(folder, [[
      local evaluate, n = require "lorarun.train.evaluate", 0
      local original, scores = evaluate.run, { false, 0.5, false, 0.4, false }
      function evaluate.run(...)
        local result, by = original(...)
        n = n + 1
        if n <= 5 then result.spearman = scores[n] or nil end
        return result, by
      end
      lr.train {]], data, mixed, "--max-steps 5 --evaluation-steps 1 --keep 1")
    check.equal(r.status, 0, r.err)
    check_says(r.out, "that of step 2 stays the best")
    check.equal(table.concat(fs.list(fs.join(mixed, "checkpoints")), " "), "step-00000002 step-00000005")
    check.equal(json.decode_file(fs.join(mixed, "evaluation.json")).best_step, 2)
  end)
end)

-- ---- full disks ----------------------------------------------------------------------------------------------------------------
-- Runs a shell command with a disk of this many megabytes, which it may fill, at folder/disk and $D. nil if this machine does not
-- allow to mount one.
local function with_disk(folder, megabytes, command)
  local disk = fs.join(folder, "disk")
  fs.make(disk)
  local mounted = ("mount -t tmpfs -o size=%dm none %s"):format(megabytes, quote(disk))
  if run(("unshare -rm sh -c %s"):format(quote(mounted))).status ~= 0 then return nil end
  return run(("export L D=%s; unshare -rm sh -c %s"):format(quote(disk), quote(mounted .. "; " .. command)))
end

test("a full disk is reported before the first step, also on one process and without lr.launch", function()
  with_data(function(folder, data)
    local output = fs.join(folder, "disk/out")
    local r = with_disk(folder, 4, training.command(data, output, "--max-steps 1") .. "; s=$?; ls $D/out; exit $s")
    if not r then return end
    check.equal(r.status, 1)
    check_says(r.err, output .. " has 4.2 MB of disk space left, and the run may write 67.3 MB; make room, or choose another")
    check.equal(r.out, "", "files in the folder")
    local script = fs.join(folder, "plain.lua")
    fs.write(script, ([[
      local lr = require "lorarun"
      local model = lr.load_model(%q, { max_length = 32 })
      model:add_lora { rank = 2, targets = { "query" } }
      lr.train { model = model, data = %s, output = %q, max_steps = 4, evaluation_steps = 1, batch = 8,
        columns = { "current_line", "context" } }]]):format(
      training.bert, data, output))
    r = with_disk(folder, 4, ('$L %s; s=$?; ls $D/out; exit $s'):format(quote(script)))
    check.equal(r.status, 1)
    check_says(r.err, "has 4.2 MB of disk space left, and the run may write 17.0 MB")
    check.that(not r.out:find "step%-" and not r.out:find "log", r.out)
  end)
end)

test("a disk that fills up during a run: unfinished files are removed, those from before are whole", function()
  with_data(function(folder, data)
    -- the disk is filled after a step; the next checkpoint, or the last files, find no room
    local filled = training.hooked(folder, [[
      local export = require "lorarun.models.export"
      local function fill() os.execute("cat /dev/zero >$D/filler 2>/dev/null") end
      if os.getenv "AT" == "merged" then
        local merged = export.merged
        export.merged = function(...) fill() return merged(...) end
      end
      lr.train { on_step = function(s) if s.step == 3 and os.getenv "AT" == "step" then fill() end end,]])
    local look = '; s=$?; echo; find $D -type f ! -name filler | sort; exit $s'
    local output = fs.join(folder, "disk/out")
    local options = "--max-steps 4 --evaluation-steps 2"
    local command = training.command(data, output, options, filled)
    local r = with_disk(folder, 80, "AT=step " .. command .. look)
    if not r then return end
    check.equal(r.status, 1)
    check_says(r.err, "No space left on device")
    local files = r.out:match "\n\n(.*)$"
    check.that(not files:find "step%-00000004" and not files:find "partial" and not files:find "tmp%-", files)
    check_says(files, "checkpoints/step-00000002/optimizer.safetensors")
    -- an earlier run's model and adapter stay if the second has no room for its own
    local first = training.command(data, output, options)
    r = with_disk(folder, 80, first .. " >/dev/null && cp -r $D/out $D/kept && AT=merged " .. command
      .. " --seed 2; s=$?; cmp $D/out/model.safetensors $D/kept/model.safetensors && echo the same model; "
      .. "cmp -s $D/out/adapter/adapter_model.safetensors $D/kept/adapter/adapter_model.safetensors || echo another adapter; "
      .. "find $D -name '*partial*' -o -name '*tmp-*'; exit $s")
    check.equal(r.status, 1)
    check_says(r.err, "No space left on device")
    check_says(r.err, "; the adapter is written, in " .. output .. "/adapter")
    check_says(r.out, "the same model\nanother adapter\n")
    check.that(not r.out:find "partial" and not r.out:find "tmp%-", r.out)
  end)
end)
