-- rows.lua: the rows that one pair of texts, before and after a fix, makes.
--
-- The texts are compared line by line. A line of the before text that the fix removed or changed is buggy (score 0),
-- every other line that is not blank is correct (score 1). Each line makes three rows that differ in the context:
--   context_before   the line and up to 3 lines above it
--   context_after    the line and up to 3 lines below it
--   context_full     the function around it, else the class, else the file; at most options.max_context bytes: of a longer one, as
--                    many whole lines around the line as fit (a model would cut off its end, and often the line itself with it)
local diff = require "lorarun.bugdata.diff"
local random = require "lorarun.base.random"
local functions = require "lorarun.bugdata.functions"

local rows = {}

rows.CONTEXTS = { "context_before", "context_after", "context_full" }
local NEAR = 3 -- lines above or below in context_before and context_after
local PURPOSE_CORRECT = 0x42440003 -- the purpose of these draws (lr_random's second number)

-- The lines of `before` that are not in `after`, or changed. Where lines are only inserted, none is; with mark_insertions it is the
-- line that is now in the place of the missing ones (the last one, at the end of the file): otherwise a planted lost line would be
-- invisible.
local function buggy_lines(before, after, mark_insertions)
  local buggy = {}
  for _, hunk in ipairs(diff.lines(before, after)) do
    for i = hunk.a_start, hunk.a_start + hunk.a_count - 1 do
      if before[i]:find("%S") then buggy[i] = true end
    end
    if hunk.a_count == 0 and mark_insertions then
      local i = hunk.a_start
      while before[i] and not before[i]:find("%S") do i = i + 1 end
      if before[i] then buggy[i] = true end
    end
  end
  return buggy
end

-- Whole lines around `line` within first..last: all of them where they have at most `limit` bytes, else as many as fit, added above
-- and below in turn.
local function full_context(lines, line, first, last, limit)
  local size = last - first
  for i = first, last do
    size = size + #lines[i]
    if size > limit then break end
  end
  if size <= limit then return table.concat(lines, "\n", first, last) end
  local from, to = line, line
  size = #lines[line]
  while true do
    local grew = false
    if from > first and size + 1 + #lines[from - 1] <= limit then
      from, grew = from - 1, true
      size = size + 1 + #lines[from]
    end
    if to < last and size + 1 + #lines[to + 1] <= limit then
      to, grew = to + 1, true
      size = size + 1 + #lines[to]
    end
    if not grew then return table.concat(lines, "\n", from, to) end
  end
end

-- The correct lines to keep: all, or correct_per_buggy for each buggy one, drawn at random; the share `similar` of them from
-- pair.site_lines, where there are any.
local function choose_correct(options, pair, lines, buggy)
  local buggy_count, alike, others = 0, {}, {}
  for i = 1, #lines do
    if buggy[i] then
      buggy_count = buggy_count + 1
    elseif lines[i]:find("%S") then
      local list = pair.site_lines and pair.site_lines[i] and alike or others
      list[#list + 1] = i
    end
  end
  local chosen = {}
  local function choose(list)
    for _, i in ipairs(list) do chosen[i] = true end
  end
  if options.correct_per_buggy == 0 then
    choose(alike)
    choose(others)
    return chosen
  end
  local rng = random.generator(options.seed, PURPOSE_CORRECT, pair.name)
  local wanted = math.floor(buggy_count * options.correct_per_buggy + 0.5)
  local picked = random.sample(alike, pair.site_lines and math.floor(wanted * options.similar + 0.5) or 0, rng)
  choose(picked)
  for _, i in ipairs(alike) do
    if not chosen[i] then others[#others + 1] = i end
  end
  choose(random.sample(others, wanted - #picked, rng))
  return chosen
end

-- Calls emit(row) for each row of a pair, in the order of lines, three rows a line; stops where emit returns false. A row is a
-- table with the fields of the JSON rows.
function rows.each(pair, options, emit)
  local lines = diff.split(pair.before)
  local buggy = buggy_lines(lines, diff.split(pair.after), pair.mark_insertions)
  local correct = choose_correct(options, pair, lines, buggy)
  local innermost = functions.by_line(pair.ranges)
  for i = 1, #lines do
    if buggy[i] or correct[i] then
      local range = innermost[i] or { first = 1, last = #lines }
      local contexts = {
        context_before = table.concat(lines, "\n", math.max(1, i - NEAR), i),
        context_after = table.concat(lines, "\n", i, math.min(#lines, i + NEAR)),
        context_full = full_context(lines, i, range.first, math.min(range.last, #lines), options.max_context),
      }
      for _, kind in ipairs(rows.CONTEXTS) do
        local row = { context = contexts[kind], context_type = kind, current_line = lines[i], file = pair.name,
          line = i, score = buggy[i] and 0 or 1 }
        if emit(row) == false then return end
      end
    end
  end
end

return rows
