-- qwen2.lua: Qwen2 (nomic-embed-code, gte-Qwen2, Qwen2.5 embedders): a pre-norm decoder with grouped-query attention, q/k/v
-- biases, RoPE, RMSNorm and SwiGLU. Reference: transformers' modeling_qwen2; names of tensors are the file's.
local json = require "lorarun.base.json"
local model_config = require "lorarun.formats.model_config"
local nn = require "lorarun.models.nn"
local ops = require "lorarun.tensor.ops"

local qwen2 = {
  architectures = { Qwen2Model = true, Qwen2ForCausalLM = true, Qwen2ForSequenceClassification = true,
    Qwen2ForTokenClassification = true, Qwen2ForQuestionAnswering = true },
  prefixes = { "", "model." },
  probe = "embed_tokens.weight",
  attention = { "q_proj", "k_proj", "v_proj" },
  peft_targets = { "q_proj", "v_proj" },
}

-- Code of folders' own that auto_map names and that is known here: gte-Qwen2's and stella's, Qwen2 without the causal mask.
local KNOWN_CODE = { ["modeling_qwen.Qwen2Model"] = { causal = false } }

local ACTIVATIONS = { silu = true, swish = true }

-- The value that several keys may give: an error where they contradict each other, since transformers 4 and 5 then differ.
local function one_of(candidates, default)
  local first
  for _, c in ipairs(candidates) do
    if c.value ~= nil then
      if first and first.value ~= c.value then
        c.config:refuse(c.key, "is %s but '%s%s' is %s; transformers 4 takes one and 5 the other: make them the same",
          tostring(c.value), first.config.above, first.key, tostring(first.value))
      end
      first = first or c
    end
  end
  return first and first.value or default
end

