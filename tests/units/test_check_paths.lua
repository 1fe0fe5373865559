-- test_check_paths.lua: tools/check_paths.lua on small trees made up here: what it must find, and what it must let pass.
local fs = require "lorarun.base.fs"
local tools = fs.join(fs.dirname(os.getenv "LORARUN_TESTS"), "tools")
local check_paths = assert(loadfile(fs.join(tools, "check_paths.lua")))("module")

-- A tree is { [path] = text }; the files below are added to each.
local function complaints(tree)
  local all = {
    ["docs/other.md"] = "# Other\n\n## Two Words: `x`\n",
    ["lua/lorarun/base/json.lua"] = "return {}\n",
    ["lua/lorarun/init.lua"] = "local F = { train = 1 }\n",
    ["runtime/lr.h"] = "int lr_json_read(void);\n", ["runtime/io/json.c"] = "",
    ["kernels/ops.def"] = "# ops.def: all\n\nadd  y = a b\n",
  }
  for path, text in pairs(tree) do all[path] = text end
  local files = {}
  for path in pairs(all) do files[#files + 1] = path end
  table.sort(files)
  return check_paths(files, function(path) return all[path] end)
end

local function check_one(path, text, expected)
  local list = complaints { [path] = text }
  check.equal(table.concat(list, "\n"), expected or "")
end

test("a comment that names a missing file is found in every language, with its line", function()
  local wrong = ": there is no gone.c"
  check_one("a.c", "int x; /* two\n * lines, see gone.c */\n", "a.c:2" .. wrong)
  check_one("a.c", "int x = 1; // gone.c\n", "a.c:1" .. wrong)
  check_one("a.cu", "/* io/gone.c. */\n", "a.cu:1: there is no io/gone.c")
  check_one("a.lua", "local x = 1 -- (gone.c)\n", "a.lua:1" .. wrong)
  check_one("a.lua", "--[[ one\ngone.c ]] local x\n", "a.lua:2" .. wrong)
  check_one("a.sh", "echo 1 # gone.c\n", "a.sh:1" .. wrong)
  check_one("a.py", '"""What gone.c does."""\n', "a.py:1" .. wrong)
  check_one("CMakeLists.txt", "\n# gone.c\n", "CMakeLists.txt:2" .. wrong)
  check_one("a.def", "x  # gone.c\n", "a.def:1" .. wrong)
  check_one("a.md", "one\n`gone.c`\n", "a.md:2" .. wrong)
end)

test("the end of a path, a folder, stars and capitals may stand for existing files", function()
  check_one("a.md", "json.c, io/json.c, runtime/io/json.c, runtime/io/, runtime/io, ./runtime/io/json.c, `base/json`\n")
  check_one("a.md", "js*.c, runtime/*/json.c, NAME.c, docs/*.md, read/write, models/mine, config.json, https://x.org/y.c\n")
  check_one("a.md", "root/docs/other.md, X/json.c\n")
  check_one("a.md", "son.c\n", "a.md:1: there is no son.c")
  check_one("a.md", "runtime/oi/\n", "a.md:1: there is no runtime/oi/")
  check_one("a.md", "base/yaml\n", "a.md:1: there is no base/yaml")
  check_one("a.md", "x*.c\n", "a.md:1: there is no x*.c")
end)

test("code and strings are not comments; a page that a message names must exist", function()
  check_one("a.c", 'const char *x = "gone.c /* gone.c */"; char c = \'"\'; /* json.c */\n')
  check_one("a.lua", "local x = 'gone.c -- gone.c' .. [[ -- gone.c ]]\n")
  check_one("a.sh", "x=${y#gone.c}\n")
  check_one("a.lua", "local x = 'see docs/gone.md'\n", "a.lua:1: there is no page docs/gone.md")
end)

test("functions, modules and public names", function()
  check_one("a.c", "/* lr_json_read, lr_json_*, lr_add, lr_cpu_add, lr_NAME */\n")
  check_one("a.c", "/* lr_json_write */\n", "a.c:1: lr_json_write is nowhere in the C code")
  check_one("a.md", "`lr.train`, lr.h, lr.comm.rank, x.lr.gone\n")
  check_one("a.md", "`lr.tarin {}`\n", "a.md:1: lr.tarin is not public")
  check_one("a.lua", "-- lorarun.base.json.read, lorarun.base, lorarun.json\n", "a.lua:1: there is no module lorarun.json")
end)

test("a head names its own file", function()
  check_one("a.lua", "-- init.lua: what it is\n", "a.lua:1: the head says init.lua")
  check_one("a.lua", "-- a.lua: what it is\n")
end)

test("links lead to files and headings that exist", function()
  check_one("docs/a.md", "[x](other.md), [y](other.md#two-words-x), [z](../runtime/io/json.c), [web](https://x.org)\n")
  check_one("docs/a.md", "# Here\n[x](#here)\n")
  check_one("docs/a.md", "[x](gone.svg)\n", "docs/a.md:1: the link leads to gone.svg, which is not there")
  check_one("docs/a.md", "[x](other.md#gone)\n", "docs/a.md:1: docs/other.md has no heading #gone")
end)
