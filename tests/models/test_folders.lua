-- What a model folder means: the variants of tests/golden/folders.json give sentence-transformers' numbers, and a setting that
-- cannot be computed is one error that names the file and the key, whatever its value.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local safetensors = require "lorarun.formats.safetensors"
local tensor = require "lorarun.tensor.tensor"
local load_model = require("lorarun.models.model").load
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local with_folder = shell.with_folder

local golden = fs.join(os.getenv "LORARUN_TESTS", "golden")
local numbers = json.decode_file(fs.join(golden, "folders.json"))
local FILES = { "config.json", "model.safetensors", "modules.json", "tokenizer.json", "tokenizer_config.json",
  "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json" }
local GONE = "-" -- as in make_folders.py

-- As fs.write, but without waiting for the disk: these folders are many and short-lived.
local function write(path, text)
  local file = assert(io.open(path, "w"))
  file:write(text)
  file:close()
end

-- A golden model's folder, with keys of its files changed as make_folders.py does it.
local function make(folder, base, edits)
  for _, name in ipairs(FILES) do
    fs.make(fs.dirname(fs.join(folder, name)))
    write(fs.join(folder, name), fs.read(fs.join(golden, base, name)))
  end
  for name, keys in pairs(edits or {}) do
    local path = fs.join(folder, name)
    fs.make(fs.dirname(path))
    if keys == GONE then fs.remove(path)
    elseif type(keys) == "string" then write(path, keys)
    elseif keys["="] then write(path, json.encode(keys["="]))
    else
      local content = json.decode_file(path)
      for key, value in pairs(keys) do
        if value == GONE then content[key] = nil else content[key] = value end
      end
      write(path, json.encode(content))
    end
  end
  return folder
end

local function with_model(base, edits, fn, options)
  with_folder(function(folder)
    local model = load_model(make(folder, base, edits), options)
    local ok, err = xpcall(fn, debug.traceback, model, folder)
    model:free()
    if not ok then error(err, 0) end
  end)
end

for _, v in ipairs(numbers.variants) do
  test(v.name .. ", as sentence-transformers", function()
    with_model(v.base, v.edits, function(model)
      -- if the two generations differ, the meaning of the newer one counts
      local want = v["6"].error and v["5"] or v["6"]
      check.equal(want.error, nil)
      check.equal(model.max_length, v.name == "longer than its positions" and 64 or
        v.name:find "^processing_kwargs" and model.max_length or want.max, "longest sequence")
      for i, text in ipairs(numbers.texts) do
        local e = model:encode { text }
        local row = e:to_table()[1]
        e:free()
        -- compilers and instruction sets sum in different orders; pooling by the square root gives numbers above 1
        for k, x in ipairs(want.embeddings[i]) do check.near(row[k], x, 1e-5, ("text %d, number %d"):format(i, k)) end
      end
    end)
  end)
end

-- ---- refusals -------------------------------------------------------------------------------------------------------------
local null = json.null
local function config(keys) return { ["config.json"] = keys } end
local function pooling(keys)
  keys.word_embedding_dimension = 48
  return { ["1_Pooling/config.json"] = { ["="] = keys } }
end
local function transformer(keys) return { ["sentence_bert_config.json"] = { ["="] = keys } } end
local function st(keys) return { ["config_sentence_transformers.json"] = keys } end
local function modules(...)
  local rows, paths = json.array {}, { Transformer = "", Pooling = "1_Pooling" }
  for i, kind in ipairs { ... } do
    local class = kind:match "[^.]+$"
    rows[i] = { idx = i - 1, name = tostring(i - 1), path = paths[class] or "2", type = kind }
  end
  return { ["modules.json"] = { ["="] = rows } }
end
local T = "sentence_transformers.models."
local POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"

