-- launch.lua: lr.launch: from a recipe that runs once to a recipe that runs on every rank.
--   local job = lr.launch { processes = 4, precision = "bf16" }   -- rank, world_size, local_rank, ...
--
-- A recipe runs up to here in the program that the user started. Where more than one rank is wanted, that program becomes their
-- launcher (supervisor.lua), starts itself again once for each, and never returns; in a rank, the same call joins the others and
-- returns. What the recipe prints before the call is seen once, from the launcher: a rank's output is shown from here on.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local device_traits = require "lorarun.tensor.device_traits"
local say = require "lorarun.base.say"
local secret = require "lorarun.dist.secret"

local launch = {}

local LAUNCHER_FIRST = 30 -- seconds by which the launcher's timeout is shorter than a rank's: it knows best which rank failed

local current -- the job of this process, once it is known
local input   -- the code that was read from standard input
local prompt  -- whether the job is to have a prompt
local planned -- what this program plans for instead of training: see plan_for

-- Where another launcher started this process as a rank (torchrun, Slurm, mpirun), what scheduler_environment.detect found. A
-- program that one of lorarun's ranks started has the same variables, and is no rank.
local function started_by_others()
  if C.lr_rank_launched() ~= 0 or os.getenv "LORARUN_LAUNCHER" then return nil end
  local given = require("lorarun.dist.settings").given
  local said = { MASTER_ADDR = given "main_process_ip", MASTER_PORT = given "main_process_port" } -- beat the variables
  return require("lorarun.dist.scheduler_environment").detect(function(name)
    return said[name] and tostring(said[name]) or os.getenv(name)
  end)
end

-- Does a process that another launcher started start ranks itself? It does if it was started alone and several are wanted, and if
-- one process was started on each machine: `srun --ntasks-per-node=1 lorarun --num-machines 2 --num-processes 8` starts a launcher
-- on each, and tells it the machine's number.
local function is_launcher(s, found)
  if found.world_size == 1 then return true end
  if s.num_machines ~= found.world_size or s.num_processes == found.world_size or s.origin.num_machines == "default" then
    return false
  end
  if s.origin.machine_rank == "default" then require("lorarun.dist.settings").set_machine(s, found.rank, found.by) end
  return true
end

--- Called before any code of the user's: only rank 0 prints.
function launch.prepare()
  if C.lr_rank_launched() ~= 0 then
    io.stdout:setvbuf "line" -- a pipe, of which C would pass on nothing until its buffer is full; a user may be watching
  else
    local found = started_by_others()
    if found and found.rank > 0 then check(C.lr_rank_mute()) end
  end
end

--- The program will open a prompt: rank 0 needs the terminal, and every rank runs what is typed there.
function launch.with_prompt() prompt = true end

--- Is this a rank of a job that has a prompt?
function launch.at_prompt() return C.lr_rank_launched() ~= 0 and os.getenv "LORARUN_PROMPT" == "1" end

--- Code that came on standard input: ranks get it on theirs.
function launch.standard_input(text) input = text end

--- The recipe failed: tell the launcher, which reports the rank that failed first and not those that failed because of it. The
--- other ranks get an error now, not when this process has tidied up.
function launch.gave_up(message)
  local peers = check.of_another_rank
  C.lr_rank_failed(message, peers and message:find(peers, 1, true) and 1 or 0)
  if current and current.world_size > 1 then require("lorarun.dist.comm").leave() end
end

-- ---- in a rank --------------------------------------------------------------------------------------------------------

local function variable(name)
  local value = tonumber(os.getenv(name))
  if not value then check.fail("the launcher of this rank gave it no %s", name) end
  return value
end

-- The job of this process, as recipes see it.
local function new_job(s, place)
  local gpus = s.use_cpu and 0 or C.lr_device_count(C.LR_CUDA)
  local cuda = gpus > 0
  if cuda then
    -- Each rank of a machine has a GPU of its own. lorarun's launcher makes those visible that gpu_ids names, in that order; a
    -- scheduler may have made one visible to each rank.
    local index = gpus == 1 and 0 or place.local_rank
    if s.gpus and C.lr_rank_launched() == 0 then
      require("lorarun.dist.preflight").must_have_ids(s, gpus)
      index = s.gpus[place.local_rank + 1] or check.fail("gpu_ids is %s (%s), and this machine has %d ranks; name a GPU for each",
        s.gpu_ids, s.origin.gpu_ids, place.local_world_size)
    end
    check(C.lr_device_choose(C.LR_CUDA, index))
    if C.lr_device_available(C.LR_CUDA) == 0 then -- on the CPU the job would take days
      check.fail("the GPU cannot be used: %s; `lorarun doctor` tells more, --cpu trains on the CPU",
        ffi.string(C.lr_device_missing(C.LR_CUDA)))
    end
    require("lorarun.tensor.tensor").default_device = "cuda" -- where models and tensors are from here on
  else
    require("lorarun.dist.preflight").must_have_gpu(s)
    check(C.lr_threads_start())
  end
  return { rank = place.rank, world_size = place.world_size, local_rank = place.local_rank,
    local_world_size = place.local_world_size, machine_rank = place.machine_rank, generation = place.generation or 0,
    precision = s.precision, device = cuda and "cuda" or "cpu" }
