-- mutate.lua: plants bugs in correct source, each a small change of the kind that people make and reviewers overlook.
--
--   local sites = mutate.sites(tokens, ranges)         -- every place where a bug could be planted
--   local text, planted, site_lines = mutate.plant(tokens, ranges, rng, 8)
--   planted[i] = { kind = "comparison", line = 12 }    -- line in the ORIGINAL text
--
-- A site is { kind, line, edits = { { first, last, text }, ... } }: bytes to replace, and the line of the first. All edits of a
-- site are on that one line, never inside a string, a comment, a directive, an import or the head of a definition, and always
-- change the program: adding 0, exchanging equal arguments and the like are not offered. Brackets stay balanced and a name becomes
-- a name, so the result still reads as source of its language.
--
-- plant() chooses at most one site for each function (and one outside all of them): first the kind, by KINDS' weights among those
-- that the function offers, then one of its sites. Otherwise the kinds with many sites (any name can be misspelt) would leave no
-- room for the rest. The weights favour what can be seen in a line and its context: a misspelt or misplaced name is visible in the
-- text, a changed constant seldom is. Randomness comes from rng(n) alone, a whole number below n.
local scanner = require "lorarun.bugdata.scanner"
local functions = require "lorarun.bugdata.functions"

local mutate = {}
local NAME, NUMBER, STRING = scanner.NAME, scanner.NUMBER, scanner.STRING
local COMMENT, OPERATOR = scanner.COMMENT, scanner.OPERATOR

mutate.KINDS = {
  { "misspelt_name", 3 }, { "wrong_variable", 4 }, { "swapped_arguments", 4 }, { "comparison", 3 }, { "negation", 3 },
  { "wrong_operator", 3 }, { "off_by_one", 3 }, { "wrong_constant", 2 }, { "lost_line", 0.5 },
}

local function set(words)
  local s = {}
  for word in words:gmatch("%S+") do s[word] = true end
  return s
end

local KEYWORDS = {
  python = set [[False None True and as assert async await break class continue def del elif else except finally for
    from global if import in is lambda nonlocal not or pass raise return try while with yield print match case self
    cls]],
  lua = set [[and break do else elseif end false for function goto if in local nil not or repeat return then true until
    while self]],
  c = set [[auto break case char const continue default do double else enum extern float for goto if inline int long
    register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while bool
    true false NULL nullptr class public private protected virtual template typename namespace using new delete this
    try catch throw operator var let function typeof instanceof of in import package interface extends implements
    final abstract boolean byte null super func defer go chan map range select type nil string async await export
    foreach]],
}
-- Statements in which no bug is planted: definitions, and declarations of where things come from.
local PASSIVE_STARTS = {
  python = set "def class async import from global nonlocal @ pass",
  lua = set "function goto ::",
  c = set "import package using typedef struct class enum union interface namespace template extern goto",
}
local COMPARISONS = {
  ["<"] = "<=", ["<="] = "<", [">"] = ">=", [">="] = ">", ["=="] = "!=", ["!="] = "==", ["~="] = "==",
  ["==="] = "!==", ["!=="] = "===",
}
local OPERATORS = {
  ["+"] = "-", ["-"] = "+", ["*"] = "/", ["/"] = "*", ["%"] = "*", ["//"] = "*", ["+="] = "-=", ["-="] = "+=",
  ["*="] = "/=", ["/="] = "*=", ["<<"] = ">>", [">>"] = "<<", ["&&"] = "||", ["||"] = "&&", ["and"] = "or",
  ["or"] = "and",
}
local C_ONLY = { ["&"] = "|", ["|"] = "&", ["|="] = "&=", ["&="] = "|=" }
local CONSTANTS = { True = "False", False = "True", ["true"] = "false", ["false"] = "true" }
-- Exchanging two arguments of these is no bug, or not one that a reader could see.
local SYMMETRIC = set [[max min gcd lcm hypot print println printf zip union assertEqual assertNotEqual assertEquals
  assertIs assertIsNot assertAlmostEqual assertListEqual assertDictEqual assert_equal assertCountEqual fmax fmin isclose
  set frozenset]]
