-- processes.lua: the processes of a job on this machine: lr_group of runtime/lr.h with Lua's types.
--   local g = processes.new(4)
--   g:spawn(0, { "lorarun", "recipe.lua" }, { RANK = 0 }, nil)   words, settings for its environment, its standard input: a text,
--                                                                nil for an empty one, or processes.TERMINAL for the launcher's own
--   g:wait(0.5)  -> { kind = "output", process, stream = 1 | 2, text }, { kind = "exit", process, status | signal },
--                   { kind = "signal", number }, or nil where nothing happened in time
--   g:signal(i, number)    g:state(i) -> { step, total, phase, collective, waiting, ... }    g:pid(i)    g:free()
-- Processes are counted from 0. A group that is not freed keeps its processes running, so its maker frees it after an error too.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local ffi = require "ffi"
local sorted = require "lorarun.base.sorted"

local Group = {}
Group.__index = Group

local TERMINAL = {} -- in place of an input text: the process gets the launcher's own input and output

local function new(processes)
  local out = ffi.new "lr_group *[1]"
  check.call(C.lr_group_new, out, processes)
  return setmetatable({ handle = out[0], size = processes, event = ffi.new "lr_event" }, Group)
end

-- A NULL-terminated array of C strings, valid as long as the list is.
local function c_strings(list)
  local array = ffi.new("const char *[?]", #list + 1)
  for i, text in ipairs(list) do array[i - 1] = text end
  return array
end

function Group:spawn(process, words, settings, input)
  local list = {}
  for name, value in sorted(settings) do list[#list + 1] = ("%s=%s"):format(name, tostring(value)) end
  local terminal = input == TERMINAL
  check.call(C.lr_group_spawn, self.handle, process, c_strings(words), c_strings(list), not terminal and input or nil,
    terminal and -1 or input and #input or 0)
end

function Group:wait(timeout)
  local e = self.event
  check(C.lr_group_wait(self.handle, timeout, e))
  if e.kind == C.LR_EVENT_OUTPUT then
    return { kind = "output", process = e.process, stream = e.stream, text = ffi.string(e.data, e.size) }
  elseif e.kind == C.LR_EVENT_EXIT then
    return { kind = "exit", process = e.process, status = e.status >= 0 and e.status or nil,
      signal = e.status < 0 and -e.status or nil }
  elseif e.kind == C.LR_EVENT_SIGNAL then
    return { kind = "signal", number = e.status }
  end
end

--- listen(on): whether wait() reports what processes write, or leaves it in their pipes for now.
function Group:listen(on) C.lr_group_listen(self.handle, on and 1 or 0) end

function Group:signal(process, number) check(C.lr_group_signal(self.handle, process, number)) end

--- pid(process): its process id, or nil where it does not run.
function Group:pid(process)
  local pid = C.lr_group_process(self.handle, process)
  return pid > 0 and pid or nil
end

--- state(process): what the process reported of itself. waiting, failed: seconds since it began to wait or failed, or nil.
function Group:state(process)
  local s = ffi.new "lr_rank_state"
  check(C.lr_group_state(self.handle, process, s))
  return { step = tonumber(s.step), total = tonumber(s.total), phase = ffi.string(s.phase),
    collectives = tonumber(s.collectives), collective = ffi.string(s.collective), waiting = s.waiting >= 0 and s.waiting or nil,
    failed = s.failed >= 0 and s.failed or nil, failure = ffi.string(s.failure), consequence = s.consequence ~= 0 }
end

--- free(): kills what still runs.
function Group:free()
  C.lr_group_free(self.handle)
  self.handle = nil
end

return { new = new, TERMINAL = TERMINAL }
