-- json.lua: JSON as Lua values. Reading is C (lr_json_*), writing is this file, byte for byte like Python's json.dumps
-- with ensure_ascii=False, so that files written here and by Hugging Face's tools compare equal.
--
--   object  <-> table with string keys, written with its keys sorted; json.object keeps the order given
--   array   <-> table 1..n marked by json.array, which is how an empty one stays an array; unmarked tables with
--               elements 1..n are written as arrays too, unmarked empty ones as objects
--   null    <-> json.null, a value of its own: a nil would vanish from its table
--   number  <-> number. An integral one is written without fraction; json.float(1) is written 1.0; int64 cdata are exact.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local ffi = require "ffi"
local fs = require "lorarun.base.fs"
local sorted = require "lorarun.base.sorted"
local kinds = require "lorarun.base.options"

local json = {}
local Array, Object, Float = {}, {}, {}

--- json.null: the value that stands for null.
json.null = setmetatable({}, {
  __tostring = function() return "null" end,
  __newindex = function() check.fail("json.null cannot have fields") end,
})

--- json.unless_null(value): the value; nil where it is null.
function json.unless_null(value)
  if value == json.null then return nil end
  return value
end

--- json.array(t): marks t (default: a new table) as an array, and returns it.
function json.array(t)
  t = t or {}
  local mt = getmetatable(t)
  if mt ~= nil and mt ~= Array then check.fail("json.array: the table has a metatable of its own") end
  return setmetatable(t, Array)
end

--- json.is_array(t): was t marked by json.array or read from an array?
function json.is_array(t) return type(t) == "table" and getmetatable(t) == Array end

--- json.is_object(value): is it a table that stands for an object: neither an array nor null?
function json.is_object(value) return type(value) == "table" and value ~= json.null and getmetatable(value) ~= Array end

--- json.object { { key, value }, ... }: an object that is written in this order.
function json.object(members)
  local seen = {}
  for i, member in ipairs(members) do
    local key = member[1]
    if type(key) ~= "string" then check.fail("json.object: key %d is a %s, not a string", i, type(key)) end
    if seen[key] then check.fail("json.object: the key '%s' occurs twice", key) end
    seen[key] = true
  end
  return setmetatable({ members = members }, Object)
end

--- json.float(x): a number that is written the way Python writes a float: 1.0, 1e-08.
function json.float(x)
  if type(x) ~= "number" then check.fail("json.float: expected a number, got %s", type(x)) end
  return setmetatable({ value = x }, Float)
end

-- ---- reading ---------------------------------------------------------------------------------------------------
local value_t, node_array, key_array = ffi.typeof "lr_json_value", ffi.typeof "const lr_json_node *[?]",
  ffi.typeof "const char *[?]"

local file_order = setmetatable({}, { __mode = "k" }) -- object -> its keys, of texts read as Python does

local function convert(node, ordered)
  local v = value_t()
  C.lr_json_value_of(node, v)
  local kind, length = v.kind, tonumber(v.length)
  if kind == C.LR_JSON_STRING then return ffi.string(v.string, length) end
  if kind == C.LR_JSON_NUMBER then return v.number end
  if kind == C.LR_JSON_NULL then return json.null end
  if kind == C.LR_JSON_TRUE then return true end
  if kind == C.LR_JSON_FALSE then return false end
  local t = {}
  if kind == C.LR_JSON_ARRAY then
    for i = 1, length do t[i] = convert(C.lr_json_item(node, i - 1), ordered) end
    return setmetatable(t, Array)
  end
  local keys, values = key_array(length), node_array(length)
  check(C.lr_json_members(node, keys, values))
  local names = ordered and {}
  for i = 0, length - 1 do
    local key = ffi.string(keys[i])
    t[key] = convert(values[i], ordered)
    if names then names[i + 1] = key end
  end
  file_order[t] = names or nil
  return t
end

local PARSE = { strict = C.lr_json_parse, python = C.lr_json_parse_python }

