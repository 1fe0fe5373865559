-- complete.lua: what TAB offers at the prompt.
--   complete(before) -> insert, candidates    before: the text left of the cursor
-- `insert` is what all candidates have in common after what is typed. `candidates` is nil unless there are several and nothing
-- more can be inserted. Names are found in the globals, in fields through __index tables, in what a metatable's __names() lists
-- (lr's), and in the modules that `require` could load. Only plain paths (a.b.c:d) are looked up: nothing that the user wrote is
-- run, except __index functions.
local host = require "lorarun.host"

local KEYWORDS = { "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil",
  "not", "or", "repeat", "return", "then", "true", "until", "while" }
local MAX_INHERITANCE = 10

local function index(value, key) return value[key] end

local function resolve(path)
  local value = _G
  for name in path:gmatch "[%w_]+" do
    local ok, field = pcall(index, value, name)
    if not ok or field == nil then return nil end
    value = field
  end
  return value
end

local function callable(value)
  local mt = debug.getmetatable(value)
  return type(value) == "function" or type(mt) == "table" and rawget(mt, "__call") ~= nil
end

-- Names that value.NAME or value:NAME can have: its own, then what it inherits.
local function field_names(value, methods_only)
  local names = {}
  for _ = 1, MAX_INHERITANCE do
    if type(value) == "table" then
      for key, field in next, value do
        if type(key) == "string" and key:find "^[%a_][%w_]*$" and (not methods_only or callable(field)) then
          names[key] = true
        end
      end
    end
    local mt = debug.getmetatable(value)
    local listed = type(mt) == "table" and rawget(mt, "__names")
    if listed and not methods_only then
      for _, name in ipairs(listed()) do names[name] = true end
    end
    local parent = type(mt) == "table" and rawget(mt, "__index")
    if type(parent) ~= "table" or parent == value then break end
    value = parent
  end
  return names
end

local function module_names()
  local names = {}
  for _, name in ipairs(host.modules()) do names[name] = true end
  for _, list in ipairs { package.loaded, package.preload } do
    for name in pairs(list) do names[name] = true end
  end
  return names
end

-- before -> the set of names that may stand here, and the part of one already typed
local function context(before)
  local module = before:match "require%s*%(?%s*[\"']([%w_.]*)$"
  if module then return module_names(), module end
  local path = before:match "[%w_.:]*$":gsub("^.*%.%.", "")
  local owner, separator, typed = path:match "^(.*)([.:])([%w_]*)$"
  if not owner then
    if path:find "^%d" then return {}, path end
    local names = field_names(_G)
    for _, word in ipairs(KEYWORDS) do names[word] = true end
    if debug.getmetatable(_G) then names.lr = true end
    return names, path
  end
  -- the value of a call, an index or a literal is not known without running it
  if not owner:find "^[%a_]" or before:sub(1, -#path - 1):find "[%]%)}\"']$" then return {}, typed end
  local value = resolve(owner)
  return value ~= nil and field_names(value, separator == ":") or {}, typed
end

local function common_prefix(words)
  local prefix = words[1]
  for i = 2, #words do
    while words[i]:sub(1, #prefix) ~= prefix do prefix = prefix:sub(1, -2) end
  end
  return prefix
end

return function(before)
  if not before:find "%S" then return "  " end -- at the start of a line TAB indents
  local names, typed = context(before)
  local found = {}
  for name in pairs(names) do
    if name:sub(1, #typed) == typed then found[#found + 1] = name end
  end
  if #found == 0 then return nil end
  table.sort(found)
  local insert = common_prefix(found):sub(#typed + 1)
  if #found == 1 or insert ~= "" then return insert end
  return nil, found
end
