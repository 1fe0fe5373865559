-- diff.lua compared with a quadratic longest common subsequence, and the properties that every edit script must have.
local diff = require "lorarun.bugdata.diff"
local C = require "lorarun.base.c"
local ffi = require "ffi"

local words = ffi.new("uint32_t[4]")
local step = 0
local function below(n)
  step = step + 1
  C.lr_random(7, 1, step, 0, words)
  return words[0] % n
end

local function lcs_length(a, b)
  local row = {}
  for j = 0, #b do row[j] = 0 end
  for i = 1, #a do
    local diagonal = 0
    for j = 1, #b do
      local above = row[j]
      row[j] = a[i] == b[j] and diagonal + 1 or math.max(above, row[j - 1])
      diagonal = above
    end
  end
  return row[#b]
end

-- Applies the hunks to a; also checks that they are in order, do not touch each other, and hold no common line that could be
-- outside.
local function apply(a, b, hunks)
  local out, i, differing = {}, 1, 0
  local last_end = 0
  for _, h in ipairs(hunks) do
    check.that(h.a_count + h.b_count > 0, "an empty hunk")
    check.that(h.a_start > last_end, "hunks touch or overlap")
    last_end = h.a_start + h.a_count
    while i < h.a_start do out[#out + 1] = a[i] i = i + 1 end
    check.equal(h.b_start, #out + 1, "b_start")
    for k = 0, h.b_count - 1 do out[#out + 1] = b[h.b_start + k] end
    i = i + h.a_count
    differing = differing + h.a_count + h.b_count
  end
  while i <= #a do out[#out + 1] = a[i] i = i + 1 end
  check.equal(table.concat(out, "\n"), table.concat(b, "\n"), "the replayed text")
  check.equal(#out, #b, "lines after replay")
  return differing
end

local function random_lines(longest, alphabet)
  local lines = {}
  for i = 1, below(longest + 1) do lines[i] = string.char(97 + below(alphabet)) end
  return lines
end

test("random inputs: a shortest edit script, of the same size from a to b and from b to a", function()
  for _ = 1, 2000 do
    local alphabet = 1 + below(6)
    local a, b = random_lines(24, alphabet), random_lines(24, alphabet)
    local shortest = #a + #b - 2 * lcs_length(a, b)
    check.equal(apply(a, b, diff.lines(a, b)), shortest, "differences")
    check.equal(apply(b, a, diff.lines(b, a)), shortest, "differences the other way")
  end
end)

test("equal, empty and one-sided inputs", function()
  check.equal(#diff.lines({}, {}), 0)
  check.equal(#diff.lines({ "x", "y" }, { "x", "y" }), 0)
  local h = diff.lines({}, { "x", "y" })
  check.equal(#h, 1)
  check.equal(h[1].a_start, 1) check.equal(h[1].a_count, 0) check.equal(h[1].b_start, 1) check.equal(h[1].b_count, 2)
  h = diff.lines({ "x", "y" }, {})
  check.equal(#h, 1)
  check.equal(h[1].a_start, 1) check.equal(h[1].a_count, 2) check.equal(h[1].b_start, 1) check.equal(h[1].b_count, 0)
end)

test("an insertion is placed before the line that it moves down", function()
  local h = diff.lines({ "a", "b", "d" }, { "a", "b", "c", "d" })
  check.equal(#h, 1)
  check.equal(h[1].a_start, 3) check.equal(h[1].a_count, 0) check.equal(h[1].b_start, 3) check.equal(h[1].b_count, 1)
  h = diff.lines({ "a" }, { "a", "z" })
  check.equal(h[1].a_start, 2) check.equal(h[1].a_count, 0)
end)

test("edits of a long file are found exactly and fast", function()
  local a, b = {}, {}
  for i = 1, 20000 do
    a[i] = "line " .. i % 700
    if i % 200 ~= 0 then b[#b + 1] = i % 333 == 0 and "changed " .. i or a[i] end
  end
  check.that(apply(a, b, diff.lines(a, b)) <= 100 + 2 * 60, "more differences than were made")
end)

test("unrelated and shuffled files of 20000 lines stay within bounds", function()
  local a, b, shuffled = {}, {}, {}
  for i = 1, 20000 do a[i], b[i] = "left " .. i, "right " .. i end
  local started = os.clock()
  local h = diff.lines(a, b)
  check.equal(#h, 1)
  check.equal(h[1].a_count, 20000)
  for i = 1, #a do shuffled[i] = a[i] end
  for i = #a, 2, -1 do
    local k = below(i) + 1
    shuffled[i], shuffled[k] = shuffled[k], shuffled[i]
  end
  apply(a, shuffled, diff.lines(a, shuffled))
  check.that(os.clock() - started < 60, "it took over a minute")
end)

test("beyond the cost bound the script is still valid", function()
  local bound = diff.MAX_COST
  diff.MAX_COST = 3
  local ok, err = pcall(function()
    for _ = 1, 500 do
      local a, b = random_lines(60, 4), random_lines(60, 4)
      apply(a, b, diff.lines(a, b))
    end
  end)
  diff.MAX_COST = bound
  check.that(ok, err)
end)

test("split: line ends of both kinds, a last line with and without one", function()
  local lines = diff.split("a\r\nb\n\nc")
  check.equal(table.concat(lines, "|"), "a|b||c")
  check.equal(#diff.split("a\n"), 1)
  check.equal(#diff.split(""), 0)
  check.equal(#diff.split("\n\n"), 2)
end)
