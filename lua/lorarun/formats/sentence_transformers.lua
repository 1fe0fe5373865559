-- sentence_transformers.lua: reads the settings of a sentence-transformers folder: its modules, pooling, normalisation, prompts and
-- longest sequence. models/export.lua writes such folders. Versions up to 5.3 and from 5.4 on write different forms; a folder that
-- both can read, but read differently, is refused.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local check = require "lorarun.base.check"
local model_config = require "lorarun.formats.model_config"

local st = {}

local function read_if_there(path) return fs.is_file(path) and model_config.read_any(path) or nil end

local function set(...)
  local s = {}
  for _, key in ipairs { ... } do s[key] = true end
  return s
end

-- ---- modules.json ---------------------------------------------------------------------------------------------------------
-- The names that modules.json may give to sentence-transformers' modules, by the packages in which versions have them. A class of
-- the same name in another package is not one of them.
local OLD, BASE, NEW = "sentence_transformers.models.", "sentence_transformers.base.modules.",
  "sentence_transformers.sentence_transformer.modules."
local KINDS = {}
local function named(class, file)
  for _, name in ipairs { OLD .. class, OLD .. class .. "." .. class, BASE .. class, BASE .. file .. "." .. class, NEW .. class,
    NEW .. file .. "." .. class } do
    KINDS[name] = class
  end
end
for class, file in pairs { Transformer = "transformer", Pooling = "pooling", Normalize = "normalize", Dropout = "dropout" } do
  named(class, file)
end

-- The modules in the order of the file, in which they run: { kind, path, entry }.
local function read_modules(path)
  local list = json.decode_file(path, "python")
  if not json.is_array(list) then check.fail("%s: it holds %s, expected a list of modules", path, model_config.show(list)) end
  local modules, names = {}, {}
  for i, raw in ipairs(list) do
    if not json.is_object(raw) then
      check.fail("%s: module %d is %s, expected an object", path, i, model_config.show(raw))
    end
    local module = model_config.wrap(raw, path, ("[%d]."):format(i - 1))
    local kind, at, name = module:text "type", module:text "path", module:text "name"
    if names[name] then module:refuse("name", "is '%s', as that of a module before it", name) end
    names[name] = true
    if at:find "^/" or ("/" .. at .. "/"):find("/../", 1, true) then
      module:refuse("path", "is '%s', which is not below the model's folder", at)
    end
    if not KINDS[kind] then
      module:refuse("type", "is '%s', which is not supported; lorarun has sentence-transformers' own Transformer, Pooling, "
        .. "Normalize and Dropout", kind)
    end
    modules[i] = { kind = KINDS[kind], path = at, entry = module }
  end
  return modules
end

-- ---- pooling --------------------------------------------------------------------------------------------------------------
-- The names of 5.4 and later, and the keys of earlier versions, with the names that lorarun has for them.
local POOLING_NAMES = { cls = "cls", mean = "mean", lasttoken = "last", max = "max", mean_sqrt_len_tokens = "mean_sqrt_len",
  weightedmean = "weighted_mean" }
local POOLING_KEYS = { { "pooling_mode_cls_token", "cls" }, { "pooling_mode_max_tokens", "max" },
  { "pooling_mode_mean_tokens", "mean" }, { "pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len" },
  { "pooling_mode_weightedmean_tokens", "weighted_mean" }, { "pooling_mode_lasttoken", "last" } }
local POOLING_KNOWN = set("word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt")
for _, entry in ipairs(POOLING_KEYS) do POOLING_KNOWN[entry[1]] = true end

