-- scanner.lua: source text cut into tokens, as far as the data maker needs: where names, numbers, strings, comments and operators
-- are. It knows Python, Lua and the languages that look like C. It is not a parser, and accepts any text.
--
--   local tokens = scanner.scan(text, "python")
--   tokens.n, tokens.kind[i], tokens.first[i], tokens.last[i] (bytes, inclusive), tokens.line[i] (of its first byte, from 1)
--   scanner.text(tokens, i)
--
-- Invariants: tokens are in order and do not overlap; only white space is between two of them; a string or a comment is ONE token,
-- whatever it holds, so its contents are never taken for code. An unclosed string ends with its line (an unclosed long one with the
-- text). Preprocessor directives of C are single tokens of their own kind, continuations included.
local sorted = require "lorarun.base.sorted"

local scanner = {}

local byte, find, sub = string.byte, string.find, string.sub

scanner.NAME, scanner.NUMBER, scanner.STRING = 1, 2, 3
scanner.COMMENT, scanner.OPERATOR, scanner.DIRECTIVE = 4, 5, 6
local NAME, NUMBER, STRING, COMMENT, OPERATOR, DIRECTIVE = 1, 2, 3, 4, 5, 6

-- The languages, their file extensions, and whether they have C's preprocessor or strings in back quotes.
local LANGUAGES = {
  python = { extensions = { "py", "pyi" } },
  lua = { extensions = { "lua" } },
  c = { extensions = { "c", "h", "cc", "cpp", "cxx", "hpp", "hh", "cu", "cuh" }, directives = true },
  java = { extensions = { "java", "cs" } },
  javascript = { extensions = { "js", "mjs", "ts", "jsx", "tsx" }, back_quotes = true },
  go = { extensions = { "go" }, back_quotes = true },
}
local BY_EXTENSION = {}
for language, traits in pairs(LANGUAGES) do
  for _, extension in ipairs(traits.extensions) do BY_EXTENSION[extension] = language end
end

-- The language of a file name or extension, or nil.
function scanner.language(name)
  return BY_EXTENSION[name:match("([^.]*)$"):lower()]
end

-- All known extensions, sorted, for messages.
function scanner.extensions() return sorted.keys(BY_EXTENSION) end

