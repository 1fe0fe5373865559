-- Which rank is to blame and when a job ends, decided from views that are made up here, with a clock that the tests set.
local failure_policy = require "lorarun.dist.launcher.failure_policy"

local now, said
local function new_policy(timeout)
  now, said = 1000, {}
  return failure_policy.new { timeout = timeout or 600, clock = function() return now end,
    say = function(text) said[#said + 1] = text end }
end

-- The view of a rank that trains, with the given fields changed.
local function view(rank, given)
  local v = { rank = rank, host = "h" .. rank, machine = 0, step = 40, total = 100, phase = "training", collectives = 7,
    collective = "barrier" }
  for name, value in pairs(given or {}) do v[name] = value end
  return v
end

local function blamed(policy, views)
  local failure = policy:outcome(views).failure
  return failure and failure.rank, failure and failure.what
end

test("while all ranks train there is nothing to do", function()
  local policy = new_policy()
  local orders = policy:look({ view(0), view(1, { waiting = 3 }) }, {})
  check.that(not orders.ending and not orders.stop and not orders.kill and orders.save == 0)
  orders = policy:look({ view(0, { ended = 1, status = 0 }), view(1) }, {})
  check.that(not orders.ending)
  check.equal(policy:outcome({ view(0, { ended = 1, status = 0 }), view(1, { ended = 0, status = 0 }) }).status, 0)
end)

test("a rank that fails by itself ends the job at once, and the job has its status", function()
  for _, case in ipairs { { { status = 3 }, 3, "ended with exit status 3" }, { { signal = 11 }, 139, "was killed by SIGSEGV" },
    { { signal = 24 }, 152, "was killed by SIGXCPU (its processor time is used up: ulimit -t)" },
    { { status = 1, failed = 2, failure = "boom" }, 1, "failed: boom" } } do
    local policy = new_policy()
    case[1].ended = 1
    local views = { view(0), view(1, case[1]) }
    check.that(policy:look(views, {}).ending)
    local rank, what = blamed(policy, views)
    check.equal(rank, 1)
    check.equal(what, case[3])
    check.equal(policy:outcome(views).status, case[2])
  end
  local policy = new_policy() -- the rank has reported its failure but not ended yet
  check.that(policy:look({ view(0), view(1, { failed = 0, failure = "boom" }) }, {}).ending)
end)

test("after a failure caused by another rank, the policy waits a little for the cause", function()
  local policy = new_policy()
  local follower = view(0, { ended = 0.5, status = 1, failed = 0.6, failure = "lost rank 1", consequence = true })
  check.that(not policy:look({ follower, view(1) }, {}).ending)
  now = now + 1
  check.that(policy:look({ follower, view(1, { ended = 0, signal = 9 }) }, {}).ending)
  check.equal(blamed(policy, { follower, view(1, { ended = 0, signal = 9 }) }), 1)

  policy = new_policy()
  check.that(not policy:look({ follower, view(1) }, {}).ending)
  now = now + 3
  check.that(policy:look({ follower, view(1) }, {}).ending)
  check.equal(blamed(policy, { follower, view(1, { ended = 0, signal = 15, told = true }) }), 0)
end)

test("of several failures the earliest is to blame; a rank that ended because it was told to is not", function()
  local policy = new_policy()
  local views = { view(0, { ended = 1, status = 1, failed = 2, failure = "late" }),
    view(1, { ended = 0.5, status = 1, failed = 5, failure = "early" }), view(2, { ended = 9, signal = 15, told = true }) }
  policy:look(views, {})
  check.equal(blamed(policy, views), 1)
end)

test("a rank that left before others lost it is to blame; one that left after is not", function()
  local follower = { ended = 1, status = 1, failed = 1.5, failure = "lost rank 1", consequence = true }
  local rank, what = blamed(new_policy(), { view(0, follower), view(1, { ended = 2, status = 0 }) })
  check.equal(rank, 1)
  check.that(what:find "ended, with exit status 0, while others")
  check.equal(blamed(new_policy(), { view(0, follower), view(1, { ended = 0.6, status = 0 }) }), 1) -- noticed a little late
  check.equal(blamed(new_policy(), { view(0, follower), view(1, { ended = 0.2, status = 0 }) }), 0)
end)

test("a rank that left is to blame once others have waited for it for a while", function()
  local policy = new_policy()
  check.that(not policy:look({ view(0, { waiting = 4 }), view(1, { ended = 30, status = 0 }) }, {}).ending)
  check.that(not policy:look({ view(0, { waiting = 40 }), view(1, { ended = 3, status = 0 }) }, {}).ending)
  local views = { view(0, { waiting = 6 }), view(1, { ended = 8, status = 0 }) }
  check.that(policy:look(views, {}).ending)
  local rank, what = blamed(policy, views)
  check.equal(rank, 1)
  check.equal(what, "ended, with exit status 0, while rank 0 waits for it in barrier")
end)

test("every half minute a message says which rank the others wait for, and at the timeout the job ends", function()
  local policy = new_policy(100)
  local function at(seconds)
    now = 1000 + seconds
    return policy:look({ view(0, { waiting = seconds }), view(1, { step = 38, collectives = 5, condition = "is stopped" }),
      view(2, { waiting = seconds - 1 }), view(3, { ended = 500, status = 0, collectives = 1, told = true }) }, {})
  end
  at(29)
  check.equal(#said, 0)
  at(30) at(31) at(59)
  check.equal(#said, 1)
  check.equal(said[1], "ranks 0 and 2 wait in barrier for 30 s; the slowest is rank 1 (step 38 of 100, training, is stopped)")
  at(60) at(99)
  check.equal(#said, 3)
end)

test("a stall is a failure of the slowest rank, which is killed", function()
  local policy = new_policy(100)
  now = 1100
  local views = { view(0, { waiting = 100 }), view(1), view(2, { waiting = 100 }) }
  local orders = policy:look(views, {})
  check.that(orders.ending)
  check.equal(orders.hung, 1)
  local rank, what = blamed(policy, views)
  check.equal(rank, 1)
  check.equal(what, "did not come to barrier, where ranks 0 and 2 wait for it, for 100 s (step 40 of 100, training)")

  policy = new_policy(100) -- all ranks wait: the one with the fewest collectives is the slowest
  now = 1101
  check.equal(policy:look({ view(0, { waiting = 101 }), view(1, { waiting = 101, collectives = 6 }) }, {}).hung, 1)
end)

test("time in which the whole job was stopped does not count as waiting", function()
  local policy = new_policy(100)
  now = 1200
  local views = { view(0, { waiting = 150 }), view(1) }
  check.that(not policy:look(views, { 18 }).ending)
  check.equal(#said, 0)
  now = 1301
  check.that(policy:look({ view(0, { waiting = 251 }), view(1) }, {}).ending)
end)

test("if all ranks wait, the message speaks of the network", function()
  local policy = new_policy()
  now = 1040
  policy:look({ view(0, { waiting = 35 }), view(1, { waiting = 35 }) }, {})
  check.that(said[1]:find "^all ranks have waited in barrier for 35 s")
end)

test("a first signal stops the ranks, a second kills them; the job's status is that of the first", function()
  local policy = new_policy()
  local views = { view(0), view(1) }
  local orders = policy:look(views, { 2 })
  check.that(orders.stop == 2 and not orders.kill)
  orders = policy:look(views, { 15 })
  check.that(orders.stop == 2 and orders.kill)
  check.equal(#said, 2)
  local outcome = policy:outcome { view(0, { ended = 1, status = 130 }), view(1, { ended = 1, signal = 9, told = true }) }
  check.equal(outcome.status, 130)
  check.that(outcome.final and not outcome.failure)
  check.equal(policy:outcome({ view(0, { ended = 1, status = 0 }), view(1, { ended = 1, status = 0 }) }).status, 0)
end)

test("SIGHUP stops ranks as SIGTERM does, SIGQUIT kills them, each SIGUSR1 saves", function()
  check.equal(new_policy():look({ view(0) }, { 1 }).stop, 15)
  check.that(new_policy():look({ view(0) }, { 3 }).kill)
  local policy = new_policy()
  policy:look({ view(0) }, { 10, 10 })
  local orders = policy:look({ view(0) }, { 10 })
  check.that(orders.save == 3 and not orders.stop and not orders.ending)
end)

test("stopping waits for ranks that save, but not forever", function()
  local policy = new_policy()
  policy:look({ view(0), view(1) }, { 15 })
  now = now + 500
  check.that(not policy:look({ view(0), view(1, { ended = 400, status = 143 }) }, {}).ending)
  check.that(not policy:look({ view(0), view(1, { ended = 9, signal = 15 }) }, {}).ending)
  check.that(policy:look({ view(0), view(1, { ended = 11, signal = 15 }) }, {}).ending)
end)

test("after a status that means a signal, the policy waits a while for that signal", function()
  local policy = new_policy()
  local views = { view(0), view(1, { ended = 0.1, status = 143 }) }
  check.that(not policy:look(views, {}).ending)
  policy:look(views, { 15 })
  check.equal(policy:outcome({ view(0, { ended = 0, status = 143 }), view(1, { ended = 1, status = 143 }) }).status, 143)
end)

test("a failure outside the ranks ends the job", function()
  local policy = new_policy()
  policy:fail { what = "machine 1 is lost", status = 1, final = true }
  check.that(policy:look({ view(0) }, {}).ending)
  local outcome = policy:outcome { view(0, { ended = 1, signal = 15, told = true }) }
  check.that(outcome.final and outcome.status == 1 and outcome.failure.what == "machine 1 is lost")
end)
