-- Tokenizers against the ids of Hugging Face tokenizers (tests/golden/make_tokenizer.py), and what a user may do wrong.
local fs = require "lorarun.fs"
local json = require "lorarun.json"
local load_tokenizer = require("lorarun.tokenizer").load_tokenizer

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

test("more tokens than bytes", function() -- NFKC makes 18 characters of U+FDFA: the first guess at the room is too small
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
  check.raises("max_length must be", tok.encode, tok, "a", { max_length = 0 })
  check.raises("must be a boolean", tok.encode, tok, "a", { add_special_tokens = 1 })
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
  { "the side \"Left\"", "qwen2", function(s)
    s.truncation = { max_length = 5, direction = "Left", stride = 0, strategy = "LongestFirst" } end },
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

test("the file's own truncation is told, not applied", function()
  local tok = altered("bert", function(s)
    s.truncation = { max_length = 7, direction = "Right", stride = 0, strategy = "LongestFirst" }
  end)
  check.equal(tok.file_max_length, 7)
  check.that(#tok:encode(("a "):rep(20)) == 22)
  tok:free()
end)

test("unknown tokens do no harm where every byte has a token", function()
  local tok = altered("qwen2", function(s) s.model.unk_token, s.model.byte_fallback = "<|endoftext|>", true end)
  check.that(#tok:encode "\127\194\128" == 3)
  tok:free()
  local refused, err = altered("qwen2", function(s) s.model.unk_token, s.model.vocab["!"] = "x", nil end)
  check.equal(refused, nil)
  check.that(err:find("unknown token", 1, true), err)
end)

test("long words take no quadratic time", function()
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
