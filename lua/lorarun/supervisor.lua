-- supervisor.lua: the parent of a job's ranks on this machine: starts them, watches them, ends them, says who failed first.
--   supervisor.run(job) -> exit status
--   job = { words = {...}, input = text or nil,                       the command that each rank is, and its standard input
--           world_size =, first_rank =, ranks =, machine_rank =,      which of the job's ranks are this machine's
--           timeout =, max_restarts =, log_dir = or nil, secret =, threads = }
--
-- What ends a job
--   - A rank ends with a status other than 0, or by a signal, or says that it gave up. Its peers then mostly fail as well, because
--     of it: those say so (lr_rank_failed), and the launcher waits a moment for the first that does not.
--   - A rank ends with status 0 while others wait for it in a collective.
--   - A rank does not come to a collective in which others wait, for `timeout` seconds.
--   - SIGINT, SIGTERM or SIGHUP to the launcher: passed on once, so that ranks finish their step, save and leave. A second one, or
--     SIGQUIT, kills them. SIGUSR1 is passed on: ranks save and go on.
-- After a failure the others get SIGTERM and, when they are still there a little later, SIGKILL. Then, where restarts are left, all
-- ranks start again, with LORARUN_GENERATION one higher.
local C = require "lorarun.c"
local group = require "lorarun.group"
local rank_output = require "lorarun.rank_output"
local stalls = require "lorarun.stalls"
local check = require "lorarun.check"
local ffi = require "ffi"

local supervisor = {}
local Run = {}
Run.__index = Run

local TICK = 0.2          -- seconds between looks at clocks
local SETTLING = 2        -- from a failure that is a consequence until its cause is no longer waited for
local GRACE = 3           -- from SIGTERM to SIGKILL after a failure
local LEAVING = 10        -- the same, where a rank could not follow a signal of the user's
local EARLY = 5           -- that others wait for a rank that has ended with status 0
local SIGINT, SIGQUIT, SIGKILL, SIGUSR1, SIGPIPE, SIGTERM, SIGCONT = 2, 3, 9, 10, 13, 15, 18
local SIGNAL_NAMES = { "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1",
  "SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM" }

local function signal_name(number) return SIGNAL_NAMES[number] or "signal " .. number end

local function host_name()
  local f = io.open("/proc/sys/kernel/hostname", "r")
  local name = f and f:read "*l"
  if f then f:close() end
  return name or "this machine"
end

-- ---- one generation of ranks ------------------------------------------------------------------------------------------

local function new_run(job, output, generation)
  return setmetatable({ job = job, output = output, generation = generation, ranks = {}, running = 0,
    stalls = stalls.new { timeout = job.timeout, say = function(text) output:say(text) end } }, Run)
end

function Run:start()
  local job = self.job
  self.group = group.new(job.ranks)
  for i = 0, job.ranks - 1 do
    local settings = { RANK = job.first_rank + i, LOCAL_RANK = i, WORLD_SIZE = job.world_size, LOCAL_WORLD_SIZE = job.ranks,
      GROUP_RANK = job.machine_rank, MASTER_ADDR = job.host, MASTER_PORT = job.port, LORARUN_GENERATION = self.generation,
      LORARUN_SECRET = job.secret }
    if not os.getenv "OMP_NUM_THREADS" then settings.OMP_NUM_THREADS = job.threads end
    self.group:spawn(i, job.words, settings, job.input)
    self.ranks[i] = { number = job.first_rank + i, pid = self.group:pid(i) }
    self.running = self.running + 1
  end
end

-- SIGTERM to those that run and have not given up by themselves; from now on their ends are ours.
function Run:end_others(grace)
  if self.ending then return end
  self.ending = C.lr_time()
  self.kill_at = self.ending + grace
  for i = 0, self.job.ranks - 1 do
    if not self.ranks[i].ended and not self.group:state(i).failed then self.group:signal(i, SIGTERM) end
  end
end

