-- failure.lua: runs the user's code and, where it fails, reports it as a user wants to read it: one message that begins with the
-- place, and apart from it the calls that led there, without lorarun's own frames below the user's code.
--   failure.call(fn, ...)         -> true, results...
--                                 or false, { message =, place = "recipe.lua:12" or nil where none is known,
--                                             calls = { "recipe.lua:12: in function 'f'", ... } }
--   failure.call_by(call, fn, ...)  the same with another function in place of xpcall, such as one that can be interrupted
--   failure.text(report)          -> the message and the calls, as many lines as it takes
-- Only for the main thread.
local C = require "lorarun.base.c"
local host = require "lorarun.host"
local memory = require "lorarun.tensor.memory"

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

-- How many levels the main thread's stack has. Looking at level n costs time proportional to n, hence the bisection.
local function stack_depth()
  local known, beyond = 0, 1
  while debug.getinfo(host.main_thread, beyond, "l") do known, beyond = beyond, beyond * 2 end
  while beyond - known > 1 do
    local middle = math.floor((known + beyond) / 2)
    if debug.getinfo(host.main_thread, middle, "l") then known = middle else beyond = middle end
  end
  return beyond
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

-- The report on an error: first and last are the levels of the innermost and the outermost function of the user's.
local function describe(err, first, last)
  local message, calls, place = message_of(err), {}, nil
  local skipped = last - first + 1 - SHOWN_CALLS
  for level = first, last do
    local in_gap = skipped > 0 and level - first >= SHOWN_CALLS / 2 and last - level >= SHOWN_CALLS / 2
    if in_gap and level - first == SHOWN_CALLS / 2 then calls[#calls + 1] = ("... %d more"):format(skipped) end
    local info = not in_gap and debug.getinfo(host.main_thread, level, "Slnf")
    if info and info.func ~= error then
      if not place and info.currentline > 0 and not own_module(info) then
        place = ("%s:%d"):format(info.short_src, info.currentline)
      end
      calls[#calls + 1] = describe_call(info)
    end
  end
  local own_place = message:match("^[^\n:]+:%d+: ")
  if own_place then
    -- coroutine.wrap puts the place of its caller before every message, which may be the same place again
    while message:sub(#own_place + 1, 2 * #own_place) == own_place do message = message:sub(#own_place + 1) end
    if place and own_place:find("lua/lorarun[./][%w_./]+%.lua:%d+: $") then -- Lua's own, about an argument that was not checked
      message = ("%s: %s (lorarun was given something there that it does not expect; docs/reference.md says what it takes)"):format(
        place, message)
    end
  elseif place then
    message = place .. ": " .. message
  end
  return { message = message, place = place, calls = calls }
end

-- The handler for an xpcall made by the caller's caller. It works in a coroutine, which has its own stack: after a stack overflow
-- there is no room on the other.
local function new_handler()
  local base = stack_depth() - 3 -- the caller and what is below it; on top are getinfo, stack_depth and this function
  local handler
  local report = coroutine.wrap(function(err)
    local last = stack_depth() - base - 2 -- levels count from 0, and xpcall is between that caller and the user's code
    local first = 0
    repeat first = first + 1 until debug.getinfo(host.main_thread, first - 1, "f").func == handler
    return describe(err, first, last)
  end)
  function handler(err)
    local described = report(err)
    return described
  end
  return handler
end

local function finish(ok, ...)
  if ok then return true, ... end
  local report = ...
  -- where memory ran out, or the handler itself failed, Lua passes a plain text
  if type(report) ~= "table" then report = { message = message_of(report), calls = {} } end
  if report.message == "not enough memory" then
    collectgarbage() -- room for the message
    local limit = memory.limit_text(C.LR_LIMIT_ADDRESSES)
    report.message = "not enough memory for Lua's tables and strings" .. (limit and (" (%s)"):format(limit) or "")
  end
  return false, report
end

function failure.call_by(call, fn, ...)
  return finish(call(fn, new_handler(), ...))
end

function failure.call(fn, ...)
  return finish(xpcall(fn, new_handler(), ...))
end

function failure.text(report)
  local lines = { report.message }
  for _, call in ipairs(report.calls) do lines[#lines + 1] = "  " .. call end
  return table.concat(lines, "\n")
end

return failure
