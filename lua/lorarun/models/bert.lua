-- bert.lua: BERT encoders (MiniLM, bge, e5, gte): post-norm, learned absolute positions, token types, LayerNorm, GELU, full
-- attention. Reference: transformers' modeling_bert. The model's own dropout is off: its weights are frozen, and LoRA has its own.
local json = require "lorarun.base.json"
local model_config = require "lorarun.formats.model_config"
local nn = require "lorarun.models.nn"
local ops = require "lorarun.tensor.ops"
local tensor = require "lorarun.tensor.tensor"

local bert = {
  architectures = { BertModel = true, BertForMaskedLM = true, BertForSequenceClassification = true, BertForPreTraining = true,
    BertForNextSentencePrediction = true, BertForMultipleChoice = true, BertForTokenClassification = true,
    BertForQuestionAnswering = true, BertLMHeadModel = true },
  prefixes = { "", "bert." },
  probe = "embeddings.word_embeddings.weight",
  attention = { "query", "key", "value" },
  peft_targets = { "query", "value" },
  unused = { ["pooler.dense"] = true }, -- linear layers of the checkpoint that no embedding depends on
  heads = { ["cls.predictions.transform.dense"] = true, ["cls.predictions.decoder"] = true, ["cls.seq_relationship"] = true },
}

--- The name that the oldest checkpoints have for a tensor (made from TensorFlow's), or nil.
function bert.older_name(name)
  local norm, what = name:match "^(.*LayerNorm)%.(%a+)$"
  return norm and norm .. (what == "weight" and ".gamma" or ".beta")
end

-- transformers' names; the fast and accurate forms differ from gelu_new by rounding alone.
local GELU = { gelu = "erf", gelu_python = "erf", gelu_new = "tanh", gelu_fast = "tanh", gelu_accurate = "tanh",
  gelu_pytorch_tanh = "tanh" }

--- The sizes that matter, from config.json. Refuses what this file does not compute.
function bert.configure(config)
  model_config.code_of(config)
  local position_type = config:text("position_embedding_type", "absolute")
  if config:given "position_embedding_type" == json.null then
    config:refuse("position_embedding_type", "is null: transformers 4 then has no positions, and 5 has absolute ones; write "
      .. "\"absolute\"")
  elseif position_type ~= "absolute" then
    config:refuse("position_embedding_type", "is '%s', which is not supported, only 'absolute'", position_type)
  end
  local act = config:text("hidden_act", "gelu")
  if not GELU[act] then config:refuse("hidden_act", "is '%s', which is not supported: BERT has gelu", act) end
  for _, key in ipairs { "is_decoder", "add_cross_attention", "is_encoder_decoder", "is_causal" } do
    if config:boolean(key, false) then config:refuse(key, "is not supported: embeddings need the encoder, in both directions") end
  end
  local c = {
    hidden = config:integer "hidden_size", layers = config:integer("num_hidden_layers", nil, 1, model_config.MOST_LAYERS),
    heads = config:integer "num_attention_heads", intermediate = config:integer "intermediate_size",
    vocabulary = config:integer("vocab_size", nil, 1, model_config.MOST_TOKENS),
    positions = config:integer "max_position_embeddings",
    types = config:integer("type_vocab_size", 2), eps = config:number("layer_norm_eps", 1e-12, 0), gelu = GELU[act],
  }
  c.kv_heads, c.head_dim = c.heads, c.hidden / c.heads
  return c
end

function bert.build(c, source)
  local model = { config = c, layers = {} }
  local function norm(at) return source.norm(at, c.hidden, c.eps, true) end
  local function linear(name, width, out, before)
    return source.linear(name, width, { { name = name, out = out, bias = true } }, before)
  end
  model.words = source.table("embeddings.word_embeddings.weight", c.vocabulary, c.hidden)
  model.position_table = source.table("embeddings.position_embeddings.weight", c.positions, c.hidden)
  model.type_table = source.table("embeddings.token_type_embeddings.weight", c.types, c.hidden)
  model.norm = norm "embeddings.LayerNorm"
  for i = 0, c.layers - 1 do
    local at = ("encoder.layer.%d."):format(i)
    local self = at .. "attention.self."
    local layer = { input_norm = model.norm }
    layer.qkv = source.linear(self .. "qkv", c.hidden, {
      { name = self .. "query", out = c.hidden, bias = true }, { name = self .. "key", out = c.hidden, bias = true },
      { name = self .. "value", out = c.hidden, bias = true } }, layer.input_norm)
    layer.o = linear(at .. "attention.output.dense", c.hidden, c.hidden)
    layer.attention_norm = norm(at .. "attention.output.LayerNorm")
    layer.up = linear(at .. "intermediate.dense", c.hidden, c.intermediate, layer.attention_norm)
    layer.down = linear(at .. "output.dense", c.intermediate, c.hidden)
    model.layers[i + 1] = layer
    model.norm = norm(at .. "output.LayerNorm")
  end
  return model
end

-- One layer up to its last product: see nn.layers. BERT normalises the stream itself, so a layer begins with the norm that ends the
-- one before it.
local function block(model, layer, stream, ctx)
  local c = model.config
  local qkv = nn.linear(stream:renorm(layer.input_norm), layer.qkv, ctx)
  local attended = ops.self_attention(qkv, { heads = c.heads, kv_heads = c.heads, head_dim = c.head_dim, causal = false,
    cu_seqlens = ctx.cu_seqlens, max_length = ctx.max_length })
  qkv:release()
  stream:add(stream:after_attention(attended, ctx), layer.o, ctx)
  local u = nn.linear(stream:renorm(layer.attention_norm), layer.up, ctx)
  local h = ops.gelu(u, c.gelu, ctx.unread)
  u:release()
  return h
end

--- forward(model, ctx): hidden states [T, hidden], or with ctx.pooled those of these rows alone: [B, hidden]. ctx: see nn.lua.
function bert.forward(model, ctx)
  local e = ops.embedding(model.words, ctx.ids)
  ops.embedding(model.position_table, ctx.positions, e)
  -- every token is of type 0, as sentence-transformers feeds them
  local types = tensor.zeros(ctx.ids.shape, "i32", "token types", ctx.ids.device)
  ops.embedding(model.type_table, types, e)
  types:release()
  return nn.layers(model.layers, e, model.norm, ctx, function(layer, stream, own) return block(model, layer, stream, own) end)
end

return bert
