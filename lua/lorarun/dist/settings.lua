-- settings.lua: the settings of where and how ranks run: their number, machines, devices and precision. The names are Accelerate's.
-- Each may come from the command line (before the recipe), the configuration file, `accelerate launch` or the recipe; the first of
-- these that has it counts.
--
--   settings.take_flag(argv, i)   -> the number of words of the flag at argv[i]; nil where it is none; nil, message for a mistake
--   settings.resolve(recipe)      -> the settings in effect (fields below); origin[name] says where each value comes from
--   settings.flag_help()          -> lines for lorarun --help
--
-- Besides the fields of FIELDS, a result has: precision (fp32, bf16, fp16: mixed_precision in the words of a recipe), ranks_here,
-- first_rank (of this machine), secret, config (the path of the file, or nil), needs_gpu (the flag or key that asks for GPUs, or
-- nil), and warnings (lines for the user).
local C = require "lorarun.base.c"
local args = require "lorarun.base.args"
local check = require "lorarun.base.check"
local scheduler_environment = require "lorarun.dist.scheduler_environment"
local secret = require "lorarun.dist.secret"
local sorted = require "lorarun.base.sorted"
local suggest = require "lorarun.base.suggest"

local settings = {}

-- name, type, default, help. A flag is the name with dashes (underscores, as Accelerate writes them, do as well).
local FIELDS = {
  { "config", "string", nil, "FILE", "read Accelerate's YAML or JSON; `default` is the file `accelerate config` wrote" },
  { "num_processes", "integer", 1, "N", "ranks on all machines together", min = 1, max = 65536 },
  { "num_machines", "integer", 1, "N", "machines that take part", min = 1, max = 65536 },
  { "machine_rank", "integer", 0, "N", "number of this machine, from 0", min = 0, max = 65535 },
  { "main_process_ip", "string", nil, "HOST", "address of machine 0" },
  { "main_process_port", "integer", nil, "PORT", "where machine 0 listens (29500; on one machine any free port)", min = 0,
    max = 65535 },
  { "mixed_precision", "choice", "no", "no|fp16|bf16", "precision of the forward and backward pass; no is fp32",
    choices = { no = "fp32", fp16 = "fp16", bf16 = "bf16" } },
  { "gpu_ids", "string", nil, "0,1|all", "GPUs of this machine to use" },
  { "use_cpu", "boolean", false, "", "train on the CPU, whatever GPUs there are", flag = "cpu" },
  { "num_cpu_threads_per_process", "integer", 0, "N", "compute threads of a rank; 0: cores divided by ranks", min = 0,
    max = C.LR_MOST_THREADS },
  { "max_restarts", "integer", 0, "N", "start again from the last checkpoint when a rank fails, up to N times", min = 0,
    max = 1e6 },
  { "log_dir", "string", nil, "DIR", "write what each rank says to DIR/rank_N.log" },
  { "timeout", "number", 600, "SECONDS", "how long a rank may keep the others waiting", min = 1, max = 1e7 },
  { "rendezvous_timeout", "number", 900, "SECONDS", "how long to wait for the other machines at the start", min = 1, max = 1e7 },
  { "secret_file", "string", nil, "FILE", "the secret that machines must share (or LORARUN_SECRET, LORARUN_SECRET_FILE)" },
}
local BY_NAME, BY_FLAG = {}, {}
for _, row in ipairs(FIELDS) do
  local field = { name = row[1], type = row[2], default = row[3], value = row[4], help = row[5], min = row.min, max = row.max,
    choices = row.choices, flag = row.flag or row[1]:gsub("_", "-") }
  BY_NAME[field.name], BY_FLAG[field.flag] = field, field
end
BY_FLAG["config-file"] = BY_NAME.config -- Accelerate's spelling
BY_FLAG["use-cpu"] = BY_NAME.use_cpu

-- The names that recipes use, where they differ.
local RECIPE_NAMES = { processes = "num_processes", machines = "num_machines", precision = "mixed_precision",
  threads = "num_cpu_threads_per_process" }
