-- sampler.lua: chooses the rows of each batch. A sampler is a pure function of (seed, draw): draw number d of the whole run,
-- counted from 0, is the same row on every rank and in any order of calls. So resuming needs only a step number, and every rank
-- knows the rows of all others.
local ffi = require "ffi"
local bit = require "bit"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"

local sampler = {}
local PURPOSE_WEIGHTED, PURPOSE_SHUFFLE = 0x53570000, 0x53530000
local word = ffi.new "uint32_t[4]"

--- weighted(labels, rows, seed): draws with replacement, each class equally likely: the weight of a row of class c is
--- rows / (classes * count_c). labels: C array of doubles. Also returns { { value, count, weight } ... }.
function sampler.weighted(labels, rows, seed)
  local counts, values = {}, {}
  for i = 0, rows - 1 do
    local v = labels[i]
    if not counts[v] then
      counts[v] = 0
      values[#values + 1] = v
      if #values > 100 then
        check.fail "weighted sampling needs classes; the scores have more than 100 distinct values: say sampling = \"shuffled\""
      end
    end
    counts[v] = counts[v] + 1
  end
  table.sort(values)
  local lists, fill, classes = {}, {}, {}
  for k, v in ipairs(values) do
    lists[v], fill[v] = ffi.new("int64_t[?]", counts[v]), 0
    classes[k] = { value = v, count = counts[v], weight = rows / (#values * counts[v]) }
  end
  for i = 0, rows - 1 do
    local v = labels[i]
    lists[v][fill[v]] = i
    fill[v] = fill[v] + 1
  end
  return function(draw)
    C.lr_random(seed, PURPOSE_WEIGHTED, 0, draw, word)
    local class = values[math.floor(word[0] * 2 ^ -32 * #values) + 1]
    local u = (word[1] * 2 ^ 21 + bit.rshift(word[2], 11)) * 2 ^ -53 -- 53 random bits: every row of 2^53 can be drawn
    return tonumber(lists[class][math.floor(u * counts[class])])
  end, classes
end

--- shuffled(rows, seed): epoch after epoch, each a permutation of its own: a four-round Feistel network over the smallest even
--- number of bits that holds `rows`, walked until it falls below it (Black and Rogaway, "Ciphers with arbitrary finite domains",
--- 2002). No array of indices is ever made.
function sampler.shuffled(rows, seed)
  local half = 1
  while 4 ^ half < rows do half = half + 1 end
  local size = 2 ^ half
  return function(draw)
    local epoch = math.floor(draw / rows)
    local x = draw - epoch * rows
    repeat
      local left, right = math.floor(x / size), x % size
      for round = 0, 3 do
        C.lr_random(seed, PURPOSE_SHUFFLE + round, epoch, right, word)
        left, right = right, bit.bxor(left, tonumber(word[0]) % size) % size
      end
      x = left * size + right
    until x < rows
    return x
  end
end

--- sequential(rows): 0, 1, 2, ... and again.
function sampler.sequential(rows)
  return function(draw) return draw % rows end
end

--- among(list, inner): draws from some rows only. list: a C array of n row numbers; inner: a sampler over n.
function sampler.among(list, inner)
  return function(draw) return tonumber(list[inner(draw)]) end
end

return sampler