-- base, edits, parts of the message
local REFUSED = {
  { "qwen2", config { is_causal = null }, "'is_causal' is null" },
  { "qwen2", config { is_causal = 0 }, "'is_causal' is 0, expected true or false" },
  { "qwen2", config { auto_map = { AutoModel = "modeling_x.Qwen2Model" } }, "'auto_map.AutoModel' names code",
    "\"is_causal\": false" },
  { "qwen2", config { auto_map = { AutoModel = "modeling_qwen.Qwen2Model" }, is_causal = true },
    "'is_causal' contradicts the code" },
  { "qwen2", config { auto_map = { AutoConfig = "configuration_x.Config" } }, "'auto_map.AutoConfig' names code" },
  { "qwen2", config { use_bidirectional_attention = true }, "'use_bidirectional_attention' is not read" },
  { "bert", config { auto_map = { AutoModel = "x--modeling_bert.JinaBertModel" } }, "'auto_map.AutoModel' names code" },
  { "bert", config { is_causal = true }, "'is_causal' is not supported" },
  { "bert", config { is_decoder = true }, "'is_decoder' is not supported" },
  { "bert", config { position_embedding_type = "relative_key" }, "'position_embedding_type' is 'relative_key'" },
  { "bert", config { position_embedding_type = null }, "'position_embedding_type' is null" },
  { "bert", config { hidden_act = "relu" }, "'hidden_act' is 'relu'" },
  { "bert", config { pruned_heads = { ["0"] = json.array { 1 } } }, "'pruned_heads' is not supported" },
  { "bert", config { quantization_config = { quant_method = "gptq" } }, "'quantization_config'", "'gptq'" },
  { "bert", config { per_layer_config = { ["0"] = { hidden_size = 1 } } }, "'per_layer_config'" },
  { "bert", config { num_hidden_layers = 3 }, "model.safetensors: 16 of the model's tensors are missing: encoder.layer.2." },
  { "bert", config { intermediate_size = 2 ^ 32 }, "'intermediate_size' is 4294967296, expected a whole number from 1 to 1048576" },
  { "qwen2", config { num_attention_heads = 2, num_key_value_heads = 2, hidden_size = 8192 },
    "'num_attention_heads' makes heads of 4096 dimensions; attention takes up to 2048" },
  { "qwen2", config { head_dim = 4096 }, "'head_dim' makes heads of 4096 dimensions" },
  { "bert", config { num_hidden_layers = 2 ^ 31 }, "'num_hidden_layers' is 2147483648, expected a whole number from 1 to 1024" },
  { "bert", config { vocab_size = 100 }, "has shape [232, 48]; config.json makes it [100, 48]" },
  { "bert", config { vocab_size = 100 }, "'vocab_size' is 100, but the tokenizer", nil, "meta" },
  { "bert", config { model_type = GONE }, "'model_type' is missing" },
  { "qwen2", config { rope_parameters = 5 }, "'rope_parameters' is 5, expected an object" },
  { "qwen2", config { rope_scaling = { type = "linear", factor = 2 } }, "'rope_scaling.type' is 'linear'" },
  { "qwen2", config { rope_parameters = { rope_type = "yarn" } }, "'rope_parameters.rope_type' is 'yarn'" },
  { "qwen2", config { rope_parameters = { rope_theta = 5 } }, "'rope_theta' is 1000000 but 'rope_parameters.rope_theta' is 5" },
  { "qwen2", config { rope_theta = false }, "'rope_theta' is false, expected a number" },
  { "qwen2", config { use_sliding_window = true, sliding_window = false, max_window_layers = 0, layer_types = GONE },
    "'sliding_window' is false, expected a whole number" },
  { "qwen2", config { auto_map = { AutoModel = false } }, "'auto_map.AutoModel' is false, expected a text" },
  { "qwen2", config { partial_rotary_factor = 0.5 }, "'partial_rotary_factor' is not supported" },
  { "qwen2", config { use_sliding_window = true, sliding_window = 4, max_window_layers = 2, layer_types = GONE },
    "'sliding_window' is 4", "give max_length = 4" },
  { "qwen2", config { layer_types = json.array { "full_attention" } }, "'layer_types' has 1 entries for 3 layers" },
  { "qwen2", config { layer_types = json.array { "full_attention", "sliding_attention", "full_attention" } },
    "'layer_types' has sliding_attention, but there is no window" },
  { "qwen2", config { num_key_value_heads = GONE }, "'num_key_value_heads' is missing" },
  { "qwen2", { ["config.json"] = "[1]" }, "config.json: it holds a list, expected an object" },
  { "qwen2", { ["config.json"] = "" }, "config.json is empty" },
  { "qwen2", { ["config.json"] = POINTER }, "config.json is a git-lfs pointer" },
  { "qwen2", { ["config.json"] = "\239\187\191{}" }, "byte order mark" },
  { "bert", { ["modules.json"] = POINTER }, "modules.json is a git-lfs pointer" },
  { "bert", { ["tokenizer.json"] = POINTER }, "tokenizer.json is a git-lfs pointer" },
  { "bert", { ["model.safetensors"] = POINTER }, "model.safetensors is a git-lfs pointer" },
  { "bert", { ["1_Pooling/config.json"] = POINTER }, "1_Pooling/config.json is a git-lfs pointer" },
  { "bert", { ["sentence_bert_config.json"] = POINTER }, "sentence_bert_config.json is a git-lfs pointer" },
  { "bert", { ["config_sentence_transformers.json"] = POINTER }, "config_sentence_transformers.json is a git-lfs pointer" },
  { "bert", transformer { max_seq_length = "24" }, "'max_seq_length' is the text '24', expected a whole number" },
  { "bert", transformer { max_seq_length = 24, tokenizer_args = { model_max_length = 12 } }, "'max_seq_length' is 24 but" },
  { "bert", transformer { tokenizer_args = { do_lower_case = false } }, "'tokenizer_args.do_lower_case'", "tokenizer_config.json" },
  { "bert", transformer { config_args = { hidden_act = "relu" } }, "'config_args.hidden_act'", "config.json" },
  { "bert", transformer { max_seq_lenght = 24 }, "'max_seq_lenght' is unknown", "did you mean 'max_seq_length'?" },
  { "bert", transformer { processing_kwargs = { text = { add_special_tokens = false } } },
    "'processing_kwargs.text.add_special_tokens'" },
  { "bert", transformer { processing_kwargs = { text = { truncation = false } } }, "'processing_kwargs.text.truncation' is false" },
  { "bert", transformer { modality_config = { message = { method = "forward" } } }, "'modality_config.message'" },
  { "bert", transformer { modality_config = { image = { method = "forward" } } }, "'modality_config' has no 'text'" },
  { "bert", transformer { transformer_task = "fill-mask" }, "'transformer_task' is 'fill-mask'" },
  { "bert", transformer { query_length = 8 }, "'query_length' is not supported" },
  { "qwen2", transformer { do_lower_case = true }, "'do_lower_case' is true and the tokenizer does not", "Lowercase" },
  { "bert", pooling { pooling_mode_cls_token = true }, "'pooling_mode_mean_tokens' is missing" },
  { "bert", pooling { pooling_mode_cls_token = true, pooling_mode_mean_tokens = true }, "gives 2 modes (cls, mean)" },
  { "bert", pooling { pooling_mode = json.array { "cls", "mean" } }, "'pooling_mode' gives 2 modes" },
  { "bert", pooling { pooling_mode = "max" }, "'pooling_mode' asks for max pooling" },
  { "bert", pooling { pooling_mode = "last" }, "'pooling_mode' is 'last'", "lasttoken" },
  { "bert", pooling { include_prompt = false, pooling_mode = "mean" }, "'include_prompt' is false" },
  { "bert", modules(T .. "Transformer", "my_pooling.Pooling"), "modules.json: '[1].type' is 'my_pooling.Pooling'" },
  { "bert", modules(T .. "Transformer", T .. "Pooling", T .. "Dense"), "'[2].type' is 'sentence_transformers.models.Dense'" },
  { "bert", modules(T .. "Transformer", T .. "Normalize", T .. "Pooling"), "'[1].type' is Normalize before the Pooling" },
  { "bert", modules(T .. "Pooling", T .. "Transformer"), "'[0].type' is Pooling: a Transformer" },
  { "bert", modules(T .. "Transformer", T .. "Pooling", T .. "Pooling"), "'[2].type' is a second Pooling" },
  { "bert", modules(T .. "Transformer"), "modules.json: it has no Pooling" },
  { "bert", { ["modules.json"] = { ["="] = json.array {} } }, "modules.json: it has no modules" },
  { "bert", { ["modules.json"] = { ["="] = { { idx = 0, name = "0", path = "../x", type = T .. "Transformer" } } } },
    "'[0].path' is '../x'" },
  { "bert", st { model_type = "SparseEncoder" }, "'model_type' is 'SparseEncoder'" },
  { "bert", st { truncate_dim = 8 }, "'truncate_dim' is 8" },
  { "bert", st { prompts = null }, "'prompts' is null" },
  { "bert", st { prompts = { q = 3 } }, "'prompts.q' is 3, expected a text" },
  { "bert", st { default_prompt_name = "z" }, "'default_prompt_name' is 'z', which 'prompts' does not have" },
  { "bert", st { similarity_fn_name = "l7" }, "'similarity_fn_name' is 'l7'" },
}

