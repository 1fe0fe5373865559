-- Start-up: from exec to the first line of Lua, and until a model is loaded:
--   lorarun bench/startup.lua
local C = require "lorarun.base.c"
local lr = require "lorarun"

local program = lr.fs.real "/proc/self/exe"
local function median_ms(command, times)
  local list = {}
  for i = 1, times do
    local t = C.lr_time()
    if os.execute(command) ~= 0 then error("failed: " .. command) end
    list[i] = (C.lr_time() - t) * 1e3
  end
  table.sort(list)
  return list[math.ceil(times / 2)]
end

local quoted = "'" .. program:gsub("'", "'\\''") .. "'"
print(("start-up: %.1f ms for lorarun -e '', %.1f ms with `lr` in use (/bin/true: %.1f ms)"):format(
  median_ms(quoted .. " -e ''", 21), median_ms(quoted .. " -e 'lr.threads(1)'", 21), median_ms("/bin/true", 21)))
local small = lr.hub.small_model()
if lr.fs.is_directory(small) then
  print(("loading %s: %.0f ms until the first embedding"):format(lr.fs.basename(small),
    median_ms(("%s -e 'lr.load_model(%q):encode(\"x = 1\")'"):format(quoted, small), 5)))
end