-- What is known against a rank, or nil: { rank, process, at = when, consequence, what = "was killed by SIGKILL" }.
function Run:charge(process)
  local rank = self.ranks[process]
  local state = rank.state or self.group:state(process)
  local now = rank.ended or C.lr_time()
  local charge = { rank = rank.number, process = process, at = now }
  if state.failed then
    charge.at, charge.consequence, charge.what = now - state.failed, state.consequence, "failed: " .. state.failure
  elseif not rank.ended or rank.status == 0 then
    return nil
  elseif rank.signal then
    charge.what = "was killed by " .. signal_name(rank.signal)
    if rank.signal == SIGKILL then charge.what = charge.what .. " (the kernel does that where memory runs out: see dmesg)" end
  elseif rank.status > 128 and SIGNAL_NAMES[rank.status - 128] then
    charge.what = ("ended with exit status %d, as after %s"):format(rank.status, SIGNAL_NAMES[rank.status - 128])
  else
    charge.what = ("ended with exit status %d"):format(rank.status)
  end
  charge.status = rank.signal and not state.failed and 128 + rank.signal or rank.status
  if self.ending and charge.at > self.ending then return nil end -- it did as it was told
  return charge
end

-- The rank to blame, or nil: the first that failed by itself; else one that left while it was needed; else the first of all.
function Run:culprit()
  if self.failure then return self.failure end
  local own, consequence, early
  for i = 0, self.job.ranks - 1 do
    local c, rank = self:charge(i), self.ranks[i]
    if c and not c.consequence then
      if not own or c.at < own.at then own = c end
    elseif c then
      if not consequence or c.at < consequence.at then consequence = c end
    elseif rank.status == 0 and not (self.ending and rank.ended > self.ending) then
      if not early or rank.ended < early.at then
        early = { rank = rank.number, process = i, at = rank.ended,
          what = "ended, with exit status 0, while others were still at work with it" }
      end
    end
  end
  if not own and consequence and early and early.at <= consequence.at then return early end
  return own or consequence
end

function Run:fail(failure)
  self.failure = self.failure or failure
  self:end_others(GRACE)
end

function Run:on_exit(event)
  local rank = self.ranks[event.process]
  rank.ended, rank.status, rank.signal = C.lr_time(), event.status, event.signal
  rank.state = self.group:state(event.process)
  self.running = self.running - 1
  self.output:ended(event.process)
end

-- Signals to the launcher.
function Run:on_signal(number)
  if number == SIGCONT then return self.stalls:restart() end
  if number == SIGUSR1 then return self.group:signal(-1, SIGUSR1) end
  if number == SIGQUIT or self.stopping then
    self.output:say(("%s: the ranks are killed"):format(signal_name(number)))
    self.stopping = self.stopping or number
    self.ending = self.ending or C.lr_time()
    self.group:signal(-1, SIGKILL)
    return
  end
  self.stopping = number
  self.output:say(("%s: the ranks finish their step and leave; a second one kills them"):format(signal_name(number)))
  self.group:signal(-1, number == SIGINT and SIGINT or SIGTERM)
end

function Run:look_at_failures(now)
  if self.ending or self.running == 0 then return end
  if self.stopping then -- one that could not follow ended all the same; without it the others cannot go on for long
    for i = 0, self.job.ranks - 1 do
      local rank = self.ranks[i]
      if rank.ended and rank.signal and not self.kill_at then self.kill_at = now + LEAVING end
    end
    return
  end
  local culprit = self:culprit()
  if not culprit then return end
  self.suspected = self.suspected or now
  if not culprit.consequence or now - self.suspected > SETTLING then self:end_others(GRACE) end
end

-- A rank that ended well, and is waited for.
function Run:look_at_early_ends()
  if self.ending or self.stopping then return end
  local early
  for i = 0, self.job.ranks - 1 do
    if self.ranks[i].status == 0 then early = early or i end
  end
  if not early then return end
  for i = 0, self.job.ranks - 1 do
    local state = not self.ranks[i].ended and self.group:state(i)
    if state and state.waiting and math.min(state.waiting, C.lr_time() - self.ranks[early].ended) > EARLY then
      return self:fail { rank = self.ranks[early].number, process = early, at = self.ranks[early].ended,
        what = ("ended, with exit status 0, while rank %d waits for it in %s"):format(self.ranks[i].number, state.collective) }
    end
  end
