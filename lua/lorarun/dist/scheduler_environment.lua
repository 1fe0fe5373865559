-- scheduler_environment.lua: finds out from the environment whether another launcher started this process as one rank of several:
-- torchrun (or anything that sets its variables), Slurm's srun, Open MPI's or another mpirun. Such a process joins the others and
-- starts no ranks itself.
--   scheduler_environment.detect([getenv])  -> { rank, world_size, local_rank, local_world_size, machine_rank, main_process_ip,
--                                      main_process_port, by, fewer } or nil; getenv(name) -> text or nil; default: os.getenv.
--                                      machine_rank is nil where no variable has it; fewer: how to get another number of ranks
--   scheduler_environment.address(text, who) -> host, port or nil: of "node1", "10.0.0.1:29500", "::1", "[::1]", "[::1]:29500"
local check = require "lorarun.base.check"

local scheduler_environment = {}

local FIRST_PORT, PORTS = 20000, 12000 -- ports made from job numbers; below the system's ephemeral ones

local function number(getenv, name)
  local text = getenv(name)
  if not text or text == "" then return nil end
  local n = text:match "^%d+$" and tonumber(text)
  if not n then check.fail("%s is '%s', expected a whole number", name, text) end
  return n
end

-- The first of the variables that is set.
local function first_of(getenv, names)
  for _, name in ipairs(names) do
    local n = number(getenv, name)
    if n then return n end
  end
end

--- The first host of Slurm's short form of lists: node[003-010,12],login1 -> node003; a[1-2]b[7-9] -> a1b7.
function scheduler_environment.first_host(list)
  local depth, stop = 0, #list
  for i = 1, #list do
    local c = list:sub(i, i)
    if c == "[" then depth = depth + 1 elseif c == "]" then depth = depth - 1 end
    if c == "," and depth == 0 then stop = i - 1 break end
  end
  local host = list:sub(1, stop):gsub("%[([^%]]*)%]", function(numbers) return numbers:match "^(%d+)" or "" end)
  if host == "" or depth ~= 0 or not host:find "^[%w._-]+$" then
    check.fail("SLURM_JOB_NODELIST is '%s', which is no list of hosts; set MASTER_ADDR to the first machine's address", list)
  end
  return host
end

--- address(text, who): a host and, if the text has one, a port. An IPv6 address may be in brackets, and must be before a port. An
--- error begins with `who`.
function scheduler_environment.address(text, who)
  local host, port = text:match "^%[([%x:.]+%%?[%w._-]*)%]:?(%d*)$"
  if host and not text:find "%]:$" and host:find ":" then
    port = port ~= "" and port or nil
  elseif text:find "^[%x.]*:[%x.]*:[%x:.]*%%?[%w._-]*$" then
    host, port = text, nil
  else
    host, port = text:match "^([%w._-]+):(%d+)$"
    host = host or text:match "^[%w._-]+$"
  end
  port = tonumber(port)
  if not host or port and port > 65535 then
    check.fail("%s is '%s', expected a name or an address, with or without a port: node1, 10.0.0.1:29500, [fe80::1]:29500", who,
      text)
  end
  return host, port
end

-- The launchers in order of precedence: one that runs inside another comes first. mpirun on Slurm's machines starts its processes
-- by srun; they see Slurm's variables for the one process that mpirun has on their machine.
local LAUNCHERS = {
  { by = "torchrun", rank = { "RANK" }, world_size = { "WORLD_SIZE" }, local_rank = { "LOCAL_RANK" },
    local_world_size = { "LOCAL_WORLD_SIZE" }, machine_rank = { "GROUP_RANK" },
    fewer = "unset RANK and WORLD_SIZE, and lorarun starts its ranks itself" },
  -- OMPI_COMM_WORLD_NODE_RANK is no machine's number: it counts the processes of a machine, over all jobs there
  { by = "openmpi", rank = { "OMPI_COMM_WORLD_RANK" }, world_size = { "OMPI_COMM_WORLD_SIZE" },
    local_rank = { "OMPI_COMM_WORLD_LOCAL_RANK" }, local_world_size = { "OMPI_COMM_WORLD_LOCAL_SIZE" } },
  { by = "mvapich", rank = { "MV2_COMM_WORLD_RANK" }, world_size = { "MV2_COMM_WORLD_SIZE" },
    local_rank = { "MV2_COMM_WORLD_LOCAL_RANK" }, local_world_size = { "MV2_COMM_WORLD_LOCAL_SIZE" } },
  -- Hydra's and Intel's mpiexec set the local rank; srun --mpi=pmi2 does not, and its own variables say more
  { by = "pmi", mark = "MPI_LOCALRANKID", rank = { "PMI_RANK" }, world_size = { "PMI_SIZE" }, local_rank = { "MPI_LOCALRANKID" },
    local_world_size = { "MPI_LOCALNRANKS" } },
  -- a batch script that runs without srun has SLURM_PROCID=0 too; only srun's tasks have a step
  { by = "slurm", mark = "SLURM_STEP_ID", rank = { "SLURM_PROCID" }, world_size = { "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS" },
    local_rank = { "SLURM_LOCALID" }, machine_rank = { "SLURM_NODEID" }, job = "SLURM_JOB_ID", step = "SLURM_STEP_ID",
    fewer = "srun --ntasks=N starts N ranks, and a single task starts its own" },
  { by = "pmi", rank = { "PMI_RANK" }, world_size = { "PMI_SIZE" }, local_rank = {} },
}
local BY_MPIRUN = "mpirun -n N starts N ranks"

