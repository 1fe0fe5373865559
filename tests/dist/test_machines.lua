-- test_machines.lua: a job on two machines, played by two launchers on this machine, over its loopback interface with a secret.
-- Tests that need two networks are in test_namespaces.sh.
local fs = require "lorarun.base.fs"
local launched = dofile(os.getenv "LORARUN_TESTS" .. "/dist/launched.lua")
local ranks = dofile(os.getenv "LORARUN_TESTS" .. "/dist/ranks.lua")

-- Runs a recipe on machines with two ranks each, then calls look(machine 0's result, machine 1's, folder, machine 2's ...).
-- flags, environment: for all machines; flags1, environment1: for machine 1 instead. numbers: the machines, by default { 0, 1 }.
local function run(options, code, look)
  local flags = options.flags or "--num-processes 4 --num-machines 2"
  local environment = options.environment or "LORARUN_SECRET=open-sesame-open-sesame"
  local address = ("--main-process-ip 127.0.0.1 --main-process-port %d"):format(ranks.free_port())
  local numbers = options.numbers or { 0, 1 }
  local command = {}
  for i = 2, #numbers do
    command[#command + 1] = ("(%s $L %s %s --machine-rank %d ./recipe.lua >out%d 2>err%d; echo $? >status%d) &"):format(
      i == 2 and options.environment1 or environment, i == 2 and options.flags1 or flags, address, numbers[i], i, i, i)
  end
  command[#command + 1] = ("%s $L %s %s --machine-rank 0 ./recipe.lua; s=$?; wait; (exit $s)"):format(environment, flags, address)
  launched.run(code, function(r, folder)
    local others, all = {}, ("\n---- machine 0, status %s\n%s"):format(r.status, r.all)
    for i = 2, #numbers do
      local function read(what) return fs.read(("%s/%s%d"):format(folder, what, i)) end
      others[#others + 1] = { status = tonumber(read "status"), out = read "out", err = read "err" }
      all = all .. ("---- machine %d, status %s\n%s"):format(numbers[i], read "status", read "out" .. read "err")
    end
    local ok, err = pcall(look, r, others[1], folder, others[2])
    if not ok then error(err .. all, 0) end
  end, table.concat(command, " "))
end

local function has(text, ...)
  for _, part in ipairs { ... } do
    if not text:find(part, 1, true) then error(("no '%s' in:\n%s"):format(part, text), 2) end
  end
end

test("four ranks on two machines", function()
  run({}, [[
    local job = lr.launch {}
    local sum = lr.comm.all_reduce(job.rank)
    io.stderr:write(("rank %d local %d of %d machine %d sum %d\n"):format(job.rank, job.local_rank, job.local_world_size,
      job.machine_rank, sum))
    print("heard", job.rank)
  ]], function(r, other)
    check.equal(r.status, 0)
    check.equal(other.status, 0)
    check.equal(r.out, "heard\t0\n")
    check.equal(other.out, "")
    has(r.err, "rank 0 local 0 of 2 machine 0 sum 6\n", "[rank 1] rank 1 local 1 of 2 machine 0 sum 6\n")
    has(other.err, "[rank 2] rank 2 local 0 of 2 machine 1 sum 6\n", "[rank 3] rank 3 local 1 of 2 machine 1 sum 6\n")
  end)
end)

test("a launcher on each of Slurm's machines knows its number", function()
  local words = ("$L --num-machines 2 --num-processes 4 --main-process-ip 127.0.0.1 --main-process-port %d ./recipe.lua"):format(
    ranks.free_port())
  local function task(n) return ("SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_LOCALID=0 SLURM_PROCID=%d %s"):format(n, words) end
  launched.run([[
    local job = lr.launch {}
    io.stderr:write(("rank %d machine %d\n"):format(job.rank, job.machine_rank))
  ]], function(r)
    check.equal(r.status, 0)
    has(r.err, "rank 0 machine 0\n", "[rank 1] rank 1 machine 0\n", "[rank 2] rank 2 machine 1\n", "[rank 3] rank 3 machine 1\n")
  end, ("export LORARUN_SECRET=open-sesame-open-sesame; %s & %s; s=$?; wait; (exit $s)"):format(task(1), task(0)))
end)

local WORK = [[
  local job = lr.launch {}
  mark("pid" .. job.rank)
  local sum = 0
  for i = 1, 40 do
    if i == 20 and job.generation == 0 then
      local fate = FATE
    end
    sum = sum + lr.comm.all_reduce(job.rank)
  end
  print(sum)
]]

test("a rank that fails on either machine ends the job on both, and both name it", function()
  for rank = 0, 3, 3 do
    run({}, WORK:gsub("FATE", ("job.rank == %d and signal_self(9)"):format(rank)), function(r, other, folder)
      check.equal(r.status, 137)
      check.equal(other.status, 137)
      has(r.err, ("lorarun: rank %d on "):format(rank), "was killed by SIGKILL")
      has(other.err, ("lorarun: rank %d on "):format(rank), "was killed by SIGKILL")
      launched.expect_gone(folder, 4)
    end)
  end
end)

test("an error on the other machine is shown with the last lines of its rank", function()
  run({}, WORK:gsub("FATE", "job.rank == 2 and error 'over there'"), function(r, other)
    check.equal(r.status, 1)
    check.equal(other.status, 1)
    has(r.err, "lorarun: rank 2 on ", "over there\n  the last that rank 2 wrote:\n  | lorarun: ")
    has(other.err, "[rank 2] lorarun: ")
  end)
end)

test("a restart starts the ranks of all machines", function()
  for rank = 0, 3, 3 do
    run({ flags = "--num-processes 4 --num-machines 2 --max-restarts 2" },
      WORK:gsub("FATE", ("job.rank == %d and os.exit(5)"):format(rank)), function(r, other)
        check.equal(r.status, 0)
        check.equal(other.status, 0)
        check.equal(r.out, "240\n")
        has(r.err, "ended with exit status 5", "lorarun: restart 1 of 2\n")
        has(other.err, "lorarun: restart 1 of 2\n")
      end)
  end
end)

test("a rank that stalls on the other machine is named", function()
  run({ flags = "--num-processes 4 --num-machines 2 --timeout 6" }, WORK:gsub("FATE", "job.rank == 3 and signal_self(19)"),
    function(r, other, folder)
      check.equal(r.status, 1)
      check.equal(other.status, 1)
      has(r.err, "lorarun: rank 3 on ", "where ranks 0, 1 and 2 wait for it, for 6 s (is stopped (SIGSTOP))")
      launched.expect_gone(folder, 4)
    end)
end)

test("a signal to one launcher stops the ranks of both", function()
  for rank = 0, 3, 3 do
    run({}, ([[
      local job = lr.launch {}
      C.lr_signal_catch(1)
      mark("pid" .. job.rank)
      wait_for(function() return marked "pid0" and marked "pid1" and marked "pid2" and marked "pid3" end)
      if job.rank == %d then signal_launcher(15) end
      local signal = 0
      wait_for(function()
        signal = C.lr_signal_pending()
        return signal ~= 0
      end)
      mark("left" .. job.rank)
      os.exit(128 + signal)
    ]]):format(rank), function(r, other, folder)
      check.equal(r.status, 143)
      check.equal(other.status, 143)
      for i = 0, 3 do check.that(fs.exists(folder .. "/left" .. i), "rank " .. i) end
      has(r.err, "SIGTERM: the ranks finish their step and leave")
    end)
  end
end)

test("a machine whose launcher is killed is lost, and the job ends", function()
  run({}, WORK:gsub("FATE", "job.rank == 3 and signal_launcher(9)"), function(r, other, folder)
    check.equal(other.status, 137)
    check.equal(r.status, 1)
    has(r.err, "lorarun: machine 1 (", ") is lost")
    check.that(r.seconds < 60)
    launched.expect_gone(folder, 4)
  end)
end)

test("if machine 0 is lost, the others stop within seconds", function()
  run({}, WORK:gsub("FATE", "job.rank == 0 and signal_launcher(9)"), function(r, other, folder)
    check.equal(r.status, 137)
    check.equal(other.status, 1)
    has(other.err, "lorarun: machine 0 (", ") is lost")
    check.that(r.seconds < 30)
    launched.expect_gone(folder, 4)
  end)
end)

test("settings that must be the same on all machines", function()
  local nothing_started = "lr.launch { rendezvous_timeout = 4 } mark('pid' .. os.getenv 'RANK')"
  local function refused(options, main, other)
    run(options, nothing_started, function(r, second, folder, third)
      for machine, result in pairs { [0] = r, second, third } do
        check.equal(result.status, 1, "status of machine " .. machine)
        has(result.err, machine == 0 and main or other)
      end
      for rank = 0, 3 do check.that(not fs.exists(folder .. "/pid" .. rank), "a rank was started") end
    end)
  end
  local processes = "num_processes is 2 on machine 1 ("
  refused({ flags1 = "--num-processes 2 --num-machines 2" }, processes, processes)
  refused({ environment1 = "LORARUN_SECRET=guessed-and-wrong" }, "machine 1 of 2 did not come to 127.0.0.1:", "the secret differs")
  refused({ flags1 = "--num-processes 6 --num-machines 3" }, "expects 3 machines, this job has 2",
    "expects 3 machines, this job has 2")
  local twice = "two processes are machine 1, one at 127.0.0.1 and one at 127.0.0.1; give each a --machine-rank of its own"
  refused({ flags = "--num-processes 3 --num-machines 3", numbers = { 0, 1, 1 } }, twice, twice)
end)

test("several machines do not start without a secret, or with an address that no machine has", function()
  run({ environment = "" }, "lr.launch {}", function(r, other)
    for _, result in ipairs { r, other } do
      check.equal(result.status, 1)
      has(result.err, "machines must share a secret")
    end
  end)
  launched.run("lr.launch {}", function(r)
    check.equal(r.status, 1)
    has(r.err, "192.0.2.1")
  end, "LORARUN_SECRET=open-sesame-open-sesame $L --num-processes 2 --num-machines 2 --main-process-ip 192.0.2.1 "
    .. "--machine-rank 0 ./recipe.lua")
end)

test("a machine that is stopped is lost after a while", function()
  run({}, WORK:gsub("FATE", [[job.rank == 3 and (function()
    local launcher = ffi.C.getppid()
    os.execute("(sleep 25; kill -CONT " .. launcher .. ") >/dev/null 2>&1 &")
    signal_launcher(19)
  end)()]]), function(r, other)
    check.equal(r.status, 1)
    has(r.err, "lorarun: machine 1 (", ") is lost: nothing was heard of it for 15 s")
    check.equal(other.status, 1)
    has(other.err, "lorarun: machine 0 (", ") is lost")
  end)
end)