local PRECISION_WORDS = { fp32 = "no", no = "no", bf16 = "bf16", fp16 = "fp16" }
-- Options of lr.launch that are not settings of ranks: for its checks; `args`: see from_recipe.
local ASIDE = { args = true, model = true, revision = true, data = true, output = true }

local OF_RECIPE = {} -- all of these
for _, list in ipairs { BY_NAME, RECIPE_NAMES, ASIDE } do
  for name in pairs(list) do OF_RECIPE[name] = true end
end

local COMMAND_LINE, RECIPE, DEFAULT = "command line", "recipe", "default"
local from_command_line = {}

-- ---- values ---------------------------------------------------------------------------------------------------------

-- The number in a text of decimal digits, as Python's int() and float() read it from a command line. Lua's tonumber would accept
-- 0x10 and 1e3 as whole numbers.
local function number_of(value, kind)
  if type(value) == "number" then return value end
  local text = tostring(value):match "^%s*(.-)%s*$"
  local form = kind == "integer" and "^[-+]?%d+$" or "^[-+]?[%d.]+[eE]?[-+]?%d*$"
  return text:find(form) and tonumber(text) or nil
end

-- The value in the field's type; an error begins with `who`: "--num-processes", "c.yaml:3: num_processes".
local function checked(field, value, who)
  local kind = field.type
  if kind == "integer" or kind == "number" then
    local n = number_of(value, kind)
    if not n or kind == "integer" and n % 1 ~= 0 or n ~= n then
      check.fail("%s is '%s', expected a %s", who, tostring(value), kind == "integer" and "whole number" or "number")
    elseif n < field.min or n > field.max then
      check.fail("%s is %s, expected %.10g to %.10g", who, tostring(value), field.min, field.max)
    end
    return n
  elseif kind == "boolean" then
    if type(value) ~= "boolean" then check.fail("%s is '%s', expected true or false", who, tostring(value)) end
  elseif kind == "choice" then
    if value == "fp8" then
      check.fail("%s is fp8, which is not supported yet; use bf16 (on GPUs that lack it, fp16)", who)
    elseif not field.choices[value] then
      check.fail("%s is '%s', expected one of %s", who, tostring(value), field.value:gsub("|", ", "))
    end
  elseif type(value) ~= "string" or value == "" then
    check.fail("%s is '%s', expected a text", who, tostring(value))
  end
  return value
end

-- ---- the command line -----------------------------------------------------------------------------------------------

function settings.take_flag(argv, i)
  local name, text = argv[i]:match "^%-%-([^=]+)=(.*)$"
  name = (name or argv[i]:match "^%-%-(.+)$" or ""):gsub("_", "-")
  if name == "multi-gpu" then
    from_command_line.needs_gpu = "--multi-gpu"
    return 1
  end
  local field = BY_FLAG[name]
  if not field then return nil end
  local used = 1
  if field.type == "boolean" then
    if text then return nil, ("--%s takes no value"):format(name) end
    text = true
  elseif not text then
    text, used = argv[i + 1], 2
    if not text or text:find "^%-%-" then return nil, ("--%s needs a value: --%s %s"):format(name, name, field.value) end
  end
  local ok, value = pcall(checked, field, text, "--" .. name)
  if not ok then return nil, (value:gsub("^[^ ]*: ", "")) end
  from_command_line[field.name] = value
  return used
end

--- given(name): the value that a flag of the command line gave, or nil.
function settings.given(name) return from_command_line[name] end

--- any_given(): a flag that the command line gave, with its dashes; of several the first in the alphabet; nil where there is none.
function settings.any_given()
  local name = sorted.keys(from_command_line)[1]
  return name and "--" .. (name == "needs_gpu" and "multi-gpu" or BY_NAME[name].flag)
end

--- forget(): as if the command line had said nothing.
function settings.forget()
  for name in pairs(from_command_line) do from_command_line[name] = nil end
end

--- Names of all flags with their dashes, for "did you mean" and for telling that a flag stands before the recipe.
function settings.flags()
  local names = { ["--multi-gpu"] = true }
  for name in pairs(BY_FLAG) do names["--" .. name] = true end
  return sorted.keys(names)
end

--- Is `name` (no dashes before it) one of them?
function settings.is_flag(name) return BY_FLAG[(name:gsub("_", "-"))] ~= nil end

