-- What a launcher does with the ranks of its machine, with made-up processes that end only when a test says so, and a clock that
-- the tests set.
local now, sent, living, events

package.loaded["lorarun.dist.launcher.processes"] = { TERMINAL = {}, new = function(n)
  sent, living, events = {}, {}, {}
  return {
    spawn = function(_, i) living[i] = 1000 + i end,
    pid = function(_, i) return living[i] end,
    state = function() return { step = 0, total = 0, phase = "", collectives = 0, collective = "", failure = "" } end,
    signal = function(_, i, number)
      for k = i == -1 and 0 or i, i == -1 and n - 1 or i do
        if living[k] then sent[#sent + 1] = ("%d to %d"):format(number, k) end
      end
    end,
    listen = function() end,
    wait = function() return table.remove(events, 1) end,
    free = function() end,
  }
end }
local local_ranks = require "lorarun.dist.launcher.local_ranks"

local said
local function new_run(ranks)
  now, said = 1000, {}
  local output = { flush = function() return 0 end, say = function(_, text) said[#said + 1] = text end, take = function() end,
    ended = function() end, last_lines = function() return {} end, log_path = function() end }
  local job = { words = {}, environment = {}, world_size = ranks, first_rank = 4, ranks = ranks, machine_rank = 1,
    host_name = "here", host = "127.0.0.1", secret = "s" }
  local run = local_ranks.new(job, output, 0, function() return now end)
  run:start(1)
  return run
end

local function ends(run, process, how)
  living[process] = nil
  how.kind, how.process = "exit", process
  events[1] = how
  run:step(0)
end

local function sent_now()
  local text = table.concat(sent, ", ")
  sent = {}
  return text
end

test("orders are carried out once, however often they are given", function()
  local run = new_run(2)
  run:obey { stop = 2, save = 2 }
  check.equal(sent_now(), "2 to 0, 2 to 1, 10 to 0, 10 to 1, 10 to 0, 10 to 1")
  run:obey { stop = 2, save = 2 }
  check.equal(sent_now(), "")
  run:obey { stop = 2, save = 3, ending = true }
  check.equal(sent_now(), "10 to 0, 10 to 1, 15 to 0, 15 to 1")
  run:obey { stop = 2, save = 3, ending = true, kill = true }
  check.equal(sent_now(), "9 to 0, 9 to 1")
end)

test("a rank that does not end after SIGTERM is killed; one that hangs is killed at once", function()
  local run = new_run(3)
  run:obey { ending = true, hung = 5 }
  check.equal(sent_now(), "15 to 0, 15 to 1, 9 to 1, 15 to 2")
  ends(run, 0, { signal = 15 })
  ends(run, 1, { signal = 9 })
  now = now + 2.9
  run:obey { ending = true }
  check.equal(sent_now(), "")
  now = now + 0.2
  run:obey { ending = true }
  check.equal(sent_now(), "9 to 2")
  check.equal(run.running, 1)
end)

test("a process that cannot be killed is left running, with a message", function()
  local run = new_run(2)
  run:obey { kill = true }
  ends(run, 0, { signal = 9 })
  now = now + 9
  run:obey { kill = true }
  check.equal(run.running, 1)
  now = now + 2
  run:obey { kill = true }
  check.equal(run.running, 0)
  check.equal(#said, 1)
  check.equal(said[1], "rank 5 (process 1001) cannot be killed: it hangs in the system; the launcher goes on without it")
  ends(run, 1, { signal = 9 }) -- it ends later
  check.equal(run.running, 0)
end)

test("a view says whether a rank ended before it was told to, and when", function()
  local run = new_run(3)
  ends(run, 0, { status = 3 })
  now = now + 5
  run:obey { ending = true }
  now = now + 1
  ends(run, 1, { signal = 15 })
  now = now + 1
  local views = run:views()
  check.equal(views[1].rank, 4)
  check.that(views[1].status == 3 and views[1].ended == 7 and not views[1].told and views[1].lines)
  check.that(views[2].signal == 15 and views[2].ended == 1 and views[2].told and not views[2].lines)
  check.that(not views[3].ended and not views[3].told)
end)
