-- resume.lua: the state of a training run (trainer.lua's table) between its checkpoints and its ranks: writing one, going on
-- from one, and what to tell the user where the run is no longer the same.
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

local function folder_of(run) return fs.join(run.options.output, "checkpoints") end

local function prune(run)
  checkpoint.prune(folder_of(run), run.options.keep, run.best and { [run.best.step] = true } or {})
end

--- save(run, step, evaluation_due): write a checkpoint, remove those that are no longer wanted. evaluation_due: the step is yet to
--- be evaluated, and will be by whoever goes on from here.
function resume.save(run, step, evaluation_due)
  comm.on_rank_0(function()
    checkpoint.save(folder_of(run), { model = run.model, optimizer = run.optimizer, state = { step = step, best = run.best,
      baseline = run.baseline, settings = run.fixed, evaluation_due = evaluation_due or false, group = GROUP } })
    prune(run)
  end)
  run.saved = step
end

--- evaluated(run, step): the checkpoint of that step has its evaluation.
function resume.evaluated(run, step)
  comm.on_rank_0(function()
    checkpoint.amend(folder_of(run), step, { best = run.best, baseline = run.baseline, evaluation_due = false })
    prune(run)
  end)
end

--- load_best(run): put the best checkpoint's adapter into the model.
function resume.load_best(run)
  comm.on_rank_0(function() lora.read_into(run.model, checkpoint.path(folder_of(run), run.best.step)) end)
  comm.broadcast(run.model.lora.parameters.value, 0)
end

-- ---- going on ------------------------------------------------------------------------------------------------------------------
-- What an older lorarun did not note in a checkpoint's settings stands in the adapter's own file.
local function settings_of(path, state)
  local before = state.settings
  if before.alpha == nil then
    local config = json.decode_file(fs.join(path, "adapter_config.json"))
    before.alpha, before.rank, before.rslora = config.lora_alpha, config.r, config.use_rslora
  end
  return before
end

-- Refuse what cannot go on from the checkpoint, and tell of what may.
local function compare(run, path, state)
  if type(state.settings) ~= "table" then check.fail("%s: state.json lacks the settings", path) end
  local before = settings_of(path, state)
  local names, differences = run_settings.refusals(before, run.fixed)
  if names then
    check.fail("--resume: %s: %s. That would make the adapter another function; a run goes on with the %s that it began with: give "
      .. "them, or begin anew without --resume", path, differences, names)
  end
  if state.step > run.total_steps then
    check.fail("--resume: %s is of step %d, and the run has %d: nothing is left to do. Give more epochs or max_steps, or an "
      .. "earlier checkpoint", path, state.step, run.total_steps)
  end
  for _, text in ipairs(run_settings.changes(before, run.fixed)) do say.note("%s", text) end
end

-- The checkpoint to go on from: path and state, or nil. A group of ranks that was started again goes on from where the one before
-- it came, whatever was asked for in the beginning. Where that one came to no checkpoint, those that are there are an earlier
-- run's.
local function choose(run)
  local folder, asked = folder_of(run), run.options.resume
  local restarted = resume.restarted()
  local function warn(text) say.note("warning: %s", text) end
  local path, state
  if restarted or asked == true or asked == "latest" then path, state = checkpoint.find(folder, "latest", warn) end
  if path and restarted and GROUP and state.group ~= GROUP and asked ~= true and asked ~= "latest" then path, state = nil, nil end
  if not path and asked and asked ~= true and asked ~= "latest" then path, state = checkpoint.find(folder, asked, warn) end
  if not path and asked then say.note("there is no checkpoint in %s yet; starting from the beginning", folder) end
  return path, state
end

--- resume(run): put a checkpoint into the run, where one is to be gone on from. run.own_until is then the step up to which the
--- output folder's checkpoints and logs are this run's. Returns the step it was written after, or 0, and
--- whether that is yet to be evaluated.
function resume.resume(run)
  local found = data_parallel.from_rank_0(function()
    local path, state = choose(run)
    if not path then return {} end
    compare(run, path, state)
    checkpoint.load(path, state, run)
    if state.best and state.best.spearman == -1 then state.best = nil end -- what an older lorarun wrote where there was none
    local folder = folder_of(run)
    local elsewhere = not fs.is_directory(folder) or fs.real(fs.dirname(fs.real(path))) ~= fs.real(folder)
    if state.best and (elsewhere or not fs.is_directory(checkpoint.path(folder, state.best.step))) then
      say.note("warning: the best checkpoint so far, step %d, is not in %s; the best from here on will count", state.best.step,
        folder)
      state.best = nil
    end
    state.evaluation_due = state.evaluation_due and not elsewhere
    say.line(("resuming from %s, step %d of %d"):format(path, state.step, run.total_steps))
    return { state = state, elsewhere = elsewhere }
  end)
  local state = found.state
  if state then
    for _, t in ipairs { run.model.lora.parameters.value, run.optimizer.m, run.optimizer.v } do comm.broadcast(t, 0) end
    run.optimizer:restore(state.optimizer)
    run.best, run.baseline = state.best, state.baseline
  end
  local first = state and state.step or 0
  run.saved = state and first
  run.own_until = found.elsewhere and 0 or first
  return first, state and state.evaluation_due
end

--- set_aside(run): what the folder has beyond step run.own_until is another run's: all of it, where the run goes on from a
--- checkpoint of another folder. On rank 0.
function resume.set_aside(run)
  local aside = checkpoint.set_aside(folder_of(run), run.own_until)
  if aside then say.note("checkpoints beyond step %d are not of this run; they are in %s now", run.own_until, aside) end
end

return resume
