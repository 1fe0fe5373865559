-- Tokenizers compared with the ids of Hugging Face tokenizers (tests/golden/make_tokenizer.py), and mistakes of users.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local load_tokenizer = require("lorarun.formats.tokenizer").load_tokenizer

local GOLDEN = os.getenv "LORARUN_TESTS" .. "/golden/tokenizer/"
local NAMES = { "qwen2", "qwen3_embedding", "roberta", "gpt2", "llama3", "starcoder", "bert", "bert_cased", "mixed", "scripts" }

for _, name in ipairs(NAMES) do
  test("golden ids: " .. name, function()
    local tok, lines = load_tokenizer(GOLDEN .. name), 0
    for line in io.lines(GOLDEN .. name .. ".jsonl") do
      lines = lines + 1
      local row = json.decode(line)
      local what = ("%s text %d"):format(name, lines)
      check.array(tok:encode(row.text, { max_length = row.max_length }), row.ids, 0, what)
      check.array(tok:encode(row.text, { add_special_tokens = false }), row.plain, 0, what .. ", plain")
    end
    check.equal(lines, 40, "lines")
    tok:free()
  end)
end

test("tokens and ids", function()
  local tok = load_tokenizer(GOLDEN .. "qwen2/tokenizer.json")
  check.equal(tok:token(tok:id "<|endoftext|>"), "<|endoftext|>")
  check.equal(tok:id "<|im_end|>", tok.vocab_size - 1, "the last added token")
  check.equal(tok:token(tok:id "Ġ"), "Ġ")
  check.equal(tok:id "no such token", nil)
  check.equal(tok:token(-1), nil)
  check.equal(tok:token(tok.vocab_size), nil)
  check.array(tok:encode "<|im_start|>", { tok:id "<|im_start|>" })
  check.array(tok:encode "", {})
  tok:free()
  tok:free()
  check.raises("was freed", tok.encode, tok, "x")
end)

