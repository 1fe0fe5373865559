-- architectures.lua: which file computes a model. An architecture is one Lua file, named after config.json's model_type (with "_"
-- for "-", as in transformers). What it must have is FIELDS below; docs/adding-a-model.md tells how to write one.
--
--   architectures.find(model_type, folders)   the architecture, or nil and where it was looked for
--   architectures.sizes(architecture, config) what its configure() makes of config.json, checked
--   architectures.names()                     the names of lorarun's own
--   architectures.places()                    where users' files are looked for
--
-- In this order, the first that is there counts:
--   1. lorarun's own, models/<name>.lua; DIR/lorarun/models/<name>.lua with LORARUN_LUA_PATH=DIR, which replaces any module so
--   2. models/<name>.lua where the recipe's require would find it: beside the recipe, then in the current folder
--   3. DIR/models/<name>.lua of LORARUN_LUA_PATH
-- Other modules of models/ are no architectures, whatever a config.json says. No code is run that lies in a model's own folder.
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local say = require "lorarun.base.say"
local sorted = require "lorarun.base.sorted"

local architectures = {}

local function is_set(value)
  for name, member in pairs(value) do
    if type(name) ~= "string" or member ~= true then return false end
  end
  return true
end

local function is_list(value)
  for _, name in pairs(value) do
    if type(name) ~= "string" then return false end
  end
  return true
end

local function set(value) return type(value) == "table" and is_set(value) end
local function list(value) return type(value) == "table" and #value > 0 and is_list(value) end
local function text(value) return type(value) == "string" and value ~= "" end
local function func(value) return type(value) == "function" end

-- Field -> what it is, its test, and whether it may be left out.
local FIELDS = {
  architectures = { "a set of class names, such as { BertModel = true }", set },
  prefixes = { "a list of texts, such as { \"\", \"model.\" }", list },
  probe = { "the name of a tensor that every checkpoint has", text },
  configure = { "a function", func },
  build = { "a function", func },
  forward = { "a function", func },
  max_length = { "a function", func, true },
  prepare = { "a function", func, true },
  older_name = { "a function", func, true },
  exported = { "a function", func, true },
  attention = { "a list of names", list, true },
  peft_targets = { "a list of names", list, true },
  unused = { "a set of names, such as { [\"pooler.dense\"] = true }", set, true },
  heads = { "a set of names, such as { lm_head = true }", set, true },
  tokenizer_class = { "the name of a class", text, true },
}

local function shown(value)
  if value == nil then return "is missing" end
  return ("is %s"):format(type(value) == "string" and "'" .. value .. "'" or type(value) == "table" and "another table"
    or "a " .. type(value))
end

-- The architecture that the file `path` returned, or an error that names the file and what is wrong with it.
local function checked(value, path)
  if type(value) ~= "table" then
    check.fail("%s is no architecture: it returns %s, expected a table (docs/adding-a-model.md lists its fields)", path,
      value == nil and "nothing" or "a " .. type(value))
  end
  for field, rule in sorted(FIELDS) do
    local given = value[field]
    if not (given == nil and rule[3]) and not rule[2](given) then
      check.fail("%s is no architecture: '%s' %s, expected %s (docs/adding-a-model.md lists the fields)", path, field, shown(given),
        rule[1])
    end
  end
  value.unused, value.heads = value.unused or {}, value.heads or {}
  return value
end

-- Is it meant as one? lorarun's other modules of models/ are not.
local function looks_like_one(value)
  return type(value) == "table" and (value.configure or value.build or value.architectures) ~= nil
end

local names_inside -- name -> true of the modules lorarun.models.* in the program
local function embedded()
  if not names_inside then
    names_inside = {}
    for _, module in ipairs(require("lorarun.host").modules()) do
      local name = module:match "^lorarun%.models%.([%w_]+)$"
      if name then names_inside[name] = true end
    end
  end
  return names_inside
end

local function lua_path()
  local folder = os.getenv "LORARUN_LUA_PATH"
  return folder and folder ~= "" and folder or nil
end

-- lorarun's own, or one that replaces it.
local function own(name)
  local replaced = lua_path() and fs.join(lua_path(), "lorarun", "models", name .. ".lua")
  if replaced and not fs.is_file(replaced) then replaced = nil end
  if not replaced and not embedded()[name] then return nil end
  local value = require("lorarun.models." .. name)
  if embedded()[name] and not looks_like_one(value) then return nil end
  return checked(value, replaced or ("lorarun's models/%s.lua"):format(name))
end

