-- program.lua: the command line of lorarun: which code runs, in which order, and what the exit status is.
--   main(argv) -> exit status    argv[0] is the program, argv[1..] its words
-- A recipe may not use undeclared variables (strict.lua) and requires what it needs. Code given with -e, typed at the prompt or
-- read from standard input may make globals, and `lr` is one of them.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local failure = require "lorarun.cli.failure"
local fs = require "lorarun.base.fs"
local launch = require "lorarun.dist.launch"
local say = require "lorarun.base.say"
local secret = require "lorarun.dist.secret"
local settings = require "lorarun.dist.settings"
local strict = require "lorarun.cli.strict"
local suggest = require "lorarun.base.suggest"

local USAGE = [=[
usage: lorarun [options] [RECIPE.lua [arguments of the recipe]]
       lorarun RECIPE.lua --help      the options of a recipe
       lorarun plan RECIPE.lua ...    the memory and time that a run will take: --gpu-memory 80GB, --gpu h100, --gpus 1,2,4,8
       lorarun verify FOLDER          does a folder that lorarun wrote compute what the model did? --python: the lines that ask
                                      sentence-transformers
       lorarun doctor [--json]        what this machine has for training, what is wrong with it, and the cure
       lorarun config [--show]        write the file for --config; show the settings in effect

With neither a recipe nor -e, a prompt for Lua opens; where standard input is not a terminal, Lua code is read from it.
recipes/NAME.lua is the installed recipe of that name where the working directory has none.

options:
  -e CODE        run CODE; may be given several times; lr is lorarun
  -i             open the prompt after the recipe or CODE has run
  -              read Lua code from standard input
  --traceback    show where an error came from, call by call
  --version      show the versions of lorarun and its Lua and exit
  --help         show this and exit

ranks (before the recipe; accelerate's names and spellings are understood):
%s
environment:
  LORARUN_TRACEBACK=1    as --traceback
  LORARUN_JIT=off        interpret Lua without compiling it
  LORARUN_LUA_PATH=DIR   use DIR/lorarun/*.lua in place of the modules inside the program, and DIR/models/*.lua for models that
                         it does not have (docs/adding-a-model.md)
  LORARUN_ISA=avx2       use no newer instructions in the kernels: baseline, avx2, avx512 or avx512bf16
  OMP_NUM_THREADS=N      compute threads
]=]
local OPTIONS = { "-e", "-i", "-", "--traceback", "--version", "--help" }
local EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

local function complain(text)
  io.stdout:flush()
  say.note("%s", text)
end

-- argv -> { code = {...}, script = index of the recipe or nil, interactive, traceback, show = "help"|"version" }, or
-- nil, error
local function read_options(argv)
  local plan = { code = {}, traceback = os.getenv "LORARUN_TRACEBACK" == "1" }
  local i = 1
  while i <= #argv do
    local word = argv[i]
    if word == "config" then
      plan.config = i
      break
    elseif word == "verify" then
      plan.verify = i
      break
    elseif word == "doctor" then
      plan.doctor = i
      break
    elseif word == "plan" then
      plan.planning = i
      break
    elseif word == "-" or word:sub(1, 1) ~= "-" then
      plan.script = i
      break
    elseif word == "-e" then
      i = i + 1
      if not argv[i] then return nil, "-e needs the code to run" end
      plan.code[#plan.code + 1] = argv[i]
    elseif word == "-i" then plan.interactive = true
    elseif word == "--traceback" then plan.traceback = true
    elseif word == "--version" or word == "-v" then plan.show = plan.show or "version"
    elseif word == "--help" or word == "-h" then plan.show = plan.show or "help"
    else
      local taken, mistake = settings.take_flag(argv, i)
      if mistake then return nil, mistake end
      if not taken then
        local known = settings.flags()
        for _, option in ipairs(OPTIONS) do known[#known + 1] = option end
        return nil, ("unknown option '%s'%s (lorarun --help lists them)"):format(word, suggest.did_you_mean(word, known))
      end
      i = i + taken - 1
    end
    i = i + 1
  end
  return plan
end

-- Make `lr` readable as a global, loaded when it is first used.
local function offer_lr()
  setmetatable(_G, { __index = function(_, name)
    if name ~= "lr" then return nil end
    local ok, result = pcall(require, "lorarun")
    if not ok then error("lr cannot be loaded: " .. tostring(result), 2) end
    return result
  end })
end

-- `arg` as Lua has it: the recipe is arg[0], its arguments follow, the program and its options have negative indices.
local function set_arg(argv, script)
  local arg = {}
  for i = 0, #argv do arg[i - (script or 0)] = argv[i] end
  _G.arg = arg
end

-- Modules beside the recipe can be required, whatever the working directory is.
local function search_beside(path)
  local folder = path:match("^(.*)/[^/]*$")
  if folder then package.path = ("%s/?.lua;%s/?/init.lua;%s"):format(folder, folder, package.path) end
end

-- Of a path that leads nowhere, the installed recipe with that name, if there is one: in share/lorarun/recipes, a neighbour of the
-- program's bin. Returns the path to run. recipes/x.lua, as the documentation writes it, is then the installed one; for any other
-- path the second value says where the recipe is.
local function installed_recipe(path)
  local name, f = path:match "([^/]+)$", io.open(path, "r")
  if f then f:close() end
  if f or not name then return path end
  local here = fs.join(fs.dirname(fs.dirname(fs.real "/proc/self/exe")), "share/lorarun/recipes", name)
  if not fs.is_file(here) then return path end
  if path == "recipes/" .. name then return here end
  return path, ("; there is %s"):format(here)
end

local function load_recipe(path, hint)
  local f, why = io.open(path, "r")
  if not f then return nil, ("cannot open the recipe: %s%s"):format(why, hint or "") end
  local readable, read_error = f:read(0), nil
  if not readable then readable, read_error = f:read(1) end
  f:close()
  if not readable and read_error then return nil, ("cannot read the recipe %s: %s"):format(path, read_error) end
  search_beside(path)
  strict.enable(true)
  return loadfile(path)
end

-- lorarun plan: the recipe runs, and lr.train plans instead of training.
local function plan_recipe(argv, options)
  local ok, recipe, words, planned = failure.call(require("lorarun.plan").read, { unpack(argv, options.planning + 1) })
  if not ok then
    complain(recipe.message)
    return EXIT_USAGE
  elseif not recipe then
    io.write(require("lorarun.plan").USAGE)
    return EXIT_OK
  end
  local hint
  recipe, hint = installed_recipe(recipe)
  set_arg({ [0] = argv[0], recipe, unpack(words) }, 1)
  local chunk, load_error = load_recipe(recipe, hint)
  if not chunk then
    complain(load_error)
    return EXIT_FAILED
  end
  local ran, report = failure.call(chunk, unpack(words))
  local done = planned.plans > 0
  if ran and done then return EXIT_OK end
  if ran then
    complain(("%s never called lr.train: there is nothing to plan"):format(recipe))
  elseif done then
    complain("the recipe failed after lr.train, which only planned and returns no results: " .. report.message)
    return EXIT_OK
  else
    complain(options.traceback and failure.text(report) or report.message)
  end
  return EXIT_FAILED
end

-- Check the environment: an error, or warnings, which only the process that the user started prints.
local function look_at_variables()
  local warnings = require("lorarun.cli.variables").check()
  if os.getenv "LORARUN_LAUNCHER" then return end
  for _, text in ipairs(warnings) do complain("warning: " .. text) end
end

local function main(argv)
  secret.take()
  local plan, mistake = read_options(argv)
  if not plan then
    complain(mistake)
    return EXIT_USAGE
  end
  if plan.show == "help" then
    io.write((USAGE:format(settings.flag_help())))
    return EXIT_OK
  elseif plan.show == "version" then
    io.write(("lorarun %s (%s)\n"):format(ffi.string(C.lr_version()), jit.version))
    return EXIT_OK
  end

  local understood, misunderstood = failure.call(look_at_variables)
  if not understood then
    complain(misunderstood.message)
    return EXIT_FAILED
  end

  if plan.config then
    local ok, report = failure.call(require("lorarun.cli.config").run, { unpack(argv, plan.config + 1) })
    if not ok then complain(report.message) end
    return ok and EXIT_OK or EXIT_FAILED
  end

  if plan.doctor then
    local ok, result = failure.call(require("lorarun.cli.doctor").run, { unpack(argv, plan.doctor + 1) })
    if not ok then complain(plan.traceback and failure.text(result) or result.message) end
    return ok and result or EXIT_FAILED
  end

  if plan.verify then return require("lorarun.cli.verify").run { unpack(argv, plan.verify + 1) } end
  if plan.planning then return plan_recipe(argv, plan) end

  -- Returns whether the chunk ran to its end; if not, the error has been printed.
  local function run(chunk, load_error, ...)
    if not chunk then
      complain(load_error)
      return false
    end
    local ok, report = failure.call(chunk, ...)
    if not ok then
      launch.gave_up(report.message)
      complain(plan.traceback and failure.text(report) or report.message)
    end
    return ok
  end

  if not run(launch.prepare) then return EXIT_FAILED end
  local script = plan.script and argv[plan.script]
  if script and script ~= "-" then
    script, plan.hint = installed_recipe(script)
    argv[plan.script] = script
  end
  set_arg(argv, plan.script)
  local words = { unpack(argv, (plan.script or #argv) + 1) }
  local terminal = C.lr_terminal_width(0) > 0 or launch.at_prompt()
  if not script and #plan.code == 0 then
    if terminal then plan.interactive = true elseif not plan.interactive then script = "-" end
  end
  if script == "-" or #plan.code > 0 or plan.interactive then offer_lr() end
  if plan.interactive then launch.with_prompt() end

  local ok = true
  for _, code in ipairs(plan.code) do
    if ok then ok = run(loadstring(code, "=(command line)")) end
  end
  if ok and script == "-" then
    local text = io.read "*a"
    launch.standard_input(text)
    local chunk, load_error = loadstring(text:gsub("^#[^\n]*", "", 1), "=stdin")
    ok = run(chunk, load_error, unpack(words))
  elseif ok and script then
    local chunk, load_error = load_recipe(script, plan.hint)
    ok = run(chunk, load_error, unpack(words))
  end
  if plan.interactive then
    if not run(launch.job) or not ok and launch.at_prompt() then return EXIT_FAILED end
    strict.enable(false)
    require("lorarun.cli.repl").run()
  end
  return ok and EXIT_OK or EXIT_FAILED
end

return main
