-- step.lua: forward and backward of a batch, whole or in parts. What comes of it are gradients and a loss, added to those
-- that there are, on the device (lora.lua's parameters); run: trainer.lua's table, or one like it (footprint.lua). take() ->
-- packed, info: batches.lua's next().
--
-- A batch that does not fit the memory is taken in parts (run.part pairs a rank each: recompute.lua chooses):
--   a loss that is a mean over pairs    each part is a small batch, weighed by its pairs: gradient accumulation
--   a loss that compares pairs          run.cached: the parts are embedded without keeping anything, the loss of all embeddings
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

local function context(run, packed, info)
  return run.model:context(packed, { training = true, seed = run.options.seed, step = info.step,
    recompute = run.recompute:layers(packed.tokens) })
end

--- prefetch(run, packed, info): hand this rank's share to the device now, for the run() that will get it: while the device is still
--- at work on the step before. The bytes wait in pinned memory (staging.c).
function training_step.prefetch(run, packed, info)
  if #info.own > 0 then info.context = tensor.persistent(context, run, packed, info) end
end

--- discard(info): free what was prefetched and is not wanted.
function training_step.discard(info)
  tensor.scope(function() tensor.own(info.context) end)
  info.context = nil
end

-- The embeddings of this rank's share, unit length.
local function embed(run, packed, info)
  local ctx = info.context or context(run, packed, info)
  if info.context then
    tensor.own(ctx)
    info.context = nil
  end
  local e = run.model:forward(ctx)
  return run.model.normalize and e or ops.normalize(e)
end

-- The loss of embeddings e, which are those of `rows`, column by column.
local function loss_of(run, e, rows)
  local n, columns = #rows, {}
  for c = 1, #run.options.columns do columns[c] = ops.rows(e, (c - 1) * n, c * n) end
  local labels = run.loss.needs_labels and run.stream:label_tensor(rows, run.model.device) or nil
  return run.loss.compute(columns, labels, e)
end

-- The loss as an error calls it.
local function name_of(run) return run.loss.name and ("the loss '%s'"):format(run.loss.name) or "the loss" end

-- What the gradient of a loss begins with: its weight in the step's loss, times the scale that an fp16 run's loss has.
local function seed(run, weight)
  local scale = run.optimizer and run.optimizer.scale
  return scale and ops.scale(scale, weight) or tensor.full({ 1 }, weight, "f32", "gradient", run.model.device)
end

-- Add a loss, with its weight, to that of the step.
local function add_loss(run, loss, weight)
  local sum = run.model.lora.parameters.loss
  check(C.lr_op_add(sum:matrix().handle, sum:matrix().handle, loss:matrix().handle, 1, weight))
end

-- Forward and backward of this rank's share of a micro-batch.
local function whole_batch(run, packed, info)
  local gather, own = run.loss.gather and comm.world_size > 1, #info.own
  local function of_all(e) return data_parallel.gather(e, info.owner, #info.rows, #run.options.columns, run.model.dimension) end
  if own == 0 then -- fewer pairs than ranks: nothing to do but to take part
    if gather then tensor.scope(of_all) end
    return
  end
  local rows = gather and info.rows or info.own
  tensor.scope(function()
    autograd.backward(function()
      local e = embed(run, packed, info)
      return loss_of(run, gather and of_all(e) or e, rows)
    end, seed(run, #rows / info.total), function(loss) add_loss(run, loss, own / info.total) end, name_of(run))
  end)
end

-- Embed a part, of which nothing is kept, and write the embeddings of all ranks to where they belong in `all`.
local function embed_part(run, all, packed, info)
  local columns, n = #run.options.columns, #info.rows
  local e = #info.own > 0 and embed(run, packed, info) or nil
  if comm.world_size > 1 then e = data_parallel.gather(e, info.owner, n, columns, run.model.dimension) end
  for c = 0, columns - 1 do
    local from = c * info.batch + info.from
    check(C.lr_op_cast(all:slice_rows(from, from + n).handle, e:slice_rows(c * n, (c + 1) * n).handle))
  end
end

-- Where in the whole batch this rank's embeddings of a part are.
local function own_places(run, info)
  local list = {}
  for c = 0, #run.options.columns - 1 do
    for i = 0, #info.rows - 1 do
      if info.owner[i] == comm.rank then list[#list + 1] = c * info.batch + info.from + i end
    end
  end
  return tensor.from(ffi.new("int32_t[?]", #list, list), { #list }, "i32", "places", run.model.device)
end

local function cached(run, take)
  local all, rows, own = nil, {}, 0
  local packed, info
  repeat
    packed, info = take()
    all = all or tensor.new({ #run.options.columns * info.batch, run.model.dimension }, "f32", "embeddings", run.model.device)
    tensor.scope(autograd.no_grad, embed_part, run, all, packed, info)
    for _, row in ipairs(info.rows) do rows[#rows + 1] = row end
    own = own + #info.own
  until info.ends
  local d_all = tensor.scope(autograd.gradient_of, function(e)
    local loss = autograd.checked_loss(loss_of(run, e, rows), name_of(run))
    add_loss(run, loss, own / info.total)
    return loss
  end, { all }, { seed(run, info.batch / info.total) })
  all:free()
  repeat
    packed, info = take()
    if #info.own > 0 then
      tensor.scope(function()
        local d = ops.gather_rows(d_all, own_places(run, info))
        autograd.gradient_of(function() return embed(run, packed, info) end, {}, { d })
      end)
    end
  until info.ends
  return info.last
end

--- run(run, take): forward and backward of the next micro-batch, or where run.cached of the next batch. Returns whether the step
--- ends with it.
function training_step.run(run, take)
  if run.cached then return tensor.scope(cached, run, take) end
  local packed, info = take()
  whole_batch(run, packed, info)
  return info.last
end

--- splittable(loss): may a batch be taken in parts? A loss of the recipe's own may be anything, and where ranks compare only their
--- own pairs, parts would be dealt out otherwise.
function training_step.splittable(loss)
  return loss.stateless and (loss.mean_over_pairs or comm.world_size == 1 or loss.gather) or false
end

return training_step
