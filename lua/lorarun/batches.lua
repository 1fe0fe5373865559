-- batches.lua: the training data as a stream of packed micro-batches, prepared ahead by loader threads.
--
-- A step takes `batch * accumulate` draws of the sampler, fewer at the end of an epoch; a micro-batch is at most `batch` of them,
-- both columns of every pair in one packed batch, column by column. All of it is a function of the step number, so a run that
-- resumes at step s sees what an undisturbed one sees.
local ffi = require "ffi"
local data = require "lorarun.data"
local tensor = require "lorarun.tensor"

local Batches = {}
Batches.__index = Batches

--- new{ set, model, columns, labels = C array or nil, draws = draws an epoch, sample = function(draw) -> row, batch, accumulate,
--- prefixes, threads, queue, first_step, last_step }
local function new(o)
  local self = setmetatable({ set = o.set, columns = o.columns, labels = o.labels, draws = o.draws, sample = o.sample,
    batch = o.batch, step_size = o.batch * o.accumulate, next_step = o.first_step, last_step = o.last_step, pending = {},
    head = 1, tail = 0, micro = 0 }, Batches)
  self.steps_per_epoch = math.ceil(o.draws / self.step_size)
  self.loader = data.loader(o.set, o.model.tokenizer, { columns = o.columns, prefixes = o.prefixes,
    max_length = o.model.max_length, threads = o.threads or 1, queue = o.queue or 4 })
  self:fill()
  return self
end

-- The draws of a step: first draw and how many.
function Batches:range(step)
  local epoch = math.floor(step / self.steps_per_epoch)
  local start = (step - epoch * self.steps_per_epoch) * self.step_size
  return epoch * self.draws + start, math.min(self.step_size, self.draws - start)
end

-- Submit micro-batches while the loader has room.
function Batches:fill()
  while self.next_step < self.last_step and self.loader:room() > 0 do
    local first, total = self:range(self.next_step)
    local from = self.micro * self.batch
    local n = math.min(self.batch, total - from)
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
    self.pending[self.tail] = { step = self.next_step, rows = picked, share = n / total, last = from + n == total }
    self.micro = self.micro + 1
    if from + n == total then self.micro, self.next_step = 0, self.next_step + 1 end
  end
end

--- next(): the next micro-batch: the loader's packed batch, and { step, rows, share = its part of the step's pairs, last = whether
--- the step ends with it }.
function Batches:next()
  local info = self.pending[self.head]
  self.pending[self.head] = nil
  self.head = self.head + 1
  local packed = self.loader:next()
  self:fill()
  return packed, info
end

--- Labels of a micro-batch as a tensor [n], or nil.
function Batches:label_tensor(info, device)
  if not self.labels then return nil end
  local n = #info.rows
  local values = ffi.new("float[?]", n)
  for i = 1, n do values[i - 1] = self.labels[info.rows[i]] end
  return tensor.from(values, { n }, "f32", "labels", device)
end

--- How many tokens the same micro-batch would have with each column padded to its longest text.
function Batches:padded_tokens(packed)
  local n = packed.sequences / #self.columns
  local padded = 0
  for c = 0, #self.columns - 1 do
    local longest = 0
    for i = c * n, (c + 1) * n - 1 do
      longest = math.max(longest, packed.cu_seqlens[i + 1] - packed.cu_seqlens[i])
    end
    padded = padded + longest * n
  end
  return padded
end

function Batches:close() self.loader:close() end

return { new = new }
