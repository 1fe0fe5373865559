-- export.lua: write what others load: a sentence-transformers folder with merged weights, and one with the PEFT adapter.
-- Tokenizer, prompts and pooling are the base folder's.
local C = require "lorarun.base.c"
local adapter_folder = require "lorarun.formats.adapter_folder"
local check = require "lorarun.base.check"
local class = require "lorarun.models.class"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local lora = require "lorarun.models.lora"
local hub = require "lorarun.formats.hub"
local kinds = require "lorarun.base.options"
local probes = require "lorarun.models.probes"
local safetensors = require "lorarun.formats.safetensors"
local say = require "lorarun.base.say"
local tensor = require "lorarun.tensor.tensor"
local using = require "lorarun.base.using"

local export = {}

-- Files of a tokenizer, whichever of them a folder has.
local TOKENIZER = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
  "added_tokens.json", "chat_template.jinja" }

local function copy_if_there(from, to, name)
  local source = fs.join(from, name)
  if fs.is_file(source) then fs.copy(source, fs.join(to, name)) end
end

local POOLING_KEY = { cls = "pooling_mode_cls_token", mean = "pooling_mode_mean_tokens", last = "pooling_mode_lasttoken",
  mean_sqrt_len = "pooling_mode_mean_sqrt_len_tokens", weighted_mean = "pooling_mode_weightedmean_tokens" }

local function encode(value) return json.encode(value, { indent = 2, sort_keys = true }) .. "\n" end

-- modules.json, pooling, normalize, sentence_bert_config.json, config_sentence_transformers.json, tokenizer: version 5's form,
-- which version 6 reads too.
local function write_settings(model, folder)
  local modules = {
    { idx = 0, name = "0", path = "", type = "sentence_transformers.models.Transformer" },
    { idx = 1, name = "1", path = "1_Pooling", type = "sentence_transformers.models.Pooling" },
  }
  if model.normalize then
    modules[3] = { idx = 2, name = "2", path = "2_Normalize", type = "sentence_transformers.models.Normalize" }
    fs.make(fs.join(folder, "2_Normalize"))
  end
  fs.write(fs.join(folder, "modules.json"), encode(json.array(modules)))
  local pooling = { word_embedding_dimension = model.dimension, pooling_mode_max_tokens = false, include_prompt = true }
  for mode, key in pairs(POOLING_KEY) do pooling[key] = mode == model.pooling end
  fs.make(fs.join(folder, "1_Pooling"))
  fs.write(fs.join(folder, "1_Pooling", "config.json"), encode(pooling))
  fs.write(fs.join(folder, "sentence_bert_config.json"), encode { max_seq_length = model.max_length, do_lower_case = false })
  local prompts = model.settings.prompts
  fs.write(fs.join(folder, "config_sentence_transformers.json"), encode {
    model_type = "SentenceTransformer", prompts = next(prompts) and prompts or { query = "", document = "" },
    default_prompt_name = model.settings.default_prompt or json.null, similarity_fn_name = model.settings.similarity,
    __version__ = { sentence_transformers = "5.2.0", lorarun = require("lorarun.base.version") },
  })
end

-- The value without what Python's json reads and JSON does not have: Infinity and NaN, which no key that counts can be.
local function finite(value)
  if type(value) == "number" and (value ~= value or math.abs(value) == math.huge) then return json.null end
  if type(value) == "table" and value ~= json.null then
    for key, v in pairs(value) do value[key] = finite(v) end
  end
  return value
end

