-- environment.lua: was this process started as one rank of many by somebody else: torchrun (or anything that sets its variables),
-- Slurm's srun, Open MPI's or another mpirun? Then it joins the others instead of starting ranks itself.
--   environment.detect([getenv])  -> { rank, world_size, local_rank, local_world_size, machine_rank, main_process_ip,
--                                      main_process_port, by } or nil; getenv(name) -> text or nil, os.getenv unless told
local check = require "lorarun.check"

local environment = {}

local FIRST_PORT, PORTS = 20000, 12000 -- where ports made from job numbers lie: below those the system hands out

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
function environment.first_host(list)
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

local LAUNCHERS = {
  { by = "torchrun", rank = { "RANK" }, world_size = { "WORLD_SIZE" }, local_rank = { "LOCAL_RANK" },
    local_world_size = { "LOCAL_WORLD_SIZE" }, machine_rank = { "GROUP_RANK" } },
  -- a batch script that runs without srun has SLURM_PROCID=0 too; only srun's tasks have a step
  { by = "slurm", mark = "SLURM_STEP_ID", rank = { "SLURM_PROCID" }, world_size = { "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS" },
    local_rank = { "SLURM_LOCALID" }, machine_rank = { "SLURM_NODEID" }, job = { "SLURM_JOB_ID" } },
  { by = "openmpi", rank = { "OMPI_COMM_WORLD_RANK" }, world_size = { "OMPI_COMM_WORLD_SIZE" },
    local_rank = { "OMPI_COMM_WORLD_LOCAL_RANK" }, local_world_size = { "OMPI_COMM_WORLD_LOCAL_SIZE" },
    machine_rank = { "OMPI_COMM_WORLD_NODE_RANK" } },
  { by = "pmi", rank = { "PMI_RANK" }, world_size = { "PMI_SIZE" }, local_rank = { "MPI_LOCALRANKID" },
    local_world_size = { "MPI_LOCALNRANKS" } },
}

-- Ranks of this machine, where Slurm says it: SLURM_STEP_TASKS_PER_NODE "4(x2),3": four on each of two machines, then three.
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

function environment.detect(getenv)
  getenv = getenv or os.getenv
  for _, l in ipairs(LAUNCHERS) do
    local rank = (not l.mark or getenv(l.mark)) and first_of(getenv, l.rank)
    local world_size = rank and first_of(getenv, l.world_size)
    if rank and not world_size then
      check.fail("%s is %d, but %s is not set; set both, or neither to let lorarun start the ranks", l.rank[1], rank,
        l.world_size[1])
    elseif rank then
      if world_size < 1 or rank >= world_size then
        check.fail("%s is %d and %s is %d: ranks are numbered from 0 to one less than their number", l.rank[1], rank,
          l.world_size[1], world_size)
      end
      local found = { by = l.by, rank = rank, world_size = world_size, machine_rank = first_of(getenv, l.machine_rank or {}) or 0 }
      found.local_world_size = first_of(getenv, l.local_world_size or {})
        or tasks_of_machine(getenv "SLURM_STEP_TASKS_PER_NODE", found.machine_rank) or world_size
      found.local_rank = first_of(getenv, l.local_rank) or rank % found.local_world_size
      if found.local_rank >= found.local_world_size then
        check.fail("%s is %d, but this machine has %d ranks", l.local_rank[1], found.local_rank, found.local_world_size)
      end
      local several = found.local_world_size < world_size
      local job = l.job and first_of(getenv, l.job)
      local nodes = l.by == "slurm" and (getenv "SLURM_JOB_NODELIST" or getenv "SLURM_NODELIST")
      found.main_process_ip = getenv "MASTER_ADDR" or (several and nodes and environment.first_host(nodes))
        or (not several and "127.0.0.1") or nil
      found.main_process_port = number(getenv, "MASTER_PORT") or (job and FIRST_PORT + job % PORTS) or 29500
      if not found.main_process_ip then
        check.fail("%s started rank %d of %d on several machines, and nothing says where rank 0 is; set MASTER_ADDR (and "
          .. "MASTER_PORT) to an address of its machine", l.by, rank, world_size)
      end
      return found
    end
  end
end

return environment