test("what cannot be computed is refused with its file and key", function()
  for _, r in ipairs(REFUSED) do
    with_folder(function(folder)
      make(folder, r[1], r[2])
      local message = check.raises(r[3], load_model, folder, { device = r[5] })
      check.that(message:find(folder, 1, true), message .. " names no file")
      if r[4] then check.that(message:find(r[4], 1, true), message .. " lacks " .. r[4]) end
    end)
  end
end)

-- Every key of a file with a wrong value: a model that loads, or one line that names the file.
local WRONG = { null, true, -1, 0, 1.5, 3, 4096, 2 ^ 20, 2 ^ 32, 1e30, "text", json.array { 1 }, json.array { {} },
  { number = { integer = 1 } } }

local function survives(folder, path, device, what)
  local ok, result = pcall(load_model, folder, { device = device })
  if ok then
    result:free()
    return true
  end
  check.that(result:find(path, 1, true), what .. " names no file: " .. result)
  check.that(not result:find "[\n]" and not result:find "attempt to" and not result:find "bad argument", what .. ": " .. result)
end

for _, base in ipairs { "bert", "qwen2" } do
  for _, name in ipairs { "config.json", "sentence_bert_config.json", "1_Pooling/config.json", "config_sentence_transformers.json",
    "modules.json" } do
    test(("%s: whatever a key of %s holds is a model or an error of that file"):format(base, name), function()
      with_folder(function(folder)
        make(folder, base)
        local path = fs.join(folder, name)
        local content, loaded = json.decode_file(path), 0
        local object = name == "modules.json" and content[2] or content
        if name == "config.json" then
          for _, key in ipairs { "auto_map", "is_causal", "rope_parameters", "head_dim", "quantization_config", "number", "integer",
            "get", "path", "raw", "sliding_window", "pruned_heads" } do
            if object[key] == nil then object[key] = null end
          end
        end
        if name == "sentence_bert_config.json" then object.tokenizer_args, object.processing_kwargs = null, null end
        for _, key in ipairs(json.keys(object)) do
          local before = object[key]
          for _, value in ipairs(WRONG) do
            object[key] = value
            write(path, json.encode(content))
            local what = ("%s = %s"):format(key, json.encode(value))
            if survives(folder, folder, "meta", what) then loaded = loaded + 1 end
            -- sizes that are valid, but not those of this model
            if value == 3 or value == 4096 then survives(folder, folder, "cpu", what) end
          end
          object[key] = before
        end
        check.that(loaded > 0, "nothing loaded")
      end)
    end)
  end
