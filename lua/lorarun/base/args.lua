-- args.lua: the options of a recipe. One table lists them; parsing, checking and --help follow from it.
--
--   local args = lr.args {
--     { "model", "nomic-ai/nomic-embed-code", "folder or Hugging Face id of the base model" },
--     { "batch", 64, "pairs a step on each device", type = "integer", min = 1 },
--     { "schedule", "linear", "after warmup", choices = { "linear", "cosine" } },
--     { "resume", nil, "checkpoint to go on from" },
--   }
--
-- A row is { name, default, help, type =, choices =, min =, max =, required =, alone = }; `alone` is the value of an option that
-- the command line names without a value. Where the order of --help does not matter, the spec may instead have keys:
-- batch = 64, or batch = { default = 64, help = ..., ... }. The type (string, number, integer, boolean or choice) is that of the
-- default, and string where there is none. A boolean is set by --name and --no-name. Dashes and underscores are the same:
-- { "max-steps" } is given as --max-steps or --max_steps and read as args.max_steps.
--
-- Reading or writing a field that is no option is an error.
--   args.parse(spec [, argv])  -> the table; --help and mistakes end the program, with status 0 and 2
--   args.of_recipe(spec, argv, is_launcher_flag)  lr.args: as parse, and every recipe has --resume: alone it means latest, and
--                                 lr.train hears of it. is_launcher_flag(name): would the launcher take it, before the recipe?
--   args.resume()              -> the value of --resume or nil, and whether lr.train acts on it (the recipe has none of its own)
--   args.settings()            -> the table that the recipe's latest lr.args returned, or nil: lr.train keeps it with the model
--   args.to_resume()           -> the words that resume from the newest checkpoint; nil where the recipe has no lr.args
--   args.read(spec, argv)      -> the table; nil, message on a mistake; nil, nil, text for --help
--   args.given(result, name)   -> whether the command line gave the option
local check = require "lorarun.base.check"
local say = require "lorarun.base.say"
local sorted = require "lorarun.base.sorted"
local suggest = require "lorarun.base.suggest"

local args = {}

local TYPES = { string = "TEXT", number = "NUMBER", integer = "INTEGER", boolean = "", choice = "" }
local ROW_KEYS = { "default", "help", "type", "choices", "min", "max", "required", "alone" }
local LARGEST_INTEGER = 2 ^ 53
local NARROWEST, WIDEST, WITHOUT_TERMINAL = 40, 120, 100

local explicit = setmetatable({}, { __mode = "k" }) -- result -> set of the names that were given

local function field_name(name) return (name:gsub("-", "_")) end
local function shown_name(name) return "--" .. name:gsub("_", "-") end

-- ---- values ---------------------------------------------------------------------------------------------------------

local function number_from(text)
  local looks_right = text:find "^[+-]?%d+%.?%d*$" or text:find "^[+-]?%.%d+$"
    or text:find "^[+-]?%d+%.?%d*[eE][+-]?%d+$" or text:find "^[+-]?%.%d+[eE][+-]?%d+$"
  local value = looks_right and tonumber(text)
  if value and math.abs(value) < math.huge then return value end
end

local WORDS = { ["true"] = true, yes = true, on = true, ["1"] = true,
  ["false"] = false, no = false, off = false, ["0"] = false }

-- value -> nil where the option may have it, else what is wrong: "must be at least 1"
local function objection(option, value)
  if option.type == "integer" and (value % 1 ~= 0 or math.abs(value) > LARGEST_INTEGER) then return "must be an integer" end
  if option.min and value < option.min then return ("must be at least %.10g"):format(option.min) end
  if option.max and value > option.max then return ("must be at most %.10g"):format(option.max) end
end

