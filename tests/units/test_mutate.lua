-- test_mutate.lua: planted bugs change nothing but code, are exactly what the diff shows, and depend on the seed alone.
local diff = require "lorarun.bugdata.diff"
local random = require "lorarun.base.random"
local mutate = require "lorarun.bugdata.mutate"
local scanner = require "lorarun.bugdata.scanner"
local functions = require "lorarun.bugdata.functions"

local PYTHON = [[
"""Module text: a == b, not a < b"""
import os, sys
LIMIT = 10

def find(items, key, start=0):
    """if not key: return -1"""
    index = start
    count = len(items)
    while index < count and not items[index] is None:
        # items[index] == key
        if items[index] == key:
            return index
        index = index + 1
    return -1

class Box:
    def put(self, name, value):
        if name in self.content or value > LIMIT:
            raise ValueError("bad {} == {}".format(name, value))
        self.content[name] = value * 2
        self.total += value
        self.notify(name, value)
        return True
]]
local C_TEXT = [[
#include <a.h>
#define SMALLER(a, b) ((a) < (b))
/* a == b && !c */
static int find(const int *items, int count, int key)
{
    int found = 0;
    for (int i = 0; i < count; i++) {
        if (!items[i] || items[i] == key) {
            found = i * 2 + 1;
            report("a < b", found, key);
        }
    }
    return found << 1;
}
]]
local LUA_TEXT = [=[
local text = [[ a == b and not c ]] -- a == b
local function find(items, key, first)
  local index = first or 1
  while index <= #items and not items[index].done do
    if items[index] == key then return index end
    index = index + 1
    notify(index, key)
  end
  return false
end
]=]
local TEXTS = { python = PYTHON, c = C_TEXT, lua = LUA_TEXT }

local function plant(language, text, seed, most)
  local tokens = scanner.scan(text, language)
  local ranges = functions.find(tokens)
  return mutate.plant(tokens, ranges, random.generator(seed, 1, "x"), most or 8)
end

local function sites_of(language, text)
  local tokens = scanner.scan(text, language)
  return mutate.sites(tokens, functions.find(tokens)), tokens
end

-- The line after a site's change; nil if the change is drawn only when it is planted.
local function result_of(text, site)
  if not site.edits then return nil end
  for k = #site.edits, 1, -1 do
    local edit = site.edits[k]
    text = text:sub(1, edit[1] - 1) .. edit[3] .. text:sub(edit[2] + 1)
  end
  return text
end

