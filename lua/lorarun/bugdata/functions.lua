-- functions.lua: the lines in which the functions and classes of a source file begin and end.
--
--   local ranges = functions.find(tokens)       -- tokens of scanner.scan
--   ranges[i] = { first, last, kind = "function" | "class" }   -- lines, inclusive, in order of their first line
--   local innermost = functions.by_line(ranges)
--   innermost[line]   -> the innermost function around a line; where there is none, the innermost class; else nil
--
-- In Python indentation decides, in Lua the block words, in all else the braces. Decorators belong to what they decorate. A
-- function on a single line is a range in Python only: elsewhere it would add nothing to the range around it. Any two ranges are
-- nested or disjoint. For source that does not balance the result is what could be matched, never an error.
local scanner = require "lorarun.bugdata.scanner"

local functions = {}
local NAME, STRING, COMMENT = scanner.NAME, scanner.STRING, scanner.COMMENT
local OPERATOR, DIRECTIVE = scanner.OPERATOR, scanner.DIRECTIVE
local text_of = scanner.text

-- The line a token ends on: strings and comments may hold line ends.
local function last_line(tokens, i)
  local line = tokens.line[i]
  if tokens.kind[i] ~= STRING and tokens.kind[i] ~= COMMENT then return line end
  local at, stop = tokens.first[i], tokens.last[i]
  while true do
    at = tokens.source:find("\n", at, true)
    if not at or at > stop then return line end
    line, at = line + 1, at + 1
  end
end

local OPENING = { ["("] = true, ["["] = true, ["{"] = true }
local CLOSING = { [")"] = true, ["]"] = true, ["}"] = true }

-- The width of the white space before a token on its line; a tab goes to the next multiple of 8, as in Python.
local function indentation(tokens, i)
  local at = tokens.first[i]
  local start = at
  while start > 1 and tokens.source:byte(start - 1) ~= 10 do start = start - 1 end
  local width = 0
  for p = start, at - 1 do
    local b = tokens.source:byte(p)
    if b == 9 then width = width - width % 8 + 8 elseif b ~= 12 then width = width + 1 end
  end
  return width
end

