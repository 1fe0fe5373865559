-- model_config.lua: reads the JSON files of a model folder as transformers reads them, and checks what each key holds. It refuses
-- the keys of config.json with which transformers computes something else than the architecture's file in models/.
--
--   local config = model_config.read(path)
--   config:integer("hidden_size")            -- an error with file, key and value where it is missing or no such number
--   config:number("rms_norm_eps", 1e-6, 0)   -- a default for what is missing or null; the least that it may be
--
-- A key that transformers does not read changes nothing there, and nothing here.
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local sorted = require "lorarun.base.sorted"
local suggest = require "lorarun.base.suggest"

local model_config = {}
local Config = {}

-- The most that a size of a model may be: far beyond any model, and small enough that the bytes of all its weights can be counted.
local MOST = 2 ^ 20
model_config.MOST_LAYERS, model_config.MOST_TOKENS = 1024, 2 ^ 26

--- show(value): a JSON value as messages write it.
local function show(value)
  if value == json.null then return "null" end
  if json.is_array(value) then return "a list" end
  if type(value) == "table" then return "an object" end
  if type(value) == "string" then return ("the text '%s'"):format(#value > 60 and value:sub(1, 60) .. "..." or value) end
  if type(value) == "number" then return ("%.17g"):format(value) end
  return tostring(value)
end
model_config.show = show

-- A method, else the value of that key, for what needs no check: config.model_type.
function Config.__index(self, name)
  local v = Config[name]
  if v == nil then v = json.unless_null(rawget(self, "raw")[name]) end
  return v
end

local function wrap(raw, path, above)
  return setmetatable({ raw = raw, path = path, above = above or "" }, Config)
end

model_config.wrap = wrap

--- refuse(key, fmt, ...): an error of this file and key.
function Config:refuse(key, fmt, ...) check.fail("%s: '%s%s' %s", self.path, self.above, key, fmt:format(...)) end

--- given(key): the value as it is in the file, json.null included; nil where it is missing.
function Config:given(key) return self.raw[key] end

--- get(key): the value; nil where it is missing or null.
function Config:get(key) return json.unless_null(self.raw[key]) end

local function typed(self, key, default, kind, expected)
  local v = self:get(key)
  if v == nil then
    if default == nil then self:refuse(key, "is missing, expected %s", expected) end
    return default
  end
  if type(v) ~= kind then self:refuse(key, "is %s, expected %s", show(v), expected) end
  return v
end

--- number(key, default, least): a finite number; without a default it must be there.
function Config:number(key, default, least)
  local v = typed(self, key, default, "number", "a number")
  if v ~= v or v == math.huge or v == -math.huge or least and v < least then
    self:refuse(key, "is %s, expected a number%s", show(v), least and (" of at least %g"):format(least) or "")
  end
  return v
end

--- integer(key, default, least, most): a whole number from `least` (1) to `most` (2^20).
function Config:integer(key, default, least, most)
  least, most = least or 1, most or MOST
  local v = typed(self, key, default, "number", "a whole number")
  if v % 1 ~= 0 or v < least or v > most then
    self:refuse(key, "is %s, expected a whole number %s", show(v),
      most == math.huge and ("of at least %d"):format(least) or ("from %d to %.0f"):format(least, most))
  end
  return v
end

--- boolean(key, default): true or false.
function Config:boolean(key, default) return typed(self, key, default, "boolean", "true or false") end

--- text(key, default): a string.
function Config:text(key, default) return typed(self, key, default, "string", "a text") end

--- object(key): an object with the same methods, or nil where it is missing or null.
function Config:object(key)
  local v = self:get(key)
  if v == nil then return nil end
  if type(v) ~= "table" or json.is_array(v) then self:refuse(key, "is %s, expected an object", show(v)) end
  return wrap(v, self.path, self.above .. key .. ".")
end

--- list(key, kind): an array of Lua's type `kind`, or nil where it is missing or null.
function Config:list(key, kind)
  local v = self:get(key)
  if v == nil then return nil end
  if not json.is_array(v) then self:refuse(key, "is %s, expected a list", show(v)) end
  for i, item in ipairs(v) do
    if type(item) ~= kind then self:refuse(key, "has %s as element %d, expected a %s", show(item), i, kind) end
  end
  return v
end

--- keys(): in the order of the alphabet.
function Config:keys()
  return sorted.keys(self.raw)
end

--- is_empty(key): missing, null, false, or without contents: what Python takes for nothing.
function Config:is_empty(key)
  local v = self:get(key)
  return v == nil or v == false or v == "" or v == 0 or type(v) == "table" and next(v) == nil
end

--- known(keys): an error for a key that is not in the set.
function Config:known(keys)
  for _, key in ipairs(self:keys()) do
    if not keys[key] then
      self:refuse(key, "is unknown to sentence-transformers%s; remove it", suggest.did_you_mean(key, sorted.keys(keys)))
    end
  end
end

--- read_any(path): any JSON object in a file of Hugging Face's libraries, with the methods above.
function model_config.read_any(path)
  local raw = json.decode_file(path, "python")
  if not json.is_object(raw) then
    check.fail("%s: it holds %s, expected an object", path, show(raw))
  end
  return wrap(raw, path)
end

--- read(path): config.json; an error where it is missing.
function model_config.read(path)
  if not fs.is_file(path) then check.fail("%s is missing: a model folder holds config.json and model.safetensors", path) end
  return model_config.read_any(path)
end

-- ---- keys of every architecture -------------------------------------------------------------------------------------------
--- refuse_others(config): an error for keys that transformers reads for all architectures and that lorarun does not compute.
function model_config.refuse_others(config)
  for _, key in ipairs { "quantization_config", "compression_config" } do
    if not config:is_empty(key) then
      local o = type(config:get(key)) == "table" and config:get(key) or {}
      config:refuse(key, "says that the weights are quantised (%s), which is not supported; use the folder of the model before it "
        .. "was quantised", show(o.quant_method or o.format or "unknown"))
    end
  end
  if not config:is_empty "pruned_heads" then
    config:refuse("pruned_heads", "is not supported; save the pruned model without it, or use the whole one")
  end
  if not config:is_empty "per_layer_config" then
    config:refuse("per_layer_config", "is not supported: all layers here have the same sizes")
  end
end

--- code_of(config, known): the entry of `known` for the class that auto_map names for AutoModel, by its name without the repository
--- ("modeling_x.Model"); nil where auto_map names none. That class is code of the model's own, which transformers runs if it is
--- trusted; a class that `known` (may be nil) does not have is an error, since lorarun cannot know what it computes.
function model_config.code_of(config, known)
  local map = config:object "auto_map"
  if not map then return nil end
  local name = map:get "AutoModel" ~= nil and map:text "AutoModel"
  if not name then
    if map:get "AutoConfig" then
      map:refuse("AutoConfig", "names code of the model's own (%s), which lorarun does not run; where %s is the plain one of "
        .. "transformers, remove 'auto_map'", show(map:get "AutoConfig"), tostring(config:get "model_type"))
    end
    return nil
  end
  local entry = known and known[name:match("^.*%-%-(.*)$") or name]
  if not entry then
    map:refuse("AutoModel", "names code of the model's own (%s), which lorarun does not run; where it computes what transformers' "
      .. "own %s does, remove 'auto_map'%s", name, tostring(config:get "model_type"),
      known and "; where only the causal mask is missing, also write \"is_causal\": false" or "")
  end
  return entry
end

return model_config
