-- Training with the program, as a user runs it: a whole small run and all its files, resuming after a kill to the same bits,
-- damaged checkpoints, and the error of each thing that can be wrong.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local training = dofile(os.getenv "LORARUN_TESTS" .. "/cli/training.lua")
local quote, run = shell.quote, shell.run
local train, train_with, train_and_stop = training.train, training.train_with, training.train_and_stop
local with_data, make_data, lines_of = training.with_data, training.make_data, training.lines_of
local adapter_bytes = training.adapter_bytes
local recipe, bert, SMALL = training.recipe, training.bert, training.SMALL

-- The records of a run's steps, which must be numbered from 1 without a gap.
local function steps_of(output)
  local list = {}
  for _, line in ipairs(lines_of(fs.join(output, "log.jsonl"))) do
    local record = json.decode(line, "log.jsonl")
    if record.kind == "step" then
      list[#list + 1] = record
      check.equal(record.step, #list, "steps in order")
    end
  end
  return list
end

local function losses(output)
  local list = {}
  for i, record in ipairs(steps_of(output)) do list[i] = record.loss end
  return list
end

-- As train(), with a recipe that sends itself a signal in the middle of its n-th evaluation.
local function stop_evaluation(folder, n, signal, data, output, options)
  return train_with(folder, ([[
    local evaluate, left = require "lorarun.train.evaluate", %d
    local run = evaluate.run
    function evaluate.run(model, set, o)
      left = left - 1
      local tell = o.on_progress
      if left == 0 then o.on_progress = function(...) os.execute "kill -%s $PPID" tell(...) end end
      return run(model, set, o)
    end
    lr.train {]]):format(n, signal), data, output, options)
end

test("a run of 12 steps: banner, evaluations, every file it promises", function()
  with_data(function(folder, data)
    local output = fs.join(folder, "out")
    local r = train(data, output, "--epochs 2 --evaluation-steps 6")
    check.equal(r.err, "", "standard error")
    check.equal(r.status, 0, "status")
    check.that(not r.out:find "world size" and not r.out:find "\n  ranks ", "the banner of one process counts ranks")
    for _, part in ipairs { "fine-tuning", "to tell buggy lines from correct ones",
      "rank 4, alpha 32, dropout 0.1 on query, key, value",
      "8 a device, 8 effective", "48 train, 48 validation, 48 test", "class 0", "16 rows, weight 1.5000", "32 rows, weight 0.7500",
      "6 an epoch, 12 in all", "validation at step 6", "validation at step 12", "confusion matrix", "context_before", "ROC-AUC",
      "padding avoided", "SentenceTransformer(" } do
      check.that(r.out:find(part, 1, true), ("the output lacks '%s':\n%s"):format(part, r.out))
    end
    for _, file in ipairs { "model.safetensors", "config.json", "modules.json", "tokenizer.json", "README.md",
      "1_Pooling/config.json",
      "2_Normalize", "sentence_bert_config.json", "config_sentence_transformers.json", "adapter/adapter_config.json",
      "adapter/adapter_model.safetensors", "adapter/modules.json", "adapter/tokenizer.json", "training_config.json", "recipe.lua",
      "evaluation.json", "log.jsonl", "similarity_evaluation_validation_results.csv", "similarity_evaluation_test_results.csv",
      "checkpoints/step-00000006/state.json", "checkpoints/step-00000012/optimizer.safetensors" } do
      check.that(fs.exists(fs.join(output, file)), file .. " is missing")
    end
    check.that(not fs.exists(fs.join(output, "adapter", "model.safetensors")), "the adapter folder must hold no base weights")
    local steps = steps_of(output)
    for _, record in ipairs(steps) do check.that(record.loss >= 0 and record.grad_norm > 0, "step " .. record.step) end
    check.equal(#steps, 12, "steps logged")
    local csv = lines_of(fs.join(output, "similarity_evaluation_validation_results.csv"))
    check.equal(csv[1], "epoch,steps,cosine_pearson,cosine_spearman")
    check.that(csv[2]:find "^1,6,%-?0%.%d+,%-?0%.%d+$" and csv[3]:find "^2,12,", csv[2] .. " | " .. tostring(csv[3]))
    local evaluation = json.decode_file(fs.join(output, "evaluation.json"))
    for _, key in ipairs { "pearson", "spearman", "accuracy", "precision", "recall", "f1", "roc_auc", "pr_auc", "confusion",
      "sweep",
      "by_group" } do
      check.that(evaluation.validation[key] ~= nil and evaluation.test[key] ~= nil, "evaluation.json lacks " .. key)
    end
    check.equal(evaluation.validation.by_group.context_full.rows, 24, "rows of a group")
    local config = json.decode_file(fs.join(output, "training_config.json"))
    check.equal(config.settings.rank, 4)
    check.equal(config.settings.learning_rate, 5e-3)
    -- the written folder computes what the model did, on texts of the data, also when it is checked later
    local _, again = r.out:gsub("loaded again: 16 texts: the embeddings differ by", "")
    check.equal(again, 2, "folders that were checked")
    local texts = json.decode_file(fs.join(output, "lorarun_probes.json")).texts
    check.that(texts[1]:find "^x =" and texts[2]:find "^def f", "the probes are of the data: " .. texts[1] .. texts[2])
    local verified = run(("$L verify %s %s"):format(quote(output), quote(fs.join(output, "adapter"))))
    check.equal(verified.status, 0, verified.out .. verified.err)
    local checkpoint = fs.join(output, "checkpoints", "step-00000012")
    check.equal(run(("$L verify %s"):format(quote(checkpoint))).status, 3, "a checkpoint has no probes")
    local loaded = run(("$L -e 'print(lr.load_model(%q).pooling)'"):format(checkpoint))
    check.equal(loaded.out, "mean\n", "a checkpoint is loaded: " .. loaded.err)
  end)
end)

test("a run whose adapter is written without effect fails, and keeps all it wrote", function()
  with_data(function(folder, data)
    local output = fs.join(folder, "out")
    local r = train_with(folder, [[
      local safetensors, tensor = require "lorarun.formats.safetensors", require "lorarun.tensor.tensor"
      local write = safetensors.write
      function safetensors.write(path, entries, metadata)
        for _, e in ipairs(path:find "out/adapter/" and entries or {}) do
          if e.name:find "lora_B" then e.tensor = tensor.zeros(e.shape, "f32") end
        end
        return write(path, entries, metadata)
      end
      lr.train {]], data, output, "--max-steps 2 --warmup 0")
    check.equal(r.status, 1, "status")
    check.that(r.err:find("out/adapter was written, but", 1, true) and r.err:find("nearer to the base's", 1, true), r.err)
    check.that(r.out:find(output .. ", loaded again: 16 texts", 1, true), "the merged model is right: " .. r.out)
    check.that(r.out:find("To use it in Python", 1, true), "the summary is shown")
    check.that(fs.is_file(fs.join(output, "model.safetensors")) and fs.is_file(fs.join(output, "evaluation.json")), "files")
  end)
end)

test("a run that learns nothing says so, and keeps what it wrote", function()
  with_data(function(folder, data)
    local output = fs.join(folder, "out")
    local r = train(data, output, "--max-steps 1 --learning-rate 0")
    check.equal(r.status, 0, r.err)
    local _, said = r.err:gsub("it has learnt nothing", "")
    check.equal(said, 2, "warnings in " .. r.err)
    check.that(fs.is_file(fs.join(output, "model.safetensors")) and fs.is_file(fs.join(output, "evaluation.json")), "files")
  end)
end)

test("the loss falls and the score rises if there is something to learn", function()
  with_data(function(folder, data)
    local output = fs.join(folder, "out")
    local r = train(data, output, "--epochs 20 --evaluation-steps 60 --dropout 0")
    check.equal(r.status, 0, r.err)
    local first, last = 0, 0
    for step, value in ipairs(losses(output)) do
      if step <= 10 then first = first + value / 10 end
      if step > 110 then last = last + value / 10 end
    end
    check.that(last < 0.7 * first, ("the loss went from %.4f to %.4f"):format(first, last))
    check.that(json.decode_file(fs.join(output, "evaluation.json")).validation.spearman > 0.6, "Spearman after 120 steps")
  end)
end)

test("a run that is stopped and resumed ends in the same bits, with dropout and weighted sampling", function()
  with_data(function(folder, data)
    local whole, parts = fs.join(folder, "whole"), fs.join(folder, "parts")
    local options = "--epochs 3 --evaluation-steps 5 --accumulate 2 --batch 4"
    check.equal(train(data, whole, options).status, 0)
    -- Killed without warning in the middle: the recipe kills itself at step 8, after the checkpoint of step 5.
    local r = train_and_stop(folder, 8, "KILL", data, parts, options)
    check.equal(r.status, 137, "killed")
    check.that(not fs.exists(fs.join(parts, "model.safetensors")), "it was killed before the end")
    r = train(data, parts, options .. " --resume latest")
    check.equal(r.status, 0, r.err)
    check.that(r.out:find("resuming from", 1, true) and r.out:find("step-00000005, step 5 of 18", 1, true), r.out)
    check.that(adapter_bytes(whole) == adapter_bytes(parts), "the adapters differ")
    check.that(fs.read(fs.join(whole, "model.safetensors")) == fs.read(fs.join(parts, "model.safetensors")), "the models differ")
    check.equal(fs.read(fs.join(whole, "similarity_evaluation_validation_results.csv")),
      fs.read(fs.join(parts, "similarity_evaluation_validation_results.csv")), "evaluations")
    -- the log reads as if it had never stopped
    check.equal(#steps_of(parts), 18)
  end)
end)

test("SIGTERM: finish the step, write a checkpoint, exit; resume to the same bits", function()
  with_data(function(folder, data)
    local whole, parts = fs.join(folder, "whole"), fs.join(folder, "parts")
    local options = "--epochs 3 --evaluation-steps 100"
    check.equal(train(data, whole, options).status, 0)
    local r = train_and_stop(folder, 7, "TERM", data, parts, options)
    check.equal(r.status, 143, "status 128 + SIGTERM: " .. r.err)
    check.that(r.out:find("stopped by signal 15 after step 7 of 18", 1, true), r.out)
    r = train(data, parts, options .. " --resume latest")
    check.equal(r.status, 0, r.err)
    check.that(adapter_bytes(whole) == adapter_bytes(parts), "the adapters differ")
  end)
end)

test("SIGTERM ends an evaluation at once; its step is saved, and evaluated when the run goes on", function()
  with_data(function(folder, data)
    local whole, options = fs.join(folder, "whole"), "--epochs 2 --evaluation-steps 6"
    check.equal(train(data, whole, options).status, 0)
    local function scores(output)
      local path = fs.join(output, "similarity_evaluation_validation_results.csv")
      return fs.exists(path) and lines_of(path) or {}
    end
    -- during the validation after step 6; during that after step 12; during the final one, of the test rows
    for n, step in ipairs { 6, 12, 12 } do
      local parts = fs.join(folder, "parts" .. n)
      local r = stop_evaluation(folder, n, "TERM", data, parts, options)
      check.equal(r.status, 143, r.err)
      check.equal(r.err, "")
      check.that(r.out:find(("stopped by signal 15 after step %d of 12; a checkpoint was written"):format(step), 1, true), r.out)
      check.equal(#scores(parts), ({ 0, 2, 3 })[n], "evaluations and a head")
      check.that(not fs.exists(fs.join(parts, "model.safetensors")), "it was stopped before the end")
      r = train(data, parts, options .. " --resume latest")
      check.equal(r.status, 0, r.err)
      check.that(adapter_bytes(whole) == adapter_bytes(parts), "the adapters differ")
      check.equal(table.concat(scores(parts), "\n"), table.concat(scores(whole), "\n"), "evaluations")
      check.equal(fs.read(fs.join(parts, "evaluation.json")):gsub('"seconds": [^,\n]*', ""),
        (fs.read(fs.join(whole, "evaluation.json")):gsub('"seconds": [^,\n]*', "")))
    end
  end)
end)

test("checkpoints: the last few and the best are kept; a damaged one is refused by name and the one before it used", function()
  with_data(function(folder, data)
    local output = fs.join(folder, "out")
    local checkpoints = fs.join(output, "checkpoints")
    check.equal(train(data, output, "--epochs 2 --evaluation-steps 2 --keep 2").status, 0)
    local kept = fs.list(checkpoints)
    check.that(#kept == 2 or #kept == 3, table.concat(kept, " "))
    check.equal(kept[#kept], "step-00000012")
    local file = fs.join(checkpoints, "step-00000012", "optimizer.safetensors")
    local bytes = fs.read(file)
    fs.write(file, bytes:sub(1, -2) .. string.char((bytes:byte(-1) + 1) % 256))
    local r = train(data, output, "--epochs 2 --evaluation-steps 2 --keep 2 --resume latest")
    check.equal(r.status, 0, r.err)
    check.that(r.err:find("step-00000012 is damaged: the checksum of optimizer.safetensors is wrong; trying the one before it",
      1, true),
      r.err)
    check.that(r.out:find("step-00000010, step 10 of 12", 1, true), r.out)
    fs.write(file, bytes:sub(1, -2) .. string.char((bytes:byte(-1) + 1) % 256))
    r = train(data, output, "--resume " .. quote(fs.join(checkpoints, "step-00000012")))
    check.equal(r.status, 1)
    check.that(r.err:find("step-00000012 is damaged", 1, true), r.err)
    r = train(data, output, "--resume nowhere")
    check.that(r.status == 1 and r.err:find("there is no checkpoint 'nowhere'", 1, true), r.err)
    r = run(("$L %s --model %s --data %s --output %s --targets query --rank 2 --max-length 32 --resume latest"):format(recipe,
      quote(bert), data, quote(output)))
    check.that(r.status == 1 and r.err:find("a run goes on with the rank and targets that it began with", 1, true), r.err)
    r = train(data, output, "--epochs 2 --evaluation-steps 2 --seed 2 --resume latest")
    check.that(r.err:find("warning: seed was 1", 1, true), r.err)
  end)
end)

test("a run that begins again moves the earlier run's checkpoints aside; a best checkpoint that is missing is given up", function()
  with_data(function(folder, data)
    local output = fs.join(folder, "out")
    local checkpoints = fs.join(output, "checkpoints")
    local function listed(path) return table.concat(fs.list(path), " ") end
    check.equal(train(data, output, "--epochs 2 --evaluation-steps 6").status, 0)
    local first = listed(checkpoints)
    check.that(first:find("step-00000012", 1, true), first)
    local r = train(data, output, "--max-steps 4 --evaluation-steps 2")
    check.equal(r.status, 0, r.err)
    check.that(r.err:find("checkpoints beyond step 0 are not of this run; they are in " .. checkpoints .. "-before-1 now", 1, true),
      r.err)
    check.equal(listed(checkpoints .. "-before-1"), first)
    check.equal(listed(checkpoints), "step-00000002 step-00000004")
    r = train(data, output, "--max-steps 4 --evaluation-steps 2 --resume step-00000002")
    check.equal(r.status, 0, r.err)
    check.equal(listed(checkpoints .. "-before-2"), "step-00000004")
    local elsewhere = fs.join(folder, "elsewhere")
    local state = fs.join(checkpoints, "step-00000004", "state.json")
    fs.write(state, (fs.read(state):gsub('("best": {.-"step": )%d+', "%12")))
    r = train(data, elsewhere, "--max-steps 6 --evaluation-steps 3 --resume " .. quote(fs.join(checkpoints, "step-00000004")))
    check.equal(r.status, 0, r.err)
    check.that(r.err:find("the best checkpoint so far, step 2, is not in " .. fs.join(elsewhere, "checkpoints"), 1, true), r.err)
  end)
end)

test("accumulating two batches of 4 is a batch of 8: the same rows, masks and losses", function()
  with_data(function(folder, data)
    local one, two = fs.join(folder, "one"), fs.join(folder, "two")
    check.equal(train(data, one, "--epochs 2 --max-train-rows 45").status, 0) -- the epoch's last step has 5 rows
    check.equal(train(data, two, "--epochs 2 --max-train-rows 45 --batch 4 --accumulate 2").status, 0)
    check.array(losses(two), losses(one), 1e-5, "losses")
  end)
end)

test("multiple negatives ranking, bf16, recompute, shuffled rows, other schedules", function()
  with_data(function(folder, data)
    for i, options in ipairs { "--loss mnr", "--precision bf16", "--recompute all --schedule cosine",
      "--sampling shuffled --recompute 1",
      "--sampling sequential --schedule constant --clip 0 --weight-decay 0.01" } do
      local r = train(data, fs.join(folder, "out" .. i), options .. " --max-steps 2")
      check.equal(r.status, 0, options .. ": " .. r.err)
      check.that(r.out:find("2 in all", 1, true), r.out)
    end
    local kept, again = fs.join(folder, "kept"), fs.join(folder, "again")
    train(data, kept, "--max-steps 4")
    train(data, again, "--max-steps 4 --recompute all")
    check.that(adapter_bytes(kept) == adapter_bytes(again), "recomputing gives other bits")
  end)
end)

test("triplets without scores, through lr.train: a ranking loss with hard negatives", function()
  with_data(function(folder)
    local triplets = make_data(fs.join(folder, "triplets"), 12)
    local rows = {}
    for i = 1, 12 do
      rows[i] = json.encode { current_line = "x = " .. i, context = ("y = %d\nx = %d"):format(i, i), negative = "z = " .. i }
    end
    fs.write(fs.join(triplets, "train.jsonl"), table.concat(rows, "\n") .. "\n")
    local script = fs.join(folder, "triplets.lua")
    fs.write(script, ([[
      local lr = require "lorarun"
      local model = lr.load_model(%q, { max_length = 32 })
      model:add_lora { rank = 2, alpha = 4, targets = { "query" } }
      local losses = {}
      lr.train { model = model, data = %q, output = %q, columns = { "current_line", "context", "negative" },
        loss = lr.loss.multiple_negatives_ranking(), learning_rate = 1e-2, batch = 6, max_steps = 8, epochs = 4,
        on_step = function(s) losses[#losses + 1] = s.loss end }
      assert(losses[8] < losses[1], "the loss did not fall")
    ]]):format(bert, triplets, fs.join(folder, "out")))
    local r = run("$L " .. quote(script))
    check.equal(r.status, 0, r.err)
    check.that(r.out:find("validation at step 8", 1, true), r.out)
  end)
end)

test("labels that are all equal: no correlation, the reason in every place, and no crash", function()
  with_data(function(folder)
    local same = make_data(fs.join(folder, "same"), 12)
    for _, split in ipairs { "validation", "test" } do
      local path = fs.join(same, split .. ".jsonl")
      fs.write(path, (fs.read(path):gsub('"score": 0', '"score": 1')))
    end
    local output = fs.join(folder, "out")
    local r = train(quote(same), output, "--max-steps 2 --evaluation-steps 1")
    check.equal(r.status, 0, r.err)
    check.that(r.out:find("Spearman -  Pearson - (undefined: all labels are 1)", 1, true), r.out)
    local figures = json.decode_file(fs.join(output, "evaluation.json")).validation
    check.equal(figures.spearman, nil)
    check.equal(figures.undefined.spearman, "all labels are 1")
    check.equal(figures.undefined.roc_auc, "all labels are 1")
    check.equal(figures.by_group.context_full.undefined.pearson, "all labels are 1")
    check.that(fs.read(fs.join(output, "similarity_evaluation_validation_results.csv")):find("nan,nan", 1, true), "nan in the CSV")
  end)
end)

test("CSV data is read by column name", function()
  with_data(function(folder)
    local csv = fs.join(folder, "csv")
    fs.make(csv)
    for _, split in ipairs { "train", "validation" } do
      local lines = { "score,context,current_line,extra" }
      for i = 1, 12 do lines[#lines + 1] = ('%d,"def f():\n  ""x"" = %d",x = %d,unused'):format(i % 2, i, i) end
      fs.write(fs.join(csv, split .. ".csv"), table.concat(lines, "\n") .. "\n")
    end
    local r = train(quote(csv), fs.join(folder, "out"), "--max-steps 2")
    check.equal(r.status, 0, r.err)
    check.that(r.out:find("12 train, 12 validation, no test", 1, true), r.out)
  end)
end)

test("--help lists every option with its default; --resume without a checkpoint starts from the beginning", function()
  local r = run(("$L %s --help"):format(recipe))
  check.equal(r.status, 0)
  for _, option in ipairs { "model", "data", "output", "batch", "epochs", "max-steps", "learning-rate", "warmup", "rank", "alpha",
    "dropout", "max-length", "precision", "loss", "evaluation-steps", "max-train-rows", "threads", "seed", "resume" } do
    check.that(r.out:find("--" .. option, 1, true), option .. " is not in --help")
  end
  with_data(function(folder, data)
    r = train(data, fs.join(folder, "out"), "--max-steps 1 --resume latest")
    check.equal(r.status, 0, r.err)
    check.that(r.err:find("there is no checkpoint in", 1, true), r.err)
  end)
end)

test("what can be wrong, each in one line on standard error, status not 0", function()
  with_data(function(folder, data)
    local function refused(options, part, other_data, model)
      local r = run(("$L %s --model %s --data %s --output %s %s %s"):format(recipe, quote(model or bert), other_data or data,
        quote(fs.join(folder, "bad")), SMALL, options))
      check.that(r.status ~= 0, ("status 0 for %s"):format(options))
      check.that(r.err:find(part, 1, true), ("'%s' lacks '%s'"):format(r.err, part))
      check.that(not r.err:find("traceback", 1, true), r.err)
    end
    refused("--bacth 3", "did you mean --batch?")
    refused("--batch many", "--batch")
    refused("--precision fp64", "--precision")
    refused("--epochs -1", "epochs is -1, expected more than 0")
    refused("--clip -1", "clip is -1, expected a number of at least 0")
    refused("--weight-decay -0.1", "weight_decay is -0.1, expected a number of at least 0")
    refused("--dropout 1", "dropout is 1, expected 0 <= dropout < 1")
    refused("--alpha 0", "alpha is 0, expected more than 0")
    refused("--pooling max", "there is no pooling 'max'")
    for code, part in pairs {
      ["lr.load_model(%q, { precison = 'bf16' })"] = "lr.load_model has no option 'precison'; did you mean 'precision'?",
      ["lr.load_model(%q, { max_length = 0 })"] = "max_length is 0, expected a whole number of at least 1",
      ["lr.load_model(%q):encode({ 'a' }, { promt = 'x' })"] = "encode() has no option 'promt'; did you mean 'prompt'?",
    } do
      local r = run("$L -e " .. quote(code:format(bert)))
      check.equal(r.status, 1)
      check.that(r.err:find(part, 1, true), r.err)
    end
    refused("--targets nothing", "the targets match no linear layer of the model; it has: query, key, value, dense")
    refused("--targets '(bad'", "regular expression '(bad'")
    refused("--max-length 65", "max_length 65 is more than the 64 positions")
    refused("", "is neither a folder nor in the Hugging Face cache", nil, "nobody/nothing")
    refused("", "there is no train.jsonl", quote(fs.join(folder, "nowhere")))
    local bad = make_data(fs.join(folder, "bad-data"), 6)
    local path = fs.join(bad, "train.jsonl")
    local good = fs.read(path)
    for text, part in pairs { ['{"current_line": "x"}'] = "train.jsonl:7: column", ["{nonsense"] = "train.jsonl:7:",
      ['{"current_line":"a","context":"b","score":"c","context_type":"d"}'] = "'score' is not a number" } do
      fs.write(path, good .. text .. "\n")
      refused("", part, quote(bad))
      local r = run(("$L %s --model %s --data %s --output %s %s --max-steps 1 --on-bad-row skip"):format(recipe, quote(bert),
        quote(bad),
        quote(fs.join(folder, "skipping")), SMALL))
      check.equal(r.status, 0, r.err)
      check.that(r.out:find("1 bad rows of train", 1, true), r.out)
    end
    -- models that cannot be loaded: another architecture, a pickle, a missing tensor, a wrong shape
    local broken = fs.join(folder, "model")
    local function copy_model()
      if fs.exists(broken) then fs.remove(broken) end
      fs.make(fs.join(broken, "1_Pooling"))
      for _, name in ipairs { "config.json", "model.safetensors", "modules.json", "tokenizer.json", "sentence_bert_config.json",
        "1_Pooling/config.json" } do
        fs.copy(fs.join(bert, name), fs.join(broken, name))
      end
    end
    local function edit(name, from, to)
      local text, n = fs.read(fs.join(broken, name)):gsub(from, to)
      assert(n > 0, "the edit must find its place")
      fs.write(fs.join(broken, name), text)
    end
    copy_model()
    edit("config.json", '"model_type": "bert"', '"model_type": "llama"')
    refused("", "model_type 'llama' is not supported", nil, broken)
    copy_model()
    edit("config.json", '"BertModel"', '"BertForRobots"')
    refused("", "architecture 'BertForRobots' is not supported", nil, broken)
    copy_model()
    edit("config.json", '"intermediate_size": %d+', '"intermediate_size": 70')
    refused("", "has shape [72, 48]; config.json makes it [70, 48]", nil, broken)
    copy_model()
    edit("config.json", '"num_attention_heads": %d+', '"num_attention_heads": 5')
    refused("", "config.json: 'hidden_size' 48 is no multiple of 'num_attention_heads' 5", nil, broken)
    edit("config.json", '"num_attention_heads": %d+', '"num_attention_heads": 0')
    refused("", "config.json: 'num_attention_heads' is 0, expected a whole number from 1", nil, broken)
    copy_model()
    edit("config.json", '"num_hidden_layers": %d+', '"num_hidden_layers": 3')
    refused("", "tensors are missing: encoder.layer.2.", nil, broken)
    copy_model()
    fs.remove(fs.join(broken, "model.safetensors"))
    fs.write(fs.join(broken, "pytorch_model.bin"), "PK\3\4")
    refused("", "pickle", nil, broken)
    copy_model()
    fs.remove(fs.join(broken, "modules.json"))
    refused("", "says nothing about pooling", nil, broken)
    copy_model()
    local weights = fs.read(fs.join(broken, "model.safetensors"))
    fs.write(fs.join(broken, "model.safetensors"), weights:sub(1, #weights - 100))
    refused("", "model.safetensors", nil, broken)
  end)
end)

test("the small preset says which data it uses; without --targets the names of the model itself are adapted", function()
  with_data(function(folder, data)
    -- the small model is not in this cache, so nothing is trained
    local function said(words)
      return run(("XDG_CACHE_HOME=%s HOME=%s $L --cpu %s --output %s %s"):format(quote(folder), quote(folder), recipe,
        quote(fs.join(folder, "out")), words))
    end
    local r = said("--data " .. data)
    check.that(r.status ~= 0 and r.err:find("all-MiniLM-L6-v2", 1, true), r.err)
    check.that(r.out:find("all-MiniLM-L6-v2 on " .. fs.join(folder, "data"), 1, true), r.out)
    check.that(not r.out:find "planted", r.out)
    check.that(said("").out:find("all-MiniLM-L6-v2 on bugs planted in", 1, true))
  end)
  for name, targets in pairs { bert = "query key value", qwen2 = "q_proj k_proj v_proj" } do
    local r = run("$L -e " .. quote(("print(unpack(lr.load_model(%q, { device = 'meta' }):attention_targets()))"):format(
      fs.join(os.getenv "LORARUN_TESTS", "golden", name))))
    check.equal(r.out:gsub("%s+", " "), targets .. " ")
  end
end)

test("Ctrl-C in lr.train at the prompt returns to the prompt; the run can go on from there", function()
  with_data(function(folder, data)
    local lines = fs.join(folder, "lines")
    fs.write(lines, ([[
      require("ffi").cdef "int raise(int)"
      model = lr.load_model(%q, { max_length = 32 }) model:add_lora { rank = 2, targets = { "query" } }
      o = { model = model, data = %s, output = %q, batch = 8, epochs = 1, evaluation_steps = 100, learning_rate = 1e-3 }
      o.columns = { "current_line", "context" }
      o.on_step = function(s) if s.step == 2 then require("ffi").C.raise(2) end end -- os.execute would ignore it
      lr.train(o)
      print("back", model:encode("x").shape[1])
      o.on_step, o.resume = nil, "latest"
      print("ended", lr.train(o).best_step)
    ]]):format(bert, data:gsub("'", '"'), fs.join(folder, "out")))
    local r = run("$L -i < " .. quote(lines))
    check.equal(r.status, 0, r.err)
    check.that(r.err:find("stopped by signal 2 after step 2 of 6; a checkpoint was written. To go on: the same lr.train with "
      .. "resume = \"latest\"", 1, true), r.err)
    check.that(r.out:find("back\t1", 1, true) and r.out:find("step 2 of 6", 1, true) and r.out:find("ended\t6", 1, true), r.out)
  end)
end)
