-- Writes a sentence-transformers folder of a Qwen2 with random weights: by default of nomic-embed-code's shape, 14 GB in bf16.
--   lorarun bench/gpu/make_model.lua --out FOLDER [--layers 28 --hidden 3584 ...]
-- For measurements that do not depend on the weights: how fast a folder loads and a step trains, here and elsewhere. All weights
-- are cut from one random block, uniform with the standard deviation that Qwen2 is initialised with (0.02), so activations have the
-- size of real ones. The tokenizer is byte-level without merges: each byte of a text is a token, so texts of any length in tokens
-- are easy to make.
local lr = require "lorarun"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local safetensors = require "lorarun.formats.safetensors"
local tensor = lr.tensor
local fs, json = lr.fs, lr.json

local args = lr.args {
  { "out", "", "folder to write", required = true },
  { "layers", 28, "", min = 1, type = "integer" },
  { "hidden", 3584, "width of the residual stream", min = 1, type = "integer" },
  { "heads", 28, "of the queries", min = 1, type = "integer" },
  { "kv-heads", 4, "of keys and values", min = 1, type = "integer" },
  { "intermediate", 18944, "width inside the MLP", min = 1, type = "integer" },
  { "vocabulary", 151646, "rows of the embedding table", min = 259, type = "integer" },
  { "max-length", 512, "tokens a text is cut to", min = 1, type = "integer" },
  { "shard", 5e9, "bytes a file has at most", min = 1 },
  { "seed", 1, "of the weights", min = 0, type = "integer" },
}
if args.hidden % args.heads ~= 0 or args.heads % args.kv_heads ~= 0 then
  check.fail("--hidden %d must be a multiple of --heads %d, and that of --kv-heads %d", args.hidden, args.heads, args.kv_heads)
end

-- The tensors of Qwen2Model: name -> shape.
local function shapes()
  local head_dim = args.hidden / args.heads
  local q, kv, h, inner = args.hidden, args.kv_heads * head_dim, args.hidden, args.intermediate
  local all = { ["embed_tokens.weight"] = { args.vocabulary, h }, ["norm.weight"] = { h } }
  for i = 0, args.layers - 1 do
    for name, shape in pairs { ["self_attn.q_proj.weight"] = { q, h }, ["self_attn.k_proj.weight"] = { kv, h },
      ["self_attn.v_proj.weight"] = { kv, h }, ["self_attn.o_proj.weight"] = { h, q }, ["self_attn.q_proj.bias"] = { q },
      ["self_attn.k_proj.bias"] = { kv }, ["self_attn.v_proj.bias"] = { kv }, ["mlp.gate_proj.weight"] = { inner, h },
      ["mlp.up_proj.weight"] = { inner, h }, ["mlp.down_proj.weight"] = { h, inner }, ["input_layernorm.weight"] = { h },
      ["post_attention_layernorm.weight"] = { h } } do
      all[("layers.%d.%s"):format(i, name)] = shape
    end
  end
  return all
end

local SPREAD = 0.02 * math.sqrt(3) -- uniform in [-a, a] has the standard deviation a / sqrt 3
local DRAWN, SHIFTS, SHIFT = 2 ^ 24, 4096, 257 -- numbers drawn, then the block repeats; tensors begin at different places

-- `count` random bf16 numbers, as a matrix of one column.
local function random_block(count)
  local block = tensor.new({ count, 1 }, "bf16", "random")
  local drawn = math.min(count, DRAWN)
  tensor.scope(function()
    local f = tensor.new({ drawn }, "f32", "drawn")
    check(C.lr_tensor_uniform(f.handle, args.seed, 1, -SPREAD, SPREAD))
    check(C.lr_op_cast(block:slice_rows(0, drawn).handle, f:view({ drawn, 1 }).handle))
    for from = drawn, count - 1, drawn do
      local n = math.min(drawn, count - from)
      check(C.lr_op_cast(block:slice_rows(from, from + n).handle, block:slice_rows(0, n).handle))
    end
  end)
  return block
end

local function constant(shape, value) return tensor.full(shape, value, "bf16", "constant") end

local function write_weights()
  local all, entries, largest, index = shapes(), {}, 0, 0
  for _, shape in pairs(all) do largest = math.max(largest, shape[1] * (shape[2] or 1)) end
  local block = random_block(largest + SHIFTS * SHIFT)
  local names = {}
  for name in pairs(all) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local shape = all[name]
    index = index + 1
    local shift = index % SHIFTS * SHIFT
    entries[#entries + 1] = { name = name, dtype = "bf16", shape = shape, tensor = function()
      local t = #shape == 2 and block:view(shape, shift) or constant(shape, name:find "norm%.weight$" and 1 or 0)
      return t, function() t:free() end
    end }
  end
  safetensors.write_sharded(args.out, "model", entries, args.shard)
  block:free()
