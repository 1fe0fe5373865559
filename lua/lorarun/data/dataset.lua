-- dataset.lua: data sets (JSON Lines or CSV files) and the loader that tokenises and packs their texts ahead of training.
--
--   local set = dataset.open("train.jsonl", { columns = {
--     { name = "score", kind = "number" }, { name = "context", kind = "text" },
--     { name = "context_type", kind = "text", optional = true } } })   -- optional: every row has it, or none needs to
--   set.rows, set.skipped, set.first_skip; set:has(name)
--   set:numbers "score"          -- double[rows]
--   set:text(0, "context")       -- rows count from 0
--   set:classes "context_type"   -- counts by value, class of each row, values
--   local loader = dataset.loader(set, tokenizer, { columns = { "context" }, max_length = 512 })
--   loader:submit({ 0, 1 }, "context", { 0, 1 })
--   local batch = loader:next()  -- { tokens, sequences, max_length, truncated, wait, ids, positions, cu_seqlens, keys }
--   dataset.pack(tokenizer, { "a text" }, 512)   -- such a batch at once; free it with batch:close()
--
-- Close everything as soon as it is done with; what is forgotten, the garbage collector closes.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local ffi = require "ffi"
local guard = require "lorarun.base.guard"
local json = require "lorarun.base.json"
local options = require "lorarun.base.options"

local dataset = {}
local KIND = { text = C.LR_COLUMN_TEXT, number = C.LR_COLUMN_NUMBER }
local BAD_ROW = { error = C.LR_BAD_ROW_ERROR, skip = C.LR_BAD_ROW_SKIP }
local MAX_CLASSES = 1000
local size_out = ffi.new "int64_t[1]"

-- ---- handles that others use -----------------------------------------------------------------------------------------------
-- The threads of a loader use the data set and the tokenizer. When the program ends, finalizers run in no order, so while a
-- loader is open those two have none; the last loader that closes gives it back.
local holds = {} -- of each held handle, by address: how many loaders

local function address(handle) return tostring(ffi.cast("void *", handle)) end

local function hold(handle)
  local key = address(handle)
  holds[key] = (holds[key] or 0) + 1
  ffi.gc(handle, nil)
  return key
end

local function drop(key, owner, free)
  local count = holds[key] - 1
  holds[key] = count > 0 and count or nil
  local handle = rawget(owner, "handle")
  if count == 0 and handle and address(handle) == key then ffi.gc(handle, free) end
end

-- ---- data sets -------------------------------------------------------------------------------------------------------------
local Dataset = {}

function Dataset.__index(self, key)
  if key == "handle" then check.fail("the data set %s was closed", self.path) end
  return Dataset[key]
end

-- The columns a file has, as a set, from its header or its first row.
local function peek(path)
  local block = ffi.new "char *[1]"
  check.call(C.lr_dataset_peek, path, block, size_out)
  local names, at = {}, block[0]
  for _ = 1, tonumber(size_out[0]) do
    local name = ffi.string(at)
    names[name] = true
    at = at + #name + 1
  end
  C.lr_free(block[0])
  return names
end

-- An optional column that the first row lacks may be in no other row: its values would be ignored, and rows trained on whatever
-- their scores are. A CSV file's header names all columns. Only a line that contains the quoted name is parsed.
local function refuse_partial(path, name, max_rows)
  if path:lower():find "%.csv$" then return end
  local key, number, rows = json.encode(name), 0, 0
  for line in io.lines(path) do
    number = number + 1
    if line:find "%S" then rows = rows + 1 end
    if max_rows > 0 and rows > max_rows then return end
    if line:find(key, 1, true) then
      local ok, row = pcall(json.decode, line) -- lr_dataset_open names a line that is no JSON
      if ok and type(row) == "table" and row[name] ~= nil then
        check.fail("%s:%d has a column '%s', and the first row has none: give it to every row, or to none", path, number, name)
      end
    end
  end
end

