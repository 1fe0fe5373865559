-- failure_policy.lua: decides, from what is known of all ranks of a job, when it is to end, and which rank is to blame.
--   local judge = failure_policy.new { timeout = 600, say = function(text) ... end }
--   local orders = judge:look(views, signals)     now and then; signals: numbers that launchers got since the last time
--   judge:outcome(views) -> { status =, failure = or nil, final = no restart }     when all ranks have ended
--
-- A view is what a launcher knows of one rank of its machine (local_ranks.lua); times are seconds ago:
--   rank, host, machine                   who
--   ended, status or signal, told         it has ended, and how; told: after it was ordered to
--   failed, failure, consequence          it gave up, why, and whether because of another rank
--   step, total, phase, collectives, collective, waiting, condition     what it does: see watchdog.lua
--   lines, log                            of one that failed: the last that it wrote, and where all of it is
-- Orders only ever grow: { stop = signal to pass on, save = how many SIGUSR1 came, ending = end them all, kill = at once,
-- hung = a rank that will not listen }.
--
-- What ends a job
--   - A rank ends with a status other than 0, or by a signal, or says that it gave up. Its peers then mostly fail as well, because
--     of it: those say so (lr_rank_failed), and the judge waits a moment for the first that does not.
--   - A rank ends with status 0 while others wait for it in a collective.
--   - A rank does not come to a collective in which others wait, for `timeout` seconds.
--   - SIGINT, SIGTERM or SIGHUP: passed on once, so that ranks finish their step, save and leave. A second one, or SIGQUIT, kills.
local C = require "lorarun.base.c"
local signals = require "lorarun.dist.signals"
local watchdog = require "lorarun.dist.launcher.watchdog"

local Judge = {}
Judge.__index = Judge

local SETTLING = 2 -- from a failure that is a consequence until its cause is no longer waited for
local LEAVING = 10 -- for the others to leave, where one could not follow the user's signal
local REAPING = 1  -- from the end of a connection, which peers notice, until the launcher sees that the rank has ended
local EARLY = 5    -- that others wait for a rank that has ended with status 0

local function new(options)
  local clock = options.clock or C.lr_time
  return setmetatable({ say = options.say, clock = clock, orders = { save = 0 },
    stalls = watchdog.new { timeout = options.timeout, say = options.say, clock = clock } }, Judge)
end

-- ---- who is to blame --------------------------------------------------------------------------------------------------

-- What a rank is charged with, or nil: { rank, host, machine, ago, consequence, what = "was killed by SIGKILL", status, lines }.
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
    c.consequence = signal ~= nil -- perhaps a signal to the whole job of which the launcher hears a little later
  end
  return c
end

local function earlier(a, b) return not a or b.ago > a.ago end

-- The first that failed by itself; else one that left while it was needed; else the first of all; or nil.
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

-- A rank that ended well and is waited for.
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

function Judge:on_signal(number)
  local orders = self.orders
  if number == signals.CONT then self.stalls:restart()
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

--- The job is over because of something else than its ranks: { what =, status =, quiet = }.
function Judge:fail(failure)
  self.failure = self.failure or failure
  self.orders.ending = true
end

function Judge:look(views, arrived)
  for _, number in ipairs(arrived) do self:on_signal(number) end
  local orders, now = self.orders, self.clock()
  if orders.ending or orders.kill then return orders end
  if self.stopped_by then -- a rank that could not follow ended all the same; without it the others cannot go on for long
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
    failure = self.stalls:look(views)
    orders.hung = failure and failure.rank -- one that hangs does not leave by itself
  end
  if failure then self:fail(failure) end
  return orders
end

--- What became of the job.
function Judge:outcome(views)
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
