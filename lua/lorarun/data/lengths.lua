-- lengths.lua: how many tokens the rows of a data set have, and so the batches that a run will make of them.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local batches = require "lorarun.data.batches"
local comm = require "lorarun.dist.comm"
local dataset = require "lorarun.data.dataset"
local using = require "lorarun.base.using"

local lengths = {}

local ROWS_A_BATCH = 256 -- tokenised at a time by the loader's threads

--- of_rows(set, tokenizer, o, rows, count): tokens of each of `count` rows, an int32_t array: all texts of a row together. rows: C
--- array of row numbers, or nil for the first `count`. o: { columns, prefixes, max_length, threads }
function lengths.of_rows(set, tokenizer, o, rows, count)
  local result, width = ffi.new("int32_t[?]", count), #o.columns
  local loader = dataset.loader(set, tokenizer, { columns = o.columns, prefixes = o.prefixes, max_length = o.max_length,
    threads = o.threads or 1 })
  using(loader, loader.close, function()
    local submitted, done = 0, 0
    while done < count do
      while submitted < count and loader:room() > 0 do
        local picked, columns, keys = {}, {}, {}
        for i = submitted, math.min(submitted + ROWS_A_BATCH, count) - 1 do
          for c = 1, width do
            local k = #picked + 1
            picked[k], columns[k], keys[k] = rows and rows[i] or i, c - 1, 0
          end
        end
        loader:submit(picked, columns, keys)
        submitted = submitted + #picked / width
      end
      local packed = loader:next()
      local cu = packed.cu_seqlens
      for i = 0, packed.sequences / width - 1 do result[done + i] = cu[(i + 1) * width] - cu[i * width] end
      done = done + packed.sequences / width
    end
  end)
  return result
end

-- Where there is no tokenizer: the bytes of a token on average, and the special tokens of a text.
local BYTES_A_TOKEN, SPECIAL_TOKENS = 3, 2

local function estimated(set, o, rows, count)
  local result = ffi.new("int32_t[?]", count)
  for i = 0, count - 1 do
    for c, name in ipairs(o.columns) do
      local bytes = set:text_size(rows[i], name) + #(o.prefixes[c] or "")
      result[i] = result[i] + math.min(o.max_length, math.ceil(bytes / BYTES_A_TOKEN) + SPECIAL_TOKENS)
    end
  end
  return result
end

-- Where there is no data: texts of about 12 tokens in the first column; in the others mostly short ones, some as long as may be.
local PURPOSE_LENGTHS = 0x504C414E
local word = ffi.new "uint32_t[4]"

local function assumed(o, count)
  local result = ffi.new("int32_t[?]", count)
  for i = 0, count - 1 do
    for c = 1, #o.columns do
      C.lr_random(0, PURPOSE_LENGTHS, c, i, word)
      local u = word[0] * 2 ^ -32
      local tokens = c == 1 and 4 + 17 * u or 30 + 240 * u * u + 300 * u ^ 8
      result[i] = result[i] + math.min(o.max_length, math.floor(tokens))
    end
  end
  return result
end

local SAMPLED_BATCHES, SAMPLED_PAIRS = 200, 20000

-- The draws of up to SAMPLED_BATCHES micro-batches, spread evenly over the run: { first draw, how many } each.
local function spread(o)
  local all = o.total_steps * o.accumulate
  local n = math.max(1, math.min(all, SAMPLED_BATCHES, math.ceil(SAMPLED_PAIRS / o.batch)))
  local list = {}
  for i = 0, n - 1 do
    local k = math.floor(i * all / n)
    local first, total = batches.range(math.floor(k / o.accumulate), o.draws, o.batch * o.accumulate)
    local from = k % o.accumulate * o.batch
    if from < total then list[#list + 1] = { first + from, math.min(o.batch, total - from) } end
  end
  return list
end

--- sample(o): the batches of a run on one rank, by a sample of them: { batches, mean and largest tokens, pair = mean tokens of a
--- pair, source = a text that says where the lengths come from }, and largest_part(n): the most tokens of a part of n pairs. o:
--- columns, prefixes, max_length, batch, accumulate, draws, total_steps, threads; set and sample (of the run's data) or nil;
--- tokenizer or nil.
function lengths.sample(o)
  local list, count = spread(o), 0
  for _, b in ipairs(list) do count = count + b[2] end
  local rows, k = ffi.new("int64_t[?]", count), 0
  for _, b in ipairs(list) do
    for i = 0, b[2] - 1 do
      rows[k] = o.set and o.sample(b[1] + i) or k
      k = k + 1
    end
  end
  local tokens, source
  if not o.set then
    tokens = assumed(o, count)
    source = ("assumed, there being no data: about 12 tokens in the first column, 30 to %d in others"):format(
      math.min(o.max_length, 512))
  elseif not o.tokenizer then
    tokens = estimated(o.set, o, rows, count)
    source = ("estimated, there being no tokenizer.json: %d bytes a token"):format(BYTES_A_TOKEN)
  else
    tokens, source = lengths.of_rows(o.set, o.tokenizer, o, rows, count), "counted in the data"
  end
  local sum = 0
  for i = 0, count - 1 do sum = sum + tokens[i] end
  local function largest_part(pairs_)
    local most, at = 0, 0
    for _, b in ipairs(list) do
      for from = at, at + b[2] - 1, pairs_ do
        local n = 0
        for i = from, math.min(from + pairs_, at + b[2]) - 1 do n = n + tokens[i] end
        most = math.max(most, n)
      end
      at = at + b[2]
    end
    return most
  end
  return { batches = #list, largest = largest_part(o.batch), mean = sum / #list, pair = sum / count, source = source }, largest_part
end

--- largest_batch(o, row_tokens): the most tokens that a rank will have in a micro-batch of the steps o.first_step to o.last_step,
--- and the step it is in. o: draws, sample, batch, accumulate, part as batches.new takes them; row_tokens[row]: tokens of a row.
--- Where several ranks share a batch, theirs differ by at most the longest row.
function lengths.largest_batch(o, row_tokens)
  local world = comm.world_size
  local most, at, batch, part = 0, o.first_step, o.batch * world, (o.part or o.batch) * world
  for step = o.first_step, o.last_step - 1 do
    local first, total = batches.range(step, o.draws, batch * o.accumulate)
    local from = 0
    while from < total do
      local ends = math.min(from + part, from - from % batch + batch, total) -- of a part, its batch, the step
      local tokens, longest = 0, 0
      for draw = first + from, first + ends - 1 do
        local n = row_tokens[o.sample(draw)]
        tokens, longest = tokens + n, math.max(longest, n)
      end
      tokens = math.ceil(tokens / world) + (world > 1 and longest or 0)
      if tokens > most then most, at = tokens, step + 1 end
      from = ends
    end
  end
  return most, at
end

return lengths
