-- Misuse of the API: every function that takes a table of options refuses an unknown option and names it; every method says what to
-- do if it was called with a dot; a value that is not a model, tensor or data set is named. Each error has the user's own line.
-- A new public function must be put into one of the two lists below.
local ffi = require "ffi"
local fs = require "lorarun.base.fs"
local lr = require "lorarun"
local tests = os.getenv "LORARUN_TESTS"
local shell = dofile(tests .. "/shell.lua")
local BERT = fs.join(tests, "golden", "bert")

-- Calls fn(things): a model with adapters, a data set, and other arguments for calls; all are closed after fn.
local function with_things(fn)
  shell.with_folder(function(folder)
    local path = fs.join(folder, "rows.jsonl")
    fs.write(path, '{"current_line": "a", "context": "b", "score": 1}\n{"current_line": "c", "context": "d", "score": 0}\n')
    local model = lr.load_model(BERT, { max_length = 16 })
    model:add_lora { rank = 2, targets = { "query" } }
    local set = lr.data.open(path, { columns = { { name = "current_line", kind = "text" }, { name = "context", kind = "text" },
      { name = "score", kind = "number" } } })
    local optimizer = lr.adamw(model:parameters())
    local batch = lr.data.pack(model.tokenizer, { "a" }, 16)
    local loader = lr.data.loader(set, model.tokenizer, { columns = { "context" } })
    local ok, err = pcall(fn, { model = model, set = set, optimizer = optimizer, path = path, folder = folder, batch = batch,
      loader = loader, tensor = lr.tensor.from { 1, 2 }, bar = lr.progress.new {} })
    loader:close()
    batch:close()
    optimizer:free()
    set:close()
    model:free()
    if not ok then error(err, 0) end
  end)
end

-- Functions that take options: how each is called with some. T: the things of with_things.
local TAKES_OPTIONS = {
  ["lr.args"] = function(_, o) lr.args { { "a", 1, "b", bacth = o.bacth } } end,
  ["lr.load_model"] = function(_, o) lr.load_model(BERT, o) end,
  ["lr.load_tokenizer"] = function(_, o) lr.load_tokenizer(BERT, o) end,
  ["lr.train"] = function(_, o) lr.train(o) end,
  ["lr.launch"] = function(_, o) require("lorarun.dist.settings").resolve(o) end,
  ["lr.verify"] = function(t, o) require("lorarun.cli.verify").folder(t.folder, o) end,
  ["lr.adamw"] = function(t, o) lr.adamw(t.model:parameters(), o) end,
  ["lr.data.open"] = function(t, o) lr.data.open(t.path, o) end,
  ["lr.data.open column"] = function(t, o)
    lr.data.open(t.path, { columns = { { name = "context", kind = "text", bacth = o.bacth } } })
  end,
  ["lr.data.loader"] = function(t, o) lr.data.loader(t.set, t.model.tokenizer, o) end,
  ["lr.loss.cosine_similarity"] = function(_, o) lr.loss.cosine_similarity(o) end,
  ["lr.loss.multiple_negatives_ranking"] = function(_, o) lr.loss.multiple_negatives_ranking(o) end,
  ["lr.loss.by_name"] = function(_, o) lr.loss.by_name("mnr", o) end,
  ["lr.evaluate.run"] = function(t, o) lr.evaluate.run(t.model, t.set, o) end,
  ["lr.evaluate.similarities"] = function(t, o) lr.evaluate.similarities(t.model, t.set, o) end,
  ["lr.export.merged"] = function(t, o) lr.export.merged(t.model, t.folder, o) end,
  ["lr.export.adapter"] = function(t, o) lr.export.adapter(t.model, t.folder, o) end,
  ["lr.json.encode"] = function(_, o) lr.json.encode(1, o) end,
  ["lr.bugdata.make"] = function(_, o) lr.bugdata.make(o) end,
  ["lr.bugdata.from_this_machine"] = function(_, o) lr.bugdata.from_this_machine(o) end,
  ["lr.progress.new"] = function(_, o) lr.progress.new(o) end,
  ["lr.comm.join"] = function(_, o) lr.comm.join(o) end,
  ["model:encode"] = function(t, o) t.model:encode("a", o) end,
  ["model:prompt"] = function(t, o) t.model:prompt(o) end,
  ["model:context"] = function(t, o) t.model:context(t.batch, o) end,
  ["model:add_lora"] = function(t, o) t.model:add_lora(o) end,
  ["model:save"] = function(t, o) t.model:save(t.folder, o) end,
  ["model:save_adapter"] = function(t, o) t.model:save_adapter(t.folder, o) end,
  ["tokenizer:encode"] = function(t, o) t.model.tokenizer:encode("a", o) end,
}

