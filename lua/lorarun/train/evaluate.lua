-- evaluate.lua: how well the similarity of two texts agrees with a score of the pair. Each distinct text of the data set is encoded
-- once, longest first; then every row is one dot product.
--
-- Several ranks share the encoding: the batches are those that one rank alone would make, each encoded by one rank, so that the
-- embeddings are the same bits. Every rank calls these functions with the same arguments and gets the same figures.
local ffi = require "ffi"
local bit = require "bit"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local comm = require "lorarun.dist.comm"
local dataset = require "lorarun.data.dataset"
local metrics = require "lorarun.train.metrics"
local options = require "lorarun.base.options"
local ops = require "lorarun.tensor.ops"
local data_parallel = require "lorarun.dist.data_parallel"
local tensor = require "lorarun.tensor.tensor"
local autograd = require "lorarun.tensor.autograd"
local using = require "lorarun.base.using"

local evaluate = {}

evaluate.BATCH_BYTES = 24576 -- of text, a forward pass: about 8,000 tokens of code
local BATCH_BYTES = evaluate.BATCH_BYTES
local BATCH_TEXTS = 1024

-- Number the distinct texts of the given columns. Returns index[c][row] (C arrays, from 0) and { count, row, column }: where each
-- text is first found.
local function distinct(set, columns, prefixes)
  local rows = set.rows
  local total = rows * #columns
  local capacity = 16
  while capacity < total * 2 do capacity = capacity * 2 end
  local slots, keys = ffi.new("int32_t[?]", capacity), ffi.new("uint64_t[?]", total)
  ffi.fill(slots, capacity * 4, 0xff) -- -1: empty
  local place_row, place_column = ffi.new("int64_t[?]", total), ffi.new("int32_t[?]", total)
  local index, count = {}, 0
  for c, name in ipairs(columns) do
    local hashes = set:hashes(name)
    local salt = 0ULL -- equal texts after different prompts are different texts
    for k = 1, c do
      if (prefixes[k] or "") == (prefixes[c] or "") then salt = ffi.cast("uint64_t", k - 1) * 0x9E3779B97F4A7C15ULL break end
    end
    local mine = ffi.new("int32_t[?]", rows)
    for row = 0, rows - 1 do
      local key = hashes[row] + salt
      local slot = tonumber(bit.band(bit.bxor(key, bit.rshift(key, 29)), capacity - 1))
      while slots[slot] >= 0 and keys[slots[slot]] ~= key do slot = slot + 1 if slot == capacity then slot = 0 end end
      if slots[slot] < 0 then
        slots[slot], keys[count], place_row[count], place_column[count] = count, key, row, c - 1
        count = count + 1
      end
      mine[row] = slots[slot]
    end
    index[c] = mine
  end
  return index, { count = count, row = place_row, column = place_column }
end

--- distinct_texts(set, columns, prefixes): how many there are.
function evaluate.distinct_texts(set, columns, prefixes)
  local _, texts = distinct(set, columns, prefixes)
  return texts.count
end