-- Operators of more than one byte, longest first: the first that matches is the token.
local function operator_table(list)
  local by_first = {}
  for op in list:gmatch("%S+") do
    local first = byte(op)
    by_first[first] = by_first[first] or {}
    table.insert(by_first[first], op)
  end
  for _, ops in pairs(by_first) do table.sort(ops, function(a, b) return #a > #b or #a == #b and a < b end) end
  return by_first
end
local C_OPERATORS = operator_table(
  "<<= >>= ... -> ++ -- << >> <= >= == != && || += -= *= /= %= &= |= ^= :: => === !== ** ?? :=")
local OPERATORS = {
  python = operator_table("**= //= >>= <<= ... ** // >> << <= >= == != -> += -= *= /= %= &= |= ^= @= :="),
  lua = operator_table("... .. == ~= <= >= << >> // ::"),
}

local WORD_START, DIGIT = {}, {}
for b = 0, 255 do
  -- letters beyond ASCII count as letters; $ is JavaScript's
  WORD_START[b] = b >= 128 or find(string.char(b), "^[%a_$]") ~= nil
  DIGIT[b] = b >= 48 and b <= 57
end
local PYTHON_PREFIXES = {}
for prefix in ("r b u f rb br fr rf"):gmatch("%S+") do PYTHON_PREFIXES[prefix] = true end

-- Last byte of a quoted string that opens at `at`: the closing quote, or the end of the line where there is none (the
-- end of the text for a quote that may span lines). A backslash escapes the byte after it, a line end included.
local function quoted_end(text, at, quote, spans_lines)
  local stop = spans_lines and ("[\\" .. quote .. "]") or ("[\\\n" .. quote .. "]")
  local from = at + 1
  while true do
    local p = find(text, stop, from)
    if not p then return #text end
    local b = byte(text, p)
    if b == 92 then from = p + 2
    elseif b == 10 then return p - 1
    else return p end
  end
end

local function triple_quoted_end(text, at, quote)
  local closing, from = quote:rep(3), at + 3
  while true do
    local p = find(text, "[\\" .. quote .. "]", from)
    if not p then return #text end
    if byte(text, p) == 92 then from = p + 2
    elseif sub(text, p, p + 2) == closing then return p + 2
    else from = p + 1 end
  end
end

-- [[...]], [==[...]==] of Lua that opens at `at`: its last byte, or nil where none opens there.
local function long_bracket_end(text, at)
  local _, opened, level = find(text, "^%[(=*)%[", at)
  if not opened then return nil end
  local _, closed = find(text, "]" .. level .. "]", opened + 1, true)
  return closed or #text
end

-- The end of a C directive: that of the first line without a backslash at its end. A block comment inside may span lines as well.
local function directive_end(text, at)
  local from = at
  while true do
    local p = find(text, "[\n/]", from)
    if not p then return #text end
    if byte(text, p) == 47 then
      if sub(text, p, p + 1) == "/*" then
        local _, closed = find(text, "*/", p + 2, true)
        from = (closed or #text) + 1
      else
        from = p + 1
      end
    elseif sub(text, p - 1, p - 1) == "\\" or sub(text, p - 2, p - 1) == "\\\r" then from = p + 1
    else return p - 1 end
  end
end

-- The end of a number: digits, letters, dots, and a sign right after an exponent letter.
local function number_end(text, at)
  local _, last
  if find(text, "^0[xX]", at) then
    _, last = find(text, "^[%w_.]+", at)
  else
    _, last = find(text, "^[%d_]*%.?[%d_]*", at)
    local _, exponent = find(text, "^[eE][+-]?%d+", last + 1)
    last = exponent or last
    local _, suffix = find(text, "^[%a_]+", last + 1)
    last = suffix or last
  end
  return last
end

function scanner.scan(text, language)
  local operators = OPERATORS[language] or C_OPERATORS
  local traits = LANGUAGES[language]
  local python, lua = language == "python", language == "lua"
  local c_like = not python and not lua
  local kinds, firsts, lasts, lines = {}, {}, {}, {}
  local n, at, size, line = 0, 1, #text, 1
  local newline = find(text, "\n", 1, true) or size + 1 -- the end of line number `line`
  local blank = true                                     -- no token but comments on this line so far

  while true do
    at = find(text, "%S", at)
    if not at then break end
    while newline < at do
      line, blank = line + 1, true
      newline = find(text, "\n", newline + 1, true) or size + 1
    end
    local b = byte(text, at)
    local kind, last = OPERATOR, nil
    if WORD_START[b] then
      local _
      _, last = find(text, "^[%w_$\128-\255]*", at)
      kind = NAME
      if python and last - at < 2 then
        local quote = sub(text, last + 1, last + 1)
        if (quote == "'" or quote == '"') and PYTHON_PREFIXES[sub(text, at, last):lower()] then
          kind = STRING
          if sub(text, last + 1, last + 3) == quote:rep(3) then last = triple_quoted_end(text, last + 1, quote)
          else last = quoted_end(text, last + 1, quote) end
        end
      end
    elseif DIGIT[b] or (b == 46 and DIGIT[byte(text, at + 1) or 0]) then
      kind, last = NUMBER, number_end(text, at)
    elseif b == 34 or b == 39 then
      local quote = b == 34 and '"' or "'"
      kind = STRING
      if python and sub(text, at, at + 2) == quote:rep(3) then last = triple_quoted_end(text, at, quote)
      else last = quoted_end(text, at, quote) end
    elseif b == 96 and traits.back_quotes then
      kind, last = STRING, quoted_end(text, at, "`", true)
    elseif b == 35 and (python or (traits.directives and blank) or (at == 1 and byte(text, 2) == 33)) then
      if c_like and traits.directives then kind, last = DIRECTIVE, directive_end(text, at)
      else kind, last = COMMENT, newline - 1 end
    elseif c_like and b == 47 and byte(text, at + 1) == 47 then
      kind, last = COMMENT, newline - 1
    elseif c_like and b == 47 and byte(text, at + 1) == 42 then
      local _, closed = find(text, "*/", at + 2, true)
      kind, last = COMMENT, closed or size
    elseif lua and b == 45 and byte(text, at + 1) == 45 then
      kind = COMMENT
      last = long_bracket_end(text, at + 2) or newline - 1
    elseif lua and b == 91 then
      last = long_bracket_end(text, at)
      if last then kind = STRING end
    end
    if not last then
      last = at
      local candidates = operators[b]
      if candidates then
        for k = 1, #candidates do
          local op = candidates[k]
          if sub(text, at, at + #op - 1) == op then last = at + #op - 1 break end
        end
      end
    end
    n = n + 1
    kinds[n], firsts[n], lasts[n], lines[n] = kind, at, last, line
    if kind ~= COMMENT then blank = false end
    at = last + 1
  end
  return { n = n, kind = kinds, first = firsts, last = lasts, line = lines, source = text, language = language }
end

-- The text of token i; "" past either end, so that neighbours can be looked at without a check.
function scanner.text(tokens, i)
  if i < 1 or i > tokens.n then return "" end
  return sub(tokens.source, tokens.first[i], tokens.last[i])
end

return scanner