end

-- ---- weights --------------------------------------------------------------------------------------------------------------
-- Writes the golden model's weights under other names, or in another dtype.
local function rewrite(folder, base, rename, dtype)
  local file, entries = safetensors.open(fs.join(golden, base, "model.safetensors")), {}
  for _, name in ipairs(file:names()) do
    local info, new = file:info(name), rename(name)
    if new then
      entries[#entries + 1] = { name = new, dtype = dtype or info.dtype, shape = info.shape, tensor = function()
        local t = tensor.new(info.shape, dtype == "i32" and "i32" or info.dtype, name, "cpu")
        if dtype == "i32" then t:fill(0) else file:load(name, t) end
        return t, function() t:free() end
      end }
    end
  end
  safetensors.write(fs.join(folder, "model.safetensors"), entries)
  file:close()
end

test("code of gte-Qwen2 is Qwen2 without the causal mask", function()
  local without
  with_model("qwen2", config { is_causal = false }, function(model)
    local e = model:encode(numbers.texts)
    without = e:to_table()[2]
    e:free()
  end)
  for _, name in ipairs { "modeling_qwen.Qwen2Model", "Alibaba-NLP/gte-Qwen2-1.5B-instruct--modeling_qwen.Qwen2Model" } do
    with_model("qwen2", config { auto_map = { AutoModel = name } }, function(model)
      local e = model:encode(numbers.texts)
      check.array(e:to_table()[2], without, 0)
      e:free()
    end)
  end
end)

