-- Ranks that somebody else started: the variables of torchrun, Slurm and mpirun.
local environment = require "lorarun.environment"

local function detect(variables)
  return environment.detect(function(name) return variables[name] end)
end

test("without such variables lorarun starts its ranks itself", function()
  check.equal(detect {}, nil)
  check.equal(detect { SLURM_PROCID = "0", SLURM_NTASKS = "4", SLURM_JOB_ID = "7" }, nil, "a batch script is no rank")
end)

test("torchrun", function()
  local r = detect { RANK = "5", WORLD_SIZE = "8", LOCAL_RANK = "1", LOCAL_WORLD_SIZE = "4", GROUP_RANK = "1", MASTER_ADDR = "a",
    MASTER_PORT = "29501" }
  check.equal(r.by, "torchrun")
  check.equal(r.rank, 5)
  check.equal(r.world_size, 8)
  check.equal(r.local_rank, 1)
  check.equal(r.local_world_size, 4)
  check.equal(r.machine_rank, 1)
  check.equal(r.main_process_ip, "a")
  check.equal(r.main_process_port, 29501)
  local alone = detect { RANK = "1", WORLD_SIZE = "2" }
  check.equal(alone.main_process_ip, "127.0.0.1")
  check.equal(alone.local_rank, 1)
end)

test("Slurm", function()
  local job = { SLURM_STEP_ID = "0", SLURM_PROCID = "6", SLURM_STEP_NUM_TASKS = "7", SLURM_LOCALID = "2", SLURM_NODEID = "1",
    SLURM_STEP_TASKS_PER_NODE = "4,3", SLURM_JOB_NODELIST = "node[003-010,12],login1", SLURM_JOB_ID = "123456" }
  local r = detect(job)
  check.equal(r.by, "slurm")
  check.equal(r.local_world_size, 3)
  check.equal(r.local_rank, 2)
  check.equal(r.main_process_ip, "node003")
  check.equal(r.main_process_port, 20000 + 123456 % 12000)
  job.SLURM_STEP_TASKS_PER_NODE = "3(x2),1"
  check.equal(detect(job).local_world_size, 3)
end)

test("Slurm's lists of hosts", function()
  for list, first in pairs { ["a"] = "a", ["a,b"] = "a", ["n[1-3]"] = "n1", ["a[1-2]b[7-9],c"] = "a1b7", ["n[08,10]-ib"] = "n08-ib",
    ["gpu-1.cluster"] = "gpu-1.cluster" } do
    check.equal(environment.first_host(list), first, list)
  end
  for _, list in ipairs { "", "[", "a]b", "a b" } do check.raises("no list of hosts", environment.first_host, list) end
end)

test("Open MPI and PMI", function()
  local r = detect { OMPI_COMM_WORLD_RANK = "1", OMPI_COMM_WORLD_SIZE = "2", OMPI_COMM_WORLD_LOCAL_RANK = "1",
    OMPI_COMM_WORLD_LOCAL_SIZE = "2", OMPI_COMM_WORLD_NODE_RANK = "0" }
  check.equal(r.by, "openmpi")
  check.equal(r.local_rank, 1)
  check.equal(r.main_process_ip, "127.0.0.1")
  check.equal(detect { PMI_RANK = "0", PMI_SIZE = "2" }.by, "pmi")
end)

test("what cannot be is refused", function()
  check.raises("WORLD_SIZE is not set", detect, { RANK = "0" })
  check.raises("RANK is '-1'", detect, { RANK = "-1", WORLD_SIZE = "2" })
  check.raises("RANK is 2 and WORLD_SIZE is 2", detect, { RANK = "2", WORLD_SIZE = "2" })
  check.raises("MASTER_ADDR", detect, { PMI_RANK = "0", PMI_SIZE = "4", MPI_LOCALNRANKS = "2", MPI_LOCALRANKID = "0" })
  check.raises("this machine has 2 ranks", detect, { RANK = "0", WORLD_SIZE = "4", LOCAL_RANK = "3", LOCAL_WORLD_SIZE = "2" })
end)
