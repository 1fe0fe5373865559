-- run_settings.lua: what decides how a run goes: a flat table of names to numbers, texts and booleans. A checkpoint keeps it, and
-- ranks compare theirs before the first step. A run that goes on from a checkpoint names each difference; differences that would
-- make the adapter another function are refused.
--
-- Functions of the recipe's own (schedule, loss, sampler) have no name that could be compared: the checksum of the recipe stands
-- for them. Files are compared by CRC-32C; of weights, which may be many gigabytes, only some blocks are read.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local comm = require "lorarun.dist.comm"
local data_folder = require "lorarun.formats.data_folder"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local schedules = require "lorarun.train.schedule"
local sorted = require "lorarun.base.sorted"

local run_settings = {}

local OWN = "the recipe's own"
local NONE = "none"
local RECIPE = "checksum of the recipe"

-- ---- files ---------------------------------------------------------------------------------------------------------------------
local BLOCK, BLOCKS = 4096, 64 -- bytes of a block, and how many blocks of a large file are read

local function crc(sum, text) return C.lr_crc32c(sum, text, #text) end

-- The size of a file and blocks from all over it; all of it where it is small.
local function sampled(sum, path)
  local f, why = io.open(path, "rb")
  if not f then check.fail("cannot read the model's weights: %s", why) end
  f:setvbuf "no"
  local size = f:seek "end"
  sum = crc(sum, ("%d "):format(size))
  local step = math.max(BLOCK, math.floor((size - BLOCK) / (BLOCKS - 1)))
  local at = 0
  while at < size do
    f:seek("set", at)
    local text = f:read(BLOCK)
    if not text then break end -- the file was cut short; reading the weights will say so
    sum, at = crc(sum, text), at + step
  end
  f:close()
  return sum
end

-- One number for the weights in a model's folder.
local function checksum_of_weights(folder)
  local sum = 0
  for _, name in ipairs(fs.list(folder)) do
    if name:find "^model.*%.safetensors$" or name == "adapter_model.safetensors" then sum = sampled(sum, fs.join(folder, name)) end
  end
  return sum
end

local function checksum(path) return path and fs.is_file(path) and fs.crc32c(path) or NONE end

--- recipe(o): the file of the recipe that runs: the option, or the script that the program was given; nil at the prompt.
function run_settings.recipe(o)
  if o.recipe then return o.recipe end
  local words = rawget(_G, "arg")
  local path = type(words) == "table" and words[0]
  if type(path) == "string" and fs.is_file(path) and fs.real(path) ~= fs.real "/proc/self/exe" then return path end
end

-- ---- settings ------------------------------------------------------------------------------------------------------------------
local function encoded(value) return json.encode(value, { sort_keys = true }) end

-- A loss by its name and the options it was made with.
local function loss_text(loss)
  if not loss.name then return OWN end
  return loss.settings and next(loss.settings) ~= nil and ("%s %s"):format(loss.name, encoded(loss.settings)) or loss.name
end

-- The adapters as a function: which modules have one, of which rank and scale.
local function checksum_of_modules(adapter)
  local lines = {}
  for i, m in ipairs(adapter.modules) do lines[i] = ("%s %d %.17g\n"):format(m.name, m.rank, m.scale) end
  table.sort(lines)
  return crc(0, table.concat(lines))
end

local function targets_text(targets)
  if type(targets) ~= "table" then return tostring(targets) end
  local list = { unpack(targets) }
  table.sort(list)
  return table.concat(list, ", ")
end

-- What makes the adapter the function it is.
local function add_adapter(s, model)
  local config = model.lora.config
  s.alpha, s.rank, s.rslora, s.targets = config.lora_alpha, config.r, config.use_rslora, targets_text(config.target_modules)
  s.rank_pattern, s.alpha_pattern = encoded(config.rank_pattern or {}), encoded(config.alpha_pattern or {})
  s["adapted modules"] = checksum_of_modules(model.lora)
  s.pooling, s.normalize = model.pooling, model.normalize
  s["checksum of the model's weights"] = checksum_of_weights(model.weights_folder)
end

--- of(o, data): the settings of a run with these options (train_options.lua) and data (setup.lua). Of the names only batch_parts is
--- missing, which the memory decides.
function run_settings.of(o, data)
  local world = comm.world_size
  local schedule = schedules.describe(o.schedule) or { name = OWN, warmup = OWN }
  local s = { batch = o.batch, accumulate = o.accumulate, world_size = world, global_batch = o.batch * o.accumulate * world,
    seed = o.seed, learning_rate = o.learning_rate, total_steps = data.total_steps, train_rows = data.train.rows,
    model = o.model.name, precision = o.model.precision, max_length = o.model.max_length, threads = C.lr_threads(),
    dropout = o.model.lora.config.lora_dropout, tf32 = C.lr_tf32(-1) ~= 0, epochs = o.epochs, schedule = schedule.name,
    warmup = schedule.warmup, loss = loss_text(o.loss), sampling = data.sampling, clip = o.clip, weight_decay = o.weight_decay,
    columns = table.concat(o.columns, ", "), score = o.score, group = o.group or NONE, max_train_rows = o.max_train_rows,
    max_evaluation_rows = o.max_evaluation_rows, on_bad_row = o.on_bad_row, evaluation_steps = o.evaluation_steps,
    deterministic = o.deterministic }
  if o.loss.gather ~= nil then s.compared = o.loss.gather and o.batch * world or o.batch end
  local prompts = {}
  for c, name in ipairs(o.columns) do prompts[name] = o.prefixes[c] ~= "" and o.prefixes[c] or nil end
  s.prompts = encoded(prompts)
  for _, split in ipairs(data_folder.SPLITS) do
    local set = data[split]
    s[("checksum of the %s data"):format(split)] = set and fs.crc32c(set.path) or NONE
    if split ~= "train" then s[split .. "_rows"] = set and set.rows or 0 end
  end
  for _, name in ipairs { "config.json", "tokenizer.json" } do
    s[("checksum of the model's %s"):format(name)] = checksum(fs.join(o.model.weights_folder, name))
  end
  s[RECIPE] = checksum(run_settings.recipe(o))
  add_adapter(s, o.model)
  return s
end

--- of_ranks(settings): those that all ranks of a job must have in common. The recipe's text is not one of them, but what follows
--- from it is.
function run_settings.of_ranks(settings)
  local list = {}
  for name, value in pairs(settings) do
    if name ~= "threads" and name ~= RECIPE then list[name] = value end
  end
  return list
end

-- ---- differences ---------------------------------------------------------------------------------------------------------------
-- These decide together which rows a step has. changes() reports that the rows differ, not each setting.
local SHARED_OUT = { world_size = true, batch = true, accumulate = true, global_batch = true, compared = true, total_steps = true }
-- These make the adapter the function that it is: see refusals().
local FUNCTION = { "rank", "targets", "alpha", "rslora", "rank_pattern", "alpha_pattern", "adapted modules", "pooling", "normalize",
  "checksum of the model's weights" }
local OF_FUNCTION = {}
for _, name in ipairs(FUNCTION) do OF_FUNCTION[name] = true end
-- These change what is scored, and not what is learned.
local OF_SCORES = { group = true, max_evaluation_rows = true, evaluation_steps = true, validation_rows = true, test_rows = true,
  ["checksum of the validation data"] = true, ["checksum of the test data"] = true }

local function ranks_text(settings)
  return ("%d rank%s of %d pairs%s"):format(settings.world_size, settings.world_size == 1 and "" or "s", settings.batch,
    settings.accumulate > 1 and (" %d times"):format(settings.accumulate) or "")
end

--- refusals(before, now): the names of the differences that make the adapter another function than it was when a checkpoint with
--- the settings `before` was written, and a text that tells them; nil where there are none.
function run_settings.refusals(before, now)
  local same_modules = before["adapted modules"] ~= nil and before["adapted modules"] == now["adapted modules"]
  local of_modules = { rank = true, targets = true, alpha = true, rslora = true, rank_pattern = true, alpha_pattern = true }
  local names, texts = {}, {}
  for _, name in ipairs(FUNCTION) do
    -- "all-linear" is another text than a list of the same modules, and no other function
    local counts = not (of_modules[name] and same_modules) and not (name == "adapted modules" and #names > 0)
    if counts and before[name] ~= nil and before[name] ~= now[name] then
      names[#names + 1] = name
      texts[#texts + 1] = ("%s was %s when the checkpoint was written and is %s now"):format(name, tostring(before[name]),
        tostring(now[name]))
    end
  end
  if #names == 0 then return nil end
  local last = table.remove(names)
  return #names > 0 and table.concat(names, ", ") .. " and " .. last or last, table.concat(texts, "; ")
end

--- changes(before, now): what the user should know of a run with settings `now` that goes on from a checkpoint written with
--- `before`: a list of sentences.
function run_settings.changes(before, now)
  local list = {}
  local function say(fmt, ...) list[#list + 1] = fmt:format(...) end
  if before.global_batch ~= now.global_batch then
    say("warning: %s began the run, %s go on: a step takes %d pairs instead of %d, so the rows that follow are not those that "
      .. "would have followed. The order is kept where ranks x batch x accumulate stays %d", ranks_text(before), ranks_text(now),
      now.global_batch, before.global_batch, before.global_batch)
  elseif before.world_size ~= now.world_size or before.batch ~= now.batch then
    say("%s began the run, %s go on: a step takes the same %d pairs, in the same order; results agree up to rounding",
      ranks_text(before), ranks_text(now), now.global_batch)
  end
  if before.compared and now.compared and before.compared ~= now.compared then
    say("warning: the loss compares %d pairs with each other instead of %d", now.compared, before.compared)
  end
  if before.global_batch == now.global_batch and before.total_steps ~= now.total_steps then
    say("warning: the run has %d steps instead of %d", now.total_steps, before.total_steps)
  end
  local weights = "checksum of the model's weights"
  local missing = {}
  for _, name in ipairs(sorted.keys(now)) do
    local was, is = before[name], now[name]
    local skip = SHARED_OUT[name] or OF_FUNCTION[name]
      -- with other numbers of ranks come other numbers of threads, and the bits differ already
      or name == "threads" and before.world_size ~= now.world_size
      -- the same model in another place
      or name == "model" and before[weights] ~= nil and before[weights] == now[weights]
    if was == nil and not SHARED_OUT[name] then
      if name ~= "targets" and name ~= "adapted modules" then missing[#missing + 1] = name end -- these show in the tensors
    elseif name == RECIPE and was ~= is then -- often without effect: the numbers in it are compared by themselves
      say("the recipe's text was another when the checkpoint was written (checksum %s, %s now): what functions of its own compute "
        .. "is not compared", tostring(was), tostring(is))
    elseif not skip and was ~= is then
      say("warning: %s was %s when the checkpoint was written and is %s now: %s", name, tostring(was), tostring(is),
        OF_SCORES[name] and "scores before and after do not compare" or "the run will not end in the same bits")
    end
  end
  if #missing > 0 then
    say("an older lorarun wrote the checkpoint, and did not note %s: whether these are the same is not known",
      table.concat(missing, ", "))
  end
  return list
end

return run_settings
