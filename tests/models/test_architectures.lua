-- An architecture that is not lorarun's own is one file in a folder with nothing else. The example of docs/adding-a-model.md is
-- taken from that page, and trained, saved, loaded, planned, verified and merged; its gradients are checked numerically.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local C = require "lorarun.base.c"
local call = require "lorarun.base.check"
local safetensors = require "lorarun.formats.safetensors"
local tensor = require "lorarun.tensor.tensor"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local data_files = dofile(os.getenv "LORARUN_TESTS" .. "/data.lua")
local quote = shell.quote

local tests = os.getenv "LORARUN_TESTS"
local golden = fs.join(tests, "golden")
local page = fs.read(fs.join(fs.dirname(tests), "docs", "adding-a-model.md"))
local ENCODER = page:match "```lua\n(.-)```"

local HIDDEN, INNER, WORDS, PLACES = 8, 12, 512, 32

-- Names and shapes of the tensors in a checkpoint of the page's encoder; prefix: what stands before each name.
local function encoder_tensors(prefix)
  local list = {}
  local function add(name, ...) list[#list + 1] = { prefix .. name, { ... } } end
  local function linear(name, n, k) add(name .. ".weight", n, k) add(name .. ".bias", n) end
  local function norm(name) add(name .. ".weight", HIDDEN) add(name .. ".bias", HIDDEN) end
  add("embeddings.words.weight", WORDS, HIDDEN)
  add("embeddings.positions.weight", PLACES, HIDDEN)
  for i = 0, 1 do
    local at = ("layers.%d."):format(i)
    norm(at .. "attention_norm")
    norm(at .. "mlp_norm")
    for _, name in ipairs { "q", "k", "v", "out" } do linear(at .. name, HIDDEN, HIDDEN) end
    linear(at .. "up", INNER, HIDDEN)
    linear(at .. "down", HIDDEN, INNER)
  end
  norm "final_norm"
  return list
end

-- A model folder with random weights and the tokenizer of a golden model.
local function make_model(folder, config, tensors)
  fs.make(folder)
  for _, name in ipairs { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json" } do
    fs.copy(fs.join(golden, "bert", name), fs.join(folder, name))
  end
  fs.write(fs.join(folder, "config.json"), json.encode(config))
  tensor.scope(function()
    local entries = {}
    for i, spec in ipairs(tensors) do
      local t = tensor.new(spec[2], "f32", spec[1], "cpu")
      local norm = spec[1]:find "norm.weight$"
      call(C.lr_tensor_uniform(t.handle, 3, i, norm and 0.8 or -0.5, norm and 1.2 or 0.5))
      entries[i] = { name = spec[1], dtype = "f32", shape = spec[2], tensor = t }
    end
    safetensors.write(fs.join(folder, "model.safetensors"), entries, { format = "pt" })
  end)
end

local CONFIG = { architectures = json.array { "SmallEncoderModel" }, model_type = "small-encoder", hidden_size = HIDDEN,
  num_hidden_layers = 2, num_attention_heads = 2, intermediate_size = INNER, vocab_size = WORDS, max_position_embeddings = PLACES }

local function make_data(folder)
  return data_files.make(folder, { train = 24, validation = 24 }, function(i)
    return { current_line = ("x = %d"):format(i), context = ("y = f(x, %d)\n"):format(i):rep(i % 3 + 1), score = i % 2 }
  end)
end

-- The recipe: a run of three steps, a check of gradients by central differences, and loading what was written.
local RECIPE = [[
local lr = require "lorarun"
local folder, pooling = unpack(arg)
local function load(at) return lr.load_model(at, { pooling = pooling, max_length = 24 }) end
local texts = { "x = 1", "return x + y", "a" }
local model = load(folder .. "/base")
model:add_lora { rank = 2, alpha = 4, dropout = 0.1, targets = "all-linear" }

-- The gradient of a loss, from the tape and from differences of the loss.
local function check_gradients(recompute)
  local parameters = model:parameters()
  local value, n = parameters.value, parameters.count
  local numbers = value:data()
  for i = 0, n - 1 do numbers[i] = 0.3 * math.sin(7 * i + 1) end
  value:write(numbers)
  local function loss()
    local batch = lr.data.pack(model.tokenizer, texts, 24)
    local e = model:forward(model:context(batch, { training = true, seed = 1, step = 1, recompute = recompute }))
    batch:close()
    local weights = {}
    for i = 1, e:elements() do weights[i] = math.cos(i) end
    local w = require("lorarun.tensor.tensor").from(weights, e.shape, "f32", "weights", model.device)
    return lr.ops.mse(lr.ops.row_dot(e, w), lr.tensor.zeros({ #texts }, "f32", "target", model.device))
  end
  local function at() return lr.scope(function() return lr.no_grad(loss):item() end) end
  parameters.grad:fill(0)
  lr.gradients(loss)
  local grad = parameters.grad:data()
  local worst, largest = 0, 0
  for i = 0, n - 1, 7 do
    local old, step = numbers[i], 4e-3
    numbers[i] = old + step
    value:write(numbers)
    local up = at()
    numbers[i] = old - step
    value:write(numbers)
    local down = at()
    numbers[i] = old
    worst = math.max(worst, math.abs(grad[i] - (up - down) / (2 * step)))
    largest = math.max(largest, math.abs(grad[i]))
  end
  value:write(numbers)
  parameters.grad:fill(0)
  if not (largest > 0.01 and worst < 0.02 * largest) then
    error(("gradients are as large as %g, and differ by %g from differences"):format(largest, worst))
  end
end
if os.getenv "LORARUN_TEST_GRADIENTS" then
  for recompute = 0, 2 do check_gradients(recompute) end
  print "gradients are right"
end

local before = not os.getenv "LORARUN_TEST_PLAN" and model:encode(texts):to_table()
lr.train { model = model, data = folder .. "/data", output = folder .. "/out", batch = 4, max_steps = 3, evaluation_steps = 100,
  columns = { "current_line", "context" } }
if lr.comm.rank == 0 then
  local e = model:encode(texts):to_table()
  if e[1][1] == before[1][1] then error "nothing was learned" end
  local function same(at, tolerance)
    local other = load(at)
    for i, row in ipairs(other:encode(texts):to_table()) do
      for k, x in ipairs(row) do
        if not (math.abs(x - e[i][k]) <= tolerance) then error(at .. " gives another embedding") end
      end
    end
    other:free()
  end
  model:save_adapter(folder .. "/adapter")
  model:save(folder .. "/merged")
  same(folder .. "/adapter", 1e-6)
  same(folder .. "/merged", 1e-4)
  print "the same again"
end
]]

-- Calls fn(work, file). work: a folder with a model, data and a recipe; file: the architecture beside these.
local function with_encoder(fn, prefix)
  shell.with_folder(function(work)
    make_model(fs.join(work, "base"), CONFIG, encoder_tensors(prefix or ""))
    make_data(fs.join(work, "data"))
    fs.make(fs.join(work, "models"))
    local file = fs.join(work, "models", "small_encoder.lua")
    fs.write(file, ENCODER)
    fs.write(fs.join(work, "recipe.lua"), RECIPE)
    fn(work, file)
  end)
end

local function expect(r, status, part)
  check.equal(r.status, status, "status, with\n" .. r.out .. r.err)
  check.that(not part or (r.out .. r.err):find(part, 1, true), ("'%s' is not in\n%s%s"):format(part or "", r.out, r.err))
  return r
end

-- words: those in front of the recipe. Gradients are checked if one process trains.
local function run(work, words, pooling)
  local told = words == "" and "LORARUN_TEST_GRADIENTS=1 " or words:find "^plan" and "LORARUN_TEST_PLAN=1 " or ""
  return shell.run((told .. "$L %s %s/recipe.lua %s %s"):format(words, quote(work), quote(work), pooling or "mean"))
end

test("the page's architecture, beside the recipe: gradients, training, saving, loading, verifying, planning", function()
  with_encoder(function(work)
    local r = expect(run(work, "", "mean"), 0, "gradients are right")
    check.that(r.out:find("the same again", 1, true), r.out)
    local cd = "cd " .. quote(work) .. " && "
    expect(shell.run(cd .. "$L verify adapter merged"), 0, "the same")
    expect(shell.run(cd .. [[echo 'print(lr.load_model("adapter"))' | $L -]]), 0, "LoRA rank 2")
    local planned = expect(run(work, "plan --gpu-memory 8GB"), 0, "small-encoder")
    check.that(planned.out:find("2 layers", 1, true), planned.out)
  end, "encoder.")
end)

test("pooling of one token, and two ranks", function()
  with_encoder(function(work)
    expect(run(work, "", "last"), 0, "the same again")
    fs.remove(fs.join(work, "out"))
    fs.remove(fs.join(work, "adapter"))
    fs.remove(fs.join(work, "merged"))
    expect(run(work, "--num-processes 2", "cls"), 0, "the same again")
  end)
end)

test("LORARUN_LUA_PATH may name a folder with only this file, and replaces lorarun's own", function()
  with_encoder(function(work, file)
    local load = quote(("print(lr.load_model(%q, { pooling = 'mean' }))"):format(fs.join(work, "base")))
    for _, place in ipairs { "models", "lorarun/models" } do
      local other = fs.join(work, "elsewhere")
      fs.make(fs.join(other, place))
      fs.rename(file, fs.join(other, place, "small_encoder.lua"))
      expect(shell.run("$L -e " .. load), 1, "model_type 'small-encoder' is not supported; lorarun has bert and qwen2")
      expect(shell.run(("LORARUN_LUA_PATH=%s $L -e %s"):format(quote(other), load)), 0, "small-encoder, 2 layers, dimension 8")
      fs.rename(fs.join(other, place, "small_encoder.lua"), file)
      fs.remove(other)
    end
    fs.make(fs.join(work, "own", "lorarun", "models"))
    fs.write(fs.join(work, "own", "lorarun", "models", "bert.lua"), "error 'this bert'")
    expect(shell.run(("LORARUN_LUA_PATH=%s $L -e %s"):format(quote(fs.join(work, "own")),
      quote(("lr.load_model(%q)"):format(fs.join(golden, "bert"))))), 1, "this bert")
  end)
end)

test("lorarun's own come first, with a warning; its other modules are no architectures", function()
  with_encoder(function(work, file)
    fs.write(fs.join(work, "models", "bert.lua"), "error 'not this one'")
    local cd = "cd " .. quote(work) .. " && "
    local r = expect(shell.run(cd .. "$L -e " .. quote(("print(lr.load_model(%q))"):format(fs.join(golden, "bert")))), 0, "bert")
    check.that(r.err:find("models/bert.lua is not used: lorarun has an architecture 'bert' itself", 1, true), r.err)
    for _, name in ipairs { "lora", "nn", "model", "weights", "architectures", "lora-linear" } do
      local config = fs.join(work, "base", "config.json")
      fs.write(config, json.encode { model_type = name })
      expect(shell.run(cd .. "$L -e 'lr.load_model \"base\"'"), 1, ("model_type '%s' is not supported"):format(name))
    end
    -- but a file of that name beside the recipe is one
    fs.rename(file, fs.join(work, "models", "lora.lua"))
    CONFIG.model_type = "lora"
    fs.write(fs.join(work, "base", "config.json"), json.encode(CONFIG))
    CONFIG.model_type = "small-encoder"
    expect(shell.run(cd .. "$L -e 'print(lr.load_model(\"base\", { pooling = \"cls\" }))'"), 0, "lora, 2 layers")
  end)
end)

test("a file that does not describe an architecture is an error with the file and the field", function()
  with_encoder(function(work, file)
    local function broken(text, part)
      fs.write(file, text)
      local r = expect(shell.run("cd " .. quote(work) .. " && $L -e 'lr.load_model(\"base\", { pooling = \"mean\" })'"), 1, part)
      check.that(r.err:find("small_encoder.lua", 1, true), r.err)
    end
    local function without(from, to, part)
      local first, last = ENCODER:find(from, 1, true)
      broken(ENCODER:sub(1, first - 1) .. to .. ENCODER:sub(last + 1), part)
    end
    broken("return 7", "is no architecture: it returns a number")
    broken("", "is no architecture: it returns nothing")
    broken("return {", "is no architecture: ")
    broken("return { }", "'architectures' is missing, expected a set of class names")
    without("  probe = \"embeddings.words.weight\",", "", "'probe' is missing, expected the name of a tensor")
    without("prefixes = { \"\", \"encoder.\" }", "prefixes = \"encoder\"", "'prefixes' is 'encoder', expected a list of texts")
    without("{ SmallEncoderModel = true }", "{ \"SmallEncoderModel\" }", "'architectures' is another table, expected a set")
    without("attention = {", "max_length = 7, attention = {", "'max_length' is a number, expected a function")
    without("positions = config:integer \"max_position_embeddings\",", "", "configure() makes 'positions' nothing")
    without("c.kv_heads, c.head_dim = c.heads", "c.head_dim = c.heads", "configure() makes 'kv_heads' nothing")
    without("return model\nend", "end", "build() returns nil, expected a table")
    without("    layer.up = source.linear(at .. \"up\", c.hidden, { part(\"up\", c.intermediate) }, layer.mlp_norm)",
      "    layer.up = source.linear(at .. \"up\", c.hidden, { part(\"up\", c.intermediate) }, layer.attention_norm)",
      "the norm before 'layers.0.up' feeds 'layers.0.qkv' already")
    fs.write(file, (ENCODER:gsub("return nn.layers", "local _ = nn.layers")))
    expect(shell.run("cd " .. quote(work) .. " && $L -e 'lr.load_model(\"base\", { pooling = \"mean\" }):encode \"x\"'"), 1,
      "models/small_encoder.lua: forward() gives nil, expected hidden states [3, 8]")
  end)
end)

test("code in a model's own folder is not run, unless LORARUN_LUA_PATH names it", function()
  with_encoder(function(work, file)
    fs.make(fs.join(work, "base", "models"))
    fs.rename(file, fs.join(work, "base", "models", "small_encoder.lua"))
    local code = "cd " .. quote(fs.join(work, "base")) .. " && %s $L -e 'print(lr.load_model(\".\", { pooling = \"mean\" }))'"
    expect(shell.run(code:format ""), 1, "lies in the model's folder")
    expect(shell.run(code:format "LORARUN_LUA_PATH=."), 0, "small-encoder")
  end)
end)

-- Without attention and a stack of layers, so without the optional fields.
local BAG = [[
local nn, ops = require "lorarun.models.nn", require "lorarun.tensor.ops"
local bag = { architectures = {}, prefixes = { "" }, probe = "words" }
function bag.configure(config)
  return { hidden = config:integer "width", layers = 1, vocabulary = config:integer "words", positions = 4096 }
end
function bag.build(c, source)
  local norm = source.norm("norm", c.hidden, 1e-6)
  return { words = source.table("words", c.vocabulary, c.hidden), norm = norm,
    mix = source.linear("mix", c.hidden, { { name = "mix", out = c.hidden } }, norm) }
end
function bag.forward(model, ctx)
  local stream = nn.stream(ops.embedding(model.words, ctx.ids))
  local y = stream:norm(model.norm)
  stream:add(y, model.mix, ctx)
  local x = stream:sum()
  if not ctx.pooled then return x end
  local rows = ops.gather_rows(x, ctx.pooled.rows)
  x:release()
  return rows
end
return bag
]]

test("an architecture with the required fields alone, of one layer without attention", function()
  shell.with_folder(function(work)
    make_model(fs.join(work, "base"), { model_type = "bag", width = HIDDEN, words = WORDS },
      { { "words", { WORDS, HIDDEN } }, { "norm.weight", { HIDDEN } }, { "mix.weight", { HIDDEN, HIDDEN } } })
    make_data(fs.join(work, "data"))
    fs.make(fs.join(work, "models"))
    fs.write(fs.join(work, "models", "bag.lua"), BAG)
    fs.write(fs.join(work, "recipe.lua"), RECIPE)
    for _, pooling in ipairs { "mean", "last" } do
      local r = expect(run(work, "", pooling), 0, "gradients are right")
      check.that(r.out:find("the same again", 1, true), r.out)
      expect(run(work, "plan", pooling), 0, "bag")
      for _, name in ipairs { "out", "adapter", "merged" } do fs.remove(fs.join(work, name)) end
    end
  end)
end)