end

function Run:look_at_stalls()
  if self.ending then return end
  local states = {}
  for i = 0, self.job.ranks - 1 do
    local rank = self.ranks[i]
    if not rank.ended then
      local state = self.group:state(i)
      state.rank, state.process, state.pid = rank.number, i, rank.pid
      states[#states + 1] = state
    end
  end
  local failure = self.stalls:look(states)
  if failure then
    self:fail(failure)
    if failure.process then self.group:signal(failure.process, SIGKILL) end -- one that hangs does not leave by itself
  end
end

function Run:look_at_clocks()
  local now = C.lr_time()
  if self.output.broken and not self.ending then
    self.unheard = self.output.broken
    self:end_others(GRACE)
  end
  self:look_at_failures(now)
  self:look_at_early_ends()
  self:look_at_stalls()
  if self.kill_at and now >= self.kill_at and not self.killed then
    self.killed = true
    self.ending = self.ending or now
    self.group:signal(-1, SIGKILL)
  end
end

-- Until all ranks have ended.
function Run:watch()
  local looked = 0
  while self.running > 0 do
    local event = self.group:wait(TICK)
    if event and event.kind == "output" then self.output:take(event.process, event.stream, event.text)
    elseif event and event.kind == "exit" then self:on_exit(event)
    elseif event then self:on_signal(event.number) end
    local now = C.lr_time()
    if not event or event.kind ~= "output" or now - looked > TICK then
      looked = now
      self:look_at_clocks()
    end
  end
end

-- -> { status =, failure = or nil, signal = or nil }
function Run:outcome()
  if self.unheard then
    local quietly = self.unheard:find "Broken pipe"
    if not quietly then io.stderr:write("lorarun: cannot write to standard output: ", self.unheard, "\n") end
    return { status = quietly and 128 + SIGPIPE or 1, final = true }
  end
  if self.stopping then
    for i = 0, self.job.ranks - 1 do
      if self.ranks[i].status ~= 0 then return { status = 128 + self.stopping, final = true } end
    end
    return { status = 0 }
  end
  local culprit = self:culprit()
  if not culprit then return { status = 0 } end
  local status = culprit.status
  return { status = status and status > 0 and status or 1, failure = culprit }
end

function Run:run()
  local ok, err = pcall(function()
    self:start()
    self:watch()
  end)
  if self.group then self.group:free() end
  if not ok then error(err, 0) end
  return self:outcome()
end

-- ---- the job ----------------------------------------------------------------------------------------------------------

local function tell_failure(job, output, failure)
  output:say(("rank %d on %s %s"):format(failure.rank, job.host_name, failure.what))
  local lines = failure.process and output:last_lines(failure.process) or {}
  if #lines == 0 then return end
  local log = output:log_path(failure.process)
  output:line(("  the last that rank %d wrote%s:"):format(failure.rank, log and " (all of it is in " .. log .. ")" or ""))
  for _, line in ipairs(lines) do output:line("  | " .. line) end
end

local function serve_store(job)
  local out = ffi.new "lr_store_server *[1]"
  check.call(C.lr_store_serve, out, job.host, job.port, job.secret, job.world_size)
  job.port = C.lr_store_server_port(out[0])
  return out[0]
end

function supervisor.run(job)
  job.host_name = host_name()
  local output = rank_output.new(job)
  local server = serve_store(job)
  local outcome
  local ok, err = pcall(function()
    for generation = 0, job.max_restarts do
      if generation > 0 then check(C.lr_store_server_reset(server, generation)) end
      outcome = new_run(job, output, generation):run()
      if outcome.failure then tell_failure(job, output, outcome.failure) end
      if not outcome.failure or generation == job.max_restarts then break end
      output:say(("restart %d of %d"):format(generation + 1, job.max_restarts))
    end
  end)
  C.lr_store_server_stop(server)
  output:close()
  if not ok then error(err, 0) end
  return outcome.status
end

return supervisor
