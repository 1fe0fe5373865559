-- tokenizer_config.lua: reads the files beside tokenizer.json that transformers' AutoTokenizer takes into account:
-- tokenizer_config.json, special_tokens_map.json, added_tokens.json, and config.json's model_type and tokenizer_class. What they
-- mean is in tokenizer_generations.lua. Values are read through model_config.lua; the functions here read them as Python passes
-- them to a tokenizer's class, where null and a missing key are different things.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local model_config = require "lorarun.formats.model_config"

local config = {}

--- boolean(values, key, default): the default if the key is missing; null is an error, since Python's None is not a bool.
function config.boolean(values, key, default)
  local v = values:given(key)
  if v == nil then return default end
  if type(v) ~= "boolean" then values:refuse(key, "is %s, expected true or false", model_config.show(v)) end
  return v
end

--- text(values, key): a string, or nil if the key is missing or null.
function config.text(values, key) return values:get(key) ~= nil and values:text(key) or nil end

--- object(values, key), array(values, key): the table in the file, or nil if the key is missing or null.
function config.object(values, key)
  local o = values:object(key)
  return o and o.raw
end
function config.array(values, key)
  local v = values:get(key)
  if v ~= nil and not json.is_array(v) then values:refuse(key, "is %s, expected a list", model_config.show(v)) end
  return v
end

--- facts(folder, model_type, tokenizer_class): the contents of these files, or nil if there is nothing to go by. config, model: the
--- values of tokenizer_config.json and config.json (empty if there is no such file); map and added: those of
--- special_tokens_map.json and added_tokens.json, or nil; model_type: that of config.json, else the argument; tokenizer_class:
--- the argument, which is the class of such a model's tokenizer if no file names one.
function config.facts(folder, model_type, tokenizer_class)
  local function read(name)
    local path = fs.join(folder, name)
    return fs.is_file(path) and model_config.read_any(path) or nil, path
  end
  local own, own_path = read "tokenizer_config.json"
  local model, model_path = read "config.json"
  if not own and not model and not model_type then return nil end
  local facts = { config = own or model_config.wrap({}, own_path), model = model or model_config.wrap({}, model_path),
    map = read "special_tokens_map.json", added = read "added_tokens.json" }
  facts.model_type = config.text(facts.model, "model_type") or model_type
  facts.tokenizer_class = tokenizer_class
  return facts
end

return config
