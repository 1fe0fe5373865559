-- footprint.lua: the memory that training steps will take, known before they are taken: each is taken on the meta device first.
--
--   local f = footprint.new(run)      run: a table as trainer.lua makes it
--   f:step { tokens = 10000, layers = 0 }   bytes that a step takes at its peak, beyond what is held before it
--   footprint.largest(need, room, least, most)    the most tokens for which need(tokens) <= room
--   f:free()
--
-- The meta device runs the same allocator over the same sequence of tensors, so a peak found here is the peak to come, to the byte.
-- It grows with the tokens of the batch, not quite in a straight line; so the most tokens that fit are found by trying, between two
-- counts of which one is known to fit and the other is known not to.
--
-- A model on another device gets a twin without bytes, which lives until free(). A loss of the recipe's own may keep a state, or
-- read values where there are none; in its place a plain one is tried, for a loss takes little beside the layers.
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

-- The working memory of a thread of the CPU: attention's rows of one head of the longest sequence, eight times in words of four
-- bytes, rounded up in both directions; and blocks of products.
local HEAD_COPIES, MORE_ROWS, MORE_COLUMNS, BLOCKS = 8, 96, 32, 2 ^ 20

-- Of a GPU: LR_CUDA_GEMM_WORKSPACE of kernels/cuda/cuda.h, the adapters of one product (q, k and v), a row's two numbers and the
-- rows of a tile in attention's backward (attention.h), and by how much working memory is more than what was asked for (memory.c).
local CUBLASLT, ADAPTERS, STATISTICS, TILE_ROWS, GROWN, PAGE = 32 * 2 ^ 20, 3, 8, 64, 9 / 8, 4096

local function new(run)
  local model = run.model
  if model.device ~= "meta" then check(C.lr_meta_like(memory.DEVICES[model.device])) end
  local twin = model.device ~= "meta" and model:without_bytes() or nil
  local labels = { label_tensor = function(_, rows, device) return tensor.new({ #rows }, "f32", "labels", device) end }
  local shadow = setmetatable({ model = twin or model, stream = labels, recompute = {} }, { __index = run })
  return setmetatable({ run = shadow, model = shadow.model, twin = twin,
    loss = run.loss.stateless and run.loss or losses.cosine_similarity() }, Footprint)
end

-- A packed batch of so many tokens: what matters of it here is its shape.
local function batch_of(tokens, sequences)
  return { tokens = tokens, sequences = sequences, max_length = math.ceil(tokens / sequences), ids = NO_VALUES,
    positions = NO_VALUES, keys = NO_VALUES, cu_seqlens = NO_VALUES }
end

-- The pairs of a micro-batch of all ranks, dealt out in turn: so many of a batch of `batch`, of which `from` came before.
local function share_of(pairs_, batch, from)
  local all = pairs_ * comm.world_size
  local info = { step = 0, total = batch * comm.world_size, batch = batch * comm.world_size, from = from * comm.world_size,
    ends = from + pairs_ == batch, last = true, rows = {}, own = {}, owner = ffi.new("int32_t[?]", all) }
  for i = 1, all do
    info.rows[i], info.owner[i - 1] = i, (i - 1) % comm.world_size
    if info.owner[i - 1] == comm.rank then info.own[#info.own + 1] = i end
  end
  return info
end

-- Stands for batches.lua's next(): a micro-batch of `part` pairs after the other, each with so many tokens, of a batch.
local function stream(run, tokens, part, batch)
  local from = 0
  return function()
    local n = math.min(part, batch - from)
    local info = share_of(n, batch, from)
    from = info.ends and 0 or from + n
    return batch_of(math.max(n, math.ceil(tokens * n / part)), n * #run.options.columns), info
  end
end

-- Take the step. at_loss is called between forward and backward.
local function take(self, spec, at_loss)
  local run = self.run
  run.recompute.layers = function() return spec.layers end
  local loss = self.loss
  run.loss = setmetatable({ compute = function(...)
    local value = loss.compute(...)
    if at_loss then at_loss() end
    return value
  end }, { __index = loss })
  local part, batch = spec.pairs or run.part, spec.pairs or run.cached and run.options.batch or run.part
  run.cached = batch > part
  local ok, err = pcall(training_step.run, run, stream(run, spec.tokens, part, batch))
  run.cached = nil -- the run's own counts again
  if not ok then error(err, 0) end
end

--- step(spec): bytes of tensors beyond those held before, at the peak of a step. spec: { tokens: of a micro-batch, pairs: of it,
--- nil: those of the run's batch, or of its parts, layers: how many are computed again in backward }
function Footprint:step(spec)
  local before = memory.stats("meta").live_bytes
  memory.reset_peak "meta"
  take(self, spec)
  return memory.stats("meta").peak_bytes - before
end

--- kept(spec): what the forward pass of such a step leaves for backward: { { name, buffers, bytes } ... }, largest first.
function Footprint:kept(spec)
  local before, list = {}, {}
  local function holders() return memory.holders(1000, "meta") end
  for _, h in ipairs(holders()) do before[h.name] = h end
  local one = { tokens = spec.tokens, layers = spec.layers, pairs = self.run.part } -- of a batch in parts, one of them
  take(self, one, function()
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

--- evaluation(texts, tokens): bytes that evaluating so many distinct texts takes, with so many tokens a forward pass.
function Footprint:evaluation(texts, tokens)
  local model, world = self.model, comm.world_size
  local before = memory.stats("meta").live_bytes
  memory.reset_peak "meta"
  tensor.scope(function() -- which returns nothing: what a scope returns stays, and whoever counts next would see it go
    autograd.no_grad(model.forward, model, model:context(batch_of(tokens, math.ceil(tokens / model.max_length))))
  end)
  local shared = world > 1 and texts / world or 0 -- a rank's own, until those of all are gathered
  return memory.stats("meta").peak_bytes - before + (texts + shared) * model.dimension * 4
end

--- workspace(tokens, texts, device): at most so many bytes of working memory do a device's kernels take besides for a step. On the
--- CPU each thread's, and where a machine makes products of 16 bits in f32, copies of the widest layer's input and output. On a GPU
--- the most that one op wants: a product (cuBLASLt's, and adapters in 16 bits), or attention's backward.
function Footprint:workspace(tokens, texts, device)
  local model, widest = self.model, 0
  for _, layer in ipairs(model.linears) do widest = math.max(widest, layer.n + layer.k) end
  if device == "cuda" then
    local product = CUBLASLT + 2 * widest * ADAPTERS * model.lora.config.r
    return GROWN * math.max(product, STATISTICS * model.sizes.heads * (tokens + TILE_ROWS * texts)) + PAGE
  end
  local rows = HEAD_COPIES * 4 * (model.max_length + MORE_ROWS) * (model.sizes.head_dim + MORE_COLUMNS)
  return C.lr_threads() * (rows + BLOCKS) + (model.dtype == "f32" and 0 or tokens * widest * 4)
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
