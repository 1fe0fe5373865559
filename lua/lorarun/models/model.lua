-- model.lua: an embedding model: architecture + tokenizer + pooling, loaded from a folder, with adapters that can be trained.
--
--   local model = lr.load_model("nomic-ai/nomic-embed-code", { max_length = 512, precision = "bf16" })
--   local e = model:encode { "x = 1", "x == 1" }       -- tensor [2, dim]
--   model:add_lora { rank = 16, alpha = 32, targets = { "q_proj", "k_proj", "v_proj" } }
--
-- The architecture is the file models/<model_type>.lua, which architectures.lua finds. It gives configure, build and forward, and
-- knows nothing of files, pooling or LoRA.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local dtypes = require "lorarun.base.dtypes"
local fs = require "lorarun.base.fs"
local guard = require "lorarun.base.guard"
local model_config = require "lorarun.formats.model_config"
local sorted = require "lorarun.base.sorted"
local device_traits = require "lorarun.tensor.device_traits"
local tensor = require "lorarun.tensor.tensor"
local ops = require "lorarun.tensor.ops"
local autograd = require "lorarun.tensor.autograd"
local nn = require "lorarun.models.nn"
local hub = require "lorarun.formats.hub"
local dataset = require "lorarun.data.dataset"
local kinds = require "lorarun.base.options"
local using = require "lorarun.base.using"
local weights = require "lorarun.models.weights"
local prompts = require "lorarun.models.prompts"
local say = require "lorarun.base.say"
local sentence_transformers = require "lorarun.formats.sentence_transformers"

local architectures = require "lorarun.models.architectures"
local class = require "lorarun.models.class"

local Model = class.Model

local OPTIONS = { precision = kinds.any, max_length = kinds.any, pooling = kinds.text, normalize = kinds.boolean,
  device = kinds.choice(sorted.keys(device_traits.DEVICES)), revision = kinds.text, settings = kinds.table,
  tokenizer_folder = kinds.text, adapter = kinds.text, stands_for = kinds.choice(sorted.keys(device_traits.KINDS)) }
local ENCODE_OPTIONS = { prompt = prompts.KINDS.prompt, prompt_name = prompts.KINDS.prompt_name, batch_tokens = kinds.whole(1) }
local CONTEXT_OPTIONS = { training = kinds.boolean, seed = kinds.whole(0), step = kinds.whole(0), recompute = kinds.whole(0) }

local function names_of(set)
  return table.concat(sorted.keys(set), ", ")
end

-- The architecture of a config.json and its name. folders: those of the model.
local function architecture(config, folders)
  local kind = config:text "model_type"
  local arch, name = architectures.find(kind, folders)
  if not arch then
    check.fail("%s: model_type '%s' is not supported; lorarun has %s, and there is no models/%s.lua %s. "
      .. "docs/adding-a-model.md tells how to add one", config.path, kind, table.concat(architectures.names(), " and "),
      (kind:gsub("-", "_")), architectures.places())
  end
  for _, one in ipairs(config:list("architectures", "string") or {}) do
    if not arch.architectures[one] then
      check.fail("%s: architecture '%s' is not supported; for model_type '%s' lorarun has %s", config.path, one, kind,
        names_of(arch.architectures))
    end
  end
  return arch, name
end

