-- supervisor.lua: the parent of a job's ranks on this machine: starts them, sees to them until the last has ended, says who failed
-- first, and starts them again where it may.
--   supervisor.run(job) -> exit status
--   job = { words = {...}, input = text or nil,               the command that each rank is, and its standard input
--           environment = { NAME = value },                   more for that
--           world_size =, first_rank =, ranks =,              which of the job's ranks are this machine's
--           machine_rank =, machines =, host =, port =,       of machine 0, where the job's store is served
--           secret =, timeout =, max_restarts =, log_dir = or nil,
--           prompt = whether rank 0 has the terminal, for a prompt }
-- After a failure all ranks are ended; where restarts are left, they start anew with LORARUN_GENERATION one higher.
local C = require "lorarun.c"
local check = require "lorarun.check"
local ffi = require "ffi"
local judge = require "lorarun.judge"
local rank_output = require "lorarun.rank_output"
local runs = require "lorarun.run"
local signals = require "lorarun.signals"

local supervisor = {}

local TICK = 0.2 -- seconds between looks at all ranks

local function host_name()
  local f = io.open("/proc/sys/kernel/hostname", "r")
  local name = f and f:read "*l"
  if f then f:close() end
  return name or "this machine"
end

local function tell_failure(output, failure)
  if not failure.rank then return output:say(failure.what) end
  output:say(("rank %d on %s %s"):format(failure.rank, failure.host, failure.what))
  if not failure.lines or #failure.lines == 0 then return end
  output:line(("  the last that rank %d wrote%s:"):format(failure.rank,
    failure.log and " (all of it is in " .. failure.log .. ")" or ""))
  for _, line in ipairs(failure.lines) do output:line("  | " .. line) end
end

-- What happens when nobody hears the job any more: a reader that has seen enough is no failure to speak of.
local function unheard(why)
  if why:find "Broken pipe" then return { what = why, status = 128 + signals.PIPE, quiet = true, final = true } end
  return { what = "cannot write to standard output: " .. why, status = 1, final = true }
end

-- The ranks of one generation, from start to end -> the judge's outcome.
local function run_once(job, output, generation, port)
  local run = runs.new(job, output, generation)
  local ok, result = pcall(function()
    local decider = judge.new { timeout = job.timeout, say = function(text) output:say(text) end }
    run:start(port)
    local looked = 0
    while run.running > 0 do
      run:step(TICK)
      local now = C.lr_time()
      if #run.signals > 0 or now - looked >= TICK or run.running == 0 then
        looked = now
        if output.broken then decider:fail(unheard(output.broken)) end
        run:obey(decider:look(run:views(), run:take_signals()))
      end
    end
    return decider:outcome(run:views())
  end)
  run:close()
  if not ok then error(result, 0) end
  return result
end

-- On one machine nobody needs to know the port, so a busy one is no reason to fail.
local function serve_store(job, output)
  local out = ffi.new "lr_store_server *[1]"
  local status = C.lr_store_serve(out, job.host, job.port, job.secret, job.world_size)
  if status == C.LR_EIO and job.port ~= 0 then
    output:say(ffi.string(C.lr_last_error()) .. "; taking any free port")
    status = C.lr_store_serve(out, job.host, 0, job.secret, job.world_size)
  end
  check(status)
  return out[0]
end

function supervisor.run(job)
  job.host_name = host_name()
  local output = rank_output.new(job)
  local server = serve_store(job, output)
  local outcome
  local ok, err = pcall(function()
    for generation = 0, job.max_restarts do
      if generation > 0 then check(C.lr_store_server_reset(server, generation)) end
      outcome = run_once(job, output, generation, C.lr_store_server_port(server))
      if outcome.failure then tell_failure(output, outcome.failure) end
      if not outcome.failure or outcome.final or generation == job.max_restarts then break end
      output:say(("restart %d of %d"):format(generation + 1, job.max_restarts))
    end
  end)
  C.lr_store_server_stop(server)
  output:close()
  if not ok then error(err, 0) end
  return outcome.status
end

return supervisor
