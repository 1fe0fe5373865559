-- failure_policy.lua: decides when a job ends and which rank is to blame, from what is known of all its ranks.
--   local policy = failure_policy.new { timeout = 600, say = function(text) ... end }
--   local orders = policy:look(views, signals)     several times a second; signals: those that launchers got since the last call
--   policy:outcome(views) -> { status =, failure = or nil, final = no restart }     when all ranks have ended
--
-- A view is what a launcher knows of one rank of its machine (local_ranks.lua). Times are in seconds before now.
--   rank, host, machine                   which rank it is, and where it runs
--   ended, status or signal, told         when it ended, and how; told: it ended after it was ordered to
--   failed, failure, consequence          when it gave up, why, and whether another rank was the reason
--   step, total, phase, collectives, collective, waiting, condition     what it is doing: see watchdog.lua
--   lines, log                            of one that failed: the last lines that it wrote, and the file that has all of them
-- Orders are added and never taken back: { stop = signal to pass on, save = number of SIGUSR1 to pass on, ending = end all ranks,
-- kill = kill them at once, hung = a rank that does not react and is killed }.
--
-- What ends a job
--   - A rank ends with a status other than 0, or by a signal, or reports that it gave up. Most of its peers then fail because of
--     it. They report that (lr_rank_failed), and the policy waits SETTLING seconds for a failure with a cause of its own.
--   - A rank ends with status 0 while others wait for it in a collective.
--   - A rank does not come to a collective in which others wait, for `timeout` seconds.
--   - SIGINT, SIGTERM or SIGHUP: passed on once, so that ranks finish their step, save and leave. A second one, or SIGQUIT, kills.
local C = require "lorarun.base.c"
local signals = require "lorarun.dist.signals"
local watchdog = require "lorarun.dist.launcher.watchdog"

local Policy = {}
Policy.__index = Policy

local SETTLING = 2 -- seconds from a failure that another rank caused until that other one is no longer waited for
local LEAVING = 10 -- seconds for the others to leave when one rank died of the user's signal
local REAPING = 1  -- seconds from the end of a rank's connections, which its peers notice, until the launcher sees it end
local EARLY = 5    -- seconds for which others may wait for a rank that has ended with status 0

local function new(options)
  local clock = options.clock or C.lr_time
  return setmetatable({ say = options.say, clock = clock, orders = { save = 0 },
    watchdog = watchdog.new { timeout = options.timeout, say = options.say, clock = clock } }, Policy)
end

-- ---- which rank is to blame --------------------------------------------------------------------------------------------

-- The failure of a rank, or nil: { rank, host, machine, ago, consequence, what = "was killed by SIGKILL", status, lines }.
local function charge(view)
  if view.told or not (view.failed or view.ended and view.status ~= 0) then return nil end
  local c = { rank = view.rank, host = view.host, machine = view.machine, ago = view.failed or view.ended, lines = view.lines,
    log = view.log, consequence = view.failed and view.consequence, status = view.status }
  if view.failed then
    c.what = "failed: " .. view.failure
  elseif view.signal then
    c.status = 128 + view.signal
    c.what = "was killed by " .. signals.name(view.signal)
    if view.signal == signals.KILL then c.what = c.what .. " (the kernel does that where memory runs out: see dmesg)" end
    if view.signal == signals.XCPU then c.what = c.what .. " (its processor time is used up: ulimit -t)" end
  else
    local signal = signals.of_status(view.status)
    c.what = ("ended with exit status %d%s"):format(view.status, signal and ", as after " .. signal or "")
    c.consequence = signal ~= nil -- perhaps a signal to the whole job, which reaches the launcher a little later
  end
  return c
end

local function earlier(a, b) return not a or b.ago > a.ago end

-- The failure that came first among those with a cause of their own; else a rank that ended while others needed it; else the first
-- failure; nil where there is none.
local function culprit(views)
  local own, consequence, early
  for _, view in ipairs(views) do
    local c = charge(view)
    if c and not c.consequence then
      if earlier(own, c) then own = c end
    elseif c then
      if earlier(consequence, c) then consequence = c end
    elseif view.ended and view.status == 0 and not view.told then
      local left = { rank = view.rank, host = view.host, machine = view.machine, ago = view.ended, consequence = true,
        what = "ended, with exit status 0, while others were still at work with it" }
      if earlier(early, left) then early = left end
    end
  end
  if not own and consequence and early and early.ago + REAPING >= consequence.ago then return early end
  return own or consequence
end

-- The rank that ended first, with status 0, where another waits for it.
local function early_leaver(views)
  local early
  for _, view in ipairs(views) do
    if view.status == 0 and not view.told and earlier(early, { ago = view.ended }) then
      early = { rank = view.rank, host = view.host, machine = view.machine, ago = view.ended }
    end
  end
  for _, view in ipairs(early and views or {}) do
    if not view.ended and view.waiting and math.min(view.waiting, early.ago) > EARLY then
      early.what = ("ended, with exit status 0, while rank %d waits for it in %s"):format(view.rank, view.collective)
      return early
    end
  end
end

-- ---- orders -----------------------------------------------------------------------------------------------------------

function Policy:on_signal(number)
  local orders = self.orders
  if number == signals.CONT then self.watchdog:restart()
  elseif number == signals.USR1 then orders.save = orders.save + 1
  elseif number == signals.QUIT or self.stopped_by then
    self.stopped_by = self.stopped_by or number
    if not orders.kill then self.say(("%s: the ranks are killed"):format(signals.name(number))) end
    orders.kill = true
  else
    self.stopped_by = number
    orders.stop = number == signals.INT and number or signals.TERM
    self.say(("%s: the ranks finish their step and leave; a second one kills them"):format(signals.name(number)))
  end
end

--- fail(failure): end the job for a reason other than its ranks: { what =, status =, quiet = without a message }.
function Policy:fail(failure)
  self.failure = self.failure or failure
  self.orders.ending = true
end

function Policy:look(views, arrived)
  for _, number in ipairs(arrived) do self:on_signal(number) end
  local orders, now = self.orders, self.clock()
  if orders.ending or orders.kill then return orders end
  if self.stopped_by then -- a rank that the signal killed leaves the others unable to finish their step
    for _, view in ipairs(views) do
      if view.signal and view.ended > LEAVING then orders.ending = true end
    end
    return orders
  end
  local blamed = culprit(views)
  if blamed then
    self.suspected = self.suspected or now
    if not blamed.consequence or now - self.suspected > SETTLING then orders.ending = true end
    return orders
  end
  local failure = early_leaver(views)
  if not failure then
    failure = self.watchdog:look(views)
    orders.hung = failure and failure.rank -- a hanging rank does not leave by itself
  end
  if failure then self:fail(failure) end
  return orders
end

--- outcome(views): how the job ended.
function Policy:outcome(views)
  if self.stopped_by then
    for _, view in ipairs(views) do
      if view.status ~= 0 then return { status = 128 + self.stopped_by, final = true } end
    end
    return { status = 0 }
  end
  local failure = self.failure or culprit(views)
  if not failure then return { status = 0 } end
  local status = failure.status
  return { status = status and status > 0 and status or 1, failure = not failure.quiet and failure or nil, final = failure.final }
end

return { new = new }
