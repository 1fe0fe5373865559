-- Ranks that another launcher started: the variables of torchrun, Slurm and mpirun.
local scheduler_environment = require "lorarun.dist.scheduler_environment"

local function detect(variables)
  return scheduler_environment.detect(function(name) return variables[name] end)
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
    check.equal(scheduler_environment.first_host(list), first, list)
  end
  for _, list in ipairs { "", "[", "a]b", "a b" } do check.raises("no list of hosts", scheduler_environment.first_host, list) end
end)

test("Open MPI and PMI", function()
  local r = detect { OMPI_COMM_WORLD_RANK = "1", OMPI_COMM_WORLD_SIZE = "2", OMPI_COMM_WORLD_LOCAL_RANK = "1",
    OMPI_COMM_WORLD_LOCAL_SIZE = "2", OMPI_COMM_WORLD_NODE_RANK = "0" }
  check.equal(r.by, "openmpi")
  check.equal(r.local_rank, 1)
  check.equal(r.main_process_ip, "127.0.0.1")
  check.equal(detect { PMI_RANK = "0", PMI_SIZE = "2" }.by, "pmi")
end)

test("the number of a machine is not what Open MPI calls a node rank", function()
  local r = detect { OMPI_COMM_WORLD_RANK = "1", OMPI_COMM_WORLD_SIZE = "2", OMPI_COMM_WORLD_LOCAL_RANK = "1",
    OMPI_COMM_WORLD_LOCAL_SIZE = "2", OMPI_COMM_WORLD_NODE_RANK = "1" }
  check.equal(r.machine_rank, 0, "of the only machine")
  r = detect { OMPI_COMM_WORLD_RANK = "1", OMPI_COMM_WORLD_SIZE = "4", OMPI_COMM_WORLD_LOCAL_RANK = "1",
    OMPI_COMM_WORLD_LOCAL_SIZE = "2", OMPI_COMM_WORLD_NODE_RANK = "1", MASTER_ADDR = "a" }
  check.equal(r.machine_rank, nil, "which no variable has")
  r = detect { RANK = "1", WORLD_SIZE = "4", LOCAL_WORLD_SIZE = "2", LOCAL_RANK = "1", MASTER_ADDR = "a" }
  check.equal(r.machine_rank, nil)
end)

test("of several launchers the innermost counts, which started this process itself", function()
  -- mpirun on Slurm's machines: srun has started one process a machine, mpirun two in each
  local r = detect { SLURM_STEP_ID = "0", SLURM_PROCID = "1", SLURM_STEP_NUM_TASKS = "2", SLURM_LOCALID = "0", SLURM_NODEID = "1",
    SLURM_JOB_ID = "7", SLURM_JOB_NODELIST = "n[1-2]", OMPI_COMM_WORLD_RANK = "3", OMPI_COMM_WORLD_SIZE = "4",
    OMPI_COMM_WORLD_LOCAL_RANK = "1", OMPI_COMM_WORLD_LOCAL_SIZE = "2" }
  check.equal(r.by, "openmpi")
  check.equal(r.rank, 3)
  check.equal(r.main_process_ip, "n1")
  -- srun --mpi=pmi2: both say the same, and Slurm's variables say more
  r = detect { SLURM_STEP_ID = "0", SLURM_PROCID = "3", SLURM_STEP_NUM_TASKS = "4", SLURM_LOCALID = "1", SLURM_NODEID = "1",
    SLURM_STEP_TASKS_PER_NODE = "2(x2)", SLURM_JOB_NODELIST = "n[1-2]", PMI_RANK = "3", PMI_SIZE = "4" }
  check.equal(r.by, "slurm")
  check.equal(r.local_rank, 1)
  -- Hydra inside Slurm
  r = detect { SLURM_STEP_ID = "0", SLURM_PROCID = "0", SLURM_STEP_NUM_TASKS = "2", PMI_RANK = "1", PMI_SIZE = "4",
    MPI_LOCALRANKID = "1", MPI_LOCALNRANKS = "2", SLURM_JOB_NODELIST = "n[1-2]" }
  check.equal(r.by, "pmi")
  check.equal(r.rank, 1)
  -- a container that sets RANK and WORLD_SIZE for itself does not hide mpirun
  r = detect { RANK = "0", WORLD_SIZE = "1", OMPI_COMM_WORLD_RANK = "1", OMPI_COMM_WORLD_SIZE = "2" }
  check.equal(r.rank, 1)
  check.equal(detect { RANK = "0", WORLD_SIZE = "1" }.world_size, 1)
  check.equal(detect { MV2_COMM_WORLD_RANK = "1", MV2_COMM_WORLD_SIZE = "2", MV2_COMM_WORLD_LOCAL_RANK = "1" }.local_rank, 1)
end)