-- The tokenizer's files as the folder has them. Where its class followed from config.json, which an adapter has not, the class is
-- written; where code of the folder's own makes the tokens, tokenizer.json says what that code does, and the code is not named.
local function write_tokenizer(model, folder)
  for _, name in ipairs(TOKENIZER) do copy_if_there(model.tokenizer_folder, folder, name) end
  local tok = model.tokenizer
  if not tok or not tok.class then return end
  local path = fs.join(folder, "tokenizer_config.json")
  local config = fs.is_file(path) and finite(json.decode_file(path, "python")) or {}
  if type(config.tokenizer_class) == "string" and not tok.own_code then return end
  config.tokenizer_class, config.auto_map = tok.class, nil
  fs.write(path, encode(config))
  if not tok.own_code then return end
  local file_path = fs.join(folder, "tokenizer.json")
  local file = json.decode_file(file_path)
  file.post_processor = tok.own_code
  fs.write(file_path, encode(file))
end

-- What the architecture wants said of it: { config = keys of config.json, note = text of the model card }.
local function exported(model) return model.arch.exported and model.arch.exported(model.sizes) or {} end

-- config.json as the base has it. Where code of the folder's own is known here, that code is not copied: the keys that the
-- architecture adds tell transformers' own class the same.
local function write_config(model, folder)
  local from, to = fs.join(model.weights_folder, "config.json"), fs.join(folder, "config.json")
  if model.config:is_empty "auto_map" then return fs.copy(from, to) end
  local config = finite(json.decode_file(from, "python"))
  config.auto_map = nil
  for key, value in pairs(exported(model).config or {}) do config[key] = value end
  for _, key in ipairs { "initializer_range", "rms_norm_eps", "layer_norm_eps" } do -- transformers 5 takes no 1 for 1.0
    if type(config[key]) == "number" then config[key] = json.float(config[key]) end
  end
  fs.write(to, encode(config))
end

local function write_card(model, folder, form, text)
  local note = exported(model).note
  local needs = note and note .. "\n" or ""
  fs.write(fs.join(folder, "README.md"), table.concat({
    "---", "tags:", "- sentence-transformers", "- sentence-similarity", "- feature-extraction",
    form == "adapter" and "- lora" or "- lorarun", "base_model: " .. model.name, "pipeline_tag: sentence-similarity",
    "library_name: sentence-transformers", "---", "",
    "# " .. (form == "adapter" and "LoRA adapter for " or "Fine-tuned from ") .. model.name, "",
    "```python", "from sentence_transformers import SentenceTransformer",
    ("model = SentenceTransformer(%s)"):format(say.python(folder)), "```", "", needs, text or "", "" }, "\n"))
end

-- The folder is whole; store probes in it, load it again and compare, unless options.check is false: see probes.lua.
local function finish(model, folder, options, coarse)
  local measured = options.probes or probes.measure(model)
  probes.write(folder, type(measured) == "function" and measured() or measured, coarse)
  if options.check == false then return nil end
  local here, why = pcall(adapter_folder.base, folder)
  if options.base and not here then -- the base is where the folder will be
    say.note("%s is written, but not checked: %s", folder, why)
    return nil
  end
  return probes.demand(model, folder)
end

-- Call fn; where it fails, remove what it wrote: half of a model that a full disk cut off might load as another model, without its
-- 1_Pooling, say. In a folder that was there before, only files with names of ours are removed.
local OURS = { "^model.*%.safetensors", "^adapter_", "^%d+_%a+$", "config.*%.json$", "^modules%.json$", "^tokenizer",
  "^special_tokens_map%.json$", "^README%.md$" }

local function is_ours(name)
  for _, pattern in ipairs(OURS) do
    if name:find(pattern) then return true end
  end
  return false
end

local function made_whole(folder, fn)
  local new, before = not fs.exists(folder), {}
  fs.make(folder)
  for _, name in ipairs(fs.list(folder)) do before[name] = true end
  local function remove_new()
    if new then return fs.remove(folder) end
    for _, name in ipairs(fs.list(folder)) do
      if not before[name] and is_ours(name) then fs.remove(fs.join(folder, name)) end
    end
  end
  return select(2, using.made(folder, remove_new, fn))
end

