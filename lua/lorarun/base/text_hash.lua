-- text_hash.lua: a fast 64-bit hash of a string, for grouping equal texts and for keying random draws. It is not for secrets.
--
--   local low, high = text_hash(text)         -- two signed 32-bit numbers
--   text_hash.key(text)                       -- 52 bits of the hash as one number: a small table key for a long text
--
-- Method: Bob Jenkins' lookup3 (2006, public domain), with three 32-bit lanes and twelve bytes a round. It needs only additions,
-- xor and rotations, which LuaJIT compiles to single instructions; a multiplicative hash would need boxed 64-bit numbers. Equal
-- texts have equal hashes on every little-endian machine.
local ffi = require "ffi"
local bit = require "bit"
local tobit, bxor, rol = bit.tobit, bit.bxor, bit.rol

local text_hash = {}
local words_type = ffi.typeof("const int32_t *")

local function hash(text)
  local size = #text
  local a = tobit(0xdeadbeef + size)
  local b, c = a, a
  -- Zeroes fill the last round; the length is in the seed, so "x" and "x\0" differ.
  local padded = size % 12 == 0 and text or text .. ("\0"):rep(12 - size % 12)
  local words = ffi.cast(words_type, padded)
  for i = 0, #padded / 4 - 1, 3 do
    a, b, c = tobit(a + words[i]), tobit(b + words[i + 1]), tobit(c + words[i + 2])
    a = bxor(tobit(a - c), rol(c, 4)) c = tobit(c + b)
    b = bxor(tobit(b - a), rol(a, 6)) a = tobit(a + c)
    c = bxor(tobit(c - b), rol(b, 8)) b = tobit(b + a)
    a = bxor(tobit(a - c), rol(c, 16)) c = tobit(c + b)
    b = bxor(tobit(b - a), rol(a, 19)) a = tobit(a + c)
    c = bxor(tobit(c - b), rol(b, 4)) b = tobit(b + a)
  end
  c = tobit(bxor(c, b) - rol(b, 14))
  a = tobit(bxor(a, c) - rol(c, 11))
  b = tobit(bxor(b, a) - rol(a, 25))
  c = tobit(bxor(c, b) - rol(b, 16))
  a = tobit(bxor(a, c) - rol(c, 4))
  b = tobit(bxor(b, a) - rol(a, 14))
  c = tobit(bxor(c, b) - rol(b, 24))
  return c, b
end

function text_hash.key(text)
  local low, high = hash(text)
  return low % 2 ^ 32 + high % 2 ^ 20 * 2 ^ 32
end

return setmetatable(text_hash, { __call = function(_, text) return hash(text) end })
