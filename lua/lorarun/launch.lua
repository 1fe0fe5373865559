-- launch.lua: lr.launch: from a recipe that runs once to a recipe that runs on every rank.
--   local job = lr.launch { processes = 4, precision = "bf16" }   -- rank, world_size, local_rank, ...
--
-- A recipe runs up to here in the program that the user started. Where more than one rank is wanted, that program becomes their
-- launcher (supervisor.lua), starts itself again once for each, and never comes back; in a rank, the same call joins the others and
-- returns. What the recipe prints before is seen once, from the launcher: a rank's standard output is shown from here on.
local C = require "lorarun.c"
local check = require "lorarun.check"
local suggest = require "lorarun.suggest"

local launch = {}

local DEFAULTS = { processes = 1, precision = "fp32", max_restarts = 0, log_dir = false, timeout = 600 }

local LAUNCHER_FIRST = 30 -- seconds by which the launcher's patience is shorter than a rank's: it knows best whom to blame

local current        -- the job of this process, once it is known
local input          -- the code that was read from standard input

--- Before anything is printed. A rank's output goes through a pipe, which C would fill before it passes anything on; at the end of
--- that pipe somebody may be watching.
function launch.prepare()
  if C.lr_rank_launched() ~= 0 then io.stdout:setvbuf "line" end
end

--- Code that came on standard input: ranks get it on theirs.
function launch.standard_input(text) input = text end

--- The recipe failed: tell the launcher, who wants to know which rank was first, and which only followed. The others hear of it
--- now, not when this process has tidied up.
function launch.gave_up(message)
  local peers = check.of_another_rank
  C.lr_rank_failed(message, peers and message:find(peers, 1, true) and 1 or 0)
  if current and current.world_size > 1 then require("lorarun.comm").leave() end
end

local function complete(given)
  local settings = {}
  for key, value in pairs(DEFAULTS) do settings[key] = value end
  for key, value in pairs(given or {}) do
    if DEFAULTS[key] == nil then
      local names = {}
      for name in pairs(DEFAULTS) do names[#names + 1] = name end
      check.fail("lr.launch has no option '%s'%s", tostring(key), suggest.did_you_mean(tostring(key), names))
    end
    settings[key] = value
  end
  for key, least in pairs { processes = 1, max_restarts = 0, timeout = 1 } do
    local value = settings[key]
    if type(value) ~= "number" or value % 1 ~= 0 or value < least then
      check.fail("lr.launch: %s is %s, expected a whole number of at least %d", key, tostring(value), least)
    end
  end
  return settings
end

-- The words this program was started with.
local function own_words()
  local f = assert(io.open("/proc/self/cmdline", "rb"))
  local text, words = f:read "*a", {}
  f:close()
  for word in text:gmatch "([^%z]*)%z" do words[#words + 1] = word end
  return words
end

-- Known to this job's processes alone: nobody else on the machine can join it.
local function new_secret()
  local f = assert(io.open("/dev/urandom", "rb"))
  local bytes = f:read(16)
  f:close()
  return (bytes:gsub(".", function(byte) return ("%02x"):format(byte:byte()) end))
end

local function variable(name)
  local value = tonumber(os.getenv(name))
  if not value then check.fail("the launcher of this rank gave it no %s", name) end
  return value
end

local function join(settings)
  local job = { rank = variable "RANK", world_size = variable "WORLD_SIZE", local_rank = variable "LOCAL_RANK",
    local_world_size = variable "LOCAL_WORLD_SIZE", machine_rank = variable "GROUP_RANK",
    generation = variable "LORARUN_GENERATION", precision = settings.precision }
  io.stdout:flush()
  check(C.lr_rank_show())
  if job.world_size > 1 then
    C.lr_rank_waits "the start of the job"
    require("lorarun.comm").join { rank = job.rank, world_size = job.world_size, local_rank = job.local_rank,
      local_world_size = job.local_world_size, host = os.getenv "MASTER_ADDR", port = variable "MASTER_PORT",
      secret = os.getenv "LORARUN_SECRET", generation = job.generation, timeout = settings.timeout + LAUNCHER_FIRST }
    C.lr_rank_waits(nil)
  end
  return job
end

local function supervise(settings)
  io.stdout:flush()
  local processes = settings.processes
  local environment = {}
  if not os.getenv "OMP_NUM_THREADS" then
    environment.OMP_NUM_THREADS = math.max(1, math.floor(C.lr_cores() / processes))
  end
  local job = { words = own_words(), input = input, environment = environment, world_size = processes, first_rank = 0,
    ranks = processes, machine_rank = 0, machines = 1, host = "127.0.0.1", port = 0, secret = new_secret(),
    timeout = settings.timeout, max_restarts = settings.max_restarts, log_dir = settings.log_dir or nil }
  os.exit(require("lorarun.supervisor").run(job), true)
end

--- launch(options) -> the job: rank, world_size, local_rank, local_world_size, machine_rank, generation (restarts so far) and
--- precision.
function launch.launch(given)
  if current then check.fail("the job is under way: lr.launch comes once, and before the model, training or lr.comm") end
  local settings = complete(given)
  if C.lr_rank_launched() ~= 0 then
    current = join(settings)
  elseif settings.processes > 1 or settings.max_restarts > 0 or settings.log_dir then
    supervise(settings)
  else
    current = { rank = 0, world_size = 1, local_rank = 0, local_world_size = 1, machine_rank = 0, generation = 0,
      precision = settings.precision }
  end
  return current
end

return launch
