-- schedule.lua: learning-rate schedules: functions of (step, total), step counted from 0, that return a factor for the learning
-- rate. The formulas are those of transformers' get_*_schedule_with_warmup. A recipe may pass any such function.
local check = require "lorarun.base.check"
local options = require "lorarun.base.options"
local suggest = require "lorarun.base.suggest"

local schedule = {}

local made = setmetatable({}, { __mode = "k" }) -- function -> { name, warmup }, of the functions that are made here

local function warmup_then(name, warmup, after)
  warmup = warmup or 0
  if type(warmup) ~= "number" or not (warmup >= 0 and warmup < math.huge) or warmup % 1 ~= 0 then
    check.fail("warmup is %s, expected a whole number of steps, at least 0", options.shown(warmup))
  end
  local function factor(step, total)
    if step < warmup then return step / math.max(1, warmup) end
    return after(step, total)
  end
  made[factor] = { name = name, warmup = warmup }
  return factor
end

--- describe(fn): { name, warmup } of a schedule that was made here, as by_name calls it; nil for any other function.
function schedule.describe(fn) return made[fn] end

--- 0 to 1 over `warmup` steps (0 where none are given, here and below), then linearly to 0 at `total`.
function schedule.warmup_linear(warmup)
  return warmup_then("linear", warmup, function(step, total)
    return math.max(0, (total - step) / math.max(1, total - warmup))
  end)
end

--- 0 to 1 over `warmup` steps, then half a cosine to 0 at `total`.
function schedule.warmup_cosine(warmup)
  return warmup_then("cosine", warmup, function(step, total)
    local progress = (step - warmup) / math.max(1, total - warmup)
    return math.max(0, 0.5 * (1 + math.cos(math.pi * progress)))
  end)
end

--- 0 to 1 over `warmup` steps, then 1.
function schedule.constant(warmup)
  return warmup_then("constant", warmup, function() return 1 end)
end

local NAMES = { linear = schedule.warmup_linear, cosine = schedule.warmup_cosine, constant = schedule.constant }

--- By name, for command lines: "linear", "cosine", "constant".
function schedule.by_name(name, warmup)
  local make = NAMES[name] or check.fail("there is no schedule %s; there are linear, cosine and constant%s", options.shown(name),
    type(name) == "string" and suggest.did_you_mean(name, { "linear", "cosine", "constant" }) or "")
  return make(warmup)
end

return schedule
