-- rank_output.lua: where the text goes that the ranks of this machine write.
--   local output = rank_output.new { first_rank = 0, ranks = 4, log_dir = "logs" or nil }
--   output:take(process, stream, text)   bytes that a rank wrote
--   output:ended(process)                nothing more comes from this rank
--   output:say(text)                     a line of the launcher's own
--   output:last_lines(process)           the last ten lines that the rank wrote
--   output:flush(seconds)                write what the terminal, or another reader, has not taken yet -> bytes still left
--   output:close(seconds)                the same until all is written, as long as some of it is taken within this time
--   output.broken                        why the launcher's output can no longer be written; nil while it can
-- Rank 0's output goes to the launcher's: to a terminal byte by byte, so that its progress bar redraws itself; elsewhere line by
-- line. Of the other ranks, standard error goes to the launcher's, each line after "[rank 2] ", and standard output goes nowhere. A
-- line that comes while rank 0's bar is on the terminal is put above it. With log_dir, rank_2.log gets all that rank 2 writes,
-- without the intermediate states of redrawn lines.
-- Only flush and close wait for the reader of the launcher's output (lr_outlet); nothing else here does.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local ffi = require "ffi"
local fs = require "lorarun.base.fs"
local say = require "lorarun.base.say"

local Output = {}
Output.__index = Output

local KEPT_LINES = 10
local LONGEST_LINE = 16384 -- a longer one is cut in pieces
local ERASE_LINE = "\r\27[K"

-- What is left on a line after its redraws.
local function final_state(line)
  return (line:gsub("\r$", ""):gsub("^.*\r", ""):gsub("^\27%[K", ""))
end

local function open_log(folder, rank)
  local path = fs.join(folder, ("rank_%d.log"):format(rank))
  local file, why = io.open(path, "w")
  if not file then check.fail("--log-dir: cannot write %s", why) end
  return { path = path, file = file }
end

--- Log files are created here: an error where they cannot be written.
local function new(options)
  local o = setmetatable({ first_rank = options.first_rank, ranks = {}, standing = { "", "" },
    terminal = { C.lr_terminal_width(1) > 0, C.lr_terminal_width(2) > 0 } }, Output)
  if options.log_dir then fs.make(options.log_dir) end
  for i = 0, options.ranks - 1 do
    local rank = options.first_rank + i
    o.ranks[i] = { number = rank, unfinished = { "", "" }, lines = {}, count = 0,
      log = options.log_dir and open_log(options.log_dir, rank) or nil }
  end
  local outlet = ffi.new "lr_outlet *[1]"
  check.call(C.lr_outlet_new, outlet)
  o.outlet = ffi.gc(outlet[0], C.lr_outlet_free)
  return o
end

function Output:note(status)
  if status == C.LR_EIO then self.broken = self.broken or ffi.string(C.lr_last_error()) else check(status) end
end

function Output:put(stream, text)
  if text == "" then return end
  self:note(C.lr_outlet_write(self.outlet, stream, text, #text))
end

function Output:flush(seconds)
  local left = ffi.new "int64_t[1]"
  self:note(C.lr_outlet_flush(self.outlet, seconds, left))
  return tonumber(left[0])
end

-- A whole line on standard error. Text on the terminal's current line moves below it.
function Output:line(text)
  local bar = self.terminal[1] and self.standing[1] ~= "" and 1 or self.terminal[2] and self.standing[2] ~= "" and 2
  if not (bar and self.terminal[2]) then return self:put(2, text .. "\n") end
  self:put(2, ERASE_LINE .. text .. "\n")
  self:put(bar, self.standing[bar])
end

function Output:say(text) self:line("lorarun: " .. say.visible(text)) end

-- Bytes of rank 0. A terminal shows them at once; elsewhere they are written in whole lines, as those of the other ranks are.
function Output:pass_on(stream, text)
  local tail = self.standing[stream] .. text
  local rest = tail:match "[^\n]*$"
  if self.terminal[stream] then
    self:put(stream, text)
    self.standing[stream] = final_state(rest):sub(-LONGEST_LINE)
  elseif #rest > LONGEST_LINE then
    self:put(stream, tail)
    self.standing[stream] = ""
  else
    self:put(stream, tail:sub(1, #tail - #rest))
    self.standing[stream] = rest
  end
end

local function keep(output, rank, line)
  line = final_state(line)
  rank.count = rank.count + 1
  rank.lines[rank.count % KEPT_LINES] = line
  if rank.log then
    local written, why = rank.log.file:write(line, "\n")
    if written then written, why = rank.log.file:flush() end
    if not written then -- the ranks go on: training is worth more than its log
      local log = rank.log
      rank.log = nil
      log.file:close()
      output:say(("warning: the log of rank %d ends here: %s: %s"):format(rank.number, log.path, why))
    end
  end
  return line
end

-- A complete line of a rank.
function Output:complete(rank, stream, line)
  line = keep(self, rank, line)
  if rank.number ~= 0 and stream == 2 then self:line(("[rank %d] %s"):format(rank.number, line)) end
end

function Output:take(process, stream, text)
  local rank = self.ranks[process]
  if rank.number == 0 then self:pass_on(stream, text) end
  local rest = rank.unfinished[stream] .. text
  local start = 1
  while true do
    local stop = rest:find("\n", start, true)
    if not stop then break end
    self:complete(rank, stream, rest:sub(start, stop - 1))
    start = stop + 1
  end
  rest = rest:sub(start)
  if #rest > LONGEST_LINE then
    local state = final_state(rest)
    if #state > LONGEST_LINE then
      self:complete(rank, stream, state)
      state = ""
    end
    rest = state
  end
  rank.unfinished[stream] = rest
end

function Output:ended(process)
  local rank = self.ranks[process]
  for stream = 1, 2 do
    local rest = rank.unfinished[stream]
    rank.unfinished[stream] = ""
    if final_state(rest) ~= "" then self:complete(rank, stream, rest) end
    if rank.number == 0 and self.standing[stream] ~= "" then
      self:put(stream, self.terminal[stream] and "\n" or self.standing[stream])
      self.standing[stream] = ""
    end
  end
end

--- The last lines that a rank wrote, oldest first.
function Output:last_lines(process)
  local rank, lines = self.ranks[process], {}
  for i = math.max(1, rank.count - KEPT_LINES + 1), rank.count do lines[#lines + 1] = rank.lines[i % KEPT_LINES] end
  return lines
end

--- The path of a rank's log, or nil.
function Output:log_path(process)
  local log = self.ranks[process].log
  return log and log.path
end

function Output:close(seconds)
  local left, before = self:flush(seconds), math.huge
  while left > 0 and left < before do
    before = left
    left = self:flush(seconds)
  end
  C.lr_outlet_free(ffi.gc(self.outlet, nil))
  for i = 0, #self.ranks do
    local log = self.ranks[i].log
    if log then log.file:close() end
  end
end

return { new = new }