-- The modes that the keys of earlier versions name.
local function modes_of_keys(config)
  local modes, given = {}, false
  for _, entry in ipairs(POOLING_KEYS) do
    if config:given(entry[1]) ~= nil then
      given = true
      if config:boolean(entry[1], false) then modes[#modes + 1] = entry[2] end
    end
  end
  if #modes == 0 then return { "mean" } end
  -- Up to 5.3 a missing key means false, except that of the mean, which means true.
  if given and config:given "pooling_mode_mean_tokens" == nil then
    config:refuse("pooling_mode_mean_tokens", "is missing: up to version 5.3 sentence-transformers then adds the mean to the other "
      .. "mode, later ones do not; write it: false, if it is not wanted")
  end
  return modes
end

local function read_pooling(path)
  local config = read_if_there(path) or check.fail("%s is missing: modules.json names a pooling layer there", path)
  config:known(POOLING_KNOWN)
  if not config:get "embedding_dimension" then config:integer "word_embedding_dimension" end
  local mode = config:get "pooling_mode"
  local modes = mode == nil and modes_of_keys(config) or type(mode) == "string" and { mode }
    or config:list("pooling_mode", "string")
  if #modes ~= 1 then
    config:refuse(mode and "pooling_mode" or "pooling_mode_*", "gives %d modes (%s); one is supported, not several, whose "
      .. "embeddings follow each other", #modes, table.concat(modes, ", "))
  end
  local name = mode and POOLING_NAMES[modes[1]] or not mode and modes[1]
  if not name then
    config:refuse("pooling_mode", "is '%s'; sentence-transformers has cls, lasttoken, max, mean, mean_sqrt_len_tokens and "
      .. "weightedmean", modes[1])
  end
  if name == "max" then
    config:refuse(mode and "pooling_mode" or "pooling_mode_max_tokens", "asks for max pooling, which is not supported")
  end
  if not config:boolean("include_prompt", true) then
    config:refuse("include_prompt", "is false, which is not supported: the prompt's tokens would be left out of the pooling. "
      .. "Where no prompt is used, true is the same")
  end
  return name
end

-- ---- the Transformer module -----------------------------------------------------------------------------------------------
local TRANSFORMER_FILES = { "sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json",
  "sentence_camembert_config.json", "sentence_albert_config.json", "sentence_xlm-roberta_config.json",
  "sentence_xlnet_config.json" }
local TRANSFORMER_KNOWN = set("max_seq_length", "do_lower_case", "model_args", "model_kwargs", "tokenizer_args", "processor_kwargs",
  "config_args", "config_kwargs", "cache_dir", "tokenizer_name_or_path", "backend", "transformer_task", "modality_config",
  "module_output_name", "processing_kwargs", "unpad_inputs", "query_length", "document_length", "query_expansion")
-- Arguments of AutoModel that change no embedding.
local HARMLESS_MODEL = set("attn_implementation", "torch_dtype", "dtype", "add_pooling_layer", "trust_remote_code", "device_map",
  "low_cpu_mem_usage", "use_safetensors", "use_cache")
local HARMLESS_TOKENIZER = set("model_max_length", "padding_side", "use_fast", "trust_remote_code", "clean_up_tokenization_spaces",
  "padding")
local PADDING = set("padding", "return_tensors", "pad_to_multiple_of", "return_attention_mask", "padding_side", "max_length",
  "truncation", "return_token_type_ids", "verbose")

local function refuse_but(o, harmless, remedy)
  for _, key in ipairs(o and o:keys() or {}) do
    if not harmless[key] then o:refuse(key, "is not supported%s", remedy) end
  end
end

-- A length in tokens, or nil.
local function length(o, key) return o:get(key) ~= nil and o:integer(key, nil, 1, 2 ^ 31 - 1) or nil end

-- The length that the arguments of each tokenizer call name (5.4 and later), or nil.
local function read_call(config)
  local call, longest = config:object "processing_kwargs", nil
  if not call then return nil end
  for _, key in ipairs { "text", "common" } do -- the second counts where both have a key
    local o = call:object(key)
    refuse_but(o, PADDING, "")
    if o then
      local cut = o:get "truncation"
      if cut ~= nil and cut ~= true and cut ~= "longest_first" and cut ~= "only_first" then
        o:refuse("truncation", "is %s: texts that are not cut to a length are not supported", model_config.show(cut))
      end
      longest = length(o, "max_length") or longest
    end
  end
  if not call:is_empty "chat_template" then call:refuse("chat_template", "is not supported: texts are encoded as they are") end
  return longest
end

-- Refuse settings under which the module does not embed texts as they are.
local function check_task(config)
  local task = config:text("transformer_task", "feature-extraction")
  if task ~= "feature-extraction" then
    config:refuse("transformer_task", "is '%s', only feature-extraction gives embeddings", task)
  end
  local modalities = config:object "modality_config"
  for _, key in ipairs(modalities and modalities:keys() or {}) do
    local how = key == "text" and modalities:object "text"
    if key == "message" then
      modalities:refuse(key, "says that texts go through a chat template, which is not supported")
    elseif how and (how:text "method" ~= "forward" or how:text "method_output_name" ~= "last_hidden_state") then
      how:refuse("method_output_name", "is '%s' of '%s'; only last_hidden_state of forward is supported",
        how:text "method_output_name", how:text "method")
    end
  end
  if modalities and not modalities:object "text" then
    config:refuse("modality_config", "has no 'text': the model takes no texts")
  end
  local output = config:text("module_output_name", "token_embeddings")
  if output ~= "token_embeddings" then
    config:refuse("module_output_name", "is '%s', only token_embeddings is supported", output)
  end
  for _, key in ipairs { "query_length", "document_length", "query_expansion", "tokenizer_name_or_path" } do
    if config:get(key) ~= nil then config:refuse(key, "is not supported: every text is encoded alike; remove it") end
  end
end

-- settings.max_length, in tokens (nil: what tokenizer_config.json says), and settings.lower.
local function read_transformer(settings, folder)
  local config
  for _, name in ipairs(TRANSFORMER_FILES) do -- the first that has a key
    config = read_if_there(fs.join(folder, name))
    if config and #config:keys() > 0 then break end
  end
  if not config then return end
  config:known(TRANSFORMER_KNOWN)
  check_task(config)
  local longest, of_tokenizer = length(config, "max_seq_length"), nil
  for _, key in ipairs { "tokenizer_args", "processor_kwargs" } do
    local o = config:object(key)
    refuse_but(o, HARMLESS_TOKENIZER, "; write it into tokenizer_config.json")
    of_tokenizer = o and length(o, "model_max_length") or of_tokenizer
  end
  if longest and of_tokenizer and longest ~= of_tokenizer then
    config:refuse("max_seq_length", "is %d but its tokenizer arguments' model_max_length is %d; versions of sentence-transformers "
      .. "differ in which counts: make them the same", longest, of_tokenizer)
  end
  for _, key in ipairs { "model_args", "model_kwargs" } do refuse_but(config:object(key), HARMLESS_MODEL, "") end
  for _, key in ipairs { "config_args", "config_kwargs" } do
    refuse_but(config:object(key), HARMLESS_MODEL, "; write it into config.json")
  end
  settings.max_length = read_call(config) or longest or of_tokenizer
  settings.lower = config:boolean("do_lower_case", false) and config or nil
end

--- tokenizer_length(folder): the longest sequence by tokenizer_config.json, in tokens, or nil where it names none.
function st.tokenizer_length(folder)
  local config = read_if_there(fs.join(folder, "tokenizer_config.json"))
  if not config then return nil end
  local key = config:get "model_max_length" ~= nil and "model_max_length" or "max_len" -- its old name
  if config:get(key) == nil then return nil end
  if config:get(key) == math.huge then return 2 ^ 31 - 1 end
  return math.min(config:integer(key, nil, 1, math.huge), 2 ^ 31 - 1) -- transformers writes 1e30 for none
end

-- ---- prompts and the rest -------------------------------------------------------------------------------------------------
local SIMILARITIES = set("cosine", "dot", "euclidean", "manhattan")

local function read_config(settings, path)
  local config = read_if_there(path)
  if not config then return end
  if config:given "model_type" == json.null then config:refuse("model_type", "is null, expected \"SentenceTransformer\"") end
  local kind = config:text("model_type", "SentenceTransformer")
  if kind ~= "SentenceTransformer" then
    config:refuse("model_type", "is '%s': the folder is no model that gives one embedding for each text", kind)
  end
  if config:given "prompts" == json.null then config:refuse("prompts", "is null, expected an object; {} for none") end
  local prompts = config:object "prompts"
  for _, name in ipairs(prompts and prompts:keys() or {}) do settings.prompts[name] = prompts:text(name, "") end
  local default = config:get "default_prompt_name" ~= nil and config:text "default_prompt_name" or nil
  -- Every model of sentence-transformers has the prompts query and document; they are empty where the folder has none.
  if default and not settings.prompts[default] and default ~= "query" and default ~= "document" then
    config:refuse("default_prompt_name", "is '%s', which 'prompts' does not have", default)
  end
  settings.default_prompt = settings.prompts[default] and default or nil
  settings.similarity = config:text("similarity_fn_name", "cosine")
  if not SIMILARITIES[settings.similarity] then
    config:refuse("similarity_fn_name", "is '%s'; there are cosine, dot, euclidean and manhattan", settings.similarity)
  end
  if config:get "truncate_dim" ~= nil then
    config:refuse("truncate_dim", "is %s: embeddings of fewer dimensions than the model's are not supported; remove it for all of "
      .. "them", model_config.show(config:get "truncate_dim"))
  end
end

-- Normalize must read and write the embedding.
local function check_normalize(folder)
  local config = read_if_there(fs.join(folder, "config.json"))
  for _, key in ipairs { "module_input_name", "module_output_name" } do
    local name = config and config:text(key, "sentence_embedding")
    if config and name ~= "sentence_embedding" then config:refuse(key, "is '%s', only sentence_embedding is supported", name) end
  end
end

--- read(folder): { pooling = mode or nil, normalize = boolean, prompts = { name = text }, default_prompt = name or nil,
---   max_length = tokens or nil, lower = the file that asks for lower case, or nil, similarity = name, transformer = path of the
---   weights below the folder, modules = boolean: whether there is a modules.json }
function st.read(folder)
  local settings = { prompts = {}, normalize = false, modules = false, transformer = "", similarity = "cosine" }
  local path = fs.join(folder, "modules.json")
  if fs.is_file(path) then
    settings.modules = true
    local modules = read_modules(path)
    if not modules[1] then check.fail("%s: it has no modules", path) end
    for i, module in ipairs(modules) do
      local kind, at = module.kind, fs.join(folder, module.path)
      if (kind == "Transformer") ~= (i == 1) then
        module.entry:refuse("type", "is %s: a Transformer, and it alone, comes first", kind)
      elseif kind == "Transformer" then settings.transformer = module.path
      elseif kind == "Pooling" then
        if settings.pooling then module.entry:refuse("type", "is a second Pooling; one is supported") end
        settings.pooling = read_pooling(fs.join(at, "config.json"))
      elseif not settings.pooling then
        module.entry:refuse("type", "is %s before the Pooling: there is no embedding yet that it could change", kind)
      elseif kind == "Normalize" then
        check_normalize(at)
        settings.normalize = true
      end -- Dropout changes nothing outside of training
    end
    if not settings.pooling then check.fail("%s: it has no Pooling, without which there is no embedding of a text", path) end
  end
  read_transformer(settings, fs.join(folder, settings.transformer))
  read_config(settings, fs.join(folder, "config_sentence_transformers.json"))
  return settings
end

return st
