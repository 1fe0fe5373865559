-- check.lua: the one place where a C status becomes a Lua error.
--   check(status)            raises an error if status < 0, else returns it
--   check.call(fn, ...)      calls fn; if memory ran out, collects garbage once and calls it again, then raises the error
--   check.fail(fmt, ...)     raises an error that Lua code found
--   check.explain_out_of_memory(fn)  fn(message) returns the message of an error when memory ran out, with what holds it
--   check.fail_as_well(text) raises the error of another rank
--   check.of_another_rank    the message of the latest error whose cause is another rank, or nil
-- The message starts with the user's own file:line: the innermost stack level outside lorarun's modules.
local C = require "lorarun.base.c"
local ffi = require "ffi"

local check = {}
local explain -- what tensor/memory.lua adds to an error when memory ran out

local function users_place()
  for level = 3, 60 do
    local info = debug.getinfo(level, "Sl")
    if not info then break end
    if info.what ~= "C" and info.currentline > 0 and not info.source:find("^@.*lua/lorarun[./]") then
      return ("%s:%d: "):format(info.short_src, info.currentline)
    end
  end
  return ""
end

local function raise(status)
  local message = ffi.string(C.lr_last_error())
  if message == "" then -- a library failed without a message
    message = ("%s (%s)"):format(ffi.string(C.lr_status_text(status)), ffi.string(C.lr_status_name(status)))
  end
  if status == C.LR_EPEER or status == C.LR_ETIMEOUT then check.of_another_rank = message end
  if status == C.LR_ENOMEM and explain then message = explain(message) end
  error(users_place() .. message, 0)
end

function check.explain_out_of_memory(fn) explain = fn end

function check.call(fn, ...)
  local status = fn(...)
  if status >= 0 then return status end
  if status == C.LR_ENOMEM then -- side effects come after allocation in C, so calling again is safe
    collectgarbage() collectgarbage()
    status = fn(...)
    if status >= 0 then return status end
  end
  raise(status)
end

local LONGEST = 4096 -- bytes of one value in a message; enough for a path, while a key in a file may have millions

function check.fail(fmt, ...)
  local values, n = { ... }, select("#", ...)
  for i = 1, n do
    local value = values[i]
    if type(value) == "string" and #value > LONGEST then
      values[i] = ("%s... (%d bytes)"):format(value:sub(1, LONGEST), #value)
    end
  end
  error(users_place() .. require("lorarun.base.say").visible(fmt:format(unpack(values, 1, n))), 0)
end

function check.fail_as_well(message)
  check.of_another_rank = message
  error(message, 0)
end

return setmetatable(check, { __call = function(_, status)
  if status < 0 then raise(status) end
  return status
end })
