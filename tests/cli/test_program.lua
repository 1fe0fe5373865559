-- test_program.lua: the command line of the built program, as a user runs it: output, errors and exit status in each case.
local tools = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local quote, shell = tools.quote, tools.run

-- Calls fn with the path of a recipe that holds `code`, in a folder of its own.
local function with_recipe(code, fn)
  tools.with_folder(function(folder)
    local path = folder .. "/recipe.lua"
    local f = assert(io.open(path, "w"))
    f:write(code)
    f:close()
    fn(path, folder)
  end)
end

local function expect(result, status, out, err)
  check.equal(result.err, err or "", "standard error")
  check.equal(result.out, out or "", "standard output")
  check.equal(result.status, status, "exit status")
end

-- What a recipe writes on standard error, without the path of its folder.
local function complaint(result, folder) return (result.err:gsub(folder:gsub("%p", "%%%0") .. "/", "")) end

test("--version and --help", function()
  local r = shell "$L --version"
  check.that(r.out:find "^lorarun %d+%.%d+%.%d+ %(LuaJIT 2%.1", r.out)
  check.equal(r.status, 0)
  r = shell "$L --help"
  check.that(r.out:find "^usage: lorarun " and r.out:find("\n  -e CODE", 1, true), r.out)
  check.equal(r.status, 0)
  check.equal(shell("$L -h").out, r.out)
end)

test("an unknown option is named, with what may be meant; the status is 2", function()
  expect(shell "$L --versoin", 2, nil,
    "lorarun: unknown option '--versoin'; did you mean '--version'? (lorarun --help lists them)\n")
  expect(shell "$L -x recipe.lua", 2, nil, "lorarun: unknown option '-x'; did you mean '-'? (lorarun --help lists them)\n")
  expect(shell "$L --frobnicate", 2, nil, "lorarun: unknown option '--frobnicate' (lorarun --help lists them)\n")
  expect(shell "$L -e", 2, nil, "lorarun: -e needs the code to run\n")
end)

test("a recipe gets its arguments in ... and arg, and options after it are its own", function()
  with_recipe("#!/usr/bin/env lorarun\nprint(arg[0]:match '[^/]*$', #arg, arg[-1], ...)", function(path)
    local r = shell("$L --traceback " .. path .. " one --help 'two words'")
    expect(r, 0, "recipe.lua\t3\t--traceback\tone\t--help\ttwo words\n")
  end)
end)

test("-e runs code in order; the code sees lr and may make globals", function()
  expect(shell [[$L -e 'x = 2' -e 'print(x + 1)' -e 'print(lr == require "lorarun")']], 0, "3\ntrue\n")
  expect(shell [[$L -e 'print(1)' -e 'error "no"' -e 'print(2)']], 1, "1\n", "lorarun: (command line):1: no\n")
  expect(shell [[$L -e 'x =']], 1, nil, "lorarun: (command line):1: unexpected symbol near '<eof>'\n")
end)

test("code of -e runs before the recipe", function()
  with_recipe("print(_G.before, ...)", function(path)
    expect(shell("$L -e 'before = 1' " .. path .. " a"), 0, "1\ta\n")
  end)
end)

test("code comes from standard input with - or without a terminal", function()
  expect(shell "echo 'print(arg[0], ...)' | $L - a b", 0, "-\ta\tb\n")
  expect(shell "echo 'print(lr.version ~= nil)' | $L", 0, "true\n")
  expect(shell "echo 'x = = 1' | $L", 1, nil, "lorarun: stdin:1: unexpected symbol near '='\n")
  expect(shell "$L", 0)
end)