test("code in the folder is not copied: the configuration of the saved model says what the code did", function()
  with_model("qwen2", config { auto_map = { AutoModel = "modeling_qwen.Qwen2Model" }, initializer_range = 1 },
    function(model, folder)
      local path, to = fs.join(folder, "config.json"), fs.join(folder, "saved")
      write(path, (fs.read(path):gsub("}%s*$", ', "x": [NaN, -Infinity]}')))
      model:save(to)
      local saved = json.decode_file(fs.join(to, "config.json"))
      check.equal(saved.auto_map, nil)
      check.equal(saved.is_causal, false)
      check.that(fs.read(fs.join(to, "README.md")):find("Needs transformers 5.2", 1, true), "the card says what reads it")
      check.that(fs.read(fs.join(to, "config.json")):find('"initializer_range": 1.0', 1, true), "a float is written as one")
    end)
end)

test("an infinite length of the tokenizer is no limit", function()
  with_model("bert", { ["sentence_bert_config.json"] = GONE,
    ["tokenizer_config.json"] = '{ "tokenizer_class": "BertTokenizer", "model_max_length": Infinity }' },
    function(model) check.equal(model.max_length, 64) end)
end)

test("what a folder says is what the saved one says", function()
  with_model("bert", { ["sentence_bert_config.json"] = GONE, ["tokenizer_config.json"] = { model_max_length = 16 },
    ["config_sentence_transformers.json"] = { prompts = { q = "if " }, default_prompt_name = "q", similarity_fn_name = "dot" },
    ["1_Pooling/config.json"] = { ["="] = { embedding_dimension = 48, pooling_mode = "weightedmean" } } },
    function(model, folder)
      local to = fs.join(folder, "saved")
      model:save(to)
      local again = load_model(to)
      check.equal(again.max_length, 16)
      check.equal(again.settings.similarity, "dot")
      check.equal(again.settings.default_prompt, "q")
      check.equal(again.pooling, "weighted_mean")
      local a, b = model:encode(numbers.texts), again:encode(numbers.texts)
      check.array(b:to_table()[2], a:to_table()[2], 0)
      for _, x in ipairs { a, b, again } do x:free() end
    end)
end)

local function put_adapter(folder, base)
  local from = fs.join(golden, "adapters", "qwen2_lora")
  write(fs.join(folder, "adapter_model.safetensors"), fs.read(fs.join(from, "adapter_model.safetensors")))
  local c = json.decode_file(fs.join(from, "adapter_config.json"))
  c.base_model_name_or_path = base
  write(fs.join(folder, "adapter_config.json"), json.encode(c))
end

test("an adapter beside weights is applied to them; without weights, to those of its base", function()
  local plain = load_model(fs.join(golden, "qwen2"))
  plain:load_adapter(fs.join(golden, "adapters", "qwen2_lora"))
  local e = plain:encode(numbers.texts)
  local want = e:to_table()[2]
  e:free()
  plain:free()
  with_folder(function(folder)
    make(folder, "qwen2")
    for _, base in ipairs { folder, "/nowhere/base", fs.real(fs.join(golden, "qwen2")) } do
      put_adapter(folder, base)
      if base:find "golden" then fs.remove(fs.join(folder, "model.safetensors")) end
      local model = load_model(folder)
      e = model:encode(numbers.texts)
      check.array(e:to_table()[2], want, 0, base)
      e:free()
      -- saved elsewhere, the adapter names this folder as its base; the adapter in here is then not applied too, as in transformers
      model:save_adapter(fs.join(folder, "again"))
      local again = load_model(fs.join(folder, "again"))
      e = again:encode(numbers.texts)
      check.array(e:to_table()[2], want, 0, "saved, " .. base)
      e:free()
      again:free()
      model:free()
    end
  end)
end)

