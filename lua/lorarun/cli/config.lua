-- config.lua: `lorarun config`: asks how ranks are to run and writes the answers as an Accelerate configuration file, which both
-- programs read. `lorarun config --show` prints the settings in effect and where each came from.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local say = require "lorarun.base.say"
local settings = require "lorarun.dist.settings"
local yaml = require "lorarun.base.yaml"

local config = {}

local DEFAULT_FILE = "accelerate_config.yaml"
local USAGE = [[
usage: lorarun config [--config FILE]        asks, and writes FILE (accelerate_config.yaml)
       lorarun config --show [options]       the settings in effect, and where each came from
]]

-- Ask until the answer is valid. parse(text) -> value, or an error that says what is wrong.
local function ask(question, default, parse)
  while true do
    io.write(question, default ~= nil and (" [%s] "):format(tostring(default)) or " ")
    io.flush()
    local line = io.read "*l"
    if not line then check.fail("the answers ended before the question '%s'; nothing was written", question) end
    if C.lr_terminal_width(0) == 0 then io.write(line, "\n") end -- piped answers: show what was answered
    local text = line:match "^%s*(.-)%s*$"
    if text == "" and default ~= nil then text = tostring(default) end
    local ok, value = pcall(parse, text)
    if ok then return value end
    io.write("  ", (tostring(value):gsub("^%S+:%d+: ", "")), "\n")
  end
end

local function setting(name)
  return function(text) return settings.checked(name, text) end
end

local function yes_or_no(text)
  local answer = ({ yes = true, y = true, no = false, n = false })[text:lower()]
  if answer == nil then error("please answer yes or no", 0) end
  return answer
end

local function questions()
  local file = { compute_environment = "LOCAL_MACHINE", debug = false, enable_cpu_affinity = false, machine_rank = 0,
    main_training_function = "main", rdzv_backend = "static", same_network = true }
  file.num_machines = ask("How many machines take part?", 1, setting "num_machines")
  if file.num_machines > 1 then
    file.machine_rank = ask("Which number does this machine have, counted from 0?", nil, function(text)
      local rank = settings.checked("machine_rank", text)
      if rank >= file.num_machines then error(("the last of %d is %d"):format(file.num_machines, file.num_machines - 1), 0) end
      return rank
    end)
    file.main_process_ip = ask("What is the address of machine 0?", nil, setting "main_process_ip")
    file.main_process_port = ask("On which port does machine 0 listen?", 29500, function(text)
      local port = settings.checked("main_process_port", text)
      if port == 0 then error("the other machines must know the port", 0) end
      return port
    end)
  end
  local gpus = ask("Train on GPUs (no: on CPUs)?", C.lr_device_count(C.LR_CUDA) > 0 and "yes" or "no", yes_or_no)
  file.use_cpu = not gpus
  file.num_processes = ask(gpus and "How many ranks on all machines together (one for each GPU)?"
    or "How many ranks on all machines together?", file.num_machines, function(text)
    local ranks = settings.checked("num_processes", text)
    if ranks % file.num_machines ~= 0 then
      error(("every machine runs the same number: give a multiple of %d"):format(file.num_machines), 0)
    end
    return ranks
  end)
  if gpus then file.gpu_ids = ask("Which GPUs of this machine (numbers with commas, or all)?", "all", setting "gpu_ids") end
  file.mixed_precision = ask("Which precision: no (fp32), bf16 or fp16?", gpus and "bf16" or "no", setting "mixed_precision")
  file.distributed_type = file.num_processes == 1 and "NO" or gpus and "MULTI_GPU" or "MULTI_CPU"
  return file
end

--- run(words): the words after `lorarun config`.
function config.run(words)
  local show, i = false, 1
  while i <= #words do
    if words[i] == "--show" then
      show, i = true, i + 1
    elseif words[i] == "--help" or words[i] == "-h" then
      io.write(USAGE)
      return
    else
      local taken, mistake = settings.take_flag(words, i)
      if not taken then
        check.fail("%s", mistake or ("lorarun config does not know '%s' (lorarun config --help)"):format(words[i]))
      end
      i = i + taken
    end
  end
  if show then
    local s = settings.resolve {}
    for _, text in ipairs(s.warnings) do say.warning("%s", text) end
    say.line(settings.show(s))
    return
  end
  local path = settings.given "config" or DEFAULT_FILE
  local file = questions()
  if fs.exists(path) and not ask(("%s is there already; replace it?"):format(path), "no", yes_or_no) then
    io.write("nothing was written\n")
    return
  end
  fs.write(path, yaml.encode(file))
  io.write(("%s was written. To use it: lorarun --config %s RECIPE.lua\n"):format(path, path))
end

return config