test("an uncaught error is one line with its place; the status is 1", function()
  local cases = {
    ["error 'boom'"] = "recipe.lua:1: boom",
    ["\nerror('plain', 0)"] = "recipe.lua:2: plain",
    ["error('data.jsonl:17: bad row', 0)"] = "data.jsonl:17: bad row",
    ["local t = nil\nreturn t.x"] = "recipe.lua:2: attempt to index local 't' (a nil value)",
    ["error(setmetatable({}, { __tostring = function() return 'an object' end }))"] = "recipe.lua:1: an object",
    ["error {}"] = "recipe.lua:1: (the error is a table value)",
    ["error()"] = "recipe.lua:1: (the error is a nil value)",
    ["local x = = 1"] = "recipe.lua:1: unexpected symbol near '='",
    ["coroutine.wrap(function() error 'inside' end)()"] = "recipe.lua:1: inside",
    ["require('lorarun').no_such_thing()"] = "recipe.lua:1: lorarun has no 'no_such_thing'",
    ["require 'lorarun.nonsense'"] = "recipe.lua:1: lorarun has no module 'lorarun.nonsense'",
  }
  for code, message in pairs(cases) do
    with_recipe(code, function(path, folder)
      local r = shell(("cd %s && $L recipe.lua"):format(folder))
      check.equal(r.err, "lorarun: " .. message .. "\n", code)
      check.equal(r.status, 1, code)
      local absolute = shell("$L " .. path)
      check.equal(complaint(absolute, folder), r.err, code)
    end)
  end
end)

test("--traceback and LORARUN_TRACEBACK show the calls, without the program's own", function()
  local code = "local function f() error 'boom' end\nlocal function g() f() return 1 end\ng()"
  local expected = [[
lorarun: recipe.lua:1: boom
  recipe.lua:1: in function 'f'
  recipe.lua:2: in function 'g'
  recipe.lua:3: in main chunk
]]
  with_recipe(code, function(_, folder)
    check.equal(shell(("cd %s && $L --traceback recipe.lua"):format(folder)).err, expected)
    check.equal(shell(("cd %s && LORARUN_TRACEBACK=1 $L recipe.lua"):format(folder)).err, expected)
    check.equal(shell(("cd %s && $L recipe.lua"):format(folder)).err, "lorarun: recipe.lua:1: boom\n")
  end)
end)

test("endless recursion is an ordinary error with a shortened list of calls", function()
  with_recipe("local function f() return 1 + f() end\nf()", function(_, folder)
    local r = shell(("cd %s && $L --traceback recipe.lua"):format(folder))
    check.equal(r.status, 1)
    local _, lines = r.err:gsub("\n", "")
    check.equal(lines, 22, "lines")
    check.that(r.err:find("^lorarun: recipe.lua:1: stack overflow\n") and r.err:find "\n  %.%.%. %d+ more\n"
      and r.err:find "  recipe.lua:2: in main chunk\n$", r.err)
  end)
end)

test("a recipe that cannot be read says why", function()
  expect(shell "$L no/such/recipe.lua", 1, nil,
    "lorarun: cannot open the recipe: no/such/recipe.lua: No such file or directory\n")
  expect(shell "$L /", 1, nil, "lorarun: cannot read the recipe /: Is a directory\n")
end)

test("undeclared variables in a recipe are errors that say what may be meant", function()
  local cases = {
    ["local model = 1\nprint(modle)"] = "recipe.lua:2: undeclared variable 'modle'; did you mean 'model'?",
    ["local model\nlocal function f() if model then return 1 end return modl end\nf()"] =
      "recipe.lua:2: undeclared variable 'modl'; did you mean 'model'?",
    ["prnt(1)"] = "recipe.lua:1: undeclared variable 'prnt'; did you mean 'print'?",
    ["local result\nresutl = 1"] = "recipe.lua:2: assignment to undeclared variable 'resutl'; did you mean 'result'?",
    ["answer = 1"] = "recipe.lua:1: assignment to undeclared variable 'answer'; write 'local answer = ...', "
      .. "or '_G.answer = ...' where a global is meant",
    ["lr.train()"] = "recipe.lua:1: undeclared variable 'lr'; a recipe begins with: local lr = require \"lorarun\"",
    ["loadstring('\\nxyzzy = 1', '=inner')()"] = "inner:2: assignment to undeclared variable 'xyzzy'; "
      .. "write 'local xyzzy = ...', or '_G.xyzzy = ...' where a global is meant",
  }
  for code, message in pairs(cases) do
    with_recipe(code, function(_, folder)
      local r = shell(("cd %s && $L recipe.lua"):format(folder))
      check.equal(r.err, "lorarun: " .. message .. "\n", code)
      check.equal(r.status, 1, code)
    end)
  end
end)

