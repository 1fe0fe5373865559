-- folder.lua: folder(fn) calls fn with a new empty folder, and removes it with all in it, whatever happens.
local fs = require "lorarun.fs"

return function(fn)
  local dir = os.tmpname()
  os.remove(dir)
  fs.make(dir)
  local ok, err = xpcall(fn, debug.traceback, dir)
  fs.remove(dir)
  if not ok then error(err, 0) end
end
