-- variables.lua: checks the environment variables that lorarun reads, before anything runs. A value without a meaning is an error,
-- and a LORARUN_ name that nothing reads a warning: where they are used, both would go unnoticed.
--   variables.check([environment])   -> warnings, a list of lines; an error names the variable, its value and what it may be.
--                                       environment: name -> value; by default this process's own
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local sorted = require "lorarun.base.sorted"
local suggest = require "lorarun.base.suggest"

local variables = {}


local function one_of(...)
  local words = { ... }
  return function(value)
    for _, word in ipairs(words) do
      if value == word then return end
    end
    return "one of " .. table.concat(words, ", ")
  end
end

local function any() end

-- Variables for users, without LORARUN_: name -> function(value) -> what was expected, or nil where the value is valid.
local OURS = {
  SECRET = any, SECRET_FILE = any, TRACEBACK = one_of("0", "1"), JIT = one_of("on", "off"),
  ISA = one_of("baseline", "avx2", "avx512", "avx512bf16"),
  LUA_PATH = function(value)
    if not fs.is_directory(fs.join(value, "lorarun")) and not fs.is_directory(fs.join(value, "models")) then
      return "a folder with lorarun/*.lua or models/*.lua"
    end
  end,
}
-- Variables of the launcher, of tests and of tools.
local INTERNAL = {}
for _, name in ipairs { "LAUNCHER", "PROMPT", "GENERATION", "GROUP", "RUN_LOCK", "SIMT", "SIMT_SEED", "TESTS", "PROGRAM",
  "NVML", "REGISTERS", "SOURCE", "GPU", "VENV", "BUILD" } do
  INTERNAL[name] = true
end

-- As libgomp reads it: a number, or a list with one for each nested level.
local function threads(value)
  local n = tonumber(value:match "^%s*(%d+)%s*$" or value:match "^%s*(%d+)%s*,[%d%s,]*$")
  if not n or n < 1 or n > C.LR_MOST_THREADS then return ("a whole number from 1 to %d"):format(C.LR_MOST_THREADS) end
end

local function own_environment()
  local list = {}
  for name, value in fs.read "/proc/self/environ":gmatch "([^=%z]+)=([^%z]*)" do list[name] = value end
  return list
end

-- CUDA ignores everything in this list after the first entry that it does not understand, and says nothing.
local function look_at_gpus(value, warnings)
  for device in (value .. ","):gmatch "%s*([^,]*),%s*" do
    if not (device:find "^%-?%d+%s*$" or device:find "^GPU%-%x[%x-]*%s*$" or device:find "^MIG%-%S+%s*$") then
      warnings[#warnings + 1] = ("CUDA_VISIBLE_DEVICES is '%s': '%s' is neither a number nor a name of a GPU, and CUDA ignores "
        .. "it and all after it"):format(value, device)
      return
    end
  end
end

function variables.check(environment)
  environment = environment or own_environment()
  local function look(name, expected)
    local value = environment[name]
    local wanted = value and value ~= "" and expected(value)
    if wanted then check.fail("%s is '%s', expected %s", name, value, wanted) end
  end
  local known, unknown, warnings = sorted.keys(OURS), {}, {}
  for name in pairs(environment) do
    local own = name:match "^LORARUN_(.+)"
    if own and not OURS[own] and not INTERNAL[own] and not own:find "^TEST_" then unknown[#unknown + 1] = own end
  end
  table.sort(unknown)
  for _, name in ipairs(known) do look("LORARUN_" .. name, OURS[name]) end
  look("OMP_NUM_THREADS", threads)
  for _, name in ipairs(unknown) do
    warnings[#warnings + 1] = ("nothing reads the variable LORARUN_%s%s"):format(name,
      suggest.did_you_mean(name, known, "LORARUN_%s"))
  end
  local gpus = environment.CUDA_VISIBLE_DEVICES
  if gpus and gpus ~= "" and C.lr_cuda_version() ~= nil then look_at_gpus(gpus, warnings) end
  return warnings
end

return variables
