-- The lock of an output folder: it has one holder, which the error names; the lock of a dead process is taken over, that of another
-- machine is not; if many processes ask at once, one gets it.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local run_lock = require "lorarun.dist.run_lock"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local function lock_path(folder) return fs.join(folder, "run.lock") end

-- The holder that this process would write into the lock.
local function own(folder)
  local lock = run_lock.take(folder)
  local holder = json.decode_file(lock_path(folder))
  lock:release()
  return holder
end

local function changed(holder, changes)
  local copy = {}
  for key, value in pairs(holder) do copy[key] = value end
  for key, value in pairs(changes) do copy[key] = value end
  return copy
end

test("the lock's file exists while the lock is held, names its holder, and is removed afterwards", function()
  shell.with_folder(function(folder)
    local out = fs.join(folder, "new/out")
    local lock = run_lock.take(out)
    local holder = json.decode_file(lock_path(out))
    check.equal(holder.pid, tonumber(io.open("/proc/self/stat"):read "*l":match "^%d+"))
    check.that(holder.started > 0 and math.abs(holder.since - os.time()) < 60 and #holder.host > 0, "start, time and host")
    local text = check.raises("is the output of another run, which is still at work there", run_lock.take, out)
    check.that(text:find(("process %d on %s, since %s"):format(holder.pid, holder.host, holder.time), 1, true), text)
    lock:release()
    lock:release()
    check.that(not fs.exists(out), "a folder that was made for nothing is left")
    fs.make(out)
    run_lock.take(out):release()
    check.equal(#fs.list(out), 0, "files left")
  end)
end)

test("whose lock is taken over, and whose is not", function()
  shell.with_folder(function(folder)
    local me = own(folder)
    local function verdict(changes, known) return run_lock.verdict(changed(me, changes), me, known) end
    -- this machine
    check.equal(verdict({}, true), "running", "a process that lives, where the kernel's lock does not hold")
    check.equal(verdict({ started = me.started + 1 }, true), "taken", "a process id that was used again")
    check.equal(verdict({ started = me.started + 1 }, false), "taken", "the same without the kernel's word")
    check.equal(verdict({ pid = 2 ^ 30 }, false), "taken", "a process that is gone")
    -- a container of this machine: its processes are hidden, the kernel's lock is not
    check.equal(verdict({ host = "container" }, true), "taken")
    check.equal(verdict({ host = "container" }, false), "elsewhere")
    -- this machine before it was started again, and another machine
    check.equal(verdict({ boot = "another" }, false), "taken")
    check.equal(verdict({ boot = "another", host = "other" }, true), "elsewhere")
    check.equal(verdict({ boot = "another", machine = "other" }, true), "elsewhere")
    -- a file without a holder
    check.equal(run_lock.verdict(nil, me, true), "taken")
    check.equal(run_lock.verdict(nil, me, false), "elsewhere")
  end)
end)

test("a link in the lock's place is refused, and the file that it points to stays as it was", function()
  shell.with_folder(function(folder)
    local out, other = fs.join(folder, "out"), fs.join(folder, "precious.txt")
    fs.make(out)
    fs.write(other, "kept\n")
    local function refused(command, message)
      check.equal(os.execute(command:format(other, lock_path(out))), 0)
      check.raises(message, run_lock.take, out)
      check.equal(fs.read(other), "kept\n", "the file that the link leads to")
      os.remove(lock_path(out))
    end
    refused("ln -s %s %s", "run.lock: it is a link, and no lock of lorarun's; remove it")
    refused("ln -s %s.gone %s", "run.lock: it is a link")
    refused("ln %s %s", "run.lock: it is another name of some file")
    refused("test -f %s && mkfifo %s", "run.lock: it is no plain file")
    run_lock.take(out):release()
  end)
end)

test("the lock of a dead holder is taken over; that of another machine stays, and the error says how to remove it", function()
  shell.with_folder(function(folder)
    local me = own(folder)
    for _, left in ipairs { json.encode(changed(me, { pid = 2 ^ 30 })), "", "{", "[1]", '{"pid": "x"}' } do
      fs.write(lock_path(folder), left)
      local lock = run_lock.take(folder)
      check.equal(json.decode_file(lock_path(folder)).pid, me.pid, "the holder after " .. left)
      lock:release()
      check.that(not fs.exists(lock_path(folder)), "the file is left")
    end
    local foreign = json.encode(changed(me, { host = "far-away", boot = "another", pid = 77, time = "yesterday" }))
    fs.write(lock_path(folder), foreign)
    local text = check.raises("process 77 on far-away, since yesterday", run_lock.take, folder)
    check.that(text:find("where it is known to have ended, remove " .. lock_path(fs.real(folder)), 1, true), text)
    check.equal(fs.read(lock_path(folder)), foreign)
  end)
end)

test("many processes at once, with the file of a dead holder: never two hold the lock together", function()
  shell.with_folder(function(folder)
    fs.write(lock_path(folder), json.encode(changed(own(folder), { pid = 2 ^ 30 })))
    local code = ([[
      local fs, run_lock, folder = require "lorarun.base.fs", require "lorarun.dist.run_lock", %q
      for _ = 1, 40 do
        local ok, lock = pcall(run_lock.take, folder)
        if ok then
          fs.append(folder .. "/log", "in\n")
          fs.append(folder .. "/log", "out\n")
          lock:release()
        end
      end]]):format(folder)
    fs.write(fs.join(folder, "ask.lua"), code)
    local r = shell.run(("cd %s; for i in 1 2 3 4 5 6; do $L ask.lua & done; wait"):format(shell.quote(folder)))
    check.equal(r.err, "")
    local log = fs.read(fs.join(folder, "log"))
    check.equal(log, ("in\nout\n"):rep(#log / 7), "two held it at once:")
    check.that(#log >= 7, "no process had it")
    check.that(not fs.exists(lock_path(folder)), "the file is left")
  end)
end)

test("a process that is killed, or ends without releasing the lock, does not block the next", function()
  shell.with_folder(function(folder)
    local function after(code)
      shell.run(("$L -e %s"):format(shell.quote(("lock = require 'lorarun.dist.run_lock'.take %q %s"):format(folder, code))))
    end
    after "os.execute 'kill -KILL $PPID'"
    check.that(fs.exists(lock_path(folder)), "a killed one removes nothing")
    run_lock.take(folder):release()
    for _, code in ipairs { "", "error 'x'", "os.exit(3, true)" } do
      after(code)
      check.that(not fs.exists(lock_path(folder)), "the file is left after " .. code)
    end
  end)
end)
