-- divergence.lua: can a run go on from what a step came to? A loss that is no number ends it, and so do too many steps on end whose
-- gradients are not finite: those change nothing (optim.lua skips them), and an fp16 run halves the scale of its loss after each.
local check = require "lorarun.base.check"

local divergence = {}
local Watch = {}
Watch.__index = Watch

local MOST_OVERFLOWS = 40 -- on end: the scale of an fp16 run's loss has then been halved from 2^16 to 2^-24

--- new(o, skipped): watch.skipped counts the steps that changed nothing; `skipped` of them came before.
function divergence.new(o, skipped)
  return setmetatable({ precision = o.model.precision, loss = o.loss.name and (" '%s'"):format(o.loss.name) or "", overflows = 0,
    skipped = skipped }, Watch)
end

--- check(step, loss, skipped): an error where the run cannot go on.
function Watch:check(step, loss, skipped)
  if loss - loss ~= 0 then -- nan or inf
    check.fail("the loss%s is %s at step %d; %s", self.loss, loss ~= loss and "not a number" or tostring(loss), step,
      self.precision == "fp16" and "numbers of fp16 end at 65504, which this model may exceed: use --precision bf16"
      or step == 1 and "nothing was learned yet, so the loss itself or the model's weights are at fault"
      or "lower --learning-rate, or resume from a checkpoint before it")
  end
  self.overflows = skipped and self.overflows + 1 or 0
  self.skipped = self.skipped + (skipped and 1 or 0)
  if self.overflows == MOST_OVERFLOWS then
    check.fail("the gradients of %d steps on end, the last of them step %d, were not finite; %s", MOST_OVERFLOWS, step,
      self.precision == "fp16" and "no scale of the loss helps: use --precision bf16"
      or "lower --learning-rate, or resume from a checkpoint before them")
  end
end

return divergence
