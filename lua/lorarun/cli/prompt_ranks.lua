-- prompt_ranks.lua: one prompt for many ranks. What is typed on rank 0 goes to the others through the job's store, where they wait
-- for it without a time limit. After every line all ranks meet, so that none runs ahead of the others.
--   ranks.tell(text)       on rank 0: send the next line to the others; nil: there are no more
--   ranks.hear()           on the others: that line, or nil at the end
--   ranks.settle(message)  on all: this rank has run the line; message: what went wrong here, or nil. -> { [rank] = message } of
--                          the ranks where something went wrong
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local comm = require "lorarun.dist.comm"

local ranks = {}

local FOREVER = 1e9 -- seconds
local LINE, END = "+", "."

local told = 0 -- lines so far; every rank counts them
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

-- The meeting may fail. A rank whose line failed comes here while others still wait for it in one of the line's collectives: all of
-- them get an error, and then come here too. Or Ctrl-C has ended a collective, and the connections with it. Each rank fails as
-- often as the others, so that they meet in the end. A rank that has died is the launcher's business.
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
