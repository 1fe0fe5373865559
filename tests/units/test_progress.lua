-- test_progress.lua: the progress bar: the text of the line, that it fits, and how often it is written.
local progress = require "lorarun.train.progress"

-- A stream that keeps what is written, and a clock that the test sets.
local function recorder()
  local parts = {}
  return {
    write = function(_, ...) for _, text in ipairs { ... } do parts[#parts + 1] = text end end,
    flush = function() end,
    take = function()
      local text = table.concat(parts)
      parts = {}
      return text
    end,
  }
end
local function hand_clock()
  local clock = { now = 1000 }
  return clock, function() return clock.now end
end
local function columns(text)
  local _, n = text:gsub("[^\128-\191]", "")
  return n
end

local function new(options)
  local clock, read = hand_clock()
  local stream = recorder()
  options.stream, options.clock = stream, read
  return progress.new(options), stream, clock
end

test("the line: percent, bar, counts, times, rate, fields in order", function()
  local bar, stream, clock = new { total = 79686, width = 140 }
  clock.now = clock.now + 20
  bar:update(92, { { "loss", "0.123" }, { "lr", "3.0e-04" }, { "tok/s", "1234" } })
  local text = stream:take()
  check.equal(text:sub(1, 4), "\r\27[K")
  check.that(text:find("  0%|", 1, true), text)
  local tail = "| 92/79686 [00:20<4:48:23, 4.60it/s] loss 0.123 lr 3.0e-04 1234 tok/s"
  check.equal(text:sub(-#tail), tail)
end)

test("a bar that counts something says what", function()
  local bar, stream, clock = new { total = 9000, unit = "texts", width = 100 }
  bar:update(0)
  check.that(stream:take():find("[00:00<?, ? texts/s]", 1, true))
  clock.now = clock.now + 2
  bar:update(1624)
  check.that(stream:take():find("1624/9000 [00:02<00:09, 812 texts/s]", 1, true))
  bar, stream, clock = new { total = 9, unit = "texts", width = 100 }
  clock.now = clock.now + 8
  bar:update(2)
  check.that(stream:take():find(", 0.25 texts/s]", 1, true))
end)

test("a full bar, a half one, and the steps between two columns", function()
  local bar, stream, clock = new { total = 1000, width = 60 }
  local widths = {}
  for step = 0, 1000, 125 do
    clock.now = clock.now + 1
    bar:update(step)
    local cells = stream:take():match "|(.*)|"
    widths[step] = columns(cells)
    local _, full = cells:gsub("█", "")
    local _, hashes = cells:gsub("#", "")
    check.equal(full + hashes, math.floor(step / 1000 * columns(cells)), "full cells at step " .. step)
  end
  for step, width in pairs(widths) do check.that(width >= 10, ("%d cells at step %d"):format(width, step)) end
end)

test("the line never exceeds the width; fields are dropped from the end", function()
  for width = 2, 160 do
    local bar, stream, clock = new { total = 500, width = width, description = "prüfen" }
    clock.now = clock.now + 1
    bar:update(250, { { "loss", "0.5" }, { "grad_norm", "0.8" }, { "pairs/s", "12" } })
    local text = stream:take():gsub("^\r\27%[K", "")
    check.that(columns(text) < width, ("%d columns in a width of %d: %s"):format(columns(text), width, text))
    check.that(not text:find "12 pairs/s" or text:find "grad_norm 0.8", text)
    check.that(not text:find "grad_norm" or text:find "loss 0.5", text)
    if width >= 100 then check.that(text:find "12 pairs/s$", text) end
    if width >= 60 then check.that(text:find "prüfen:  50%%|.*| 250/500 %[", text) end
  end
end)

test("on a terminal it is redrawn at most ten times a second", function()
  local bar, stream, clock = new { total = 10000, width = 80 }
  local drawn = 0
  for step = 1, 1000 do
    clock.now = clock.now + 0.01
    bar:update(step)
    if stream:take() ~= "" then drawn = drawn + 1 end
  end
  check.that(drawn >= 90 and drawn <= 101, drawn .. " redraws in ten seconds")
  bar:close()
  check.that(stream:take():find "1000/10000 .*\n$", "the last state stays")
  bar:close()
  check.equal(stream:take(), "", "closing twice")
end)

test("a line above the bar, and the bar again below it", function()
  local bar, stream, clock = new { total = 10, width = 80 }
  bar:print "before the bar"
  check.equal(stream:take(), "before the bar\n")
  clock.now = clock.now + 1
  bar:update(1)
  local first = stream:take()
  bar:print "evaluation done"
  check.equal(stream:take(), "\r\27[Kevaluation done\n" .. first)
  bar:close()
  stream:take()
  bar:print "after"
  check.equal(stream:take(), "after\n")
end)

test("a transient bar leaves nothing on the terminal", function()
  local bar, stream, clock = new { total = 10, width = 80, transient = true }
  clock.now = clock.now + 1
  bar:update(1)
  check.that(stream:take() ~= "")
  bar:close()
  check.equal(stream:take(), "\r\27[K")
  bar = new { total = 10, width = 80, transient = true }
  bar:close()
end)

test("in a log: whole lines without control characters, one every few seconds, and a last one", function()
  local bar, stream, clock = new { total = 1000, description = "training", every_seconds = 5 }
  local lines = {}
  for step = 1, 100 do
    clock.now = clock.now + 0.5
    bar:update(step, { { "loss", "0.5" }, { "tok/s", "9" } })
    local text = stream:take()
    if text ~= "" then lines[#lines + 1] = text end
  end
  check.equal(#lines, 10, "lines in 50 seconds")
  check.equal(lines[1], "training: 0% 1/1000 [00:01<08:20, 2.00it/s] loss 0.5 9 tok/s\n")
  for _, line in ipairs(lines) do check.that(line:find "^[^%c]+\n$", line) end
  bar:print "text"
  check.equal(stream:take(), "text\n")
  bar:close()
  check.that(stream:take():find "^training: 10%% 100/1000 .*\n$")
  bar:close()
  check.equal(stream:take(), "", "closing twice")
end)

test("in a log by steps; the last line is not written twice; a short transient bar writes nothing", function()
  local bar, stream = new { total = 30, every_steps = 10 }
  local lines = 0
  for step = 1, 21 do
    bar:update(step)
    if stream:take() ~= "" then lines = lines + 1 end
  end
  check.equal(lines, 3)
  bar:close()
  check.equal(stream:take(), "", "step 21 was written")
  bar, stream = new { total = 30, transient = true }
  bar:update(1)
  bar:close()
  check.equal(stream:take(), "")
end)

test("the rate follows what happens, and a resumed run starts where it was", function()
  local bar, stream, clock = new { total = 2000, initial = 1000 }
  for step = 1001, 1300 do -- 1 a second for five minutes
    clock.now = clock.now + 1
    bar:update(step)
  end
  for step = 1301, 1900 do -- then 4 a second for two and a half
    clock.now = clock.now + 0.25
    bar:update(step)
  end
  stream:take()
  bar:close()
  local rate = tonumber(stream:take():match "([%d.]+)it/s")
  check.near(rate, 4, 0.1, "rate")
end)

test("slow steps, an unknown total, a total that comes later", function()
  local bar, stream, clock = new { width = 60 }
  clock.now = clock.now + 8
  bar:update(2)
  check.equal(stream:take(), "\r\27[K2 [00:08, 4.00s/it]")
  clock.now = clock.now + 1
  bar:update(3, nil, 6)
  check.that(stream:take():find "^\r\27%[K 50%%|.*| 3/6 %[00:09<00:0%d, %d%.%d%ds/it%]$")
end)

test("nothing has been done yet: no rate and no remaining time", function()
  local bar, stream = new { total = 5 }
  bar:update(0)
  check.equal(stream:take(), "0% 0/5 [00:00<?, ?it/s]\n")
  bar, stream = new { total = 0 }
  bar:update(0)
  check.equal(stream:take(), "100% 0/0 [00:00<?, ?it/s]\n")
end)
