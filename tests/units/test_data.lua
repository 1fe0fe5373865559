-- test_data.lua: data sets as Lua sees them, and the loader with the real tokenizers of the small models.
local C = require "lorarun.base.c"
local dataset = require "lorarun.data.dataset"
local ffi = require "ffi"
local tokenizers = require "lorarun.formats.tokenizer"

local GOLDEN = os.getenv "LORARUN_TESTS" .. "/golden/"

-- A file that exists during fn(path).
local function with_file(suffix, contents, fn)
  local path = os.tmpname()
  os.remove(path)
  path = path .. suffix
  local file = assert(io.open(path, "wb"))
  file:write(contents)
  file:close()
  local ok, err = xpcall(fn, debug.traceback, path)
  os.remove(path)
  if not ok then error(err, 0) end
end

local ROWS = table.concat({
  '{"current_line": "if x is None:", "score": 0, "context": "def f(x):\\n    return x", "context_type": "before"}',
  '{"current_line": "    return 1", "score": 1, "context": "caf\\u00e9", "context_type": "after"}',
  '{"current_line": "pass", "score": 0.5, "context": "", "context_type": "before"}', "" }, "\n")
local COLUMNS = { { name = "current_line", kind = "text" }, { name = "score", kind = "number" },
  { name = "context", kind = "text" }, { name = "context_type", kind = "text", optional = true } }

test("a data set is read", function()
  with_file(".jsonl", ROWS, function(path)
    local set = dataset.open(path, { columns = COLUMNS })
    check.equal(set.rows, 3)
    check.equal(set.skipped, 0)
    check.equal(set.first_skip, nil)
    check.that(set:has "context_type" and not set:has "other")
    local scores = set:numbers "score"
    check.that(scores[0] == 0 and scores[1] == 1 and scores[2] == 0.5)
    check.equal(set:text(0, "context"), "def f(x):\n    return x")
    check.equal(set:text(1, "context"), "café")
    check.equal(set:text(2, "context"), "")
    check.equal(set:text_size(1, "context"), 5)
    check.equal(set:line(2), 3)
    local hashes = set:hashes "context_type"
    check.that(hashes[0] == hashes[2] and hashes[0] ~= hashes[1])
    check.raises("was not opened with a column 'x'; it has current_line, score, context, context_type", set.text, set, 0, "x")
    check.raises("there is no row 3, it has 3", set.text, set, 3, "context")
    check.raises("there is no row 3, it has 3", set.line, set, 3)
    check.raises("column 'context' was opened as texts, it has no numbers", set.numbers, set, "context")
    set:close()
    set:close()
    check.raises("was closed", set.text, set, 0, "context")
  end)
end)

test("a long text", function()
  local long = ("0123456789"):rep(1000)
  with_file(".csv", "t\n" .. long .. "\n", function(path)
    local set = dataset.open(path, { columns = { { name = "t", kind = "text" } } })
    check.equal(set:text(0, "t"), long)
    set:close()
  end)
end)