test("weights with an adapter beside them use the configuration of the base that the adapter names", function()
  local base = fs.real(fs.join(golden, "qwen2"))
  for _, case in ipairs { { "causal is ", { is_causal = false } }, { "eps is ", { rms_norm_eps = 0.25 } } } do
    with_folder(function(folder)
      put_adapter(make(folder, "qwen2", { ["config.json"] = case[2] }), base)
      check.raises(case[1], load_model, folder)
      put_adapter(folder, folder)
      load_model(folder):free()
    end)
  end
end)

test("an adapter that is not beside the weights is an error that says so", function()
  with_folder(function(folder)
    local rows = { ["modules.json"] = { ["="] = json.array { { idx = 0, name = "0", path = "w", type = T .. "Transformer" },
      { idx = 1, name = "1", path = "1_Pooling", type = T .. "Pooling" } } } }
    make(folder, "qwen2", rows)
    put_adapter(folder, "x")
    check.raises("adapter_config.json: the adapter is not beside the weights", load_model, folder)
  end)
end)

test("Infinity and repeated keys are read as Python reads them", function()
  with_folder(function(folder)
    make(folder, "qwen2")
    local path = fs.join(folder, "config.json")
    write(path, (fs.read(path):gsub("}%s*$", ', "is_causal": true, "initializer_range": Infinity, "x": NaN, "is_causal": false}')))
    local model = load_model(folder)
    check.equal(model.sizes.causal, false)
    model:free()
  end)
end)

test("BERT's oldest names of weights, with a prefix", function()
  with_folder(function(folder)
    make(folder, "bert", config { architectures = json.array { "BertForPreTraining" } })
    rewrite(folder, "bert", function(name)
      return "bert." .. name:gsub("LayerNorm%.weight", "LayerNorm.gamma"):gsub("LayerNorm%.bias", "LayerNorm.beta")
    end)
    local old, new = load_model(folder), load_model(fs.join(golden, "bert"))
    check.equal(old.prefix, "bert.")
    local a, b = old:encode(numbers.texts), new:encode(numbers.texts)
    check.array(a:to_table()[2], b:to_table()[2], 0)
    old:save(fs.join(folder, "saved"))
    local again = load_model(fs.join(folder, "saved"))
    local c = again:encode(numbers.texts)
    check.array(c:to_table()[2], b:to_table()[2], 0)
    for _, x in ipairs { a, b, c, old, new, again } do x:free() end
  end)
end)

test("layers beyond num_hidden_layers of config.json are left out, with a warning", function()
  with_folder(function(folder)
    make(folder, "bert", config { num_hidden_layers = 1 })
    local r = shell.run(("$L -e 'print(lr.load_model(%q).layer_count)'"):format(folder))
    check.equal(r.out, "1\n", r.err)
    check.that(r.err:find("16 tensors of layers beyond config.json's num_hidden_layers are left out: encoder.layer.1.", 1, true),
      r.err)
    r = shell.run(("$L -e 'lr.load_model(%q)'"):format(fs.join(golden, "bert")))
    check.equal(r.err, "")
  end)
end)

