-- test_launch.lua: lr.launch and the launcher as a user sees them: the environment of ranks, what is shown, and how a job ends when
-- a rank fails or when signals come. Ranks run the recipes below; none uses a collective.
local ffi = require "ffi"
local fs = require "lorarun.base.fs"
local C = require "lorarun.base.c"
local launched = dofile(os.getenv "LORARUN_TESTS" .. "/dist/launched.lua")

local launch = launched.run

local function expect(r, status, out)
  check.equal(r.status, status, "status, with\n" .. r.all)
  if out then check.equal(r.out, out, "standard output") end
end

local function expect_text(r, ...)
  for _, part in ipairs { ... } do
    if not r.err:find(part, 1, true) then error(("no '%s' in:\n%s"):format(part, r.err), 2) end
  end
end

test("one process needs no launcher", function()
  launch([[
    local job = lr.launch { precision = "bf16" }
    print(job.rank, job.world_size, job.local_rank, job.local_world_size, job.generation, job.precision, os.getenv "RANK")
  ]], function(r) expect(r, 0, "0\t1\t0\t1\t0\tbf16\tnil\n") end)
end)

test("ranks see torchrun's variables and know the job", function()
  launch([[
    local job = lr.launch { processes = 3, precision = "bf16" }
    local names = { "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR" }
    for i, name in ipairs(names) do names[i] = os.getenv(name) end
    io.stderr:write(table.concat(names, " "), " ", tostring(tonumber(os.getenv "MASTER_PORT") > 0), " ", job.rank, " ",
      job.local_rank, " ", job.world_size, " ", job.precision, "\n")
  ]], function(r)
    expect(r, 0, "")
    expect_text(r, "0 0 3 3 0 127.0.0.1 true 0 0 3 bf16\n", "[rank 1] 1 1 3 3 0 127.0.0.1 true 1 1 3 bf16\n",
      "[rank 2] 2 2 3 3 0 127.0.0.1 true 2 2 3 bf16\n")
  end)
end)

test("cores are divided among the ranks, unless the user sets threads", function()
  local code = [[
    lr.launch { processes = 2 }
    if os.getenv "RANK" == "0" then print(lr.threads(), lr.threads(0), C.lr_cores()) end
  ]]
  launch(code, function(r)
    expect(r, 0)
    local threads, reset, cores = r.out:match "^(%d+)\t(%d+)\t(%d+)\n$"
    check.equal(tonumber(threads), math.max(1, math.floor(cores / 2)))
    check.equal(reset, threads)
  end, "env -u OMP_NUM_THREADS $L ./recipe.lua")
  launch(code, function(r) check.equal(r.out:match "^%d+", "3") end, "OMP_NUM_THREADS=3 $L ./recipe.lua")
end)

test("flags before the recipe decide, and the checks are shown", function()
  launch([[
    local job = lr.launch { processes = 5, precision = "bf16" }
    print(job.rank, job.world_size, job.precision, job.device)
  ]], function(r)
    expect(r, 0)
    check.equal(r.out, "0\t2\tbf16\tcpu\n")
    check.that(r.checks:find "^starting 2 ranks; checked first:\n  devices  2 ranks here, ", r.checks)
  end, "$L --num-processes 2 ./recipe.lua")
  launch("lr.launch { data = 'nowhere' } print 'started'", function(r)
    expect(r, 1)
    expect_text(r, "there is no data folder 'nowhere'")
    check.that(not r.out:find "started", r.out)
  end, "$L --num-processes 2 ./recipe.lua")
end)

test("a recipe that never calls lr.launch is launched when it first needs the job", function()
  for _, code in ipairs { "print(lr.comm.rank, lr.comm.world_size)", "pcall(lr.load_model, 'no-such') print(lr.comm.rank, 2)" } do
    launch("print 'once' " .. code .. " io.stderr:write(lr.comm.rank, '\\n')", function(r)
      expect(r, 0)
      check.equal(r.out, "once\n0\t2\n")
      expect_text(r, "[rank 1] 1\n")
    end, "$L --num-processes 2 ./recipe.lua")
  end
  launch("print(lr.comm.rank, lr.comm.world_size)", function(r) expect(r, 0, "0\t1\n") end)
end)

