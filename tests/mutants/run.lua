-- run.lua: does the test that a mutant of mutants.lua names notice it?
--   lorarun tests/mutants/run.lua NAME       status 0: it does
--   lorarun tests/mutants/run.lua            every one, a line each
-- LORARUN_TESTS and LORARUN_PROGRAM as for tests/run.lua.
local fs = require "lorarun.base.fs"
local tests = os.getenv "LORARUN_TESTS"
local shell = dofile(tests .. "/shell.lua")
local mutants, apply = dofile(tests .. "/mutants/mutants.lua"), dofile(tests .. "/mutants/apply.lua")

-- Why a mutant is not caught as it should be, or nil.
local function fault(mutant)
  local text, why = apply(fs.join(fs.dirname(tests), "lua", "lorarun"), mutant)
  if not text then return why end
  local file, test, part, to = mutant[2], mutant[3], mutant[4], mutant[6]
  local r
  shell.with_folder(function(folder)
    local path = fs.join(folder, "lorarun", file .. ".lua")
    fs.make(fs.dirname(path))
    fs.write(path, text)
    r = shell.run(("LORARUN_LUA_PATH=%s $L %s %s %s"):format(shell.quote(folder), shell.quote(tests .. "/run.lua"),
      shell.quote(fs.join(tests, test .. ".lua")), shell.quote(part)))
  end)
  -- A module that cannot be loaded, or a test that is not there, shows no failed test.
  local failed = tonumber(r.out:match "%d+ passed, (%d+) failed%s*$" or 0)
  if r.status == 0 then return ("%s passes with %s changed to '%s'"):format(test, file, to) end
  if r.status ~= 1 or failed == 0 then return ("%s did not come to a failed test:\n%s%s"):format(test, r.out, r.err) end
end

local wanted, seen, caught, missed = arg[1], {}, 0, 0
for _, mutant in ipairs(mutants) do
  local name = mutant[1]
  if seen[name] then error(("there are two mutants '%s'"):format(name), 0) end
  seen[name] = true
  if not wanted or name == wanted then
    local why = fault(mutant)
    caught, missed = caught + (why and 0 or 1), missed + (why and 1 or 0)
    print(why and ("FAILED %s: %s"):format(name, why) or "ok     " .. name)
  end
end
print(("%d passed, %d failed"):format(caught, missed))
os.exit(missed == 0 and caught > 0 and 0 or 1, true)