test("declared globals work in a recipe", function()
  with_recipe([[
    _G.counter = 1
    counter = counter + 1
    local function f() counter = counter + 1 end
    f()
    print(counter, _G.nothing, rawget(_G, "nothing"), bit32, _ENV, type(math.sin))
    print = print
  ]], function(path) expect(shell("$L " .. path), 0, "3\tnil\tnil\tnil\tnil\tfunction\n") end)
end)

test("modules beside the recipe are found, and undeclared variables are errors there too", function()
  with_recipe("print(require('neighbour').value)\nrequire 'sloppy'", function(_, folder)
    local f = assert(io.open(folder .. "/neighbour.lua", "w"))
    f:write "return { value = 42 }"
    f:close()
    f = assert(io.open(folder .. "/sloppy.lua", "w"))
    f:write "\noops = 1"
    f:close()
    local r = shell(("$L %s/recipe.lua"):format(folder))
    check.equal(r.out, "42\n")
    check.that(complaint(r, folder):find("^lorarun: sloppy.lua:2: assignment to undeclared variable 'oops'"), r.err)
    check.equal(r.status, 1)
  end)
end)

test("os.exit decides the status and loses no output", function()
  expect(shell [[$L -e 'io.write("kept") os.exit(7)']], 7, "kept")
  expect(shell [[$L -e 'io.write("kept") os.exit(true, true)']], 0, "kept")
  expect(shell [[$L -e 'os.exit(false)']], 1)
end)

test("the program ends quietly if the reader of its output is gone, but not if the disk is full", function()
  local r = shell [[$L -e 'while true do print "y" end' | head -n 1]]
  expect(r, 0, "y\n")
  r = shell [[(trap '' PIPE; exec $L -e 'while true do print "y" end'; ) | head -n 1]]
  expect(r, 0, "y\n")
  expect(shell [[$L -e 'print(1)' >/dev/full]], 1, nil,
    "lorarun: cannot write to standard output: No space left on device\n")
end)

test("the order of standard output and standard error is preserved", function()
  with_recipe("io.write 'first\\n'\nerror 'second'", function(_, folder)
    local r = shell(("cd %s && $L recipe.lua 2>&1"):format(folder))
    expect(r, 1, "first\nlorarun: recipe.lua:2: second\n")
  end)
end)

test("-i runs the recipe, then what is typed; there, undeclared variables are allowed", function()
  with_recipe("_G.kept = ...", function(path)
    expect(shell(("printf 'kept\\nfresh = 1\\nfresh + 1\\n' | $L -i %s word"):format(path)), 0, "word\n2\n")
  end)
  expect(shell "echo 'x' | $L -e 'x = { 1, 2 }' -i", 0, "{ 1, 2 }\n")
  with_recipe("error 'boom'", function(_, folder)
    local r = shell(("cd %s && echo '1 + 1' | $L -i recipe.lua"):format(folder))
    expect(r, 1, "2\n", "lorarun: recipe.lua:1: boom\n")
  end)
end)

test("the prompt without a terminal: several lines, values, errors", function()
  local function typed(text) return shell(("printf '%%s' %s | $L -i"):format(quote(text))) end
  expect(typed "for i = 1, 2 do\nprint(i)\nend\n", 0, "1\n2\n")
  expect(typed "1, nil, 'text'\n= 5\nnil\nx = 3\nprint()\n", 0, "1\tnil\ttext\n5\nnil\n\n")
  expect(typed "return 1,\n2\n", 0, "1\t2\n")
  expect(typed "x = [[a\nb]]\n#x\n", 0, "3\n")
  expect(typed "x = = 1\n1\n", 0, "1\n", "stdin:1: unexpected symbol near '='\n")
  expect(typed "f(\n", 0, nil, "stdin:1: unexpected symbol near '<eof>'\n")
  expect(typed "local function f() error 'deep' end; f()\n7", 0, "7\n",
    "stdin:1: deep\n  stdin:1: in function 'f'\n  stdin:1: in main chunk\n")
  expect(typed "os.exit(4)\n1\n", 4)
end)