-- Functions without a table of options. (Their tables are lists, values, shapes of tensors, parts of a checkpoint.)
local IN_ORDER = [[
  lr.scope lr.gradients lr.no_grad lr.threads lr.tf32 lr.given lr.has_gpu lr.split lr.similarity
  lr.autograd.* lr.checkpoint.* lr.comm.* lr.evaluate.distinct_texts lr.data.pack lr.fs.* lr.hub.* lr.json.* lr.memory.*
  lr.metrics.* lr.ops.* lr.optim.adamw lr.sampler.* lr.schedule.* lr.tensor.* lr.bugdata.describe lr.bugdata.describe_skipped
  lr.export.refuse_mixture
]]

test("every function that takes options refuses an unknown option, and a value that is not a table", function()
  with_things(function(t)
    for name, call in pairs(TAKES_OPTIONS) do
      local text = check.raises("bacth", call, t, { bacth = 3 })
      check.that(text:find "^%S*tests/units/test_misuse%.lua:%d+: ", ("%s: the user's line is not named: %s"):format(name, text))
    end
    for _, name in ipairs { "lr.load_model", "lr.train", "lr.adamw", "lr.data.open", "lr.data.loader", "lr.evaluate.run",
      "model:encode", "model:add_lora", "model:save",
      "tokenizer:encode", "lr.json.encode", "lr.progress.new", "lr.loss.cosine_similarity" } do
      check.raises("takes a table of options, got 'x'", TAKES_OPTIONS[name], t, "x")
    end
  end)
end)

test("every public function is listed here, as one with options or as one without", function()
  local known = {}
  for word in IN_ORDER:gmatch "%S+" do known[word] = true end
  for name in pairs(TAKES_OPTIONS) do known[name] = true end
  local init = fs.read(fs.join(fs.dirname(tests), "lua", "lorarun", "init.lua"))
  local seen = 0
  for name in init:match("local FUNCTIONS = {\n(.-)\n}\n"):gmatch "\n?  ([%w_]+) = function" do
    check.that(known["lr." .. name], ("lr.%s is in neither list"):format(name))
    seen = seen + 1
  end
  for module in init:match("local MODULES = {(.-)}\n"):gmatch "([%w_]+) = \"" do
    local value = lr[module]
    for name, fn in pairs(type(value) == "table" and value or {}) do
      if type(fn) == "function" then
        check.that(known[("lr.%s.%s"):format(module, name)] or known[("lr.%s.*"):format(module)],
          ("lr.%s.%s is in neither list"):format(module, name))
        seen = seen + 1
      end
    end
  end
  check.that(seen > 100, "functions looked at")
end)

test("a method that is called with a dot says so, whatever the arguments", function()
  with_things(function(t)
    local objects = { model = t.model, tokenizer = t.model.tokenizer, set = t.set, optimizer = t.optimizer, tensor = t.tensor,
      batch = t.batch, loader = t.loader, ["model.lora"] = t.model.lora, bar = t.bar }
    for what, object in pairs(objects) do
      local methods = 0
      for name, method in pairs(getmetatable(object)) do
        if type(method) == "function" and name:sub(1, 2) ~= "__" then
          methods = methods + 1
          for _, given in ipairs { { "text" }, "text", false } do
            local text = check.raises("call it with a colon, ", function() method(given or nil) end)
            check.that(text:find(("%s:%s(...)"):format(what, name), 1, true), text)
            check.that(text:find "tests/units/test_misuse%.lua:%d+: ", text)
          end
        end
      end
      check.that(methods > 0, what .. " has methods")
    end
    check.raises("model.encode() was given the text 'x = 1' as the model: call it with a colon, model:encode(...)",
      t.model.encode, "x = 1")
  end)
end)