-- Files of users that have this name, in the order in which they count: { path, from_variable = did LORARUN_LUA_PATH name its
-- folder? }.
local function files_of_users(name)
  local found = {}
  local path = package.searchpath("models." .. name, package.path)
  if path then found[1] = { path = path } end
  local told = lua_path() and fs.join(lua_path(), "models", name .. ".lua")
  if told and fs.is_file(told) then
    local same = path and fs.real(path) == fs.real(told)
    found[same and 1 or #found + 1] = { path = told, from_variable = true }
  end
  return found
end

local function is_within(path, folder)
  local inner, outer = fs.real(path), fs.real(folder)
  return inner and outer and inner:sub(1, #outer + 1) == outer .. "/"
end

local loaded = {} -- path -> architecture: a file is run once

local function load_file(file, folders)
  for _, folder in ipairs(file.from_variable and {} or folders) do
    if is_within(file.path, folder) then
      check.fail("%s lies in the model's folder %s: lorarun runs no code that may have come with a model. Move it out of there, "
        .. "beside the recipe, or name its folder with LORARUN_LUA_PATH", file.path, folder)
    end
  end
  local real = fs.real(file.path) or file.path
  if not loaded[real] then
    local chunk, why = loadfile(file.path)
    if not chunk then check.fail("%s is no architecture: %s", file.path, why) end
    loaded[real] = checked(chunk("models." .. fs.basename(file.path):gsub("%.lua$", "")), file.path)
  end
  return loaded[real]
end

local warned = {}
local function warn_of_unused(name, files)
  for _, file in ipairs(files) do
    if not warned[file.path] then
      say.warning("%s is not used: lorarun has an architecture '%s' itself, which counts first. To have another, give it another "
        .. "model_type; to replace lorarun's, LORARUN_LUA_PATH=DIR takes DIR/lorarun/models/%s.lua", file.path, name, name)
      warned[file.path] = true
    end
  end
end

--- find(model_type, folders): the architecture of a model_type, and its name. folders: those of the model, whose code is not run.
--- nil where there is none. An error where a file of that name is no architecture, which names the file and what is wrong.
function architectures.find(model_type, folders)
  if not model_type:find "^[%w_-]+$" then return nil end
  local name = model_type:gsub("-", "_")
  local arch, files = own(name), files_of_users(name)
  if arch then
    warn_of_unused(name, files)
    return arch, name
  end
  if files[1] then return load_file(files[1], folders or {}), name end
end

--- names(): the names of lorarun's own architectures, in order.
function architectures.names()
  local names = {}
  for _, name in ipairs(sorted.keys(embedded())) do
    if own(name) then names[#names + 1] = name end
  end
  return names
end

--- places(): where files of users are looked for, for a message.
function architectures.places()
  local places = "beside the recipe or in the current folder"
  return lua_path() and ("%s or in %s"):format(places, lua_path()) or places
end

-- ---- sizes -----------------------------------------------------------------------------------------------------------------
local SIZES = { "hidden", "layers", "vocabulary", "positions" }
local HEADS = { "heads", "kv_heads", "head_dim" } -- of a model with attention

-- What every architecture here needs of its heads.
local MOST_WIDTH = 2 ^ 20 -- of all heads together: see model_config
local MOST_HEAD_DIM = 2048 -- of the CPU's attention (kernels/cpu); a GPU's takes fewer, and says so
local function check_heads(config, c)
  if not config:get "head_dim" and c.hidden % c.heads ~= 0 then
    config:refuse("hidden_size", "%d is no multiple of 'num_attention_heads' %d", c.hidden, c.heads)
  elseif c.heads % c.kv_heads ~= 0 then
    config:refuse("num_key_value_heads", "%d does not divide 'num_attention_heads' %d", c.kv_heads, c.heads)
  elseif c.head_dim > MOST_HEAD_DIM then
    config:refuse(config:get "head_dim" and "head_dim" or "num_attention_heads", "makes heads of %d dimensions; attention takes up "
      .. "to %d", c.head_dim, MOST_HEAD_DIM)
  elseif c.heads * c.head_dim > MOST_WIDTH then
    config:refuse("num_attention_heads", "%d with heads of %d dimensions is beyond any model", c.heads, c.head_dim)
  end
end

local function need(name, c, field, whole)
  local value = c[field]
  if type(value) ~= "number" or not (value > 0) or whole and value % 1 ~= 0 then
    check.fail("models/%s.lua: configure() makes '%s' %s, expected a number of at least 1 (see docs/adding-a-model.md)", name,
      field, value == nil and "nothing" or tostring(value))
  end
end

--- sizes(arch, name, config): what the architecture makes of config.json: { hidden, layers, vocabulary, positions, ... }. heads,
--- kv_heads and head_dim are 0 where the architecture names none of them: it has no attention.
function architectures.sizes(arch, name, config)
  local c = arch.configure(config)
  if type(c) ~= "table" then check.fail("models/%s.lua: configure() returns %s, expected a table of sizes", name, tostring(c)) end
  for _, field in ipairs(SIZES) do need(name, c, field, true) end
  local attention = false
  for _, field in ipairs(HEADS) do attention = attention or c[field] ~= nil end
  for _, field in ipairs(HEADS) do
    if attention then need(name, c, field, field ~= "head_dim") else c[field] = 0 end
  end
  if attention then check_heads(config, c) end
  return c
end

--- longest(arch, sizes): the most tokens of a text that can be computed.
function architectures.longest(arch, c) return arch.max_length and arch.max_length(c) or c.positions end

return architectures
