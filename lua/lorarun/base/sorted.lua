-- sorted.lua: tables in the order of their keys: for k, v in sorted(t) do. The order of pairs() differs from run to run and from
-- rank to rank, and so would anything chosen or written by it. tests/run.lua reverses pairs() in half of its runs; a test whose
-- result depends on that order then fails.
--   sorted.keys(t)    the keys: numbers first, ascending, then all others in the order of their texts
--   sorted(t)         an iterator over keys and values; the loop may change the table
local sorted = {}

local function before(a, b)
  if type(a) == "number" and type(b) == "number" then return a < b end
  if type(a) ~= type(b) and (type(a) == "number" or type(b) == "number") then return type(a) == "number" end
  return tostring(a) < tostring(b)
end

function sorted.keys(t)
  local keys, texts = {}, true
  for key in next, t do
    keys[#keys + 1] = key
    texts = texts and type(key) == "string"
  end
  table.sort(keys, not texts and before or nil) -- texts are compared in C
  return keys
end

return setmetatable(sorted, { __call = function(_, t)
  local keys, i = sorted.keys(t), 0
  return function()
    i = i + 1
    if keys[i] ~= nil then return keys[i], t[keys[i]] end
  end
end })
