-- test_faults.lua: jobs whose ranks use collectives, with one rank that is killed, fails, leaves or is stopped. Each time the job
-- ends soon, the right rank is blamed, and a restart succeeds.
local fs = require "lorarun.base.fs"
local launched = dofile(os.getenv "LORARUN_TESTS" .. "/dist/launched.lua")

-- Four ranks add numbers 60 times; in the first generation rank 2 fails before the end.
local RECIPE = [[
local job = lr.launch { processes = 4, timeout = TIMEOUT, max_restarts = RESTARTS }
io.stderr:write("pid ", ffi.C.getpid(), "\n")
local sum = 0
for i = 1, 60 do
  if i == 30 and job.rank == 2 and job.generation == 0 then FATE end
  sum = sum + lr.comm.all_reduce(job.rank + i)
end
lr.comm.barrier()
print(sum)
]]
local SUM = 60 * 6 + 4 * 60 * 61 / 2 -- ranks 0 to 3 add up to 6

local function run(fate, restarts, timeout)
  local result
  local values = { FATE = fate, RESTARTS = restarts, TIMEOUT = timeout or 600 }
  launched.run(RECIPE:gsub("%u%u%u+", values), function(r) result = r end)
  for pid in result.err:gmatch "pid (%d+)" do
    check.that(not fs.exists("/proc/" .. pid), "process " .. pid .. " still runs")
  end
  return result
end

local FATES = {
  { "killed", "signal_self(9)", "lorarun: rank 2 on ", "was killed by SIGKILL", 137 },
  { "aborted", "signal_self(6)", "lorarun: rank 2 on ", "was killed by SIGABRT", 134 },
  { "failed", "error 'boom'", "lorarun: rank 2 on ", "boom\n", 1 },
  { "left", "os.exit(0)", "lorarun: rank 2 on ", "ended, with exit status 0, while ", 1 },
  { "ended", "os.exit(7, true)", "lorarun: rank 2 on ", "ended with exit status 7\n", 7 },
  { "stopped", "signal_self(19)", "lorarun: rank 2 on ", "where ranks 0, 1 and 3 wait for it, for 5 s (is stopped (SIGSTOP))", 1,
    5 },
  { "asleep", "ffi.C.usleep(90000000)", "lorarun: rank 2 on ", "where ranks 0, 1 and 3 wait for it, for 5 s", 1, 5 },
}
for _, f in ipairs(FATES) do
  local name, fate, who, what, status, timeout = unpack(f)
  test(("a rank that is %s ends the job within seconds and is named"):format(name), function()
    local r = run(fate, 0, timeout)
    check.equal(r.status, status, r.err)
    check.equal(r.out, "")
    check.that(r.err:find(who .. "[^\n]*" .. what:gsub("%p", "%%%0")), r.err)
    check.that(not r.err:find "\nlorarun: rank [013] on ", r.err)
    check.that(r.seconds < (timeout or 0) + 20, r.seconds)
  end)
  test(("a rank that is %s, and a restart"):format(name), function()
    local r = run(fate, 1, timeout)
    check.equal(r.status, 0, r.err)
    check.equal(r.out, SUM .. "\n")
    check.that(r.err:find(what, 1, true) and r.err:find("restart 1 of 1", 1, true), r.err)
  end)
end

test("a rank that never joins the job is named", function()
  launched.run([[
    if os.getenv "RANK" == "1" then hang() end
    lr.launch { processes = 3, timeout = 2 }
  ]], function(r)
    check.equal(r.status, 1, r.err)
    check.that(r.err:find("lorarun: rank 1 on [^\n]* did not come to ", 1), r.err)
  end)
end)

test("rank 0 is blamed for its own error, which all ranks raise", function()
  for _ = 1, 5 do
    launched.run([[
      lr.launch { processes = 3 }
      lr.comm.on_rank_0(function() error "the disk is full" end)
    ]], function(r)
      check.equal(r.status, 1, r.err)
      check.that(r.err:find "lorarun: rank 0 on [^\n]* failed: ./recipe.lua:%d+: the disk is full\n", r.err)
    end)
  end
end)
