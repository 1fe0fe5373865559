-- tokenizer_classes.lua: the classes of transformers' tokenizers that lorarun knows, and what each makes of a tokenizer.json and a
-- tokenizer_config.json. In transformers 4 a class reads tokenizer.json and replaces a few of its settings; in transformers 5
-- most classes take only the vocabulary (and the merges) from the file and build the rest again. The fields of a class (a number in
-- front: the generation that the field is about):
--
--   tokens            special tokens that the class has if the files name none
--   flags             by attribute: the flags of special tokens that the files give as strings. Such tokens replace those of
--                     tokenizer.json in transformers 4; with flags_in_5 also in transformers 5, if no file has the token
--   normalizer        4: the settings of BertNormalizer that replace the file's
--   built             5: builds these parts again: returns normalizer, pre_tokenizer, model settings; nil: uses tokenizer.json
--   around            5: the attributes of the special tokens before and after a text, and the ids to use if those are null;
--                     nil: as tokenizer.json says
--   plain_again       5: special tokens lose the flags that the files give them
local files = require "lorarun.formats.tokenizer_config"
local json = require "lorarun.base.json"

local classes = {}

local BERT_TOKENS = { unk_token = "[UNK]", sep_token = "[SEP]", pad_token = "[PAD]", cls_token = "[CLS]", mask_token = "[MASK]" }

local function bert_built(settings)
  return { type = "BertNormalizer", clean_text = true,
    handle_chinese_chars = files.boolean(settings, "tokenize_chinese_chars", true),
    strip_accents = settings:get "strip_accents", lowercase = files.boolean(settings, "do_lower_case", true) },
    { type = "BertPreTokenizer" },
    { type = "WordPiece", unknown = "unk_token", continuing_subword_prefix = "##", max_input_chars_per_word = 100 }
end

local function byte_level(prefix_space, use_regex)
  return { type = "ByteLevel", add_prefix_space = prefix_space, trim_offsets = true, use_regex = use_regex }
end

local function gpt2_built(settings)
  return nil, byte_level(files.boolean(settings, "add_prefix_space", false), true), { type = "BPE", ignore_merges = false }
end

local QWEN2_PATTERN = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
  .. "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

local function qwen2_built(settings)
  return { type = "NFC" }, { type = "Sequence", pretokenizers = json.array {
    { type = "Split", pattern = { Regex = QWEN2_PATTERN }, behavior = "Isolated", invert = false },
    byte_level(settings:get "add_prefix_space" ~= nil and files.boolean(settings, "add_prefix_space"), false) } },
    { type = "BPE", ignore_merges = false }
end

local PLAIN = { normalized = false, special = true }

local bert = { tokens = BERT_TOKENS, normalizer = { lowercase = true, strip_accents = true, handle_chinese_chars = true },
  built = bert_built, around = { before = "cls_token", after = "sep_token", missing = { 2, 3 } } }

classes.known = {
  BertTokenizer = bert, DistilBertTokenizer = bert, ElectraTokenizer = bert, MobileBertTokenizer = bert,
  SqueezeBertTokenizer = bert, LayoutLMTokenizer = bert, LxmertTokenizer = bert,
  MPNetTokenizer = {
    tokens = { bos_token = "<s>", eos_token = "</s>", sep_token = "</s>", cls_token = "<s>", unk_token = "[UNK]",
      pad_token = "<pad>", mask_token = "<mask>" },
    flags = { bos_token = {}, eos_token = {}, sep_token = {}, cls_token = {}, unk_token = {}, pad_token = {},
      mask_token = { lstrip = true } }, flags_in_5 = true,
    normalizer = { lowercase = true, strip_accents = true }, built = bert_built,
    around = { before = "cls_token", after = "sep_token", missing = { 0, 2 } },
  },
  RobertaTokenizer = {
    tokens = { bos_token = "<s>", eos_token = "</s>", sep_token = "</s>", cls_token = "<s>", unk_token = "<unk>",
      pad_token = "<pad>", mask_token = "<mask>" },
    flags = { mask_token = { lstrip = true, normalized = false } }, built = gpt2_built,
    around = { before = "cls_token", after = "sep_token" },
  },
  GPT2Tokenizer = {
    tokens = { bos_token = "<|endoftext|>", eos_token = "<|endoftext|>", unk_token = "<|endoftext|>" }, built = gpt2_built,
  },
  Qwen2Tokenizer = {
    tokens = { unk_token = "<|endoftext|>", eos_token = "<|endoftext|>", pad_token = "<|endoftext|>" },
    flags = { bos_token = PLAIN, eos_token = PLAIN, unk_token = PLAIN, pad_token = PLAIN }, built = qwen2_built,
    plain_again = true,
  },
  LlamaTokenizer = { tokens = { unk_token = "<unk>", bos_token = "<s>", eos_token = "</s>" }, llama = true },
  PreTrainedTokenizerFast = {}, -- as tokenizer.json says
}

-- By model type: the class that transformers 5 registers, which also counts if the files name none.
classes.of_model = { bert = "BertTokenizer", distilbert = "BertTokenizer", electra = "BertTokenizer", nomic_bert = "BertTokenizer",
  mpnet = "MPNetTokenizer", roberta = "RobertaTokenizer", gpt2 = "GPT2Tokenizer", qwen2 = "Qwen2Tokenizer",
  qwen3 = "Qwen2Tokenizer" }

-- Models for which transformers 5 uses the registered class, whatever the files name.
classes.overruled = { qwen2 = true }

return classes