test("classes", function()
  with_file(".jsonl", ROWS, function(path)
    local set = dataset.open(path, { columns = COLUMNS })
    local counts, class, values = set:classes "context_type"
    check.equal(counts.before, 2)
    check.equal(counts.after, 1)
    check.equal(table.concat(values, " "), "after before")
    check.that(class[0] == 1 and class[1] == 0 and class[2] == 1)
    set:close()
  end)
  local lines = { "t" }
  for i = 1, 1001 do lines[i + 1] = "value" .. i end
  with_file(".csv", table.concat(lines, "\n"), function(path)
    local set = dataset.open(path, { columns = { { name = "t", kind = "text" } }, max_rows = 1000 })
    local _, class, values = set:classes "t"
    check.equal(#values, 1000)
    for row = 0, 999 do check.equal(values[class[row] + 1], "value" .. row + 1) end
    set:close()
    set = dataset.open(path, { columns = { { name = "t", kind = "text" } } })
    check.raises("column 't' has more than 1000 different values, too many for classes", set.classes, set, "t")
    set:close()
  end)
end)

test("optional columns", function()
  for suffix, contents in pairs { [".jsonl"] = '{"a": "x", "b": 1}\n', [".csv"] = "a,b\nx,1\n" } do
    with_file(suffix, contents, function(path)
      local set = dataset.open(path, { columns = { { name = "c", kind = "text", optional = true },
        { name = "b", kind = "number", optional = true }, { name = "a", kind = "text" } } })
      check.that(not set:has "c" and set:has "b")
      check.equal(set:numbers("b")[0], 1)
      check.equal(set:text(0, "a"), "x")
      set:close()
      check.raises("has none of the optional columns", dataset.open, path,
        { columns = { { name = "c", kind = "text", optional = true } } })
    end)
  end
  with_file(".jsonl", '{"a": "x", "b": 1}\n{"a": "x"}\n', function(path)
    check.raises(":2: column 'b' is missing; the row has: a", dataset.open, path,
      { columns = { { name = "b", kind = "number", optional = true } } })
  end)
  local columns = { { name = "a", kind = "text" }, { name = "b", kind = "number", optional = true } }
  with_file(".jsonl", '{"a": "x"}\n{"a": "b", "c": {"b": 1}}\n\n{"a": "x", "b": 0}\n', function(path)
    check.raises(":4 has a column 'b', and the first row has none", dataset.open, path, { columns = columns })
    local set = dataset.open(path, { columns = columns, max_rows = 2 }) -- rows that are not used are not checked
    check.that(set.rows == 2 and not set:has "b")
    set:close()
  end)
end)

test("bad rows and wrong options", function()
  with_file(".jsonl", '{"a": "x"}\nbad\n{"a": "y"}\n{"a": 1}\n', function(path)
    local columns = { { name = "a", kind = "text" } }
    check.raises(path .. ":2: not valid JSON at byte 1", dataset.open, path, { columns = columns })
    local set = dataset.open(path, { columns = columns, on_bad_row = "skip" })
    check.equal(set.rows, 2)
    check.equal(set.skipped, 2)
    check.that(set.first_skip:find(path .. ":2: not valid JSON", 1, true))
    check.equal(set:line(1), 3)
    set:close()
    set = dataset.open(path, { columns = columns, max_rows = 1 })
    check.equal(set.rows, 1)
    set:close()
    check.raises("max_rows is 0, expected a whole number of at least 1", dataset.open, path, { columns = columns, max_rows = 0 })
    check.raises("on_bad_row is 'ignore', expected 'error' or 'skip'", dataset.open, path,
      { columns = columns, on_bad_row = "ignore" })
    check.raises("data.open has no option 'rows'; there are columns, max_rows, on_bad_row", dataset.open, path,
      { columns = columns, rows = 1 })
    check.raises("columns must be a list", dataset.open, path, { columns = {} })
    check.raises("column 1 must be { name =, kind =", dataset.open, path, { columns = { { name = "a", kind = "string" } } })
    check.raises("the path must be a string, got a nil", dataset.open, nil, { columns = columns })
  end)
  check.raises("cannot open data set /nowhere/x.jsonl: No such file or directory", dataset.open, "/nowhere/x.jsonl",
    { columns = COLUMNS })
end)

-- ---- batches ---------------------------------------------------------------------------------------------------------------
-- What a batch of these texts must be, computed by the tokenizer itself.
local function expect(batch, tokenizer, texts, keys, max_length)
  check.equal(batch.sequences, #texts)
  local t, longest, truncated = 0, 0, 0
  for i, text in ipairs(texts) do
    local ids = tokenizer:encode(text, { max_length = max_length })
    check.equal(batch.cu_seqlens[i - 1], t)
    for k, id in ipairs(ids) do
      check.equal(batch.ids[t], id)
      check.equal(batch.positions[t], k - 1)
      check.equal(tonumber(batch.keys[t]), keys[i] * 65536 + k - 1)
      t = t + 1
    end
    longest = math.max(longest, #ids)
    if #ids < #tokenizer:encode(text) then truncated = truncated + 1 end
  end
  check.equal(batch.cu_seqlens[#texts], t)
  check.equal(batch.tokens, t)
  check.equal(batch.max_length, longest)
  check.equal(batch.truncated, truncated)
end

test("a file that is cut short while a loader's threads read it is an error", function()
  local row = '{"context": "a line of some length, so that the file has many pages", "current_line": "b", "score": 1}\n'
  with_file(".jsonl", row:rep(2000), function(path)
    local set = dataset.open(path, { columns = { { name = "context", kind = "text" } } })
    local tokenizer = tokenizers.load_tokenizer(GOLDEN .. "bert")
    local loader = dataset.loader(set, tokenizer, { columns = { "context" }, threads = 2, queue = 2 })
    check.equal(os.execute("truncate -s 5000 " .. path), 0)
    loader:submit({ 1900 }, "context", { 0 })
    check.raises("was cut short while it was read", loader.next, loader)
    loader:close()
    set:close()
    tokenizer:free()
  end)
end)

test("the loader packs the tokens that the tokenizer gives", function()
  local tokenizer = tokenizers.load_tokenizer(GOLDEN .. "bert")
  with_file(".jsonl", ROWS, function(path)
    local set = dataset.open(path, { columns = COLUMNS })
    for threads = 1, 4 do
      local loader = dataset.loader(set, tokenizer, { columns = { "context", "current_line" }, max_length = 7,
        prefixes = { current_line = "line: " }, threads = threads, queue = 3 })
      check.equal(loader:room(), 3)
      loader:submit({ 0, 1, 2 }, "context", { 0, 1, 2 })
      loader:submit({ 2, 0 }, { "current_line", 0 }, { 5, 2 ^ 47 - 1 })
      loader:submit(ffi.new("int64_t[1]", 1), ffi.new("int32_t[1]", 1), ffi.new("int64_t[1]", 9))
      check.equal(loader:room(), 0)
      check.raises("the loader's queue of 3 batches is full", loader.submit, loader, { 0 }, { 0 }, { 0 })
      local function text(row, name) return set:text(row, name) end
      expect(loader:next(), tokenizer, { text(0, "context"), text(1, "context"), "" }, { 0, 1, 2 }, 7)
      expect(loader:next(), tokenizer, { "line: pass", text(0, "context") }, { 5, 2 ^ 47 - 1 }, 7)
      expect(loader:next(), tokenizer, { "line:     return 1" }, { 9 }, 7)
      check.raises("no batch is waiting", loader.next, loader)
      check.raises("there is no column 'score'; the loader has context, current_line", loader.submit, loader, { 0 },
        { "score" }, { 0 })
      check.raises("there is no column '2'", loader.submit, loader, { 0 }, { 2 }, { 0 })
      check.raises("1 rows, but another number of columns or keys", loader.submit, loader, { 0 }, { 0, 0 }, { 0 })
      check.raises("there is no row 3", loader.submit, loader, { 3 }, { 0 }, { 0 })
      check.raises("is used by a loader; close that first", set.close, set)
      loader:close()
      loader:close()
      check.raises("the loader was closed", loader.room, loader)
    end
    check.raises("column 'score' holds numbers, not texts", dataset.loader, set, tokenizer, { columns = { "score" } })
    check.raises("data.loader has no option 'thread'; did you mean 'threads'?", dataset.loader, set, tokenizer, { thread = 1 })
    check.raises("queue is 0.5, expected a whole number of at least 1", dataset.loader, set, tokenizer, { queue = 0.5 })
    set:close()
  end)
  tokenizer:free()
end)

test("a text without tokens is an error that names its line", function()
  local tokenizer = tokenizers.load_tokenizer(GOLDEN .. "qwen2") -- adds no token at the end
  with_file(".jsonl", ROWS, function(path)
    local set = dataset.open(path, { columns = COLUMNS })
    local loader = dataset.loader(set, tokenizer, {})
    loader:submit({ 0, 2 }, { "context", "context" }, { 0, 1 })
    loader:submit({ 1 }, "context", { 0 })
    check.raises(path .. ":3: column 'context': the text gives no tokens", loader.next, loader)
    check.equal(loader:next().sequences, 1)
    loader:close()
    set:close()
  end)
  check.raises("text 2 of 2: the text gives no tokens", dataset.pack, tokenizer, { "a", "" })
  tokenizer:free()
end)

test("data.pack packs texts without a loader", function()
  local tokenizer = tokenizers.load_tokenizer(GOLDEN .. "bert")
  local texts = { "some words", "", "a text of more than six tokens, surely", " at both ends\n" }
  local batch = dataset.pack(tokenizer, texts, 6)
  expect(batch, tokenizer, texts, { 0, 1, 2, 3 }, 6)
  batch:close()
  batch:close()
  check.equal(batch.ids, nil)
  check.raises("text 2 is a number", dataset.pack, tokenizer, { "a", 1 })
  check.raises("0 texts to pack", dataset.pack, tokenizer, {})
  tokenizer:free()
end)

test("the garbage collector frees what was not closed, loaders first", function()
  local m = ffi.new "lr_memory"
  local function objects()
    for _ = 1, 6 do collectgarbage() end
    C.lr_memory_stats(C.LR_CPU, m)
    return tonumber(m.host_objects)
  end
  local before = objects()
  with_file(".jsonl", ROWS, function(path)
    local function abandon()
      local tokenizer = tokenizers.load_tokenizer(GOLDEN .. "bert")
      local set = dataset.open(path, { columns = COLUMNS })
      local loader = dataset.loader(set, tokenizer, { threads = 2 })
      dataset.loader(set, tokenizer, {}):submit({ 0 }, "context", { 0 })
      for i = 1, 4 do loader:submit({ 0, 1 }, "context", { i, i }) end
    end
    abandon()
    check.that(objects() <= before, "objects are left")
  end)
end)
