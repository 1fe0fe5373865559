-- step.lua: one training step: forward and backward of a batch, whole or in parts.
--
--   local step = training_step.new { model = model, loss = loss, source = batches, optimizer = optimizer, columns = 2, seed = 1,
--     plan = plan }
--   step:run(at)          every micro-batch of the next step
--   step:fetch_ahead()    hand the first micro-batch of the step after that to the device, which is still at work on this one
--   step:close()
--
-- A step adds its gradients and its loss to model.lora.parameters, on the device; optim.lua takes them from there. The source of
-- batches has the methods of data/batches.lua; where only batch() is called, next() and label_tensor() are enough. The plan
-- (recompute.lua) says how a batch is taken: layers(tokens) of a micro-batch are recomputed in backward, and where the whole batch
-- does not fit the memory it comes in parts of plan.part pairs a rank:
--   a loss that is a mean over pairs    each part is a small batch, weighted by its pairs: gradient accumulation
--   a loss that compares pairs          plan.cached: the parts are embedded without keeping anything, the loss of all embeddings
--                                       gives the gradient of each, and the parts are embedded again to pass it on (GradCache: Gao
--                                       et al., 2021). Dropout's masks depend on keys, so they are the same both times.
-- Both are the gradients of the whole batch, up to rounding.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local autograd = require "lorarun.tensor.autograd"
local check = require "lorarun.base.check"
local comm = require "lorarun.dist.comm"
local ops = require "lorarun.tensor.ops"
local data_parallel = require "lorarun.dist.data_parallel"
local tensor = require "lorarun.tensor.tensor"

local training_step = {}
local Step = {}
Step.__index = Step

--- new(given): given = { model (with adapters), loss (a table as in loss.lua), source, optimizer (nil: gradients alone), columns =
--- how many texts a pair has, seed = of dropout, plan = { cached, layers(self, tokens) }, ranks = { rank, world_size } where these
--- are not the ranks of the job: a step that is only counted on the meta device exchanges nothing }.
---
--- step.counts is what all steps took so far: tokens and pairs of all ranks, padded = tokens if every column were padded to its
--- longest text, fullest = tokens of the rank with most of each micro-batch, wait = seconds that this rank waited for data.
function training_step.new(given)
  return setmetatable({ model = given.model, loss = given.loss, source = given.source, optimizer = given.optimizer,
    columns = given.columns, seed = given.seed, plan = given.plan, ranks = given.ranks or comm,
    counts = { tokens = 0, pairs = 0, padded = 0, fullest = 0, wait = 0 } }, Step)
end

-- ---- batches -------------------------------------------------------------------------------------------------------------------

local function context(self, packed, info)
  return self.model:context(packed, { training = true, seed = self.seed, step = info.step,
    recompute = self.plan:layers(packed.tokens) })
end

-- The next micro-batch of the source.
local function fetch(self)
  local packed, info = self.source:next()
  self.counts.wait = self.counts.wait + (packed.wait or 0)
  return packed, info
end

-- The next micro-batch: the one that was fetched ahead, or the source's.
local function next_batch(self)
  local ahead = self.ahead
  self.ahead = nil
  if ahead then return ahead.packed, ahead.info end
  return fetch(self)
end

--- fetch_ahead(): the bytes of this rank's share of the next micro-batch wait in pinned memory (staging.c).
function Step:fetch_ahead()
  local packed, info = fetch(self)
  self.ahead = { packed = packed, info = info }
  if #info.own > 0 then info.context = tensor.persistent(context, self, packed, info) end
end

--- close(): no more steps; the source is closed. What was fetched ahead is freed, where the run ends before its last step.
function Step:close()
  if self.ahead and self.ahead.info.context then
    local ctx = self.ahead.info.context
    tensor.scope(function() tensor.own(ctx) end)
  end
  self.ahead = nil
  self.source:close()
end

-- ---- forward and backward ------------------------------------------------------------------------------------------------------

-- The embeddings of this rank's share, unit length.
local function embed(self, packed, info)
  local ctx = info.context or context(self, packed, info)
  if info.context then
    tensor.own(ctx)
    info.context = nil
  end
  local e = self.model:forward(ctx)
  return self.model.normalize and e or ops.normalize(e)
end

-- The loss of embeddings e, which are those of `rows`, column by column.
local function loss_of(self, e, rows)
  local n, columns = #rows, {}
  for c = 1, self.columns do columns[c] = ops.rows(e, (c - 1) * n, c * n) end
  local labels = self.loss.needs_labels and self.source:label_tensor(rows, self.model.device) or nil
  return self.loss.compute(columns, labels, e)
end

-- The loss as an error calls it.
local function name_of(loss) return loss.name and ("the loss '%s'"):format(loss.name) or "the loss" end

-- The gradient with which backward begins: the weight of a loss in the step's, times an fp16 run's scale of the loss.
local function seed(self, weight)
  local scale = self.optimizer and self.optimizer.scale
  return scale and ops.scale(scale, weight) or tensor.full({ 1 }, weight, "f32", "gradient", self.model.device)