end

-- GPT-2's printable characters for the 256 bytes, in which byte-level tokenizers write their vocabulary.
local function byte_vocabulary()
  local function utf8(code)
    if code < 0x80 then return string.char(code) end
    return string.char(0xC0 + math.floor(code / 64), 0x80 + code % 64)
  end
  local vocabulary, others = {}, 0
  for byte = 0, 255 do
    local printable = byte >= 33 and byte <= 126 or byte >= 161 and byte <= 172 or byte >= 174
    if not printable then others = others + 1 end
    vocabulary[utf8(printable and byte or 255 + others)] = byte
  end
  return vocabulary
end

local SPECIAL = { "<|endoftext|>", "<|im_start|>", "<|im_end|>" } -- the ids after the bytes

local function write(name, value)
  fs.write(fs.join(args.out, name), json.encode(value, { indent = 2, sort_keys = true }) .. "\n")
end

-- The pattern at which Qwen2's own tokenizer splits texts: with another one, the two generations of transformers would differ.
local WORDS = [=[(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+]=]

local function write_tokenizer()
  local level = { type = "ByteLevel", add_prefix_space = false, trim_offsets = false, use_regex = false }
  local words = { type = "Split", pattern = { Regex = WORDS }, behavior = "Isolated", invert = false }
  local added, decoder = {}, {}
  for i, content in ipairs(SPECIAL) do
    local token = { content = content, single_word = false, lstrip = false, rstrip = false, normalized = false, special = true }
    decoder[tostring(255 + i)] = token
    added[i] = { id = 255 + i }
    for key, value in pairs(token) do added[i][key] = value end
  end
  write("tokenizer.json", { version = "1.0", truncation = json.null, padding = json.null, added_tokens = json.array(added),
    normalizer = { type = "NFC" }, pre_tokenizer = { type = "Sequence", pretokenizers = json.array { words, level } },
    post_processor = json.null, decoder = level,
    model = { type = "BPE", dropout = json.null, unk_token = json.null, continuing_subword_prefix = "", end_of_word_suffix = "",
      fuse_unk = false, byte_fallback = false, vocab = byte_vocabulary(), merges = json.array {} } })
  write("tokenizer_config.json", { tokenizer_class = "Qwen2Tokenizer", added_tokens_decoder = decoder,
    eos_token = SPECIAL[1], pad_token = SPECIAL[1], model_max_length = args.max_length, clean_up_tokenization_spaces = false })
end

local function write_settings()
  write("config.json", { architectures = json.array { "Qwen2Model" }, model_type = "qwen2", hidden_act = "silu",
    hidden_size = args.hidden, num_hidden_layers = args.layers, num_attention_heads = args.heads,
    num_key_value_heads = args.kv_heads, intermediate_size = args.intermediate, vocab_size = args.vocabulary,
    max_position_embeddings = 32768, rope_theta = 1000000, rms_norm_eps = 1e-6, attention_dropout = 0, initializer_range = 0.02,
    tie_word_embeddings = false, use_cache = false, use_sliding_window = false, torch_dtype = "bfloat16",
    bos_token_id = 256, eos_token_id = 256, pad_token_id = 256 })
  fs.make(fs.join(args.out, "1_Pooling"))
  fs.make(fs.join(args.out, "2_Normalize"))
  local modules = {}
  for i, part in ipairs { { "Transformer", "" }, { "Pooling", "1_Pooling" }, { "Normalize", "2_Normalize" } } do
    modules[i] = { idx = i - 1, name = tostring(i - 1), path = part[2], type = "sentence_transformers.models." .. part[1] }
  end
  write("modules.json", json.array(modules))
  write("1_Pooling/config.json", { word_embedding_dimension = args.hidden, pooling_mode_cls_token = false,
    pooling_mode_mean_tokens = false, pooling_mode_max_tokens = false, pooling_mode_mean_sqrt_len_tokens = false,
    pooling_mode_weightedmean_tokens = false, pooling_mode_lasttoken = true, include_prompt = true })
  write("sentence_bert_config.json", { max_seq_length = args.max_length, do_lower_case = false })
end

local started = C.lr_time()
fs.make(args.out)
write_tokenizer()
write_settings()
write_weights()
local bytes, seconds = 0, C.lr_time() - started
for _, name in ipairs(fs.list(args.out)) do
  if name:find "%.safetensors$" then bytes = bytes + fs.stat(fs.join(args.out, name)).size end
end
print(("%s: %.2f GB of weights in %.1f s, %.0f MB/s"):format(args.out, bytes / 1e9, seconds, bytes / seconds / 1e6))