-- RoPE's base. Both of the spellings: rope_theta and rope_scaling (transformers 4), rope_parameters (5).
local function rope_theta(config)
  local thetas, kinds, factors = {}, {}, {}
  local function collect(o, key, list, value) list[#list + 1] = { config = o, key = key, value = value } end
  local function collect_numbers(o)
    collect(o, "rope_theta", thetas, o:get "rope_theta" ~= nil and o:number("rope_theta", nil, 1e-6) or nil)
    collect(o, "partial_rotary_factor", factors, o:get "partial_rotary_factor" ~= nil and o:number "partial_rotary_factor" or nil)
  end
  for _, name in ipairs { "rope_scaling", "rope_parameters" } do
    local rope = config:object(name)
    if rope then
      for _, key in ipairs(rope:keys()) do
        if type(rope:get(key)) == "table" then rope:refuse(key, "is not supported: one RoPE for all layers is") end
      end
      for _, key in ipairs { "rope_type", "type" } do
        collect(rope, key, kinds, rope:get(key) ~= nil and rope:text(key) or nil)
      end
      collect_numbers(rope)
    end
  end
  collect_numbers(config)
  for _, k in ipairs(kinds) do
    if k.value and k.value ~= "default" then
      k.config:refuse(k.key, "is '%s': this scaling of RoPE is not supported, only 'default'", k.value)
    end
  end
  if one_of(factors, 1) ~= 1 then
    config:refuse("partial_rotary_factor", "is not supported: Qwen2 rotates all of a head's dimensions")
  end
  return one_of(thetas, 10000)
end

-- Tokens that a query of a windowed layer sees, itself included, or nil where every layer sees all.
local function window_of(config, layers)
  local window
  if config:boolean("use_sliding_window", false) then
    local given = config:given "sliding_window"
    if given == nil then window = 4096 -- null is none, as in transformers
    else window = given ~= json.null and config:integer("sliding_window", nil, 1, 2 ^ 31) or nil end
  end
  local types = config:list("layer_types", "string")
  if not types then
    local first = config:integer("max_window_layers", 28, 0, 2 ^ 31)
    return window and first < layers and window or nil
  end
  if #types ~= layers then config:refuse("layer_types", "has %d entries for %d layers", #types, layers) end
  local windowed = false
  for i, kind in ipairs(types) do
    if kind == "sliding_attention" then windowed = true
    elseif kind ~= "full_attention" then
      config:refuse("layer_types", "has '%s' as element %d, which Qwen2 does not have", kind, i)
    end
  end
  if windowed and not window then
    config:refuse("layer_types", "has sliding_attention, but there is no window: 'use_sliding_window' or 'sliding_window' is off")
  end
  return windowed and window or nil
end

-- Whether a token sees only what is before it.
local function is_causal(config)
  local code = model_config.code_of(config, KNOWN_CODE)
  local given = config:given "is_causal"
  if given == json.null then
    config:refuse("is_causal", "is null, which transformers takes for true or false depending on padding; write one of them")
  end
  local causal = config:boolean("is_causal", not code or code.causal)
  if code and causal ~= code.causal then
    config:refuse("is_causal", "contradicts the code that 'auto_map' names, which has no causal mask: remove one of them")
  end
  if causal and config:boolean("use_bidirectional_attention", false) then
    config:refuse("use_bidirectional_attention", "is not read by transformers' Qwen2, which stays causal; \"is_causal\": false is "
      .. "what it reads")
  end
  return causal
end

--- The sizes that matter, from config.json (transformers 4 and 5 spellings). Refuses what this file does not compute.
function qwen2.configure(config)
  local act = config:text("hidden_act", "silu")
  if not ACTIVATIONS[act] then config:refuse("hidden_act", "is '%s', which is not supported: Qwen2 has silu", act) end
  local c = {
    hidden = config:integer "hidden_size", layers = config:integer("num_hidden_layers", nil, 1, model_config.MOST_LAYERS),
    heads = config:integer "num_attention_heads", intermediate = config:integer "intermediate_size",
    vocabulary = config:integer("vocab_size", nil, 1, model_config.MOST_TOKENS),
    positions = config:integer("max_position_embeddings", 32768, 1, 2 ^ 31 - 1),
    eps = config:number("rms_norm_eps", 1e-6, 0), theta = rope_theta(config), causal = is_causal(config),
  }
  -- missing, it is transformers' default; null is one for each head
  if config:given "num_key_value_heads" == nil and c.heads ~= 32 then
    config:refuse("num_key_value_heads", "is missing; transformers then takes 32, which does not fit %d heads: write it", c.heads)
  end
  c.kv_heads = config:integer("num_key_value_heads", c.heads)
  c.head_dim = config:integer("head_dim", math.max(1, math.floor(c.hidden / c.heads)))
  if c.head_dim % 2 ~= 0 then
    config:refuse(config:get "head_dim" and "head_dim" or "num_attention_heads", "makes heads of %d dimensions; RoPE needs an even "
      .. "number", c.head_dim)
  end
  c.window = window_of(config, c.layers)
  return c
end

--- build(c, source): the frozen layers.
function qwen2.build(c, source)
  local model = { config = c, layers = {} }
  model.embeddings = source.table("embed_tokens.weight", c.vocabulary, c.hidden)
  local q_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
  for i = 0, c.layers - 1 do
    local at = ("layers.%d."):format(i)
    local attention, mlp = at .. "self_attn.", at .. "mlp."
    local layer = { input_norm = source.norm(at .. "input_layernorm", c.hidden, c.eps) }
    layer.qkv = source.linear(attention .. "qkv", c.hidden, {
      { name = attention .. "q_proj", out = q_width, bias = true },
      { name = attention .. "k_proj", out = kv_width, bias = true },
      { name = attention .. "v_proj", out = kv_width, bias = true } }, layer.input_norm)
    layer.o = source.linear(attention .. "o_proj", q_width, { { name = attention .. "o_proj", out = c.hidden } })
    layer.post_norm = source.norm(at .. "post_attention_layernorm", c.hidden, c.eps)
    layer.gate_up = source.linear(mlp .. "gate_up", c.hidden, {
      { name = mlp .. "gate_proj", out = c.intermediate }, { name = mlp .. "up_proj", out = c.intermediate } }, layer.post_norm)
    layer.down = source.linear(mlp .. "down_proj", c.intermediate, { { name = mlp .. "down_proj", out = c.hidden } })
    model.layers[i + 1] = layer
  end
  model.norm = source.norm("norm", c.hidden, c.eps)
  return model
end

--- Longest text these weights can take: RoPE is computed for any position.
function qwen2.max_length() return math.huge end

--- prepare(model, max_length): tables that depend on the longest sequence.
function qwen2.prepare(model, max_length, device)
  local c = model.config
  model.rope = nn.rope_table(max_length, c.head_dim, c.theta, device)
end

-- One layer up to its last product: see nn.layers.
local function block(model, layer, stream, ctx)
  local c = model.config
  local y = stream:norm(layer.input_norm)
  local qkv = nn.linear(y, layer.qkv, ctx)
  y:release()
  local attended = ops.self_attention(qkv, { heads = c.heads, kv_heads = c.kv_heads, head_dim = c.head_dim, causal = c.causal,
    cu_seqlens = ctx.cu_seqlens, max_length = ctx.max_length, rope = model.rope, positions = ctx.positions })
  qkv:release()
  stream:add(stream:after_attention(attended, ctx), layer.o, ctx)
  y = stream:norm(layer.post_norm)
  local gu = nn.linear(y, layer.gate_up, ctx)
  y:release()
  local h = ops.swiglu(gu, ctx.unread)
  gu:release()
  return h
end

--- forward(model, ctx): hidden states [T, hidden] after the final norm, or with ctx.pooled those of these rows alone: [B, hidden].
--- ctx: see nn.lua.
function qwen2.forward(model, ctx)
  return nn.layers(model.layers, ops.embedding(model.embeddings, ctx.ids), model.norm, ctx,
    function(layer, stream, own) return block(model, layer, stream, own) end)
end

--- exported(sizes): what a folder that is written must say so that transformers computes the same.
function qwen2.exported(c)
  if c.causal then return {} end
  return { config = { is_causal = false }, note = "Needs transformers 5.2 or later: the attention is bidirectional (`is_causal` is "
    .. "false in config.json), which earlier versions do not read; they give other embeddings without a word." }
end

return qwen2
