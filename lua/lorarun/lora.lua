-- lora.lua: low-rank adapters as PEFT defines them: y = W x + b + s B A dropout(x), s = alpha/r (rsLoRA: alpha/sqrt(r)).
-- Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021).
--
-- All adapters of a model live in one flat f32 buffer, their gradients in another: one clip, one optimizer step, one all-reduce.
-- Within it, the A's of the parts of one stacked layer lie next to each other, so that one product computes all their A x.
local ffi = require "ffi"
local C = require "lorarun.c"
local check = require "lorarun.check"
local fs = require "lorarun.fs"
local json = require "lorarun.json"
local tensor = require "lorarun.tensor"
local joined = require "lorarun.joined"
local backend = require "lorarun.backend"
local safetensors = require "lorarun.safetensors"

local lora = {}
local Adapter = {}
Adapter.__index = Adapter

local PURPOSE_INIT = 0x4C0000 -- lr_tensor_uniform streams of the A matrices
-- Numbers behind the gradients, on the device: the step's loss, what ranks tell each other in the same all-reduce (ranks.lua), a
-- copy of an fp16 run's scale of the loss, and the gradient's norm. One read gets them all.
local ROOM = 8
local matched = ffi.new "int[1]"

local function fullmatch(pattern, text)
  check(C.lr_regex_fullmatch(pattern, text, matched))
  return matched[0] ~= 0
end

