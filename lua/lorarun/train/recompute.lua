-- recompute.lua: in which layers activations are computed again in backward instead of kept: the trainer's `recompute`.
--
--   none, all, or a number    so many layers of every batch
--   auto                      of each batch the fewest with which it fits the memory; batches that do not fit even with all layers
--                             recomputed are taken in parts (train/step.lua); where that cannot be, or a single pair does not fit,
--                             the run is refused before its first step
--
-- Which layers are recomputed changes the time of a step and no bit of its result, so auto need not be the same on every rank,
-- nor when a run is resumed on another machine. Parts change roundings, and are the same on all ranks.
--
--   local policy = recompute.new(run)    sets run.part, the pairs a rank of a part, and run.cached: see train/step.lua
--   policy:layers(tokens)     for a micro-batch of so many tokens
--   policy.text               for the banner
--   policy:free()
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local comm = require "lorarun.dist.comm"
local evaluate = require "lorarun.train.evaluate"
local footprint = require "lorarun.train.footprint"
local gpu = require "lorarun.dist.gpu"
local lengths = require "lorarun.data.lengths"
local memory = require "lorarun.tensor.memory"
local training_step = require "lorarun.train.step"
local sorted = require "lorarun.base.sorted"

local recompute = {}
local Policy = {}
Policy.__index = Policy

local OTHERS = 0.1 -- of a machine's free memory is for the loader's batches, caches of libraries, and everybody else
local LIBRARIES = 0.5e9 -- bytes of a GPU that CUDA's libraries take when they load kernels they had no use for before
local LONG_TOKEN = 6 -- bytes: few texts have longer ones on average
local LONG_PART = 4096 -- tokens: products of so many rows are as fast as those of more

local function fixed_text(n, layers)
  return n == 0 and "off" or n == layers and "on every layer" or ("on %d of %d layers"):format(n, layers)
end

-- ---- auto ----------------------------------------------------------------------------------------------------------------------

-- The most tokens that a micro-batch of this rank could have if all its texts were as long as texts may be.
local function bound(run)
  local o = run.options
  return (run.part + (comm.world_size > 1 and 1 or 0)) * #o.columns * run.model.max_length
end

-- counted(part): the most tokens that it will have with so many pairs, and in which step. Every row is looked at.
local function counter(run)
  local o = run.options
  local rows = lengths.of_rows(run.train, run.model.tokenizer, { columns = o.columns, prefixes = run.prefixes,
    max_length = run.model.max_length, threads = o.loader_threads }, nil, run.train.rows)
  return function(part)
    return lengths.largest_batch({ draws = run.draws, sample = run.sample, batch = o.batch, accumulate = o.accumulate,
      part = part, first_step = 0, last_step = run.total_steps }, rows)
  end
end

