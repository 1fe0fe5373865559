-- lora.lua: low-rank adapters as PEFT defines them: y = W x + b + s B A dropout(x), s = alpha/r (rsLoRA: alpha/sqrt(r)).
-- Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021).
--
-- All adapters of a model live in one flat f32 buffer, their gradients in another: one clip, one optimizer step, one all-reduce.
-- Within it, the A's of the parts of one stacked layer lie next to each other, so that one product computes all their A x.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local guard = require "lorarun.base.guard"
local peft = require "lorarun.formats.peft"
local tensor = require "lorarun.tensor.tensor"
local lora_linear = require "lorarun.models.lora_linear"
local safetensors = require "lorarun.formats.safetensors"
local options = require "lorarun.base.options"
local say = require "lorarun.base.say"
local using = require "lorarun.base.using"

local lora = {}
local Adapter = {}
Adapter.__index = Adapter

local PURPOSE_INIT = 0x4C0000 -- lr_tensor_uniform streams of the A matrices
-- The step's scalars lie after the gradients, on the device: the loss, what ranks tell each other in the same all-reduce
-- (data_parallel.lua), a copy of an fp16 run's scale of the loss, and the gradient's norm. One read gets them all.
local STEP_SCALARS = 8

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

-- Lay the adapters out in flat buffers and attach them to the layers.  choose(name) returns rank, alpha or nil.
local function attach(model, config, choose)
  if model.lora then
    check.fail "the model has adapters already; model.lora:free() takes them off, and what they learned is lost"
  end
  local plan, count = {}, 0
  for _, layer in ipairs(model.linears) do
    local entry = { layer = layer, parts = {}, rank = 0 }
    for _, part in ipairs(layer.parts) do
      local rank, alpha = choose(part.name)
      if rank then
        entry.parts[#entry.parts + 1] = { part = part, rank = rank, alpha = alpha, scale = peft.scale(config, alpha, rank) }
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
  local adapter = setmetatable({ model = model, config = config, modules = {}, layers = {}, tensors = {} }, Adapter)
  local function own(t) -- until free(), which gives the buffers back when no view of them is left
    adapter.tensors[#adapter.tensors + 1] = t
    return t
  end
  tensor.persistent(function()
    local value = own(tensor.new({ count }, "f32", "adapters", model.device))
    local exchange = own(tensor.zeros({ count + STEP_SCALARS }, "f32", "adapter gradients", model.device))
    local grad = own(exchange:view { count })
    value.grad = grad -- whatever a loss takes of the adapters (all numbers, a module's A, its B) has its gradient
    adapter.parameters = { value = value, grad = grad, exchange = exchange, count = count,
      step_scalars = own(exchange:view({ STEP_SCALARS }, count)), loss = own(exchange:view({ 1 }, count)),
      signals = own(exchange:view({ STEP_SCALARS - 3 }, count + 1)),
      scale = own(exchange:view({ 1, 1 }, count + STEP_SCALARS - 2)),
      norm = own(exchange:view({ 1 }, count + STEP_SCALARS - 1)) }
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
        local a_rows = own(a:slice_rows(r, r + p.rank))
        b.grad, a_rows.grad = b_grad, own(a_grad:slice_rows(r, r + p.rank))
        state.adapters[#state.adapters + 1] = { b = b, b_grad = b_grad, from = p.part.from, to = p.part.to, r_from = r,
          r_to = r + p.rank, scale = p.scale }
        adapter.modules[#adapter.modules + 1] = { name = p.part.name, a = a_rows, b = b,
          rank = p.rank, alpha = p.alpha, scale = p.scale, input = layer.k }
        r = r + p.rank
      end
      lora_linear.attach(layer, state)
      adapter.layers[#adapter.layers + 1] = layer
    end
  end)
  model.lora = adapter
  return adapter
end

-- ---- making --------------------------------------------------------------------------------------------------------------------
local MOST_RANK = 8192 -- more than the width of most layers, where an adapter has as many numbers as they
local FIELDS = { rank = options.any, alpha = options.any, dropout = options.any,
  targets = options.either(options.text, options.table), rslora = options.boolean, seed = options.whole(0),
  rank_pattern = options.table, alpha_pattern = options.table }

--- add(model, spec): new adapters: A uniform in +-1/sqrt(in) (PEFT's kaiming_uniform with a = sqrt 5), B zero: the model still
--- computes what it did.
---   spec: { rank = 16, alpha = 32, dropout = 0, targets = { "q_proj", ... } | "all-linear" | "regex", rslora = false,
--- seed = 0, rank_pattern, alpha_pattern }
--- rank_pattern = { q_proj = 8 } or { { "layers.0.*", 4 }, { "q_proj", 8 } }: regular expressions for a name or its last
--- components, as PEFT's; of a list the first that matches counts.
function lora.add(model, spec)
  spec = options.check("add_lora", spec, FIELDS)
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
  peft.check_targets(spec.targets, "add_lora: targets")
  local config = { r = rank, lora_alpha = alpha, lora_dropout = dropout, target_modules = spec.targets,
    use_rslora = spec.rslora or false,
    rank_pattern = peft.pattern_from(spec.rank_pattern, "add_lora: rank_pattern", "rank"),
    alpha_pattern = peft.pattern_from(spec.alpha_pattern, "add_lora: alpha_pattern", "alpha") }
  local adapter = attach(model, config, function(name)
    if not peft.is_target(config, name) then return nil end
    peft.refuse_overlap(config.rank_pattern, name, "add_lora: rank_pattern")
    peft.refuse_overlap(config.alpha_pattern, name, "add_lora: alpha_pattern")
    return peft.pattern_value(config.rank_pattern, name, rank), peft.pattern_value(config.alpha_pattern, name, alpha)
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
    if m then return m.rank, m.alpha end
  end)
end

--- Draw A again from the seed and set B to zero.
function Adapter:reset(seed)
  for i, m in ipairs(self.modules) do
    local bound = 1 / math.sqrt(m.input)
    check(C.lr_tensor_uniform(m.a.handle, seed, PURPOSE_INIT + i, -bound, bound))
    m.b:fill(0)
  end
  self.parameters.grad:fill(0)
end

--- off(fn): what fn returns while the adapter does nothing (B is zero).
function Adapter:off(fn)
  local values = self.parameters.value
  local kept = values:data()
  for _, m in ipairs(self.modules) do m.b:fill(0) end
  return using(kept, function() values:write(kept) end, fn)
end

function Adapter:__tostring()
  return ("LoRA rank %d, alpha %g, dropout %g on %d layers (%d parameters)"):format(self.config.r, self.config.lora_alpha,
    self.config.lora_dropout, #self.modules, self.parameters.count)
end

--- free(): take the adapters off the model, which is then as before.
function Adapter:free()
  if self.model.lora == self then self.model.lora = nil end
  for _, layer in ipairs(self.layers) do
    if layer.lora then lora_linear.detach(layer) end
  end
  for _, t in ipairs(self.tensors) do t:free() end
end

guard.methods(Adapter, "model.lora")

-- ---- reading -------------------------------------------------------------------------------------------------------------------
-- Heads of transformers' classes for tasks, which adapters are trained with; no embedding depends on them. An architecture adds
-- those of its own (`heads`).
local HEADS = { lm_head = true, score = true, classifier = true, ["classifier.dense"] = true, ["classifier.out_proj"] = true,
  qa_outputs = true }

local FOREIGN = { { "lora_embedding_", "a LoRA on an embedding table" }, { "lora_magnitude_vector", "DoRA's magnitude" },
  { "lora_B%.bias", "lora_bias" }, { "lora_", "another kind of LoRA" }, { "", "no part of a LoRA adapter (modules_to_save?)" } }

local function refuse_tensor(file, key)
  for _, kind in ipairs(FOREIGN) do
    if key:find(kind[1]) then check.fail("%s: tensor '%s' is %s, which is not supported", file.path, key, kind[2]) end
  end
end

-- PEFT's name of a module in two parts, the prefix of its model and our name; nil where the model has no such layer.
local function split_name(model, name, linears)
  for _, prefix in ipairs(model.arch.prefixes) do
    local ours = name:sub(#prefix + 1)
    if name:sub(1, #prefix) == prefix and (linears[ours] or model.arch.unused[ours]) then return prefix, ours end
  end
end

-- The modules in an adapter file: a list of { name, A = key, B = key }, which is also a table by name, and found.prefix, the prefix
-- of their names. Without those that no embedding depends on: heads, and the architecture's `unused` (BERT's pooler).
local function modules_of(file, model)
  local found, linears, first = {}, {}, nil
  for _, layer in ipairs(model.linears) do
    for _, part in ipairs(layer.parts) do linears[part.name] = true end
  end
  for _, key in ipairs(file:names()) do
    -- base_model.model.[model.|bert.]NAME.lora_A[.default].weight
    local whole, side = key:gsub("%.default%.weight$", ".weight"):match("^(.+)%.lora_([AB])%.weight$")
    if not whole then refuse_tensor(file, key) end
    whole = whole:gsub("^base_model%.model%.", "")
    local prefix, name = split_name(model, whole, linears)
    if not name and not HEADS[whole] and not model.arch.heads[whole] then
      check.fail("%s: the model has no linear layer '%s'", file.path, whole)
    end
    if name and (found.prefix or prefix) ~= prefix then
      check.fail("%s: '%s' and '%s' are modules of different models", file.path, first, whole)
    end
    if name then found.prefix, first = prefix, first or whole end
    if name and linears[name] then
      if not found[name] then
        found[name] = { name = name }
        found[#found + 1] = found[name]
      end
      if found[name][side] then check.fail("%s: '%s' and '%s' are the same tensor", file.path, found[name][side], key) end
      found[name][side] = key
    end
  end
  for _, module in ipairs(found) do
    if not module.A or not module.B then
      check.fail("%s: module '%s' has only one of lora_A and lora_B", file.path, module.name)
    end
  end
  return found
end

local SIDES = { "A", "B" }

-- Read every tensor of the file into the adapter; both must have the same modules.
local function read_tensors(adapter, file, found)
  local known = {}
  for _, m in ipairs(adapter.modules) do
    known[m.name] = true
    local pair, mine = found[m.name] or check.fail("%s: module '%s' is missing", file.path, m.name), { A = m.a, B = m.b }
    for _, side in ipairs(SIDES) do
      local shape, t = file:info(pair[side]).shape, mine[side]
      if #shape ~= 2 or shape[1] ~= t.shape[1] or shape[2] ~= t.shape[2] then
        check.fail("%s: '%s' has shape [%s], expected [%s]", file.path, pair[side], table.concat(shape, ", "),
          table.concat(t.shape, ", "))
      end
      file:load(pair[side], t)
    end
  end
  for _, module in ipairs(found) do
    if not known[module.name] then check.fail("%s: the run has no adapter on '%s'", file.path, module.name) end
  end
end

local function with_file(folder, fn)
  local path = fs.join(folder, "adapter_model.safetensors")
  if not fs.is_file(path) and fs.is_file(fs.join(folder, "adapter_model.bin")) then
    check.fail("%s has only adapter_model.bin, a Python pickle, which can run any code when it is read. Convert it once, in "
      .. "Python: import torch; from safetensors.torch import save_file; save_file({k: v.contiguous() for k, v in "
      .. "torch.load('adapter_model.bin', weights_only=True).items()}, 'adapter_model.safetensors', {'format': 'pt'})", folder)
  elseif not fs.is_file(path) then
    check.fail("%s is missing: an adapter folder holds adapter_config.json and adapter_model.safetensors", path)
  end
  local file = safetensors.open(path)
  return using(file, file.close, fn)
end

-- The modules that adapter_config.json names must be those of the file. PEFT would make a module that the file lacks, with B = 0,
-- and warn; it would leave out a module that the configuration does not name.
local function compare_modules(model, config, file, found)
  local prefix, missing = found.prefix or "", {}
  for _, layer in ipairs(model.linears) do
    for _, part in ipairs(layer.parts) do
      local wanted = peft.is_target(config, prefix .. part.name)
      if found[part.name] and not wanted then
        check.fail("%s: the file has an adapter on '%s', which %s of %s does not name: PEFT would leave it out", file.path,
          prefix .. part.name, peft.selection(config), config.path)
      elseif wanted and not found[part.name] then
        missing[#missing + 1] = prefix .. part.name
      end
    end
  end
  if #found == 0 then check.fail("%s has no adapter on a layer that an embedding depends on", file.path) end
  if #missing == 0 then return end
  local text = ("%s lacks %d of the modules that target_modules names, such as '%s'"):format(file.path, #missing, missing[1])
  if not config.init_lora_weights then check.fail("%s; with init_lora_weights = false PEFT makes random ones", text) end
  say.warning("%s: as in PEFT, these are without an adapter", text)
end

-- sentence-transformers puts an adapter on AutoModel's modules, whatever class it was trained on: where the file's names have a
-- prefix, the keys of the configuration must mean the same without it.
local function check_without_prefix(config, file, found)
  if (found.prefix or "") == "" then return end
  for _, module in ipairs(found) do
    local full = found.prefix .. module.name
    local function refuse(key)
      check.fail("%s: '%s' means something else for '%s', a name of %s, than for '%s', which sentence-transformers calls the module"
        .. ": write names and expressions that fit both, without '%s', '^' and '$'", config.path, key, full, file.path, module.name,
        found.prefix)
    end
    if not peft.is_target(config, module.name) then refuse(peft.selection(config)) end
    for _, key in ipairs { "rank_pattern", "alpha_pattern" } do
      if peft.pattern_value(config[key], full) ~= peft.pattern_value(config[key], module.name) then refuse(key) end
    end
  end
end

--- load(model, folder, in_auto_model): the adapter that PEFT (or lorarun) saved there. Every tensor of the file must find its
--- module, of the rank that the configuration gives it. in_auto_model: the folder is a sentence-transformers model with an adapter;
--- an error where its configuration means another adapter there than in PEFT.
function lora.load(model, folder, in_auto_model)
  local config = peft.read(folder, model.config.model_type, model.arch.peft_targets)
  return with_file(folder, function(file)
    local found = modules_of(file, model)
    compare_modules(model, config, file, found)
    if in_auto_model then check_without_prefix(config, file, found) end
    local kept = { r = config.r, lora_alpha = config.lora_alpha, lora_dropout = config.lora_dropout, use_rslora = config.use_rslora,
      target_modules = config.target_modules, rank_pattern = config.rank_pattern, alpha_pattern = config.alpha_pattern }
    local adapter = attach(model, kept, function(name)
      if not found[name] then return nil end
      local full = (found.prefix or "") .. name
      local rank, by = peft.pattern_value(config.rank_pattern, full, config.r)
      local has = file:info(found[name].A).shape[1]
      if has ~= rank then
        check.fail("%s: '%s' has rank %s, but %s makes it %d", file.path, found[name].A, tostring(has),
          by and ("rank_pattern's '%s'"):format(by) or "r of adapter_config.json", rank)
      end
      return rank, (peft.pattern_value(config.alpha_pattern, full, config.lora_alpha))
    end)
    local function detach()
      adapter:free()
      model.lora = nil
    end
    return (using.made(adapter, detach, function() read_tensors(adapter, file, found) end))
  end)
end

--- read_into(model, folder): overwrite the model's adapters with those of an adapter folder of the same modules and ranks.
function lora.read_into(model, folder)
  with_file(folder, function(file) read_tensors(model.lora, file, modules_of(file, model)) end)
end

--- write(model, folder, base): adapter_config.json and adapter_model.safetensors as PEFT writes them for AutoModel's modules. base:
--- the value of base_model_name_or_path; default: the base's absolute path, or its Hugging Face id.
function lora.write(model, folder, base)
  local adapter = model.lora or check.fail("the model has no adapter to save")
  fs.make(folder)
  local entries = {}
  for _, m in ipairs(adapter.modules) do
    local key = "base_model.model." .. m.name
    entries[#entries + 1] = { name = key .. ".lora_A.weight", dtype = "f32", shape = m.a.shape, tensor = m.a }
    entries[#entries + 1] = { name = key .. ".lora_B.weight", dtype = "f32", shape = m.b.shape, tensor = m.b }
  end
  table.sort(entries, function(x, y) return x.name < y.name end)
  safetensors.write(fs.join(folder, "adapter_model.safetensors"), entries, { format = "pt" })
  peft.write(model, folder, base)
end

return lora