-- The wanted columns, without the optional ones that the file lacks.
local function wanted(path, columns, max_rows)
  if type(columns) ~= "table" or #columns == 0 then
    check.fail("data.open: columns must be a list of { name =, kind = \"text\" or \"number\" }")
  end
  local list, present = {}, nil
  for i, column in ipairs(columns) do
    if type(column) ~= "table" or type(column.name) ~= "string" or not KIND[column.kind] then
      check.fail("data.open: column %d must be { name =, kind = \"text\" or \"number\" }", i)
    end
    options.check("data.open: column '" .. column.name .. "'", column, { name = options.text, kind = options.text,
      optional = options.boolean })
    if column.optional and not present then present = peek(path) end
    if not column.optional or present[column.name] then list[#list + 1] = column
    else refuse_partial(path, column.name, max_rows) end
  end
  if #list == 0 then check.fail("%s has none of the optional columns, and there are no others", path) end
  return list
end

local OPEN = { columns = options.table, on_bad_row = options.choice { "error", "skip" }, max_rows = options.whole(1) }

--- open(path, { columns = { { name =, kind = "text" | "number", optional = } ... }, on_bad_row = "error" | "skip", max_rows = }):
--- open a data set and check all of it. An optional column that the first row lacks must be in none.
function dataset.open(path, given)
  if type(path) ~= "string" then check.fail("data.open: the path must be a string, got a %s", type(path)) end
  local o = options.check("data.open", given, OPEN)
  local on_bad_row, max_rows = BAD_ROW[o.on_bad_row or "error"], o.max_rows or 0
  local columns = wanted(path, o.columns, max_rows)
  local n = #columns
  local names, kinds = ffi.new("const char *[?]", n), ffi.new("int[?]", n)
  local list, index, kind = {}, {}, {}
  for i, column in ipairs(columns) do
    names[i - 1], kinds[i - 1] = column.name, KIND[column.kind]
    list[i], index[column.name], kind[column.name] = column.name, i - 1, column.kind
  end
  local out = ffi.new "lr_dataset *[1]"
  check.call(C.lr_dataset_open, out, path, names, kinds, n, on_bad_row, max_rows)
  local handle = ffi.gc(out[0], C.lr_dataset_close)
  local skip = C.lr_dataset_first_skip(handle)
  return setmetatable({ path = path, handle = handle, rows = tonumber(C.lr_dataset_rows(handle)),
    skipped = tonumber(C.lr_dataset_skipped(handle)), first_skip = skip ~= nil and ffi.string(skip) or nil,
    columns = list, index = index, kind = kind }, Dataset)
end

local function column_of(self, name)
  local column = self.index[name]
  if not column then
    check.fail("the data set %s was not opened with a column '%s'; it has %s", self.path, tostring(name),
      table.concat(self.columns, ", "))
  end
  return column
end

--- has(name): whether the data set was opened with this column and has it.
function Dataset:has(name) return self.index[name] ~= nil end

--- numbers(name): all values of a number column, double[rows].
function Dataset:numbers(name)
  local out = ffi.new("double[?]", self.rows)
  check.call(C.lr_dataset_numbers, self.handle, column_of(self, name), out)
  return out
end

--- hashes(name): a 64-bit hash of each text, uint64_t[rows]; equal texts have equal hashes.
function Dataset:hashes(name)
  local out = ffi.new("uint64_t[?]", self.rows)
  check.call(C.lr_dataset_hashes, self.handle, column_of(self, name), out)
  return out
end

local buffer, capacity = ffi.new "char[4096]", 4096

--- text(row, name): a row's text. Rows count from 0.
function Dataset:text(row, name)
  local column = column_of(self, name)
  check.call(C.lr_dataset_text, self.handle, row, column, buffer, capacity, size_out)
  local size = tonumber(size_out[0])
  if size > capacity then
    local large = ffi.new("char[?]", size)
    check.call(C.lr_dataset_text, self.handle, row, column, large, size, size_out)
    return ffi.string(large, size)
  end
  return ffi.string(buffer, size)
end

--- text_size(row, name): its length in bytes.
function Dataset:text_size(row, name)
  check.call(C.lr_dataset_text, self.handle, row, column_of(self, name), nil, 0, size_out)
  return tonumber(size_out[0])
end

--- line(row): the line of the file on which a row starts, from 1.
function Dataset:line(row) return check(tonumber(C.lr_dataset_line(self.handle, row))) end

--- classes(name): for a text column of few different values: a table value -> count, int32_t[rows] with the class of each row, and
--- the list of values in alphabetical order, of which class k is values[k + 1].
function Dataset:classes(name)
  local hashes = self:hashes(name)
  local class = ffi.new("int32_t[?]", self.rows)
  local seen, values, counts = {}, {}, {} -- by the upper 53 bits of the hash, which are a Lua number exactly
  for row = 0, self.rows - 1 do
    local hash = tonumber(hashes[row] / 2048)
    local k = seen[hash]
    if not k then
      k = #values
      if k == MAX_CLASSES then
        check.fail("%s: column '%s' has more than %d different values, too many for classes", self.path, name, MAX_CLASSES)
      end
      seen[hash], values[k + 1], counts[k + 1] = k, self:text(row, name), 0
    end
    class[row] = k
    counts[k + 1] = counts[k + 1] + 1
  end
  local by_value, first = {}, {}
  for k, value in ipairs(values) do by_value[value], first[value] = counts[k], k - 1 end
  table.sort(values)
  local place = ffi.new("int32_t[?]", #values)
  for k, value in ipairs(values) do place[first[value]] = k - 1 end
  for row = 0, self.rows - 1 do class[row] = place[class[row]] end
  return by_value, class, values
end

--- close(): give the memory back. A second time does nothing.
function Dataset:close()
  local handle = rawget(self, "handle")
  if not handle then return end
  if holds[address(handle)] then
    check.fail("the data set %s is used by a loader; close that first", self.path)
  end
  self.handle = nil
  C.lr_dataset_close(ffi.gc(handle, nil))
end

-- ---- batches ---------------------------------------------------------------------------------------------------------------
local Batch = {}
Batch.__index = Batch

local function as_table(b)
  return { tokens = tonumber(b.tokens), sequences = tonumber(b.sequences), max_length = tonumber(b.max_length),
    truncated = tonumber(b.truncated), wait = b.wait, ids = b.ids, positions = b.positions, cu_seqlens = b.cu_seqlens,
    keys = b.keys, owner = b.owner, lengths = b.lengths, rank_tokens = b.rank_tokens }
end

--- pack(tokenizer, texts, max_length): a batch of these texts, made on the calling thread; key i - 1 for texts[i]. Its arrays are
--- valid until batch:close().
function dataset.pack(tokenizer, texts, max_length)
  if type(tokenizer) ~= "table" or not tokenizer.vocab_size then
    check.fail("data.pack: the first argument is %s, expected a tokenizer, such as model.tokenizer", options.shown(tokenizer))
  end
  if type(texts) ~= "table" then
    check.fail("data.pack: the second argument is %s, expected a list of texts", options.shown(texts))
  end
  if max_length ~= nil and not options.whole(0).test(max_length) then
    check.fail("data.pack: max_length is %s, expected %s", options.shown(max_length), options.whole(0).text)
  end
  local n = #texts
  local pointers, sizes = ffi.new("const char *[?]", n), ffi.new("int64_t[?]", n)
  for i = 1, n do
    if type(texts[i]) ~= "string" then check.fail("data.pack: text %d is a %s", i, type(texts[i])) end
    pointers[i - 1], sizes[i - 1] = texts[i], #texts[i]
  end
  local out, b = ffi.new "lr_loader *[1]", ffi.new "lr_batch"
  check.call(C.lr_loader_pack, out, tokenizer.handle, n, pointers, sizes, max_length or 0, b)
  local batch = setmetatable(as_table(b), Batch)
  batch.owner = ffi.gc(out[0], C.lr_loader_free)
  return batch
end

--- close(): free the arrays of a batch that pack() made.
function Batch:close()
  local owner = self.owner
  if not owner then return end
  self.owner, self.ids, self.positions, self.cu_seqlens, self.keys = nil, nil, nil, nil, nil
  C.lr_loader_free(ffi.gc(owner, nil))
end

-- ---- the loader ------------------------------------------------------------------------------------------------------------
local Loader = {}

function Loader.__index(_, key)
  if key == "handle" then check.fail("the loader was closed") end
  return Loader[key]
end

local LOADER = { columns = options.table, prefixes = options.table, max_length = options.whole(0), threads = options.whole(1),
  queue = options.whole(1), balance = options.table }

--- loader(set, tokenizer, { columns = names (all text columns), prefixes = texts put before those of each column, by position or
--- name, max_length = tokens (0: no limit), threads = 1, queue = 4, balance = { world =, rank = } }): threads that make batches
--- ahead. balance: a batch is submitted column by column, the same rows of each. Its rows are divided among `world` ranks so that
--- tokens are even, and next() returns rank's share, with owner[row] (the rank that has it), lengths[sequence] and
--- rank_tokens[rank] of all.
function dataset.loader(set, tokenizer, given)
  if getmetatable(set) ~= Dataset then
    check.fail("data.loader: the first argument is %s, expected a data set", options.shown(set))
  end
  local o = options.check("data.loader", given, LOADER)
  local columns = o.columns
  if not columns then
    columns = {}
    for _, name in ipairs(set.columns) do
      if set.kind[name] == "text" then columns[#columns + 1] = name end
    end
  end
  local prefixes = ffi.new("const char *[?]", #set.columns)
  local place, index = ffi.new("int32_t[?]", #columns), {}
  for i, name in ipairs(columns) do
    place[i - 1], index[name] = column_of(set, name), i - 1
    if set.kind[name] ~= "text" then check.fail("data.loader: column '%s' holds numbers, not texts", name) end
    local prefix = o.prefixes and (o.prefixes[name] or o.prefixes[i])
    if prefix then prefixes[place[i - 1]] = prefix end
  end
  local threads, queue, max_length = o.threads or 1, o.queue or 4, o.max_length or 0
  local out = ffi.new "lr_loader *[1]"
  check.call(C.lr_loader_new, out, set.handle, tokenizer.handle, max_length, prefixes, threads, queue)
  local set_key, tokenizer_key = hold(set.handle), hold(tokenizer.handle)
  local function free(handle)
    C.lr_loader_free(handle)
    drop(set_key, set, C.lr_dataset_close)
    drop(tokenizer_key, tokenizer, C.lr_tokenizer_free)
  end
  local loader = setmetatable({ handle = ffi.gc(out[0], free), free = free, columns = columns, index = index, place = place,
    capacity = 0, batch = ffi.new "lr_batch" }, Loader)
  local balance = o.balance
  if balance then
    local status = C.lr_loader_balance(loader.handle, #columns, balance.world, balance.rank)
    if status < 0 then loader:close() end
    check(status)
  end
  return loader
end

-- The number of elements of an array: a Lua table, or one made by ffi.new("type[?]", n).
local function length_of(array)
  if type(array) == "table" then return #array end
  local stride = ffi.cast("const char *", array + 1) - ffi.cast("const char *", array)
  return tonumber(ffi.sizeof(array)) / tonumber(stride)
end

local function element(array, i)
  if type(array) == "table" then return array[i + 1] end
  return array[i]
end

local function column_place(self, value, i)
  local at = type(value) == "string" and self.index[value] or tonumber(value)
  if not at or at < 0 or at >= #self.columns then
    check.fail("submit: sequence %d: there is no column '%s'; the loader has %s", i, tostring(value),
      table.concat(self.columns, ", "))
  end
  return self.place[at]
end

--- submit(rows, columns, keys): the sequences of the next batch: row, column and key of each. Arrays of Lua or of the FFI. Rows
--- count from 0; a column is its name or its place, from 0, in the loader's columns; one name alone is for all. A key, from 0 and
--- below 2^47, is what the dropout of its sequence depends on.
function Loader:submit(rows, columns, keys)
  local n = length_of(rows)
  if n > self.capacity then
    self.rows64, self.columns32, self.keys64, self.capacity =
      ffi.new("int64_t[?]", n), ffi.new("int32_t[?]", n), ffi.new("int64_t[?]", n), n
  end
  local same = type(columns) == "string" and column_place(self, columns, 0)
  if length_of(keys) ~= n or (not same and length_of(columns) ~= n) then
    check.fail("submit: %d rows, but another number of columns or keys", n)
  end
  for i = 0, n - 1 do
    self.rows64[i], self.keys64[i] = element(rows, i), element(keys, i)
    self.columns32[i] = same or column_place(self, element(columns, i), i)
  end
  check.call(C.lr_loader_submit, self.handle, n, self.rows64, self.columns32, self.keys64)
end

--- room(): the number of batches that may be submitted now.
function Loader:room() return tonumber(C.lr_loader_room(self.handle)) end

--- next(): the next batch, in the order submitted. Its arrays are valid until the following next() or close().
function Loader:next()
  check.call(C.lr_loader_next, self.handle, self.batch)
  return as_table(self.batch)
end

--- close(): stop the threads and free the batches. A second time does nothing.
function Loader:close()
  local handle = rawget(self, "handle")
  if not handle then return end
  self.handle = nil
  self.free(ffi.gc(handle, nil))
end

guard.methods(Dataset, "set")
guard.methods(Batch, "batch")
guard.methods(Loader, "loader")

return dataset
