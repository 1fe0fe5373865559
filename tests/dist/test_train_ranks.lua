-- test_train_ranks.lua: training on several ranks, each a process. N ranks of batch b learn what one rank of batch N b learns, with
-- losses equal to 1e-5; all ranks have the same bits after every step; evaluation is shared and exact; resuming, signals and errors
-- keep the ranks together. With LORARUN_TEST_DEVICE=cuda they use NCCL and share a GPU.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local ranks = dofile(os.getenv "LORARUN_TESTS" .. "/dist/ranks.lua")
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local data_files = dofile(os.getenv "LORARUN_TESTS" .. "/data.lua")

local device = os.getenv "LORARUN_TEST_DEVICE" or "cpu"
local bert = fs.join(os.getenv "LORARUN_TESTS", "golden", "bert")

-- ---- data and runs -----------------------------------------------------------------------------------------------------------
-- Makes a data folder. Contexts differ in length, so that balancing by tokens moves pairs; labels follow from the text.
local function make_data(folder, rows)
  return data_files.make(folder, rows, function(i)
    local good = i % 3 ~= 0
    return { current_line = good and ("x = %d"):format(i) or ("x == %d"):format(i),
      context = ("def f%d(y):\n"):format(i) .. ("    x = %d\n"):format(i):rep(1 + i * 7 % 5) .. "    return x + y",
      negative = ("y = %d"):format(-i), score = good and 1 or 0, context_type = i % 2 == 0 and "full" or "before" }
  end)
end

-- The code of every rank. `given`, the text of a Lua table, overrides options of lr.train; `before` is code that sees the options.
local SCRIPT = [[
  local data_parallel = require "lorarun.dist.data_parallel"
  local folder = os.getenv "FOLDER"
  lr.threads(1)
  require("lorarun.tensor.tensor").default_device = os.getenv "DEVICE"
  local model = lr.load_model(%q, { max_length = 32, precision = os.getenv "PRECISION" })
  model:add_lora { rank = 4, alpha = 8, dropout = 0.1, targets = { "query", "key", "value" }, seed = 3 }
  local seen = { sums = {}, losses = {}, norms = {} }
  local options = { model = model, data = folder .. "/data", columns = { "current_line", "context" }, group = "context_type",
    output = folder .. "/" .. os.getenv "NAME", learning_rate = 5e-3,
    schedule = lr.schedule.warmup_linear(2), evaluation_steps = 3, epochs = 2, seed = 5,
    on_step = function(s)
      local i = #seen.losses + 1
      seen.sums[i], seen.losses[i], seen.norms[i] = data_parallel.checksum(model:parameters().value), s.loss, s.grad_norm
    end }
  for key, value in pairs(%s) do options[key] = value end
  %s
  local result = lr.train(options)
  seen.spearman = result.validation.spearman
  lr.fs.write(("%%s/%%s-%%d.json"):format(folder, os.getenv "NAME", rank), lr.json.encode(seen))
]]

-- Trains on n ranks. Returns the results of the processes, and what each rank that reached the end has seen.
local function train(folder, name, n, given, options)
  options = options or {}
  local function env(rank)
    local list = { FOLDER = folder, NAME = name, DEVICE = device, PRECISION = "fp32" }
    for key, value in pairs(device == "cuda" and ranks.one_gpu(rank) or {}) do list[key] = value end
    for key, value in pairs(options.env or {}) do list[key] = value end
    return list
  end
  local results = ranks.run { n, SCRIPT:format(bert, given, options.before or ""), env = env, seconds = 300 }
  local seen = {}
  for rank = 0, n - 1 do
    local path = ("%s/%s-%d.json"):format(folder, name, rank)
    seen[rank + 1] = fs.is_file(path) and json.decode_file(path) or nil
  end
  return results, seen
end

local function check_all_ended(results, status)
  for rank, r in ipairs(results) do
    check.equal(r.status, status or 0, ("status of rank %d, which said '%s',"):format(rank - 1, r.err))
    if rank > 1 then check.equal(r.out, "", ("output of rank %d"):format(rank - 1)) end
  end
end