-- The frozen layers. o: { load = function(name, t), dtype, device, max_length, name = the architecture's }
local function assemble(arch, sizes, o)
  local source = nn.source(o)
  local built = arch.build(sizes, source)
  if type(built) ~= "table" then check.fail("models/%s.lua: build() returns %s, expected a table", o.name, tostring(built)) end
  if arch.prepare then arch.prepare(built, o.max_length, o.device) end
  return setmetatable({ arch = arch, arch_name = o.name, sizes = sizes, built = built, linears = source.linears,
    frozen = source.count, dtype = o.dtype, device = o.device, max_length = o.max_length }, Model)
end

-- Tokens that a text is cut to: what the user asked for, else what the folder says, else (as in sentence-transformers) the smaller
-- of the tokenizer's own limit and the model's positions.
local function longest(arch, c, asked, of_folder, tokenizer_folder, config)
  if asked ~= nil and (type(asked) ~= "number" or asked % 1 ~= 0 or asked < 1) then
    check.fail("max_length is %s, expected a whole number of at least 1", tostring(asked))
  end
  if asked and asked > math.max(c.positions, of_folder or 0) then
    check.fail("max_length %d is more than the %d positions of %s", asked, c.positions, config.path)
  end
  local length = asked or of_folder
    or math.min(c.positions, sentence_transformers.tokenizer_length(tokenizer_folder) or c.positions)
  local limit = math.min(architectures.longest(arch, c), C.LR_MOST_TOKENS)
  if length > limit then
    local why = limit == C.LR_MOST_TOKENS and ("lorarun takes texts of up to %d tokens"):format(limit)
      or ("%s has %d positions"):format(config.path, limit)
    if asked then check.fail("max_length is %d, but %s", asked, why) end
    say.warning("the folder's own length is %d tokens, but %s: longer ones are cut", length, why)
    length = limit
  end
  if c.window and length > c.window then
    config:refuse("sliding_window", "is %d: attention within a window is not supported. For texts of up to %d tokens it is the "
      .. "same function: give max_length = %d (--max-length %d)", c.window, c.window, c.window, c.window)
  end
  return length
end

-- do_lower_case of sentence-transformers: fine where the tokenizer makes lower case itself, else an error.
local UPPER, LOWER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ ÀÉÖ ΑΩ ЖЯ", "abcdefghijklmnopqrstuvwxyz àéö αω жя"
local function check_lower(tokenizer, config)
  local a, b = tokenizer:encode(UPPER), tokenizer:encode(LOWER)
  if table.concat(a, " ") ~= table.concat(b, " ") then
    config:refuse("do_lower_case", "is true and the tokenizer does not make lower case: put {\"type\": \"Lowercase\"} first into "
      .. "the normalizer of tokenizer.json, and make this false")
  end
end

--- load(name, options): name: a folder, or a Hugging Face id in the local cache. Options:
---   precision   "fp32" (default), "bf16", or on a GPU "fp16": what the forward and backward passes compute in
---   max_length  tokens a text is cut to; default: the folder's own
---   pooling     "mean", "cls", "last", ...: only where the folder does not say
---   normalize   override the folder's
---   device      "cpu", "cuda" (default: tensor.default_device), or "meta": shapes without bytes, for which config.json is
---               enough; without tokenizer.json there is no tokenizer then
---   stands_for  the device that a model on "meta" stands for, where the precision must be one of that device's
---   revision    of a Hugging Face id
--- An adapter beside the weights goes on them, as in sentence-transformers. An adapter folder (adapter_config.json without weights)
--- loads its base model with the adapter on it. The adapter folder's own tokenizer counts, and its own modules.json, which brings
--- pooling, prompts and length; all else is the base's.
local load

local function with_adapter(model, folder, in_auto_model)
  return (using.made(model, model.free, function() model:load_adapter(folder, in_auto_model) end))
end

local function load_adapted(folder, settings, options)
  local adapter_folder = require "lorarun.formats.adapter_folder"
  local inner = {}
  for key, value in pairs(options) do inner[key] = value end
  local base, revision = adapter_folder.base(folder, options.device == "meta")
  inner.revision, inner.settings, inner.adapter = revision, settings.modules and settings or nil, folder
  inner.tokenizer_folder = adapter_folder.has_tokenizer(folder) and folder or nil
  return with_adapter(load(base, inner), folder, settings.modules)
end

-- Is there an adapter beside the weights? sentence-transformers looks for one in the model's folder itself.
local function has_adapter(folder, weights_folder)
  local here = fs.is_file(fs.join(weights_folder, "adapter_config.json"))
  if not here and weights_folder ~= folder and fs.is_file(fs.join(folder, "adapter_config.json")) then
    check.fail("%s: the adapter is not beside the weights, which are in %s; move it there", fs.join(folder, "adapter_config.json"),
      weights_folder)
  end
  return here
end

-- Where an adapter lies beside weights, sentence-transformers reads config.json from the base that the adapter names.
local function check_base(folder, arch, c)
  local adapter = model_config.read_any(fs.join(folder, "adapter_config.json"))
  local base = adapter:get "base_model_name_or_path"
  local path = type(base) == "string" and base ~= "" and fs.join(base, "config.json")
  if not path or not fs.is_file(path) then return end
  local config = model_config.read(path)
  local there, name = architecture(config, { folder, base })
  local theirs = there == arch and architectures.sizes(arch, name, config) or {}
  for _, one in ipairs { c, theirs } do
    for _, key in ipairs(sorted.keys(one)) do
      if c[key] ~= theirs[key] then
        adapter:refuse("base_model_name_or_path", "is '%s', whose config.json is not that of the weights beside the adapter (%s is "
          .. "%s there, %s here): sentence-transformers would take that one. Make them the same, or name this folder", base, key,
          tostring(theirs[key]), tostring(c[key]))
      end
    end
  end
end

function load(name, options)
  options = kinds.check("lr.load_model", options, OPTIONS)
  local folder = hub.resolve(name, options.revision, options.device == "meta")
  local own = sentence_transformers.read(folder)
  local weights_folder = fs.join(folder, own.transformer)
  local adapted = has_adapter(folder, weights_folder) and not options.adapter
  if adapted and not hub.has_weights(weights_folder, options.device == "meta") then
    return load_adapted(weights_folder, own, options)
  end
  local settings = options.settings or own
  local config = model_config.read(fs.join(weights_folder, "config.json"))
  local arch, arch_name = architecture(config, { folder, weights_folder, options.adapter })
  model_config.refuse_others(config)
  local c = architectures.sizes(arch, arch_name, config)
  if adapted then check_base(weights_folder, arch, c) end
  local precision = options.precision or "fp32"
  local dtype = dtypes.of_precision[precision]
  if not dtype then check.fail("there is no precision '%s'; there are fp32, bf16, and on a GPU fp16", tostring(precision)) end
  local device = options.device or tensor.default_device
  local kind = device_traits.KINDS[options.stands_for or device]
  if dtype == "f16" and kind and not kind.fp16 then
    check.fail("precision fp16 needs a GPU; on the CPU use bf16, which is as fast and does not overflow, or fp32")
  end
  local pooling = options.pooling or settings.pooling
  local assumed = not pooling and device == "meta"
  if assumed then pooling = "mean" end
  if not pooling then
    check.fail("%s says nothing about pooling (there is no modules.json); say pooling = \"mean\", \"cls\" or \"last\" (--pooling): "
      .. "a wrong one gives worthless embeddings", folder)
  end
  if not ops.pooling_modes[pooling] then check.fail("there is no pooling '%s'", tostring(pooling)) end
  local tokenizer_folder = options.tokenizer_folder or weights_folder
  local max_length = longest(arch, c, options.max_length, settings.max_length, tokenizer_folder, config)
  local normalize = settings.normalize
  if options.normalize ~= nil then normalize = options.normalize end

  local model = tensor.persistent(function()
    local model, prefix
    if device == "meta" then
      model = assemble(arch, c, { name = arch_name, dtype = dtype, device = device, max_length = max_length,
        load = function() end })
    else
      local opened = weights.open(weights_folder, arch, c)
      model = using(opened.file, opened.file.close, function()
        return assemble(arch, c, { name = arch_name, dtype = dtype, device = device, max_length = max_length, load = opened.load })
      end)
      prefix = opened.prefix
    end
    local tokenizer
    if device ~= "meta" or fs.is_file(fs.join(tokenizer_folder, "tokenizer.json")) then
      tokenizer = require("lorarun.formats.tokenizer").load_tokenizer(tokenizer_folder, {
        model_type = config:text "model_type", tokenizer_class = arch.tokenizer_class })
      if tokenizer.vocab_size > c.vocabulary then
        config:refuse("vocab_size", "is %d, but the tokenizer of %s has ids up to %d", c.vocabulary, tokenizer_folder,
          tokenizer.vocab_size - 1)
      end
      if settings.lower then check_lower(tokenizer, settings.lower) end
    end
    model.name, model.folder, model.weights_folder, model.prefix = name, folder, weights_folder, prefix
    model.config, model.tokenizer, model.settings = config, tokenizer, settings
    model.tokenizer_folder, model.revision = tokenizer_folder, options.revision
    model.dimension, model.precision = c.hidden, precision
    model.pooling, model.normalize, model.layer_count, model.pooling_assumed = pooling, normalize, c.layers, assumed
    return model
  end)
  return adapted and with_adapter(model, weights_folder, true) or model
end

-- Poolings that take one token of each sequence, and which: the first, or the one before the next sequence's first.
local POOLED_TOKEN = { cls = function(cu_seqlens, i) return cu_seqlens[i] end,
  last = function(cu_seqlens, i) return cu_seqlens[i + 1] - 1 end }

-- The rows that pooling takes and their dropout keys: only these are computed after the last layer's attention. nil where pooling
-- reads every row.
local function pooled_rows(model, batch)
  local token, n, device = POOLED_TOKEN[model.pooling], batch.sequences, model.device
  if not token then return nil end
  local rows, keys = ffi.new("int32_t[?]", n), ffi.new("int64_t[?]", n)
  for i = 0, device == "meta" and -1 or n - 1 do
    rows[i] = token(batch.cu_seqlens, i)
    keys[i] = batch.keys[rows[i]]
  end
  return { rows = tensor.from(rows, { n }, "i32", "pooled rows", device),
    keys = tensor.from(keys, { n }, "i64", "dropout keys", device) }
end

--- A packed batch (dataset.lua) as tensors on the model's device; the context of forward().
function Model:context(batch, extra)
  if type(batch) ~= "table" or not batch.tokens then check.fail("model:context takes a batch, as lr.data.pack makes one") end
  if not batch.ids then check.fail("model:context: the batch was closed") end
  local t = batch.tokens
  local device = self.device
  local ctx = {
    ids = tensor.from(batch.ids, { t }, "i32", "token ids", device),
    positions = tensor.from(batch.positions, { t }, "i32", "positions", device),
    keys = tensor.from(batch.keys, { t }, "i64", "dropout keys", device),
    cu_seqlens = tensor.from(batch.cu_seqlens, { batch.sequences + 1 }, "i32", "cu_seqlens", device),
    max_length = batch.max_length, pooled = pooled_rows(self, batch),
  }
  for k, v in pairs(kinds.check("model:context", extra, CONTEXT_OPTIONS)) do ctx[k] = v end
  return ctx
end

--- forward(ctx): embeddings [sequences, dimension], f32, pooled, and normalised where the model is. Records on the tape.
function Model:forward(ctx)
  if type(ctx) ~= "table" or not ctx.cu_seqlens then check.fail("model:forward takes what model:context(batch) gives") end
  local hidden = self.arch.forward(self.built, ctx)
  local rows = ctx.pooled and ctx.pooled.rows.shape[1] or ctx.ids.shape[1]
  if getmetatable(hidden) ~= tensor.Tensor or hidden.shape[1] ~= rows or hidden.shape[2] ~= self.dimension then
    check.fail("models/%s.lua: forward() gives %s, expected hidden states [%d, %d]%s", self.arch_name,
      getmetatable(hidden) == tensor.Tensor and "a tensor [" .. table.concat(hidden.shape, ", ") .. "]" or tostring(hidden), rows,
      self.dimension, ctx.pooled and ": of the rows ctx.pooled.rows alone" or "")
  end
  local e = ctx.pooled and ops.cast(hidden, "f32") or ops.pool(hidden, ctx.cu_seqlens, self.pooling)
  hidden:release()
  if not self.normalize then return e end
  local unit = ops.normalize(e)
  e:release()
  return unit
end

--- prompt(options): the text put before each input: prompt = a text, or prompt_name = a name of the folder's; else the default one
--- or "". prefixes(columns, prompts): those of columns of a data set. See prompts.lua.
function Model:prompt(given) return prompts.of(self, given) end
function Model:prefixes(columns, given) return prompts.prefixes(self, columns, given) end

local ENCODE_TOKENS = 8192 -- tokens a forward pass of encode(): enough for the matrix products' full speed, little memory

--- encode(texts, options): embeddings [#texts, dimension] f32. texts: an array, or one text. options: prompt, prompt_name,
--- batch_tokens. Texts are packed longest first, so nothing is padded.
function Model:encode(texts, options)
  if type(texts) == "string" then texts = { texts } end
  if type(texts) ~= "table" then check.fail("encode() was given %s, expected a text or a list of texts", kinds.shown(texts)) end
  local strays = {}
  for key in pairs(texts) do -- what #texts does not count would have no embedding
    if type(key) ~= "number" or key > #texts then strays[#strays + 1] = tostring(key) end
  end
  if #strays > 0 then
    table.sort(strays)
    check.fail("encode(): the texts are a list without holes; this has %d in order and another at '%s'", #texts, strays[1])
  end
  if #texts == 0 then check.fail("encode() was given no text") end
  options = kinds.check("encode()", options, ENCODE_OPTIONS)
  local prompt = self:prompt { prompt = options.prompt, prompt_name = options.prompt_name }
  local order = {}
  for i = 1, #texts do
    local text = texts[i]
    if type(text) ~= "string" then check.fail("encode(): text %d is a %s", i, type(text)) end
    order[i] = i
  end
  table.sort(order, function(a, b)
    if #texts[a] ~= #texts[b] then return #texts[a] > #texts[b] end
    return a < b
  end)
  local result = tensor.new({ #texts, self.dimension }, "f32", "embeddings", self.device)
  local limit = options.batch_tokens or ENCODE_TOKENS
  local width, i = self.dimension, 1
  local row = ffi.new("float[?]", width)
  while i <= #order do
    local part, bytes = {}, 0
    -- A token has at least one byte, so `limit` bytes are at most `limit` tokens; special tokens are two a text.
    repeat
      part[#part + 1] = prompt .. texts[order[i]]
      bytes = bytes + math.min(#part[#part] + 2, self.max_length)
      i = i + 1
    until i > #order or bytes + math.min(#texts[order[i]] + 2, self.max_length) > limit
    local first = i - #part
    tensor.scope(function()
      local batch = dataset.pack(self.tokenizer, part, self.max_length)
      local e = autograd.no_grad(self.forward, self, self:context(batch))
      batch:close()
      local values = e:data()
      for k = 1, #part do
        ffi.copy(row, values + (k - 1) * width, width * 4)
        local at = result:slice_rows(order[first + k - 1] - 1, order[first + k - 1])
        at:write(row)
        at:free()
      end
    end)
  end
  return result
end

--- add_lora{ rank, alpha, dropout, targets, rslora, seed }: see lora.lua.
function Model:add_lora(spec) return require("lorarun.models.lora").add(self, spec) end

--- attention_targets(): what this architecture calls its layers of queries, keys and values: targets for add_lora.
function Model:attention_targets()
  return { unpack(self.arch.attention or check.fail("models/%s.lua does not say what its layers of queries, keys and values are "
    .. "called (attention = { ... }); name the targets", self.arch_name)) }
end

--- load_adapter(folder): put a PEFT adapter on the model. in_auto_model: lora.load's, for the folder of a whole model.
function Model:load_adapter(folder, in_auto_model)
  local adapter = require("lorarun.models.lora").load(self, folder, in_auto_model)
  self.adapter_folder = folder
  return adapter
end

--- parameters(): the flat trainable state { value, grad, count }, or nil without adapters.
function Model:parameters() return self.lora and self.lora.parameters or nil end

--- without_bytes(): a model of the same shapes, adapters included, on the meta device, for measuring what a step will take.
function Model:without_bytes()
  return tensor.persistent(function()
    local twin = assemble(self.arch, self.sizes, { name = self.arch_name, dtype = self.dtype, device = "meta",
      max_length = self.max_length, load = function() end })
    for _, field in ipairs { "name", "config", "dimension", "precision", "pooling", "normalize", "layer_count" } do
      twin[field] = self[field]
    end
    if self.lora then require("lorarun.models.lora").like(twin, self) end
    return twin
  end)
end

--- another(folder): the model of another folder, on this one's device and in its precision.
function Model:another(folder) return load(folder, { precision = self.precision, device = self.device }) end

--- Number of frozen weights.
function Model:frozen_count() return self.frozen end

--- save(folder): the model as a sentence-transformers folder with merged weights; save_adapter(folder): with the PEFT adapter.
function Model:save(folder, options) return require("lorarun.models.export").merged(self, folder, options) end
function Model:save_adapter(folder, options) return require("lorarun.models.export").adapter(self, folder, options) end

--- free(): give back all memory now.
function Model:free()
  local function free(t)
    for _, v in pairs(t) do
      if getmetatable(v) == tensor.Tensor then v:free() elseif type(v) == "table" and v ~= self.sizes then free(v) end
    end
  end
  if self.freed then return end
  self.freed = true
  free(self.built)
  if self.lora then self.lora:free() end
  if self.tokenizer then self.tokenizer:free() end
end

function Model:__tostring()
  return ("model %s: %s, %d layers, dimension %d, %s pooling%s, max length %d, %s%s"):format(self.name,
    self.config:get "model_type", self.layer_count, self.dimension, self.pooling, self.normalize and ", normalised" or "",
    self.max_length, self.precision,
    self.lora and (", LoRA rank %d (%d parameters)"):format(self.lora.config.r, self.lora.parameters.count) or "")
end

guard.methods(Model, "model", function(self, name)
  if self.freed and name ~= "free" then check.fail("model:%s: the model %s was freed", name, self.name) end
end)

return { load = load, is = class.is, expect = class.expect, Model = Model }
