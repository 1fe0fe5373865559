-- strict.lua: in a recipe a mistyped name is an error with its place, not a nil an hour later.
--
-- Chunks loaded from now on get an environment in front of the globals. Reading what does not exist, or assigning to it
-- without `local`, raises; `_G.name = value` is how a recipe says that it wants a global. Lorarun's own modules and C
-- libraries are not affected, and names that only other versions of Lua have read as nil, since libraries ask for them
-- to learn where they are.
local suggest = require "lorarun.base.suggest"

local strict = {}

local OTHER_VERSIONS = { _ENV = true, utf8 = true, bit32 = true, warn = true, rawlen = true }

-- Every name that the function at this stack level may have meant: its locals, its upvalues, the globals.
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

-- From now on chunks are loaded with the strict environment (on) or with the plain globals.
function strict.enable(on) setfenv(0, on and environment or _G) end

return strict
