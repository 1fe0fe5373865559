-- What happens to a run's folder in accidents: a second run in it, an output among what is read, starts that fail, resuming with
-- other settings, figures that do not exist, full disks.
local fs = require "lorarun.fs"
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
      -- in the middle of the first, rank 0 starts another as somebody else would: not as a rank of its own
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

test("an error and a signal give the folder back; a group that is started again goes on under its launcher's lock", function()
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

-- ---- an output among what is read ----------------------------------------------------------------------------------------------
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