-- The number of ranks on this machine, where Slurm says it: SLURM_STEP_TASKS_PER_NODE "4(x2),3": four on each of two machines, then
-- three.
local function tasks_of_machine(list, machine)
  local at = 0
  for part in (list or ""):gmatch "[^,]+" do
    local tasks, times = part:match "^(%d+)%(x(%d+)%)$"
    tasks, times = tonumber(tasks or part:match "^%d+$"), tonumber(times or 1)
    if not tasks then return nil end
    at = at + times
    if machine < at then return tasks end
  end
end

-- The first launcher that says this process is one of several; else the first that says it is one of one.
local function find_launcher(getenv)
  local alone
  for _, l in ipairs(LAUNCHERS) do
    local there = not l.mark or getenv(l.mark)
    local rank, world_size = there and first_of(getenv, l.rank), there and first_of(getenv, l.world_size)
    if rank and not world_size or l.by == "torchrun" and (world_size or 1) > 1 and not rank then
      check.fail("%s is %d, but %s is not set; set both, or neither to let lorarun start the ranks", rank and l.rank[1]
        or l.world_size[1], rank or world_size, rank and l.world_size[1] or l.rank[1])
    elseif rank and world_size then
      if world_size < 1 or rank >= world_size then
        check.fail("%s is %d and %s is %d: ranks are numbered from 0 to one less than their number", l.rank[1], rank,
          l.world_size[1], world_size)
      end
      local found = { launcher = l, rank = rank, world_size = world_size }
      if world_size > 1 then return found end
      alone = alone or found
    end
  end
  return alone
end

-- The address of rank 0: MASTER_ADDR, else the first of Slurm's machines, else this machine if all ranks are here.
local function main_process(getenv, found, l)
  local several = found.local_world_size < found.world_size
  local nodes = getenv "SLURM_STEP_NODELIST" or getenv "SLURM_JOB_NODELIST" or getenv "SLURM_NODELIST"
  local job, text = l.job and number(getenv, l.job), getenv "MASTER_ADDR"
  local host, port
  if text and text ~= "" then
    host, port = scheduler_environment.address(text, "MASTER_ADDR")
  elseif several then
    host = nodes and scheduler_environment.first_host(nodes) or check.fail("%s started rank %d of %d on several machines, and "
      .. "nothing says where rank 0 is; set MASTER_ADDR (and MASTER_PORT) to an address of its machine, or give "
      .. "--main-process-ip", l.by, found.rank, found.world_size)
  end
  port = number(getenv, "MASTER_PORT") or port or job and FIRST_PORT + (job + (number(getenv, l.step) or 0)) % PORTS or 29500
  if port < 1 or port > 65535 then check.fail("MASTER_PORT is %d, expected 1 to 65535: all ranks must know it", port) end
  return host or "127.0.0.1", port
end

function scheduler_environment.detect(getenv)
  getenv = getenv or os.getenv
  local found = find_launcher(getenv)
  if not found then return nil end
  local l = found.launcher
  found.launcher, found.by, found.fewer = nil, l.by, l.fewer or BY_MPIRUN
  found.machine_rank = first_of(getenv, l.machine_rank or {})
  found.local_world_size = first_of(getenv, l.local_world_size or {}) or l.by == "slurm"
    and tasks_of_machine(getenv "SLURM_STEP_TASKS_PER_NODE", found.machine_rank or 0) or found.world_size
  if found.local_world_size > found.world_size then
    check.fail("%s is %d, more than the %d ranks that there are", l.local_world_size[1], found.local_world_size, found.world_size)
  end
  found.local_rank = first_of(getenv, l.local_rank) or found.rank % found.local_world_size
  if found.local_rank >= found.local_world_size then
    check.fail("%s is %d, but this machine has %d ranks", l.local_rank[1], found.local_rank, found.local_world_size)
  end
  if found.local_world_size == found.world_size then found.machine_rank = found.machine_rank or 0 end
  found.main_process_ip, found.main_process_port = main_process(getenv, found, l)
  return found
end

return scheduler_environment
