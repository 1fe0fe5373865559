-- yaml.lua: YAML as Lua values, read as PyYAML's safe_load reads it (YAML 1.1), since Accelerate writes and reads its files with
-- that; and flat maps written so that PyYAML reads them back.
--
--   map <-> table, sequence <-> table marked by json.array, null <-> json.null, as in json.lua. Keys are strings.
--   Timestamps stay text. Merge keys (<<) and tags but !!str, !!null, !!bool, !!int, !!float are refused.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local ffi = require "ffi"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local sorted = require "lorarun.base.sorted"
local using = require "lorarun.base.using"

local yaml = {}

local MAX_DEPTH = 100
local TAG = "tag:yaml.org,2002:"

local WORDS = { ["~"] = json.null, [""] = json.null, null = json.null, Null = json.null, NULL = json.null }
for word, value in pairs { yes = true, no = false, ["true"] = true, ["false"] = false, on = true, off = false } do
  WORDS[word], WORDS[word:upper()], WORDS[word:sub(1, 1):upper() .. word:sub(2)] = value, value, value
end

-- ---- scalars --------------------------------------------------------------------------------------------------------

local function digits_in_base(text, base)
  local n = 0
  for digit in text:gmatch "%w" do n = n * base + tonumber(digit, 16) end
  return n
end

-- Numbers with colons are in base 60: 1:30 is 90, 1:30.5 is 90.5.
local function sexagesimal(text)
  local first, rest, fraction = text:match "^(%d[%d_]*)(:[%d:]*)(%.?[%d_]*)$"
  if not first or fraction == "" and first:find "^0" then return nil end
  local n = tonumber((first:gsub("_", "")))
  for part in rest:gmatch ":([^:]*)" do
    if not part:find "^[0-5]?%d$" then return nil end
    n = n * 60 + tonumber(part)
  end
  return n + tonumber("0" .. fraction:gsub("_", ""))
end

-- The number that an unquoted scalar is, or nil. The forms are those of YAML 1.1 as PyYAML has them: a float needs its point, an
-- exponent its sign, and a leading 0 means octal.
local function number(text)
  local sign, body = text:match "^([-+]?)(.+)$"
  if not body then return nil end
  local n
  if body:find "^0b[01_]+$" then n = digits_in_base(body:sub(3), 2)
  elseif body:find "^0x[%x_]+$" then n = digits_in_base(body:sub(3), 16)
  elseif body:find "^0[0-7_]+$" then n = digits_in_base(body, 8)
  elseif body == "0" or body:find "^[1-9][%d_]*$" then n = tonumber((body:gsub("_", "")))
  elseif body:find "^%d[%d_]*%.[%d_]*$" or body:find "^%d[%d_]*%.[%d_]*[eE][-+]%d+$"
    or sign == "" and (body:find "^%.%d[%d_]*$" or body:find "^%.%d[%d_]*[eE][-+]%d+$") then
    n = tonumber((body:gsub("_", "")))
  elseif body == ".inf" or body == ".Inf" or body == ".INF" then n = math.huge
  elseif sign == "" and (body == ".nan" or body == ".NaN" or body == ".NAN") then n = 0 / 0
  else n = sexagesimal(body) end
  return n and (sign == "-" and -n or n)
end

-- What an unquoted scalar means: null, a boolean, a number, else its text.
local function resolve(text)
  local word = WORDS[text]
  if word ~= nil then return word end
  local n = number(text)
  if n ~= nil then return n end
  return text
end

-- ---- reading --------------------------------------------------------------------------------------------------------

local Reader = {}
Reader.__index = Reader

-- Moves to the next event of interest; false at the end.
function Reader:advance()
  repeat
    local status = C.lr_yaml_next(self.handle, self.event)
    if status == C.LR_EEND then return false end
    check(status)
  until self.event.kind ~= C.LR_YAML_OTHER
  return true
end

function Reader:fail(fmt, ...)
  check.fail("%s:%d:%d: %s", self.name, tonumber(self.event.line), tonumber(self.event.column), fmt:format(...))
end

