-- recompute.lua: in which layers activations are computed again in backward instead of kept: the trainer's `recompute`.
--
--   none, all, or a number    so many layers of every batch
--   auto                      of each batch the fewest with which it fits the memory; a run with a batch that cannot fit even with
--                             all layers recomputed is refused before its first step
--
-- Which layers are recomputed changes the time of a step and no bit of its result, so auto need not be the same on every rank,
-- nor when a run is resumed on another machine.
--
--   local policy = recompute.new(run, micro_step)    see footprint.lua
--   policy:layers(tokens)     for a micro-batch of so many tokens
--   policy.text               for the banner
--   policy:free()
local check = require "lorarun.check"
local comm = require "lorarun.comm"
local evaluate = require "lorarun.evaluate"
local footprint = require "lorarun.footprint"
local lengths = require "lorarun.lengths"
local memory = require "lorarun.memory"

local recompute = {}
local Policy = {}
Policy.__index = Policy

--- Of the free memory, this much may be used: the rest is for the loader's batches, caches of libraries, and everybody else.
recompute.USABLE = 0.9
local BLOCK = 9 / 8 -- of a tensor's bytes are taken at most: see memory.c
local LONG_TOKEN = 6 -- bytes: few texts have longer ones on average

local function fixed_text(n, layers)
  return n == 0 and "off" or n == layers and "on every layer" or ("on %d of %d layers"):format(n, layers)
end

-- ---- auto ----------------------------------------------------------------------------------------------------------------------

-- The most tokens that a micro-batch of this rank could have if all its texts were as long as texts may be.
local function bound(run)
  local o = run.options
  return (o.batch + (comm.world_size > 1 and 1 or 0)) * #o.columns * run.model.max_length
end

-- The most tokens that it will have, and in which step: every row is looked at.
local function counted(run)
  local o = run.options
  local rows = lengths.of_rows(run.train, run.model.tokenizer, { columns = o.columns, prefixes = run.prefixes,
    max_length = run.model.max_length, threads = o.loader_threads }, nil, run.train.rows)
  return lengths.largest_batch({ draws = run.draws, sample = run.sample, batch = o.batch, accumulate = o.accumulate,
    first_step = 0, last_step = run.total_steps }, rows)
end

-- Bytes that a step of so many tokens needs, working memory included.
function Policy:need(tokens, layers)
  return self.footprint:step { tokens = tokens, layers = layers } + self.footprint:workspace(tokens)
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
  return footprint.largest(function(tokens) return self:need(tokens, layers) end, self.room, o.batch * #o.columns,
    bound(self.run)) or 0
end

local function refuse(self, tokens, step)
  local o, most = self.run.options, self:most_tokens(self.model_layers)
  local remedies = { "a smaller --max-length" }
  local batch = math.floor(o.batch * most / tokens)
  if batch >= 1 then
    table.insert(remedies, 1, ("--batch %d (with --accumulate %d a step stays as large)"):format(batch,
      math.ceil(o.batch * o.accumulate / batch)))
  end
  if self.run.model.precision == "fp32" then remedies[#remedies + 1] = "--precision bf16" end
  check.fail("step %d has a batch of %d tokens (%d pairs), which needs %s even with all %d layers recomputed, and %s are free; "
    .. "%d tokens fit: give %s", step, tokens, o.batch, memory.size_text(self:need(tokens, self.model_layers)),
    self.model_layers, memory.size_text(math.max(0, self.room)), most, table.concat(remedies, ", or "))
end

-- Evaluation comes late and fails like a step: is there room for it? What it needs at most is soon known; where there is no room
-- for that, what it needs at least.
local function check_evaluation(self)
  local o, model = self.run.options, self.run.model
  for _, set in pairs { validation = self.run.validation, test = self.run.test } do
    local texts, tokens = 2 * set.rows, math.min(evaluate.BATCH_BYTES, 2 * set.rows * model.max_length)
    if self.footprint:evaluation(texts, tokens) + self.footprint:workspace(tokens) > self.room then
      texts = evaluate.distinct_texts(set, { o.columns[1], o.columns[2] }, self.run.prefixes)
      tokens = math.min(evaluate.BATCH_BYTES / LONG_TOKEN, texts)
      local needed = self.footprint:evaluation(texts, tokens)
      if needed > self.room then
        check.fail("evaluating the %d rows of %s (%d different texts) needs %s, and %s are free; give a smaller "
          .. "--max-evaluation-rows", set.rows, set.path, texts, memory.size_text(needed), memory.size_text(self.room))
      end
    end
  end
end

local function auto(run, micro_step)
  local device, layers = run.model.device, run.model.layer_count
  local free = memory.available(device)
  if not free then return setmetatable({ fixed = 0, text = "off (the system does not say how much memory is free)" }, Policy) end
  local held = memory.stats(device)
  local limit = held.reserved_bytes + recompute.USABLE * free / comm.local_world_size
  local optimizer = 2 * BLOCK * 4 * run.model.lora.parameters.count -- AdamW's m and v are yet to be made
  local self = setmetatable({ run = run, device = device, model_layers = layers, footprint = footprint.new(run, micro_step),
    room = limit - held.live_bytes - optimizer, fitting = {} }, Policy)
  local ok, err = pcall(function()
    local most = self:fewest(bound(run))
    if not most then
      local tokens, step = counted(run)
      most = self:fewest(tokens) or refuse(self, tokens, step)
    end
    check_evaluation(self)
    if most == 0 then
      self.fixed, self.text = 0, "off (every batch fits the memory)"
    else
      self.text = ("where memory is short, on at most %d of %d layers"):format(most, layers)
    end
  end)
  if ok then memory.limit(limit, device) else self.device = nil end
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

function recompute.new(run, micro_step)
  local layers = run.model.layer_count
  local n = recompute.number(run.options.recompute, layers)
  if not n then return auto(run, micro_step) end
  return setmetatable({ fixed = n, text = fixed_text(n, layers) }, Policy)
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
  if self.device then memory.limit(nil, self.device) end
end

return recompute
