-- suggest.lua: "did you mean": for a mistyped name, the nearest one that exists.
--   suggest.closest(word, candidates)  -> the nearest candidate, or nil where none is near
--   suggest.did_you_mean(word, candidates, format)  -> "; did you mean 'x'?" ready to be appended to a message, or ""
local check = require "lorarun.base.check"
local sorted = require "lorarun.base.sorted"

local suggest = {}

-- Edits that turn a into b: insert, delete, replace, or swap neighbours, one each (optimal string alignment).
local function distance(a, b)
  local two_up, up = {}, {}
  for j = 0, #b do up[j] = j end
  for i = 1, #a do
    local row = { [0] = i }
    for j = 1, #b do
      local same = a:byte(i) == b:byte(j)
      local best = math.min(up[j] + 1, row[j - 1] + 1, up[j - 1] + (same and 0 or 1))
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        best = math.min(best, two_up[j - 2] + 1)
      end
      row[j] = best
    end
    two_up, up = up, row
  end
  return up[#b]
end

-- candidates: an array of strings. A candidate is near if it differs by at most one edit per three letters of the longer word, or
-- if the word is its beginning (batch, batch_size). Of equally near ones the first in the alphabet is taken, whatever their order.
function suggest.closest(word, candidates)
  local best, best_cost
  for _, candidate in ipairs(candidates) do
    local a, b = word:lower(), candidate:lower()
    local cost = distance(a, b)
    local limit = math.max(1, math.floor(math.max(#a, #b) / 3))
    if #a >= 3 and #b > #a and b:sub(1, #a) == a then cost = math.min(cost, limit) end
    if cost <= limit and cost < math.max(#a, #b) and candidate ~= word
      and (not best or cost < best_cost or cost == best_cost and candidate < best) then
      best, best_cost = candidate, cost
    end
  end
  return best
end

-- format: how the name is shown; "'%s'" by default.
function suggest.did_you_mean(word, candidates, format)
  local closest = suggest.closest(word, candidates)
  return closest and "; did you mean " .. (format or "'%s'"):format(closest) .. "?" or ""
end

--- refuse_unknown(what, given, known): an error where a table has an option that is not among `known` (names to anything).
--- Of several the first in the alphabet is named.
function suggest.refuse_unknown(what, given, known)
  for name in sorted(given) do
    if known[name] == nil then
      local names = sorted.keys(known)
      local meant = suggest.did_you_mean(tostring(name), names)
      check.fail("%s has no option '%s'%s", what, tostring(name), meant ~= "" and meant
        or #names == 0 and "; it has none" or "; there are " .. table.concat(names, ", "))
    end
  end
end

return suggest