-- The distinct texts longest first, so that a batch holds texts of one length and the first batch is the largest memory will see,
-- cut into batches { first, last, bytes }: ranges of `order`.
local function cut_batches(set, columns, distinct_texts, max_length)
  local count, place_row, place_column = distinct_texts.count, distinct_texts.row, distinct_texts.column
  local order, length = {}, ffi.new("int64_t[?]", count)
  for i = 0, count - 1 do
    order[i + 1] = i
    length[i] = set:text_size(place_row[i], columns[place_column[i] + 1])
  end
  table.sort(order, function(a, b)
    if length[a] ~= length[b] then return length[a] > length[b] end
    return a < b
  end)
  local batches, batch = {}, nil
  for k, i in ipairs(order) do
    local bytes = math.min(tonumber(length[i]) + 8, max_length * 8)
    if not batch or k - batch.first == BATCH_TEXTS or batch.bytes + bytes > BATCH_BYTES then
      batch = { first = k, bytes = 0 }
      batches[#batches + 1] = batch
    end
    batch.last, batch.bytes = k, batch.bytes + bytes
  end
  return order, batches
end

-- Deal the batches out to the ranks. Returns the list of this rank's, and where each text's embedding will be when those of all
-- ranks lie one after the other, each in the order of its batches.
local function share_out(order, batches)
  local n = #batches
  local weights, owner = ffi.new("int64_t[?]", n), ffi.new("int32_t[?]", n)
  for b, batch in ipairs(batches) do weights[b - 1] = batch.bytes end
  check.call(C.lr_balance, n, weights, comm.world_size, owner)
  local place, own, at = ffi.new("int32_t[?]", #order), {}, 0
  for rank = 0, comm.world_size - 1 do
    for b, batch in ipairs(batches) do
      if owner[b - 1] == rank then
        for k = batch.first, batch.last do
          place[order[k]] = at
          at = at + 1
        end
        if rank == comm.rank then own[#own + 1] = batch end
      end
    end
  end
  return own, place
end

-- The embeddings of this rank's batches, one after the other, or nil where it has none; and what ended() returned, where that ended
-- it before the last batch.
local function encode(model, loader, texts, order, batches, on_progress, ended)
  local count = 0
  for _, batch in ipairs(batches) do count = count + batch.last - batch.first + 1 end
  if count == 0 then return nil end
  local mine = tensor.persistent(tensor.new, { count, model.dimension }, "f32", "evaluation embeddings", model.device)
  local submitted, done, by = 0, 0, nil
  using.made(mine, mine.free, function()
    for _, batch in ipairs(batches) do
      by = ended and ended()
      if by then return end
      while loader:room() > 0 and submitted < #batches do
        submitted = submitted + 1
        local rows, columns, keys = {}, {}, {}
        for k = batches[submitted].first, batches[submitted].last do
          rows[#rows + 1], columns[#columns + 1], keys[#keys + 1] = texts.row[order[k]], texts.column[order[k]], 0
        end
        loader:submit(rows, columns, keys)
      end
      local n = batch.last - batch.first + 1
      tensor.scope(function()
        local e = autograd.no_grad(model.forward, model, model:context(loader:next()))
        if not model.normalize then e = ops.normalize(e) end
        check(C.lr_op_cast(mine:slice_rows(done, done + n).handle, e.handle))
      end)
      done = done + n
      if on_progress then on_progress(done, count) end
    end
  end)
  return mine, by
end

-- Cosine of the embeddings of two texts, for every row.
local function row_products(all, first, second, rows)
  local result, chunk = ffi.new("double[?]", rows), 1024
  for from = 0, rows - 1, chunk do
    local n = math.min(chunk, rows - from)
    tensor.scope(function()
      local function side(index) return ops.gather_rows(all, tensor.from(index + from, { n }, "i32", "rows", all.device)) end
      local values = ops.row_dot(side(first), side(second)):data()
      for k = 0, n - 1 do result[from + k] = values[k] end
    end)
  end
  return result
end

local SIMILARITIES = { columns = options.table, prompts = options.table, prefixes = options.table, threads = options.whole(1),
  on_progress = options.func, ended = options.func }
local RUN = { score = options.text, group = options.maybe(options.text), sweep = options.whole(0) }
for name, kind in pairs(SIMILARITIES) do RUN[name] = kind end

-- The options with their defaults, each checked.
local function checked(model, set, given, what, kinds)
  require("lorarun.models.model").expect(model, what)
  if type(set) ~= "table" or not set.rows then
    check.fail("%s: the second argument is %s, expected a data set, as lr.data.open gives it", what, options.shown(set))
  end
  given = options.check(what, given, kinds)
  local o = { score = "score", threads = 1 }
  for name, value in pairs(given) do o[name] = value end
  if not o.columns then check.fail("%s needs the columns that are compared: columns = { name, name }", what) end
  if #o.columns ~= 2 then check.fail("%s: columns names %d, expected the two that are compared", what, #o.columns) end
  if o.prompts and o.prefixes then check.fail("%s: prompts and prefixes are both given: give one of them", what) end
  if o.prefixes and next(o.prefixes) ~= nil and #o.prefixes == 0 then
    check.fail("%s: prefixes is a list, one text a column; by the column's name there are prompts", what)
  end
  o.prefixes = o.prefixes or model:prefixes(o.columns, o.prompts)
  return o
end

local function similarities(model, set, o)
  local columns, prefixes = o.columns, o.prefixes
  local index, texts = distinct(set, columns, prefixes)
  local order, batches = cut_batches(set, columns, texts, model.max_length)
  local own, place = share_out(order, batches)
  local loader = dataset.loader(set, model.tokenizer, { columns = columns, prefixes = prefixes, max_length = model.max_length,
    threads = o.threads or 1, queue = 4 })
  local mine, by = using(loader, loader.close, function()
    return encode(model, loader, texts, order, own, o.on_progress, o.ended)
  end)
  if o.ended then by = comm.all_reduce(by or o.ended() or 0, "max") end
  if (by or 0) ~= 0 then
    if mine then mine:free() end
    return nil, by
  end
  local all = mine
  if comm.world_size > 1 then
    local function free() if mine then mine:free() end end
    all = using(mine, free, function() return (tensor.persistent(comm.all_gather_rows, mine, model.dimension)) end)
  end
  for c = 1, 2 do
    for row = 0, set.rows - 1 do index[c][row] = place[index[c][row]] end
  end
  local result = using(all, all.free, function() return row_products(all, index[1], index[2], set.rows) end)
  return result, texts.count
end

--- similarities(model, set, options): cosine of the two text columns of every row, a C array of doubles, and the number of
--- distinct texts. options: columns = the names of the two, prompts as those of lr.train, or prefixes = { texts of the
--- columns }, threads, on_progress(done, total) of this rank, and ended(), asked before every batch and after the last: a number
--- other than 0 on any rank ends it, which returns nil and that number on all of them.
function evaluate.similarities(model, set, given)
  return similarities(model, set, checked(model, set, given, "lr.evaluate.similarities", SIMILARITIES))
end

local function subset(values, rows, class, wanted)
  local n = 0
  for i = 0, rows - 1 do if class[i] == wanted then n = n + 1 end end
  local out, k = ffi.new("double[?]", math.max(n, 1)), 0
  for i = 0, rows - 1 do
    if class[i] == wanted then out[k] = values[i] k = k + 1 end
  end
  return out, n
end

local function two_valued(labels, n)
  for i = 0, n - 1 do
    if labels[i] ~= 0 and labels[i] ~= 1 then return false end
  end
  return true
end

local NAMES = { "similarities", "labels" } -- what is compared, in the reason why a figure does not exist

local function scores_of(similarity, labels, n)
  local pearson, why = metrics.pearson(similarity, labels, n, NAMES)
  local result = { rows = n, pearson = pearson, spearman = metrics.spearman(similarity, labels, n, NAMES) }
  local undefined = why and { pearson = why, spearman = why } or {}
  if two_valued(labels, n) then
    local binary = metrics.binary(similarity, labels, n)
    for k, v in pairs(binary.undefined) do undefined[k] = v end
    for k, v in pairs(binary) do result[k] = v end
  end
  result.undefined = next(undefined) and undefined or nil
  return result
end

-- Embeddings that are not numbers have no figures: the run ends.
local function refuse_nan(set, similarity)
  for i = 0, set.rows - 1 do
    if similarity[i] ~= similarity[i] then
      check.fail("the embeddings of row %d of %s are not numbers: the model has diverged, or was so when it was loaded. Lower "
        .. "--learning-rate, or resume from a checkpoint before it", i + 1, set.path)
    end
  end
end

-- All figures of similarities against labels.
local function figures(set, similarity, o)
  refuse_nan(set, similarity)
  local labels = set:numbers(o.score)
  local result = scores_of(similarity, labels, set.rows)
  if o.sweep and o.sweep > 0 and two_valued(labels, set.rows) then
    result.sweep = metrics.threshold_sweep(similarity, labels, o.sweep, set.rows)
  end
  if o.group then
    local _, class, names = set:classes(o.group)
    result.by_group = {}
    for k, name in ipairs(names) do
      local s, n = subset(similarity, set.rows, class, k - 1)
      local l = subset(labels, set.rows, class, k - 1)
      result.by_group[name] = scores_of(s, l, n)
    end
  end
  return result
end

--- run(model, set, options): all figures of one data set. options: columns, score = name of the number column, group = name of a
--- text column to split by (or nil), prompts or prefixes, threads, sweep = number of thresholds (default 0: none).
--- Returns { rows, distinct_texts, seconds, pearson, spearman, accuracy, ..., by_group = { name = {...} }, sweep = {...} }. A
--- figure that does not exist is not there, and undefined = { spearman = "all labels are 1", ... } says why (nil where all exist).
--- Returns nil and a number where that of options.ended() ended it.
function evaluate.run(model, set, given)
  local started = C.lr_time()
  local o = checked(model, set, given, "lr.evaluate.run", RUN)
  local similarity, texts = similarities(model, set, o)
  if not similarity then return nil, texts end
  return data_parallel.from_rank_0(function()
    local result = figures(set, similarity, o)
    result.distinct_texts, result.seconds = texts, C.lr_time() - started
    return result
  end)
end

return evaluate
