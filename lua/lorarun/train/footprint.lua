-- footprint.lua: how much memory training steps will take, known beforehand: each step is taken on the meta device first.
--
--   local f = footprint.new { model = model, loss = loss, columns = 2 }
--   f:step { tokens = 10000, pairs = 64, layers = 0 }   bytes of a step's tensors at their peak, beyond what is held before it,
--                                                       and of its kernels' scratch
--   footprint.largest(need, room, least, most)          the most tokens for which need(tokens) <= room
--   f:free()
--
-- The meta device runs the same allocator over the same sequence of tensors, so a peak found here is the peak to come, to the byte.
-- It grows with the tokens of the batch, not quite in a straight line; so the most tokens that fit are found by trying, between two
-- counts of which one is known to fit and the other is known not to.
--
-- A model on another device gets a twin without bytes, which lives until free(). A loss of the recipe's own may keep a state, or
-- read values where there are none; a plain loss is tried in its place, for a loss takes little beside the layers.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local autograd = require "lorarun.tensor.autograd"
local comm = require "lorarun.dist.comm"
local losses = require "lorarun.train.loss"
local memory = require "lorarun.tensor.memory"
local training_step = require "lorarun.train.step"
local tensor = require "lorarun.tensor.tensor"

local Footprint = {}
Footprint.__index = Footprint

local NO_VALUES = ffi.new "int64_t[1]" -- what is written to the meta device is never read
local PRECISION = 1000 -- the count found is within a thousandth of the largest

--- new(given): given = { model, loss, columns = how many texts a pair has }
local function new(given)
  local model = given.model
  if model.device ~= "meta" then check(C.lr_meta_like(memory.DEVICES[model.device])) end
  local twin = model.device ~= "meta" and model:without_bytes() or nil
  return setmetatable({ model = twin or model, twin = twin, columns = given.columns,
    loss = given.loss.stateless and given.loss or losses.cosine_similarity() }, Footprint)
end

-- A packed batch with this many tokens: what matters of it here is its shape. Its longest text is assumed to have max_length
-- tokens: the CPU's attention has scratch for that one.
local function batch_of(model, tokens, sequences)
  return { tokens = tokens, sequences = sequences, max_length = math.min(tokens, model.max_length), ids = NO_VALUES,
    positions = NO_VALUES, keys = NO_VALUES, cu_seqlens = NO_VALUES }
end

-- The pairs of a micro-batch of all ranks, dealt out in turn: `pairs_` on each rank, of a batch of `batch`, after the first `from`.
local function share_of(pairs_, batch, from, ranks)
  local world = ranks.world_size
  local all = pairs_ * world
  local info = { step = 0, total = batch * world, batch = batch * world, from = from * world, ends = from + pairs_ == batch,
    last = true, rows = {}, own = {}, owner = ffi.new("int32_t[?]", all) }
  for i = 1, all do
    info.rows[i], info.owner[i - 1] = i, (i - 1) % world
    if info.owner[i - 1] == ranks.rank then info.own[#info.own + 1] = i end
  end
  return info
end

-- A source of batches (train/step.lua): one micro-batch after the other, of spec.pairs pairs and spec.tokens tokens each; together
-- they are a batch of `batch` pairs.
local function source(model, spec, batch, columns, ranks)
  local from = 0
  return {
    next = function()
      local n = math.min(spec.pairs, batch - from)
      local info = share_of(n, batch, from, ranks)
      from = info.ends and 0 or from + n
      return batch_of(model, math.max(n, math.ceil(spec.tokens * n / spec.pairs)), n * columns), info
    end,
    label_tensor = function(_, rows, device) return tensor.new({ #rows }, "f32", "labels", device) end,
  }
end

-- Take the step. at_loss is called between forward and backward.
local function take(self, spec, at_loss)
  local batch, ranks, compute = spec.batch or spec.pairs, spec.ranks or comm, self.loss.compute
  local loss = setmetatable({ compute = function(...)
    local value = compute(...)
    if at_loss then at_loss() end
    return value
  end }, { __index = self.loss })
  training_step.new { model = self.model, loss = loss, source = source(self.model, spec, batch, self.columns, ranks),
    columns = self.columns, seed = 0, ranks = ranks,
    plan = { cached = batch > spec.pairs, layers = function() return spec.layers end } }:batch()
end

--- step(spec): bytes of tensors beyond those held before, at the peak of a step, and the bytes of its kernels' scratch. spec:
--- { tokens and pairs = of a micro-batch of one rank, layers = how many are computed again in backward, batch = pairs of a batch
--- that is taken in cached parts of `pairs`, ranks = { rank, world_size } where the step is that of another job }
function Footprint:step(spec)
  local before = memory.stats("meta").live_bytes
  memory.reset_peak "meta"
  take(self, spec)
  local stats = memory.stats "meta"
  return stats.peak_bytes - before, stats.scratch_bytes
end

--- kept(spec): what the forward pass of a micro-batch leaves for backward: { { name, buffers, bytes } ... }, largest first.
--- spec: { tokens, pairs, layers }
function Footprint:kept(spec)
  local before, list = {}, {}
  local function holders() return memory.holders(1000, "meta") end
  for _, h in ipairs(holders()) do before[h.name] = h end
  take(self, spec, function()
    for _, h in ipairs(holders()) do
      local was = before[h.name] or { bytes = 0, buffers = 0 }
      if h.bytes > was.bytes then
        list[#list + 1] = { name = h.name, bytes = h.bytes - was.bytes, buffers = h.buffers - was.buffers }
      end
    end
  end)
  table.sort(list, function(a, b) return a.bytes > b.bytes end)
  return list
end

--- evaluation(texts, tokens): the same of evaluating this many distinct texts, with this many tokens a forward pass.
function Footprint:evaluation(texts, tokens)
  local model, world = self.model, comm.world_size
  local before = memory.stats("meta").live_bytes
  memory.reset_peak "meta"
  tensor.scope(function() -- which returns nothing: what a scope returns stays, and the next count would see it go
    autograd.no_grad(model.forward, model, model:context(batch_of(model, tokens, math.ceil(tokens / model.max_length))))
  end)
  local shared = world > 1 and texts / world or 0 -- a rank's own, until those of all are gathered
  local stats = memory.stats "meta"
  return stats.peak_bytes - before + (texts + shared) * model.dimension * 4, stats.scratch_bytes
end

--- largest(need, room, least, most): the most tokens, from `least` to `most`, for which need(tokens) <= room; nil where `least` is
--- too much. need grows with the tokens. The answer was tried.
local function largest(need, room, least, most)
  local low, low_need = least, need(least)
  if low_need > room then return nil end
  local high, high_need = most, need(most)
  if high_need <= room then return most end
  while high - low > math.max(1, low / PRECISION) do
    -- Memory is nearly a straight line: where it meets the room, but for a little that keeps the ends moving towards each other.
    local share = (room - low_need) / (high_need - low_need)
    local guess = low + (high - low) * math.max(0.02, math.min(0.98, share))
    guess = math.max(low + 1, math.min(high - 1, math.floor(guess)))
    local found = need(guess)
    if found <= room then low, low_need = guess, found else high, high_need = guess, found end
  end
  return low
end

function Footprint:free()
  if self.twin then self.twin:free() end
  self.twin = nil
end

return { new = new, largest = largest }