end

-- Add a loss, with its weight, to that of the step.
local function add_loss(self, loss, weight)
  local sum = self.model.lora.parameters.loss
  check(C.lr_op_add(sum:matrix().handle, sum:matrix().handle, loss:matrix().handle, 1, weight))
end

-- Forward and backward of this rank's share of a micro-batch.
local function whole_batch(self, packed, info)
  local gather, own = self.loss.gather and self.ranks.world_size > 1, #info.own
  local function of_all(e)
    return data_parallel.gather(e, info.owner, #info.rows, self.columns, self.model.dimension, self.ranks)
  end
  if own == 0 then -- fewer pairs than ranks: nothing to do but to take part
    if gather then tensor.scope(of_all) end
    return
  end
  local rows = gather and info.rows or info.own
  tensor.scope(function()
    autograd.backward(function()
      local e = embed(self, packed, info)
      return loss_of(self, gather and of_all(e) or e, rows)
    end, seed(self, #rows / info.total), function(loss) add_loss(self, loss, own / info.total) end, name_of(self.loss))
  end)
end

-- Embed a part, of which nothing is kept, and write the embeddings of all ranks to where they belong in `all`.
local function embed_part(self, all, packed, info)
  local columns, n = self.columns, #info.rows
  local e = #info.own > 0 and embed(self, packed, info) or nil
  if self.ranks.world_size > 1 then
    e = data_parallel.gather(e, info.owner, n, columns, self.model.dimension, self.ranks)
  end
  for c = 0, columns - 1 do
    local from = c * info.batch + info.from
    check(C.lr_op_cast(all:slice_rows(from, from + n).handle, e:slice_rows(c * n, (c + 1) * n).handle))
  end
end

-- Where in the whole batch this rank's embeddings of a part are.
local function own_places(self, info)
  local list = {}
  for c = 0, self.columns - 1 do
    for i = 0, #info.rows - 1 do
      if info.owner[i] == self.ranks.rank then list[#list + 1] = c * info.batch + info.from + i end
    end
  end
  return tensor.from(ffi.new("int32_t[?]", #list, list), { #list }, "i32", "places", self.model.device)
end

local function cached_batch(self, take)
  local all, rows, own = nil, {}, 0
  local packed, info
  repeat
    packed, info = take(self)
    all = all or tensor.new({ self.columns * info.batch, self.model.dimension }, "f32", "embeddings", self.model.device)
    tensor.scope(autograd.no_grad, embed_part, self, all, packed, info)
    for _, row in ipairs(info.rows) do rows[#rows + 1] = row end
    own = own + #info.own
  until info.ends
  local d_all = tensor.scope(autograd.gradient_of, function(e)
    local loss = autograd.checked_loss(loss_of(self, e, rows), name_of(self.loss))
    add_loss(self, loss, own / info.total)
    return loss
  end, { all }, { seed(self, info.batch / info.total) })
  all:free()
  repeat
    packed, info = take(self)
    if #info.own > 0 then
      tensor.scope(function()
        local d = ops.gather_rows(d_all, own_places(self, info))
        autograd.gradient_of(function() return embed(self, packed, info) end, {}, { d })
      end)
    end
  until info.ends
  return info.last
end

-- Forward and backward of the next micro-batch, or of the next batch where it is cached; take(self) -> packed, info gives the
-- micro-batches. Returns whether the step ends with it.
local function take_batch(self, take)
  if self.plan.cached then return tensor.scope(cached_batch, self, take) end
  local packed, info = take(self)
  whole_batch(self, packed, info)
  return info.last
end

--- batch(): forward and backward of the next micro-batch, or of the next batch where plan.cached, added to the gradients that there
--- are. Returns whether the step ends with it.
function Step:batch() return take_batch(self, next_batch) end

--- run(at): all of the next step, its gradients and its loss added up from 0. at.tokens and at.pairs become those of this rank's
--- micro-batch, so that an out-of-memory error can name it (memory.during).
function Step:run(at)
  local counts = self.counts
  local function take()
    local packed, info = next_batch(self)
    at.tokens, at.pairs = packed.tokens, #info.own
    if info.pass == 1 then
      counts.tokens, counts.pairs = counts.tokens + info.tokens, counts.pairs + #info.rows
      counts.padded, counts.fullest = counts.padded + self.source:padded_tokens(info), counts.fullest + info.most_tokens
    end
    return packed, info
  end
  self.model.lora.parameters.step_scalars:fill(0)
  repeat until take_batch(self, take)
end

--- splittable(loss): may a batch be taken in parts? A loss of the recipe's own may be anything, and where ranks compare only their
--- own pairs, parts would be dealt out otherwise.
function training_step.splittable(loss)
  return loss.stateless and (loss.mean_over_pairs or comm.world_size == 1 or loss.gather) or false
end

return training_step