test("a step of Slurm on some of the job's machines, and two steps at once", function()
  local step = { SLURM_STEP_ID = "3", SLURM_PROCID = "0", SLURM_STEP_NUM_TASKS = "2", SLURM_STEP_TASKS_PER_NODE = "1(x2)",
    SLURM_LOCALID = "0", SLURM_NODEID = "0", SLURM_JOB_NODELIST = "n[1-4]", SLURM_STEP_NODELIST = "n[3-4]", SLURM_JOB_ID = "100" }
  check.equal(detect(step).main_process_ip, "n3")
  check.equal(detect(step).main_process_port, 20103)
end)

test("addresses", function()
  for text, expected in pairs { ["node1"] = "node1", ["a-b.c_d"] = "a-b.c_d", ["10.0.0.1"] = "10.0.0.1", ["10.0.0.1:29501"] =
    "10.0.0.1 29501", ["node1:1"] = "node1 1", ["::1"] = "::1", ["[::1]"] = "::1", ["[::1]:29501"] = "::1 29501",
    ["fe80::1%eth0"] = "fe80::1%eth0", ["[fe80::1%eth0]:5"] = "fe80::1%eth0 5", ["2001:db8::2:1"] = "2001:db8::2:1",
    ["::ffff:10.0.0.1"] = "::ffff:10.0.0.1" } do
    local host, port = scheduler_environment.address(text, "who")
    check.equal(host .. (port and " " .. port or ""), expected, text)
  end
  for _, text in ipairs { "", "a b", "http://a", "a/b", "[::1", "[a]", "[::1]:", "[::1]x", "a:", "a:x", "a:65536", ":29500",
    "[]" } do
    check.raises(("who is '%s', expected a name or an address"):format(text), scheduler_environment.address, text, "who")
  end
  local r = detect { RANK = "0", WORLD_SIZE = "2", MASTER_ADDR = "[::1]:29511" }
  check.equal(r.main_process_ip, "::1")
  check.equal(r.main_process_port, 29511)
  check.equal(detect { RANK = "0", WORLD_SIZE = "2", MASTER_ADDR = "", MASTER_PORT = "" }.main_process_ip, "127.0.0.1")
end)

test("variables that contradict each other or have impossible values are refused", function()
  check.raises("WORLD_SIZE is 2, but RANK is not set", detect, { WORLD_SIZE = "2" })
  check.equal(detect { WORLD_SIZE = "1" }, nil)
  check.raises("MASTER_PORT is 0, expected 1 to 65535", detect, { RANK = "0", WORLD_SIZE = "2", MASTER_PORT = "0" })
  check.raises("MASTER_ADDR is 'tcp://a'", detect, { RANK = "0", WORLD_SIZE = "2", MASTER_ADDR = "tcp://a" })
  check.raises("LOCAL_WORLD_SIZE is 4, more than the 2 ranks", detect, { RANK = "0", WORLD_SIZE = "2", LOCAL_WORLD_SIZE = "4" })
  check.raises("WORLD_SIZE is not set", detect, { RANK = "0" })
  check.raises("RANK is '-1'", detect, { RANK = "-1", WORLD_SIZE = "2" })
  check.raises("RANK is 2 and WORLD_SIZE is 2", detect, { RANK = "2", WORLD_SIZE = "2" })
  check.raises("MASTER_ADDR", detect, { PMI_RANK = "0", PMI_SIZE = "4", MPI_LOCALNRANKS = "2", MPI_LOCALRANKID = "0" })
  check.raises("this machine has 2 ranks", detect, { RANK = "0", WORLD_SIZE = "4", LOCAL_RANK = "3", LOCAL_WORLD_SIZE = "2" })
end)
