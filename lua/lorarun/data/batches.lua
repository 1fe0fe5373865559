-- batches.lua: the training data as a stream of packed micro-batches, prepared ahead by loader threads.
--
-- A step takes `batch * accumulate` draws of the sampler on each rank, fewer at the end of an epoch; a micro-batch is at most
-- `batch` a rank, all columns of every pair in one packed batch, column by column; where memory is short, a part of that, and each
-- part of a batch comes as often as there are passes over the batch (train/step.lua). The draws are those of all ranks together, in
-- one order however many ranks there are; which rank gets which pair follows from their lengths (lr_balance), which every rank
-- knows. All of it is a function of the step number, so a run that resumes at step s sees what an undisturbed one sees.
local ffi = require "ffi"
local comm = require "lorarun.dist.comm"
local dataset = require "lorarun.data.dataset"
local tensor = require "lorarun.tensor.tensor"

local Batches = {}
Batches.__index = Batches

--- new{ set, model, columns, labels = C array or nil, draws = draws an epoch, sample = function(draw) -> row, batch = pairs a rank,
--- accumulate, part = pairs a rank in a part (batch where nil), passes = over a batch (1), prefixes, threads, queue, first_step,
--- last_step, ranks = { rank, world_size } where they are not the job's }
local function new(o)
  local ranks = o.ranks or comm
  local world = ranks.world_size
  local self = setmetatable({ ranks = ranks, set = o.set, columns = o.columns, labels = o.labels, draws = o.draws,
    sample = o.sample, batch = o.batch * world, step_size = o.batch * world * o.accumulate, next_step = o.first_step,
    part = (o.part or o.batch) * world, passes = o.passes or 1, last_step = o.last_step, pending = {}, head = 1, tail = 0,
    at = 0, from = 0, pass = 1 }, Batches) -- the batch begins at draw `at` of its step, the next part at `from`
  self.loader = dataset.loader(o.set, o.model.tokenizer, { columns = o.columns, prefixes = o.prefixes,
    max_length = o.model.max_length, threads = o.threads or 1, queue = o.queue or 4,
    balance = { world = world, rank = ranks.rank } })
  self:fill()
  return self
end

--- range(step, draws, step_size): the draws of a step, where an epoch and a step have this many: the first, and how many.
local function range(step, draws, step_size)
  local steps_per_epoch = math.ceil(draws / step_size)
  local epoch = math.floor(step / steps_per_epoch)
  local start = (step - epoch * steps_per_epoch) * step_size
  return epoch * draws + start, math.min(step_size, draws - start)
end

-- Submit micro-batches while the loader has room.
function Batches:fill()
  while self.next_step < self.last_step and self.loader:room() > 0 do
    local first, total = range(self.next_step, self.draws, self.step_size)
    local from, batch_ends = self.from, math.min(self.at + self.batch, total)
    local n = math.min(self.part, batch_ends - from)
    local picked, rows, columns, keys = {}, {}, {}, {}
    for i = 0, n - 1 do picked[i + 1] = self.sample(first + from + i) end
    for c = 1, #self.columns do
      for i = 1, n do
        rows[#rows + 1], columns[#columns + 1] = picked[i], c - 1
        keys[#keys + 1] = (from + i - 1) * #self.columns + c - 1 -- unique within the step: what dropout masks depend on
      end
    end
    self.loader:submit(rows, columns, keys)
    self.tail = self.tail + 1
    local ends = from + n == batch_ends
    local over = ends and self.pass == self.passes
    self.pending[self.tail] = { step = self.next_step, rows = picked, total = total, batch = batch_ends - self.at,
      from = from - self.at, pass = self.pass, ends = ends, last = over and batch_ends == total }
    if over then self.at, self.pass = batch_ends, 1 elseif ends then self.pass = self.pass + 1 end
    self.from = ends and self.at or from + n
    if over and batch_ends == total then self.at, self.from, self.next_step = 0, 0, self.next_step + 1 end
  end
end

--- next(): the next micro-batch: this rank's packed batch, and what it is a share of: { step, total = pairs of the whole step,
--- rows = those of all ranks, own = this rank's, owner[i] = the rank that has rows[i + 1], last = whether the step ends with it,
--- tokens = of all ranks, most_tokens = of the rank that has most; and of the batch it is a part of: batch = its pairs, from = how
--- many of them came before, pass, ends = whether the pass ends with it }. Valid until the next call.
function Batches:next()
  local info = self.pending[self.head]
  self.pending[self.head] = nil
  self.head = self.head + 1
  local packed = self.loader:next()
  self:fill()
  info.own, info.owner, info.lengths, info.tokens, info.most_tokens = {}, packed.owner, packed.lengths, 0, 0
  for i, row in ipairs(info.rows) do
    if packed.owner[i - 1] == self.ranks.rank then info.own[#info.own + 1] = row end
  end
  for rank = 0, self.ranks.world_size - 1 do
    local tokens = tonumber(packed.rank_tokens[rank])
    info.tokens, info.most_tokens = info.tokens + tokens, math.max(info.most_tokens, tokens)
  end
  return packed, info
end

--- Labels of some rows as a tensor, or nil where there are none.
function Batches:label_tensor(rows, device)
  if not self.labels then return nil end
  local n = #rows
  local values = ffi.new("float[?]", n)
  for i = 1, n do values[i - 1] = self.labels[rows[i]] end
  return tensor.from(values, { n }, "f32", "labels", device)
end

--- How many tokens the same micro-batch would have with each column padded to its longest text.
function Batches:padded_tokens(info)
  local n, padded = #info.rows, 0
  for c = 0, #self.columns - 1 do
    local longest = 0
    for i = c * n, (c + 1) * n - 1 do longest = math.max(longest, info.lengths[i]) end
    padded = padded + longest * n
  end
  return padded
end

function Batches:close() self.loader:close() end

return { new = new, range = range }