test("a length beyond what can be computed is reduced, with a warning", function()
  with_folder(function(folder)
    for _, case in ipairs {
      { "bert", transformer { max_seq_length = 700 }, "64", "is 700 tokens, but " .. folder .. "/config.json has 64 positions" },
      { "qwen2", transformer { max_seq_length = 2 ^ 31 - 1 }, "65535", "lorarun takes texts of up to 65535 tokens" },
      { "qwen2", { ["sentence_bert_config.json"] = GONE, ["config.json"] = { max_position_embeddings = 2 ^ 31 - 1 },
        ["tokenizer_config.json"] = { model_max_length = 1e30 } }, "65535", "own length is 2147483647 tokens" },
    } do
      make(folder, case[1], case[2])
      local r = shell.run(("$L -e 'print(lr.load_model(%q).max_length)'"):format(folder))
      check.equal(r.out, case[3] .. "\n", r.err)
      check.that(r.err:find(case[4], 1, true), r.err)
      fs.remove(folder)
    end
    fs.make(folder)
    make(folder, "qwen2", transformer { max_seq_length = 2 ^ 31 - 1 })
    check.raises("max_length is 70000, but lorarun takes texts of up to 65535 tokens", load_model, folder, { max_length = 70000 })
  end)
end)

test("weights and tokenizer in a subfolder for the Transformer module, as the first versions wrote them", function()
  with_folder(function(folder)
    make(folder, "bert", { ["modules.json"] = { ["="] = json.array {
      { idx = 0, name = "0", path = "0_BERT", type = T .. "Transformer" },
      { idx = 1, name = "1", path = "1_Pooling", type = T .. "Pooling" } } } })
    fs.make(fs.join(folder, "0_BERT"))
    for _, name in ipairs { "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
      "sentence_bert_config.json" } do
      fs.rename(fs.join(folder, name), fs.join(folder, "0_BERT", name))
    end
    write(fs.join(folder, "0_BERT", "sentence_bert_config.json"), '{"max_seq_length": 20}')
    local model = load_model(folder)
    check.equal(model.max_length, 20)
    check.equal(model.normalize, false)
    model:save(fs.join(folder, "saved"))
    local again = load_model(fs.join(folder, "saved"))
    check.equal(again.max_length, 20)
    model:free()
    again:free()
  end)
end)

test("tensors that are missing, of another dtype or of another model are reported together", function()
  with_folder(function(folder)
    make(folder, "bert")
    rewrite(folder, "bert", function(name) return not name:find "attention.output" and name end)
    local message = check.raises("8 of the model's tensors are missing: encoder.layer.0.attention.output.dense.weight", load_model,
      folder)
    check.that(message:find("and 3 more", 1, true), message)
    rewrite(folder, "bert", function(name) return name end, "i32")
    check.raises("'embeddings.word_embeddings.weight' has dtype I32, supported are F32, BF16 and F16", load_model, folder)
    rewrite(folder, "bert", function(name) return "x." .. name end)
    check.raises("there is no tensor 'embeddings.word_embeddings.weight' (nor with prefix 'bert.')", load_model, folder)
  end)
end)

test("a saved folder has the tokenizer's class, and does to tokens what code in the original folder did", function()
  local text = "The Foo bar"
  with_model("bert", { ["tokenizer_config.json"] = GONE }, function(model, folder) -- config.json's model_type says BertTokenizer
    model:add_lora { rank = 2, targets = { "query" } }
    model:save_adapter(fs.join(folder, "adapter"), { check = false })
    check.equal(json.decode_file(fs.join(folder, "adapter", "tokenizer_config.json")).tokenizer_class, "BertTokenizer")
    local again = load_model(fs.join(folder, "adapter"))
    check.array(again.tokenizer:encode(text), model.tokenizer:encode(text))
    again:free()
  end)
  local code = { AutoTokenizer = json.array { "tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast" } }
  with_model("qwen2", { ["tokenizer_config.json"] = { auto_map = code, add_eos_token = true } }, function(model, folder)
    model:save(fs.join(folder, "saved"), { check = false })
    local written = json.decode_file(fs.join(folder, "saved", "tokenizer_config.json"))
    check.equal(written.auto_map, nil)
    check.equal(written.tokenizer_class, "Qwen2Tokenizer")
    local again = load_model(fs.join(folder, "saved"))
    local ids = again.tokenizer:encode(text)
    check.equal(again.tokenizer:token(ids[#ids]), "<|endoftext|>")
    check.array(ids, model.tokenizer:encode(text))
    again:free()
  end)
end)
