-- random.lua: random draws that belong to a name, such as a file's path.
--
--   local rng = random.generator(seed, purpose, "lib/a.py")
--   rng(6)                          -- a whole number from 0 to 5
--   random.sample(list, 10, rng)     -- ten of its elements
--
-- A draw is a pure function of (seed, purpose, name, number of draws before it). So neither the order nor the number of files
-- changes what is drawn for one of them. Draws for different ends have different purposes.
local C = require "lorarun.base.c"
local ffi = require "ffi"
local text_hash = require "lorarun.base.text_hash"

local random = {}

function random.generator(seed, purpose, name)
  local low, high = text_hash(name)
  local position = ffi.cast("uint64_t", low % 2 ^ 32) + ffi.cast("uint64_t", high % 2 ^ 32) * 2ULL ^ 32
  local words, step = ffi.new("uint32_t[4]"), 0
  return function(n)
    C.lr_random(seed, purpose, step, position, words)
    step = step + 1
    return math.floor(words[0] / 2 ^ 32 * n)
  end
end

--- sample(list, count, rng): `count` of the list's elements, any subset equally likely. It reorders the list.
function random.sample(list, count, rng)
  count = math.min(count, #list)
  for i = 1, count do
    local k = i + rng(#list - i + 1)
    list[i], list[k] = list[k], list[i]
  end
  local out = {}
  for i = 1, count do out[i] = list[i] end
  return out
end

return random
