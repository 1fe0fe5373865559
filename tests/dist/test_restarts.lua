-- test_restarts.lua: ranks that are killed at random moments, in twenty rounds. The launcher starts them again from the last
-- checkpoint, and the run ends with the bits of an undisturbed one.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local fs = require "lorarun.base.fs"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local data_files = dofile(os.getenv "LORARUN_TESTS" .. "/data.lua")
ffi.cdef "int kill(int pid, int signal); int usleep(unsigned);"

local ROUNDS, RANKS, KILL = 20, 3, 9
local bert = fs.join(os.getenv "LORARUN_TESTS", "golden", "bert")

local RECIPE = [[
local lr = require "lorarun"
local folder = arg[1]
require("ffi").cdef "int getpid(void);"
local job = lr.launch { processes = %d, max_restarts = 3, threads = 1, output = folder .. "/out" }
lr.fs.write(("%%s/pid-%%d-%%d"):format(folder, job.generation, job.rank), tostring(require("ffi").C.getpid()))
local model = lr.load_model(%q, { max_length = 32 })
model:add_lora { rank = 4, alpha = 8, dropout = 0.1, targets = { "query", "value" }, seed = 3 }
lr.train { model = model, data = arg[2], columns = { "current_line", "context" },
  output = folder .. "/out", learning_rate = 5e-3, batch = 2, max_steps = 24,
  evaluation_steps = 3, seed = 5 }
]]

local function make_data(folder)
  return data_files.make(folder, { train = 60, validation = 60 }, function(i)
    return { current_line = (i % 3 ~= 0 and "x = %d" or "x == %d"):format(i), score = i % 3 ~= 0 and 1 or 0,
      context = ("def f%d(y):\n"):format(i) .. ("    x = %d\n"):format(i):rep(1 + i * 7 % 5), context_type = "full" }
  end)
end

local function wait_for(what, seconds, condition)
  local stop = C.lr_time() + seconds
  while true do
    local value = condition()
    if value then return value end
    if C.lr_time() > stop then error("waited in vain for " .. what, 0) end
    ffi.C.usleep(2000)
  end
end

-- Starts the recipe in the background; its exit status will be in out/status.
local function begin(folder, recipe, data)
  fs.make(folder)
  os.execute(("( %s %s %s %s >%s/out.txt 2>%s/err.txt </dev/null; echo $? >%s/new; mv %s/new %s/status ) &"):format(
    shell.quote(os.getenv "LORARUN_PROGRAM"), recipe, folder, data, folder, folder, folder, folder, folder))
end

local function ended(folder)
  return wait_for("the end of the job", 120, function()
    return fs.exists(folder .. "/status") and tonumber((fs.read(folder .. "/status")))
  end)
end

-- Checks that there is no half-written file and no unfinished checkpoint.
local function check_whole(folder)
  for _, name in ipairs(fs.list(folder)) do
    local path = fs.join(folder, name)
    check.that(not name:find "%.tmp%-" and not name:find "^%.partial", path .. " was left behind")
    if fs.is_directory(path) then check_whole(path) end
  end
end

local function bits(folder) return fs.read(folder .. "/out/adapter/adapter_model.safetensors") end

test("a run whose ranks are killed at random moments ends in the same bits", function()
  shell.with_folder(function(folder)
    local recipe = folder .. "/recipe.lua"
    fs.write(recipe, RECIPE:format(RANKS, bert))
    local data = folder .. "/data"
    make_data(data)
    local undisturbed = folder .. "/undisturbed"
    begin(undisturbed, recipe, data)
    local started = C.lr_time()
    check.equal(ended(undisturbed), 0, fs.read(undisturbed .. "/err.txt"))
    local duration = C.lr_time() - started
    local wanted, restarted = bits(undisturbed), 0
    math.randomseed(7)
    for round = 1, ROUNDS do
      local here = ("%s/round%d"):format(folder, round)
      begin(here, recipe, data)
      local victim = math.random(RANKS) - 1
      local pid = wait_for("the ranks", 60, function()
        local path = ("%s/pid-0-%d"):format(here, victim)
        return fs.exists(path) and tonumber((fs.read(path)))
      end)
      local joined = C.lr_time()
      ffi.C.usleep(math.floor(math.random() * duration * 0.9e6))
      ffi.C.kill(pid, KILL)
      local status, errors = ended(here), fs.read(here .. "/err.txt")
      check.equal(status, 0, ("round %d, exit status; standard error was %s;"):format(round, errors))
      check.that(bits(here) == wanted, ("round %d: the adapter has other bits; standard error was %s"):format(round, errors))
      if errors:find "restart 1 of 3" then
        restarted = restarted + 1
        check.that(errors:find(("rank %d on %%S+ was killed by SIGKILL"):format(victim)), errors)
      else -- the run was over before its kill: the first run, whose time was measured, must have been slow
        duration = math.min(duration, C.lr_time() - joined)
      end
      check_whole(here .. "/out")
      fs.remove(here)
    end
    check.that(restarted >= ROUNDS / 2, ("only %d of %d kills hit a rank that was at work"):format(restarted, ROUNDS))
  end)
end)
