-- recompute.lua: how a batch is taken so that it fits the memory: in how many layers activations are computed again in backward
-- instead of kept (lr.train's `recompute`), and whether the batch comes in parts.
--
--   none, all, or a number    that many layers of every batch
--   auto                      of each batch the fewest with which it fits the memory; batches that do not fit even with all layers
--                             recomputed are taken in parts (train/step.lua); where that cannot be, or a single pair does not fit,
--                             the run is refused before its first step
--
-- Which layers are recomputed changes the time of a step and no bit of its result, so auto need not be the same on every rank,
-- nor when a run is resumed on another machine. Parts change roundings, and are the same on all ranks.
--
--   local plan = recompute.new(o, data)    the batch plan of a run: its options (train_options.lua) and its data (setup.lua)
--   plan.part                 pairs a rank of a part: o.batch, or fewer
--   plan.cached               are parts embedded first and compared as one batch (train/step.lua)?
--   plan:layers(tokens)       how many layers of a micro-batch with this many tokens are recomputed
--   plan.text                 the same in words, for the banner
--   plan:free()
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local device_traits = require "lorarun.tensor.device_traits"
local comm = require "lorarun.dist.comm"
local evaluate = require "lorarun.train.evaluate"
local footprint = require "lorarun.train.footprint"
local gpu = require "lorarun.dist.gpu"
local lengths = require "lorarun.data.lengths"
local memory = require "lorarun.tensor.memory"
local training_step = require "lorarun.train.step"
local sorted = require "lorarun.base.sorted"
local units = require "lorarun.base.units"

local recompute = {}
local Plan = {}
Plan.__index = Plan

local OTHERS = 0.1 -- of a machine's free memory is for the loader's batches, caches of libraries, and other programs
local LIBRARIES = 0.5e9 -- bytes of a GPU that CUDA's libraries still take later, for kernels that they load on first use
local LONG_TOKEN = 6 -- bytes: few texts have longer ones on average
local LONG_PART = 4096 -- tokens: products of this many rows are as fast as those of more

local function fixed_text(n, layers)
  return n == 0 and "off" or n == layers and "on every layer" or ("on %d of %d layers"):format(n, layers)
end

-- ---- auto ----------------------------------------------------------------------------------------------------------------------
-- An automatic plan also has: options and data of the run, footprint, device, model_layers, room = bytes that a step may take,
-- limited = is that lr.memory.limit's doing, fitting[n] = the most tokens that fit with n layers recomputed.

-- The most tokens that a micro-batch of this rank could have if all its texts were as long as texts may be.
local function bound(self)
  local o = self.options
  return (self.part + (comm.world_size > 1 and 1 or 0)) * #o.columns * o.model.max_length
end

-- counted(part): the most tokens that a part of this many pairs will have, and in which step. Every row is looked at.
local function counter(o, data)
  local rows = lengths.of_rows(data.train, o.model.tokenizer, { columns = o.columns, prefixes = o.prefixes,
    max_length = o.model.max_length, threads = o.loader_threads }, nil, data.train.rows)
  return function(part)
    return lengths.largest_batch({ draws = data.draws, sample = data.sample, batch = o.batch, accumulate = o.accumulate,
      part = part, first_step = 0, last_step = data.total_steps }, rows)
  end
end

-- Bytes that a step needs whose micro-batches have this many tokens, its kernels' scratch included. parts: { part, cached }
function Plan:need(tokens, layers, parts)
  local tensors, scratch = self.footprint:step { tokens = tokens, layers = layers, pairs = parts.part,
    batch = parts.cached and self.options.batch or nil }
  return tensors + scratch
end

function Plan:need_of_evaluation(texts, tokens)
  local tensors, scratch = self.footprint:evaluation(texts, tokens)
  return tensors + scratch
end

--- fewest(layers, fits): the fewest of a model's layers for which fits(n) holds, or nil. It holds for more where it does for some.
function recompute.fewest(layers, fits)
  local low, high = 0, layers
  if not fits(high) then return nil end
  while low < high do -- high fits
    local middle = math.floor((low + high) / 2)
    if fits(middle) then high = middle else low = middle + 1 end
  end
  return low
end

-- The fewest layers with which a micro-batch of this many tokens fits, or nil.
function Plan:fewest(tokens, parts)
  return recompute.fewest(self.model_layers, function(n) return self:need(tokens, n, parts) <= self.room end)
end

function Plan:most_tokens(layers, parts)
  return footprint.largest(function(tokens) return self:need(tokens, layers, parts) end, self.room,
    parts.part * #self.options.columns, bound { options = self.options, part = parts.part }) or 0
end

--- split(given): take batches in as few parts as fit: with nothing recomputed where such parts are long enough, since a batch in
--- more parts takes no longer. given: { loss, batch = pairs, layers = of the model, tokens = of the largest batch, fewest(tokens,
--- parts) = layers with which this many tokens fit, or nil, most(layers, parts) = tokens that fit with this many layers recomputed,
--- counted(part) = tokens of the largest part of this many pairs }. Returns parts = { part = pairs, cached } and the layers to
--- recompute for the largest part, or nil where not one pair fits; parts alone where the loss allows none.
function recompute.split(given)
  local batch, tokens, layers = given.batch, given.tokens, nil
  local parts = { part = batch, cached = false }
  if not training_step.splittable(given.loss) then return parts end
  local allowed = given.most(0, parts) >= LONG_PART and 0 or given.layers
  while parts.part > 1 and (not layers or layers > allowed) do
    local share = given.most(allowed, parts) / tokens -- of the part that did not fit
    local part = math.max(1, math.min(parts.part - 1, math.floor(parts.part * share)))
    part = math.ceil(batch / math.ceil(batch / part)) -- as many parts, as even as can be
    parts = { part = part, cached = not given.loss.mean_over_pairs }
    tokens = given.counted(part)
    layers = given.fewest(tokens, parts)
  end
  return parts, layers
end

local function refuse(self, tokens, step)
  local o, layers = self.options, self.model_layers
  local most = self:most_tokens(layers, self)
  local remedies = { "a smaller --max-length" }
  local batch = math.floor(o.batch * most / tokens)
  if self.cached then -- its embeddings and their comparison are what does not become less in parts
    table.insert(remedies, 1, "a smaller --batch")
  elseif batch >= 1 and self.part == o.batch then
    table.insert(remedies, 1, ("--batch %d%s"):format(batch, o.loss.in_batch and " (of fewer negatives)"
      or (" (with --accumulate %d a step stays as large)"):format(math.ceil(o.batch * o.accumulate / batch))))
  end
  if o.model.precision == "fp32" then remedies[#remedies + 1] = "--precision bf16" end
  local what = ("batch of %d tokens (%d pairs), which"):format(tokens, o.batch)
  if self.cached then what = ("batch of %d pairs, one of %d tokens, which even pair by pair"):format(o.batch, tokens)
  elseif self.part == 1 then what = ("pair of %d tokens, which"):format(tokens) end
  if self.limited then remedies[#remedies + 1] = "more with lr.memory.limit" end
  check.fail("step %d has a %s needs %s even with all %d layers recomputed, and %s are free; %d tokens fit: give %s", step, what,
    units.size(self:need(tokens, layers, self)), layers, units.size(math.max(0, self.room)), most,
    table.concat(remedies, ", or "))
end

-- Evaluation comes late and fails like a step: is there room for it? What it needs at most is soon known; where there is no room
-- for that, what it needs at least.
local function check_evaluation(self)
  local o, data = self.options, self.data
  for _, set in sorted { validation = data.validation, test = data.test } do
    local texts, tokens = 2 * set.rows, math.min(evaluate.BATCH_BYTES, 2 * set.rows * o.model.max_length)
    if self:need_of_evaluation(texts, tokens) > self.room then
      texts = evaluate.distinct_texts(set, { o.columns[1], o.columns[2] }, o.prefixes)
      tokens = math.min(evaluate.BATCH_BYTES / LONG_TOKEN, texts)
      local needed = self:need_of_evaluation(texts, tokens)
      if needed > self.room then
        check.fail("evaluating the %d rows of %s (%d different texts) needs %s, and %s are free; give a smaller "
          .. "--max-evaluation-rows", set.rows, set.path, texts, units.size(needed), units.size(self.room))
      end
    end
  end
end

--- usable(free, device, ranks): of this many free bytes, those that each of the ranks which share the device may use; no more than
--- lr.memory.limit leaves a rank.
function recompute.usable(free, device, ranks)
  local own = device_traits.itself(device).own_memory
  return math.min((own and free - LIBRARIES or (1 - OTHERS) * free) / ranks, memory.left(device))
end

-- Find the layers and the parts of every batch, by the largest.
local function fit(self)
  local o, layers = self.options, self.model_layers
  local most = self:fewest(bound(self), self)
  if not most then
    local counted = counter(o, self.data)
    local tokens = counted(self.part)
    most = self:fewest(tokens, self)
    if not most then
      local parts
      parts, most = recompute.split { loss = o.loss, batch = o.batch, layers = layers, tokens = tokens, counted = counted,
        fewest = function(n, p) return self:fewest(n, p) end, most = function(n, p) return self:most_tokens(n, p) end }
      self.part, self.cached = parts.part, parts.cached
      if not most then refuse(self, counted(self.part)) end
    end
  end
  check_evaluation(self)
  if most == 0 then
    self.fixed, self.text = 0, ("off (every %s fits the memory)"):format(self.part == o.batch and "batch" or "part")
  else
    self.text = ("where memory is short, on at most %d of %d layers"):format(most, layers)
  end
end

local function auto(o, data)
  local device, model = o.model.device, o.model
  local ranks = device_traits.itself(device).own_memory and gpu.ranks() or comm.local_world_size
  check(C.lr_memory_release_cached(memory.DEVICES[device])) -- what loading has left counts as free
  local free = memory.available(device) or math.huge
  if recompute.usable(free, device, ranks) == math.huge then
    return { part = o.batch, cached = false, fixed = 0, text = "off (the system does not say how much memory is free)" }
  end
  local usable = recompute.usable(free, device, ranks)
  local limit = memory.stats(device).live_bytes + usable
  local optimizer = 2 * 4 * model.lora.parameters.count -- AdamW's m and v are yet to be made
  local self = setmetatable({ part = o.batch, cached = false, options = o, data = data, device = device,
    model_layers = model.layer_count, footprint = footprint.new { model = model, loss = o.loss, columns = #o.columns },
    room = usable - optimizer, limited = usable == memory.left(device), fitting = {} }, Plan)
  local ok, err = pcall(fit, self)
  if ok then memory.restrict(limit, device) else self.device = nil end
  if not ok or self.fixed then self.footprint:free() end
  if not ok then error(err, 0) end
  return self
end

-- ---- the plan ------------------------------------------------------------------------------------------------------------------

--- number(wanted, layers): how many of a model's layers the setting `recompute` names; nil for auto.
function recompute.number(wanted, layers)
  if wanted == "auto" then return nil end
  local n = ({ none = 0, all = layers })[wanted] or tonumber(wanted)
  if not n or n < 0 or n % 1 ~= 0 then
    check.fail("recompute is '%s'; expected auto, none, all or a number of layers", tostring(wanted))
  end
  return math.min(n, layers)
end

--- new(o, data): the plan for the run's batches. Every rank calls it. It keeps tensors within what was found to be free until
--- free().
function recompute.new(o, data)
  local layers = o.model.layer_count
  local n = recompute.number(o.recompute, layers)
  local self = n and { part = o.batch, cached = false, fixed = n, text = fixed_text(n, layers) } or auto(o, data)
  setmetatable(self, Plan)
  local part = comm.all_reduce(self.part, "min") -- what fits the rank with the least memory
  if part < self.part then self.part, self.cached = part, not o.loss.mean_over_pairs end
  return self
end

--- layers(tokens): how many layers of a micro-batch of this many tokens are recomputed.
function Plan:layers(tokens)
  if self.fixed then return self.fixed end
  for n = 0, self.model_layers do
    self.fitting[n] = self.fitting[n] or self:most_tokens(n, self)
    if tokens <= self.fitting[n] then return n end
  end
  return self.model_layers -- it fits by what was counted; should it not, the allocator says so
end

--- recomputes(): may a layer be computed twice?
function Plan:recomputes() return self.fixed ~= 0 end

function Plan:free()
  if self.footprint then self.footprint:free() end
  if self.device then memory.restrict(nil, self.device) end
end

return recompute