-- A run that must reach its end on all ranks. Returns what rank 0 has seen; all must have seen the same.
local function trained(folder, name, n, given, options)
  local results, seen = train(folder, name, n, given, options)
  check_all_ended(results)
  for rank = 2, n do
    check.array(seen[rank].sums, seen[1].sums, 0, ("checksums of the adapters on rank %d"):format(rank - 1))
    check.array(seen[rank].losses, seen[1].losses, 0, ("losses on rank %d"):format(rank - 1))
    check.array(seen[rank].norms, seen[1].norms, 0, ("gradient norms on rank %d"):format(rank - 1))
    check.equal(seen[rank].spearman, seen[1].spearman, ("figures of rank %d"):format(rank - 1))
  end
  return seen[1], results
end

local function with_data(rows, fn)
  shell.with_folder(function(folder)
    make_data(fs.join(folder, "data"), rows)
    fn(folder)
  end)
end

local function records(folder, name, kind)
  local list = {}
  for line in fs.read(fs.join(folder, name, "log.jsonl")):gmatch "[^\n]+" do
    local record = json.decode(line)
    if record.kind == kind then list[#list + 1] = record end
  end
  return list
end

local function adapter_bytes(folder, name)
  return fs.read(fs.join(folder, name, "adapter", "adapter_model.safetensors"))
end

-- ---- equivalence -------------------------------------------------------------------------------------------------------------
-- 45 rows: the last step of an epoch has 5 pairs of 8, or 13 of 16. So it is with 21 rows, for CUDA's kernels on the CPU, which are
-- slow.
local ROWS = os.getenv "LORARUN_SIMT" and 21 or 45

local function check_equivalence(given_for)
  with_data(ROWS, function(folder)
    local one = trained(folder, "one", 1, given_for(8))
    check.that(#one.losses >= 6, "steps")
    local alone = records(folder, "one", "step")
    for n = 2, 4, 2 do
      local name = "ranks" .. n
      local several = trained(folder, name, n, given_for(8 / n))
      check.array(several.losses, one.losses, 1e-5, ("losses on %d ranks"):format(n))
      check.array(several.norms, one.norms, 1e-4, ("gradient norms on %d ranks"):format(n))
      for i, record in ipairs(records(folder, name, "step")) do -- a log counts all ranks together
        check.equal(record.pairs, alone[i].pairs, "pairs of a step")
        check.equal(record.tokens, alone[i].tokens, "tokens of a step")
        check.equal(record.epoch, alone[i].epoch, "epoch")
      end
    end
  end)
end

test("1, 2 and 4 ranks: cosine similarity, weighted draws, dropout, uneven last batch", function()
  check_equivalence(function(batch) return ("{ batch = %d }"):format(batch) end)
end)

-- All ranks see the same overflow, make or skip the same steps, and have the same scale of the loss.
if device == "cuda" then
  test("1, 2 and 4 ranks in fp16", function()
    with_data(ROWS, function(folder)
      local function run(n)
        return trained(folder, "ranks" .. n, n, ("{ batch = %d }"):format(8 / n), { env = { PRECISION = "fp16" } })
      end
      local one = run(1)
      for n = 2, 4, 2 do check.array(run(n).losses, one.losses, 0.01, ("losses on %d ranks"):format(n)) end
    end)
  end)
end

test("1, 2 and 4 ranks: accumulation of uneven batches", function()
  check_equivalence(function(batch) return ("{ batch = %d, accumulate = 2, epochs = 3 }"):format(batch) end)
end)

test("1, 2 and 4 ranks: multiple negatives ranking over all ranks' pairs, with hard negatives", function()
  check_equivalence(function(batch)
    return ([[{ batch = %d, accumulate = 2, epochs = 4, loss = lr.loss.multiple_negatives_ranking(),
      columns = { "current_line", "context", "negative" } }]]):format(batch)
  end)
end)

test("1, 2 and 4 ranks: recomputed activations, a loss of the recipe's own", function()
  check_equivalence(function(batch)
    return ([[{ batch = %d, recompute = "all", sampling = "shuffled", loss = function(columns, labels)
      return lr.ops.mse(1.5 * lr.ops.row_dot(columns[1], columns[2]), labels) end }]]):format(batch)
  end)
end)

test("one rank short of memory: all take the batch in the same parts, and learn the same", function()
  for _, loss in ipairs { "cosine", "mnr" } do
    with_data(45, function(folder)
      local given = ("{ batch = %%d, columns = { 'current_line', 'context' }, loss = lr.loss.by_name %q }"):format(loss)
      local one, results = trained(folder, "one", 1, given:format(8))
      check.that(not results[1].out:find("in parts", 1, true), results[1].out)
      -- Rank 1 is told that memory is free for half of what a batch of 200 tokens needs.
      local two, short = trained(folder, "two", 2, given:format(4), { before = [[
        if rank == 1 then
          local f = require("lorarun.train.footprint").new { model = model, loss = options.loss, columns = 2 }
          local tensors, scratch = f:step { tokens = 200, layers = 2, pairs = options.batch }
          local room = tensors / 2 + scratch
          f:free()
          require("lorarun.tensor.memory").available = function() return 2 * room / 0.9 end -- two ranks share it
        end
      ]] })
      check.that(short[1].out:find "4 a device, 8 effective, in parts of [12] that fit the memory", short[1].out)
      check.array(two.losses, one.losses, 1e-5, "losses with " .. loss)
      check.array(two.norms, one.norms, 1e-4, "gradient norms with " .. loss)
    end)
  end
end)

test("fewer pairs than ranks: some have nothing to do, and stay in step", function()
  for _, loss in ipairs { "cosine", "mnr" } do
    with_data(9, function(folder) -- 9 pairs (mnr: the 6 with score 1), 4 a step: the last step has 1 (2)
      local one = trained(folder, "one", 1, ("{ batch = 4, loss = lr.loss.by_name %q }"):format(loss))
      local four = trained(folder, "four", 4, ("{ batch = 1, loss = lr.loss.by_name %q }"):format(loss))
      check.array(four.losses, one.losses, 1e-5, "losses with " .. loss)
    end)
  end
end)

test("without gathering, each rank's negatives are its own", function()
  with_data(32, function(folder)
    local given = [[{ batch = %d, epochs = 1, max_steps = 4, sampling = "shuffled",
      loss = lr.loss.multiple_negatives_ranking { gather = %s } }]]
    local all = trained(folder, "all", 2, given:format(8, "true"))
    local own = trained(folder, "own", 2, given:format(8, "false"))
    check.that(own.losses[1] < all.losses[1] - 0.3, ("%g of 8 candidates, %g of 16"):format(own.losses[1], all.losses[1]))
    local same = trained(folder, "same", 1, given:format(16, "false")) -- one rank has all pairs either way
    check.array(same.losses, all.losses, 1e-5, "losses")
  end)
end)

-- ---- evaluation --------------------------------------------------------------------------------------------------------------
test("evaluation is shared among the ranks and gives one rank's figures, bit for bit", function()
  for rows, most in pairs { [5] = 4, [700] = 3 } do -- one batch of texts, so that most ranks have none, and several batches
    with_data(rows, function(folder)
      local expected
      for n = 1, most do
        local results = ranks.run { n, ([[
          local evaluate, data = lr.evaluate, lr.data
          lr.threads(1)
          local model = lr.load_model(%q, { max_length = 32 })
          local set = data.open(%q, { columns = { { name = "score", kind = "number" }, { name = "context_type", kind = "text" },
            { name = "current_line", kind = "text" }, { name = "context", kind = "text" } } })
          local shown = 0
          local r = evaluate.run(model, set, { columns = { "current_line", "context" }, score = "score", group = "context_type",
            sweep = 5, on_progress = function(done, total) shown = done / total end })
          assert(r.distinct_texts > set.rows and (shown == 1 or shown == 0))
          r.seconds = nil
          print(lr.json.encode(r))
          set:close()
        ]]):format(bert, fs.join(folder, "data", "test.jsonl")) }
        for rank, r in ipairs(results) do
          check.equal(r.status, 0, r.err)
          expected = expected or r.out
          check.equal(r.out, expected, ("figures on rank %d of %d"):format(rank - 1, n))
        end
        check.that(expected:find '"spearman": %-?0%.%d+', expected)
      end
    end)
  end
end)

-- ---- going on ----------------------------------------------------------------------------------------------------------------
-- One rank sends itself a signal at a step.
local function signal_at(step, rank, signal)
  return ([[ local told = options.on_step
    options.on_step = function(s)
      told(s)
      if s.step == %d and rank == %d then os.execute "kill -%s $PPID" end
    end ]]):format(step, rank, signal)
end

test("SIGTERM to any rank: all finish the same step, write one checkpoint and end; resuming gives the same bits", function()
  with_data(48, function(folder)
    local given = "{ batch = 4, epochs = 1, evaluation_steps = 100 }"
    trained(folder, "whole", 2, given)
    local results = train(folder, "parts", 2, given, { before = signal_at(2, 1, "TERM") })
    check_all_ended(results, 143)
    check.that(results[1].out:find("stopped by signal 15 after step 3 of 6; a checkpoint was written", 1, true), results[1].out)
    check.equal(table.concat(fs.list(fs.join(folder, "parts", "checkpoints")), " "), "step-00000003")
    results = train(folder, "parts", 2, "{ batch = 4, epochs = 1, evaluation_steps = 100, resume = 'latest' }")
    check_all_ended(results)
    check.that(results[1].out:find("step-00000003, step 3 of 6", 1, true), results[1].out)
    check.that(adapter_bytes(folder, "parts") == adapter_bytes(folder, "whole"), "the adapters differ")
    check.equal(#records(folder, "parts", "step"), 6, "steps logged")
  end)
end)

test("SIGTERM to any rank in an evaluation: all end, and the step is evaluated when the run goes on", function()
  with_data(36, function(folder)
    local given = "{ batch = 6 }"
    local whole = trained(folder, "whole", 2, given)
    local results = train(folder, "parts", 2, given, { before = [[
      local evaluate = require "lorarun.train.evaluate"
      local run = evaluate.run
      function evaluate.run(model, set, o)
        if rank == 1 then os.execute "kill -TERM $PPID" end
        return run(model, set, o)
      end]] })
    check_all_ended(results, 143)
    check.that(results[1].out:find("stopped by signal 15 after step 3 of 6; a checkpoint was written", 1, true), results[1].out)
    local again = trained(folder, "parts", 2, "{ batch = 6, resume = true }")
    check.equal(again.spearman, whole.spearman)
    check.that(adapter_bytes(folder, "parts") == adapter_bytes(folder, "whole"), "the adapters differ")
    local function scores(name) return fs.read(fs.join(folder, name, "similarity_evaluation_validation_results.csv")) end
    check.equal(scores "parts", scores "whole")
  end)
end)

test("SIGUSR1 to any rank: a checkpoint, and training goes on", function()
  with_data(48, function(folder)
    local given = "{ batch = 4, epochs = 1, evaluation_steps = 100 }"
    trained(folder, "whole", 2, given)
    local _, results = trained(folder, "saved", 2, given, { before = signal_at(3, 1, "USR1") })
    check.that(results[1].out:find "a checkpoint was written after step 4", results[1].out)
    check.equal(table.concat(fs.list(fs.join(folder, "saved", "checkpoints")), " "), "step-00000004 step-00000006")
    check.that(adapter_bytes(folder, "saved") == adapter_bytes(folder, "whole"), "the adapters differ")
  end)
end)

test("resumed on another number of ranks: the same order where the global batch is kept, and it says what changed", function()
  with_data(48, function(folder)
    local one = trained(folder, "one", 1, "{ batch = 8, epochs = 1 }")
    local function begin(name)
      check_all_ended((train(folder, name, 2, "{ batch = 4, epochs = 1 }", { before = signal_at(2, 0, "TERM") })), 143)
    end
    begin "four"
    local four, results = trained(folder, "four", 4, "{ batch = 2, epochs = 1, resume = 'latest' }")
    check.that(results[1].err:find("2 ranks of 4 pairs began the run, 4 ranks of 2 pairs go on: a step takes the same 8 pairs, "
      .. "in the same order", 1, true), results[1].err)
    check.that(not results[1].err:find("warning", 1, true), results[1].err)
    check.array(four.losses, { unpack(one.losses, 4) }, 1e-5, "losses from step 4 on")
    begin "alone"
    local _, alone = trained(folder, "alone", 1, "{ batch = 4, epochs = 1, resume = 'latest' }")
    check.that(alone[1].err:find("warning: 2 ranks of 4 pairs began the run, 1 rank of 4 pairs go on: a step takes 4 pairs instead "
      .. "of 8", 1, true), alone[1].err)
    check.equal(records(folder, "alone", "step")[12].step, 12, "the run has 12 steps of 4 now")
  end)
end)

test("a restarted group resumes from the last checkpoint by itself", function()
  with_data(48, function(folder)
    local given = "{ batch = 4, epochs = 1, evaluation_steps = 2 }"
    trained(folder, "whole", 2, given)
    local results = train(folder, "killed", 2, given, { before = signal_at(5, 1, "KILL") })
    check.equal(results[2].status, 137)
    check.that(results[1].status ~= 0, "rank 0 cannot go on alone")
    local _, again = trained(folder, "killed", 2, given, { env = { LORARUN_GENERATION = 1 } })
    check.that(again[1].out:find("step-00000004, step 4 of 6", 1, true), again[1].out)
    check.that(adapter_bytes(folder, "killed") == adapter_bytes(folder, "whole"), "the adapters differ")
    -- a missing checkpoint is not an error
    local _, fresh = trained(folder, "fresh", 2, given, { env = { LORARUN_GENERATION = 1 } })
    check.that(not fresh[1].out:find("resuming", 1, true) and fresh[1].err == "", fresh[1].out .. fresh[1].err)
  end)
end)

-- ---- errors ------------------------------------------------------------------------------------------------------------------
test("a rank whose adapters differ is named by all at the next evaluation", function()
  with_data(48, function(folder)
    local results = train(folder, "differ", 3, "{ batch = 2, epochs = 1 }", { before = [[ local told = options.on_step
      options.on_step = function(s)
        told(s)
        if s.step == 2 and rank == 1 then model:parameters().value:slice_rows(7, 8):fill(3) end
      end ]] })
    for _, r in ipairs(results) do
      check.equal(r.status, 1, r.err)
      check.that(r.err:find "after step 3 the ranks differ: checksum of the adapters is %d+ on rank 1 and %d+ on others", r.err)
    end
  end)
end)

test("ranks with other arguments or data are named before the first step", function()
  with_data(12, function(folder)
    local function refused(before, part)
      for _, r in ipairs((train(folder, "refused", 3, "{ batch = 2, epochs = 1 }", { before = before }))) do
        check.equal(r.status, 1, r.err)
        check.that(r.err:find(part), r.err)
      end
    end
    refused("if rank == 2 then options.learning_rate = 1 end",
      "before the first step the ranks differ: learning_rate is 1 on rank 2 and 0%.005 on others")
    make_data(fs.join(folder, "other"), 12)
    local path = fs.join(folder, "other", "train.jsonl")
    fs.write(path, (fs.read(path):gsub("x = 4", "x = 5")))
    refused("if rank == 0 then options.data = folder .. '/other' end", "checksum of the train data is %d+ on rank 0 and %d+ on")
    refused("if rank == 1 then model.lora:reset(4) end", "checksum of the adapters is %d+ on rank 1 and %d+ on others")
  end)
end)

test("if rank 0 cannot write, all ranks get the error at once", function()
  with_data(12, function(folder)
    fs.write(fs.join(folder, "taken"), "a file where the output folder should be")
    for rank, r in ipairs((train(folder, "taken", 2, "{ batch = 2, epochs = 1 }"))) do
      check.equal(r.status, 1, r.err)
      check.that(r.err:find("taken", 1, true) and (rank == 1 or r.err:find("rank 0: ", 1, true)), r.err)
    end
  end)
end)

-- ---- through the recipe ------------------------------------------------------------------------------------------------------
test("the recipe runs on two ranks if one number is changed", function()
  with_data(45, function(folder)
    local recipe = shell.quote(fs.join(fs.dirname(os.getenv "LORARUN_TESTS"), "recipes", "bugdetect.lua"))
    local function run(name, options)
      local r = shell.run(("$L %s --model %s --data %s --output %s --targets query,key,value --rank 4 --warmup 2 --max-length 32 "
        .. "--learning-rate 5e-3 --threads 1 --epochs 1 --evaluation-steps 3 %s"):format(recipe, shell.quote(bert),
        shell.quote(fs.join(folder, "data")), shell.quote(fs.join(folder, name)), options))
      check.equal(r.status, 0, r.err)
      check.that(not r.err:find("lorarun:", 1, true), r.err)
      return r.out
    end
    run("one", "--batch 8")
    local out = run("two", "--batch 4 --processes 2")
    for _, part in ipairs { "ranks%s+2\n", "4 a device, 8 effective",
      "on 2 devices, effective batch 8" } do
      local _, times = out:gsub(part:gsub("[()]", "%%%0"), "")
      check.equal(times, 1, ("'%s' in the output"):format(part))
    end
    local one, two = records(folder, "one", "step"), records(folder, "two", "step")
    check.equal(#two, #one, "steps")
    for i = 1, #one do check.near(two[i].loss, one[i].loss, 1e-5, "loss of step " .. i) end
    check.equal(json.decode_file(fs.join(folder, "two", "training_config.json")).fixed.global_batch, 8)
  end)
end)
