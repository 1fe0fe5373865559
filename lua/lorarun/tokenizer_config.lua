-- tokenizer_config.lua: what stands beside tokenizer.json and counts when transformers' AutoTokenizer loads a folder:
-- tokenizer_config.json, special_tokens_map.json, added_tokens.json, and config.json's model_type and tokenizer_class.
-- What follows from them is tokenizer_generations.lua's.
local check = require "lorarun.check"
local fs = require "lorarun.fs"
local json = require "lorarun.json"

local config = {}

-- An object out of one of the folder's files, as Python reads it; nil where there is no such file.
local function object(folder, name)
  local path = fs.join(folder, name)
  if not fs.is_file(path) then return nil, path end
  local values = json.decode_file(path, "python")
  if type(values) ~= "table" or json.is_array(values) then check.fail("%s: its top is not an object", path) end
  return values, path
end

-- Files' values by key, with errors that name the file and the key.
local Values = {}
Values.__index = Values

--- has(key): is the key there, be it null?
function Values:has(key) return self.raw[key] ~= nil end

--- get(key): the value, nil for null.
function Values:get(key)
  local v = self.raw[key]
  if v == json.null then return nil end
  return v
end

function Values:fail(key, fmt, ...) check.fail("%s: '%s' %s", self.path, key, fmt:format(...)) end

local function shown(v)
  if v == json.null then return "null" end
  return type(v) == "table" and (json.is_array(v) and "an array" or "an object") or ("'%s'"):format(tostring(v))
end

--- boolean(key, default): the default where the key is missing. null is an error: Python's None is no bool.
function Values:boolean(key, default)
  local v = self.raw[key]
  if v == nil then return default end
  if type(v) ~= "boolean" then self:fail(key, "is %s, expected true or false", shown(v)) end
  return v
end

--- text(key): a string, or nil where the key is missing or null.
function Values:text(key)
  local v = self:get(key)
  if v ~= nil and type(v) ~= "string" then self:fail(key, "is %s, expected a string", shown(v)) end
  return v
end

--- object(key), array(key): a table, or nil where the key is missing or null.
function Values:object(key)
  local v = self:get(key)
  if v ~= nil and (type(v) ~= "table" or json.is_array(v)) then self:fail(key, "is %s, expected an object", shown(v)) end
  return v
end
function Values:array(key)
  local v = self:get(key)
  if v ~= nil and not json.is_array(v) then self:fail(key, "is %s, expected an array", shown(v)) end
  return v
end

local function values_of(folder, name)
  local raw, path = object(folder, name)
  return raw and setmetatable({ raw = raw, path = path }, Values)
end

--- facts(folder, model_type): all that counts, or nil where nothing stands beside tokenizer.json. config and model: the Values of
--- tokenizer_config.json and config.json (empty ones where there is no such file); map and added: of special_tokens_map.json and
--- added_tokens.json, nil where there is none; model_type: that of config.json, else the argument.
function config.facts(folder, model_type)
  local function or_empty(values, name)
    return values or setmetatable({ raw = {}, path = fs.join(folder, name) }, Values)
  end
  local own, model = values_of(folder, "tokenizer_config.json"), values_of(folder, "config.json")
  if not own and not model and not model_type then return nil end
  local facts = { folder = folder, config = or_empty(own, "tokenizer_config.json"),
    model = or_empty(model, "config.json"), map = values_of(folder, "special_tokens_map.json"),
    added = values_of(folder, "added_tokens.json") }
  facts.model_type = facts.model:text "model_type" or model_type
  return facts
end

return config
