-- launched.lua: for tests: runs recipes that launch ranks, as a user runs them:
--   local launched = dofile(os.getenv "LORARUN_TESTS" .. "/dist/launched.lua")
--   launched.run("lr.launch { processes = 2 } ...", function(r, folder) check.equal(r.status, 0) end)
--
-- A recipe has these names: lr, C, ffi, `folder` (where it is), and
--   sleep(seconds), hang(), wait_for(condition), signal_self(number), signal_launcher(number)
--   mark "name"          makes a file of that name in the folder, with its process id; marked "name": does it exist?
-- No rank waits for more than two minutes.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local fs = require "lorarun.base.fs"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
ffi.cdef "int kill(int pid, int signal);"

local launched = {}

launched.PREAMBLE = [[
local lr = require "lorarun"
local C, ffi = require "lorarun.base.c", require "ffi"
ffi.cdef "int kill(int pid, int signal); int getpid(void); int getppid(void); int usleep(unsigned);"
local function sleep(seconds) -- many short sleeps, since a signal ends one
  local stop = C.lr_time() + seconds
  while C.lr_time() < stop do ffi.C.usleep(5000) end
end
local function hang() sleep(120) end
local function wait_for(condition)
  local stop = C.lr_time() + 120
  while not condition() do
    if C.lr_time() > stop then error "waited in vain" end
    ffi.C.usleep(5000)
  end
end
local function signal_self(number) ffi.C.kill(ffi.C.getpid(), number) end
local function signal_launcher(number) ffi.C.kill(ffi.C.getppid(), number) end
local folder = arg[0]:match "^(.*)/"
local function mark(name)
  local f = assert(io.open(folder .. "/" .. name .. ".new", "w"))
  f:write(ffi.C.getpid())
  f:close()
  os.rename(folder .. "/" .. name .. ".new", folder .. "/" .. name)
end
local function marked(name)
  local f = io.open(folder .. "/" .. name)
  if f then f:close() end
  return f ~= nil
end
]]

-- What the launcher prints about its checks, and the rest of standard error.
local function take_checks(text)
  local checks, rest = {}, {}
  for line in text:gmatch "[^\n]*\n?" do
    local list = (line:find "^starting %d+ ranks?; checked first:\n$" or line:find "^  %l+  +%S" or line:find "^         +%S")
      and checks or rest
    list[#list + 1] = line
  end
  return table.concat(checks), table.concat(rest)
end

--- Runs a recipe in a folder of its own, then calls look(result, folder). command: the shell command that runs it, by default
--- $L ./recipe.lua. Result: status, out, err (without the checks), checks, all, seconds.
function launched.run(code, look, command)
  shell.with_folder(function(folder)
    fs.write(folder .. "/recipe.lua", launched.PREAMBLE .. code)
    local began = C.lr_time()
    local r = shell.run(("cd %s; %s"):format(shell.quote(folder), command or "$L ./recipe.lua"))
    r.seconds = C.lr_time() - began
    r.checks, r.err = take_checks(r.err)
    r.all = r.out .. r.err
    look(r, folder)
  end)
end

local function alive(pid) return ffi.C.kill(pid, 0) == 0 end

--- Checks that every process whose id a rank wrote to a file pid0, pid1, ... ends within 30 seconds.
function launched.expect_gone(folder, ranks)
  for rank = 0, ranks - 1 do
    local pid = tonumber(fs.read(folder .. "/pid" .. rank))
    local patience = C.lr_time() + 30
    while alive(pid) and C.lr_time() < patience do os.execute "sleep 0.02" end
    if alive(pid) then error(("rank %d still runs, as process %d"):format(rank, pid), 2) end
  end
end

return launched