local function offers(language, text, kind)
  local found = {}
  for _, site in ipairs(sites_of(language, text)) do
    if site.kind == kind and site.edits then found[#found + 1] = result_of(text, site) end
  end
  return table.concat(found, " | ")
end

test("each kind makes the change that its name says", function()
  check.equal(offers("python", "x = a < b", "comparison"), "x = a <= b")
  check.equal(offers("python", "x = a is not b", "comparison"), "x = a is b")
  check.equal(offers("python", "x = a not in b", "comparison"), "x = a in b")
  check.equal(offers("lua", "x = a == b", "comparison"), "x = a ~= b")
  check.equal(offers("c", "x = a<b>(c);", "comparison"), "", "a template")
  check.equal(offers("python", "for a in b: pass", "comparison"), "", "the in of for")
  check.equal(offers("python", "x = not a", "negation"), "x = a")
  check.equal(offers("python", "if a: pass", "negation"), "if not a: pass")
  check.equal(offers("c", "if (a) b();", "negation"), "if (!a) b();")
  check.equal(offers("c", "x = !a;", "negation"), "x = a;")
  check.equal(offers("python", "x = a + b", "wrong_operator"), "x = a - b")
  check.equal(offers("python", "x = a and b", "wrong_operator"), "x = a or b")
  check.equal(offers("c", "x = a << b;", "wrong_operator"), "x = a >> b;")
  check.equal(offers("c", "int *a = f(*b);", "wrong_operator"), "", "pointers")
  check.equal(offers("python", "f(*a, **b)", "wrong_operator"), "", "unpacking")
  check.equal(offers("python", "x = a[i]", "off_by_one"), "x = a[i + 1] | x = a[i - 1]")
  check.equal(offers("python", "x = len(a)", "off_by_one"), "x = len(a) - 1 | x = len(a) + 1")
  check.equal(offers("python", "x = a + 1", "off_by_one"), "x = a")
  check.equal(offers("python", "x = True", "wrong_constant"), "x = False")
  check.equal(offers("python", "x = 30", "wrong_constant"), "x = 300 | x = 15")
  check.equal(offers("python", "f(a, g(b, c))", "swapped_arguments"), "f(g(b, c), a) | f(a, g(c, b))")
  check.equal(offers("python", "f(a, b=c)", "swapped_arguments"), "", "a named argument")
  check.equal(offers("python", "def f():\n    a()\n    b()\n    c()\n", "lost_line"), "def f():\n    a()\n    c()\n")
end)

test("changes that would leave the text as it is are not offered", function()
  check.equal(offers("python", "x = a + 0", "wrong_operator"), "")
  check.equal(offers("python", "x = a * 1", "wrong_operator"), "")
  check.equal(offers("python", "f(a, a)", "swapped_arguments"), "")
  check.equal(offers("python", "x = max(a, b)", "swapped_arguments"), "")
  check.equal(offers("python", "def f():\n    if a:\n        b()\n    c()\n", "lost_line"), "", "it would empty a block")
end)

test("imports, heads of definitions, strings and comments are left alone", function()
  for language, text in pairs(TEXTS) do
    local sites, tokens = sites_of(language, text)
    check.that(#sites > 20, "few sites in " .. language)
    local kind_at = {}
    for i = 1, tokens.n do
      for b = tokens.first[i], tokens.last[i] do kind_at[b] = tokens.kind[i] end
    end
    for _, site in ipairs(sites) do
      local line = diff.split(text)[site.line]
      check.that(not line:find("^import") and not line:find("^%s*def ") and not line:find("^%s*class ")
        and not line:find("^#"), "a site in: " .. line)
      if site.edits and site.kind ~= "lost_line" and site.kind ~= "swapped_arguments" then
        for b = site.edits[1][1], site.edits[1][2] do
          check.that(kind_at[b] ~= scanner.STRING and kind_at[b] ~= scanner.COMMENT, "a site in text: " .. line)
        end
      end
    end
  end
end)

test("C: no variable is replaced in heads of functions, declared names, types and casts", function()
  local text = "static int f(size_t alpha, box *beta)\n{\n    int64_t gamma, *delta;\n    box *other = beta;\n"
    .. "    gamma = (size)(alpha) + (box *)delta->next;\n    return sizeof(box) * gamma;\n}\n"
  local lines, replaced = diff.split(text), {}
  for _, site in ipairs(sites_of("c", text)) do
    check.that(site.line > 2, "a site in the head: " .. site.kind)
    if site.kind == "wrong_variable" then
      check.that(site.line ~= 3, "a declared name: " .. lines[site.line])
      replaced[#replaced + 1] = site.line
    end
  end
  table.sort(replaced)
  check.equal(table.concat(replaced, " "), "4 5 5 6", "lines of variables that are read")
end)

test("the diff of the planted text shows the planted lines, and only those", function()
  for language, text in pairs(TEXTS) do
    local original = diff.split(text)
    for seed = 1, 150 do
      local mutated, planted = plant(language, text, seed)
      check.that(#planted > 0, "nothing was planted")
      check.that(mutated ~= text, "the text is as it was")
      local hunks = diff.lines(diff.split(mutated), original)
      check.equal(#hunks, #planted, "hunks")
      for i, hunk in ipairs(hunks) do
        check.equal(hunk.b_count, 1, "lines of a hunk")
        check.equal(hunk.a_count, planted[i].kind == "lost_line" and 0 or 1, "lines left by " .. planted[i].kind)
        if planted[i].kind ~= "lost_line" then
          check.equal(hunk.b_start, planted[i].line, "line of " .. planted[i].kind)
        end
      end
    end
  end
end)

test("brackets stay balanced, strings and comments stay as they are", function()
  local function skeleton(language, text)
    local tokens, brackets, texts = scanner.scan(text, language), {}, {}
    for i = 1, tokens.n do
      local word = scanner.text(tokens, i)
      if word:find("^[%[%](){}]$") then brackets[#brackets + 1] = word end
      if tokens.kind[i] == scanner.STRING or tokens.kind[i] == scanner.COMMENT then texts[#texts + 1] = word end
    end
    table.sort(texts)
    return brackets, table.concat(texts, "\0")
  end
  for language, text in pairs(TEXTS) do
    local _, texts = skeleton(language, text)
    for seed = 1, 150 do
      local mutated, planted = plant(language, text, seed)
      local brackets, texts_now = skeleton(language, mutated)
      local lost = false
      for _, bug in ipairs(planted) do lost = lost or bug.kind == "lost_line" end
      if not lost then check.equal(texts_now, texts, "strings and comments") end
      local stack, partner = {}, { [")"] = "(", ["]"] = "[", ["}"] = "{" }
      for _, b in ipairs(brackets) do
        if partner[b] then check.equal(table.remove(stack), partner[b], "the bracket closed by " .. b)
        else stack[#stack + 1] = b end
      end
      check.equal(#stack, 0, "brackets left open")
    end
  end
end)

test("a misspelt name is new to the file; a wrong variable is one of the function's own", function()
  local seen = {}
  for seed = 1, 400 do
    local mutated, planted = plant("python", PYTHON, seed, 1)
    local bug = planted[1]
    seen[bug.kind] = (seen[bug.kind] or 0) + 1
    local was, is = diff.split(PYTHON)[bug.line], diff.split(mutated)[bug.line]
    if bug.kind == "misspelt_name" or bug.kind == "wrong_variable" then
      local old, new = {}, {}
      for word in was:gmatch("[%a_][%w_]*") do old[#old + 1] = word end
      for word in is:gmatch("[%a_][%w_]*") do new[#new + 1] = word end
      check.equal(#new, #old, "words")
      local changed
      for i = 1, #old do
        if old[i] ~= new[i] then
          check.equal(changed, nil, "a second changed word")
          changed = new[i]
        end
      end
      local known = (" " .. PYTHON:gsub("[^%w_]", " ") .. " "):find(" " .. changed .. " ", 1, true) ~= nil
      check.equal(known, bug.kind == "wrong_variable", changed .. " is known to the file")
    end
  end
  for _, kind in ipairs(mutate.KINDS) do check.that(seen[kind[1]], kind[1] .. " was never planted in 400 tries") end
end)

test("the seed decides everything; `most` bounds the bugs, one to a function", function()
  local a, b = plant("python", PYTHON, 5), plant("python", PYTHON, 5)
  check.equal(a, b)
  local different = 0
  for seed = 1, 20 do
    if plant("python", PYTHON, seed) ~= a then different = different + 1 end
    local _, planted = plant("python", PYTHON, seed, 1)
    check.equal(#planted, 1)
    _, planted = plant("python", PYTHON, seed)
    check.that(#planted <= 4, "more bugs than functions, the class and the file have")
  end
  check.that(different >= 15, "seeds make no difference")
end)

test("text without a place for a bug is returned unchanged", function()
  for language, text in pairs { python = "# only a comment\n", c = "", lua = "return\n" } do
    local mutated, planted = plant(language, text, 1)
    check.equal(mutated, text)
    check.equal(#planted, 0)
  end
end)