-- ---- which modules -----------------------------------------------------------------------------------------------------------
-- targets as PEFT's target_modules: "all-linear", a regex that matches the full name, or a list of names or last components.
local function is_target(targets, name)
  if targets == "all-linear" then return true end
  if type(targets) == "string" then return fullmatch(targets, name) end
  for _, t in ipairs(targets) do
    if name == t or name:sub(-#t - 1) == "." .. t then return true end
  end
  return false
end

-- PEFT's rank_pattern and alpha_pattern: the first key k for which the regex (.*\.)?(k)$ matches.
local function pattern_value(patterns, name, default)
  for key, value in pairs(patterns or {}) do
    if fullmatch("(.*\\.)?(" .. key .. ")", name) then return value end
  end
  return default
end

local function known_targets(model)
  local seen, list = {}, {}
  for _, layer in ipairs(model.linears) do
    for _, part in ipairs(layer.parts) do
      local last = part.name:match("([^.]+)$")
      if not seen[last] then seen[last] = true list[#list + 1] = last end
    end
  end
  return table.concat(list, ", ")
end

-- Lay the adapters out in flat buffers and attach them to the layers.  choose(name, part, layer) returns rank, scale or nil.
local function attach(model, config, choose)
  if model.lora then check.fail("the model has adapters already") end
  local plan, count = {}, 0
  for _, layer in ipairs(model.linears) do
    local entry = { layer = layer, parts = {}, rank = 0 }
    for _, part in ipairs(layer.parts) do
      local rank, scale = choose(part.name, part, layer)
      if rank then
        entry.parts[#entry.parts + 1] = { part = part, rank = rank, scale = scale }
        entry.rank = entry.rank + rank
      end
    end
    if entry.rank > 0 then
      plan[#plan + 1] = entry
      count = count + entry.rank * layer.k
      for _, p in ipairs(entry.parts) do count = count + (p.part.to - p.part.from) * p.rank end
    end
  end
  if count == 0 then
    check.fail("the targets match no linear layer of the model; it has: %s", known_targets(model))
  end
  local adapter = setmetatable({ config = config, modules = {}, layers = {}, tensors = {} }, Adapter)
  local function own(t) -- until free(), which gives the buffers back when no view of them is left
    adapter.tensors[#adapter.tensors + 1] = t
    return t
  end
  tensor.persistent(function()
    local value = own(tensor.new({ count }, "f32", "adapters", model.device))
    local exchange = own(tensor.zeros({ count + ROOM }, "f32", "adapter gradients", model.device))
    local grad = own(exchange:view { count })
    adapter.parameters = { value = value, grad = grad, exchange = exchange, count = count,
      behind = own(exchange:view({ ROOM }, count)), loss = own(exchange:view({ 1 }, count)),
      signals = own(exchange:view({ ROOM - 3 }, count + 1)), scale = own(exchange:view({ 1, 1 }, count + ROOM - 2)),
      norm = own(exchange:view({ 1 }, count + ROOM - 1)) }
    local offset = 0
    local function take(rows, columns)
      local at = offset
      offset = offset + rows * columns
      return own(value:view({ rows, columns }, at)), own(grad:view({ rows, columns }, at))
    end
    for index, entry in ipairs(plan) do
      local layer = entry.layer
      local a, a_grad = take(entry.rank, layer.k)
      a.grad = a_grad
      local state = { a = a, dropout = config.lora_dropout, purpose = index, adapters = {} }
      local r = 0
      for _, p in ipairs(entry.parts) do
        local b, b_grad = take(p.part.to - p.part.from, p.rank)
        state.adapters[#state.adapters + 1] = { b = b, b_grad = b_grad, from = p.part.from, to = p.part.to, r_from = r,
          r_to = r + p.rank, scale = p.scale }
        adapter.modules[#adapter.modules + 1] = { name = p.part.name, a = own(a:slice_rows(r, r + p.rank)), b = b,
          rank = p.rank, scale = p.scale, input = layer.k }
        r = r + p.rank
      end
      layer.lora = state
      if layer.after_norm and backend.of(model.device).lora_in_product then joined.attach(layer) end
      adapter.layers[#adapter.layers + 1] = layer
    end
  end)
  model.lora = adapter
  return adapter
end

-- ---- making --------------------------------------------------------------------------------------------------------------------
local function scale_of(config, alpha, rank)
  return config.use_rslora and alpha / math.sqrt(rank) or alpha / rank
end

local MOST_RANK = 8192 -- more than the width of most layers, where an adapter has as many numbers as they
local FIELDS = { rank = true, alpha = true, dropout = true, targets = true, rslora = true, seed = true, rank_pattern = true,
  alpha_pattern = true }

--- add(model, spec): new adapters: A uniform in +-1/sqrt(in) (PEFT's kaiming_uniform with a = sqrt 5), B zero, so the model first
--- is what it was.
---   spec: { rank = 16, alpha = 32, dropout = 0, targets = { "q_proj", ... } | "all-linear" | "regex", rslora = false,
--- seed = 0, rank_pattern, alpha_pattern }
function lora.add(model, spec)
  spec = spec or {}
  for key in pairs(spec) do
    if not FIELDS[key] then check.fail("add_lora: unknown field '%s'", tostring(key)) end
  end
  local rank, alpha, dropout = spec.rank or 16, spec.alpha or 32, spec.dropout or 0
  if type(alpha) ~= "number" or not (alpha > 0) then check.fail("add_lora: alpha is %s, expected more than 0", tostring(alpha)) end
  if type(rank) ~= "number" or rank < 1 or rank > MOST_RANK or rank % 1 ~= 0 then
    check.fail("add_lora: rank is %s, expected a whole number from 1 to %d", tostring(rank), MOST_RANK)
  end
  if type(dropout) ~= "number" or dropout < 0 or dropout >= 1 then
    check.fail("add_lora: dropout is %s, expected 0 <= dropout < 1", tostring(dropout))
  end
  if not spec.targets then
    check.fail("add_lora: targets is missing; the model's linear layers are: %s", known_targets(model))
  end
  local config = { r = rank, lora_alpha = alpha, lora_dropout = dropout, target_modules = spec.targets,
    use_rslora = spec.rslora or false, rank_pattern = spec.rank_pattern or {}, alpha_pattern = spec.alpha_pattern or {} }
  local adapter = attach(model, config, function(name)
    if not is_target(spec.targets, name) then return nil end
    local r = pattern_value(spec.rank_pattern, name, rank)
    return r, scale_of(config, pattern_value(spec.alpha_pattern, name, alpha), r)
  end)
  adapter:reset(spec.seed or 0)
  return adapter
end

--- like(model, other): adapters of the same modules, ranks and settings as those of another model of the same architecture.
function lora.like(model, other)
  local modules = {}
  for _, m in ipairs(other.lora.modules) do modules[m.name] = m end
  return attach(model, other.lora.config, function(name)
    local m = modules[name]
    if m then return m.rank, m.scale end
  end)
end

--- Draw A anew from the seed and set B to zero.
function Adapter:reset(seed)
  for i, m in ipairs(self.modules) do
    local bound = 1 / math.sqrt(m.input)
    check(C.lr_tensor_uniform(m.a.handle, seed, PURPOSE_INIT + i, -bound, bound))
    m.b:fill(0)
  end
  self.parameters.grad:fill(0)
end

function Adapter:__tostring()
  return ("LoRA rank %d, alpha %g, dropout %g on %d layers (%d parameters)"):format(self.config.r, self.config.lora_alpha,
    self.config.lora_dropout, #self.modules, self.parameters.count)
end

function Adapter:free()
  for _, layer in ipairs(self.layers) do
    if layer.joined then joined.detach(layer) end
    layer.lora = nil
  end
  for _, t in ipairs(self.tensors) do t:free() end
end

-- ---- reading -------------------------------------------------------------------------------------------------------------------
local KNOWN = { alpha_pattern = 1, auto_mapping = 1, base_model_name_or_path = 1, bias = 1, fan_in_fan_out = 1, inference_mode = 1,
  init_lora_weights = 1, layers_pattern = 1, layers_to_transform = 1, loftq_config = 1, lora_alpha = 1, lora_dropout = 1,
  modules_to_save = 1, peft_type = 1, r = 1, rank_pattern = 1, revision = 1, target_modules = 1, task_type = 1, use_dora = 1,
  use_rslora = 1, exclude_modules = 1, megatron_config = 1, megatron_core = 1, layer_replication = 1, eva_config = 1,
  corda_config = 1, lora_bias = 1, trainable_token_indices = 1, target_parameters = 1, use_qalora = 1, qalora_group_size = 1,
  peft_version = 1, alora_invocation_tokens = 1, arrow_config = 1, ensure_weight_tying = 1, use_bdlora = 1, lora_ga_config = 1,
  velora_config = 1, monteclora_config = 1, kappa_tune_config = 1 }

local function read_config(folder)
  local path = fs.join(folder, "adapter_config.json")
  if not fs.is_file(path) then check.fail("%s is missing: this is no PEFT adapter folder", path) end
  local raw = json.decode(fs.read(path), path)
  local function get(key, default)
    local v = raw[key]
    if v == nil or v == json.null then return default end
    return v
  end
  if get "peft_type" ~= "LORA" then
    check.fail("%s: peft_type is '%s'; only LORA is supported", path, tostring(get "peft_type"))
  end
  local function refuse(when, what) if when then check.fail("%s: %s is not supported", path, what) end end
  refuse(get("use_dora", false), "DoRA (use_dora)")
  refuse(get("bias", "none") ~= "none", "bias = '" .. tostring(get("bias", "none")) .. "'")
  refuse(get("lora_bias", false), "lora_bias")
  refuse(get("fan_in_fan_out", false), "fan_in_fan_out")
  refuse(get("use_qalora", false), "use_qalora")
  local save = get("modules_to_save")
  refuse(save ~= nil and next(save) ~= nil, "modules_to_save")
  refuse(get("layer_replication") ~= nil, "layer_replication")
  local warnings = {}
  for key in pairs(raw) do
    if not KNOWN[key] then warnings[#warnings + 1] = key end
  end
  table.sort(warnings)
  return { r = get("r", 8), lora_alpha = get("lora_alpha", 8), lora_dropout = get("lora_dropout", 0),
    target_modules = get("target_modules"), use_rslora = get("use_rslora", false), rank_pattern = get("rank_pattern", {}),
    alpha_pattern = get("alpha_pattern", {}), base_model_name_or_path = get("base_model_name_or_path") }, warnings, path
end

--- base_of(folder): the base model an adapter folder names.
function lora.base_of(folder)
  local config, _, path = read_config(folder)
  if not config.base_model_name_or_path then check.fail("%s: base_model_name_or_path is missing", path) end
  return config.base_model_name_or_path
end

-- The modules in an adapter file: { name = { A = key, B = key } }, without those that no embedding depends on (`unused`, of the
-- architecture: BERT's pooler).
local function modules_of(file, unused)
  local found = {}
  for _, key in ipairs(file:names()) do
    -- base_model.model.[model.|bert.]NAME.lora_A[.default].weight
    local name, side = key:match("^base_model%.model%.(.+)%.lora_([AB])%.weight$")
    if not name then name, side = key:match("^base_model%.model%.(.+)%.lora_([AB])%.default%.weight$") end
    if not name then check.fail("%s: tensor '%s' is not of a LoRA adapter", file.path, key) end
    name = name:gsub("^model%.", ""):gsub("^bert%.", "")
    if not unused[name] then
      found[name] = found[name] or {}
      found[name][side] = key
    end
  end
  for name, pair in pairs(found) do
    if not pair.A or not pair.B then check.fail("%s: module '%s' has only one of lora_A and lora_B", file.path, name) end
  end
  return found
end

-- Read every tensor of the file into the adapter; both must have the same modules.
local function read_tensors(adapter, file, found)
  local known = {}
  for _, m in ipairs(adapter.modules) do
    known[m.name] = true
    local pair = found[m.name] or check.fail("%s: module '%s' is missing", file.path, m.name)
    for side, t in pairs { A = m.a, B = m.b } do
      local shape = file:info(pair[side]).shape
      if shape[1] ~= t.shape[1] or shape[2] ~= t.shape[2] then
        check.fail("%s: '%s' has shape [%s], expected [%s]", file.path, pair[side], table.concat(shape, ", "),
          table.concat(t.shape, ", "))
      end
      file:load(pair[side], t)
    end
  end
  for name in pairs(found) do
    if not known[name] then check.fail("%s: the model has no linear layer '%s'", file.path, name) end
  end
end

local function with_file(folder, fn)
  local file = safetensors.open(fs.join(folder, "adapter_model.safetensors"))
  local ok, result = pcall(fn, file, folder)
  file:close()
  if not ok then error(result, 0) end
  return result
end

--- load(model, folder): the adapter that PEFT (or lorarun) saved there. Every tensor of the file must find its module.
function lora.load(model, folder)
  local config, warnings, path = read_config(folder)
  for _, key in ipairs(warnings) do
    io.stderr:write(("lorarun: warning: %s: '%s' is unknown and ignored\n"):format(path, key))
  end
  return with_file(folder, function(file)
    local found = modules_of(file, model.arch.unused)
    local adapter = attach(model, config, function(name)
      if not found[name] then return nil end
      local rank = file:info(found[name].A).shape[1]
      return rank, scale_of(config, pattern_value(config.alpha_pattern, name, config.lora_alpha), rank)
    end)
    local ok, err = pcall(read_tensors, adapter, file, found)
    if not ok then
      adapter:free()
      model.lora = nil
      error(err, 0)
    end
    return adapter
  end)
end

--- read_into(model, folder): overwrite the model's adapters with those of an adapter folder of the same modules and ranks.
function lora.read_into(model, folder)
  with_file(folder, function(file) read_tensors(model.lora, file, modules_of(file, model.arch.unused)) end)
end

-- target_modules for PEFT: what the user asked for, unless PEFT would find layers with it that lorarun has left out (BERT's
-- pooler): then the shortest ends of the modules' names that fit none of those. "all-linear" is stored as what it stands for,
-- as PEFT does.
local function peft_targets(model)
  local targets, clash = model.lora.config.target_modules, false
  for name in pairs(model.arch.unused) do clash = clash or is_target(targets or "all-linear", name) end
  local list, seen = {}, {}
  if type(targets) == "table" and not clash then
    for i, t in ipairs(targets) do list[i] = t end
  elseif type(targets) == "string" and targets ~= "all-linear" and not clash then
    return targets
  else
    for _, m in ipairs(model.lora.modules) do
      local ending, rest = m.name:match("([^.]+)$"), m.name:match("^(.*)%.[^.]+$")
      local function fits_unused()
        for name in pairs(model.arch.unused) do
          if is_target({ ending }, name) then return true end
        end
      end
      while fits_unused() and rest do
        ending, rest = (rest:match("([^.]+)$")) .. "." .. ending, rest:match("^(.*)%.[^.]+$")
      end
      if not seen[ending] then seen[ending], list[#list + 1] = true, ending end
    end
  end
  table.sort(list)
  return json.array(list)
end

--- write(model, folder, base): adapter_config.json and adapter_model.safetensors as PEFT writes them. base: what
--- base_model_name_or_path says; default: the model's name.
function lora.write(model, folder, base)
  local adapter = model.lora or check.fail("the model has no adapter to save")
  local config = adapter.config
  local targets = peft_targets(model)
  fs.make(folder)
  fs.write(fs.join(folder, "adapter_config.json"), json.encode({
    alpha_pattern = config.alpha_pattern, auto_mapping = json.null, base_model_name_or_path = base or model.name, bias = "none",
    fan_in_fan_out = false, inference_mode = true, init_lora_weights = true, layers_pattern = json.null,
    layers_to_transform = json.null, loftq_config = {}, lora_alpha = config.lora_alpha, lora_dropout = config.lora_dropout,
    modules_to_save = json.null, peft_type = "LORA", r = config.r, rank_pattern = config.rank_pattern, revision = json.null,
    target_modules = targets, task_type = "FEATURE_EXTRACTION", use_dora = false, use_rslora = config.use_rslora,
  }, { indent = 2, sort_keys = true }))
  local entries = {}
  for _, m in ipairs(adapter.modules) do
    local key = "base_model.model." .. m.name
    entries[#entries + 1] = { name = key .. ".lora_A.weight", dtype = "f32", shape = m.a.shape, tensor = m.a }
    entries[#entries + 1] = { name = key .. ".lora_B.weight", dtype = "f32", shape = m.b.shape, tensor = m.b }
  end
  table.sort(entries, function(x, y) return x.name < y.name end)
  safetensors.write(fs.join(folder, "adapter_model.safetensors"), entries, { format = "pt" })
end

return lora