--- refuse_mixture(folder, form, own): an error where a folder that gets an "adapter" holds weights already, or one that gets
--- "merged" weights holds an adapter: loaded, the one would go on the other. own: the folder of the weights that the
--- adapter belongs on, beside which it may lie.
function export.refuse_mixture(folder, form, own)
  if form == "merged" then
    if fs.is_file(fs.join(folder, "adapter_config.json")) then
      check.fail("%s holds an adapter (adapter_config.json), which would be applied once more, on the merged weights, when the "
        .. "folder is loaded; choose another folder, or remove the adapter's files", folder)
    end
  elseif fs.is_directory(folder) and hub.has_weights(folder) and not (own and fs.real(own) == fs.real(folder)) then
    check.fail("%s holds weights, on which the adapter would be applied when the folder is loaded; choose another folder, or "
      .. "remove the weights", folder)
  end
end

local OPTIONS = { base = kinds.text, card = kinds.text, probes = kinds.any, check = kinds.boolean, max_bytes = kinds.whole(1) }

--- adapter(model, folder, options): adapter_config.json + adapter_model.safetensors with the sentence-transformers files around
--- them: SentenceTransformer(folder) takes the base from base_model_name_or_path. options:
---   base    what is written there; default the model's folder as an absolute path, or its Hugging Face id
---   card    text of the model card
---   probes  what probes.measure gave for the model as it is, or a function that gives it; default: of texts of lorarun's own
---   check   false: the folder is not loaded again
--- The folder is loaded again, with the base that it names, and must give the model's embeddings. Returns a line that says so, or
--- nil where that could not be checked.
function export.adapter(model, folder, options)
  class.expect(model, "save_adapter")
  options = kinds.check("save_adapter", options, OPTIONS)
  export.refuse_mixture(folder, "adapter", model.weights_folder)
  made_whole(folder, function()
    lora.write(model, folder, options.base)
    write_settings(model, folder)
    write_tokenizer(model, folder)
    write_card(model, folder, "adapter", options.card)
  end)
  return finish(model, folder, options)
end

-- Returns whether weights were rounded to fewer bits than f32 has.
local function write_merged(model, folder, options)
  local coarse = false
  local opened = safetensors.open_folder(model.weights_folder)
  using(opened, opened.close, function(file)
    local adapted = {}
    for _, m in ipairs(model.lora and model.lora.modules or {}) do adapted[model.prefix .. m.name .. ".weight"] = m end
    local entries = {}
    for _, name in ipairs(file:names()) do
      local info = file:info(name)
      coarse = coarse or adapted[name] ~= nil and info.dtype ~= "f32"
      if not info.dtype then
        check.fail("%s: tensor '%s' has dtype %s, which lorarun cannot write", file.path, name, info.dtype_name)
      end
      entries[#entries + 1] = { name = name, dtype = info.dtype, shape = info.shape, tensor = function()
        -- made when its turn comes and freed when written: a 7B model is saved in the memory of its largest matrix
        local m = adapted[name]
        local t = tensor.new(info.shape, m and "f32" or info.dtype, name, m and m.b.device or "cpu")
        file:load(name, t)
        if m then check(C.lr_op_matmul_nn(t.handle, m.b.handle, m.a.handle, m.scale, 1)) end
        return t, function() t:free() end
      end }
    end
    safetensors.write_sharded(folder, "model", entries, options.max_bytes or 5e9)
  end)
  write_config(model, folder)
  write_settings(model, folder)
  write_tokenizer(model, folder)
  write_card(model, folder, "merged", options.card)
  return coarse
end

--- merged(model, folder, options): config.json and model.safetensors with W + s B A (computed in f32, rounded once to the dtype of
--- the base file), in shards above options.max_bytes (5e9). Other options, and what is returned, as of adapter().
function export.merged(model, folder, options)
  class.expect(model, "save")
  options = kinds.check("save", options, OPTIONS)
  export.refuse_mixture(folder, "merged")
  local coarse = made_whole(folder, function() return write_merged(model, folder, options) end)
  return finish(model, folder, options, coarse)
end

return export
