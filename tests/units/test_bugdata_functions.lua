-- bugdata/scanner.lua and bugdata/functions.lua: tokens, and where functions begin and end.
local scanner = require "lorarun.bugdata.scanner"
local functions = require "lorarun.bugdata.functions"

-- "first-last kind" of each range, outermost first
local function ranges_of(language, text)
  local out = {}
  for _, r in ipairs(functions.find(scanner.scan(text, language))) do
    out[#out + 1] = ("%d-%d %s"):format(r.first, r.last, r.kind)
  end
  return table.concat(out, ", ")
end

local function tokens_of(language, text)
  local tokens, out = scanner.scan(text, language), {}
  for i = 1, tokens.n do out[i] = scanner.text(tokens, i) end
  return table.concat(out, " ~ "), tokens
end

test("tokens of Python: prefixes, triple quotes, comments, numbers, operators", function()
  check.equal(tokens_of("python", [[x = rb"a\"b" # "no"]]), [[x ~ = ~ rb"a\"b" ~ # "no"]])
  check.equal(tokens_of("python", 'y = f"""a\n"b" """ + z'), 'y ~ = ~ f"""a\n"b" """ ~ + ~ z')
  check.equal(tokens_of("python", "a//=b**c->d!=1.5e-3_x"), "a ~ //= ~ b ~ ** ~ c ~ -> ~ d ~ != ~ 1.5e-3_x")
  check.equal(tokens_of("python", "s = 'open\nnext"), "s ~ = ~ 'open ~ next", "an unclosed string ends with its line")
  check.equal(tokens_of("python", "naïve = 0x1F"), "naïve ~ = ~ 0x1F")
end)

test("tokens of C: directives with continuations, comments, character literals", function()
  check.equal(tokens_of("c", "#define X(a) \\\n  { a\nint c = '\"'; // {\n/* { */ x->y <<= 1;"),
    "#define X(a) \\\n  { a ~ int ~ c ~ = ~ '\"' ~ ; ~ // { ~ /* { */ ~ x ~ -> ~ y ~ <<= ~ 1 ~ ;")
  check.equal(tokens_of("c", "#define Y /* a\n b */ 1\nz"), "#define Y /* a\n b */ 1 ~ z")
end)

test("tokens of Lua: long brackets of strings and comments", function()
  check.equal(tokens_of("lua", "a = [==[ ]] ]==] --[[ x\n]] b ~= c..d -- e"),
    "a ~ = ~ [==[ ]] ]==] ~ --[[ x\n]] ~ b ~ ~= ~ c ~ .. ~ d ~ -- e")
end)

test("tokens have their line number and cover every byte that is not white space", function()
  for language, text in pairs {
    python = "def f():\n  '''a\n\n b'''\n  return 'x' # y\n\n\nz = 1\n",
    c = "int f(void)\n{\n#if 1\n  return '\\n'; /* a\nb */\n#endif\n}\n",
    lua = "local s = [[\n]]\nreturn s -- t\n",
  } do
    local _, tokens = tokens_of(language, text)
    local at = 1
    for i = 1, tokens.n do
      check.that(text:sub(at, tokens.first[i] - 1):find("^%s*$"), "bytes were left out before token " .. i)
      local _, newlines = text:sub(1, tokens.first[i] - 1):gsub("\n", "")
      check.equal(tokens.line[i], newlines + 1, "line of token " .. i)
      at = tokens.last[i] + 1
    end
    check.that(text:sub(at):find("^%s*$"), "bytes were left out at the end")
  end
end)

test("Python: nested functions, classes, decorators, async", function()
  check.equal(ranges_of("python", [[
import os

@decorated(
    1)
@twice
def outer(a,
          b=(1,
  2)):
    def inner():
        return 1

    return inner
# a comment that belongs to nobody
class C:
    x = 1

    async def method(self):
        pass


y = 2
]]), "3-12 function, 9-10 function, 14-18 class, 17-18 function")
end)

test("Python: def in strings, continuations, comments and odd indentation do not end a function", function()
  check.equal(ranges_of("python", [[
def f():
    """
def not_this():
    pass
"""
    x = 1 + \
2
# at the margin
    y = [
1,
    ]
    return x
def g(): return 1
z = 'def h(): pass'
]]), "1-12 function, 13-13 function")
  check.equal(ranges_of("python", "def f():\n\tif x:\n\t\treturn 1\n        return 2\nprint(1)\n"), "1-4 function",
    "a tab reaches the next multiple of eight")
  check.equal(ranges_of("python", "class A:\n    def f(self):\n        return 1"), "1-3 class, 2-3 function",
    "no line end at the end")
end)

test("C: functions, initialisers, structs, strings, preprocessor branches", function()
  check.equal(ranges_of("c", [[
#define OPEN {
struct point { int x; };
static const int table[] = {
    1, 2,
};
/* { */
int add(int a, int b)
{
    if (a < b) {
        return '{' + "}"[0];
    }
    return a; // }
}
#ifdef A
void run(int x) {
#else
void run(long x) {
#endif
    x++;
}
static void (*const ops[])(void) = {
    0,
};
struct point *make(struct point p)
{
    return &p;
}
]]), "7-13 function, 17-20 function, 24-27 function")
end)

test("C++, Java, JavaScript, Go", function()
  check.equal(ranges_of("c", "namespace a {\nclass B : public C {\n  int f() const {\n    return 1;\n  }\n};\n}\n"),
    "1-7 class, 2-6 class, 3-5 function")
  check.equal(ranges_of("java", "class A {\n  int f(int x) {\n    for (;;) {\n      x++;\n    }\n  }\n}\n"),
    "1-7 class, 2-6 function")
  check.equal(ranges_of("javascript", "const f = (a) => {\n  return a.map(function (x) {\n    return `{${x}`;\n  });\n};\n"),
    "1-5 function, 2-4 function")
  check.equal(ranges_of("go", "func (t *T) F() (int, error) {\n  g := func() {\n    x()\n  }\n}\ntype S struct {\n  a int\n}\n"),
    "1-5 function, 2-4 function, 6-8 class")
end)

test("Lua: blocks of every kind, repeat, long strings, fields named like block words", function()
  check.equal(ranges_of("lua", [=[
local function f(x)
  if x then
    for i = 1, 2 do while true do break end end
  elseif y then
    repeat local z = 1 until z
  end
  return function(a)
    return a.x
  end, "function end", [[
end ]]
end -- end
local g = function() return 1 end
t.f = { ["end"] = 1 }
]=]), "1-11 function, 7-9 function")
end)

test("the innermost range around each line; functions inside a class are found", function()
  local text = "class A:\n    x = 1\n    def f(self):\n        class B:\n            y = 2\n        return B\nz = 3\n"
  local by_line = functions.by_line(functions.find(scanner.scan(text, "python")))
  check.equal(by_line[2].kind, "class")
  check.equal(by_line[5].kind, "function")
  check.equal(by_line[5].first, 3)
  check.equal(by_line[7], nil)
end)

test("any bytes are accepted, and ranges never overlap in part", function()
  local ffi, C = require "ffi", require "lorarun.base.c"
  local words = ffi.new("uint32_t[4]")
  local pieces = { "def f():\n", "    ", "{", "}", "(", ")", "'", '"', '"""', "function ", "end ", "if ", "do ", "\n", "#if\n",
    "#else\n", "#endif\n", "\\\n", "/*", "*/", "//", "--[[", "]]", "class A ", ";", "=", "\200", "return 1\n", "@x\n", "`" }
  for round = 1, 600 do
    local parts = {}
    for i = 1, 40 do
      C.lr_random(3, round, i, 0, words)
      parts[i] = pieces[words[0] % #pieces + 1]
    end
    local text = table.concat(parts)
    local _, lines = text:gsub("\n", "")
    for _, language in ipairs { "python", "c", "lua", "javascript" } do
      local open = {}
      for _, r in ipairs(functions.find(scanner.scan(text, language))) do
        check.that(r.first >= 1 and r.first <= r.last and r.last <= lines + 1, "a range outside the text")
        while #open > 0 and open[#open].last < r.first do open[#open] = nil end
        check.that(#open == 0 or r.last <= open[#open].last, "two ranges cross")
        open[#open + 1] = r
      end
    end
  end
end)