function Reader:scalar()
  local e = self.event
  local text = ffi.string(e.text, e.length)
  if e.tag == nil then
    if e.plain == 0 then return text end
    return resolve(text)
  end
  local tag = ffi.string(e.tag)
  if tag == "!" or tag == TAG .. "str" then return text end
  local value = resolve(text)
  local fits = (tag == TAG .. "null" and value == json.null) or (tag == TAG .. "bool" and type(value) == "boolean")
    or (tag == TAG .. "float" and type(value) == "number") or (tag == TAG .. "int" and type(value) == "number" and value % 1 == 0)
  if not fits then self:fail("'%s' with the tag %s", text, tag) end
  return value
end

function Reader:sequence(depth)
  local list = json.array {}
  while self:advance() and self.event.kind ~= C.LR_YAML_END do list[#list + 1] = self:value(depth) end
  return list
end

function Reader:mapping(depth)
  local map, lines = {}, {}
  while self:advance() and self.event.kind ~= C.LR_YAML_END do
    if self.event.kind ~= C.LR_YAML_SCALAR then self:fail("a key that is no scalar") end
    local key = ffi.string(self.event.text, self.event.length)
    if key == "<<" and self.event.plain ~= 0 then self:fail("merge keys (<<) are not supported; write the keys out") end
    if map[key] ~= nil then self:fail("the key '%s' occurs twice; the first is in line %d", key, lines[key]) end
    lines[key] = tonumber(self.event.line)
    self:advance()
    map[key] = self:value(depth)
  end
  return map, lines
end

-- The value that begins at the current event, and for a map the line of each key.
function Reader:value(depth)
  local e = self.event
  if depth > MAX_DEPTH then self:fail("nested more than %d levels deep", MAX_DEPTH) end
  local anchor = e.anchor ~= nil and ffi.string(e.anchor) or nil
  if e.kind == C.LR_YAML_ALIAS then
    local known = self.anchors[anchor]
    if known == nil then self:fail("there is no anchor '%s' before this place", anchor) end
    return known
  end
  if e.kind ~= C.LR_YAML_SCALAR and e.tag ~= nil then self:fail("a collection with the tag %s", ffi.string(e.tag)) end
  local value, lines
  if e.kind == C.LR_YAML_SCALAR then value = self:scalar()
  elseif e.kind == C.LR_YAML_SEQUENCE then value = self:sequence(depth + 1)
  else value, lines = self:mapping(depth + 1) end
  if anchor then self.anchors[anchor] = value end
  return value, lines
end

--- decode(text, name): the value of the one document in text, an empty map where there is none; and, where it is a map, the line of
--- each of its keys. name (a path) stands in front of errors, with line and column.
function yaml.decode(text, name)
  name = name or "YAML text"
  local out = ffi.new "lr_yaml *[1]"
  check.call(C.lr_yaml_open, out, text, #text, name)
  local value, lines = {}, {}
  using(out[0], C.lr_yaml_close, function(handle)
    local self = setmetatable({ handle = handle, event = ffi.new "lr_yaml_event", name = name, anchors = {} }, Reader)
    local documents = 0
    while self:advance() do
      documents = documents + 1
      if documents > 1 then self:fail("a second document; only one is read") end
      self:advance()
      value, lines = self:value(0)
    end
  end)
  return value, lines or {}
end

--- read(path): decode of a whole file.
function yaml.read(path) return yaml.decode(fs.read(path), path) end

-- ---- writing --------------------------------------------------------------------------------------------------------

local function scalar_text(key, value)
  if value == json.null then return "null" end
  if type(value) == "boolean" or type(value) == "number" and value == math.floor(value) and math.abs(value) < 2 ^ 53 then
    return type(value) == "number" and ("%.0f"):format(value) or tostring(value)
  end
  if type(value) ~= "string" then
    check.fail("yaml.encode: %s is a %s; texts, whole numbers and booleans can be written", key, type(value))
  end
  if value:find "[%z\1-\31\127-\255]" then check.fail("yaml.encode: %s holds characters that are not plain ASCII", key) end
  -- plain where nothing in it could mean anything else; '' is the only escape that single quotes need
  if value:find "^[%a_./][%w_./-]*$" and resolve(value) == value then return value end
  return "'" .. value:gsub("'", "''") .. "'"
end

--- encode(map): a flat map as YAML text, its keys sorted.
function yaml.encode(map)
  local lines = {}
  for key, value in sorted(map) do lines[#lines + 1] = ("%s: %s\n"):format(key, scalar_text(key, value)) end
  return table.concat(lines)
end

return yaml
