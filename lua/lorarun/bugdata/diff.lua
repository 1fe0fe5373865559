-- diff.lua: the difference of two texts, line by line, without lines of context.
--
--   local hunks = diff.lines(a, b)     -- a, b: arrays of strings
--   hunks[i] = { a_start, a_count, b_start, b_count }   -- in order; at least one common line is between two hunks
--
-- a_start is the first differing line of a, from 1; where a_count is 0 it is the line of a before which b's lines were inserted
-- (#a + 1 at the end). b_start and b_count are the same for b.
--
-- Method: lines are numbered, those that occur on one side only are set aside (they differ in any case), and the rest is compared
-- with E. Myers, "An O(ND) Difference Algorithm and Its Variations" (1986), in its linear-space form: cut off the common prefix and
-- suffix, find a point in the middle of a shortest edit path, and do the same on both sides of it. O(N) memory, O(N D) time for D
-- differences.
--
-- Bound: a search that has made MAX_COST steps from both ends without meeting divides where the forward paths are furthest. The
-- result is still a valid edit script, but may be longer than the shortest. Up to 2 * MAX_COST differences (after setting aside) it
-- is the shortest. Edited files have fewer; two unrelated files may have more.
local diff = {}

diff.MAX_COST = 512

-- A point (x, y) on a shortest edit path between the sub-sequences a[a0+1..a0+n] and b[b0+1..b0+m], 0 <= x <= n, 0 <= y <= m,
-- neither corner. Both sub-sequences are non-empty and differ at both ends. For each diagonal k = x - y, forward[k] is the furthest
-- x that a path from the start has reached, backward[k] the same for paths from the end.
local function middle(a, a0, n, b, b0, m, forward, backward)
  local delta = n - m
  local odd = delta % 2 == 1
  local f_low, f_high, b_low, b_high = 0, 0, delta, delta
  forward[0], backward[delta] = 0, n
  local cost = 0
  while true do
    cost = cost + 1
    -- One more difference: the range of diagonals grows by one at each end, or shrinks where it has met the rectangle's edge.
    if f_low > -m then f_low = f_low - 1 forward[f_low - 1] = -1 else f_low = f_low + 1 end
    if f_high < n then f_high = f_high + 1 forward[f_high + 1] = -1 else f_high = f_high - 1 end
    for k = f_high, f_low, -2 do
      local left, right = forward[k - 1], forward[k + 1]
      local x = left < right and right or left + 1
      local y = x - k
      while x < n and y < m and a[a0 + x + 1] == b[b0 + y + 1] do x, y = x + 1, y + 1 end
      forward[k] = x
      if odd and b_low <= k and k <= b_high and backward[k] <= x then return x, y end
    end
    if b_low > -m then b_low = b_low - 1 backward[b_low - 1] = math.huge else b_low = b_low + 1 end
    if b_high < n then b_high = b_high + 1 backward[b_high + 1] = math.huge else b_high = b_high - 1 end
    for k = b_high, b_low, -2 do
      local left, right = backward[k - 1], backward[k + 1]
      local x = left < right and left or right - 1
      local y = x - k
      while x > 0 and y > 0 and a[a0 + x] == b[b0 + y] do x, y = x - 1, y - 1 end
      backward[k] = x
      if not odd and f_low <= k and k <= f_high and x <= forward[k] then return x, y end
    end
    if cost >= diff.MAX_COST then
      local best_x, best_y = 0, 0
      for k = f_high, f_low, -2 do
        local x = math.min(forward[k], n)
        if x - k > m then x = m + k end
        if 2 * x - k > best_x + best_y then best_x, best_y = x, x - k end
      end
      return best_x, best_y
    end
  end
end

-- Marks in s.removed the lines of a[a_low..a_high] that go, and in s.added those of b[b_low..b_high] that come.
local function compare(s, a_low, a_high, b_low, b_high)
  local a, b = s.a, s.b
  while a_low <= a_high and b_low <= b_high and a[a_low] == b[b_low] do a_low, b_low = a_low + 1, b_low + 1 end
  while a_low <= a_high and b_low <= b_high and a[a_high] == b[b_high] do a_high, b_high = a_high - 1, b_high - 1 end
  if a_low > a_high or b_low > b_high then
    for j = b_low, b_high do s.added[s.b_index[j]] = true end
    for i = a_low, a_high do s.removed[s.a_index[i]] = true end
    return
  end
  local x, y = middle(a, a_low - 1, a_high - a_low + 1, b, b_low - 1, b_high - b_low + 1, s.forward, s.backward)
  compare(s, a_low, a_low + x - 1, b_low, b_low + y - 1)
  compare(s, a_low + x, a_high, b_low + y, b_high)
end

-- Lines of `list` that occur in `other_has`, as integers, with their positions; the others are marked in `alone`.
local function shared(list, numbers, other_has, alone)
  local values, index = {}, {}
  for i = 1, #list do
    if other_has[list[i]] then
      values[#values + 1], index[#index + 1] = numbers[list[i]], i
    else
      alone[i] = true
    end
  end
  return values, index
end

function diff.lines(a, b)
  local numbers, count, in_a, in_b = {}, 0, {}, {}
  for _, side in ipairs { { a, in_a }, { b, in_b } } do
    for _, line in ipairs(side[1]) do
      if not numbers[line] then count = count + 1 numbers[line] = count end
      side[2][line] = true
    end
  end
  local s = { removed = {}, added = {}, forward = {}, backward = {} }
  s.a, s.a_index = shared(a, numbers, in_b, s.removed)
  s.b, s.b_index = shared(b, numbers, in_a, s.added)
  compare(s, 1, #s.a, 1, #s.b)

  local hunks, i, j = {}, 1, 1
  while i <= #a or j <= #b do
    if s.removed[i] or s.added[j] then
      local hunk = { a_start = i, b_start = j }
      while s.removed[i] do i = i + 1 end
      while s.added[j] do j = j + 1 end
      hunk.a_count, hunk.b_count = i - hunk.a_start, j - hunk.b_start
      hunks[#hunks + 1] = hunk
    else
      i, j = i + 1, j + 1
    end
  end
  return hunks
end

-- The lines of a text without their line ends (\n or \r\n). A last line without an end counts; an empty text has none.
function diff.split(text)
  local lines, n, at = {}, 0, 1
  while at <= #text do
    local newline = text:find("\n", at, true) or #text + 1
    local last = newline - 1
    if last >= at and text:byte(last) == 13 then last = last - 1 end
    n = n + 1
    lines[n] = text:sub(at, last)
    at = newline + 1
  end
  return lines
end

return diff