end

-- NCCL takes a GPU for one rank alone, and would say so only when gradients are first added up. Ranks that claim to be on machines
-- of their own (NCCL_HOSTID) are believed, as NCCL believes them.
local function refuse_shared_gpus()
  local sharing = require("lorarun.dist.gpu").ranks()
  if sharing > 1 and not os.getenv "NCCL_HOSTID" then
    check.fail("%d ranks have the same GPU, and each needs one of its own: start fewer ranks on this machine, or let each see "
      .. "another GPU (CUDA_VISIBLE_DEVICES)", sharing)
  end
end

local function join(job, at)
  if job.world_size == 1 then return end
  C.lr_rank_waits "the start of the job"
  require("lorarun.dist.comm").join { rank = job.rank, world_size = job.world_size, local_rank = job.local_rank,
    local_world_size = job.local_world_size, generation = job.generation, host = at.host, port = at.port, secret = at.secret,
    timeout = at.timeout, serve = at.serve }
  C.lr_rank_waits(nil)
  if device_traits.itself(job.device).own_memory then refuse_shared_gpus() end
end

local function join_launched(s)
  local job = new_job(s, { rank = variable "RANK", world_size = variable "WORLD_SIZE", local_rank = variable "LOCAL_RANK",
    local_world_size = variable "LOCAL_WORLD_SIZE", machine_rank = variable "GROUP_RANK",
    generation = variable "LORARUN_GENERATION" })
  io.stdout:flush()
  check(C.lr_rank_show())
  join(job, { host = os.getenv "MASTER_ADDR", port = variable "MASTER_PORT", secret = secret.given(),
    timeout = s.timeout + LAUNCHER_FIRST })
  return job
end

-- Where another launcher started the ranks, nothing that the user said about them is ignored. A recipe's own numbers are for a
-- start without another launcher.
local function refuse_contradictions(s, found)
  local function said(name) return ("%s is %s (%s)"):format(name, tostring(s[name]), s.origin[name]) end
  local theirs = ("%s started %d ranks"):format(found.by, found.world_size)
  local number = s.origin.num_processes
  if number ~= "default" and number ~= "recipe" and s.num_processes ~= found.world_size then
    check.fail("%s, but %s; leave it out, or: %s", said "num_processes", theirs, found.fewer)
  end
  for _, name in ipairs { "num_machines", "machine_rank", "max_restarts", "log_dir" } do
    if s.origin[name] == "command line" then
      check.fail("%s, but %s: machines, restarts and logs are its own; leave --%s out, or: %s", said(name), theirs,
        (name:gsub("_", "-")), found.fewer)
    end
  end
end

-- The number of this machine where it was not given: machines count in the order of their first ranks. All ranks call it.
local function count_machines()
  local own, known, n = fs.first_line "/proc/sys/kernel/random/boot_id" or "", {}, -1
  local comm = require "lorarun.dist.comm"
  for _, machine in ipairs(comm.all_gather_bytes(own)) do
    if not known[machine] then known[machine], n = n + 1, n + 1 end
  end
  return known[own]
end

-- Ranks that another launcher started: rank 0 serves the store itself.
local function join_others(s, found)
  refuse_contradictions(s, found)
  if s.num_cpu_threads_per_process > 0 then check(C.lr_threads_set(s.num_cpu_threads_per_process)) end
  local job = new_job(s, found)
  join(job, { host = found.main_process_ip, port = found.main_process_port, secret = s.secret, timeout = s.timeout, serve = true })
  job.machine_rank = job.machine_rank or count_machines()
  return job
end

-- ---- in the launcher --------------------------------------------------------------------------------------------------

