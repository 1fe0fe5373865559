-- supervisor.lua: the parent of a job's ranks on this machine. It starts them, runs until the last has ended, names the one that
-- failed first, and starts all of them again where restarts are left.
--   supervisor.run(job) -> exit status
--   job = { words = {...}, input = text or nil,               the command line of each rank, and its standard input
--           environment = { NAME = value },                   variables of each rank, besides those in local_ranks.lua
--           world_size =, first_rank =, ranks =,              which of the job's ranks are this machine's
--           machine_rank =, machines =, host =, port =,       of machine 0, where the job's store is served
--           secret =, timeout =, rendezvous_timeout =, max_restarts =, log_dir = or nil,
--           prompt = whether rank 0 has the terminal, for a prompt }
-- After a failure all ranks are ended; where restarts are left, they start again with LORARUN_GENERATION one higher. Each machine
-- of a job has a launcher; that of machine 0 decides for all (machines.lua).
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local ffi = require "ffi"
local failure_policy = require "lorarun.dist.launcher.failure_policy"
local fs = require "lorarun.base.fs"
local local_ranks = require "lorarun.dist.launcher.local_ranks"
local machines = require "lorarun.dist.launcher.machines"
local rank_output = require "lorarun.dist.launcher.rank_output"
local signals = require "lorarun.dist.signals"
local using = require "lorarun.base.using"

local supervisor = {}

local TICK = 0.2     -- seconds between looks at all ranks
local LAST_READ = 5  -- seconds within which a reader of the launcher's output must take some of it

local function host_name() return fs.first_line "/proc/sys/kernel/hostname" or "this machine" end

-- One line about a failure, or nil.
local function failure_text(failure)
  if not failure then return nil end
  return failure.rank and ("rank %d on %s %s"):format(failure.rank, failure.host, failure.what) or failure.what
end

local function show_failure(output, failure)
  output:say(failure_text(failure))
  if not failure.lines or #failure.lines == 0 then return end
  output:line(("  the last that rank %d wrote%s:"):format(failure.rank,
    failure.log and (" (all of it is in %s)"):format(failure.log) or ""))
  for _, line in ipairs(failure.lines) do output:line("  | " .. line) end
end

-- The failure when the launcher's output can no longer be written. A closed pipe (`| head`) ends the job without a message.
local function unwritable(why)
  if why:find "Broken pipe" then return { what = why, status = 128 + signals.PIPE, quiet = true, final = true } end
  return { what = why, status = 1, final = true }
end

-- Call fn with the ranks of one generation; afterwards none of them runs, whatever happened.
local function with_ranks(job, output, generation, fn)
  local ranks = local_ranks.new(job, output, generation)
  return using(ranks, ranks.close, fn)
end

-- On machine 0, or the only one: from the start of the ranks to the end of the last on any machine -> the policy's outcome.
local function lead(job, output, link, generation, port)
  return with_ranks(job, output, generation, function(ranks)
    local policy = failure_policy.new { timeout = job.timeout, say = function(text) output:say(text) end }
    ranks:start(port)
    local looked, views = 0, nil
    repeat
      ranks:step(TICK)
      local now = C.lr_time()
      if #ranks.signals > 0 or now - looked >= TICK or ranks.running == 0 then
        looked, views = now, ranks:views()
        local arrived = ranks:take_signals()
        if link then link:gather(generation, views, arrived, policy) end
        if output.broken then policy:fail(unwritable(output.broken)) end
        local orders = policy:look(views, arrived)
        ranks:obey(orders)
        orders.port = port
        if link then link:publish(generation, orders) end
      end
    until ranks.running == 0 and (not link or link:ended(generation))
    local outcome = policy:outcome(views)
    if not outcome.failure or generation == job.max_restarts then outcome.final = true end
    if link then
      policy.orders.verdict = { status = outcome.status, final = outcome.final, text = failure_text(outcome.failure) }
      link:publish(generation, policy.orders)
    end
    return outcome
  end)
end

-- On another machine: do what machine 0 orders until it says how the job ended -> its outcome.
local function follow(job, output, link, generation)
  return with_ranks(job, output, generation, function(ranks)
    local looked, started, lost = 0, false, nil
    while true do
      ranks:step(TICK)
      local now = C.lr_time()
      if lost then
        ranks:obey { ending = true, kill = #ranks:take_signals() > 0 }
        if ranks.running == 0 then return { status = 1, final = true, failure = { what = lost } } end
      elseif #ranks.signals > 0 or now - looked >= TICK then
        looked = now
        local ok, orders = pcall(link.exchange, link, generation, ranks, started)
        if not ok then
          lost = ("machine 0 (%s) is lost: %s"):format(link.hosts[0], (orders:gsub("^[^:]+:%d+: ", "")))
        elseif orders and not started then
          started = true
          ranks:start(orders.port)
        elseif orders then
          local verdict = orders.verdict
          ranks:obey(orders)
          if verdict and ranks.running == 0 then
            return { status = verdict.status, final = verdict.final, failure = verdict.text and { what = verdict.text } }
          end
        end
      end
    end
  end)
end

-- On one machine nobody needs to know the port, so any free one serves as well as a busy one.
local function serve_store(job, port, output)
  local out = ffi.new "lr_store_server *[1]"
  local status = C.lr_store_serve(out, job.host, port, job.secret, job.world_size)
  if status == C.LR_EIO and port ~= 0 then
    output:say(ffi.string(C.lr_last_error()) .. "; taking any free port")
    status = C.lr_store_serve(out, job.host, 0, job.secret, job.world_size)
  end
  check(status)
  return out[0]
end

-- One generation of ranks after another, until one is final.
local function run_all(job, output, link, server)
  for generation = 0, job.max_restarts do
    if generation > 0 then
      output:say(("restart %d of %d"):format(generation, job.max_restarts))
      if server then check(C.lr_store_server_reset(server, generation)) end
    end
    local outcome
    if server then outcome = lead(job, output, link, generation, C.lr_store_server_port(server))
    else outcome = follow(job, output, link, generation) end
    if outcome.failure then show_failure(output, outcome.failure) end
    if outcome.final then return outcome.status end
  end
end

function supervisor.run(job)
  job.host_name = host_name()
  local output = rank_output.new(job)
  local link, server
  local function close()
    if link then link:leave() end
    C.lr_store_server_stop(server)
    output:close(LAST_READ)
  end
  return using(output, close, function()
    if job.machines > 1 then
      link = machines.join(job, function(text) output:say(text) end)
      if job.machine_rank == 0 then server = serve_store(job, 0, output) end
    else
      server = serve_store(job, job.port, output)
    end
    return run_all(job, output, link, server)
  end)
end

return supervisor