-- text -> value, or nil, what is wrong
local function convert(option, text)
  if option.type == "string" then return text end
  if option.type == "boolean" then
    if WORDS[text:lower()] == nil then return nil, "must be true or false" end
    return WORDS[text:lower()]
  end
  if option.type == "choice" then
    local names = {}
    for i, choice in ipairs(option.choices) do
      names[i] = tostring(choice)
      if names[i] == text then return choice end
    end
    return nil, ("must be one of %s%s"):format(table.concat(names, ", "), suggest.did_you_mean(text, names))
  end
  local value = number_from(text)
  if not value then return nil, option.type == "integer" and "must be an integer" or "must be a number" end
  local wrong = objection(option, value)
  if wrong then return nil, wrong end
  return value
end

-- ---- the spec -------------------------------------------------------------------------------------------------------

local function bad_spec(name, fmt, ...) check.fail("lr.args: option '%s' " .. fmt, tostring(name), ...) end

local function type_of(name, row, default)
  if row.type then
    if not TYPES[row.type] then
      bad_spec(name, "has the unknown type '%s'; there are string, number, integer, boolean, choice", tostring(row.type))
    end
    if row.type == "choice" and not row.choices then bad_spec(name, "is a choice without choices") end
    return row.type
  end
  if row.choices then return "choice" end
  if default == nil then return "string" end
  if not TYPES[type(default)] then
    bad_spec(name, "has a default that is a %s; it can be a string, a number or a boolean", type(default))
  end
  return type(default)
end

local function check_default(option)
  local default, kind = option.default, option.type
  if default == nil then return end
  if kind == "choice" then
    for _, choice in ipairs(option.choices) do
      if choice == default then return end
    end
    bad_spec(option.name, "has the default '%s', which is none of its choices", tostring(default))
  end
  local wanted = kind == "integer" and "number" or kind
  if type(default) ~= wanted then bad_spec(option.name, "is a %s, but its default is a %s", kind, type(default)) end
  local wrong = wanted == "number" and objection(option, default)
  if wrong then bad_spec(option.name, "%s, but its default is %.10g", wrong, default) end
end

local function option_from(name, row, default, help)
  if type(name) ~= "string" or not name:find "^%a[%w_-]*$" then
    bad_spec(name, "needs a name made of letters, digits and dashes")
  end
  if name == "help" then bad_spec(name, "is taken: every recipe has it") end
  for key in sorted(row) do
    local known = type(key) == "number"
    for _, allowed in ipairs(ROW_KEYS) do known = known or key == allowed end
    if not known then bad_spec(name, "has an unknown key '%s'%s", tostring(key), suggest.did_you_mean(tostring(key), ROW_KEYS)) end
  end
  local option = { name = name, field = field_name(name), shown = shown_name(name), default = default, help = help or "",
    choices = row.choices, min = row.min, max = row.max, required = row.required, alone = row.alone }
  option.type = type_of(name, row, default)
  check_default(option)
  return option
end