test("a value that is not a model, tensor, data set or path is named, with what to do", function()
  local freed = lr.load_model(BERT, { max_length = 16 })
  freed:free()
  freed:free() -- freeing twice does no harm
  with_things(function(t)
    local m = t.model
    for part, fn in pairs {
      ["lr.evaluate.run takes a model, got 'models/x': load it first, lr.load_model(\"models/x\")"] = function()
        lr.evaluate.run("models/x", t.set, {})
      end,
      ["lr.evaluate.run: the second argument is 'rows.jsonl', expected a data set"] = function()
        lr.evaluate.run(m, "rows.jsonl")
      end,
      ["lr.evaluate.run: columns names 3, expected the two"] = function()
        lr.evaluate.run(m, t.set, { columns = { "a", "b", "c" } })
      end,
      ["prompts: there is no column 'contxt'; did you mean 'context'?"] = function()
        lr.evaluate.run(m, t.set, { columns = { "current_line", "context" }, prompts = { contxt = { text = "q: " } } })
      end,
      ["save takes a model, got nil"] = function() lr.export.merged(nil, t.folder) end,
      ["model:encode: the model " .. BERT .. " was freed"] = function() freed:encode "x" end,
      ["model:add_lora: the model"] = function() freed:add_lora { targets = "all-linear" } end,
      ["lr.train takes a model, got 'base': load it first"] = function() lr.train { model = "base", data = "d", output = "o" } end,
      ["lr.train: the model"] = function() lr.train { model = freed, data = "d", output = "o" } end,
      ["the model has adapters already; model.lora:free() takes them off"] = function() m:add_lora { targets = "all-linear" } end,
      ["lr.adamw takes the model:parameters() of a model with adapters, got nil: call model:add_lora first"] = function()
        lr.adamw(nil)
      end,
      ["encode() was given nil"] = function() m:encode(nil) end,
      ["encode(): text 2 is a number"] = function() m:encode { "a", 2 } end,
      ["encode(): the texts are a list without holes; this has 1 in order and another at '3'"] = function()
        local texts = { "a" }
        texts[3] = "b"
        m:encode(texts)
      end,
      ["and another at 'text'"] = function() m:encode { text = "a" } end,
      ["the learning rate is nan"] = function() t.optimizer:step(math.abs(0 / 0)) end,
      ["the learning rate is nil, expected a number"] = function() t.optimizer:step() end,
      ["x is a tensor; its values are an array as x:to_table()"] = function() lr.metrics.pearson(t.tensor, t.tensor) end,
      ["model:forward takes what model:context(batch) gives"] = function() m:forward { "text" } end,
      ["model:context takes a batch"] = function() m:context "text" end,
      ["model:context: the batch was closed"] = function()
        local batch = lr.data.pack(m.tokenizer, { "a" })
        batch:close()
        m:context(batch)
      end,
      ["data.pack: the first argument is 'x', expected a tokenizer"] = function() lr.data.pack("x", { "a" }) end,
      ["data.pack: the second argument is 'a', expected a list"] = function() lr.data.pack(m.tokenizer, "a") end,
      ["data.pack: max_length is '8'"] = function() lr.data.pack(m.tokenizer, { "a" }, "8") end,
      ["data.loader: the first argument is a table, expected a data set"] = function() lr.data.loader({}, m.tokenizer, {}) end,
      ["lr.ops.mse: argument 2 is a table, expected a tensor: lr.tensor.from makes one"] = function()
        lr.ops.mse(t.tensor, { 1, 2 })
      end,
      ["lr.ops.row_dot: argument 1 is nothing, expected a tensor"] = function() lr.ops.row_dot(nil, t.tensor) end,
      ["a tensor + a number: both must be tensors of one shape"] = function() return t.tensor + 1 end,
      ["a tensor - a table: both"] = function() return t.tensor - {} end,
      ["a tensor * a string: both"] = function() return t.tensor * "x" end,
      ["lr.similarity takes two tensors of embeddings"] = function() lr.similarity("a", "b") end,
      ["lr.scope takes a function, got a table"] = function() lr.scope {} end,
      ["lr.no_grad takes a function, got nothing"] = function() lr.no_grad(nil) end,
      ["lr.threads: the number of threads is 'x', expected a whole number"] = function() lr.threads "x" end,
      ["lr.threads: the number of threads is 1.5"] = function() lr.threads(1.5) end,
      ["lr.split takes a text and what parts it"] = function() lr.split(nil, ",") end,
      ["a shape is 3, expected a list of sizes"] = function() lr.tensor.new(3) end,
      ["size 1 of a shape is 2.5, expected a whole number"] = function() lr.tensor.new { 2.5 } end,
      ["not of nothing"] = function() lr.tensor.from(nil) end,
      ["value 2 is 0.5, expected a whole number for a tensor of i32"] = function() lr.tensor.from({ 1, 0.5 }, { 2 }, "i32") end,
      ["value 1 is x, expected a number"] = function() lr.tensor.from { "x" } end,
      ["made of C data needs a shape"] = function() lr.tensor.from(ffi.new "float[2]") end,
      ["'tensor' is f32, and was given C data that is 'double [2]'"] = function() t.tensor:write(ffi.new "double[2]") end,
      ["'tensor' has 2 elements, and was given C data of 1"] = function() t.tensor:write(ffi.new "float[1]") end,
      ["'tensor' takes C data of 2 f32, got a table"] = function() t.tensor:write { 1, 2 } end,
    } do
      local text = check.raises(part, fn)
      check.that(text:find "tests/units/test_misuse%.lua:%d+: ", text)
    end
    -- after the adapters are freed, others can be added
    m.lora:free()
    check.equal(m.lora, nil)
    m:add_lora { rank = 1, targets = { "key" } }
  end)
end)