-- Bytes that a step of so many tokens needs, working memory included.
function Policy:need(tokens, layers)
  return self.footprint:step { tokens = tokens, layers = layers }
    + self.footprint:workspace(tokens, self.run.part * #self.run.options.columns, self.device)
end

function Policy:need_of_evaluation(texts, tokens)
  return self.footprint:evaluation(texts, tokens) + self.footprint:workspace(tokens, 0, self.device)
end

-- The fewest layers with which so many tokens fit, or nil.
function Policy:fewest(tokens)
  local low, high = 0, self.model_layers
  if self:need(tokens, high) > self.room then return nil end
  while low < high do -- high fits
    local middle = math.floor((low + high) / 2)
    if self:need(tokens, middle) <= self.room then high = middle else low = middle + 1 end
  end
  return low
end

function Policy:most_tokens(layers)
  local o = self.run.options
  return footprint.largest(function(tokens) return self:need(tokens, layers) end, self.room, self.run.part * #o.columns,
    bound(self.run)) or 0
end

--- split(run, o): take batches in as few parts as fit: with nothing recomputed where such parts are long enough, since a batch in
--- more parts takes no longer. o.layers: how many there are; o.tokens: those of the largest batch; o.fewest(tokens): layers with
--- which so many fit, or nil; o.most(layers): tokens that fit with so many recomputed; o.counted(part): tokens of the largest part
--- of so many pairs. Sets run.part and run.cached; returns o.fewest of the largest part, or nil where not one pair fits or the loss
--- allows no parts.
function recompute.split(run, o)
  if not training_step.splittable(run.loss) then return nil end
  local batch, tokens, layers = run.options.batch, o.tokens, nil
  local allowed = o.most(0) >= LONG_PART and 0 or o.layers
  while run.part > 1 and (not layers or layers > allowed) do
    local share = o.most(allowed) / tokens -- of the part that did not fit
    run.part = math.max(1, math.min(run.part - 1, math.floor(run.part * share)))
    run.part = math.ceil(batch / math.ceil(batch / run.part)) -- as many parts, as even as can be
    run.cached = not run.loss.mean_over_pairs
    tokens = o.counted(run.part)
    layers = o.fewest(tokens)
  end
  return layers
end

local function refuse(self, tokens, step)
  local o, most = self.run.options, self:most_tokens(self.model_layers)
  local remedies = { "a smaller --max-length" }
  local batch = math.floor(o.batch * most / tokens)
  if self.run.cached then -- its embeddings and their comparison are what does not become less in parts
    table.insert(remedies, 1, "a smaller --batch")
  elseif batch >= 1 and self.run.part == o.batch then
    table.insert(remedies, 1, ("--batch %d%s"):format(batch, self.run.loss.in_batch and " (of fewer negatives)"
      or (" (with --accumulate %d a step stays as large)"):format(math.ceil(o.batch * o.accumulate / batch))))
  end
  if self.run.model.precision == "fp32" then remedies[#remedies + 1] = "--precision bf16" end
  local what = ("batch of %d tokens (%d pairs), which"):format(tokens, o.batch)
  if self.run.cached then what = ("batch of %d pairs, one of %d tokens, which even pair by pair"):format(o.batch, tokens)
  elseif self.run.part == 1 then what = ("pair of %d tokens, which"):format(tokens) end
  if self.limited then remedies[#remedies + 1] = "more with lr.memory.limit" end
  check.fail("step %d has a %s needs %s even with all %d layers recomputed, and %s are free; "
    .. "%d tokens fit: give %s", step, what, memory.size_text(self:need(tokens, self.model_layers)),
    self.model_layers, memory.size_text(math.max(0, self.room)), most, table.concat(remedies, ", or "))
end

-- Evaluation comes late and fails like a step: is there room for it? What it needs at most is soon known; where there is no room
-- for that, what it needs at least.
local function check_evaluation(self)
  local o, model = self.run.options, self.run.model
  for _, set in sorted { validation = self.run.validation, test = self.run.test } do
    local texts, tokens = 2 * set.rows, math.min(evaluate.BATCH_BYTES, 2 * set.rows * model.max_length)
    if self:need_of_evaluation(texts, tokens) > self.room then
      texts = evaluate.distinct_texts(set, { o.columns[1], o.columns[2] }, self.run.prefixes)
      tokens = math.min(evaluate.BATCH_BYTES / LONG_TOKEN, texts)
      local needed = self:need_of_evaluation(texts, tokens)
      if needed > self.room then
        check.fail("evaluating the %d rows of %s (%d different texts) needs %s, and %s are free; give a smaller "
          .. "--max-evaluation-rows", set.rows, set.path, texts, memory.size_text(needed), memory.size_text(self.room))
      end
    end
  end
end

--- usable(free, device, ranks): of so many free bytes, those that each of so many ranks which share the device may use; no more
--- than lr.memory.limit leaves a rank.
function recompute.usable(free, device, ranks)
  return math.min((device == "cuda" and free - LIBRARIES or (1 - OTHERS) * free) / ranks, memory.left(device))
end

local function auto(run)
  local device, layers = run.model.device, run.model.layer_count
  local ranks = device == "cuda" and gpu.ranks() or comm.local_world_size
  check(C.lr_memory_release_cached(memory.DEVICES[device])) -- what loading has left counts as free
  local free = memory.available(device) or math.huge
  if recompute.usable(free, device, ranks) == math.huge then
    return setmetatable({ fixed = 0, text = "off (the system does not say how much memory is free)" }, Policy)
  end
  local usable = recompute.usable(free, device, ranks)
  local limit = memory.stats(device).live_bytes + usable
  local optimizer = 2 * 4 * run.model.lora.parameters.count -- AdamW's m and v are yet to be made
  local self = setmetatable({ run = run, device = device, model_layers = layers, footprint = footprint.new(run),
    room = usable - optimizer, limited = usable == memory.left(device), fitting = {} }, Policy)
  local ok, err = pcall(function()
    local most = self:fewest(bound(run))
    if not most then
      local counted = counter(run)
      local tokens = counted(run.part)
      most = self:fewest(tokens) or recompute.split(run, { layers = layers, tokens = tokens, counted = counted,
        fewest = function(n) return self:fewest(n) end, most = function(n) return self:most_tokens(n) end })
        or refuse(self, counted(run.part))
    end
    check_evaluation(self)
    if most == 0 then
      self.fixed, self.text = 0, ("off (every %s fits the memory)"):format(run.part == run.options.batch and "batch" or "part")
    else
      self.text = ("where memory is short, on at most %d of %d layers"):format(most, layers)
    end
  end)
  if ok then memory.restrict(limit, device) else self.device = nil end
  if not ok or self.fixed then self.footprint:free() end
  if not ok then error(err, 0) end
  return self
end

-- ---- the policy ----------------------------------------------------------------------------------------------------------------

--- number(wanted, layers): how many of so many layers the setting `recompute` names; nil for auto.
function recompute.number(wanted, layers)
  if wanted == "auto" then return nil end
  local n = ({ none = 0, all = layers })[wanted] or tonumber(wanted)
  if not n or n < 0 or n % 1 ~= 0 then
    check.fail("recompute is '%s'; expected auto, none, all or a number of layers", tostring(wanted))
  end
  return math.min(n, layers)
end

local function choose(run)
  local layers = run.model.layer_count
  local n = recompute.number(run.options.recompute, layers)
  if not n then return auto(run) end
  return setmetatable({ fixed = n, text = fixed_text(n, layers) }, Policy)
end

function recompute.new(run)
  run.part, run.cached = run.options.batch, false
  local policy = choose(run)
  local part = comm.all_reduce(run.part, "min") -- what fits the rank with the least memory
  if part < run.part then run.part, run.cached = part, not run.loss.mean_over_pairs end
  return policy
end

--- layers(tokens): how many layers of a micro-batch of so many tokens are recomputed.
function Policy:layers(tokens)
  if self.fixed then return self.fixed end
  for n = 0, self.model_layers do
    self.fitting[n] = self.fitting[n] or self:most_tokens(n)
    if tokens <= self.fitting[n] then return n end
  end
  return self.model_layers -- it fits by what was counted; should it not, the allocator says so
end

function Policy:free()
  if self.footprint then self.footprint:free() end
  if self.device then memory.restrict(nil, self.device) end
end

return recompute