-- spec -> the options in order; they are also in the list by field name
local function options_from(spec)
  if type(spec) ~= "table" then check.fail("lr.args wants a table of options, not a %s", type(spec)) end
  local list, names = {}, {}
  local function add(option)
    if list[option.field] then bad_spec(option.name, "is there twice") end
    list[#list + 1], list[option.field] = option, option
  end
  for i, row in ipairs(spec) do
    if type(row) ~= "table" then check.fail("lr.args: row %d is a %s; a row is { name, default, help }", i, type(row)) end
    local default = row[2]
    if default == nil then default = row.default end
    add(option_from(row[1], row, default, row[3] or row.help))
  end
  for name in sorted(spec) do
    if type(name) ~= "number" then names[#names + 1] = name end
  end
  for _, name in ipairs(names) do
    local row = spec[name]
    if type(row) ~= "table" then row = { default = row } end
    add(option_from(name, row, row.default, row.help))
  end
  return list
end

-- ---- --help ---------------------------------------------------------------------------------------------------------

-- The first comment block of a Lua file, without its dashes.
local function description_of(path)
  local f = path and io.open(path, "r")
  if not f then return nil end
  local lines = {}
  for line in f:lines() do
    local text = line:match "^%-%-+%s?(.*)$"
    if text then lines[#lines + 1] = text
    elseif #lines > 0 or not (line:find "^#!" or line:find "^%s*$") then break end
  end
  f:close()
  return lines[1] and table.concat(lines, "\n")
end

-- The words of a text in lines of at most `width` columns. The first line begins after `start` columns, the others are indented by
-- `start`.
local function wrapped(text, start, width)
  local lines, line = {}, ""
  for word in text:gmatch "%S+" do
    if line ~= "" and start + #line + 1 + #word > width then
      lines[#lines + 1] = line
      line = word
    else
      line = line == "" and word or line .. " " .. word
    end
  end
  lines[#lines + 1] = line
  return table.concat(lines, "\n" .. (" "):rep(start))
end

local function default_text(option)
  local default = option.default
  if option.required then return "required" end
  if default == nil then return nil end
  if option.type == "boolean" then return "default: " .. (default and "on" or "off") end
  if default == "" then return nil end
  return "default: " .. (type(default) == "number" and ("%.10g"):format(default) or tostring(default))
end

local function left_column(option)
  if option.type == "boolean" then return ("%s, --no-%s"):format(option.shown, option.shown:sub(3)) end
  local value = TYPES[option.type]
  if option.type == "choice" then
    local names = {}
    for i, choice in ipairs(option.choices) do names[i] = tostring(choice) end
    value = table.concat(names, "|")
  end
  return option.shown .. " " .. value
end

local function help_text(options, script)
  local C = require "lorarun.base.c"
  local width = C.lr_terminal_width(1)
  width = width == 0 and WITHOUT_TERMINAL or math.max(NARROWEST, math.min(width, WIDEST))
  local rows, column = {}, 0
  for _, option in ipairs(options) do
    local default = default_text(option)
    local help = option.help .. (default and (option.help ~= "" and " (" or "(") .. default .. ")" or "")
    rows[#rows + 1] = { left_column(option), help }
  end
  rows[#rows + 1] = { "--help", "show this and exit" }
  for _, row in ipairs(rows) do column = math.max(column, #row[1] + 4) end
  column = math.min(column, math.floor(width * 0.4))
  local out = { ("usage: lorarun %s [options]"):format(script or "RECIPE.lua"), "" }
  local description = description_of(script)
  if description then out[#out + 1] = description .. "\n" end
  out[#out + 1] = "options:"
  for _, row in ipairs(rows) do
    local left = "  " .. row[1]
    local gap = #left + 2 <= column and (" "):rep(column - #left) or "\n" .. (" "):rep(column)
    out[#out + 1] = (left .. gap .. wrapped(row[2], column, width)):gsub("%s+$", "")
  end
  return table.concat(out, "\n")
end

-- ---- the command line -----------------------------------------------------------------------------------------------

local function unknown_option(options, word, name, is_launcher_flag)
  local names = { "--help" }
  for _, option in ipairs(options) do
    names[#names + 1] = option.shown
    if option.type == "boolean" then names[#names + 1] = "--no-" .. option.shown:sub(3) end
  end
  if is_launcher_flag and is_launcher_flag(name) then
    return ("unknown option %s; it says how ranks run and stands before the recipe: lorarun %s ... RECIPE.lua"):format(word, word)
  end
  return ("unknown option %s%s (--help lists the options)"):format(word, suggest.did_you_mean(shown_name(name), names, "%s"))
end

local function new_result(options)
  local result = {}
  for _, option in ipairs(options) do result[option.field] = option.default end
  local function refuse(name)
    local names = {}
    for i, option in ipairs(options) do names[i] = option.field end
    check.fail("the recipe has no option '%s'%s", tostring(name), suggest.did_you_mean(tostring(name), names))
  end
  explicit[result] = {}
  return setmetatable(result, {
    __index = function(_, name)
      if not options[name] then refuse(name) end
    end,
    __newindex = function(t, name, value)
      if not options[name] then refuse(name) end
      rawset(t, name, value)
    end,
  })
end

local function read(options, argv, is_launcher_flag)
  local result = new_result(options)
  local given = explicit[result]
  local i = 1
  while i <= #argv do
    local word = argv[i]
    if word == "--help" or word == "-h" then return nil, nil, help_text(options, argv[0]) end
    local name, text = word:match "^%-%-([^=]+)=(.*)$"
    name = name or word:match "^%-%-(.+)$"
    if not name then
      if word:sub(1, 1) == "-" then return nil, unknown_option(options, word, word:sub(2), is_launcher_flag) end
      return nil, ("unexpected argument '%s'; options look like --name value (--help lists them)"):format(word)
    end
    local option, value = options[field_name(name)]
    local negated = not option and name:match "^no[-_](.+)$"
    local switched_off = negated and options[field_name(negated)]
    if switched_off and switched_off.type == "boolean" then
      if text then return nil, ("--%s takes no value"):format(name) end
      option, value = switched_off, false
    elseif not option then
      return nil, unknown_option(options, "--" .. name, name, is_launcher_flag)
    elseif option.type == "boolean" and not text then
      value = true
    else
      local following = argv[i + 1]
      if not text and option.alone ~= nil and (not following or following:sub(1, 1) == "-") then
        value = option.alone
      else
        if not text then
          i = i + 1
          text = following
          if not text or text:sub(1, 2) == "--" then
            return nil, ("%s needs a value: %s"):format(option.shown, left_column(option))
          end
        end
        local wrong
        value, wrong = convert(option, text)
        if wrong then return nil, ("%s is '%s'; it %s"):format(option.shown, text, wrong) end
      end
    end
    result[option.field], given[option.field] = value, true
    i = i + 1
  end
  for _, option in ipairs(options) do
    if option.required and not given[option.field] then
      return nil, ("%s is required%s"):format(option.shown, option.help ~= "" and ": " .. option.help or "")
    end
  end
  return result
end

function args.read(spec, argv) return read(options_from(spec), argv) end

local function parse(options, argv, is_launcher_flag)
  argv = argv or rawget(_G, "arg") or {}
  local result, mistake, help = read(options, argv, is_launcher_flag)
  if result then return result end
  if help then
    io.stdout:write(help, "\n")
    os.exit(0, true)
  end
  io.stdout:flush()
  say.error_line((argv[0] or "lorarun") .. ": " .. mistake)
  os.exit(2, true)
end

function args.parse(spec, argv) return parse(options_from(spec), argv) end

-- ---- --resume -------------------------------------------------------------------------------------------------------

local latest -- what the recipe's latest lr.args gave
local resume -- and its --resume: { asked = value or nil, own = the recipe declares it, switch = as a boolean }

function args.of_recipe(spec, argv, is_launcher_flag)
  local options = options_from(spec)
  local option, own = options.resume, options.resume ~= nil
  if not own then
    option = option_from("resume", {}, nil, "go on from a checkpoint: its path; alone, or latest: the newest")
    options[#options + 1], options.resume = option, option
  end
  local switch = option.type == "boolean"
  if option.type == "string" and option.alone == nil then option.alone = "latest" end
  local result = parse(options, argv, is_launcher_flag)
  local value = explicit[result].resume and result.resume
  resume = { asked = value ~= "" and value or nil, own = own, switch = switch }
  latest = result
  return result
end

function args.resume()
  if resume then return resume.asked, not resume.own end
end

function args.settings() return latest end

function args.to_resume() return resume and (resume.switch and "--resume" or "--resume latest") end

function args.given(result, name)
  local given = explicit[result]
  if not given then check.fail("args.given wants what lr.args returned") end
  name = field_name(name)
  local _ = result[name] -- an error where there is no such option
  return given[name] == true
end

return args
