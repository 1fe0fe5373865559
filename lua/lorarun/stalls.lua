-- stalls.lua: which rank do the others wait for, and for how long?
--   local s = stalls.new { timeout = 600, say = function(text) ... end }
--   s:look(states)     the states of all ranks that run (group.lua's, with rank, process, pid): says who is waited for after half a
--                      minute, and again every half minute; a failure { rank, process, what } after the timeout
--   s:restart()        the ranks did not run for a while
-- Ranks make the same collectives in the same order, so the rank that has finished the fewest, and is in none, is the slowest.
local C = require "lorarun.c"

local Stalls = {}
Stalls.__index = Stalls

local FIRST_WORD = 30 -- seconds of waiting, and between two lines

local function new(options)
  return setmetatable({ timeout = options.timeout, say = options.say, restarted = C.lr_time(), spoke = -math.huge }, Stalls)
end

function Stalls:restart() self.restarted = C.lr_time() end

-- " is stopped", where the system knows why a process does not run
local function condition(pid)
  local f = pid and io.open(("/proc/%d/stat"):format(pid), "r")
  local text = f and f:read "*a"
  if f then f:close() end
  local letter = text and text:match "%) (%a)"
  return letter == "T" and "is stopped (SIGSTOP)" or letter == "D" and "hangs in a system call" or nil
end

local function where(state)
  local parts = {}
  if state.total > 0 then parts[1] = ("step %d of %d"):format(state.step, state.total) end
  if state.phase ~= "" then parts[#parts + 1] = state.phase end
  parts[#parts + 1] = condition(state.pid)
  return #parts > 0 and (" (%s)"):format(table.concat(parts, ", ")) or ""
end

local function ranks_text(states)
  local numbers = {}
  for i, state in ipairs(states) do numbers[i] = state.rank end
  if #numbers > 8 then return #numbers .. " ranks wait" end
  if #numbers == 1 then return ("rank %d waits"):format(numbers[1]) end
  return ("ranks %s and %d wait"):format(table.concat(numbers, ", ", 1, #numbers - 1), numbers[#numbers])
end

-- The rank the others wait for; where all wait, the one that is furthest behind.
local function slowest(states)
  local worst
  for _, s in ipairs(states) do
    local behind = not worst or (s.waiting == nil) ~= (worst.waiting == nil) and not s.waiting
      or (s.waiting == nil) == (worst.waiting == nil) and s.collectives < worst.collectives
    if behind then worst = s end
  end
  return worst
end

function Stalls:look(states)
  local waiting, longest = {}, 0
  for _, state in ipairs(states) do
    if state.waiting then
      waiting[#waiting + 1] = state
      longest = math.max(longest, state.waiting)
    end
  end
  local now = C.lr_time()
  longest = math.min(longest, now - self.restarted)
  if longest >= self.timeout then
    local s = slowest(states)
    local what = s.waiting and ("and all others waited in %s"):format(s.collective)
      or ("did not come to %s, where %s for it,"):format(waiting[1].collective, ranks_text(waiting))
    return { rank = s.rank, process = s.process, what = ("%s for %.0f s%s"):format(what, longest, where(s)) }
  end
  if longest < FIRST_WORD or now - self.spoke < FIRST_WORD then return end
  self.spoke = now
  local s = slowest(states)
  if s.waiting then
    self.say(("all ranks have waited in %s for %.0f s: is the network between them up?"):format(s.collective, longest))
  else
    self.say(("%s in %s for %.0f s; the slowest is rank %d%s"):format(ranks_text(waiting), waiting[1].collective, longest, s.rank,
      where(s)))
  end
end

return { new = new }