test("if the port is busy, one machine takes a free one", function()
  local server = ffi.new "lr_store_server *[1]"
  check.equal(C.lr_store_serve(server, "127.0.0.1", 0, nil, 1), 0)
  local port = C.lr_store_server_port(server[0])
  launch("lr.launch { processes = 2 } print(tonumber(os.getenv 'MASTER_PORT'))", function(r)
    expect(r, 0)
    check.that(tonumber(r.out:match "(%d+)\n$") ~= port)
    expect_text(r, tostring(port), "taking any free port")
  end, ("$L --main-process-port %d ./recipe.lua"):format(port))
  C.lr_store_server_stop(server[0])
end)

test("ranks that others started join, serve the store themselves, and only rank 0 prints", function()
  local port = 21000 + C.lr_time() * 1000 % 9000
  launch([[
    print "before"
    local job = lr.launch { processes = 9 }
    local sum = lr.comm.all_reduce(job.rank + 1)
    print("sum", sum, job.world_size, job.generation)
    io.stderr:write(("rank %d of %d\n"):format(job.rank, job.world_size))
  ]], function(r)
    expect(r, 0, "before\nsum\t6\t3\t0\n")
    expect_text(r, "rank 0 of 3\n", "rank 1 of 3\n", "rank 2 of 3\n")
  end, ("export WORLD_SIZE=3 MASTER_ADDR=127.0.0.1 MASTER_PORT=%d; RANK=1 $L recipe.lua & RANK=2 $L recipe.lua & "
    .. "RANK=0 $L recipe.lua; s=$?; wait; (exit $s)"):format(port))
  launch("lr.launch {}", function(r)
    expect(r, 1)
    expect_text(r, "num_processes is 2 (command line), but torchrun started 3 ranks")
  end, "RANK=0 WORLD_SIZE=3 $L --num-processes 2 recipe.lua")
end)

test("a process that a scheduler started alone starts the ranks that its settings ask for", function()
  for _, variables in ipairs { "RANK=0 WORLD_SIZE=1", "SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0",
    "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 RANK=0 WORLD_SIZE=1" } do
    launch("local job = lr.launch {} io.stderr:write(job.rank, ' of ', job.world_size, '\\n')", function(r)
      expect(r, 0, "")
      expect_text(r, "0 of 2\n", "[rank 1] 1 of 2\n")
    end, variables .. " $L --num-processes 2 recipe.lua")
  end
end)

test("warnings about a configuration are printed once", function()
  local function once(start)
    launch("lr.launch {}", function(r)
      expect(r, 0)
      check.equal(select(2, r.err:gsub("warning: c.yaml:3: the key 'new' is unknown", "")), 1, r.err)
    end, "printf 'distributed_type: MULTI_CPU\\nnum_processes: 2\\nnew: null\\n' >c.yaml; " .. start)
  end
  once "$L --config c.yaml recipe.lua"
  once(("export WORLD_SIZE=2 MASTER_PORT=%d; RANK=1 $L --config c.yaml recipe.lua & RANK=0 $L --config c.yaml recipe.lua; s=$?; "
    .. "wait; (exit $s)"):format(21000 + C.lr_time() * 1000 % 9000))
end)

test("settings about ranks are not ignored when a scheduler has started the ranks", function()
  local function refused(flags, part)
    launch("lr.launch {}", function(r)
      expect(r, 1)
      expect_text(r, part, "torchrun started 2 ranks", "unset RANK and WORLD_SIZE")
    end, "RANK=0 WORLD_SIZE=2 $L " .. flags .. " recipe.lua")
  end
  refused("--num-processes 3", "num_processes is 3 (command line), but")
  refused("--max-restarts 1", "max_restarts is 1 (command line), but")
  refused("--log-dir logs", "leave --log-dir out")
  launch("lr.launch {}", function(r)
    expect_text(r, "num_processes is 3 (c.yaml:2), but torchrun started 2 ranks")
  end, "printf 'distributed_type: MULTI_CPU\\nnum_processes: 3\\n' >c.yaml; RANK=0 WORLD_SIZE=2 $L --config c.yaml recipe.lua")
end)

