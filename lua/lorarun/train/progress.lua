-- progress.lua: how far a loop is, on one line.
--     1%|▍         | 100/79686 [02:10<28:49:12, 4.59it/s] loss 0.123 lr 3.0e-04 1234 tok/s
--
--   local bar = progress.new { total = 79686, description = "training" }
--   bar:update(step, { { "loss", "0.123" }, { "tok/s", "1234" } })   fields in order, each a name and a text; a rate shows as
--                                                                   "1234 tok/s"
--   bar:print "text"                                                 a line above the bar
--   bar:close()
--
-- On a terminal the line is redrawn in place, at most ten times a second, and always fits the width: fields that do not fit are
-- left out from the end. Elsewhere (a log file, a pipe) it prints whole lines without control characters, now and then.
-- Options of new:
--   total          nil where unknown                 initial        the step at which a resumed run begins
--   description    text before the bar               unit           what is counted, in the plural: "texts" gives 812 texts/s
--   transient      nothing stays when it is closed   stream         a file; else standard output, or standard error where only
--                                                                   that is a terminal
--   every_seconds, every_steps                       lines in a log: at most one in this many seconds (10), or in this many steps
--   width          columns; the terminal's unless given             clock          a function that returns seconds
local C = require "lorarun.base.c"
local kinds = require "lorarun.base.options"
local say = require "lorarun.base.say"

local progress = {}
local Bar = {}
Bar.__index = Bar

local REDRAW_SECONDS = 0.1
local MEMORY_SECONDS = 30 -- the rate shown is that of about the last half minute
local NARROWEST_BAR, WIDEST_BAR = 10, 40
local EIGHTHS = { "▏", "▎", "▍", "▌", "▋", "▊", "▉" }
local ERASE_LINE = "\r\27[K"
local DESCRIPTORS = { [io.stdout] = 1, [io.stderr] = 2 }

-- Block characters, unless the locale says that it has none. Where no locale is set, they are assumed to be there.
local function has_blocks()
  for _, name in ipairs { "LC_ALL", "LC_CTYPE", "LANG" } do
    local value = os.getenv(name)
    if value and value ~= "" then
      return value == "C" or value == "POSIX" or value:lower():find "utf%-?8" ~= nil
    end
  end
  return true
end

local function terminal_width(stream)
  local fd = DESCRIPTORS[stream]
  if not fd or os.getenv "TERM" == "dumb" then return 0 end
  return C.lr_terminal_width(fd)
end

local function time_text(seconds)
  if seconds ~= seconds or seconds >= 1e7 then return "?" end
  seconds = math.floor(seconds + 0.5)
  local hours, minutes = math.floor(seconds / 3600), math.floor(seconds / 60) % 60
  if hours > 0 then return ("%d:%02d:%02d"):format(hours, minutes, seconds % 60) end
  return ("%02d:%02d"):format(minutes, seconds % 60)
end

local function rate_text(rate, unit)
  if unit then return ("%s %s/s"):format(rate and (rate < 100 and "%.3g" or "%.0f"):format(rate) or "?", unit) end
  if not rate then return "?it/s" end
  if rate >= 1 then return ("%.2fit/s"):format(rate) end
  return ("%.2fs/it"):format(1 / rate)
end

-- Columns a text takes: its code points.
local function columns(text)
  local _, n = text:gsub("[^\128-\191]", "")
  return n
end

-- The first n columns of text.
local function cut(text, n)
  local seen = 0
  for i = 1, #text do
    local byte = text:byte(i)
    if byte < 128 or byte > 191 then
      seen = seen + 1
      if seen > n then return text:sub(1, i - 1) end
    end
  end
  return text
end

local function blocks(fraction, width, fine)
  if not fine then
    local full = math.floor(fraction * width)
    return ("#"):rep(full) .. (" "):rep(width - full)
  end
  local eighths = math.floor(fraction * width * 8)
  local full, rest = math.floor(eighths / 8), eighths % 8
  local text = ("█"):rep(full) .. (EIGHTHS[rest] or "")
  return text .. (" "):rep(width - full - (rest > 0 and 1 or 0))
end

local function field_text(field)
  local name, text = field[1], field[2]
  return name:find("/", 1, true) and text .. " " .. name or name .. " " .. text
end

local OPTIONS = { total = kinds.from(0), description = kinds.text, unit = kinds.text, transient = kinds.boolean,
  stream = kinds.any, clock = kinds.func, initial = kinds.from(0), every_seconds = kinds.from(0), every_steps = kinds.whole(1),
  width = kinds.whole(0) }