test("special tokens and truncation", function()
  local tok = load_tokenizer(GOLDEN .. "qwen3_embedding")
  local last = tok:id "<|endoftext|>"
  check.array(tok:encode "", { last })
  check.array(tok:encode("", { add_special_tokens = false }), {})
  local long = ("return x + 1\n"):rep(50)
  local all = tok:encode(long)
  for length = 1, 20 do
    local ids = tok:encode(long, { max_length = length })
    check.equal(#ids, length)
    check.equal(ids[length], last, "the end token stays")
    for i = 1, length - 1 do check.equal(ids[i], all[i]) end
  end
  check.array(tok:encode(long, { max_length = #all }), all)
  tok:free()
  local bert = load_tokenizer(GOLDEN .. "bert")
  check.array(bert:encode("", { max_length = 2 }), { 2, 3 })
  check.raises("the special tokens of", bert.encode, bert, "x", { max_length = 1 })
  bert:free()
end)

test("more tokens than bytes", function() -- NFKC turns U+FDFA into 18 characters, so the first guess of the room is too small
  local tok = load_tokenizer(GOLDEN .. "starcoder")
  local text = ("\239\183\186"):rep(500)
  check.that(#tok:encode(text) > #text, "fewer tokens than bytes")
  tok:free()
end)

test("wrong arguments", function()
  local tok = load_tokenizer(GOLDEN .. "qwen2")
  check.raises("not valid UTF-8 at byte 3", tok.encode, tok, "abc\255")
  check.raises("not valid UTF-8 at byte 0", tok.encode, tok, "\237\160\128") -- a surrogate
  check.raises("must be a string", tok.encode, tok, 5)
  check.raises("no option 'max_len'", tok.encode, tok, "a", { max_len = 5 })
  check.raises("max_length is 0, expected a whole number of at least 1", tok.encode, tok, "a", { max_length = 0 })
  check.raises("add_special_tokens is 1, expected true or false", tok.encode, tok, "a", { add_special_tokens = 1 })
  check.raises("must be a number", tok.token, tok, "a")
  check.raises("must be a string", tok.id, tok, 1)
  tok:free()
  check.raises("must be a string", load_tokenizer, nil)
  check.raises("no/such/folder", load_tokenizer, "no/such/folder")
  check.raises("save_pretrained", load_tokenizer, GOLDEN)
end)

-- A golden tokenizer with one part replaced.
local function altered(name, change)
  local spec = json.decode_file(GOLDEN .. name .. "/tokenizer.json")
  change(spec)
  local path = os.tmpname()
  fs.write(path, json.encode(spec))
  local ok, result = pcall(load_tokenizer, path)
  os.remove(path)
  if ok then return result end
  return nil, tostring(result)
end

local REFUSED = {
  { "normalizer.normalizers[1]: the normalizer \"Nmt\"", "mixed", function(s) s.normalizer.normalizers[2].type = "Nmt" end },
  { "the pre-tokenizer \"Metaspace\"", "qwen2", function(s) s.pre_tokenizer = { type = "Metaspace" } end },
  { "after ByteLevel", "qwen2", function(s) s.pre_tokenizer.pretokenizers[3] = { type = "BertPreTokenizer" } end },
  { "the model \"Unigram\"", "qwen2", function(s) s.model.type = "Unigram" end },
  { "BPE without", "qwen2", function(s) s.pre_tokenizer = { type = "WhitespaceSplit" } end },
  { "BPE with \"##\"", "qwen2", function(s) s.model.continuing_subword_prefix = "##" end },
  { "at random", "qwen2", function(s) s.model.dropout = 0.1 end },
  { "the post-processor \"Other\"", "qwen2", function(s) s.post_processor.type = "Other" end },
  { "truncation.direction: \"Middle\"", "qwen2", function(s)
    s.truncation = { max_length = 5, direction = "Middle", stride = 0, strategy = "LongestFirst" } end },
  { "version \"2.0\"", "qwen2", function(s) s.version = "2.0" end },
  { "model.merges[3]: ", "qwen2", function(s) s.model.merges[4] = { "no", "such" } end },
  { "model.merges[0]: a merge is", "qwen2", function(s) s.model.merges[1] = "abc" end },
  { "\"vocab\" is missing", "bert", function(s) s.model.vocab = nil end },
  { "model.unk_token: \"[NO]\"", "bert", function(s) s.model.unk_token = "[NO]" end },
  { "model.vocab.[PAD]: expected a token id", "bert", function(s) s.model.vocab["[PAD]"] = -1 end },
  { "normalizer.lowercase: expected true or false", "bert", function(s) s.normalizer.lowercase = "yes" end },
  { "added_tokens[0]: \"id\" is missing", "bert", function(s) s.added_tokens[1].id = nil end },
  { "brackets within brackets", "qwen2", function(s) s.pre_tokenizer.pretokenizers[1].pattern.Regex = "[a[b]]" end },
  { "the property \\p{Greek}", "qwen2", function(s) s.pre_tokenizer.pretokenizers[1].pattern.Regex = "\\p{Greek}" end },
  { "missing closing parenthesis", "qwen2", function(s) s.pre_tokenizer.pretokenizers[1].pattern.Regex = "(a" end },
  { "an empty pattern", "qwen2", function(s) s.pre_tokenizer.pretokenizers[1].pattern.Regex = "" end },
  { "not among special_tokens", "qwen3_embedding", function(s) s.post_processor.processors[2].special_tokens = {} end },
  { "the text, A, once", "qwen3_embedding", function(s) table.remove(s.post_processor.processors[2].single, 1) end },
}
for _, case in ipairs(REFUSED) do
  test("refused: " .. case[1], function()
    local tok, err = altered(case[2], case[3])
    check.equal(tok, nil, "a tokenizer")
    check.that(err:find(case[1], 1, true), err)
  end)
end


-- Files unlike any tokenizer in use: an error names the file and the place, without exhausting stack, memory or time.
local function many(n, part)
  local list = json.array {}
  for i = 1, n do list[i] = part end
  return list
end
local function nested(n, key, type, innermost)
  for _ = 1, n do innermost = { type = type, [key] = json.array { innermost } } end
  return innermost
end
local HOSTILE = {
  { "pre_tokenizer.pretokenizers[63]: more than 64 pre-tokenizers", "bert", function(s)
    s.pre_tokenizer = { type = "Sequence", pretokenizers = many(40000, { type = "WhitespaceSplit" }) } end },
  { "Sequences nested more than 16 deep", "bert", function(s)
    s.pre_tokenizer = nested(300, "pretokenizers", "Sequence", s.pre_tokenizer) end },
  { "Sequences nested more than 16 deep", "bert", function(s)
    s.normalizer = nested(300, "normalizers", "Sequence", s.normalizer) end },
  { "Sequences nested more than 16 deep", "bert", function(s)
    s.post_processor = nested(300, "processors", "Sequence", s.post_processor) end },
  { "normalizer.normalizers[64]: more than 64 normalizers", "bert", function(s)
    s.normalizer = { type = "Sequence", normalizers = many(40000, { type = "NFC" }) } end },
  { "added_tokens[0].content: an added token of 102400 bytes", "bert", function(s)
    s.added_tokens[1].content = ("x"):rep(102400) end },
  { "added_tokens[0].content: an added token of 1505 bytes", "bert", function(s) -- it is too long only after normalisation
    s.added_tokens[1].content, s.added_tokens[1].normalized = "yxy" .. ("x"):rep(500), true
    s.normalizer = { type = "Replace", pattern = { String = "x" }, content = "123" } end },
  { "at normalizer: ", "bert", function(s) -- makes the text 2^60 times as long, for a token that is matched in normalised text
    s.added_tokens[1].normalized = true
    s.normalizer = { type = "Sequence", normalizers = many(60, { type = "Replace", pattern = { String = "[" }, content = "[[" }) }
  end },
  { "the id 16777215 in a vocabulary of", "bert", function(s) s.model.vocab.sparse = 16777215 end },
  { "model.vocab.sparse: expected a token id", "bert", function(s) s.model.vocab.sparse = 2147483648 end },
  { "a token of 5000 bytes", "bert", function(s) s.model.vocab[("x"):rep(5000)] = 300 end },
  { "pre_tokenizer.pretokenizers[0].pattern: a pattern of 5000 bytes", "qwen2", function(s)
    s.pre_tokenizer.pretokenizers[1].pattern.Regex = ("x"):rep(5000) end },
  { "is too large", "qwen2", function(s) s.pre_tokenizer.pretokenizers[1].pattern.Regex = ("\\w"):rep(2000) end },
  { "post_processor.single[0]: more than 256 special tokens", "bert", function(s)
    s.post_processor = { type = "TemplateProcessing", single = json.array { { SpecialToken = { id = "[CLS]", type_id = 0 } },
      { Sequence = { id = "A", type_id = 0 } } }, special_tokens = { ["[CLS]"] = { id = "[CLS]", ids = many(300, 2) } } } end },
  { "token types other than 0", "bert", function(s)
    s.post_processor = { type = "TemplateProcessing", single = json.array { { Sequence = { id = "A", type_id = 1 } } },
      special_tokens = {} } end },
  { "added_tokens[5]: the token \"[PAD]\" is there twice, with other flags", "bert", function(s)
    s.added_tokens[6] = { id = 0, content = "[PAD]", special = true, normalized = false, lstrip = true, rstrip = false,
      single_word = false } end },
}
for i, case in ipairs(HOSTILE) do
  test(("hostile %d: %s"):format(i, case[1]), function()
    local tok, err = altered(case[2], case[3])
    check.equal(tok, nil, "a tokenizer")
    check.that(err:find(case[1], 1, true), err)
    check.that(err:find("/[^ :]+: at [%w_]+[^ ]*: "), err)
  end)
end

test("a text that normalizers or a pattern make too long is an error", function()
  local tok = altered("bert", function(s)
    s.normalizer = { type = "Sequence", normalizers = many(60, { type = "Replace", pattern = { String = "a" }, content = "aa" }) }
  end)
  check.raises("more than 64 times as many", tok.encode, tok, "a")
  check.that(#tok:encode "b" == 3)
  tok:free()
  tok = altered("bert", function(s) -- here one normalizer is enough
    s.normalizer = { type = "Replace", pattern = { Regex = "x*" }, content = ("y"):rep(100000) } end)
  check.raises("more than 64 times as many", tok.encode, tok, ("a"):rep(1000))
  tok:free()
  tok = altered("qwen2", function(s) s.pre_tokenizer.pretokenizers[1].pattern.Regex = "(?:a|a|aa)*[cd]" end)
  check.raises("at pre_tokenizer.pretokenizers[0]: the pattern cannot be matched at byte 0 of a text of 64 bytes", tok.encode,
    tok, ("a"):rep(64))
  tok:free()
end)

test("parts without a type are known by their keys", function()
  local plain = altered("bert", function() end)
  local old = altered("bert", function(s) -- as files of the first releases have it
    s.model.type, s.normalizer.type, s.post_processor.type = nil, nil, nil
    s.normalizer = { normalizers = json.array { s.normalizer } }
  end)
  check.array(old:encode "The Résumé, 日本 x", plain:encode "The Résumé, 日本 x")
  old:free()
  local alias = altered("bert", function(s) s.normalizer.type = "Bert" end)
  check.array(alias:encode "The Résumé", plain:encode "The Résumé")
  alias:free()
  plain:free()
  plain = altered("qwen2", function() end)
  old = altered("qwen2", function(s) s.model.type = nil end)
  check.array(old:encode "def f(x):\n    return x", plain:encode "def f(x):\n    return x")
  old:free()
  plain:free()
  local _, err = altered("bert", function(s) s.model.type, s.model.max_input_chars_per_word = nil, nil end)
  check.that(err:find("the model \"WordLevel\" is not supported", 1, true), err)
  _, err = altered("bert", function(s) s.model = { vocab = s.model.vocab } end)
  check.that(err:find("at model: \"type\" is missing, and the keys are those of no type", 1, true), err)
  _, err = altered("bert", function(s) s.pre_tokenizer.type = nil end)
  check.that(err:find("at pre_tokenizer: \"type\" is missing", 1, true), err)
end)

test("truncation on the left keeps the end and the special tokens", function()
  for _, name in ipairs { "bert", "qwen3_embedding" } do
    local right = altered(name, function() end)
    local left = altered(name, function(s)
      s.truncation = { max_length = 5, direction = "Left", stride = 0, strategy = "LongestFirst" } end)
    local text = "def total(rows): return sum(rows) [MASK] <|endoftext|> end"
    local all, plain = right:encode(text), right:encode(text, { add_special_tokens = false })
    local special = #all - #plain
    check.array(left:encode(text), all)
    for length = math.max(1, special), #all + 1 do
      local expected, n = {}, math.min(#plain, length - special)
      for _, id in ipairs(name == "bert" and { all[1] } or {}) do expected[1] = id end
      for i = #plain - n + 1, #plain do expected[#expected + 1] = plain[i] end
      expected[#expected + 1] = all[#all]
      check.array(left:encode(text, { max_length = length }), expected, 0, name .. " " .. length)
      local bare = left:encode(text, { max_length = length, add_special_tokens = false })
      check.equal(bare[#bare], plain[#plain])
    end
    right:free()
    left:free()
  end
end)

test("the file's own truncation is reported, not applied", function()
  local tok = altered("bert", function(s)
    s.truncation = { max_length = 7, direction = "Right", stride = 0, strategy = "LongestFirst" }
  end)
  check.equal(tok.file_max_length, 7)
  check.that(#tok:encode(("a "):rep(20)) == 22)
  tok:free()
end)

test("the unknown token makes no difference if every byte has a token", function()
  local tok = altered("qwen2", function(s) s.model.unk_token, s.model.byte_fallback = "<|endoftext|>", true end)
  check.that(#tok:encode "\127\194\128" == 3)
  tok:free()
  local refused, err = altered("qwen2", function(s) s.model.unk_token, s.model.vocab["!"] = "x", nil end)
  check.equal(refused, nil)
  check.that(err:find("unknown token", 1, true), err)
end)

test("long words do not take quadratic time", function()
  for _, name in ipairs { "qwen2", "bert" } do
    local tok = load_tokenizer(GOLDEN .. name)
    for _, text in ipairs { ("a"):rep(200000), (" "):rep(200000), ("\228\184\128"):rep(70000), ("e\204\129"):rep(70000) } do
      local start = os.clock()
      tok:encode(text)
      check.that(os.clock() - start < 5, ("%s takes %.1f s for %d bytes"):format(name, os.clock() - start, #text))
    end
    tok:free()
  end
end)
