-- ranks.lua: several ranks of a job as processes of the running program, for tests and benchmarks:
--   local ranks = dofile(os.getenv "LORARUN_TESTS" .. "/dist/ranks.lua")
--
--   local results = ranks.run { 4, [[ print(comm.all_reduce(rank)) ]] }
--   check.equal(results[1].out, "6\n")           -- of rank 0; also .err, .status (137: killed), .seconds
--
-- ranks.start returns the job while it runs: job:kill(rank, "STOP"), job:output(rank), job:wait(seconds).
-- The code of every rank has `lr`, `comm`, `rank` and `n` and, unless join = false, has joined. This process serves the store, as a
-- launcher does, so every job has its own port. torchrun's variables are not set, because with them the program would join by
-- itself.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check_status = require "lorarun.base.check"
local fs = require "lorarun.base.fs"

local ranks = {}
local program = fs.real "/proc/self/exe"

local PRELUDE = [[local lr = require "lorarun" local comm = lr.comm io.stdout:setvbuf "line" ]]
  .. [[local rank, n = tonumber(os.getenv "TEST_RANK"), tonumber(os.getenv "TEST_RANKS") ]]
local JOIN = [[comm.join { rank = rank, world_size = n, local_rank = rank, local_world_size = n, ]]
  .. [[host = os.getenv "MASTER_ADDR", port = tonumber(os.getenv "MASTER_PORT"), timeout = tonumber(os.getenv "TIMEOUT") } ]]

local function quote(text) return "'" .. tostring(text):gsub("'", "'\\''") .. "'" end

--- one_gpu(rank): variables with which NCCL lets ranks share a GPU. It refuses two ranks of one host on one device, so each claims
--- to be a host of its own, and they talk through sockets: that is slow, with the same arithmetic.
function ranks.one_gpu(rank)
  return { NCCL_HOSTID = "host" .. rank, NCCL_SOCKET_IFNAME = "lo", NCCL_IB_DISABLE = 1, NCCL_MNNVL_ENABLE = 0 }
end

--- free_port(): a port on which no program listens.
function ranks.free_port()
  local server = ffi.new "lr_store_server *[1]"
  check_status(C.lr_store_serve(server, "127.0.0.1", 0, nil, 1))
  local port = C.lr_store_server_port(server[0])
  C.lr_store_server_stop(server[0])
  return port
end

local Job = {}
Job.__index = Job

local function path(job, what, rank) return ("%s/%s.%d"):format(job.folder, what, rank) end

local function read(file) return fs.exists(file) and fs.read(file) or "" end

--- start { n, code, timeout = 60, join = true, env = { NAME = value }, serve = true }: n ranks that run the same Lua code.
---   timeout   seconds for joining and for each collective
---   env       more variables, or a function of the rank that returns them
---   serve     false: no store is served, MASTER_PORT is not set
function ranks.start(options)
  local n, code = options[1], options[2]
  local folder = os.tmpname()
  os.remove(folder)
  fs.make(folder)
  local job = setmetatable({ n = n, folder = folder, began = C.lr_time(), ended = {} }, Job)
  local script = folder .. "/rank.lua"
  fs.write(script, PRELUDE .. (options.join ~= false and n > 1 and JOIN or "") .. code)
  local port
  if options.serve ~= false then
    local server = ffi.new "lr_store_server *[1]"
    check_status(C.lr_store_serve(server, "127.0.0.1", 0, nil, n))
    job.server = server[0]
    port = C.lr_store_server_port(job.server)
  end
  for rank = 0, n - 1 do
    local env = { TEST_RANK = rank, TEST_RANKS = n, MASTER_ADDR = "127.0.0.1", MASTER_PORT = port,
      TIMEOUT = options.timeout or 60, OMP_NUM_THREADS = 1 }
    for name, value in pairs(type(options.env) == "function" and options.env(rank) or options.env or {}) do env[name] = value end
    local assignments = {}
    for name, value in pairs(env) do assignments[#assignments + 1] = name .. "=" .. quote(value) end
    local function file(what) return quote(path(job, what, rank)) end
    -- the status is written under a temporary name, so that the file is always complete
    os.execute(("( %s %s %s >%s 2>%s </dev/null & echo $! >%s; wait $! 2>/dev/null; echo $? >%s; mv %s %s ) 2>/dev/null &"):format(
      table.concat(assignments, " "), quote(program), quote(script), file "out", file "err", file "pid", file "new", file "new",
      file "status"))
  end
  return job
end

--- The text that a rank has written to its standard output so far.
function Job:output(rank) return read(path(self, "out", rank)) end

--- Waits until a rank has written `text`.
function Job:await(rank, text, seconds)
  local deadline = C.lr_time() + (seconds or 60)
  while not self:output(rank):find(text, 1, true) do
    if C.lr_time() > deadline then
      error(("rank %d did not write '%s' but '%s', '%s'"):format(rank, text, self:output(rank), read(path(self, "err", rank))))
    end
    os.execute "sleep 0.02"
  end
end

function Job:pid(rank) return assert(tonumber(read(path(self, "pid", rank))), "the rank has not started") end

--- Sends a signal: "KILL" (default), "STOP", "CONT", "INT" ...
function Job:kill(rank, signal) os.execute(("kill -%s %d 2>/dev/null"):format(signal or "KILL", self:pid(rank))) end

--- Waits for all ranks: { { out, err, status, seconds } of rank 0, ... }. Ranks that are not done after `seconds` (120) are killed,
--- and their status is "timeout".
function Job:wait(seconds)
  local deadline, results, left = C.lr_time() + (seconds or 120), {}, self.n
  local late = {}
  while left > 0 do
    left = 0
    for rank = 0, self.n - 1 do
      if not self.ended[rank] then
        if fs.exists(path(self, "status", rank)) then self.ended[rank] = C.lr_time() - self.began else left = left + 1 end
      end
    end
    if left > 0 and C.lr_time() > deadline then
      deadline = math.huge
      for rank = 0, self.n - 1 do
        if not self.ended[rank] then
          late[rank] = true
          self:kill(rank)
        end
      end
    end
    if left > 0 then os.execute "sleep 0.02" end
  end
  for rank = 0, self.n - 1 do
    results[rank + 1] = { out = self:output(rank), err = read(path(self, "err", rank)), seconds = self.ended[rank],
      status = late[rank] and "timeout" or tonumber(read(path(self, "status", rank))) }
  end
  if self.server then C.lr_store_server_stop(self.server) end
  fs.remove(self.folder)
  return results
end

--- Starts ranks and waits for them.
function ranks.run(options) return ranks.start(options):wait(options.seconds) end

return ranks
