-- shell.lua: for tests: runs the built program as a user does, and makes folders.
--   local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local fs = require "lorarun.base.fs"

local shell = {}
local program = assert(os.getenv "LORARUN_PROGRAM", "LORARUN_PROGRAM names the program under test")

--- quote(text): the text as one word of a shell command.
function shell.quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function read_and_remove(path)
  local text = fs.read(path)
  os.remove(path)
  return text
end

--- run(command): run a shell command in which $L is the program. Returns { status, out, err }.
function shell.run(command)
  local out, err, status = os.tmpname(), os.tmpname(), os.tmpname()
  os.execute(("L=%s; { %s\n} >%s 2>%s </dev/null; echo $? >%s"):format(shell.quote(program), command, out, err, status))
  return { out = read_and_remove(out), err = read_and_remove(err), status = tonumber(read_and_remove(status)) }
end

--- new_folder(): the path of a new empty folder, which the caller removes.
function shell.new_folder()
  local folder = os.tmpname()
  os.remove(folder)
  fs.make(folder)
  return folder
end

--- with_folder(fn): call fn with a new empty folder, which is removed afterwards.
function shell.with_folder(fn)
  local folder = shell.new_folder()
  local ok, err = xpcall(fn, debug.traceback, folder)
  fs.remove(folder)
  if not ok then error(err, 0) end
end

return shell
