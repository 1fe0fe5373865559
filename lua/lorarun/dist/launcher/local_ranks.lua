-- local_ranks.lua: the ranks of one machine, from their start to the end of the last. It starts, watches and signals processes;
-- what happens to them is decided by failure_policy.lua, here or on machine 0.
--   local ranks = local_ranks.new(job, output, generation [, clock])
--   ranks:start(port)              port: of the store that the ranks join
--   ranks:step(seconds)            wait at most this long for one event, and handle it
--   ranks:views()                  what is known of each rank: see failure_policy.lua
--   ranks:take_signals()           numbers of the signals that came to this process since the last call
--   ranks:obey(orders)             see failure_policy.lua
--   ranks.running                  how many of them run
--   ranks:close()                  kills what still runs
local C = require "lorarun.base.c"
local fs = require "lorarun.base.fs"
local processes = require "lorarun.dist.launcher.processes"
local signals = require "lorarun.dist.signals"

local Ranks = {}
Ranks.__index = Ranks

local GRACE = 3          -- seconds from SIGTERM to SIGKILL
local UNKILLABLE = 10    -- seconds from SIGKILL until a process that does not end is given up
local MOST_KEPT = 2 ^ 20 -- bytes of output that the launcher's reader has not taken; with more, the ranks' output is not read
local RETRY = 0.02       -- seconds until output that was not taken is offered again

local function new(job, output, generation, clock)
  return setmetatable({ job = job, output = output, generation = generation, clock = clock or C.lr_time, ranks = {}, running = 0,
    group = processes.new(job.ranks), signals = {}, done = { save = 0 } }, Ranks)
end

function Ranks:start(port)
  local job = self.job
  for i = 0, job.ranks - 1 do
    local settings = { RANK = job.first_rank + i, LOCAL_RANK = i, WORLD_SIZE = job.world_size, LOCAL_WORLD_SIZE = job.ranks,
      GROUP_RANK = job.machine_rank, MASTER_ADDR = job.host, MASTER_PORT = port, LORARUN_GENERATION = self.generation,
      LORARUN_SECRET = job.secret }
    for name, value in pairs(job.environment) do settings[name] = value end
    self.group:spawn(i, job.words, settings, job.prompt and job.first_rank + i == 0 and processes.TERMINAL or job.input)
    self.ranks[i] = { number = job.first_rank + i, pid = self.group:pid(i) }
    self.running = self.running + 1
  end
end

function Ranks:on_exit(event)
  local rank = self.ranks[event.process]
  if rank.ended then return end -- given up before
  rank.ended, rank.status, rank.signal = self.clock(), event.status, event.signal
  rank.state = self.group:state(event.process)
  self.running = self.running - 1
  self.output:ended(event.process)
end

function Ranks:step(seconds)
  local left = self.output:flush(0)
  self.group:listen(left < MOST_KEPT)
  local event = self.group:wait(left > 0 and math.min(seconds, RETRY) or seconds)
  if not event then return end
  if event.kind == "output" then self.output:take(event.process, event.stream, event.text)
  elseif event.kind == "exit" then self:on_exit(event)
  elseif event.number == signals.INT and self.job.prompt then self:interrupt()
  else self.signals[#self.signals + 1] = event.number end
end

-- At a prompt, Ctrl-C stops what is being evaluated and ends no rank. Rank 0 gets it from the terminal.
function Ranks:interrupt()
  for i = 0, self.job.ranks - 1 do
    if self.ranks[i].number ~= 0 and not self.ranks[i].ended then self.group:signal(i, signals.INT) end
  end
end

function Ranks:take_signals()
  local list = self.signals
  self.signals = {}
  return list
end

-- Why a process does not run, where the system knows: "is stopped (SIGSTOP)".
local function condition(pid)
  local letter = (fs.contents(("/proc/%d/stat"):format(pid)) or ""):match "%) (%a)"
  return letter == "T" and "is stopped (SIGSTOP)" or letter == "D" and "hangs in a system call" or nil
end

function Ranks:views()
  local views, now = {}, self.clock()
  for i = 0, self.job.ranks - 1 do
    local rank = self.ranks[i]
    local view = rank.state or self.group:state(i)
    local seen = rank.ended or now -- when the times in the state were measured
    view.rank, view.machine, view.host = rank.number, self.job.machine_rank, self.job.host_name
    if rank.ended then view.ended, view.status, view.signal = now - rank.ended, rank.status, rank.signal
    else view.condition = condition(rank.pid) end
    if view.failed then
      rank.failed = rank.failed or seen - view.failed
      view.failed = now - rank.failed
    end
    local at = rank.failed or rank.ended
    view.told = self.told and at and at > self.told or false
    if at and rank.status ~= 0 and not view.told then
      view.lines, view.log = self.output:last_lines(i), self.output:log_path(i)
    end
    views[i + 1] = view
  end
  return views
end

-- Ranks that end after the first call ended because they were told to.
function Ranks:tell(process, number)
  self.told = self.told or self.clock()
  self.group:signal(process, number)
end

function Ranks:obey(orders)
  local done = self.done
  if orders.stop and not done.stop then
    done.stop = true
    self.group:signal(-1, orders.stop)
  end
  while done.save < (orders.save or 0) do
    done.save = done.save + 1
    self.group:signal(-1, signals.USR1)
  end
  if orders.ending and not done.ending then
    done.ending, self.kill_at = true, self.clock() + GRACE
    self.told = self.told or self.clock()
    for i = 0, self.job.ranks - 1 do -- a rank that gave up is about to end with a status of its own
      if not self.ranks[i].ended and not self.group:state(i).failed then self:tell(i, signals.TERM) end
      if self.ranks[i].number == orders.hung then self:tell(i, signals.KILL) end
    end
  end
  if not done.kill and (orders.kill or self.kill_at and self.clock() >= self.kill_at) then
    done.kill, self.give_up_at = true, self.clock() + UNKILLABLE
    self:tell(-1, signals.KILL)
  end
  if self.give_up_at and self.clock() >= self.give_up_at then self:give_up() end
end

-- A process that hangs in the kernel (a disk, a driver) cannot be killed, and waiting for it would hang the job as well.
function Ranks:give_up()
  for i = 0, self.job.ranks - 1 do
    local rank = self.ranks[i]
    if not rank.ended then
      self.output:say(("rank %d (process %d) cannot be killed: it hangs in the system; the launcher goes on without it"):format(
        rank.number, rank.pid))
      self:on_exit { process = i, signal = signals.KILL }
    end
  end
end

function Ranks:close() self.group:free() end

return { new = new }