test("ranks of Open MPI find each other at an IPv6 address, and the machine's number is not the local rank", function()
  if not fs.exists "/proc/net/if_inet6" then return end
  local port = 21000 + C.lr_time() * 1000 % 9000
  local function rank(n)
    return ("OMPI_COMM_WORLD_RANK=%d OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=%d OMPI_COMM_WORLD_LOCAL_SIZE=%s "
      .. "OMPI_COMM_WORLD_NODE_RANK=%d $L --main-process-ip [::1] recipe.lua"):format(n, n, "$LOCAL", n)
  end
  for _, here in ipairs { 2, 1 } do -- 1: as if each had its own machine, which is then found to be wrong
    launch([[
      local job = lr.launch {}
      io.stderr:write(("rank %d machine %d sum %d\n"):format(job.rank, job.machine_rank, lr.comm.all_reduce(job.rank + 1)))
    ]], function(r)
      expect(r, 0)
      expect_text(r, "rank 0 machine 0 sum 3\n", "rank 1 machine 0 sum 3\n")
    end, ("export MASTER_PORT=%d LORARUN_SECRET=open-sesame-open-sesame; %s & %s; s=$?; wait; (exit $s)"):format(port,
      rank(1):gsub("LOCAL_RANK=1", "LOCAL_RANK=" .. here - 1):gsub("%$LOCAL", here), rank(0):gsub("%$LOCAL", here)))
  end
end)

test("neither recipes nor programs that they start see the secret", function()
  local look = [[io.stderr:write(tostring(os.getenv "LORARUN_SECRET"), " ")
    local f = io.open("/proc/self/environ", "rb")
    io.stderr:write(f:read "*a":match "LORARUN_SECRET=([%w-]*)" or "none", " ")
    os.execute "echo ${LORARUN_SECRET:-unset} >&2" ]]
  launch(look .. "lr.launch { processes = 2 } " .. look, function(r)
    expect(r, 0)
    check.that(not r.err:find "open%-sesame", r.err)
    local _, clean = r.err:gsub("nil  unset", "")
    check.equal(clean, 5, r.err) -- the launcher, and ranks 0 and 1 before and after the launch
  end, "LORARUN_SECRET=open-sesame-open-sesame $L recipe.lua")
end)

test("a program that a rank starts does not belong to the job", function()
  launch([[
    local job = lr.launch { processes = 2 }
    if job.rank == 1 then
      os.execute(os.getenv "LORARUN_PROGRAM" .. " -e 'io.stderr:write(lr.comm.world_size, lr.launch and \" alone\\n\" or \"\")'")
    end
  ]], function(r)
    expect(r, 0)
    expect_text(r, "[rank 1] 1 alone\n")
  end)
end)

test("output before the launch is shown once, then that of rank 0, and errors of the others with their number", function()
  launch([[
    print "before"
    local job = lr.launch { processes = 3 }
    print("rank", job.rank)
    io.stderr:write("err ", job.rank, "\n", job.rank == 2 and "not ended" or "")
  ]], function(r)
    expect(r, 0, "before\nrank\t0\n")
    expect_text(r, "[rank 1] err 1\n", "[rank 2] err 2\n", "[rank 2] not ended\n")
    check.that(r.err:find("\nerr 0\n", 1, true) or r.err:find("^err 0\n"), r.err)
  end)
end)

test("output is neither lost nor cut, even if it is long", function()
  launch([[
    local job = lr.launch { processes = 2 }
    local text = ("x"):rep(999) .. "\n"
    for i = 1, 2000 do (job.rank == 0 and io.stdout or io.stderr):write(text) end
  ]], function(r)
    expect(r, 0, (("x"):rep(999) .. "\n"):rep(2000))
    check.equal(r.err, ("[rank 1] " .. ("x"):rep(999) .. "\n"):rep(2000))
  end)
end)

