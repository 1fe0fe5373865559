-- Adapters have PEFT's meaning: the modules, ranks and scales that an adapter_config.json gives, what is refused and how, what is
-- saved, and folders that hold nothing but an adapter. test_golden.lua compares embeddings with PEFT's; here the same adapter is
-- described by other keys, or with other values. The expected numbers are those of PEFT 0.18 and 0.21.
local fs = require "lorarun.base.fs"
local hub = require "lorarun.formats.hub"
local json = require "lorarun.base.json"
local lora = require "lorarun.models.lora"
local peft = require "lorarun.formats.peft"
local safetensors = require "lorarun.formats.safetensors"
local tensor = require "lorarun.tensor.tensor"
local checkpoint = require "lorarun.train.checkpoint"
local optim = require "lorarun.tensor.optim"
local load_model = require("lorarun.models.model").load
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local golden = fs.real(fs.join(os.getenv "LORARUN_TESTS", "golden"))
local qwen2, bert = fs.join(golden, "qwen2"), fs.join(golden, "bert")
local TEXTS = { "x = 1", "def area(width, height):\n    return width * height" }

-- Makes an adapter folder: the golden adapter `like` with `changes` to its configuration, and its tensors under the names that
-- rename(key) gives (nil: the tensor is left out).
local function make(folder, like, changes, rename)
  fs.make(folder)
  local from = fs.join(golden, "adapters", like)
  local config = json.decode_file(fs.join(from, "adapter_config.json"))
  for key, value in pairs(changes or {}) do config[key] = value end
  fs.write(fs.join(folder, "adapter_config.json"), json.encode(config))
  local file, entries, made = safetensors.open(fs.join(from, "adapter_model.safetensors")), {}, {}
  for _, key in ipairs(file:names()) do
    local name = rename == nil and key or rename(key)
    if name then
      local shape = file:info(key).shape
      local t = tensor.new(shape, "f32", key)
      file:load(key, t)
      made[#made + 1], entries[#entries + 1] = t, { name = name, dtype = "f32", shape = shape, tensor = t }
    end
  end
  file:close()
  safetensors.write(fs.join(folder, "adapter_model.safetensors"), entries, { format = "pt" })
  for _, t in ipairs(made) do t:free() end
  return folder
end

local function with_model(name, fn, options)
  local model = load_model(name, options)
  local ok, err = xpcall(fn, debug.traceback, model)
  model:free()
  if not ok then error(err, 0) end
end

local function values(model)
  local e = model:encode(TEXTS)
  local rows = e:to_table()
  e:free()
  return rows
end

local function check_same(a, b, tolerance, what)
  for i, row in ipairs(a) do check.array(row, b[i], tolerance, what or "embedding") end
end

-- name -> { rank, scale } of the model's adapters
local function modules(model)
  local t = {}
  for _, m in ipairs(model.lora.modules) do t[m.name] = { rank = m.rank, scale = m.scale } end
  return t
end

local function in_causal_lm(key) return (key:gsub("^base_model%.model%.", "base_model.model.model.")) end
local Q0, Q1, V1 = "layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"

test("of overlapping keys the first in file order counts, whatever the order is", function()
  shell.with_folder(function(folder)
    local members = { { ".*_proj", 16 }, { "layers.0.self_attn.q_proj", 64 }, { "q_proj", 2 } }
    local expected = { { 4, 4, 4 }, { 16, 0.5, 4 }, { 0.5, 0.5, 4 } } -- the list is rotated by one each time; r is 4
    for turn = 1, 3 do
      make(folder, "qwen2_lora", { alpha_pattern = json.object(members) })
      with_model(qwen2, function(model)
        model:load_adapter(folder)
        local m = modules(model)
        check.array({ m[Q0].scale, m[Q1].scale, m[V1].scale }, expected[turn], 0, "turn " .. turn)
        -- what is saved does not depend on the order: PEFT sorts keys when it saves
        model:save_adapter(fs.join(folder, "again"))
      end)
      local again = fs.join(folder, "again", "adapter_config.json")
      local sorted = json.decode_file(again)
      fs.write(again, json.encode(sorted))
      with_model(fs.join(folder, "again"), function(model)
        local m = modules(model)
        check.array({ m[Q0].scale, m[Q1].scale, m[V1].scale }, expected[turn], 0, "saved and loaded, turn " .. turn)
      end)
      members = { members[2], members[3], members[1] }
      fs.remove(fs.join(folder, "again"))
    end
  end)
end)

test("patterns and targets are those of the model that PEFT wrapped; what is saved speaks of the modules of AutoModel", function()
  shell.with_folder(function(folder)
    make(folder, "qwen2_lora", { target_modules = "model\\.layers\\.[012]\\.self_attn\\.[qkv]_proj",
      alpha_pattern = { ["^model.layers.0.*"] = 32, ["^layers.1.*"] = 2 } }, in_causal_lm)
    with_model(qwen2, function(model)
      model:load_adapter(folder)
      local m, e = modules(model), values(model)
      check.array({ m[Q0].scale, m[Q1].scale }, { 8, 2 }, 0, "scales")
      model:save_adapter(fs.join(folder, "again"), { base = qwen2 })
      local config = json.decode_file(fs.join(folder, "again", "adapter_config.json"))
      check.equal(table.concat(config.target_modules, " "), "k_proj q_proj v_proj")
      check.equal(json.encode(config.alpha_pattern),
        [[{"0\\.self_attn\\.k_proj": 32, "0\\.self_attn\\.q_proj": 32, "0\\.self_attn\\.v_proj": 32}]])
      with_model(fs.join(folder, "again"), function(other)
        check_same(values(other), e, 1e-6)
        for name, module in pairs(modules(other)) do
          check.array({ module.rank, module.scale }, { m[name].rank, m[name].scale }, 0, name)
        end
      end)
    end)
  end)
end)

test("layers_to_transform, layers_pattern and exclude_modules select as in PEFT", function()
  local function targets(config, names)
    local t = {}
    for _, name in ipairs(names) do
      if peft.is_target(config, name) then t[#t + 1] = name end
    end
    return table.concat(t, " ")
  end
  local NAMES = { "model.layers.0.q_proj", "model.layers.1.q_proj", "layers.0.q_proj", "q_proj", "my_q_proj" }
  local q = { "q_proj" }
  check.equal(targets({ target_modules = q }, NAMES), "model.layers.0.q_proj model.layers.1.q_proj layers.0.q_proj q_proj")
  check.equal(targets({ target_modules = q, layers_to_transform = 1 }, NAMES), "model.layers.1.q_proj q_proj")
  check.equal(targets({ target_modules = q, layers_to_transform = { 0 } }, NAMES), "model.layers.0.q_proj q_proj")
  check.equal(targets({ target_modules = q, layers_to_transform = {} }, NAMES),
    "model.layers.0.q_proj model.layers.1.q_proj layers.0.q_proj q_proj")
  check.equal(targets({ target_modules = q, layers_to_transform = { 0 }, layers_pattern = "layers" }, NAMES),
    "model.layers.0.q_proj layers.0.q_proj q_proj")
  check.equal(targets({ target_modules = q, layers_to_transform = { 0 }, layers_pattern = { "blocks" } }, NAMES), "q_proj")
  check.equal(targets({ target_modules = q, exclude_modules = ".*\\.0\\..*" }, NAMES), "model.layers.1.q_proj q_proj")
  check.equal(targets({ target_modules = "All-Linear", exclude_modules = { "layers.0.q_proj", "q_proj" } }, NAMES), "my_q_proj")
  check.equal(targets({ target_modules = ".*layers\\.1\\..*" }, NAMES), "model.layers.1.q_proj")
end)

test("the ends of names that tell modules apart", function()
  local ends = peft.suffixes({ "encoder.layer.0.output.dense", "encoder.layer.1.output.dense" },
    { "encoder.layer.0.attention.output.dense", "encoder.layer.0.intermediate.dense", "pooler.dense" })
  check.equal(table.concat(ends, " "), "0.output.dense 1.output.dense")
  check.equal(table.concat(peft.suffixes({ "a.q", "b.q" }, { "a.k" }), " "), "q")
end)

test("each key of PEFT's configuration with a value that matters is understood, or refused with its name", function()
  local null = json.null
  local REFUSED = { { "r", "16", "expected a whole number" }, { "r", 0, "at least 1" }, { "r", null, "is null" },
    { "r", 16, "makes it 16" }, { "rank_pattern", { q_proj = 3 }, "rank_pattern's 'q_proj'" },
    { "rank_pattern", { q_proj = "4" }, "'q_proj' is '4'" }, { "rank_pattern", json.array {}, "expected an object" },
    { "alpha_pattern", { q_proj = -1 }, "above 0" }, { "alpha_pattern", { ["q_(proj"] = 1 }, "regular expression" },
    { "alpha_pattern", { ["(?i)q_proj"] = 1 }, "start of the whole" }, { "alpha_pattern", { ["\\Qq_proj\\E"] = 1 }, "no \\Q" },
    { "lora_alpha", null, "is null" }, { "lora_alpha", "8", "above 0" }, { "lora_alpha", 0, "above 0" },
    { "lora_alpha", true, "above 0" }, { "lora_dropout", 1.5, "below 1" }, { "lora_dropout", null, "is null" },
    { "use_rslora", "true", "true or false" }, { "target_modules", null, "does not name" }, { "target_modules", { q = 1 }, "list" },
    { "target_modules", json.array { "q_proj", 1 }, "list of texts" }, { "target_modules", "[[:alpha:]]+", "classes" },
    { "target_modules", json.array { "q_proj" }, "PEFT would leave it out" }, { "target_modules", "q_proj", "leave it out" },
    { "exclude_modules", json.array { "q_proj" }, "leave it out" }, { "layers_to_transform", 0, "leave it out" },
    { "layers_to_transform", "0", "whole number" }, { "layers_pattern", "layers", "needs layers_to_transform" },
    { "peft_type", "IA3", "only LORA" }, { "peft_type", null, "only LORA" },
    { "bias", "all", "'bias' is 'all'" }, { "bias", "lora_only", "merge_and_unload" }, { "use_dora", true, "DoRA" },
    { "use_qalora", true, "not supported" }, { "lora_bias", true, "not supported" }, { "modules_to_save", json.array { "x" }, "x" },
    { "layer_replication", json.array { json.array { 0, 1 } }, "[[0, 1]]" }, { "megatron_config", { a = 1 }, "not supported" },
    { "trainable_token_indices", json.array { 3 }, "[3]" }, { "target_parameters", json.array { "w" }, "not supported" },
    { "use_bdlora", {}, "not supported" }, { "kasa_config", {}, "not supported" }, { "velora_config", {}, "not supported" },
    { "monteclora_config", { num_samples = 8 }, "not supported" }, { "alora_invocation_tokens", json.array { 1, 2 }, "aLoRA" },
    { "arrow_config", {}, "Arrow" }, { "of_the_future", 3, "does not know" }, { "of_the_future", { a = null }, "does not know" } }
  for _, name in ipairs { "pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga" } do
    REFUSED[#REFUSED + 1] = { "init_lora_weights", name, "path_initial_model_for_weight_conversion" }
  end
  for _, name in ipairs { "mica", "nothing", 1 } do REFUSED[#REFUSED + 1] = { "init_lora_weights", name, "init_lora_weights" } end
  local TAKEN = { { "kasa_config", null }, { "of_the_future", null }, { "of_the_future", {} }, { "use_dora", null },
    { "init_lora_weights", "gaussian" }, { "init_lora_weights", "eva" }, { "init_lora_weights", "orthogonal" },
    { "init_lora_weights", null }, { "loftq_config", { loftq_bits = 4 } }, { "eva_config", { rho = 2 } }, { "revision", "abc" },
    { "fan_in_fan_out", true }, { "modules_to_save", json.array {} }, { "layer_replication", json.array {} },
    { "ensure_weight_tying", true }, { "runtime_config", { a = 1 } }, { "exclude_modules", json.array { "o_proj" } },
    { "rank_pattern", null }, { "task_type", "CAUSAL_LM" }, { "layers_to_transform", json.array {} },
    { "target_modules", ".*\\.[qkv]_proj" } }
  shell.with_folder(function(folder)
    make(folder, "qwen2_lora")
    local path = fs.join(folder, "adapter_config.json")
    local plain = json.decode_file(path)
    local function with(case)
      local config = {}
      for key, value in pairs(plain) do config[key] = value end
      config[case[1]] = case[2]
      fs.write(path, json.encode(config))
    end
    with_model(qwen2, function(model)
      for _, case in ipairs(REFUSED) do
        with(case)
        local text = check.raises(case[3], lora.load, model, folder)
        check.that(text:find(case[1], 1, true) and text:find(folder, 1, true), "the error does not name file and key: " .. text)
        check.that(not model.lora, case[1] .. " left an adapter behind")
      end
      model:load_adapter(fs.join(golden, "adapters", "qwen2_lora"))
      local expected = values(model)
      for _, case in ipairs(TAKEN) do
        model.lora:free()
        model.lora = nil
        with(case)
        model:load_adapter(folder)
        check_same(values(model), expected, 0, case[1])
      end
    end)
  end)
end)

test("tensors that do not belong to a plain LoRA, and missing ones, are refused with their names", function()
  local CASES = {
    { function(key) return key:find "0.self_attn.q_proj.lora_A" and "base_model.model.embed_tokens.lora_embedding_A" or key end,
      "a LoRA on an embedding table" },
    { function(key) return (key:gsub("layers.0.self_attn.q_proj.lora_A", "layers.0.self_attn.q_proj.lora_magnitude_vector")) end,
      "DoRA" },
    { function(key) return (key:gsub("0.self_attn.q_proj.lora_B.weight", "0.self_attn.q_proj.lora_B.bias")) end, "lora_bias" },
    { function(key) return key:find "layers.0.self_attn.q_proj.lora_A" and "base_model.model.score.weight" or key end,
      "modules_to_save" },
    { function(key) return not key:find "layers.0.self_attn.q_proj.lora_A" and key or nil end, "only one of" },
    { function(key) return key:find "layers.0" and in_causal_lm(key) or key end, "modules of different models" },
    { function(key) return (key:gsub("^base_model%.model%.", "base_model.model.text.")) end, "no linear layer 'text.layers.0" },
    { function(key) return (key:gsub("q_proj.lora_(.)%.weight", "k_proj.lora_%1.default.weight")) end, "are the same tensor" },
  }
  shell.with_folder(function(folder)
    with_model(qwen2, function(model)
      for i, case in ipairs(CASES) do
        local at = make(fs.join(folder, tostring(i)), "qwen2_lora", nil, case[1])
        check.raises(case[2], lora.load, model, at)
        check.that(not model.lora, "an adapter was left behind")
      end
      -- names that contain the adapter's name, or lack the wrapper's, mean the same modules
      local function odd(key) return (key:gsub("^base_model%.model%.", ""):gsub("%.weight$", ".default.weight")) end
      model:load_adapter(make(fs.join(folder, "odd"), "qwen2_lora", nil, odd))
      local e = values(model)
      model.lora:free()
      model.lora = nil
      model:load_adapter(fs.join(golden, "adapters", "qwen2_lora"))
      check_same(values(model), e, 0)
    end)
    -- a module that the file lacks: PEFT starts it with B = 0, so it changes nothing, unless it is to start with random weights
    local function without(key) return not key:find "layers.1.self_attn.v_proj" and key or nil end
    with_model(qwen2, function(model)
      check.raises("makes random ones", lora.load, model,
        make(fs.join(folder, "random"), "qwen2_lora", { init_lora_weights = json.null }, without))
      model:load_adapter(make(fs.join(folder, "part"), "qwen2_lora", nil, without))
      check.equal(#model.lora.modules, 8, "modules")
      model:save_adapter(fs.join(folder, "saved"))
      check.equal(table.concat(json.decode_file(fs.join(folder, "saved", "adapter_config.json")).target_modules, " "),
        "0.self_attn.v_proj 2.self_attn.v_proj k_proj q_proj")
    end)
    local at = make(fs.join(folder, "bin"), "qwen2_lora")
    fs.rename(fs.join(at, "adapter_model.safetensors"), fs.join(at, "adapter_model.bin"))
    with_model(qwen2, function(model) check.raises("save_file", lora.load, model, at) end)
  end)
end)

test("add_lora: keys that overlap need an order", function()
  with_model(qwen2, function(model)
    local function add(pattern)
      return model:add_lora { rank = 4, alpha = 8, targets = { "q_proj", "v_proj" }, alpha_pattern = pattern }
    end
    check.raises("of which the first counts", add, { [".*_proj"] = 16, q_proj = 2 })
    check.raises("expected { key, value }", add, { "q_proj" })
    check.raises("above 0", add, { q_proj = "2" })
    check.raises("element 1 is a number", model.add_lora, model, { targets = { 1 } })
    check.raises("regular expression", model.add_lora, model, { targets = "q_(proj" })
    check.raises("did you mean 'alpha'", model.add_lora, model, { alpa = 1 })
    check.that(not model.lora, "an adapter was left behind")
    add { { "q_proj", 2 }, { ".*_proj", 16 } }
    local m = modules(model)
    check.array({ m[Q0].scale, m[V1].scale }, { 0.5, 4 }, 0, "scales")
  end)
end)

test("a folder with an adapter alone takes pooling, tokenizer and length from its base", function()
  shell.with_folder(function(folder)
    local expected
    with_model(qwen2, function(model)
      model:load_adapter(fs.join(golden, "adapters", "qwen2_lora"))
      expected = values(model)
      -- lorarun's checkpoints are such folders
      local optimizer = optim.adamw(model.lora.parameters, {})
      local path = checkpoint.save(fs.join(folder, "checkpoints"), { model = model, optimizer = optimizer, state = { step = 3 } })
      optimizer:free()
      with_model(path, function(other)
        check_same(values(other), expected, 1e-6)
        check.equal(other.pooling, model.pooling)
        check.equal(other.max_length, model.max_length)
      end)
    end)
    -- paths of the base: absolute, from the adapter's folder, from the current folder
    local at = fs.join(folder, "adapters", "mine")
    local function from(base, revision)
      make(at, "qwen2_lora", { base_model_name_or_path = base, revision = revision })
      return at
    end
    local tests = fs.dirname(golden)
    with_model(from(qwen2), function(model) check_same(values(model), expected, 1e-6) end)
    os.execute(("cp -r %s %s"):format(shell.quote(qwen2), shell.quote(fs.join(folder, "base"))))
    with_model(from "../../base", function(model)
      check_same(values(model), expected, 1e-6)
      check.equal(model.name, fs.real(fs.join(folder, "base")), "the base's name")
    end)
    local here = shell.run(("cd %s && $L -e 'print(lr.load_model(\"%s\").name)'"):format(shell.quote(tests), from "golden/qwen2"))
    check.equal(here.out, qwen2 .. "\n", "a base below the working directory: " .. here.err)
    fs.make(fs.join(at, "golden", "qwen2"))
    local both = shell.run(("cd %s && $L -e 'lr.load_model(\"%s\")'"):format(shell.quote(tests), from "golden/qwen2"))
    check.that(both.err:find("PEFT would take " .. qwen2, 1, true), "two folders of that name: " .. both.err)

    check.raises("no such folder", load_model, from "/nowhere/at/all")
    check.raises("neither a folder nor in the Hugging Face cache", load_model, from "some/model")
    check.raises("is missing", load_model, from(json.null))
    for _, self in ipairs { ".", at, "../mine" } do check.raises("the adapter's own folder", load_model, from(self)) end
    make(fs.join(folder, "other"), "qwen2_lora", { base_model_name_or_path = at })
    check.raises("holds an adapter itself", load_model, from "../../other") -- its base is this adapter again
    check.raises("holds an adapter itself", load_model, fs.join(folder, "other"))
    check.raises("lora_alpha", load_model, make(at, "qwen2_lora", { lora_alpha = "x" })) -- and nothing is leaked
    -- an adapter beside the base's weights counts only if the base itself is loaded
    make(fs.join(folder, "base"), "qwen2_rslora", { base_model_name_or_path = "org/any" })
    with_model(from "../../base", function(model) check_same(values(model), expected, 1e-6) end)
  end)
end)

test("keys that mean something else with sentence-transformers' names are refused in a model's folder", function()
  local CASES = { -- nil: the meaning is the same with and without the prefix
    { { alpha_pattern = { ["layers.0.self_attn.q_proj"] = 3 } } },
    { { alpha_pattern = { ["model.layers.0.self_attn.q_proj"] = 3 } }, "'alpha_pattern' means something else" },
    { { alpha_pattern = { ["^layers.1.*q_proj"] = 3 } }, "'alpha_pattern' means something else" },
    { { rank_pattern = { ["model.layers.0.self_attn.q_proj"] = 4 }, r = 4 }, "'rank_pattern' means something else" },
    { { target_modules = "model\\..*_proj" }, "'target_modules' means something else" },
  }
  shell.with_folder(function(folder)
    local base = fs.join(folder, "base")
    os.execute(("cp -r %s %s"):format(shell.quote(qwen2), shell.quote(base)))
    for i, case in ipairs(CASES) do
      local alone = make(fs.join(folder, "alone" .. i), "qwen2_lora", case[1], in_causal_lm)
      case[1].base_model_name_or_path = qwen2
      make(base, "qwen2_lora", case[1], in_causal_lm)
      local own = make(fs.join(folder, "own" .. i), "qwen2_lora", case[1], in_causal_lm)
      for _, name in ipairs { "modules.json", "1_Pooling" } do
        os.execute(("cp -r %s %s"):format(shell.quote(fs.join(qwen2, name)), shell.quote(own)))
      end
      for _, at in ipairs { base, own } do
        if case[2] then check.raises(case[2], load_model, at) else load_model(at):free() end
      end
      with_model(qwen2, function(model) model:load_adapter(alone) end) -- PEFT's meaning
    end
    -- an adapter that was written for AutoModel's names
    make(base, "qwen2_lora", { alpha_pattern = { ["^layers.1.*q_proj"] = 3 }, base_model_name_or_path = qwen2 })
    load_model(base):free()
  end)
end)

test("the base's revision is used, kept and saved", function()
  shell.with_folder(function(folder)
    local cache = hub.cache
    hub.cache = function() return folder end
    local ok, err = xpcall(function()
      local repository = fs.join(folder, "models--org--base")
      fs.make(fs.join(repository, "snapshots"))
      for id, from in pairs { aaa = bert, bbb = qwen2 } do
        os.execute(("cp -r %s %s"):format(shell.quote(from), shell.quote(fs.join(repository, "snapshots", id))))
      end
      fs.make(fs.join(repository, "refs"))
      fs.write(fs.join(repository, "refs", "main"), "aaa")
      fs.write(fs.join(repository, "refs", "v2"), "bbb")
      local at = make(fs.join(folder, "adapter"), "qwen2_lora", { base_model_name_or_path = "org/base", revision = "v2" })
      with_model(at, function(model)
        check.equal(model.config.model_type, "qwen2")
        model:save_adapter(fs.join(folder, "again"))
      end)
      local written = json.decode_file(fs.join(folder, "again", "adapter_config.json"))
      check.equal(written.base_model_name_or_path .. " " .. written.revision, "org/base v2")
      -- a name without an organization is saved with the one that the cache has
      check.equal(peft.base_path { name = "base", folder = fs.join(repository, "snapshots", "aaa") }, "org/base")
      -- main is a BERT
      check.raises("no linear layer", load_model, make(at, "qwen2_lora", { base_model_name_or_path = "org/base" }))
      check.raises("org/base", load_model, make(at, "qwen2_lora", { base_model_name_or_path = "org/base", revision = "v3" }))
    end, debug.traceback)
    hub.cache = cache
    if not ok then error(err, 0) end
  end)
end)
