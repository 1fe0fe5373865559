-- splits.lua: which file goes to train, validation or test.
--
-- Whole files go to a split, never lines, and what shares text stays together: files with a function in common (a copy, a vendored
-- library, two versions of one file), equal texts, and items of one group are in one split. So a model gains nothing on validation
-- and test by remembering its training text.
local diff = require "lorarun.bugdata.diff"
local scanner = require "lorarun.bugdata.scanner"
local functions = require "lorarun.bugdata.functions"
local data_folder = require "lorarun.formats.data_folder"
local text_hash = require "lorarun.base.text_hash"

local splits = {}

splits.NAMES = data_folder.SPLITS
local SHARES = { train = 0.70, validation = 0.15, test = 0.15 }

-- A function that ties two files together has at least this much text: shorter ones are often equal by chance.
local SHARED_FUNCTION_LINES, SHARED_FUNCTION_BYTES = 5, 160

-- Union-find over item numbers: items that share a key are one group.
local function new_groups()
  local groups, parent, first_with = {}, {}, {}
  local function find(i)
    while parent[i] ~= i do
      parent[i] = parent[parent[i]]
      i = parent[i]
    end
    return i
  end
  groups.find = find
  function groups.add(i) parent[i] = i end
  function groups.tie(i, key)
    local other = first_with[key]
    if not other then first_with[key] = i return end
    local a, b = find(i), find(other)
    if a ~= b then parent[math.max(a, b)] = math.min(a, b) end
  end
  return groups
end

-- Calls tie(key) for each function of a text that is too long to be equal by chance. Indentation does not count.
local function tie_functions(lines, ranges, tie)
  for _, range in ipairs(ranges) do
    if range.kind == "function" then
      local kept = {}
      for i = range.first, math.min(range.last, #lines) do
        local line = lines[i]:match("^%s*(.-)%s*$")
        if line ~= "" then kept[#kept + 1] = line end
      end
      local text = table.concat(kept, "\n")
      if #kept >= SHARED_FUNCTION_LINES and #text >= SHARED_FUNCTION_BYTES then
        tie("function " .. text_hash.key(text))
      end
    end
  end
end

-- Reads all items once, leaves out what is unusable or a duplicate, and sets item.split. In the order of their first item, each
-- group goes to the split that is furthest below its share so far, so that small sets have all three splits as well. Shares are
-- counted in what rows come from: lines, or, for planted bugs, the functions that will get one.
function splits.assign(source, items, options, skip)
  local groups, kept, seen = new_groups(), {}, {}
  source.each(items, function(item, before, after)
    local key = text_hash.key(before .. "\0" .. after)
    if seen[key] then return skip("duplicate of another file", item.name) end
    if before == after and source.kind ~= "mutate" then return skip("no difference", item.name) end
    seen[key] = true
    kept[#kept + 1] = item
    local i = #kept
    groups.add(i)
    item.key = key
    groups.tie(i, "text " .. text_hash.key(before))
    if item.group then groups.tie(i, "group " .. item.group) end
    local lines = diff.split(before)
    local ranges = functions.find(scanner.scan(before, item.language))
    tie_functions(lines, ranges, function(tied) groups.tie(i, tied) end)
    item.weight = source.kind == "mutate" and math.min(options.bugs_per_file, 1 + #ranges) or #lines
  end)

  local sizes, split_of, have, total = {}, {}, { train = 0, validation = 0, test = 0 }, 0
  for i, item in ipairs(kept) do
    local root = groups.find(i)
    sizes[root] = (sizes[root] or 0) + item.weight
  end
  for i, item in ipairs(kept) do
    local root = groups.find(i)
    if not split_of[root] then
      total = total + sizes[root]
      local best, lack
      for _, split in ipairs(splits.NAMES) do
        local missing = SHARES[split] * total - have[split]
        if not lack or missing > lack then best, lack = split, missing end
      end
      split_of[root] = best
      have[best] = have[best] + sizes[root]
    end
    item.split = split_of[root]
  end
  return kept
end

return splits
