-- failure.lua: runs the user's code and, where it fails, says so the way a user wants to read it: one message that
-- begins with the place, and separately the calls that led there, without lorarun's own frames below the user's code.
--   failure.call(fn, ...)         -> true, results...
--                                 or false, { message =, calls = { "recipe.lua:12: in function 'f'", ... } }
--   failure.call_by(call, fn, ...)  the same through another xpcall, such as one that can be interrupted
--   failure.text(report)          -> the message and the calls, as many lines as it takes
local failure = {}

local SHOWN_CALLS = 20 -- of a deep recursion the first and last half of these

local function own_module(info) return info.source:find("^@.*lua/lorarun[./]") ~= nil end

local function describe_call(info)
  local place = info.currentline > 0 and ("%s:%d"):format(info.short_src, info.currentline) or "[C]"
  if info.what == "main" then return place .. ": in main chunk" end
  if info.name then return ("%s: in function '%s'"):format(place, info.name) end
  if info.what == "C" then return place .. ": in a C function" end
  return ("%s: in function <%s:%d>"):format(place, info.short_src, info.linedefined)
end

-- How many levels the stack has, the caller's included. Finding a level costs its number, hence the bisection.
local function stack_depth()
  local known, beyond = 0, 1
  while debug.getinfo(beyond + 1, "l") do known, beyond = beyond, beyond * 2 end
  while beyond - known > 1 do
    local middle = math.floor((known + beyond) / 2)
    if debug.getinfo(middle + 1, "l") then known = middle else beyond = middle end
  end
  return known
end

local function message_of(err)
  if type(err) == "string" then return err end
  local mt = debug.getmetatable(err)
  if type(mt) == "table" and mt.__tostring then
    local ok, text = pcall(tostring, err)
    if ok and type(text) == "string" then return text end
  end
  if type(err) == "number" then return tostring(err) end
  return ("(the error is a %s value)"):format(type(err))
end

-- The handler of an xpcall whose caller stands `base` levels above the bottom of the stack.
local function handler_above(base)
  return function(err)
    local message, calls, place = message_of(err), {}, nil
    local last = stack_depth() - base -- the level of the user's outermost function; xpcall itself is the next one
    local skipped = last - 1 - SHOWN_CALLS
    for level = 2, last do
      local in_gap = skipped > 0 and level - 2 >= SHOWN_CALLS / 2 and last - level >= SHOWN_CALLS / 2
      if in_gap and level - 2 == SHOWN_CALLS / 2 then calls[#calls + 1] = ("... %d more"):format(skipped) end
      local info = not in_gap and debug.getinfo(level, "Slnf")
      if info and info.func ~= error then
        if not place and info.currentline > 0 and not own_module(info) then
          place = ("%s:%d"):format(info.short_src, info.currentline)
        end
        calls[#calls + 1] = describe_call(info)
      end
    end
    if place and not message:find("^[^\n:]+:%d+: ") then message = place .. ": " .. message end
    return { message = message, calls = calls }
  end
end

local function finish(ok, ...)
  if ok then return true, ... end
  local report = ...
  -- where memory ran out or the handler itself failed, Lua hands over a plain text
  if type(report) ~= "table" then report = { message = message_of(report), calls = {} } end
  return false, report
end

function failure.call_by(call, fn, ...)
  return finish(call(fn, handler_above(stack_depth() + 1), ...))
end

function failure.call(fn, ...)
  return finish(xpcall(fn, handler_above(stack_depth() + 1), ...))
end

function failure.text(report)
  local lines = { report.message }
  for _, call in ipairs(report.calls) do lines[#lines + 1] = "  " .. call end
  return table.concat(lines, "\n")
end

return failure
