-- sentence_transformers.lua: what a sentence-transformers folder says beside the weights: pooling, normalisation, prompts, the
-- longest sequence. Reading here; writing is export.lua's.
local fs = require "lorarun.fs"
local json = require "lorarun.json"
local check = require "lorarun.check"

local st = {}

local function value(x) if x == json.null then return nil end return x end

local function read_json(path) return fs.is_file(path) and json.decode(fs.read(path), path) or nil end

-- The keys of 1_Pooling/config.json (version 5) and the names of version 6, with our names.
local POOLING_KEYS = { pooling_mode_cls_token = "cls", pooling_mode_mean_tokens = "mean", pooling_mode_lasttoken = "last",
  pooling_mode_mean_sqrt_len_tokens = "mean_sqrt_len", pooling_mode_weightedmean_tokens = "weighted_mean",
  pooling_mode_max_tokens = "max" }
local POOLING_NAMES = { cls = "cls", mean = "mean", lasttoken = "last", last = "last", max = "max",
  mean_sqrt_len_tokens = "mean_sqrt_len", weightedmean = "weighted_mean" }

local function read_pooling(path)
  local config = read_json(path) or check.fail("%s is missing: modules.json names a pooling layer there", path)
  local modes = {}
  for key, name in pairs(POOLING_KEYS) do
    if config[key] == true then modes[#modes + 1] = name end
  end
  local mode = value(config.pooling_mode)
  if type(mode) == "string" then
    modes = { POOLING_NAMES[mode] or check.fail("%s: pooling_mode '%s' is not supported", path, mode) }
  end
  if #modes ~= 1 then check.fail("%s: exactly one pooling mode is supported, this has %d", path, #modes) end
  if modes[1] == "max" then check.fail("%s: max pooling is not supported", path) end
  if value(config.include_prompt) == false then
    check.fail("%s: include_prompt = false is not supported (the prompt's tokens would be left out of the pooling)", path)
  end
  return modes[1]
end

--- read(folder): { pooling = mode or nil, normalize = boolean, prompts = { name = text }, default_prompt = name or nil,
---   max_length = n or nil, lower = boolean, modules = boolean: whether there is a modules.json }
function st.read(folder)
  local settings = { prompts = {}, normalize = false, modules = false }
  local path = fs.join(folder, "modules.json")
  local modules = read_json(path)
  local transformer = ""
  if modules then
    settings.modules = true
    for _, module in ipairs(modules) do
      local kind = tostring(module.type):match("([%w_]+)$")
      local at = fs.join(folder, module.path or "")
      if kind == "Transformer" then transformer = module.path or ""
      elseif kind == "Pooling" then settings.pooling = read_pooling(fs.join(at, "config.json"))
      elseif kind == "Normalize" then settings.normalize = true
      else
        check.fail("%s: module '%s' is not supported; lorarun has Transformer, Pooling and Normalize", path, tostring(module.type))
      end
    end
  end
  settings.transformer = transformer -- where the weights are, below the folder
  local bert_path = fs.join(folder, transformer, "sentence_bert_config.json")
  local bert = read_json(bert_path)
  if bert then
    settings.max_length = value(bert.max_seq_length)
    if value(bert.do_lower_case) == true then check.fail("%s: do_lower_case = true is not supported", bert_path) end
  end
  local config = read_json(fs.join(folder, "config_sentence_transformers.json"))
  if config then
    for name, text in pairs(value(config.prompts) or {}) do settings.prompts[name] = text end
    settings.default_prompt = value(config.default_prompt_name)
  end
  return settings
end

return st
