-- suggest.lua: "did you mean". Who mistypes a name gets the nearest one that exists.
--   suggest.closest(word, candidates)  -> the nearest candidate, or nil where none is near
--   suggest.did_you_mean(word, candidates, format)  -> "; did you mean 'x'?" ready to be appended to a message, or ""
local check = require "lorarun.base.check"

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

-- candidates: an array of strings. A candidate is near within one edit per three letters of the longer word; one that
-- the word begins (batch, batch_size) is near as well. Ties go to the first in the alphabet: the answer depends on
-- nothing else.
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

-- format: how the name is shown, "'%s'" unless told.
function suggest.did_you_mean(word, candidates, format)
  local closest = suggest.closest(word, candidates)
  return closest and "; did you mean " .. (format or "'%s'"):format(closest) .. "?" or ""
end

--- refuse_unknown(what, given, known): an error where the table has an option that is not among `known` (names to anything). Of
--- several the first in the alphabet is told.
function suggest.refuse_unknown(what, given, known)
  local unknown
  for name in pairs(given) do
    name = known[name] == nil and tostring(name)
    if name and (not unknown or name < unknown) then unknown = name end
  end
  if not unknown then return end
  local names = {}
  for name in pairs(known) do names[#names + 1] = name end
  table.sort(names)
  local meant = suggest.did_you_mean(unknown, names)
  check.fail("%s has no option '%s'%s", what, unknown, meant ~= "" and meant
    or #names == 0 and "; it has none" or "; there are " .. table.concat(names, ", "))
end

return suggest
