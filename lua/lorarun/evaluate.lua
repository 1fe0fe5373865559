-- evaluate.lua: how well similarity tells correct lines from buggy ones. Each distinct text of the data set is encoded once,
-- longest first; then every row is one dot product.
local ffi = require "ffi"
local bit = require "bit"
local C = require "lorarun.c"
local check = require "lorarun.check"
local data = require "lorarun.data"
local metrics = require "lorarun.metrics"
local ops = require "lorarun.ops"
local tensor = require "lorarun.tensor"
local autograd = require "lorarun.autograd"

local evaluate = {}

local BATCH_BYTES = 24576 -- bytes of text a forward pass: about 8,000 tokens of code
local BATCH_TEXTS = 1024

-- Number the distinct texts of the given columns. Returns index[c][row] (C arrays, from 0) and the first place of each text.
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
    local salt = 0ULL -- equal texts behind different prompts are different texts
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
  return index, count, place_row, place_column
end

--- similarities(model, set, options): cosine of the two text columns of every row, a C array of doubles, and the number of
--- distinct texts. options: columns = { "current_line", "context" }, prefixes, threads, on_progress(done, total).
function evaluate.similarities(model, set, options)
  local columns = options.columns
  local prefixes = options.prefixes or {}
  local index, count, place_row, place_column = distinct(set, columns, prefixes)
  -- Longest first, so that a batch holds texts of one length and the first batch is the largest memory will see.
  local order, length = {}, ffi.new("int64_t[?]", count)
  for i = 0, count - 1 do
    order[i + 1] = i
    length[i] = set:text_size(place_row[i], columns[place_column[i] + 1])
  end
  table.sort(order, function(a, b)
    if length[a] ~= length[b] then return length[a] > length[b] end
    return a < b
  end)
  local width = model.dimension
  local all = tensor.persistent(tensor.new, { count, width }, "f32", "evaluation embeddings", model.device)
  local loader = data.loader(set, model.tokenizer, { columns = columns, prefixes = prefixes, max_length = model.max_length,
    threads = options.threads or 1, queue = 4 })
  local next_text, done = 1, 0
  local sizes, head, tail = {}, 1, 0 -- texts of each batch submitted and not yet used
  local function submit()
    if next_text > count then return end
    local rows, cols, keys, bytes = {}, {}, {}, 0
    while next_text <= count and #rows < BATCH_TEXTS do
      local i = order[next_text]
      bytes = bytes + math.min(tonumber(length[i]) + 8, model.max_length * 8)
      if #rows > 0 and bytes > BATCH_BYTES then break end
      rows[#rows + 1], cols[#cols + 1], keys[#keys + 1] = tonumber(place_row[i]), place_column[i], 0
      next_text = next_text + 1
    end
    tail = tail + 1
    sizes[tail] = #rows
    loader:submit(rows, cols, keys)
  end
  local ok, err = pcall(function()
    local row = ffi.new("float[?]", width)
    while done < count do
      while loader:room() > 0 and next_text <= count do submit() end
      local batch = loader:next()
      local n = sizes[head]
      sizes[head] = nil
      head = head + 1
      tensor.scope(function()
        local e = autograd.no_grad(model.forward, model, model:context(batch))
        if not model.normalize then e = ops.normalize(e) end
        local values = e:data()
        for k = 0, n - 1 do
          ffi.copy(row, values + k * width, width * 4)
          check(C.lr_tensor_write(all.handle, order[done + k + 1] * width, width, row))
        end
      end)
      done = done + n
      if options.on_progress then options.on_progress(done, count) end
    end
  end)
  loader:close()
  local result = ffi.new("double[?]", set.rows)
  if ok then
    ok, err = pcall(function()
      local chunk = 1024
      for from = 0, set.rows - 1, chunk do
        local n = math.min(chunk, set.rows - from)
        tensor.scope(function()
          local side = {}
          for c = 1, 2 do
            side[c] = ops.gather_rows(all, tensor.from(index[c] + from, { n }, "i32", "rows", model.device))
          end
          local values = ops.row_dot(side[1], side[2]):data()
          for k = 0, n - 1 do result[from + k] = values[k] end
        end)
      end
    end)
  end
  all:free()
  if not ok then error(err, 0) end
  return result, count
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

local function scores_of(similarity, labels, n)
  local result = { rows = n, pearson = metrics.pearson(similarity, labels, n), spearman = metrics.spearman(similarity, labels, n) }
  if two_valued(labels, n) then
    for k, v in pairs(metrics.binary(similarity, labels, n)) do result[k] = v end
  end
  return result
end

--- run(model, set, options): all figures of one data set. options: columns, score = name of the number column, group = name of a
--- text column to split by (or nil), prefixes, threads, sweep = number of thresholds (default 0: none).
--- Returns { rows, distinct_texts, seconds, pearson, spearman, accuracy, ..., by_group = { name = {...} }, sweep = {...} }
function evaluate.run(model, set, options)
  local started = C.lr_time()
  local similarity, texts = evaluate.similarities(model, set, options)
  local labels = set:numbers(options.score)
  local result = scores_of(similarity, labels, set.rows)
  result.distinct_texts = texts
  if options.sweep and options.sweep > 0 and two_valued(labels, set.rows) then
    result.sweep = metrics.threshold_sweep(similarity, labels, options.sweep, set.rows)
  end
  if options.group then
    local _, class, names = set:classes(options.group)
    result.by_group = {}
    for k, name in ipairs(names) do
      local s, n = subset(similarity, set.rows, class, k - 1)
      local l = subset(labels, set.rows, class, k - 1)
      result.by_group[name] = scores_of(s, l, n)
    end
  end
  result.seconds = C.lr_time() - started
  return result
end

return evaluate
