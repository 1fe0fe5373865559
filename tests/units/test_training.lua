-- lr.train in this process, on a tiny model: the training loop does the right thing, and does not merely run. tests/mutants changes
-- its lines one by one, and then a test here must fail.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local lr = require "lorarun"
local comm = require "lorarun.dist.comm"
local evaluate = require "lorarun.train.evaluate"
local export = require "lorarun.models.export"
local metrics = require "lorarun.train.metrics"
local dataset = require "lorarun.data.dataset"
local ops = require "lorarun.tensor.ops"
local preflight = require "lorarun.dist.preflight"
local probes = require "lorarun.models.probes"
local safetensors = require "lorarun.formats.safetensors"
local data_parallel = require "lorarun.dist.data_parallel"
local tests = os.getenv "LORARUN_TESTS"
local shell = dofile(tests .. "/shell.lua")
local data_files = dofile(tests .. "/data.lua")

local function row_of(i) return { current_line = ("x = %d"):format(i), context = ("y = %d"):format(i * i), score = i % 2 } end

-- Calls fn(train, folder). train(name, options) trains into folder/name and returns the result, the steps as on_step reports them,
-- and the adapters' values after the last step. options: those of lr.train, and lora (those of add_lora) and before(model).
local function with_trainer(fn, row)
  shell.with_folder(function(folder)
    local rows = data_files.make(fs.join(folder, "data"), 10, row or row_of)
    fn(function(name, options)
      local steps, on_step = {}, options.on_step
      local model = lr.load_model(tests .. "/golden/bert", { max_length = 16 })
      local lora = { rank = 2, alpha = 4, targets = { "query" }, seed = 1 }
      for key, value in pairs(options.lora or {}) do lora[key] = value end
      model:add_lora(lora)
      if options.before then options.before(model) end
      local o = { model = model, data = rows, output = fs.join(folder, name), batch = 4, sampling = "sequential",
        columns = { "current_line", "context" },
        schedule = lr.schedule.constant(), evaluation_steps = 100,
        on_step = function(s)
          steps[#steps + 1] = s
          if on_step then on_step(s) end
        end }
      for key, value in pairs(options) do
        if key ~= "lora" and key ~= "before" and key ~= "on_step" then o[key] = value end
      end
      local ok, result = pcall(lr.train, o)
      local values = model:parameters().value:to_table()
      model:free()
      if not ok then error(result, 0) end
      return result, steps, values
    end, folder)
  end)
end

-- Makes evaluations give these Spearman correlations, one after the other. seen: checksums of the adapters that were evaluated.
local function with_scores(scores, fn)
  local run, n, seen = evaluate.run, 0, {}
  function evaluate.run(model, set, options)
    local result = run(model, set, options)
    n = n + 1
    result.spearman = scores[n] or check.that(false, "too many evaluations")
    seen[n] = data_parallel.checksum(model:parameters().value)
    return result
  end
  local ok, err = pcall(fn, seen)
  evaluate.run = run
  if not ok then error(err, 0) end
end

-- Checks that the adapter that a run wrote is that of this step.
local function check_written(out, step)
  local written = fs.read(fs.join(out, "adapter", "adapter_model.safetensors"))
  local kept = fs.read(fs.join(out, "checkpoints", ("step-%08d"):format(step), "adapter_model.safetensors"))
  check.that(written == kept, "the adapter written is not that of step " .. step)
end

test("the best model has the highest score, the earliest of equals: it is tested, written, and its checkpoint stays", function()
  with_trainer(function(train, folder)
    with_scores({ 0.1, 0.5, 0.5, 0.2, 0.7 }, function(seen)
      local result = train("out", { max_steps = 4, epochs = 9, evaluation_steps = 1, keep = 1 })
      check.equal(result.best_step, 2, "the best step")
      check.equal(result.validation.spearman, 0.5, "its score")
      check.equal(#seen, 5, "evaluations, the last of test rows")
      check.equal(seen[5], seen[2], "the adapter that the test rows were evaluated with")
      check.that(seen[4] ~= seen[2], "steps change the adapter")
    end)
    local out = fs.join(folder, "out")
    check.equal(table.concat(fs.list(fs.join(out, "checkpoints")), " "), "step-00000002 step-00000004")
    check_written(out, 2)
    local csv = fs.read(fs.join(out, "similarity_evaluation_validation_results.csv"))
    local steps = {}
    for epoch, step in csv:gmatch "\n([%d.]+),(%d+)," do
      steps[#steps + 1] = step
      check.near(tonumber(epoch), tonumber(step) / 3, 1e-5, "epoch of step " .. step)
    end
    check.equal(table.concat(steps, " "), "1 2 3 4")
  end)
end)

test("a run that goes on still has its best step and its baseline", function()
  with_trainer(function(train, folder)
    with_scores({ 0.3, 0.5, 0.1, 0.4, 0.2, 0.6 }, function()
      local options = { max_steps = 3, epochs = 9, evaluation_steps = 1, evaluate_first = true, keep = 1,
        on_step = function(s) if s.step == 3 then error "stop" end end }
      check.raises("stop", train, "out", options)
      options.on_step, options.resume = nil, "latest"
      local result = train("out", options)
      check.equal(result.best_step, 1, "the best step")
      check.equal(result.baseline.spearman, 0.3, "the baseline")
    end)
    local out = fs.join(folder, "out")
    check_written(out, 1)
    -- from a step before the last one: what was written for later steps is removed
    with_scores({ 0.7, 0.8, 0.1 }, function()
      local result = train("out", { max_steps = 3, epochs = 9, evaluation_steps = 1, resume = "step-00000001" })
      check.equal(result.best_step, 3, "the best step")
    end)
    local csv, logged = {}, {}
    for step in fs.read(fs.join(out, "similarity_evaluation_validation_results.csv")):gmatch "\n[%d.]+,(%d+)," do
      csv[#csv + 1] = step
    end
    check.equal(table.concat(csv, " "), "0 1 2 3", "rows of the CSV")
    for line in fs.read(fs.join(out, "log.jsonl")):gmatch "[^\n]+" do
      local record = json.decode(line)
      if record.kind == "step" then logged[#logged + 1] = record.step end
    end
    check.array(logged, { 1, 2, 3 }, 0, "steps in the log")
  end)
end)

test("every step and every seed has dropout masks of its own", function()
  local function same(i) return { current_line = "x = 1", context = "y = 2", score = i * 0 + 0.3 } end
  local function losses(train, name, seed)
    local _, steps = train(name, { max_steps = 3, epochs = 9, learning_rate = 0, seed = seed, lora = { dropout = 0.5 }, batch = 2,
      before = function(model)
        for _, m in ipairs(model.lora.modules) do m.b:fill(0.1) end
      end })
    check.equal(#steps, 3)
    return { steps[1].loss, steps[2].loss, steps[3].loss }
  end
  with_trainer(function(train)
    local a, again, other = losses(train, "a", 1), losses(train, "again", 1), losses(train, "other", 2)
    check.that(a[1] ~= a[2] and a[2] ~= a[3] and a[1] ~= a[3], ("losses %g, %g, %g of equal rows"):format(a[1], a[2], a[3]))
    check.array(again, a, 0, "losses of the same seed")
    check.that(other[1] ~= a[1], "another seed, other masks")
  end, same)
  local function embedding(dropout)
    local model = lr.load_model(tests .. "/golden/bert", { max_length = 16 })
    model:add_lora { rank = 2, alpha = 4, targets = { "query" }, seed = 1, dropout = dropout }
    for _, m in ipairs(model.lora.modules) do m.b:fill(0.1) end
    local e = model:encode { "x = 1" }
    local values = e:to_table()[1]
    e:free()
    model:free()
    return values
  end
  check.array(embedding(0.5), embedding(0), 0, "an embedding, which has no dropout")
end)

test("learning rates are the schedule's, from 0 on; a step is a batch of rows, an epoch ends with what is left", function()
  with_trainer(function(train, folder)
    local asked = {}
    local _, steps = train("out", { epochs = 2, learning_rate = 1e-3, evaluation_steps = 4, schedule = function(step, total)
      asked[#asked + 1] = ("%d/%d"):format(step, total)
      return (step + 1) / total
    end })
    check.equal(table.concat(asked, " "), "0/6 1/6 2/6 3/6 4/6 5/6")
    local pairs_, scores = {}, 0
    for line in fs.read(fs.join(folder, "out", "log.jsonl")):gmatch "[^\n]+" do
      local record = json.decode(line)
      if record.kind == "step" then
        pairs_[#pairs_ + 1] = record.pairs
        check.near(record.learning_rate, 1e-3 * record.step / 6, 1e-12, "learning rate")
        check.near(record.epoch, record.step / 3, 1e-12, "epoch")
      elseif record.kind == "evaluation" then
        scores = scores + 1
        check.equal(record.step, ({ 4, 6 })[scores], "step of an evaluation: every fourth, and the last")
      end
    end
    check.equal(scores, 2, "evaluations")
    check.equal(table.concat(pairs_, " "), "4 4 2 4 4 2")
    check.equal(steps[6].total, 6)
    local _, half = train("half", { epochs = 0.5 })
    check.equal(#half, 2, "steps of half an epoch of three")
    local _, most = train("most", { epochs = 2, max_steps = 5 })
    check.equal(#most, 5)
    local _, few = train("few", { epochs = 1, max_steps = 5, accumulate = 2 })
    check.equal(#few, 2, "steps of eight of ten rows")
    local before
    local _, _, after = train("still", { max_steps = 2, epochs = 9, schedule = function() return 0 end,
      before = function(model) before = model:parameters().value:to_table() end })
    check.array(after, before, 0, "adapters at a learning rate of 0")
  end)
end)

-- In the first step A has no gradient, because B is 0, and AdamW's first m is a tenth of the clipped gradient.
test("weight decay and the clip reach the optimizer", function()
  with_trainer(function(train, folder)
    local function first(name, options)
      options.max_steps, options.epochs, options.learning_rate = 1, 9, 1e-2
      local a, values, norm
      options.before = function(model) a = model.lora.modules[1].a:to_table() end
      local _, steps = train(name, options)
      local file = safetensors.open(fs.join(folder, name, "checkpoints", "step-00000001", "optimizer.safetensors"))
      local m = lr.tensor.new(file:info("adamw.m").shape, "f32", "m")
      file:load("adamw.m", m)
      norm = 0
      for _, x in ipairs(m:to_table()) do norm = norm + x * x end
      m:free()
      file:close()
      file = safetensors.open(fs.join(folder, name, "adapter", "adapter_model.safetensors"))
      local t = lr.tensor.new({ 2, 48 }, "f32", "a")
      file:load("base_model.model.encoder.layer.0.attention.self.query.lora_A.weight", t)
      values = t:to_table()
      t:free()
      file:close()
      return a, values, math.sqrt(norm), steps[1].grad_norm
    end
    local before, after, norm, gradient = first("decayed", { weight_decay = 0.5, clip = 0 })
    for i = 1, 2 do
      for k = 1, 48 do
        check.near(after[i][k], before[i][k] * (1 - 1e-2 * 0.5), 1e-6, "an element of A, decayed")
        check.that(before[i][k] ~= after[i][k])
      end
    end
    check.near(norm, 0.1 * gradient, 1e-5 * gradient, "m without a clip")
    before, after, norm = first("clipped", { clip = gradient / 8 })
    for i = 1, 2 do check.array(after[i], before[i], 0, "A without decay") end
    check.near(norm, 0.1 * gradient / 8, 1e-5 * gradient, "m with a clip")
    check.near(select(3, first("unclipped", { clip = 2 * gradient })), 0.1 * gradient, 1e-5 * gradient, "m under the clip")
  end)
end)

-- The scores of the rows of each step, as the loss gets them.
local function scores_seen(train, name, options)
  local seen = {}
  options.loss = { name = "seen", needs_labels = true, positives_only = options.positives_only, compute = function(columns, labels)
    for _, value in ipairs(labels:to_table()) do seen[#seen + 1] = math.floor(value * 10 + 0.5) end
    return ops.mse(ops.row_dot(columns[1], columns[2]), labels)
  end }
  options.positives_only = nil
  train(name, options)
  return seen
end

test("which rows: in file order, in another order for each epoch and seed, and only those with score 1", function()
  local function tenths(i) return { current_line = "x = " .. i, context = "y = " .. i, score = (i - 1) / 10 } end
  with_trainer(function(train)
    check.array(scores_seen(train, "a", { epochs = 2 }), { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 })
    check.array(scores_seen(train, "b", { epochs = 1, max_train_rows = 5 }), { 0, 1, 2, 3, 4 })
    local function epochs(name, seed)
      local seen, both = scores_seen(train, name, { epochs = 2, sampling = "shuffled", seed = seed }), { {}, {} }
      check.equal(#seen, 20)
      for i, value in ipairs(seen) do table.insert(both[i <= 10 and 1 or 2], value) end
      for _, epoch in ipairs(both) do
        local sorted = { unpack(epoch) }
        table.sort(sorted)
        check.array(sorted, { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 }, 0, "rows of an epoch")
      end
      return table.concat(both[1], " "), table.concat(both[2], " ")
    end
    local one, two = epochs("c", 1)
    local other = epochs("d", 2)
    check.that(one ~= two and one ~= other and two ~= other, one .. " | " .. two .. " | " .. other)
    local positive = scores_seen(train, "e", { epochs = 1, positives_only = true })
    table.sort(positive)
    check.array(positive, { 5, 6, 7, 8, 9 }, 0, "rows of a ranking loss")
  end, tenths)
end)

test("the figures of an evaluation are those of its own rows, whichever texts are encoded together", function()
  local function row(i)
    return { current_line = "x = " .. i % 4, context = i % 3 == 0 and "x = 1" or ("y = %d"):format(i), score = i % 2,
      context_type = i <= 6 and "few" or "many" }
  end
  with_trainer(function(_, folder)
    local set = dataset.open(fs.join(folder, "data", "validation.jsonl"), { columns = { { name = "current_line", kind = "text" },
      { name = "context", kind = "text" }, { name = "score", kind = "number" }, { name = "context_type", kind = "text" } } })
    for _, normalize in ipairs { true, false } do
      local model = lr.load_model(tests .. "/golden/bert", { max_length = 16, normalize = normalize })
      local prefixes, texts, expected, labels = { "q: ", "" }, {}, {}, {}
      for i = 1, 10 do
        texts[2 * i - 1], texts[2 * i], labels[i] = prefixes[1] .. row(i).current_line, row(i).context, row(i).score
      end
      local e = model:encode(texts):to_table()
      for i = 1, 10 do
        local dot, aa, bb = 0, 0, 0
        for k = 1, model.dimension do
          local a, b = e[2 * i - 1][k], e[2 * i][k]
          dot, aa, bb = dot + a * b, aa + a * a, bb + b * b
        end
        expected[i] = dot / math.sqrt(aa) / math.sqrt(bb)
      end
      local result = evaluate.run(model, set, { columns = { "current_line", "context" }, score = "score", group = "context_type",
        prefixes = prefixes })
      local similarities = evaluate.similarities(model, set, { columns = { "current_line", "context" }, prefixes = prefixes })
      for i = 1, 10 do check.near(similarities[i - 1], expected[i], 1e-5, "similarity of row " .. i) end
      check.near(result.pearson, metrics.pearson(expected, labels), 1e-4, "pearson")
      check.near(result.roc_auc, metrics.binary(expected, labels).roc_auc, 1e-9, "area")
      local function part(from, to) return { unpack(expected, from, to) }, { unpack(labels, from, to) } end
      for name, range in pairs { few = { 1, 6 }, many = { 7, 10 } } do
        check.equal(result.by_group[name].rows, range[2] - range[1] + 1)
        check.near(result.by_group[name].pearson, metrics.pearson(part(unpack(range))), 1e-4, "pearson of a group")
      end
      check.equal(result.distinct_texts, evaluate.distinct_texts(set, { "current_line", "context" }, prefixes))
      model:free()
    end
    set:close()
  end, row)
end)

test("a loss that is not a number ends the run at its step", function()
  with_trainer(function(train)
    local function times(value)
      return { name = "mine", compute = function(columns)
        local n = columns[1]:elements()
        return ops.scale(ops.mse(columns[1]:view { n }, columns[2]:view { n }), value)
      end }
    end
    for _, case in ipairs { { 0 / 0, "not a number" }, { math.huge, "inf" } } do
      local text = check.raises(("the loss 'mine' is %s at step 1"):format(case[2]), train, "out", { loss = times(case[1]) })
      check.that(not text:find("--learning-rate", 1, true), text) -- a smaller one is no cure where nothing was learned yet
    end
    local said = check.raises("is not a number at step 2", train, "out", { epochs = 1, loss = (function()
      local n = 0
      return function(columns, labels)
        n = n + 1
        return ops.scale(ops.mse(ops.row_dot(columns[1], columns[2]), labels), n == 2 and 0 / 0 or 1)
      end
    end)() })
    check.that(said:find("--learning-rate", 1, true), said)
  end)
end)

test("an evaluation of a model that has diverged says so", function()
  with_trainer(function(train, folder)
    check.raises(("the embeddings of row 1 of %s are not numbers: the model has diverged"):format(fs.join(folder,
      "data/validation.jsonl")), train, "out", { learning_rate = 1e38, max_steps = 1 })
  end)
end)

test("a loss that can teach nothing ends the run before its first step is done, in whole batches and in parts", function()
  local recompute = require "lorarun.train.recompute"
  local new = recompute.new
  with_trainer(function(train)
    for _, parts in ipairs { false, true } do
      if parts then
        function recompute.new(...)
          local plan = new(...)
          plan.part, plan.cached = 2, true
          return plan
        end
      end
      local ok, err = pcall(function()
        for part, compute in pairs {
          ["the loss 'mine' depends on no parameter"] = function(columns)
            return lr.no_grad(ops.mse, ops.row_dot(columns[1], columns[2]), ops.row_dot(columns[1], columns[1]))
          end,
          ["the loss 'mine' has the shape [4], expected one element"] = function(columns)
            return ops.row_dot(columns[1], columns[2])
          end,
          ["the loss 'mine' is a number, expected a tensor of one element: without :item()"] = function(columns)
            return ops.mse(ops.row_dot(columns[1], columns[2]), ops.row_dot(columns[1], columns[1])):item()
          end,
        } do
          local counted = 0
          check.raises(part, train, "out", { loss = { name = "mine", compute = compute },
            on_step = function() counted = counted + 1 end })
          check.equal(counted, 0, part)
        end
      end)
      recompute.new = new
      if not ok then error(err, 0) end
    end
  end)
end)

-- While fn runs, before(arguments) is called before each call of t[name].
local function with_look(t, name, before, fn)
  local original = t[name]
  t[name] = function(...)
    before(...)
    return original(...)
  end
  local ok, err = pcall(fn)
  t[name] = original
  if not ok then error(err, 0) end
end

test("the ranks wait again for each thing that rank 0 does at the end, so each has the whole timeout", function()
  with_trainer(function(train)
    local section, seen = 0, {}
    local function note() seen[#seen + 1] = section end
    with_look(comm, "on_rank_0", function() section = section + 1 end, function()
      with_look(export, "adapter", note, function()
        with_look(export, "merged", note, function()
          with_look(probes, "demand", note, function() train("out", { max_steps = 1 }) end)
        end)
      end)
    end)
    check.equal(#seen, 4, "adapter, merged, and both checked")
    for i = 2, 4 do check.that(seen[i] > seen[i - 1], ("%d and %d are waited for together"):format(i - 1, i)) end
  end)
end)

test("ranks that are started again do not need disk space again for checkpoints that exist", function()
  with_trainer(function(train)
    local getenv, asked = os.getenv, {}
    with_look(preflight, "must_have_room", function(_, _, others) asked[#asked + 1] = others end, function()
      train("out", { max_steps = 3, evaluation_steps = 1 })
      os.getenv = function(name) return name == "LORARUN_GENERATION" and "1" or getenv(name) end -- luacheck: ignore
      local ok, err = pcall(train, "out", { max_steps = 3, evaluation_steps = 1 })
      os.getenv = getenv -- luacheck: ignore
      if not ok then error(err, 0) end
    end)
    check.that(asked[2] < asked[1], ("%d and %d bytes"):format(asked[1], asked[2]))
  end)
end)