local INDEX_NAMES = set [[i j k n m x y idx index pos position start end stop offset count size length first last row
  col line lo hi low high left right step]]
local SIZE_CALLS = set "len strlen size length range sizeof"

local function family(language)
  if language == "python" or language == "lua" then return language end
  return "c"
end

-- Marks the tokens that no bug may touch, and those that start a logical line or statement. In Lua and in languages with braces a
-- physical line is taken for a statement.
local function survey(tokens, ranges)
  local of = family(tokens.language)
  local barred, statement, statements = {}, {}, {}
  if of == "python" then
    statements = functions.logical_lines(tokens)
  else
    local current
    for i = 1, tokens.n do
      if tokens.kind[i] ~= COMMENT then
        if not current or tokens.line[i] ~= tokens.line[current.last] then
          current = { first = i, last = i }
          statements[#statements + 1] = current
        end
        current.last = i
      end
    end
  end
  for number, s in ipairs(statements) do
    local word = scanner.text(tokens, s.first)
    local passive = PASSIVE_STARTS[of][word]
    for i = s.first, s.last do
      statement[i] = number
      -- `local function name(`, `x = function(a, b)`: the names up to the closing parenthesis are being defined
      if passive or (of == "lua" and tokens.kind[i] == NAME and scanner.text(tokens, i) == "function") then
        passive = true
        barred[i] = true
      end
    end
  end
  if of == "c" then -- the heads of functions, up to their brace
    local first_on_line = {}
    for i = tokens.n, 1, -1 do first_on_line[tokens.line[i]] = i end
    for _, range in ipairs(ranges) do
      local i = first_on_line[range.first]
      while i and i <= tokens.n and scanner.text(tokens, i) ~= "{" do
        barred[i] = true
        i = i + 1
      end
    end
  end
  return { barred = barred, statement = statement, statements = statements, family = of }
end

-- What the finders below share: the tokens with their texts, functions that ask about them, and add, replace and draw, which record
-- a site.
local function site_finder(tokens, ranges)
  local self = survey(tokens, ranges)
  self.tokens, self.sites = tokens, {}
  self.keywords, self.words = KEYWORDS[self.family], {} -- words: whatever stands in the code
  -- the text of every token, once: finders look at neighbours all the time
  self.text = setmetatable({}, { __index = function() return "" end })
  for i = 1, tokens.n do
    if tokens.kind[i] ~= COMMENT and tokens.kind[i] ~= STRING then
      self.text[i] = scanner.text(tokens, i)
      self.words[self.text[i]] = true
    end
  end
  function self.add(kind, i, ...)
    local edits = { ... }
    self.sites[#self.sites + 1] = { kind = kind, line = tokens.line[i], token = i, edits = edits }
  end
  function self.replace(kind, i, replacement)
    self.add(kind, i, { tokens.first[i], tokens.last[i], replacement })
  end
  -- a site whose replacement is drawn when it is planted: draw(rng) -> text, or nil to be asked again
  function self.draw(kind, i, draw)
    self.sites[#self.sites + 1] = { kind = kind, line = tokens.line[i], token = i, draw = draw }
  end
  function self.same_line(i, j) return tokens.line[i] == tokens.line[j] end
  -- ends an operand: a name that is no keyword, a number, a closing bracket
  function self.ends_operand(i)
    local kind, word = tokens.kind[i], self.text[i]
    return (kind == NAME and (not self.keywords[word] or word == "self" or word == "this")) or kind == NUMBER
      or word == ")" or word == "]"
  end
  function self.starts_operand(i)
    local kind, word = tokens.kind[i], self.text[i]
    return (kind == NAME and (not self.keywords[word] or word == "self" or word == "this" or CONSTANTS[word]))
      or kind == NUMBER or word == "("
  end
  -- white space on both sides: in C this tells `a < b` and `a * b` from templates and pointers
  function self.spaced(i)
    local source, first, last = tokens.source, tokens.first[i], tokens.last[i]
    return source:find("^%s", first - 1) and source:find("^%s", last + 1)
  end
  return self
end

-- A finder looks at token i, whose text is `word`, and records the sites of its kind that begin there.
local finders = {}

function finders.comparison(f, i, word)
  local tokens = f.tokens
  local other = COMPARISONS[word]
  if other and tokens.kind[i] == OPERATOR then
    if f.family == "lua" and word == "==" then other = "~=" end
    if (word == "<" or word == ">") and f.family == "c" and not f.spaced(i) then return end
    f.replace("comparison", i, other)
  elseif f.family == "python" and word == "is" then
    if f.text[i + 1] == "not" and f.same_line(i, i + 1) then
      f.add("comparison", i, { tokens.first[i], tokens.last[i + 1], "is" })
    elseif f.text[i + 1] ~= "not" then
      f.replace("comparison", i, "is not")
    end
  elseif f.family == "python" and word == "in" then
    if f.text[i - 1] == "not" and f.same_line(i - 1, i) then
      f.add("comparison", i - 1, { tokens.first[i - 1], tokens.last[i], "in" })
      return
    end
    for k = i - 1, f.statements[f.statement[i]].first, -1 do
      if f.text[k] == "for" then return end -- `for x in`: no comparison
    end
    f.replace("comparison", i, "not in")
  end
end

local CONDITIONS = { python = set "if while elif", lua = set "if while elseif", c = set "if while" }

function finders.negation(f, i, word)
  local tokens = f.tokens
  local following = f.text[i + 1]
  if word == "not" and following ~= "in" and f.text[i - 1] ~= "is" and i < tokens.n and f.same_line(i, i + 1) then
    f.add("negation", i, { tokens.first[i], tokens.first[i + 1] - 1, "" })
  elseif word == "!" and f.family == "c" and i < tokens.n and following ~= "!" and f.text[i - 1] ~= "!" then
    f.replace("negation", i, "")
  elseif CONDITIONS[f.family][word] then
    local at = i + 1
    if f.family == "c" then
      if following ~= "(" then return end
      at = i + 2
    end
    if tokens.kind[at] ~= NAME or f.text[at] == "not" or not f.same_line(i, at) then return end
    if f.keywords[f.text[at]] and f.text[at] ~= "self" then return end
    if f.family == "c" and tokens.kind[at + 1] == NAME or f.text[at + 1] == ":=" then return end -- a declaration
    f.add("negation", at, { tokens.first[at], tokens.first[at] - 1, f.family == "c" and "!" or "not " })
  end
end

function finders.wrong_operator(f, i, word)
  local other = OPERATORS[word] or (f.family == "c" and C_ONLY[word]) or nil
  if not other or f.text[i] == "" then return end
  if word == "//" and f.family == "c" then return end
  local tokens = f.tokens
  local assigns = word:find("=$") ~= nil
  if word == "and" or word == "or" or word == "&&" or word == "||" then
    -- Lua's `x = x or 1` and `a and b or c` are idioms whose exchange is as visible as any other
    f.replace("wrong_operator", i, other)
  elseif f.ends_operand(i - 1) and (f.starts_operand(i + 1) or assigns and f.text[i + 1] == "-") then
    if f.family == "c" and not assigns and not f.spaced(i) then return end
    local right = f.text[i + 1]
    if (word == "+" or word == "-") and f.text[i - 1] == "0" then return end
    local neutral = (word:find("^[+-]") and "0") or (word:find("^[*/]") and "1") or nil
    if neutral == right or tokens.kind[i + 2] == STRING then return end
    if word == "%" and other == "*" and tokens.kind[i - 1] == STRING then return end
    f.replace("wrong_operator", i, other)
  end
end

-- The index of the bracket that closes the one at `open`, or nil when it is further away than this statement.
local function closing(f, open)
  local depth = 0
  local stop = f.statements[f.statement[open]].last
  for k = open, stop do
    local word = f.text[k]
    if word == "(" or word == "[" or word == "{" then depth = depth + 1
    elseif word == ")" or word == "]" or word == "}" then
      depth = depth - 1
      if depth == 0 then return k end
    end
  end
end

function finders.off_by_one(f, i, word)
  local tokens = f.tokens
  local kind = tokens.kind[i]
  if kind == NUMBER and word:find("^%d+$") and #word < 6 then
    local before, after = f.text[i - 1], f.text[i + 1]
    local value = tonumber(word)
    local indexing = (before == "[" and tokens.kind[i - 2] and f.ends_operand(i - 2)) or before == ":" and after == "]"
      or COMPARISONS[before] and before ~= "==" and before ~= "!=" or before == "range"
      or f.text[i - 2] == "range" and before == "("
    if indexing then
      f.replace("off_by_one", i, tostring(value + 1))
      if value > 0 then f.replace("off_by_one", i, tostring(value - 1)) end
    elseif value == 1 and (before == "+" or before == "-") and f.ends_operand(i - 2) and f.same_line(i - 2, i) then
      f.add("off_by_one", i - 2, { tokens.last[i - 2] + 1, tokens.last[i], "" })
    end
  elseif kind == NAME and INDEX_NAMES[word] and f.text[i - 1] == "[" and f.text[i + 1] == "]"
    and f.ends_operand(i - 2) then
    f.replace("off_by_one", i, word .. " + 1")
    f.replace("off_by_one", i, word .. " - 1")
  elseif kind == NAME and SIZE_CALLS[word] and f.text[i + 1] == "(" and f.text[i - 1] ~= "->" then
    local close = closing(f, i + 1)
    if close and close > i + 2 and f.same_line(i, close) then
      if word == "range" then
        if tokens.kind[close - 1] ~= STRING and f.text[close - 1] ~= "," then
          f.add("off_by_one", i, { tokens.first[close], tokens.first[close] - 1, " + 1" })
          f.add("off_by_one", i, { tokens.first[close], tokens.first[close] - 1, " - 1" })
        end
      else
        f.add("off_by_one", i, { tokens.last[close] + 1, tokens.last[close], " - 1" })
        f.add("off_by_one", i, { tokens.last[close] + 1, tokens.last[close], " + 1" })
      end
    end
  end
end

function finders.wrong_constant(f, i, word)
  if CONSTANTS[word] and f.tokens.kind[i] == NAME then
    f.replace("wrong_constant", i, CONSTANTS[word])
  elseif f.tokens.kind[i] == NUMBER and word:find("^%d+$") and #word < 8 and f.text[i - 1] ~= "[" then
    local value = tonumber(word)
    if word:find("^0%d") then return end -- octal in C, an error in Python
    if value >= 2 then
      f.replace("wrong_constant", i, tostring(value * 10))
      f.replace("wrong_constant", i, tostring(math.floor(value / 2)))
    else
      f.replace("wrong_constant", i, (value == 0 and "1") or (f.text[i - 1] == "-" and "2") or "0")
    end
  end
end

-- name(a, b): two neighbouring plain positional arguments that differ change places.
function finders.swapped_arguments(f, i, word)
  local tokens = f.tokens
  if tokens.kind[i] ~= NAME or f.text[i + 1] ~= "(" or f.keywords[word] or SYMMETRIC[word] then return end
  if f.family == "c" and tokens.kind[i - 1] == NAME and f.text[i - 1] ~= "return" then return end -- a declaration
  local close = closing(f, i + 1)
  if not close or not f.same_line(i, close) then return end
  local arguments, first, depth, plain = {}, i + 2, 0, true
  for k = i + 2, close do
    local t = f.text[k]
    if (t == "," and depth == 0) or k == close then
      arguments[#arguments + 1] = { first = first, last = k - 1, plain = plain and k > first }
      first, plain = k + 1, true
    elseif t == "(" or t == "[" or t == "{" then depth = depth + 1
    elseif t == ")" or t == "]" or t == "}" then depth = depth - 1
    elseif depth == 0 and (t == "=" or t == "*" or t == "**" or t == "..." or t == "for" or t == "lambda"
      or t == "function") then
      plain = false
    end
  end
  for k = 1, #arguments - 1 do
    local a, b = arguments[k], arguments[k + 1]
    if a.plain and b.plain then
      local a_text = tokens.source:sub(tokens.first[a.first], tokens.last[a.last])
      local b_text = tokens.source:sub(tokens.first[b.first], tokens.last[b.last])
      if a_text ~= b_text and not (a_text .. b_text):find("\n", 1, true) then
        f.add("swapped_arguments", i, { tokens.first[a.first], tokens.last[a.last], b_text },
          { tokens.first[b.first], tokens.last[b.last], a_text })
      end
    end
  end
end

-- In C and its kin a name may be a type or be declared: `T x`, `T *x`, `(T)x`, `(T *)`, `x_t`, `} name`.
local function is_type_or_declared(f, i)
  local before, after, next_after = f.text[i - 1], f.text[i + 1], f.text[i + 2]
  if f.text[i]:find("_t$") or before == "}" or before == "struct" or before == "enum"
    or before == "union" then return true end
  if f.tokens.kind[i + 1] == NAME then return true end
  if after == "*" and (next_after == "*" or next_after == ")" or not f.spaced(i + 1)) then return true end
  if before == "(" and after == ")" and (f.starts_operand(i + 2) or next_after == "*"
    or next_after == "&") then return true end
  local s = f.statements[f.statement[i]]
  local first, second = s.first, s.first + 1
  while f.keywords[f.text[first]] and f.tokens.kind[second] == NAME do first, second = second, second + 1 end
  local declares = f.tokens.kind[first] == NAME and f.text[first] ~= "return"
    and (f.tokens.kind[second] == NAME or f.text[second] == "*" and not f.spaced(second))
  if declares then -- names before the = or ( of each declarator
    local depth = 0
    for k = i - 1, first, -1 do
      local t = f.text[k]
      if t == ")" or t == "]" then depth = depth + 1
      elseif t == "(" or t == "[" then
        if depth == 0 then return false end
        depth = depth - 1
      elseif depth == 0 and t == "=" then return false
      elseif depth == 0 and t == "," then return true end
    end
    return true
  end
  return false
end

-- A variable: a name that is read; not called, not an attribute, not the name of a keyword argument, not the target of an
-- assignment.
local function is_variable(f, i)
  local before, after = f.text[i - 1], f.text[i + 1]
  return f.tokens.kind[i] == NAME and not f.keywords[f.text[i]] and before ~= "." and before ~= "->" and before ~= "::"
    and before ~= ":" and after ~= "(" and after ~= ":" and after ~= "::"
    and not (f.family == "c" and is_type_or_declared(f, i))
end

-- names_of(range): the variables of a function; range_of(i): the function around a token.
local function finder_of_variables(f, names_of, range_of)
  return function(_, i, word)
    if not is_variable(f, i) or f.text[i + 1] == "=" or f.text[i + 1] == ":=" then return end
    local s = f.statements[f.statement[i]]
    if i == s.first or (f.family == "c" and f.tokens.kind[i - 1] == NAME and f.text[i - 1] ~= "return") then return end
    local first = f.text[s.first]
    if (first == "for" or first == "local" or first == "except" or first == "with" or first == "del")
      and f.family ~= "c" then
      -- what these introduce is a definition; what follows `in` or `=` is read
      local reads = false
      for k = s.first, i - 1 do
        local t = f.text[k]
        if t == "in" or t == "=" then reads = true end
      end
      if not reads then return end
    end
    local names = names_of(range_of(i))
    if #names < 2 then return end
    f.draw("wrong_variable", i, function(rng)
      local other = names[1 + rng(#names)]
      return other ~= word and other or nil
    end)
  end
end

-- Neighbours on a QWERTY keyboard, for slips of the finger.
local NEIGHBOURS = {}
for row in ("qwertyuiop asdfghjkl zxcvbnm"):gmatch("%S+") do
  for k = 1, #row - 1 do
    local a, b = row:sub(k, k), row:sub(k + 1, k + 1)
    NEIGHBOURS[a] = (NEIGHBOURS[a] or "") .. b
    NEIGHBOURS[b] = (NEIGHBOURS[b] or "") .. a
  end
end

-- A misspelling of `word`, chosen by rng: two letters exchanged, one lost, one doubled, or one replaced by its neighbour.
local function misspell(word, rng)
  local at = 1 + rng(#word - 1) -- the first letter of a pair
  local how = rng(4)
  local a, b = word:sub(at, at), word:sub(at + 1, at + 1)
  if how == 0 then return word:sub(1, at - 1) .. b .. a .. word:sub(at + 2) end
  if how == 1 then return word:sub(1, at) .. word:sub(at + 2) end
  if how == 2 then return word:sub(1, at) .. a .. word:sub(at + 1) end
  local near = NEIGHBOURS[b]
  if not near then return word end
  local k = 1 + rng(#near)
  return word:sub(1, at) .. near:sub(k, k) .. word:sub(at + 2)
end

function finders.misspelt_name(f, i, word)
  if f.tokens.kind[i] == NAME and #word >= 4 and not f.keywords[word] and not word:find("[^%w_]")
    and not word:find("^__") then
    f.draw("misspelt_name", i, function(rng) -- a slip must make a word that the file does not know
      local wrong = misspell(word, rng)
      return not f.words[wrong] and not f.keywords[wrong] and wrong or nil
    end)
  end
end

-- A whole statement on its own line, without which its block is not empty.
local function find_lost_lines(f, in_function)
  local tokens = f.tokens
  for number, s in ipairs(f.statements) do
    local previous, following = f.statements[number - 1], f.statements[number + 1]
    local line = tokens.line[s.first]
    local word = f.text[s.first]
    local last = f.text[s.last]
    local alone = previous and following and tokens.line[previous.last] < line and tokens.line[following.first] > line
      and tokens.line[s.last] == line and tokens.kind[s.last] ~= STRING
    local statement = word ~= "return" and word ~= "}" and word ~= "end" and not f.keywords[word]
      and tokens.kind[s.first] == NAME
      and not f.barred[s.first]
    local ends_well = (f.family == "c" and last == ";")
      or (f.family ~= "c" and (tokens.kind[s.last] == NAME and not f.keywords[last] or last == ")" or last == "]"
        or tokens.kind[s.last] == NUMBER))
    if alone and statement and ends_well and in_function(s.first) then
      -- the same indentation before and after: neither the only line of a block nor part of a statement
      local source = tokens.source
      local function indent(t)
        local start = tokens.first[t]
        while start > 1 and source:byte(start - 1) ~= 10 do start = start - 1 end
        return source:sub(start, tokens.first[t] - 1), start
      end
      local own, start = indent(s.first)
      if own ~= "" and own:find("^%s+$") and indent(previous.first) == own and indent(following.first) == own then
        local stop = source:find("\n", tokens.last[s.last], true)
        if stop and source:find("^%s*\n", tokens.last[s.last] + 1) then
          f.sites[#f.sites + 1] = { kind = "lost_line", line = line, token = s.first, edits = { { start, stop, "" } } }
        end
      end
    end
  end
end

-- Every site of a file, in the order of the tokens, with the lost lines at the end. site.range: the function or class that it is
-- in, or `ranges`.
function mutate.sites(tokens, ranges)
  local f = site_finder(tokens, ranges)
  local innermost = functions.by_line(ranges)
  local function range_of(i) return innermost[tokens.line[i]] or ranges end -- `ranges` itself stands for the file
  local names, seen = {}, {}
  for i = 1, tokens.n do
    if not f.barred[i] and is_variable(f, i) and range_of(i) ~= ranges then
      local range, word = range_of(i), f.text[i]
      names[range], seen[range] = names[range] or {}, seen[range] or {}
      if not seen[range][word] then
        seen[range][word] = true
        table.insert(names[range], word)
      end
    end
  end
  local function names_of(range) return names[range] or {} end
  local wrong_variable = finder_of_variables(f, names_of, range_of)
  for i = 1, tokens.n do
    local word = f.text[i]
    if word ~= "" and not f.barred[i] then
      finders.comparison(f, i, word)
      finders.negation(f, i, word)
      finders.wrong_operator(f, i, word)
      finders.off_by_one(f, i, word)
      finders.wrong_constant(f, i, word)
      finders.swapped_arguments(f, i, word)
      wrong_variable(f, i, word)
      finders.misspelt_name(f, i, word)
    end
  end
  find_lost_lines(f, function(i) return range_of(i).kind == "function" end)
  for _, site in ipairs(f.sites) do site.range = range_of(site.token) end
  return f.sites
end

-- One of `sites` (of one function): the kind first, by weight, then a site of that kind.
local function choose(sites, rng)
  local by_kind, total = {}, 0
  for _, site in ipairs(sites) do
    by_kind[site.kind] = by_kind[site.kind] or {}
    table.insert(by_kind[site.kind], site)
  end
  for _, kind in ipairs(mutate.KINDS) do
    if by_kind[kind[1]] then total = total + kind[2] end
  end
  local ticket = rng(65536) / 65536 * total
  for _, kind in ipairs(mutate.KINDS) do
    local list = by_kind[kind[1]]
    if list then
      ticket = ticket - kind[2]
      if ticket < 0 then return list[1 + rng(#list)] end
    end
  end
end

-- Plants at most `most` bugs. Returns the new text, what was planted (in the order of lines), and the set of lines of the new text
-- that had a site.
function mutate.plant(tokens, ranges, rng, most)
  local sites = mutate.sites(tokens, ranges)
  local groups, order, site_lines = {}, {}, {}
  for _, site in ipairs(sites) do
    site_lines[site.line] = true
    if not groups[site.range] then
      groups[site.range] = {}
      order[#order + 1] = site.range
    end
    table.insert(groups[site.range], site)
  end
  for k = #order, 2, -1 do -- which functions get a bug, when there are more than `most`
    local other = 1 + rng(k)
    order[k], order[other] = order[other], order[k]
  end
  local planted, taken = {}, {}
  for _, range in ipairs(order) do
    if #planted >= most then break end
    local site = choose(groups[range], rng)
    local edits = site and site.edits
    for _ = 1, site and site.draw and 8 or 0 do
      local replacement = site.draw(rng)
      if replacement then
        edits = { { tokens.first[site.token], tokens.last[site.token], replacement } }
        break
      end
    end
    -- neighbouring lines stay apart, so that each bug is a hunk of its own
    if edits and not (taken[site.line - 1] or taken[site.line] or taken[site.line + 1]) then
      taken[site.line] = true
      planted[#planted + 1] = { kind = site.kind, line = site.line, edits = edits }
    end
  end
  table.sort(planted, function(a, b) return a.line < b.line end)

  local pieces, at, source, report = {}, 1, tokens.source, {}
  for _, site in ipairs(planted) do
    for _, edit in ipairs(site.edits) do
      pieces[#pieces + 1] = source:sub(at, edit[1] - 1)
      pieces[#pieces + 1] = edit[3]
      at = edit[2] + 1
    end
    report[#report + 1] = { kind = site.kind, line = site.line }
  end
  pieces[#pieces + 1] = source:sub(at)
  local moved, lost, next_planted = {}, 0, 1 -- site_lines as the new text counts lines
  for line = 1, tokens.line[tokens.n] or 0 do
    while planted[next_planted] and planted[next_planted].line < line do
      if planted[next_planted].kind == "lost_line" then lost = lost + 1 end
      next_planted = next_planted + 1
    end
    if site_lines[line] then moved[line - lost] = true end
  end
  return table.concat(pieces), report, moved
end

return mutate