function progress.new(options)
  options = kinds.check("progress.new", options, OPTIONS)
  local stream = options.stream
  if not stream then stream = terminal_width(io.stdout) == 0 and terminal_width(io.stderr) > 0 and io.stderr or io.stdout end
  local clock = options.clock or C.lr_time
  local initial = options.initial or 0
  local now = clock()
  return setmetatable({
    total = options.total, description = options.description or "", unit = options.unit, transient = options.transient,
    stream = stream,
    text_stream = options.stream or io.stdout, every_seconds = options.every_seconds or 10, every_steps = options.every_steps,
    fixed_width = options.width, clock = clock, fine = has_blocks(),
    step = initial, fields = {}, started = now, updated = now, -- the last update
    recent_steps = 0, recent_seconds = 0,                      -- decaying sums: the rate is their quotient
    shown_step = nil, shown_time = options.transient and now or -math.huge, -- the last redraw, or line of the log
    in_place = (options.width or terminal_width(stream)) > 0,
  }, Bar)
end

-- done/total, elapsed and remaining time, rate
function Bar:counts()
  local rate = self.recent_steps > 0 and self.recent_seconds > 0.01 and self.recent_steps / self.recent_seconds or nil
  local elapsed = time_text(self.updated - self.started)
  if not self.total then return ("%d [%s, %s]"):format(self.step, elapsed, rate_text(rate, self.unit)) end
  local left = rate and time_text(math.max(0, self.total - self.step) / rate) or "?"
  return ("%d/%d [%s<%s, %s]"):format(self.step, self.total, elapsed, left, rate_text(rate, self.unit))
end

function Bar:fraction()
  if not self.total then return nil end
  return self.total > 0 and math.max(0, math.min(1, self.step / self.total)) or 1
end

function Bar:line(width)
  local description = self.description ~= "" and self.description .. ": " or ""
  local fraction, counts = self:fraction(), self:counts()
  local percent = fraction and ("%3d%%"):format(math.floor(fraction * 100)) or ""
  local room = width - columns(description) - #percent - #counts - (fraction and 3 or 0) -- two bars and a blank
  local reserved = fraction and NARROWEST_BAR or 0
  local fields = ""
  for _, field in ipairs(self.fields) do
    local text = " " .. field_text(field)
    if columns(fields) + columns(text) > room - reserved then break end
    fields = fields .. text
  end
  room = math.min(room - columns(fields), WIDEST_BAR)
  local bar = ""
  if fraction then bar = room >= 3 and ("|%s| "):format(blocks(fraction, room, self.fine)) or " " end
  return cut(description .. percent .. bar .. counts .. fields, width)
end

function Bar:draw()
  if self.in_place then
    local width = math.max(self.fixed_width or terminal_width(self.stream), 2) -- asked each time: windows are resized
    self.stream:write(ERASE_LINE, self:line(width - 1)) -- the last column stays free: some terminals wrap on it
    self.drawn = true
  else
    local parts, fraction = {}, self:fraction()
    if self.description ~= "" then parts[1] = self.description .. ":" end
    if fraction then parts[#parts + 1] = ("%d%%"):format(math.floor(fraction * 100)) end
    parts[#parts + 1] = self:counts()
    for _, field in ipairs(self.fields) do parts[#parts + 1] = field_text(field) end
    self.stream:write(table.concat(parts, " "), "\n")
  end
  self.stream:flush()
  self.shown_step, self.shown_time = self.step, self.updated
end

function Bar:due()
  local waited = self.updated - self.shown_time
  if self.in_place then return waited >= REDRAW_SECONDS end
  if self.every_steps then return not self.shown_step or self.step - self.shown_step >= self.every_steps end
  return waited >= self.every_seconds
end

-- step: how many are done. fields and total replace the former ones where they are given.
function Bar:update(step, fields, total)
  local now = self.clock()
  local seconds = now - self.updated
  local kept = math.exp(-seconds / MEMORY_SECONDS)
  self.recent_steps = self.recent_steps * kept + math.max(0, step - self.step)
  self.recent_seconds = self.recent_seconds * kept + seconds
  self.updated, self.step = now, step
  self.fields, self.total = fields or self.fields, total or self.total
  if self:due() then self:draw() end
end

-- The time since the last update does not count for the rate: it was spent on something else, such as an evaluation.
function Bar:skip_time() self.updated = self.clock() end

-- A line above the bar. It goes to standard output even where the bar is on standard error.
function Bar:print(text)
  if self.drawn then
    self.stream:write(ERASE_LINE)
    self.stream:flush()
  end
  self.text_stream:write(say.visible(text), "\n")
  self.text_stream:flush()
  if self.drawn then self:draw() end
end

-- The last state stays on the screen or in the log, unless the bar is transient.
function Bar:close()
  if self.closed then return end
  self.closed = true
  if self.transient then
    if self.drawn then self.stream:write(ERASE_LINE) end
  elseif self.in_place then
    self:draw()
    self.stream:write "\n"
  elseif self.shown_step ~= self.step then
    self:draw()
  end
  self.stream:flush()
  self.drawn = false
end

require("lorarun.base.guard").methods(Bar, "bar")

return progress
