-- qwen2.lua: Qwen2 (nomic-embed-code, gte-Qwen2, Qwen2.5 embedders): a pre-norm decoder with grouped-query attention, q/k/v
-- biases, RoPE, RMSNorm and SwiGLU. Reference: transformers' modeling_qwen2; names of tensors are the file's.
local check = require "lorarun.check"
local nn = require "lorarun.nn"
local ops = require "lorarun.ops"

local qwen2 = {
  architectures = { Qwen2Model = true, Qwen2ForCausalLM = true },
  prefixes = { "", "model." },
  probe = "embed_tokens.weight",
  attention = { "q_proj", "k_proj", "v_proj" },
  unused = {}, -- linear layers of the checkpoint that no embedding depends on
}

--- The sizes that matter, from config.json (transformers 4 and 5 spellings). Refuses what this file does not compute.
function qwen2.configure(config, where)
  local rope = config.rope_parameters or config.rope_scaling or {}
  local kind = rope.rope_type or rope.type or "default"
  if kind ~= "default" then check.fail("%s: RoPE scaling '%s' is not supported", where, kind) end
  if config.hidden_act and config.hidden_act ~= "silu" then
    check.fail("%s: hidden_act '%s' is not supported, Qwen2 has silu", where, config.hidden_act)
  end
  local c = {
    hidden = config:integer "hidden_size", layers = config:integer "num_hidden_layers",
    heads = config:integer "num_attention_heads", intermediate = config:integer "intermediate_size",
    vocabulary = config:integer "vocab_size", positions = config:integer("max_position_embeddings", 32768),
    eps = config:number("rms_norm_eps", 1e-6), theta = rope.rope_theta or config:number("rope_theta", 10000),
  }
  c.kv_heads = config:integer("num_key_value_heads", c.heads)
  c.head_dim = config:integer("head_dim", math.max(1, math.floor(c.hidden / c.heads)))
  if config.use_sliding_window then c.window = config:integer("sliding_window", 4096) end
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
    model.layers[i + 1] = {
      input_norm = source.norm(at .. "input_layernorm", c.hidden, c.eps),
      qkv = source.linear(attention .. "qkv", c.hidden, {
        { name = attention .. "q_proj", out = q_width, bias = true },
        { name = attention .. "k_proj", out = kv_width, bias = true },
        { name = attention .. "v_proj", out = kv_width, bias = true } }, true),
      o = source.linear(attention .. "o_proj", q_width, { { name = attention .. "o_proj", out = c.hidden } }),
      post_norm = source.norm(at .. "post_attention_layernorm", c.hidden, c.eps),
      gate_up = source.linear(mlp .. "gate_up", c.hidden, {
        { name = mlp .. "gate_proj", out = c.intermediate }, { name = mlp .. "up_proj", out = c.intermediate } }, true),
      down = source.linear(mlp .. "down_proj", c.intermediate, { { name = mlp .. "down_proj", out = c.hidden } }),
    }
  end
  model.norm = source.norm("norm", c.hidden, c.eps)
  return model
end

--- Longest sequence these weights can take.
function qwen2.max_length(c) return c.window or c.positions end

--- prepare(model, max_length): tables that depend on the longest sequence.
function qwen2.prepare(model, max_length, device)
  local c = model.config
  model.rope = nn.rope_table(max_length, c.head_dim, c.theta, device)
end

-- One layer up to its last product: see nn.layers.
local function block(model, layer, x, r, ctx, behind, unread)
  local c = model.config
  local y, s = nn.norm(layer.input_norm, x, r, layer.qkv)
  local qkv = nn.linear(y, layer.qkv, ctx)
  y:release()
  local attended = ops.self_attention(qkv, { heads = c.heads, kv_heads = c.kv_heads, head_dim = c.head_dim, causal = true,
    cu_seqlens = ctx.cu_seqlens, max_length = ctx.max_length, rope = model.rope, positions = ctx.positions })
  qkv:release()
  attended, s = nn.at_pooled(ctx, behind, attended, s)
  x, r = nn.onto(s, attended, layer.o, behind)
  y, s = nn.norm(layer.post_norm, x, r, layer.gate_up)
  local gu = nn.linear(y, layer.gate_up, behind)
  y:release()
  local h = ops.swiglu(gu, unread)
  gu:release()
  return s, h
end

--- forward(model, ctx): hidden states [T, hidden] after the final norm; with ctx.pooled, of these rows alone: [B, hidden].
---   ctx: { ids, positions, cu_seqlens, max_length, keys, training, seed, step, recompute = n: layers to run again in backward,
---   pooled = { rows = [B] i32, keys = [B] i64 } or nil }
function qwen2.forward(model, ctx)
  return nn.layers(model.layers, ops.embedding(model.embeddings, ctx.ids), model.norm, ctx,
    function(...) return block(model, ...) end)
end

return qwen2