test("code from the command line and from standard input runs on every rank", function()
  launch("", function(r) expect(r, 0, "0\ta\n") end, [[$L -e 'lr.launch { processes = 2 } print(os.getenv "RANK", "a")']])
  launch("", function(r)
    expect(r, 0, "0\tword\n")
    expect_text(r, "[rank 1] 1\n")
  end, [[printf '#!lorarun\nlr.launch { processes = 2 }\nprint(os.getenv "RANK", ...)
    if os.getenv "RANK" == "1" then io.stderr:write "1\\n" end' | $L - word]])
end)

test("lr.launch refuses unknown settings, and a second call", function()
  launch("lr.launch { proceses = 2 }", function(r)
    expect(r, 1)
    expect_text(r, "lr.launch has no option 'proceses'; did you mean 'processes'?")
  end)
  launch("lr.launch { processes = 0 }", function(r)
    expect(r, 1)
    expect_text(r, "processes is 0")
  end)
  launch("lr.launch {} lr.launch {}", function(r)
    expect(r, 1)
    expect_text(r, "lr.launch comes once")
  end)
end)

test("a rank that raises an error ends the job and is named, with its last lines", function()
  launch([[
    local job = lr.launch { processes = 4 }
    mark("pid" .. job.rank)
    if job.rank == 2 then
      wait_for(function() return marked "pid0" and marked "pid1" and marked "pid3" end)
      print "on standard output"
      error "boom"
    end
    hang()
  ]], function(r, folder)
    expect(r, 1, "")
    expect_text(r, "[rank 2] lorarun: ./recipe.lua:", "\nlorarun: rank 2 on ", " failed: ./recipe.lua:", ": boom\n",
      "  the last that rank 2 wrote:\n  | on standard output\n  | lorarun: ./recipe.lua:")
    check.that(not r.err:find "rank [013] on", r.err)
    check.that(r.seconds < 30)
    launched.expect_gone(folder, 4)
  end)
end)

test("a rank that is killed ends the job", function()
  launch([[
    local job = lr.launch { processes = 3 }
    mark("pid" .. job.rank)
    if job.rank == 1 then
      wait_for(function() return marked "pid0" and marked "pid2" end)
      signal_self(9)
    end
    hang()
  ]], function(r, folder)
    expect(r, 137)
    expect_text(r, "rank 1 on ", "was killed by SIGKILL (the kernel does that where memory runs out: see dmesg)")
    launched.expect_gone(folder, 3)
  end)
end)

test("a rank that ends with a status ends the job with that status", function()
  launch([[
    local job = lr.launch { processes = 2 }
    if job.rank == 1 then os.exit(3) end
    hang()
  ]], function(r)
    expect(r, 3)
    expect_text(r, "rank 1 on ", "ended with exit status 3\n")
  end)
end)

test("the rank to blame is the one that failed by itself, even if others ended before it", function()
  launch([[
    local job = lr.launch { processes = 3 }
    mark("pid" .. job.rank)
    wait_for(function() return marked "pid0" and marked "pid1" and marked "pid2" end)
    if job.rank ~= 1 then
      C.lr_rank_failed("lost rank 1", 1)
      os.exit(1)
    end
    sleep(0.5)
    error "the cause"
  ]], function(r)
    expect(r, 1)
    expect_text(r, "lorarun: rank 1 on ", "the cause\n  the last")
    check.that(not r.err:find "rank [02] on", r.err)
  end)
end)

test("a rank that leaves early is to blame when others wait for it", function()
  launch([[
    local job = lr.launch { processes = 3 }
    if job.rank == 1 then
      mark "left"
      os.exit(0)
    end
    wait_for(function() return marked "left" end)
    sleep(0.3)
    C.lr_rank_failed("lost rank 1", 1)
    os.exit(1)
  ]], function(r)
    expect(r, 1)
    expect_text(r, "lorarun: rank 1 on ", "ended, with exit status 0, while others were still at work with it")
  end)
  launch([[
    local job = lr.launch { processes = 2 }
    if job.rank == 1 then os.exit(0) end
    C.lr_rank_waits "all_reduce"
    hang()
  ]], function(r)
    expect(r, 1)
    expect_text(r, "lorarun: rank 1 on ", "ended, with exit status 0, while rank 0 waits for it in all_reduce")
    check.that(r.seconds < 40)
  end)
end)

test("ranks may end at different times, as long as nobody waits", function()
  launch([[
    local job = lr.launch { processes = 3 }
    sleep(job.rank * 0.4)
    if job.rank == 2 then io.stderr:write "last\n" end
  ]], function(r)
    expect(r, 0)
    check.equal(r.err, "[rank 2] last\n")
  end)
end)

test("a rank that stalls ends the job after the timeout", function()
  launch([[
    local job = lr.launch { processes = 3, timeout = 2 }
    mark("pid" .. job.rank)
    C.lr_rank_report(41, 100, "training")
    if job.rank == 2 then
      wait_for(function() return marked "pid0" and marked "pid1" end)
      signal_self(19)
    end
    C.lr_rank_waits "all_reduce"
    hang()
  ]], function(r, folder)
    expect(r, 1)
    expect_text(r, "lorarun: rank 2 on ", "did not come to all_reduce, where ranks 0 and 1 wait for it, for 2 s (step 41 of 100, "
      .. "training, is stopped (SIGSTOP))")
    launched.expect_gone(folder, 3)
  end)
end)

test("processes that a rank has started end with it", function()
  launch([[
    local job = lr.launch { processes = 2 }
    if job.rank == 1 then
      os.execute "(trap '' TERM; echo $$ >pid0; sleep 120) & while ! test -s pid0; do sleep 0.01; done"
      error "boom"
    end
    hang()
  ]], function(r, folder)
    expect(r, 1)
    launched.expect_gone(folder, 1)
  end)
end)

-- Handles signals as a training loop does: it takes steps until a signal comes, then ends with 128 + its number.
local LOOP = [[
  local job = lr.launch { processes = 2 }
  C.lr_signal_catch(1)
  mark("pid" .. job.rank)
  wait_for(function() return marked "pid0" and marked "pid1" end)
  local function loop()
    while true do
      local signal = C.lr_signal_pending()
      if signal ~= 0 then
        sleep(0.2)
        mark("left" .. job.rank)
        os.exit(128 + signal, true)
      end
      ffi.C.usleep(5000)
    end
  end
]]

test("SIGTERM and SIGINT are passed on once; ranks take the time they need to end", function()
  for number, name in pairs { [15] = "SIGTERM", [2] = "SIGINT" } do
    launch(LOOP .. ("if job.rank == 0 then signal_launcher(%d) end loop()"):format(number), function(r, folder)
      expect(r, 128 + number)
      check.equal(r.err, ("lorarun: %s: the ranks finish their step and leave; a second one kills them\n"):format(name))
      check.that(fs.exists(folder .. "/left0") and fs.exists(folder .. "/left1"))
    end)
  end
end)

test("SIGHUP ends ranks as SIGTERM does", function()
  launch(LOOP .. "if job.rank == 0 then signal_launcher(1) end loop()", function(r, folder)
    expect(r, 129)
    check.that(fs.exists(folder .. "/left0") and fs.exists(folder .. "/left1"))
  end)
end)

test("a second signal kills at once", function()
  launch([[
    local job = lr.launch { processes = 2 }
    C.lr_signal_catch(1)
    mark("pid" .. job.rank)
    wait_for(function() return marked "pid0" and marked "pid1" end)
    if job.rank == 0 then
      signal_launcher(15)
      wait_for(function() return C.lr_signal_pending() == 15 end)
      signal_launcher(15)
    end
    hang()
  ]], function(r, folder)
    expect(r, 143)
    expect_text(r, "SIGTERM: the ranks are killed")
    launched.expect_gone(folder, 2)
    check.that(r.seconds < 30)
  end)
end)

test("a signal that reaches launcher and ranks alike counts once", function()
  launch(LOOP .. [[
    if job.rank == 0 then
      signal_launcher(15)
      sleep(0.1)
      signal_self(15)
    end
    loop()
  ]], function(r, folder)
    expect(r, 143)
    check.that(fs.exists(folder .. "/left0") and fs.exists(folder .. "/left1"))
  end)
end)

test("SIGUSR1 is passed on, any number of times, and ends nothing", function()
  launch(LOOP .. [[
    for i = 1, 3 do
      if job.rank == 0 then signal_launcher(10) end
      wait_for(function() return C.lr_signal_pending() == 10 end)
      mark("saved" .. job.rank .. i)
      wait_for(function() return marked("saved0" .. i) and marked("saved1" .. i) end)
    end
  ]], function(r) expect(r, 0, "") end)
end)

test("SIGUSR1 before a rank trains does not end it", function()
  launch([[
    local job = lr.launch { processes = 2 }
    if job.rank == 0 then signal_launcher(10) end
    sleep(0.5)
  ]], function(r) expect(r, 0, "") end)
end)

test("ranks die with a launcher that is killed", function()
  launch([[
    local job = lr.launch { processes = 3 }
    mark("pid" .. job.rank)
    wait_for(function() return marked "pid0" and marked "pid1" and marked "pid2" end)
    if job.rank == 0 then signal_launcher(9) end
    hang()
  ]], function(r, folder)
    expect(r, 137)
    launched.expect_gone(folder, 3)
  end)
end)

test("restarts: until the job succeeds, or no restart is left", function()
  local code = [[
    local job = lr.launch { processes = 2, max_restarts = 2 }
    if job.rank == 1 and job.generation < FAILURES then error("failure " .. job.generation) end
    print("generation", job.generation, os.getenv "LORARUN_GENERATION")
    if job.generation < FAILURES then hang() end
  ]]
  launch(code:gsub("FAILURES", "2"), function(r)
    expect(r, 0)
    check.that(r.out:find "generation\t2\t2\n$", r.out)
    expect_text(r, "failure 0", "lorarun: restart 1 of 2\n", "failure 1", "lorarun: restart 2 of 2\n")
  end)
  launch(code:gsub("FAILURES", "9"), function(r)
    expect(r, 1)
    expect_text(r, "failure 2\n")
    check.that(not r.err:find "restart 3")
  end)
end)

test("a signal from the user is no reason to restart", function()
  launch([[
    local job = lr.launch { processes = 2, max_restarts = 3 }
    if job.rank == 0 then signal_launcher(15) end
    hang()
  ]], function(r)
    expect(r, 143)
    check.that(not r.err:find "restart", r.err)
  end)
end)

test("each rank has a log, with all that it wrote except lines that were redrawn", function()
  launch([[
    local job = lr.launch { processes = 2, log_dir = folder .. "/new/logs" }
    io.write("out ", job.rank, "\n", "1%\r\27[K2%\r\27[K3%\n")
    io.flush()
    io.stderr:write("err ", job.rank, "\n")
  ]], function(r, folder)
    expect(r, 0)
    check.equal(r.out, "out 0\n1%\r\27[K2%\r\27[K3%\n")
    for rank = 0, 1 do
      local log = fs.read(("%s/new/logs/rank_%d.log"):format(folder, rank))
      local lines = {}
      for line in log:gmatch "[^\n]+" do lines[#lines + 1] = line end
      table.sort(lines)
      check.equal(table.concat(lines, "|"), ("3%%|err %d|out %d"):format(rank, rank))
    end
  end)
end)

test("logs that cannot be written are an error before anything starts", function()
  launch("lr.launch { processes = 2, log_dir = folder .. '/recipe.lua' } print 'started'", function(r)
    expect(r, 1, "")
    expect_text(r, "recipe.lua")
  end)
  launch("fs = lr.fs lr.fs.make(folder .. '/logs/rank_1.log') lr.launch { processes = 2, log_dir = folder .. '/logs' } print 'no'",
    function(r)
      expect(r, 1, "")
      expect_text(r, "--log-dir: cannot write ", "rank_1.log")
    end, "$L -e 'fs = 1' ./recipe.lua")
end)

test("a log that cannot grow ends with a warning, and the ranks go on", function()
  launch([[
    local job = lr.launch {}
    if job.rank == 1 then print(("x"):rep(1e6)) end -- only its log gets this
    lr.comm.barrier()
    print "done"
  ]], function(r)
    expect(r, 0, "done\n")
    expect_text(r, "warning: the log of rank 1 ends here: logs/rank_1.log: File too large")
  end, "ulimit -f 400; $L --num-processes 2 --log-dir logs ./recipe.lua")
end)

test("the job ends quietly if the reader of its output is gone, but not if the disk is full", function()
  launch([[
    lr.launch { processes = 2 }
    while true do print "y" end
  ]], function(r)
    check.equal(r.out, "y\n")
    check.equal(r.err, "")
  end, "$L ./recipe.lua | head -n 1")
  launch([[
    lr.launch { processes = 2 }
    while true do print "y" end
  ]], function(r)
    expect(r, 1)
    expect_text(r, "lorarun: cannot write to standard output: No space left on device\n")
  end, "$L ./recipe.lua >/dev/full")
end)

test("a reader that does not read makes the ranks wait, not the launcher", function()
  launch([[
    local job = lr.launch { processes = 2 }
    if job.rank == 1 then
      sleep(1)
      signal_launcher(15)
      hang()
    end
    while true do print(("x"):rep(1000)) end
  ]], function(r)
    check.equal(r.status, 143)
    check.that(r.seconds < 60, r.seconds)
  end, "mkfifo f; sleep 100 <f & $L ./recipe.lua >f; s=$?; kill $!; (exit $s)")
end)

test("nothing is left: no process with the job's environment, nothing in the machine's shared memory", function()
  local function shared()
    local names = {}
    for _, name in ipairs(fs.list "/dev/shm") do
      if name:lower():find "lorarun" then names[#names + 1] = name end
    end
    return table.concat(names, " ")
  end
  local function processes_with(setting)
    local found = {}
    for _, pid in ipairs(fs.list "/proc") do
      local f = pid:find "^%d+$" and io.open("/proc/" .. pid .. "/environ", "rb")
      if f then
        if (f:read "*a" or ""):find(setting, 1, true) then found[#found + 1] = pid end
        f:close()
      end
    end
    return table.concat(found, " ")
  end
  local before, job = shared(), "LORARUN_TEST_JOB=" .. os.tmpname()
  for _, fate in ipairs { "", "signal_self(9)", "error 'x'", "signal_self(19)", "signal_launcher(2)" } do
    launch("local job = lr.launch { processes = 2, timeout = 1 } os.execute 'sleep 100 &' C.lr_rank_waits 'barrier' "
      .. "if job.rank == 1 then " .. fate .. " end sleep(2)",
      function()
        check.equal(processes_with(job), "", fate)
        check.equal(shared(), before)
      end, job .. " $L ./recipe.lua")
  end
end)

-- ---- training ---------------------------------------------------------------------------------------------------------
test("signals to the launcher while its ranks train: they save and go on, or stop and resume to the same bits", function()
  local bert = fs.join(os.getenv "LORARUN_TESTS", "golden", "bert")
  local code = ([[
    if os.getenv "RANK" == nil then
      for _, split in ipairs { "train", "validation" } do
        local rows = {}
        for i = 1, 60 do
          local good = i %% 3 ~= 0
          rows[i] = lr.json.encode { current_line = (good and "x = %%d" or "x == %%d"):format(i), score = good and 1 or 0,
            context = ("def f%%d(y):\n    x = %%d"):format(i, i), context_type = "full" }
        end
        lr.fs.write(folder .. "/data/" .. split .. ".jsonl", table.concat(rows, "\n") .. "\n")
      end
    end
    local job = lr.launch { processes = 2, threads = 1, data = folder .. "/data" }
    local function train(output, resume, on_step)
      local model = lr.load_model(%q, { max_length = 32 })
      model:add_lora { rank = 4, alpha = 8, dropout = 0.1, targets = { "query", "value" }, seed = 3 }
      lr.train { model = model, data = folder .. "/data", columns = { "current_line", "context" },
        output = folder .. output, learning_rate = 5e-3, batch = 2,
        max_steps = 40, evaluation_steps = 100, seed = 5, resume = resume, on_step = on_step }
      model:free()
    end
    if marked "stopped" then
      train("/out", "latest")
      train("/whole", false)
    else
      train("/out", false, function(info)
        if job.rank ~= 0 then return end
        if info.step == 3 then signal_launcher(10) end
        if info.step == 10 then
          mark "stopped"
          signal_launcher(15)
        end
        sleep(0.05) -- the launcher is another process: let it run
      end)
    end
  ]]):format(bert)
  launch(code, function(r, folder)
    expect(r, 0)
    check.equal(tonumber(fs.read(folder .. "/status")), 143, "status of the run that was stopped")
    local first = fs.read(folder .. "/first.txt")
    check.that(first:find "a checkpoint was written after step %d+", first)
    check.that(first:find "stopped by signal 15 after step 1%d of 40", first)
    check.that(r.out:find "resuming from ", r.out)
    local function adapter(name) return fs.read(folder .. name .. "/adapter/adapter_model.safetensors") end
    check.that(adapter "/out" == adapter "/whole", "the adapters differ")
  end, "mkdir data; $L ./recipe.lua >first.txt 2>&1; echo $? >status; $L ./recipe.lua")
end)
