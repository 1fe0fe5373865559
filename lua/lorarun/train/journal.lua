-- journal.lua: what a run tells while it goes: a line of log.jsonl and the progress line for each step, both for each evaluation.
--
--   local journal = journals.new { files = files, data = data, counts = step.counts, first = 0, device = "cpu" }
--   journal:step { step = 1, loss = ..., ... }     journal:evaluation("validation", step, result)     journal:print "text"
--   journal:pause()      what follows is no training: it counts for no rate, until the next step does
--   journal:close()
--
-- Every rank has one; only rank 0's has files and a progress line, the others' print what their GPUs do. Rates are those of the
-- last tens of seconds, so that they follow what happens.
local C = require "lorarun.base.c"
local comm = require "lorarun.dist.comm"
local data_parallel = require "lorarun.dist.data_parallel"
local gpu = require "lorarun.dist.gpu"
local progress = require "lorarun.train.progress"
local report = require "lorarun.train.report"

local journals = {}
local Journal = {}
Journal.__index = Journal

local WINDOW_SECONDS = 20 -- of rates
local WAITING, EXCHANGING = 0.02, 0.1 -- shares of the time that are worth a field of the progress line

--- new(given): given = { files (files.lua, or data_parallel.silent), data (setup.lua), counts = what the steps took so far, which
--- the step adds to (train/step.lua), first = the step after which the run goes on, device }. journal.seconds and .exchanged are
--- the time of training so far and the part of it that ranks exchanged gradients.
function journals.new(given)
  local data = given.data
  local self = setmetatable({ files = given.files, counts = given.counts, steps_per_epoch = data.steps_per_epoch,
    gpu = gpu.watch(given.device), started = C.lr_time(), seconds = 0, exchanged = 0,
    bar = comm.rank == 0 and progress.new { total = data.total_steps, initial = given.first, description = "" }
      or data_parallel.silent }, Journal)
  self:begin()
  return self
end

-- ---- rates ---------------------------------------------------------------------------------------------------------------------

--- begin(): training begins, or goes on after something else. A window of rates begins with it.
function Journal:begin()
  local counts = self.counts
  self.bar:skip_time()
  self.window = { time = C.lr_time(), exchanged = 0, pairs = counts.pairs, tokens = counts.tokens, wait = counts.wait }
end

--- pause(): what comes next is no training.
function Journal:pause()
  local window = self.window
  self.seconds, self.exchanged = self.seconds + C.lr_time() - window.time, self.exchanged + window.exchanged
end

-- pairs and tokens a second, shares of the time that went into waiting for data and into exchanging gradients, of the window.
local function rates(self)
  local window, counts = self.window, self.counts
  local seconds = C.lr_time() - window.time
  return { pairs = (counts.pairs - window.pairs) / seconds, tokens = (counts.tokens - window.tokens) / seconds,
    wait = (counts.wait - window.wait) / seconds, exchange = window.exchanged / seconds }
end

-- ---- steps and evaluations -----------------------------------------------------------------------------------------------------

--- step(done): tell of a step: { step, loss, lr, grad_norm, skipped, tokens, pairs, loss_scale, exchange = seconds }.
function Journal:step(done)
  self.window.exchanged = self.window.exchanged + done.exchange
  local rate = rates(self)
  local record = { kind = "step", step = done.step, epoch = done.step / self.steps_per_epoch, loss = done.loss,
    learning_rate = done.lr, grad_norm = done.skipped and "overflow" or done.grad_norm, tokens = done.tokens, pairs = done.pairs,
    seconds = C.lr_time() - self.started, tokens_per_second = rate.tokens, pairs_per_second = rate.pairs, loader_wait = rate.wait,
    exchange = comm.world_size > 1 and rate.exchange or nil, loss_scale = done.loss_scale }
  local fields = { { "loss", ("%.4f"):format(done.loss) }, { "lr", ("%.2e"):format(done.lr) },
    { "grad", done.skipped and "overflow" or ("%.3f"):format(done.grad_norm) }, { "pairs/s", ("%.1f"):format(rate.pairs) },
    { "tok/s", ("%.0f"):format(rate.tokens) } }
  if rate.wait > WAITING then fields[#fields + 1] = { "waiting for data", ("%.0f%%"):format(100 * rate.wait) } end
  if rate.exchange > EXCHANGING then fields[#fields + 1] = { "exchanging", ("%.0f%%"):format(100 * rate.exchange) } end
  self.gpu:tell(done.step, record, fields)
  self.files:log(record)
  self.bar:update(done.step, fields)
end

--- next_window(): rates of long ago count no more. Called between two steps.
function Journal:next_window()
  if C.lr_time() - self.window.time <= WINDOW_SECONDS then return end
  local counts = self.counts
  self:pause()
  self.window = { time = C.lr_time(), exchanged = 0, pairs = counts.pairs, tokens = counts.tokens, wait = counts.wait }
end

--- evaluation(split, step, r): tell of an evaluation after a step: r as evaluate.run gives it.
function Journal:evaluation(split, step, r)
  local epoch = step / self.steps_per_epoch
  self.files:evaluation(split, epoch, step, r)
  self.files:log { kind = "evaluation", split = split, step = step, epoch = epoch, spearman = r.spearman, pearson = r.pearson,
    accuracy = r.accuracy, f1 = r.f1, roc_auc = r.roc_auc, pr_auc = r.pr_auc, seconds = r.seconds }
  self.bar:print(report.evaluation(split, step, r))
end

--- final_evaluation(split, step, r): the evaluation of the best adapter, at the end of the run; the summary shows it.
function Journal:final_evaluation(split, step, r) self.files:evaluation(split, step / self.steps_per_epoch, step, r) end

--- print(text): a line above the progress line.
function Journal:print(text) self.bar:print(text) end

--- elapsed(): seconds since the run began.
function Journal:elapsed() return C.lr_time() - self.started end

function Journal:close() self.bar:close() end

return journals
