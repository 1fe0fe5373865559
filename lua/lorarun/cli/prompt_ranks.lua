-- prompt_ranks.lua: one prompt for many ranks. What is typed on rank 0 goes to the others through the job's store, where they may
-- wait for it as long as somebody thinks; after every line all ranks meet, so that none runs ahead of another.
--   ranks.tell(text)       on rank 0: the next line for the others; nil: there will be none
--   ranks.hear()           elsewhere: that line, or nil at the end
--   ranks.settle(message)  on all: done with the line; message: what went wrong here, or nil. -> { [rank] = message } of those
--                          where something did
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local comm = require "lorarun.dist.comm"

local ranks = {}

local FOREVER = 1e9 -- seconds
local LINE, END = "+", "."

local told = 0 -- lines so far; all ranks count alike
local function next_key()
  told = told + 1
  return ("prompt/%d"):format(told)
end

function ranks.tell(text)
  local message = text and LINE .. text or END
  check(C.lr_store_set(comm.store(), next_key(), message, #message))
end

function ranks.hear()
  local value, size = ffi.new "char *[1]", ffi.new "int64_t[1]"
  local key = next_key()
  local status
  repeat status = C.lr_store_get(comm.store(), key, FOREVER, value, size) until status ~= C.LR_EINTERRUPTED
  check(status)
  local message = ffi.string(value[0], size[0])
  C.lr_free(value[0])
  return message:sub(1, 1) == LINE and message:sub(2) or nil
end

-- The meeting may fail: a rank that left the line early meets others that still wait for it in a collective (all of them get an
-- error, and come here), or Ctrl-C has ended a collective and with it the connections. Each rank fails as often as the others, so
-- that they meet in the end; a rank that is gone for good is the launcher's business.
function ranks.settle(message)
  while true do
    local ok, messages = pcall(comm.all_gather_bytes, message or "")
    if ok then
      local failed = {}
      for i, text in ipairs(messages) do
        if text ~= "" then failed[i - 1] = text end
      end
      return failed
    end
    if not comm.connected() then comm.rejoin() end
  end
end

return ranks
