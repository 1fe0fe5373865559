-- watchdog.lua: finds the rank that the others wait for.
--   local dog = watchdog.new { timeout = 600, say = function(text) ... end }
--   dog:look(views)    views of all ranks (failure_policy.lua). After half a minute of waiting it names the slowest rank, and again
--                      every half minute; after the timeout it returns a failure { rank, host, machine, what }
--   dog:restart()      waiting counts from now: the ranks were stopped for a while
-- All ranks make the same collectives in the same order, so the slowest has finished the fewest and waits in none.
local C = require "lorarun.base.c"

local Watchdog = {}
Watchdog.__index = Watchdog

local FIRST_WORD = 30 -- seconds of waiting before the first line, and between two lines
local MOST_NUMBERS = 8 -- ranks that a line lists by number

local function new(options)
  local clock = options.clock or C.lr_time
  return setmetatable({ timeout = options.timeout, say = options.say, clock = clock, restarted = clock(), spoke = -math.huge },
    Watchdog)
end

function Watchdog:restart() self.restarted = self.clock() end

-- " (step 41 of 100, training, is stopped)"
local function where(view)
  local parts = {}
  if view.total > 0 then parts[1] = ("step %d of %d"):format(view.step, view.total) end
  if view.phase ~= "" then parts[#parts + 1] = view.phase end
  parts[#parts + 1] = view.condition
  return #parts > 0 and (" (%s)"):format(table.concat(parts, ", ")) or ""
end

local function who_waits(views)
  local numbers = {}
  for i, view in ipairs(views) do numbers[i] = view.rank end
  if #numbers > MOST_NUMBERS then return #numbers .. " ranks wait" end
  if #numbers == 1 then return ("rank %d waits"):format(numbers[1]) end
  return ("ranks %s and %d wait"):format(table.concat(numbers, ", ", 1, #numbers - 1), numbers[#numbers])
end

local function slower(a, b) -- is b slower than a?
  if (a.waiting == nil) ~= (b.waiting == nil) then return b.waiting == nil end
  return b.collectives < a.collectives
end

function Watchdog:look(views)
  local waiting, longest, slowest = {}, 0, nil
  for _, view in ipairs(views) do
    if not view.ended then
      if not slowest or slower(slowest, view) then slowest = view end
      if view.waiting then
        waiting[#waiting + 1] = view
        longest = math.max(longest, view.waiting)
      end
    end
  end
  local now = self.clock()
  longest = math.min(longest, now - self.restarted)
  if longest >= self.timeout then
    local what = slowest.waiting and ("and all others waited in %s"):format(slowest.collective)
      or ("did not come to %s, where %s for it,"):format(waiting[1].collective, who_waits(waiting))
    return { rank = slowest.rank, host = slowest.host, machine = slowest.machine,
      what = ("%s for %.0f s%s"):format(what, self.timeout, where(slowest)) }
  end
  if longest < FIRST_WORD or now - self.spoke < FIRST_WORD then return end
  self.spoke = now
  if slowest.waiting then
    self.say(("all ranks have waited in %s for %.0f s: is the network between them up?"):format(slowest.collective, longest))
  else
    self.say(("%s in %s for %.0f s; the slowest is rank %d%s"):format(who_waits(waiting), waiting[1].collective, longest,
      slowest.rank, where(slowest)))
  end
end

return { new = new }
