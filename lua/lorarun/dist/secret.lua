-- secret.lua: the text that the machines of a job share, by which ranks prove that they belong to it.
--
--   secret.take()                                -- removes LORARUN_SECRET from the environment, before any recipe runs
--   secret.given()                               -- the value of LORARUN_SECRET, or nil
--   local text, origin = secret.read(path, where, warnings)   -- path: of --secret-file, or nil for the value of LORARUN_SECRET
--
-- Recipes, and the programs that they start, never see LORARUN_SECRET.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"

local secret = {}
local SHORTEST = 16 -- bytes; anyone who records how machines join can try guesses for as long as they like
local ADVICE = "make one with: head -c 32 /dev/urandom | base64"

local from_environment

function secret.take()
  local text = ffi.new "char *[1]"
  check(C.lr_secret_take("LORARUN_SECRET", text))
  if text[0] == nil then return end
  from_environment = ffi.string(text[0])
  C.lr_free(text[0])
end

function secret.given() return from_environment ~= "" and from_environment or nil end

local function checked(text, origin)
  if text:find("\0", 1, true) then
    check.fail("the secret (%s) has a NUL byte, where it would end: it must be text; %s", origin, ADVICE)
  elseif #text < SHORTEST then
    check.fail("the secret (%s) has %d bytes, and could be guessed; at least %d are needed: %s", origin, #text, SHORTEST, ADVICE)
  end
  return text
end

function secret.read(path, where, warnings)
  if not path or path == "" then
    local text = secret.given()
    if text then return checked(text, "LORARUN_SECRET"), "LORARUN_SECRET" end
    return
  end
  local found, contents = pcall(fs.read, path)
  if not found then check.fail("the secret cannot be read: %s (%s)", tostring(contents), where) end
  local stat = fs.stat(path)
  if stat and stat.mode % 64 ~= 0 then
    warnings[#warnings + 1] = ("the secret in %s is open to other users of this machine (its mode is %03o); close it: chmod 600 %s")
      :format(path, stat.mode, path)
  end
  return checked((contents:gsub("%s+$", "")), path), path
end

return secret