function settings.flag_help()
  local lines = {}
  for _, row in ipairs(FIELDS) do
    local field = BY_NAME[row[1]]
    local left = ("--%s %s"):format(field.flag, field.value)
    local gap = #left < 33 and (" "):rep(33 - #left) or "\n" .. (" "):rep(35)
    lines[#lines + 1] = ("  %s%s%s"):format(left, gap, field.help)
  end
  return table.concat(lines, "\n") .. "\n"
end

-- ---- putting them together ------------------------------------------------------------------------------------------

-- The values of a recipe's lr.launch{...}, and which of them the user gave: with `args = args`, an option of the recipe that is on
-- the command line (`--processes 2` after the recipe's name) counts as given there.
local function from_recipe(given)
  local values, from_user = {}, {}
  suggest.refuse_unknown("lr.launch", given, OF_RECIPE)
  for key, value in sorted(given) do
    local name = RECIPE_NAMES[key] or key
    local field = BY_NAME[name]
    if field then
      if name == "mixed_precision" then
        value = PRECISION_WORDS[value] or check.fail("lr.launch: precision is '%s', expected fp32, bf16 or fp16", tostring(value))
      end
      values[name] = checked(field, value, "lr.launch: " .. key)
      if given.args and rawget(given.args, key) ~= nil and args.given(given.args, key) then from_user[name] = true end
    end
  end
  return values, from_user
end

local function read_secret(result)
  local path, where = result.secret_file, result.origin.secret_file
  if where == DEFAULT then path, where = os.getenv "LORARUN_SECRET_FILE", "LORARUN_SECRET_FILE" end
  return secret.read(path, where, result.warnings)
end

-- "name is 3 (command line)"
local function said(result, name) return ("%s is %s (%s)"):format(name, tostring(result[name]), result.origin[name]) end

-- Set s.gpus: the GPUs of gpu_ids as this process numbers them. The ids are the machine's numbers, as in CUDA_VISIBLE_DEVICES, in
-- which the ranks get them; if that variable is set already, the ids must be among it.
local function choose_gpus(s)
  local visible, count, text = nil, 0, os.getenv "CUDA_VISIBLE_DEVICES"
  if text and text ~= "" then
    visible = {}
    for id in text:gmatch "[^,%s]+" do visible[tonumber(id) or id], count = count, count + 1 end
  end
  local ids, seen = {}, {}
  for id in (s.gpu_ids .. ","):gmatch "%s*([^,]*),%s*" do
    if not id:find "^%d+%s*$" then check.fail("%s, expected numbers with commas between them, or all", said(s, "gpu_ids")) end
    id = tonumber(id)
    if seen[id] then check.fail("%s: %d is there twice", said(s, "gpu_ids"), id) end
    if visible and not visible[id] then
      check.fail("%s, and CUDA_VISIBLE_DEVICES is %s: name GPUs that are in both, or unset one", said(s, "gpu_ids"), text)
    end
    ids[#ids + 1], seen[id] = visible and visible[id] or id, true
  end
  if #ids < s.ranks_here then
    check.fail("%s: %d for %d ranks on this machine; name one for each, or lower num_processes", said(s, "gpu_ids"), #ids,
      s.ranks_here)
  end
  s.gpus = ids
  if s.origin.gpu_ids == "command line" then s.needs_gpu = s.needs_gpu or "--gpu-ids" end -- a file's may be for other machines
end

-- Check the settings that depend on each other.
local function check_together(s)
  if s.num_processes % s.num_machines ~= 0 then
    check.fail("%s, which %s does not divide; every machine runs the same number of ranks", said(s, "num_processes"),
      said(s, "num_machines"))
  end
  s.ranks_here = s.num_processes / s.num_machines
  if s.machine_rank >= s.num_machines then
    check.fail("%s, but %s; machines are numbered from 0", said(s, "machine_rank"), said(s, "num_machines"))
  end
  s.first_rank = s.machine_rank * s.ranks_here
  if s.main_process_ip then
    local host, port = scheduler_environment.address(s.main_process_ip, ("main_process_ip (%s)"):format(s.origin.main_process_ip))
    if port and s.main_process_port and s.main_process_port ~= port then
      check.fail("%s, which names a port, and %s", said(s, "main_process_ip"), said(s, "main_process_port"))
    end
    s.main_process_ip, s.main_process_port = host, s.main_process_port or port
  end
  if s.num_machines > 1 then
    if not s.main_process_ip then
      check.fail("%s, but nothing says where machine 0 is: give --main-process-ip (or main_process_ip in the file) on every "
        .. "machine", said(s, "num_machines"))
    elseif s.main_process_port == 0 then
      check.fail("%s: the other machines must know the port; name one on every machine", said(s, "main_process_port"))
    elseif not s.secret then
      check.fail("%s, and machines must share a secret: put the same random text (head -c 32 /dev/urandom | base64) into a file on "
        .. "each and name it with --secret-file, or set LORARUN_SECRET", said(s, "num_machines"))
    end
    if not s.main_process_port then s.main_process_port = 29500 end
  end
  if s.use_cpu then s.needs_gpu = nil end
  if s.gpu_ids and s.gpu_ids ~= "all" and not s.use_cpu then choose_gpus(s) end
end

--- resolve(recipe): recipe: the options of lr.launch: fields of FIELDS, or processes, machines, precision, threads in their place;
--- args = the recipe's options. An error names the setting, its value and where it comes from.
function settings.resolve(recipe)
  local ours, from_user = from_recipe(recipe or {})
  local given = {}
  for name, value in pairs(from_command_line) do given[name] = value end
  for name in pairs(from_user) do
    if given[name] == nil then given[name] = ours[name] end
  end
  local path = given.config or ours.config
  local file, places, warnings = {}, {}, {}
  if path then
    local accelerate = require "lorarun.dist.accelerate"
    if path == "default" then path = accelerate.default_path() end
    file, places, warnings = accelerate.read(path)
  end

  local launched = require("lorarun.dist.accelerate").environment() -- set by `accelerate launch`
  local result = { origin = {}, warnings = warnings }
  for _, row in ipairs(FIELDS) do
    local name = row[1]
    local field, default = BY_NAME[name], { [name] = row[3] }
    local variable = launched.names[name]
    for _, source in ipairs { { given, COMMAND_LINE }, { file, places[name] }, { launched.values, variable }, { ours, RECIPE },
      { default, DEFAULT } } do
      local value = source[1][name]
      if value ~= nil or source[2] == DEFAULT then
        if source[1] == file then value = checked(field, value, ("%s: %s"):format(places[name], name)) end
        if source[1] == launched.values then value = checked(field, value, source[2]) end
        result[name], result.origin[name] = value, source[2]
        break
      end
    end
  end
  result.config = path
  if file.needs_num_processes and result.origin.num_processes == DEFAULT then
    check.fail("%s: the file does not say how many ranks there are; add num_processes, or give --num-processes",
      file.needs_num_processes)
  end
  result.needs_gpu = given.needs_gpu or file.needs_gpu
  result.precision = BY_NAME.mixed_precision.choices[result.mixed_precision]
  result.secret, result.origin.secret = read_secret(result)
  check_together(result)
  return result
end

--- set_machine(s, rank, by): set the number of this machine, which a scheduler (`by`) gave.
function settings.set_machine(s, rank, by)
  s.machine_rank, s.origin.machine_rank, s.first_rank = rank, by, rank * s.ranks_here
end

--- The settings in effect as text: one line each, with where it came from.
function settings.show(s)
  local lines = {}
  for _, row in ipairs(FIELDS) do
    local name = row[1]
    local value = s[name]
    if value == nil then value = "-" end
    lines[#lines + 1] = ("%-28s %-20s %s"):format(name, tostring(value), s.origin[name])
  end
  lines[#lines + 1] = ("%-28s %-20s %s"):format("secret", s.secret and "set" or "-", s.origin.secret or DEFAULT)
  return table.concat(lines, "\n")
end

--- checked(name, text) -> the value of that setting; an error says what is wrong with it.
function settings.checked(name, text) return checked(BY_NAME[name], text, name) end

return settings