-- The logical lines of Python: { first, last } token indices, without the comments between them. A logical line continues while a
-- bracket is open, or where a backslash ends the line.
function functions.logical_lines(tokens)
  local list, depth, previous = {}, 0, nil
  for i = 1, tokens.n do
    if tokens.kind[i] ~= COMMENT then
      local continued = previous and (depth > 0 or last_line(tokens, previous) == tokens.line[i]
        or (tokens.kind[previous] == OPERATOR and text_of(tokens, previous) == "\\"))
      if not continued then
        list[#list + 1] = { first = i, last = i }
        depth = 0
      end
      list[#list].last, previous = i, i
      if tokens.kind[i] == OPERATOR then
        local op = text_of(tokens, i)
        if OPENING[op] then depth = depth + 1 elseif CLOSING[op] then depth = math.max(0, depth - 1) end
      end
    end
  end
  return list
end

local function find_python(tokens)
  local ranges, open = {}, {} -- open: ranges whose body may go on, outermost first
  local decorators_from, last_code_line = nil, 0
  for _, logical in ipairs(functions.logical_lines(tokens)) do
    local i = logical.first
    local indent, word = indentation(tokens, i), text_of(tokens, i)
    while #open > 0 and indent <= open[#open].indent do
      open[#open].last = last_code_line
      open[#open] = nil
    end
    if word == "async" and text_of(tokens, i + 1) == "def" then word = "def" end
    if word == "@" then
      decorators_from = decorators_from or tokens.line[i]
    else
      if word == "def" or word == "class" then
        local range = { first = decorators_from or tokens.line[i], last = 0, indent = indent,
          kind = word == "def" and "function" or "class" }
        ranges[#ranges + 1], open[#open + 1] = range, range
      end
      decorators_from = nil
    end
    last_code_line = last_line(tokens, logical.last)
  end
  for _, range in ipairs(open) do range.last = last_code_line end
  for _, range in ipairs(ranges) do range.indent = nil end
  return ranges
end

local LUA_OPENS = { ["function"] = true, ["do"] = true, ["if"] = true, ["repeat"] = true }
local LUA_CLOSES = { ["end"] = true, ["until"] = true }

local function find_lua(tokens)
  local ranges, stack = {}, {}
  for i = 1, tokens.n do
    if tokens.kind[i] == NAME then
      local word = text_of(tokens, i)
      local before = text_of(tokens, i - 1)
      if before ~= "." and before ~= ":" and text_of(tokens, i + 1) ~= "=" or word == "function" then
        if LUA_OPENS[word] then
          stack[#stack + 1] = { first = tokens.line[i], kind = word }
        elseif LUA_CLOSES[word] and #stack > 0 then
          local block = table.remove(stack)
          if block.kind == "function" and tokens.line[i] > block.first then
            ranges[#ranges + 1] = { first = block.first, last = tokens.line[i], kind = "function" }
          end
        end
      end
    end
  end
  return ranges
end

local function set(words)
  local s = {}
  for word in words:gmatch("%S+") do s[word] = true end
  return s
end
local CLASS_WORDS = set "class struct interface namespace union enum extern record new"
local CONTROL_WORDS = set "if for while switch catch else do try synchronized select foreach using"

-- What a brace opens, by the tokens of its statement before it. inside: the kind of the nearest function or class around it.
local function brace_kind(head, inside)
  local first_word = head.words[1]
  if head.arrow or head.functions then return "function" end
  local returns_one = head.parens and head.closed_last -- `struct point make(int x) {`
  if head.class == "new" or (head.class and not head.assigned and not returns_one) then return "class" end
  if CONTROL_WORDS[first_word] or head.assigned or not head.parens then return "block" end
  return inside ~= "function" and "function" or "block"
end

-- Braces. A statement's head is what is between the last ; { or } and the brace; it decides what the brace opens. Each branch of an
-- #if begins in the state at the #if, and only the last branch counts for the nesting after it.
local function find_braces(tokens)
  local ranges, stack, conditionals = {}, {}, {}
  local function_word = ({ javascript = "function", go = "func" })[tokens.language]
  local head
  local function new_head() head = { words = {}, depth = 0 } end
  local function inside()
    for k = #stack, 1, -1 do
      if stack[k].kind ~= "block" then return stack[k].kind end
    end
  end
  new_head()
  for i = 1, tokens.n do
    local kind = tokens.kind[i]
    if kind == DIRECTIVE then
      local word = tokens.source:match("^#%s*(%a+)", tokens.first[i])
      if word == "if" or word == "ifdef" or word == "ifndef" then
        local saved = {}
        for k = 1, #stack do saved[k] = stack[k] end
        conditionals[#conditionals + 1] = saved
      elseif (word == "else" or word == "elif") and #conditionals > 0 then
        stack = {}
        for k, block in ipairs(conditionals[#conditionals]) do stack[k] = block end
        new_head()
      elseif word == "endif" then
        conditionals[#conditionals] = nil
      end
    elseif kind ~= COMMENT then
      local word = (kind == NAME or kind == OPERATOR) and text_of(tokens, i) or ""
      head.first = head.first or i
      if kind == NAME then
        head.words[#head.words + 1] = word
        if head.depth == 0 and CLASS_WORDS[word] then head.class = head.class or word end
        if word == function_word then head.functions = true end
        head.closed_last = false
      elseif word == "(" or word == "[" then
        head.depth = head.depth + 1
        if word == "(" then head.parens = true end
      elseif word == ")" or word == "]" then
        head.depth = math.max(0, head.depth - 1)
        head.closed_last = word == ")"
      elseif word == "=>" then
        head.arrow = true
      elseif word == "=" and head.depth == 0 and text_of(tokens, i - 1) ~= "operator" then
        head.assigned = true
      elseif word == ";" and head.depth == 0 then
        new_head()
      elseif word == "{" then
        stack[#stack + 1] = { kind = brace_kind(head, inside()), first = tokens.line[head.first] }
        new_head()
      elseif word == "}" then
        local block = table.remove(stack)
        if block and block.kind ~= "block" and tokens.line[i] > block.first and not block.done then
          block.done = true -- the same block closes once in each branch of an #if: the first counts
          ranges[#ranges + 1] = { first = block.first, last = tokens.line[i], kind = block.kind }
        end
        new_head()
      end
    end
  end
  return ranges
end

-- The closing of one branch of an #if may give ranges that cross; the later of two crossing ones is left out.
local function nested(ranges)
  table.sort(ranges, function(a, b)
    if a.first ~= b.first then return a.first < b.first end
    if a.last ~= b.last then return a.last > b.last end
    return a.kind < b.kind
  end)
  local kept, open = {}, {}
  for _, range in ipairs(ranges) do
    while #open > 0 and open[#open].last < range.first do open[#open] = nil end
    if #open == 0 or range.last <= open[#open].last then
      kept[#kept + 1], open[#open + 1] = range, range
    end
  end
  return kept
end

function functions.find(tokens)
  if tokens.language == "python" then return nested(find_python(tokens)) end
  if tokens.language == "lua" then return nested(find_lua(tokens)) end
  return nested(find_braces(tokens))
end

-- ranges come outermost first, so a later one that covers a line is further in. A class never hides a function around
-- it.
function functions.by_line(ranges)
  local innermost = {}
  for _, range in ipairs(ranges) do
    for line = range.first, range.last do
      local outer = innermost[line]
      if not outer or range.kind == "function" or outer.kind == "class" then innermost[line] = range end
    end
  end
  return innermost
end

return functions
