-- strict.lua: in a recipe a mistyped name is an error with its place, not a nil an hour later.
--
-- Chunks that are loaded after strict.enable(true) get an environment that checks names before it reads or writes the globals.
-- Reading a name that does not exist is an error, and so is assigning to one without `local`; `_G.name = value` makes a global.
-- lorarun's own modules and C libraries are not affected. Names that only other versions of Lua have are nil, because libraries
-- read them to find out which version they run in.
local suggest = require "lorarun.base.suggest"

local strict = {}

local OTHER_VERSIONS = { _ENV = true, utf8 = true, bit32 = true, warn = true, rawlen = true }

-- Every name that the function at this stack level can see: its locals, its upvalues, the globals.
local function names_in_reach(level)
  local names = {}
  local function add(name)
    if type(name) == "string" and name:find("^[%a_]") then names[#names + 1] = name end
  end
  local info = debug.getinfo(level + 1, "f")
  for i = 1, 250 do
    local name = debug.getlocal(level + 1, i)
    if not name then break end
    add(name)
  end
  for i = 1, 60 do
    local name = debug.getupvalue(info.func, i)
    if not name then break end
    add(name)
  end
  for name in pairs(_G) do add(name) end
  return names
end

local function read(_, name)
  local value = rawget(_G, name)
  if value ~= nil or OTHER_VERSIONS[name] or type(name) ~= "string" then return value end
  if debug.getinfo(2, "S").what == "C" then return nil end
  if name == "lr" then
    error("undeclared variable 'lr'; a recipe begins with: local lr = require \"lorarun\"", 2)
  end
  error(("undeclared variable '%s'%s"):format(name, suggest.did_you_mean(name, names_in_reach(2))), 2)
end

local function assign(_, name, value)
  if rawget(_G, name) == nil and debug.getinfo(2, "S").what ~= "C" then
    local hint = suggest.did_you_mean(name, names_in_reach(2))
    if hint == "" then
      hint = ("; write 'local %s = ...', or '_G.%s = ...' where a global is meant"):format(name, name)
    end
    error(("assignment to undeclared variable '%s'%s"):format(name, hint), 2)
  end
  rawset(_G, name, value)
end

local environment = setmetatable({}, { __index = read, __newindex = assign, __metatable = "strict" })

--- enable(on): from now on chunks are loaded with the strict environment, or (false) with the plain globals.
function strict.enable(on) setfenv(0, on and environment or _G) end

return strict