-- The words this program was started with.
local function own_words()
  local f = assert(io.open("/proc/self/cmdline", "rb"))
  local text, words = f:read "*a", {}
  f:close()
  for word in text:gmatch "([^%z]*)%z" do words[#words + 1] = word end
  return words
end

-- A secret that only this job's processes know, so that no other process of the machine can join it.
local function new_secret()
  local f = assert(io.open("/dev/urandom", "rb"))
  local bytes = f:read(16)
  f:close()
  return (bytes:gsub(".", function(byte) return ("%02x"):format(byte:byte()) end))
end

-- The variables of ranks besides torchrun's.
local function environment_of_ranks(s)
  local environment = {}
  if s.num_cpu_threads_per_process > 0 then
    environment.OMP_NUM_THREADS = s.num_cpu_threads_per_process
  elseif not os.getenv "OMP_NUM_THREADS" then
    environment.OMP_NUM_THREADS = math.max(1, math.floor(C.lr_cores() / s.ranks_here))
  end
  if prompt then environment.LORARUN_PROMPT = "1" end
  environment.LORARUN_GROUP = new_secret():sub(1, 16)
  if s.gpu_ids and s.gpu_ids ~= "all" and not s.use_cpu then environment.CUDA_VISIBLE_DEVICES = s.gpu_ids:gsub("%s", "") end
  return environment
end

local function has_output(given) return given.output ~= nil and given.output ~= "" end

-- clean_up(output): see launch().
local function supervise(s, given, clean_up)
  io.stdout:flush()
  say.error_line(("starting %d rank%s; checked first:"):format(s.num_processes, s.num_processes == 1 and "" or "s"))
  require("lorarun.dist.preflight").check(s, given, say.error_line) -- standard output is the recipe's
  local several, environment, lock = s.num_machines > 1, environment_of_ranks(s), nil
  if has_output(given) and s.machine_rank == 0 then -- rank 0, which writes there, is this machine's
    lock = require("lorarun.dist.run_lock").take(given.output)
    lock:for_ranks(environment)
  end
  local status = require("lorarun.dist.launcher.supervisor").run {
    words = own_words(), input = input, prompt = prompt, environment = environment, world_size = s.num_processes,
    first_rank = s.first_rank, ranks = s.ranks_here, machine_rank = s.machine_rank, machines = s.num_machines,
    host = several and s.main_process_ip or "127.0.0.1", port = s.main_process_port or 0, secret = s.secret or new_secret(),
    timeout = s.timeout, rendezvous_timeout = s.rendezvous_timeout, max_restarts = s.max_restarts, log_dir = s.log_dir,
  }
  if lock then
    if clean_up then clean_up(given.output) end
    lock:release()
  end
  os.exit(status, true)
end

-- ---- planning ---------------------------------------------------------------------------------------------------------

--- plan_for(what): this program plans a run instead of doing it (plan/init.lua). lr.launch then starts no ranks: the job is one
--- rank alone with job.plan = what, { device = "cuda" or "cpu", ... }, and what.processes becomes the number of ranks that the
--- recipe or the command line asks for. lr.load_model loads onto the meta device, for which config.json is enough; lr.train plans;
--- lr.has_gpu answers for `what`; lr.bugdata.from_this_machine makes no data.
function launch.plan_for(what)
  planned = what
  check(C.lr_meta_like(device_traits.DEVICES[what.device]))
end

--- planned(): what this program plans for, or nil where it trains.
function launch.planned() return planned end

local function planned_job(s)
  if s.needs_gpu and not device_traits.itself(planned.device).own_memory then
    check.fail("%s asks for GPUs; say which to plan for: --gpu h100, or --gpu-memory 80GB", s.needs_gpu)
  end
  planned.processes = s.num_processes
  return { rank = 0, world_size = 1, local_rank = 0, local_world_size = 1, machine_rank = 0, generation = 0,
    precision = s.precision, device = planned.device, plan = planned }
end

-- ---- for recipes ------------------------------------------------------------------------------------------------------

--- launch(options) -> the job: rank, world_size, local_rank, local_world_size, machine_rank, generation (restarts so far),
--- precision, device. options: settings of settings.lua, and model, data, output, which the launcher checks before it starts ranks.
--- clean_up(output) is called when the ranks have ended: some may have been killed while they wrote there.
function launch.launch(given, clean_up)
  if current then check.fail("the job is under way: lr.launch comes once, and before the model, training or lr.comm") end
  given = given or {}
  local s = require("lorarun.dist.settings").resolve(given)
  local found = not planned and started_by_others() or nil
  if C.lr_rank_launched() == 0 and (not found or found.rank == 0) then -- a rank's launcher has said it
    for _, text in ipairs(s.warnings) do say.warning("%s", text) end
  end
  if planned then
    current = planned_job(s)
  elseif C.lr_rank_launched() ~= 0 then
    current = join_launched(s)
  elseif found and not is_launcher(s, found) then
    current = join_others(s, found)
  elseif s.num_processes > 1 or s.max_restarts > 0 or s.log_dir then
    supervise(s, given, clean_up)
  else
    if s.num_cpu_threads_per_process > 0 then check(C.lr_threads_set(s.num_cpu_threads_per_process)) end
    require("lorarun.dist.preflight").check(s, given, function() end) -- as for several ranks, and silent where all is well
    current = new_job(s, { rank = 0, world_size = 1, local_rank = 0, local_world_size = 1, machine_rank = 0 })
  end
  return current
end

--- The job of this process. A recipe that has not called lr.launch by the time it needs the job has it done with no options.
function launch.job()
  return current or launch.launch {}
end

return launch