--- decode(text, name, reader): the value. name (a path) stands in front of the error, with line and column.
---   reader: "strict" (default), or "python": as Python's json reads, for the files that transformers and its kin read: NaN and
---   Infinity are numbers, of a key that occurs twice the last value counts, and json.keys gives keys in the order of the text.
function json.decode(text, name, reader)
  local parse = PARSE[reader or "strict"] or check.fail("json.decode: there is no reader '%s'", tostring(reader))
  if type(text) ~= "string" then check.fail("%s: the JSON text is a %s", name or "json.decode", type(text)) end
  local out = ffi.new "lr_json *[1]"
  check.call(parse, out, text, #text, name or "JSON text")
  local doc = ffi.gc(out[0], C.lr_json_free)
  local value = convert(C.lr_json_root(doc), reader == "python")
  C.lr_json_free(ffi.gc(doc, nil))
  return value
end

--- decode_file(path, reader): the value of a whole file.
function json.decode_file(path, reader) return json.decode(fs.read(path), path, reader) end

--- keys(t): the keys of an object that the reader "python" read, in the order of the text; of any other table, sorted.
function json.keys(t)
  return file_order[t] or sorted.keys(t)
end

--- parse(text, name): the text as C has it (a cdata lr_json), for C functions that take one and for json.part. Strict.
function json.parse(text, name)
  local out = ffi.new "lr_json *[1]"
  check.call(C.lr_json_parse, out, text, #text, name)
  return ffi.gc(out[0], C.lr_json_free)
end

local function node_at(doc, ...)
  local node = C.lr_json_root(doc)
  for i = 1, select("#", ...) do
    node = C.lr_json_get(node, (select(i, ...)))
    if node == nil then return nil end
  end
  return node
end

--- part(doc, key, ...): the value at doc[key][...], without making values of the rest. nil: there is none.
function json.part(doc, ...)
  local node = node_at(doc, ...)
  return node and convert(node)
end

--- has(doc, key, ...): is there a value at doc[key][...]?
function json.has(doc, ...) return node_at(doc, ...) ~= nil end

-- ---- writing: strings and numbers ------------------------------------------------------------------------------
local ESCAPE = { ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n", ["\r"] = "\\r",
  ["\t"] = "\\t" }
for byte = 0, 31 do
  local c = string.char(byte)
  ESCAPE[c] = ESCAPE[c] or ("\\u%04x"):format(byte)
end

-- Position of the first byte that is not UTF-8 (RFC 3629: no overlong form, no surrogate, at most U+10FFFF), or nil.
local function bad_utf8(s)
  local i, n = 1, #s
  while true do
    i = s:find("[\128-\255]", i)
    if not i then return nil end
    local a, b = s:byte(i, i + 1)
    local extra = a >= 0xf0 and 3 or a >= 0xe0 and 2 or 1
    if a < 0xc2 or a > 0xf4 or i + extra > n then return i end
    if a == 0xe0 and b < 0xa0 or a == 0xed and b > 0x9f or a == 0xf0 and b < 0x90 or a == 0xf4 and b > 0x8f then
      return i
    end
    for k = i + 1, i + extra do
      local c = s:byte(k)
      if c < 0x80 or c > 0xbf then return i end
    end
    i = i + extra + 1
  end
end

-- As Python's repr: the fewest digits that read back as x; an exponent below 1e-4 and from 1e16 on.
local function float_text(x)
  local text
  -- 15 digits are always exact, so only subnormals, which have fewer, can need less than %.15g finds by dropping zeros.
  for digits = math.abs(x) < 2.2250738585072014e-308 and 1 or 15, 17 do
    text = ("%%.%de"):format(digits - 1):format(x)
    if tonumber(text) == x then break end
  end
  local sign, head, tail, exponent = text:match("^(-?)(%d)%.?(%d*)e([-+]%d+)$")
  local digits = (head .. tail):gsub("0+$", "")
  if digits == "" then digits = "0" end
  exponent = tonumber(exponent)
  if exponent < -4 or exponent >= 16 then
    local fraction = #digits > 1 and "." .. digits:sub(2) or ""
    return ("%s%s%se%s%02d"):format(sign, digits:sub(1, 1), fraction, exponent < 0 and "-" or "+", math.abs(exponent))
  end
  if exponent < 0 then return sign .. "0." .. ("0"):rep(-exponent - 1) .. digits end
  local whole = digits:sub(1, exponent + 1)
  local fraction = digits:sub(exponent + 2)
  return sign .. whole .. ("0"):rep(exponent + 1 - #whole) .. "." .. (fraction == "" and "0" or fraction)
end

local function number_text(x)
  if x == 0 then return "0" end -- and not "-0"
  if x == math.floor(x) then return ("%.0f"):format(x) end
  return float_text(x)
end

-- ---- writing: values -------------------------------------------------------------------------------------------
-- Where an error is, as a reader would write it: a.b[3]
local function place(path)
  local text = ""
  for _, step in ipairs(path) do
    if type(step) == "number" then text = ("%s[%d]"):format(text, step)
    elseif text == "" then text = step
    else text = text .. "." .. step end
  end
  return text == "" and "the value" or text
end

local function refuse(state, fmt, ...)
  check.fail("json.encode: %s: %s", place(state.path), fmt:format(...))
end

local function string_text(state, s)
  local at = s:find("[\128-\255]") and bad_utf8(s)
  if at then refuse(state, "the string is not UTF-8 at byte %d (0x%02x)", at, s:byte(at)) end
  return '"' .. s:gsub('[%z\1-\31"\\]', ESCAPE) .. '"'
end

-- The elements of t where it is an array, else nil: n, or nil.
local function array_length(state, t)
  local marked = getmetatable(t) == Array
  local n, count = #t, 0
  if n == 0 and not marked then return nil end
  local function is_index(key) return type(key) == "number" and key >= 1 and key <= n and key == math.floor(key) end
  for key in pairs(t) do
    if not is_index(key) then
      for k in sorted(t) do -- of several the first, in every run
        key = k
        if not is_index(k) then break end
      end
      local what = marked and "the key" or ("elements 1..%d and the key"):format(n)
      refuse(state, "an array with %s '%s'", what, tostring(key))
    end
    count = count + 1
  end
  if count ~= n then
    refuse(state, "an array with %d of %d elements; use json.null for those that are missing", count, n)
  end
  return n
end

local encode_value

-- An open bracket, the items that each(i) writes, a closing bracket.
local function write_items(state, open, close, n, each)
  local out = state.out
  if n == 0 then
    out[#out + 1] = open .. close
    return
  end
  state.depth = state.depth + 1
  local indent = state.indent and "\n" .. (" "):rep(state.indent * state.depth)
  out[#out + 1] = open
  for i = 1, n do
    if i > 1 then out[#out + 1] = indent and "," or ", " end
    out[#out + 1] = indent
    each(i)
  end
  state.depth = state.depth - 1
  out[#out + 1] = state.indent and "\n" .. (" "):rep(state.indent * state.depth) .. close or close
end

local function encode_members(state, n, member)
  local out, path = state.out, state.path
  write_items(state, "{", "}", n, function(i)
    local key, value = member(i)
    path[#path + 1] = key
    out[#out + 1] = string_text(state, key) .. ": "
    encode_value(state, value)
    path[#path] = nil
  end)
end

local function encode_table(state, t)
  if state.inside[t] then refuse(state, "the table contains itself") end
  state.inside[t] = true
  local mt, path = getmetatable(t), state.path
  if mt == Object then
    encode_members(state, #t.members, function(i) return t.members[i][1], t.members[i][2] end)
  elseif mt ~= nil and mt ~= Array then
    refuse(state, "a table with a metatable of its own has no JSON form")
  else
    local n = array_length(state, t)
    if n then
      write_items(state, "[", "]", n, function(i)
        path[#path + 1] = i
        encode_value(state, t[i])
        path[#path] = nil
      end)
    else
      local keys = sorted.keys(t)
      for _, key in ipairs(keys) do
        if type(key) ~= "string" then refuse(state, "the key '%s' is a %s, not a string", tostring(key), type(key)) end
      end
      encode_members(state, #keys, function(i) return keys[i], t[keys[i]] end)
    end
  end
  state.inside[t] = nil
end

function encode_value(state, v)
  local kind, out = type(v), state.out
  if v == json.null then out[#out + 1] = "null"
  elseif kind == "string" then out[#out + 1] = string_text(state, v)
  elseif kind == "boolean" then out[#out + 1] = tostring(v)
  elseif kind == "number" or getmetatable(v) == Float then
    local x = kind == "number" and v or v.value
    if x ~= x or x == math.huge or x == -math.huge then refuse(state, "%s has no JSON form", tostring(x)) end
    out[#out + 1] = kind == "number" and number_text(x) or float_text(x)
  elseif kind == "table" then encode_table(state, v)
  elseif kind == "cdata" and (ffi.istype("int64_t", v) or ffi.istype("uint64_t", v)) then
    out[#out + 1] = tostring(v):match("^-?%d+")
  else refuse(state, "a %s has no JSON form", kind) end
end

local OPTIONS = { indent = kinds.whole(0), sort_keys = kinds.boolean }

--- encode(value, options): JSON text without a newline at its end.
---   indent: spaces a level; nil puts all on one line.
---   sort_keys: may be true, and is: keys are always sorted, but for json.object.
function json.encode(value, options)
  options = kinds.check("json.encode", options, OPTIONS)
  if options.sort_keys == false then
    check.fail("json.encode: a table's keys have no order to keep; use json.object for one of your own")
  end
  local state = { out = {}, path = {}, inside = {}, depth = 0, indent = options.indent }
  encode_value(state, value)
  return table.concat(state.out)
end

return json
