-- run_lock.lua: allows one run at a time in an output folder. Two at once would leave the adapter of one with the scores of the
-- other. So a run holds the file run.lock in the folder: the training process does, or the launcher of its ranks, also while it
-- restarts them.
--
--   local lock = run_lock.take(folder)     an error that names the holder where there is one
--   lock:release()
--
-- The kernel knows whether a holder on this machine lives (runtime/io/lock.c). Where it does not know, the text in the file
-- decides: the lock of a process of this machine that has ended is taken over; one of another machine is an error, since that
-- machine's processes cannot be seen from here.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local using = require "lorarun.base.using"

local run_lock = {}
local Lock = {}
Lock.__index = Lock

local NAME = "run.lock"
local BY_LAUNCHER = "LORARUN_RUN_LOCK" -- in a rank's environment: the folder that its launcher holds

-- When a process began, in the kernel's ticks since the machine started; nil where it has ended. It tells a process from a later
-- one with the same number.
local function started(pid)
  local stat = fs.first_line(("/proc/%s/stat"):format(pid))
  local state, rest = (stat or ""):match "^.*%) (%a) (.*)$"
  if not state or state == "Z" or state == "X" then return nil end
  local field = 3
  for word in rest:gmatch "%S+" do
    field = field + 1
    if field == 22 then return tonumber(word) end
  end
end

local function own_holder()
  local now, pid = os.time(), tonumber(fs.first_line("/proc/self/stat"):match "^%d+")
  return { pid = pid, started = started "self", host = fs.first_line "/proc/sys/kernel/hostname" or "this machine", since = now,
    time = os.date("!%Y-%m-%d %H:%M:%S UTC", now), boot = fs.first_line "/proc/sys/kernel/random/boot_id",
    machine = fs.first_line "/etc/machine-id" }
end

-- The holder that the file names, or nil where its text cannot be used.
local function read_holder(path)
  local ok, holder = pcall(function() return json.decode(fs.read(path), path) end)
  if ok and type(holder) == "table" and type(holder.pid) == "number" and type(holder.host) == "string" then return holder end
end

--- verdict(holder, own, known): whether the process `own` may have the lock of `holder` (nil: unknown): "taken": it may; "running":
--- the holder lives; "elsewhere": that cannot be seen. known: whether the kernel says that no process it knows of holds the lock.
function run_lock.verdict(holder, own, known)
  if not holder then return known and "taken" or "elsewhere" end
  local same_kernel = holder.boot ~= nil and holder.boot == own.boot
  local same_host = holder.host == own.host
  if not same_kernel then -- this machine before it was restarted, or another one
    return same_host and holder.machine == own.machine and "taken" or "elsewhere"
  end
  if same_host and holder.started and started(holder.pid) == holder.started then return "running" end
  -- another host of the same kernel is a container, whose processes are hidden
  return (known or same_host) and "taken" or "elsewhere"
end

local function text_of(holder)
  if not holder then return "a process that has not said which" end
  return ("process %d on %s, since %s"):format(holder.pid, holder.host, tostring(holder.time))
end

local function refuse(folder, path, holder, verdict)
  if verdict == "running" then
    check.fail("%s is the output of another run, which is still at work there: %s. Wait for it, end it, or choose another output",
      folder, text_of(holder))
  end
  check.fail("%s is the output of another run: %s. From here one cannot see whether it still runs: wait for it or choose another "
    .. "output; where it is known to have ended, remove %s", folder, text_of(holder), path)
end

-- The handle of the lock file, or an error.
local function take(folder, path, own)
  local out, state = ffi.new "lr_lock *[1]", ffi.new "int[1]"
  while true do
    check.call(C.lr_lock_take, out, path, state)
    if state[0] == C.LR_LOCK_HELD then refuse(folder, path, read_holder(path), "running") end
    local handle = out[0]
    if state[0] == C.LR_LOCK_MADE then return handle end
    local holder = read_holder(path)
    local verdict = run_lock.verdict(holder, own, state[0] == C.LR_LOCK_LEFT)
    if verdict ~= "taken" then
      C.lr_lock_free(handle, 0)
      refuse(folder, path, holder, verdict)
    elseif state[0] == C.LR_LOCK_LEFT then
      return handle
    end
    C.lr_lock_free(handle, 1) -- the file system has no locks: the process that makes the file has it
  end
end

--- take(folder): lock an output folder, which is made if it is missing. A rank whose launcher holds the lock gets one that does
--- nothing.
function run_lock.take(folder)
  local new = not fs.exists(folder)
  fs.make(folder)
  local real = fs.real(folder)
  if C.lr_rank_launched() ~= 0 and os.getenv(BY_LAUNCHER) == real then return setmetatable({}, Lock) end
  local path, own = fs.join(real, NAME), own_holder()
  local handle = take(folder, path, own)
  local text = json.encode(own, { indent = 2, sort_keys = true }) .. "\n"
  local function free(h) C.lr_lock_free(h, 1) end
  using.made(handle, free, function() check.call(C.lr_lock_write, handle, text, #text) end)
  return setmetatable({ folder = real, new = new, handle = ffi.gc(handle, free) }, Lock) -- a program that just ends frees it too
end

--- release(): give it back; a second time does nothing. A folder that was made for it and is empty goes too.
function Lock:release()
  local handle = self.handle
  self.handle = nil
  if not handle then return end
  C.lr_lock_free(ffi.gc(handle, nil), 1)
  if self.new then os.remove(self.folder) end -- rmdir: does nothing where there are files
end

--- for_ranks(environment): add the variable by which ranks know that their launcher holds the lock.
function Lock:for_ranks(environment) environment[BY_LAUNCHER] = self.folder end

return run_lock
