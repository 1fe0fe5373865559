-- sorted.lua: tables in the order of their keys. pairs() gives an order that differs from run to run and from rank to rank, so what
-- is chosen, written or told by it would as well: for k, v in sorted(t) do. tests/run.lua turns the order of pairs() round in half
-- of its runs, which a test notices where its result depends on it.
--   sorted.keys(t)    the keys, numbers first and ascending, then others as texts
--   sorted(t)         an iterator over keys and values; the table may be changed meanwhile
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
