-- resume.lua: the checkpoints of a training run: writing one, going on from one, and telling the user where the run is no longer
-- the same.
--
--   local checkpoints = resume.new { options = o, optimizer = optimizer, scores = scores, settings = settings, total_steps = 1000 }
--   local first, evaluation_due = checkpoints:go_on()     the step after which the run goes on, 0 for a new one
--   checkpoints:save(step, evaluation_due)
--
-- Only rank 0 reads and writes; the others get everything from it, so that the output folder need be on its machine only.
local check = require "lorarun.base.check"
local checkpoint = require "lorarun.train.checkpoint"
local comm = require "lorarun.dist.comm"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local lora = require "lorarun.models.lora"
local data_parallel = require "lorarun.dist.data_parallel"
local run_settings = require "lorarun.train.run_settings"
local say = require "lorarun.base.say"

local resume = {}

local GROUP = os.getenv "LORARUN_GROUP" -- what a launcher calls its ranks, those that it starts again included

--- restarted(): were this run's ranks started again by their launcher, after a failure?
function resume.restarted() return (tonumber(os.getenv "LORARUN_GENERATION") or 0) > 0 end

local Checkpoints = {}
Checkpoints.__index = Checkpoints

--- new(given): given = { options = of the run (train_options.lua), optimizer, scores = its best and first scores (validate.lua),
--- settings = what must stay the same (run_settings.lua), total_steps }. saved is then the step of the newest checkpoint, or nil.
function resume.new(given)
  local o = given.options
  return setmetatable({ folder = fs.join(o.output, "checkpoints"), asked = o.resume, keep = o.keep, model = o.model,
    optimizer = given.optimizer, scores = given.scores, settings = given.settings, total_steps = given.total_steps }, Checkpoints)
end

local function prune(self)
  local best = self.scores.best
  checkpoint.prune(self.folder, self.keep, best and { [best.step] = true } or {})
end

--- save(step, evaluation_due): write a checkpoint, remove those that are no longer wanted. evaluation_due: the step is yet to be
--- evaluated; a run that goes on from here does it.
function Checkpoints:save(step, evaluation_due)
  comm.on_rank_0(function()
    checkpoint.save(self.folder, { model = self.model, optimizer = self.optimizer, state = { step = step, best = self.scores.best,
      baseline = self.scores.baseline, settings = self.settings, evaluation_due = evaluation_due or false, group = GROUP } })
    prune(self)
  end)
  self.saved = step
end

--- evaluated(step): note the scores in that step's checkpoint, which was saved before its evaluation.
function Checkpoints:evaluated(step)
  comm.on_rank_0(function()
    checkpoint.amend(self.folder, step, { best = self.scores.best, baseline = self.scores.baseline, evaluation_due = false })
    prune(self)
  end)
end

--- load_best(): put the best checkpoint's adapter into the model.
function Checkpoints:load_best()
  comm.on_rank_0(function() lora.read_into(self.model, checkpoint.path(self.folder, self.scores.best.step)) end)
  comm.broadcast(self.model.lora.parameters.value, 0)
end

-- ---- going on ------------------------------------------------------------------------------------------------------------------
-- What an older lorarun did not note in a checkpoint's settings is in the adapter's own file.
local function settings_of(path, state)
  local before = state.settings
  if before.alpha == nil then
    local config = json.decode_file(fs.join(path, "adapter_config.json"))
    before.alpha, before.rank, before.rslora = config.lora_alpha, config.r, config.use_rslora
  end
  return before
end

-- Refuse a checkpoint from which this run cannot go on, and tell of every other difference.
local function compare(self, path, state)
  if type(state.settings) ~= "table" then check.fail("%s: state.json lacks the settings", path) end
  local before = settings_of(path, state)
  local names, differences = run_settings.refusals(before, self.settings)
  if names then
    check.fail("--resume: %s: %s. That would make the adapter another function; a run goes on with the %s that it began with: give "
      .. "them, or begin again without --resume", path, differences, names)
  end
  if state.step > self.total_steps then
    check.fail("--resume: %s is of step %d, and the run has %d: nothing is left to do. Give more epochs or max_steps, or an "
      .. "earlier checkpoint", path, state.step, self.total_steps)
  end
  for _, text in ipairs(run_settings.changes(before, self.settings)) do say.note("%s", text) end
end

-- The checkpoint to go on from: path and state, or nil. Ranks that were started again after a failure go on from the checkpoint
-- that they wrote before it, whatever resume says. Where they had written none, those in the folder are an
-- earlier run's.
local function choose(self)
  local folder, asked = self.folder, self.asked
  local restarted = resume.restarted()
  local function warn(text) say.note("warning: %s", text) end
  local path, state
  if restarted or asked == true or asked == "latest" then path, state = checkpoint.find(folder, "latest", warn) end
  if path and restarted and GROUP and state.group ~= GROUP and asked ~= true and asked ~= "latest" then path, state = nil, nil end
  if not path and asked and asked ~= true and asked ~= "latest" then path, state = checkpoint.find(folder, asked, warn) end
  if not path and asked then say.note("there is no checkpoint in %s yet; starting from the beginning", folder) end
  return path, state
end

--- go_on(): put a checkpoint into the model, the optimizer and the scores, where the run goes on from one. own_until is then the
--- step up to which the output folder's checkpoints and logs are this run's. Returns the step after which the checkpoint was
--- written, or 0, and whether that step is yet to be evaluated.
function Checkpoints:go_on()
  local found = data_parallel.from_rank_0(function()
    local path, state = choose(self)
    if not path then return {} end
    compare(self, path, state)
    checkpoint.load(path, state, self)
    if state.best and state.best.spearman == -1 then state.best = nil end -- what an older lorarun wrote where there was none
    local folder = self.folder
    local elsewhere = not fs.is_directory(folder) or fs.real(fs.dirname(fs.real(path))) ~= fs.real(folder)
    if state.best and (elsewhere or not fs.is_directory(checkpoint.path(folder, state.best.step))) then
      say.note("warning: the best checkpoint so far, step %d, is not in %s; the best from here on will count", state.best.step,
        folder)
      state.best = nil
    end
    state.evaluation_due = state.evaluation_due and not elsewhere
    say.line(("resuming from %s, step %d of %d"):format(path, state.step, self.total_steps))
    return { state = state, elsewhere = elsewhere }
  end)
  local state = found.state
  if state then
    for _, t in ipairs { self.model.lora.parameters.value, self.optimizer.m, self.optimizer.v } do comm.broadcast(t, 0) end
    self.optimizer:restore(state.optimizer)
    self.scores.best, self.scores.baseline = state.best, state.baseline
  end
  local first = state and state.step or 0
  self.saved = state and first
  self.own_until = found.elsewhere and 0 or first
  return first, state and state.evaluation_due
end

--- set_aside(): what the folder has beyond step own_until is another run's: all of it, where the run goes on from a checkpoint of
--- another folder. On rank 0.
function Checkpoints:set_aside()
  local aside = checkpoint.set_aside(self.folder, self.own_until)
  if aside then say.note("checkpoints beyond step %d are not of this run; they are in %s now", self.own_until, aside) end
end

return resume
