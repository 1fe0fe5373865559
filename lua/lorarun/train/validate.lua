-- validate.lua: the evaluations of a run: on validation now and then, which says which adapter is the best so far, and at the end
-- on everything.
--
--   local scores = validate.new(o, data)
--   local ended_by = scores:validate(step)
--   local results, ended_by = scores:final(last_step, checkpoints)
--
-- scores.baseline = { spearman } before the first step, scores.best = { step, spearman } are what a checkpoint keeps. An evaluation
-- may take much longer than a step, so a signal ends it: ended_by is its number then, on every rank.
local C = require "lorarun.base.c"
local comm = require "lorarun.dist.comm"
local data_parallel = require "lorarun.dist.data_parallel"
local evaluate = require "lorarun.train.evaluate"
local progress = require "lorarun.train.progress"

local validate = {}
local Scores = {}
Scores.__index = Scores

local THRESHOLDS = 21 -- of the sweep in evaluation.json

--- new(o, data): the run's options (train_options.lua) and data (setup.lua). scores.journal, which logs each evaluation, is set
--- before the first.
function validate.new(o, data)
  return setmetatable({ options = o, data = data }, Scores)
end

-- All figures of a split; nil and the signal where one ended it.
local function evaluate_split(self, step, split)
  local o, set = self.options, self.data[split]
  C.lr_rank_report(step, self.data.total_steps, "evaluating " .. split)
  local bar = comm.rank == 0
    and progress.new { description = "evaluating " .. split, total = 1, unit = "texts", transient = true } or nil
  local result, ended_by = evaluate.run(o.model, set, { columns = { o.columns[1], o.columns[2] }, score = o.score,
    group = o.group and set:has(o.group) and o.group or nil, prefixes = o.prefixes, threads = o.loader_threads, sweep = THRESHOLDS,
    ended = function() return data_parallel.ending(C.lr_signal_pending()) end,
    on_progress = bar and function(done, total) bar:update(done, nil, total) end or nil })
  if bar then bar:close() end
  return result, ended_by
end

--- why_undefined(result): why there is no Spearman correlation.
function validate.why_undefined(result)
  return result.undefined and result.undefined.spearman or "the figure is not a number"
end

--- validate(step): evaluate on validation and note whether it is the best so far. Before that: do all ranks have the same adapters?
--- Returns the signal that ended it, or nil.
function Scores:validate(step)
  data_parallel.agree(("after step %d"):format(step), {
    ["checksum of the adapters"] = data_parallel.checksum(self.options.model.lora.parameters.value) })
  if not self.data.validation then return nil end
  local r, ended_by = evaluate_split(self, step, "validation")
  if ended_by then return ended_by end
  self.journal:evaluation("validation", step, r)
  if step == 0 then
    self.baseline = { spearman = r.spearman }
    return nil
  end
  self.newest = { step = step, result = r }
  local value, best = r.spearman, self.best
  if not value or value ~= value then
    self.journal:print(("warning: the Spearman correlation, which says which adapter is best, is undefined (%s): %s"):format(
      validate.why_undefined(r), best and ("that of step %d stays the best"):format(best.step) or "the newest is kept"))
  elseif not best or value > best.spearman then
    self.best = { step = step, spearman = value }
    self.best_result = r
  end
end

--- final(last, checkpoints): put the best adapter into the model and evaluate it on everything. Returns { validation, test }, each
--- nil where there are no such data; or nil and the signal that ended it.
function Scores:final(last, checkpoints)
  self.best = self.best or { step = last } -- the newest, where no figure says which is best
  if self.best.step ~= last then checkpoints:load_best() end
  local results, ended_by = {}, nil
  if self.data.validation then
    results.validation = self.best_result or self.newest and self.newest.step == self.best.step and self.newest.result
    if not results.validation then results.validation, ended_by = evaluate_split(self, last, "validation") end
    if ended_by then return nil, ended_by end
  end
  if self.data.test then
    results.test, ended_by = evaluate_split(self, last, "test")
    if ended_by then return nil, ended_by end
    self.journal:final_evaluation("test", last, results.test)
  end
  return results
end

return validate