test("the prompt shows tables in a readable form", function()
  local function shown(text) return shell(("printf '%%s\\n' %s | $L -i"):format(quote(text))).out end
  check.equal(shown "{ b = 1, a = 'x\\ny', [10] = true, 5, 6, ['two words'] = {} }",
    '{ 5, 6, [10] = true, a = "x\\ny", b = 1, ["two words"] = {} }\n')
  check.equal(shown "(function() local t = { 1 } t.self = t return t end)()", "{ 1, self = <cycle> }\n")
  check.equal(shown "{ { { { { 1 } } } } }", "{ { { { {...} } } } }\n")
  check.equal(shown "setmetatable({}, { __tostring = function() return 'mine' end })", "mine\n")
  check.equal(shown "{ 1LL, print ~= nil, 1.5 }", "{ 1LL, true, 1.5 }\n")
  check.that(shown("(function() local t = {} for i = 1, 100 do t[i] = i end return t end)()"):find "... 40 more\n}\n$")
end)

test("LORARUN_JIT=off interprets, LORARUN_LUA_PATH replaces modules", function()
  expect(shell "LORARUN_JIT=off $L -e 'print((jit.status()))'", 0, "false\n")
  expect(shell "LORARUN_JIT=on $L -e 'print((jit.status()))'", 0, "true\n")
  with_recipe("", function(_, folder)
    assert(os.execute("mkdir -p " .. quote(folder .. "/lorarun/base")) == 0)
    local f = assert(io.open(folder .. "/lorarun/base/version.lua", "w"))
    f:write "return 'replaced'"
    f:close()
    expect(shell(("LORARUN_LUA_PATH=%s $L -e 'print(require \"lorarun.base.version\")'"):format(folder)), 0, "replaced\n")
  end)
end)

test("a file called lorarun.lua in the working directory changes nothing", function()
  with_recipe("print(require('lorarun').args ~= nil)", function(_, folder)
    local f = assert(io.open(folder .. "/lorarun.lua", "w"))
    f:write "error 'the wrong file'"
    f:close()
    expect(shell(("cd %s && $L recipe.lua"):format(folder)), 0, "true\n")
  end)
end)

-- A recipe that catches signals, as a training loop does, and sends itself some.
local CATCHER = [[
  local ffi = require "ffi"
  ffi.cdef "int raise(int); int lr_signal_pending(void);"
  local C = require "lorarun.base.c"
  C.lr_signal_catch(1)
  print(C.lr_signal_pending())
  ffi.C.raise(SIGNAL)
  print(C.lr_signal_pending(), C.lr_signal_pending())
  io.flush()
]]

test("a first SIGINT or SIGTERM is recorded, a second one ends the program", function()
  for _, number in ipairs { 2, 15 } do
    with_recipe(CATCHER:gsub("SIGNAL", number) .. ("ffi.C.raise(%d) print 'survived'"):format(number), function(path)
      expect(shell(("sh -c 'trap - INT TERM; $0 %s; exit $?' $L 2>/dev/null"):format(path)), 128 + number,
        ("0\n%d\t0\n"):format(number))
    end)
    with_recipe(CATCHER:gsub("SIGNAL", number) .. ("C.lr_signal_catch(0) ffi.C.raise(%d) print 'survived'"):format(number),
      function(path) check.equal(shell("$L " .. path .. " 2>/dev/null").status, 128 + number) end)
    with_recipe(CATCHER:gsub("SIGNAL", number) .. "C.lr_signal_catch(0) C.lr_signal_catch(1)" ..
      (" ffi.C.raise(%d) print(C.lr_signal_pending())"):format(number),
      function(path) expect(shell("$L " .. path), 0, ("0\n%d\t0\n%d\n"):format(number, number)) end)
  end
end)

test("a signal ignored from the start stays ignored", function()
  with_recipe(CATCHER:gsub("SIGNAL", 2), function(path)
    expect(shell(("trap '' INT; $L %s"):format(path)), 0, "0\n0\t0\n")
  end)
end)

test("a Lua error inside lorarun begins with the user's line", function()
  local recipe = "local lr = require 'lorarun'\n\nlr.scope(function()\n  lr.sampler.weighted(nil, 2, 1)\nend)\n"
  with_recipe(recipe, function(path, folder)
    local r = shell("$L " .. quote(path))
    check.equal(r.status, 1)
    check.that(complaint(r, folder):find
      "^lorarun: recipe.lua:3: [^\n]*sampler.lua:%d+: attempt to index [^\n]* %(lorarun was given", r.err)
  end)
end)
