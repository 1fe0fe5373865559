-- peft.lua: reads adapter_config.json as PEFT 0.18 to 0.21 do: which modules have an adapter, of which rank and scale. A key that
-- changes what the adapter computes is either followed or refused by name; none is ignored.
--
-- Modules have two names. lorarun's are those of transformers' AutoModel ("layers.0.self_attn.q_proj"). PEFT's are those in the
-- model that it wrapped: an adapter of Qwen2ForCausalLM has "model.layers.0.self_attn.q_proj", and its patterns are matched against
-- that.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local sorted = require "lorarun.base.sorted"

local peft = {}
local matched = ffi.new "int[1]"

--- base_path(model): the value for base_model_name_or_path: the base's folder as an absolute path, or its Hugging Face id.
function peft.base_path(model)
  if fs.is_directory(model.name) then return fs.real(model.name) end
  if model.name:find("/", 1, true) then return model.name end
  local cached = model.folder:match "/models%-%-([^/]+)/snapshots/[^/]+/?$" -- under a short name
  return cached and (cached:gsub("%-%-", "/", 1)) or fs.real(model.folder)
end

-- ---- regular expressions -----------------------------------------------------------------------------------------------------
-- What is wrong with a pattern that PCRE2 reads differently from Python's re, or that Python refuses; nil where both agree. inside:
-- the pattern becomes part of a larger one, where Python accepts no flags.
local function not_python(pattern, inside)
  for at, letter in pattern:gmatch "()\\(.)" do
    local before = #pattern:sub(1, at - 1):match "\\*$"
    if before % 2 == 0 and letter:find "%a" and not letter:find "[AbBdDsSwWZafnrtvx]" then
      return ("Python's re has no \\%s"):format(letter)
    end
  end
  local plain = pattern:gsub("\\.", "__")
  if plain:find("(*", 1, true) then return "Python's re has no verbs such as (*" end
  if plain:find("[[:", 1, true) then return "Python's re has no classes such as [:alpha:]" end
  if plain:find "{,%d" then return "write {0,n} for {,n}" end
  for at, rest in plain:gmatch "()%(%?([^)]*%)?)" do
    local flags = rest:find "^[ims]+%)"
    if flags and (inside or at > 1) then return "Python's re takes (?" .. rest .. " at the start of the whole expression only" end
    if not (flags or rest:find "^[:=!#>]" or rest:find "^<[=!]" or rest:find "^P[<=]" or rest:find "^%-?[ims]+[-ims]*:") then
      return ("Python's re has no (?%s"):format(rest:sub(1, 1))
    end
  end
end

local function fullmatch(pattern, text)
  check(C.lr_regex_fullmatch(pattern, text, matched))
  return matched[0] ~= 0
end

-- An error where Python or PCRE2 refuses the expression. where: the beginning of the message.
local function check_regex(pattern, where, inside)
  local wrong = not_python(pattern, inside)
  if wrong then check.fail("%s: '%s': %s", where, pattern, wrong) end
  local ok, why = pcall(fullmatch, inside and "(.*\\.)?(" .. pattern .. ")" or pattern, "")
  if not ok then check.fail("%s: %s", where, (tostring(why):gsub("^.-regular expression", "regular expression"))) end
end

-- ---- which modules, and their numbers ----------------------------------------------------------------------------------------
local function named(list, name)
  for _, t in ipairs(list) do
    if name == t or name:sub(-#t - 1) == "." .. t then return true end
  end
  return false
end

-- The number of the layer that `name` is in, as layers_to_transform counts; nil where PEFT finds none. PEFT 0.18 takes the last
-- number of a name, 0.21 the first. Only mixtures of experts have names with two, and lorarun has none.
local function layer_number(name, patterns)
  if not patterns or #patterns == 0 then return tonumber(name:match "^.*%.[^.]*%.(%d+)%.") end
  for _, pattern in ipairs(patterns) do
    for at, number in name:gmatch "()(%d+)%f[.]" do
      local head = name:sub(1, at - 1)
      if head:sub(-1) == "." and fullmatch("(.*\\.)?(" .. pattern .. ")", head:sub(1, -2)) then return tonumber(number) end
    end
  end
end

local function list_of(value) return type(value) == "string" and { value } or value end

--- is_target(config, name): does PEFT put an adapter on the linear layer of that name (PEFT's)? config: { target_modules =
--- "all-linear", a regular expression or a list of names and last components, exclude_modules, layers_to_transform,
--- layers_pattern }
function peft.is_target(config, name)
  local exclude, targets = config.exclude_modules, config.target_modules
  if type(exclude) == "string" and exclude ~= "" and fullmatch(exclude, name) then return false end
  if type(exclude) == "table" and named(exclude, name) then return false end
  if type(targets) == "string" then return targets:lower() == "all-linear" or fullmatch(targets, name) end
  for _, target in ipairs(targets) do
    if name == target then return true end -- PEFT ignores layers_to_transform for a full name
  end
  if not named(targets, name) then return false end
  local layers = config.layers_to_transform
  if layers == nil or type(layers) == "table" and #layers == 0 then return true end
  local number = layer_number(name, list_of(config.layers_pattern))
  for _, layer in ipairs(type(layers) == "table" and layers or { layers }) do
    if number == layer then return true end
  end
  return false
end

--- selection(config): the keys that is_target follows, as text.
function peft.selection(config)
  local text = "target_modules"
  for _, key in ipairs { "exclude_modules", "layers_to_transform", "layers_pattern" } do
    if config[key] ~= nil then text = text .. " with " .. key end
  end
  return text
end

--- pattern_value(pattern, name, default): rank_pattern's or alpha_pattern's value for a module: that of the first key in file order
--- which matches its name or the last components of it. pattern: a json.object.
function peft.pattern_value(pattern, name, default)
  for _, member in ipairs(pattern.members) do
    if fullmatch("(.*\\.)?(" .. member[1] .. ")", name) then return member[2], member[1] end
  end
  return default
end

function peft.scale(config, alpha, rank) return config.use_rslora and alpha / math.sqrt(rank) or alpha / rank end

--- suffixes(members, others): the shortest dotted ends of the members' names that end none of the others', sorted. With them PEFT
--- (`name == t or name.endswith("." + t)`) finds the members and nothing else.
function peft.suffixes(members, others)
  local list, seen, taken = {}, {}, {}
  for _, other in ipairs(others) do
    for at in ("." .. other):gmatch "()%." do taken[other:sub(at)] = true end
  end
  for _, name in ipairs(members) do
    local ending
    for at in ("." .. name):gmatch "()%." do
      if not taken[name:sub(at)] then ending = name:sub(at) end
    end
    ending = ending or name
    if not seen[ending] then seen[ending], list[#list + 1] = true, ending end
  end
  table.sort(list)
  return list
end

-- ---- the keys ----------------------------------------------------------------------------------------------------------------
local MERGE = "merge it in Python (PeftModel.from_pretrained(base, adapter).merge_and_unload()), save that and load it without "
  .. "the adapter"
local CONVERT = "it changed the base's weights when training began, and PEFT changes them again whenever it loads. Convert it once "
  .. "to a plain LoRA with PEFT: model.save_pretrained(NEW, path_initial_model_for_weight_conversion=FOLDER), where FOLDER holds "
  .. "the adapter as it was before its first step; or " .. MERGE

local function whole(value) return type(value) == "number" and value % 1 == 0 end
local function texts(value)
  if not json.is_array(value) then return false end
  for _, text in ipairs(value) do if type(text) ~= "string" then return false end end
  return true
end

-- kind -> { a test, what is expected }. null is handled before.
local KINDS = {
  any = { function() return true end },
  text = { function(v) return type(v) == "string" end, "a text" },
  switch = { function(v) return type(v) == "boolean" end, "true or false" },
  rank = { function(v) return whole(v) and v >= 1 end, "a whole number of at least 1" },
  alpha = { function(v) return type(v) == "number" and v > 0 and v < math.huge end, "a number above 0" },
  share = { function(v) return type(v) == "number" and v >= 0 and v < 1 end, "a number from 0 to below 1" },
  names = { function(v) return type(v) == "string" or texts(v) end, "a text or a list of texts" },
  layers = { function(v)
    if not json.is_array(v) then return whole(v) end
    for _, n in ipairs(v) do if not whole(n) then return false end end
    return true
  end, "a whole number or a list of them" },
  pattern = { json.is_object, "an object { regular expression: number }" },
}

-- Initialisations after which the saved tensors are those of a plain LoRA. Others change the base's weights.
local PLAIN_INIT = { gaussian = true, eva = true, orthogonal = true }
local function init(value)
  local name = tostring(value)
  if type(value) == "boolean" or PLAIN_INIT[name:lower()] then return nil end
  if name == "mica" then
    return "MiCA trains A alone, which lorarun does not; to use the adapter as a plain LoRA set init_lora_weights to true"
  end
  if name:find "^pissa" or name:find "^corda" or name:lower() == "olora" or name == "loftq" or name == "lora_ga" then
    return CONVERT
  end
  return "PEFT has no such initialisation"
end

-- needed: null is an error, since PEFT computes with the value or loses the adapter.
local KEYS = {
  peft_type = { "text" }, base_model_name_or_path = { "text" }, revision = { "text" },
  r = { "rank", default = 8, needed = true }, lora_alpha = { "alpha", default = 8, needed = true },
  lora_dropout = { "share", default = 0, needed = true }, use_rslora = { "switch", default = false },
  rank_pattern = { "pattern", values = "rank" }, alpha_pattern = { "pattern", values = "alpha" },
  target_modules = { "names" }, exclude_modules = { "names" }, layers_to_transform = { "layers" }, layers_pattern = { "names" },
  init_lora_weights = { "any", default = true, refuse = init },
  -- Without effect on the result: about training, saving or serving, or used with a refused init only. fan_in_fan_out is for
  -- GPT-2's Conv1D; on linear layers PEFT sets it to false.
  task_type = { "text" }, auto_mapping = { "any" }, peft_version = { "text" }, inference_mode = { "switch" },
  fan_in_fan_out = { "switch" }, megatron_core = { "text" }, qalora_group_size = { "rank" }, runtime_config = { "any" },
  ensure_weight_tying = { "switch" }, loftq_config = { "any" }, eva_config = { "any" }, corda_config = { "any" },
  lora_ga_config = { "any" },
  -- These change what the adapter computes. off: the value, besides null and false, that switches the key off; "empty": any empty
  -- one.
  bias = { "text", default = "none", off = "none", remedy = MERGE }, use_dora = { off = "empty", what = "DoRA" },
  use_qalora = { off = "empty" }, lora_bias = { off = "empty" }, layer_replication = { off = "empty" },
  megatron_config = { off = "empty" }, modules_to_save = { off = "empty" }, trainable_token_indices = { off = "empty" },
  target_parameters = { off = "empty" }, use_bdlora = {}, kasa_config = {}, velora_config = {}, monteclora_config = {},
  kappa_tune_config = {},
  alora_invocation_tokens = { what = "aLoRA", remedy = "it begins at tokens that an embedded text does not have" },
  arrow_config = { what = "Arrow", remedy = "it chooses among several adapters: load one of them" },
}

local function shown(value)
  if value == json.null then return "null" end
  if type(value) == "string" then return "'" .. value .. "'" end
  local ok, text = pcall(json.encode, value)
  text = ok and text or tostring(value)
  return #text > 60 and text:sub(1, 57) .. "..." or text
end

-- What is wrong with a key's value, or nil.
local function objection(rule, value)
  if rule.refuse then
    local why = rule.refuse(value)
    return why and ("is %s, which is not supported: %s"):format(shown(value), why)
  end
  local kind = KINDS[rule[1]]
  if kind then
    if not kind[1](value) then return ("is %s, expected %s"):format(shown(value), kind[2]) end
    if not rule.off or value == rule.off then return nil end
  elseif value == false or rule.off == "empty" and (value == "" or value == 0 or type(value) == "table" and next(value) == nil) then
    return nil
  end
  return ("is %s%s, which is not supported: %s"):format(shown(value), rule.what and " (" .. rule.what .. ")" or "",
    rule.remedy or MERGE)
end

-- rank_pattern or alpha_pattern of the file as a json.object in its order.
local function pattern_of(raw, rule, key, path)
  local members = {}
  for i, name in ipairs(json.keys(raw)) do
    local kind = KINDS[rule.values]
    check_regex(name, ("%s: '%s'"):format(path, key), true)
    if not kind[1](raw[name]) then
      check.fail("%s: '%s' of '%s' is %s, expected %s", path, key, name, shown(raw[name]), kind[2])
    end
    members[i] = { name, raw[name] }
  end
  return json.object(members)
end

--- check_targets(targets, what): an error where they are neither a list of texts, nor "all-linear", nor a regular expression.
function peft.check_targets(targets, what)
  if type(targets) == "string" then
    if targets:lower() ~= "all-linear" then check_regex(targets, what) end
    return
  end
  if type(targets) ~= "table" then check.fail("%s is a %s, expected a list of names or a text", what, type(targets)) end
  for i = 1, #targets do
    if type(targets[i]) ~= "string" then check.fail("%s: element %d is a %s, expected a name", what, i, type(targets[i])) end
  end
end

local function check_selection(config, path, model_type, default_targets)
  local function at(key) return ("%s: '%s'"):format(path, key) end
  config.target_modules = config.target_modules or default_targets
  local targets = config.target_modules
  if targets == nil and model_type then
    check.fail("%s is missing, and PEFT knows none for model_type '%s': name the layers", at "target_modules", model_type)
  end
  if targets then peft.check_targets(targets, at "target_modules") end
  if type(targets) == "string" then
    for _, key in ipairs { "layers_to_transform", "layers_pattern" } do
      if config[key] ~= nil then check.fail("%s cannot be used where target_modules is a text", at(key)) end
    end
  end
  if type(config.exclude_modules) == "string" then check_regex(config.exclude_modules, at "exclude_modules") end
  local layers_pattern = list_of(config.layers_pattern)
  if layers_pattern and #layers_pattern > 0 and config.layers_to_transform == nil then
    check.fail("%s needs layers_to_transform", at "layers_pattern")
  end
  for _, pattern in ipairs(layers_pattern or {}) do check_regex(pattern, at "layers_pattern", true) end
end

--- read(folder, model_type, default_targets): the adapter_config.json in an adapter folder, checked: { r, lora_alpha, lora_dropout,
--- use_rslora, rank_pattern, alpha_pattern (json.objects in file order), target_modules, exclude_modules, layers_to_transform,
--- layers_pattern, init_lora_weights, base_model_name_or_path, revision, path }. model_type: of the base; default_targets: those
--- that PEFT takes for such a model where the file names none.
function peft.read(folder, model_type, default_targets)
  local path = fs.join(folder, "adapter_config.json")
  if not fs.is_file(path) then check.fail("%s is missing: this is no PEFT adapter folder", path) end
  local raw = json.decode_file(path, "python")
  if not json.is_object(raw) then check.fail("%s: it holds no JSON object", path) end
  if raw.peft_type ~= "LORA" then
    check.fail("%s: 'peft_type' is %s; only LORA is supported", path, raw.peft_type == nil and "missing" or shown(raw.peft_type))
  end
  local config = { path = path }
  for _, key in ipairs(sorted.keys(KEYS)) do
    local rule, value = KEYS[key], raw[key]
    if value == json.null then
      if rule.needed then check.fail("%s: '%s' is null, expected %s", path, key, KINDS[rule[1]][2]) end
      value = nil
    elseif value == nil then
      value = rule.default
    end
    local wrong = value ~= nil and objection(rule, value)
    if wrong then check.fail("%s: '%s' %s", path, key, wrong) end
    if rule[1] == "pattern" then value = pattern_of(value or {}, rule, key, path) end
    config[key] = value
  end
  for _, key in ipairs(json.keys(raw)) do
    local value = raw[key]
    local empty = value == json.null or value == false or value == "" or type(value) == "table" and next(value) == nil
    if not KEYS[key] and not empty then
      check.fail("%s: '%s' is %s, a key that lorarun does not know: where a newer PEFT means something by it, the adapter would be "
        .. "another one without; %s; or remove the key if it is of no consequence", path, key, shown(value), MERGE)
    end
  end
  check_selection(config, path, model_type, default_targets)
  return config
end

--- pattern_from(given, what, kind): rank_pattern or alpha_pattern of add_lora as a json.object: { q_proj = 8 }, or a list of
--- { key, value } where the first key that matches counts. kind: "rank" or "alpha".
function peft.pattern_from(given, what, kind)
  local members, list = {}, given or {}
  if type(list) ~= "table" then check.fail("%s is a %s, expected a table", what, type(list)) end
  if #list == 0 then
    for i, key in ipairs(sorted.keys(list)) do members[i] = { key, list[key] } end
  else
    for i, member in ipairs(list) do
      members[i] = type(member) == "table" and { member[1], member[2] }
        or check.fail("%s: element %d is a %s, expected { key, value }", what, i, type(member))
    end
  end
  for _, member in ipairs(members) do
    if type(member[1]) ~= "string" then check.fail("%s: the key %s is a %s", what, tostring(member[1]), type(member[1])) end
    if not KINDS[kind][1](member[2]) then
      check.fail("%s of '%s' is %s, expected %s", what, member[1], tostring(member[2]), KINDS[kind][2])
    end
    check_regex(member[1], what, true)
  end
  local object = json.object(members)
  object.unordered = #list == 0
  return object
end

--- refuse_overlap(pattern, name, what): of a table's keys none is the first: two that match a module with different values are an
--- error.
function peft.refuse_overlap(pattern, name, what)
  if not pattern.unordered then return end
  local value, key = peft.pattern_value(pattern, name)
  for _, member in ipairs(pattern.members) do
    if member[2] ~= value and fullmatch("(.*\\.)?(" .. member[1] .. ")", name) then
      check.fail("%s: '%s' and '%s' both match %s; give a list { { '%s', %s }, { '%s', %s } }, of which the first counts",
        what, key, member[1], name, key, tostring(value), member[1], tostring(member[2]))
    end
  end
end

-- ---- writing -----------------------------------------------------------------------------------------------------------------
-- The pattern that gives each module its value: for values that differ from the default, the shortest ends of names that
-- distinguish their modules. No two keys match one module, so the order in which PEFT sorts them when it saves does not matter.
local function pattern_for(modules, field, default)
  local values, members = {}, {}
  for _, m in ipairs(modules) do
    if m[field] ~= default then values[m[field]] = true end
  end
  for _, value in ipairs(sorted.keys(values)) do
    local mine, others = {}, {}
    for _, m in ipairs(modules) do
      local list = m[field] == value and mine or others
      list[#list + 1] = m.name
    end
    for _, ending in ipairs(peft.suffixes(mine, others)) do members[#members + 1] = { (ending:gsub("%.", "\\.")), value } end
  end
  table.sort(members, function(a, b) return a[1] < b[1] end)
  return json.object(members)
end

--- write(model, folder, base): adapter_config.json for the model's adapters as AutoModel's modules are named, whatever they were
--- named where the adapter came from. base: what base_model_name_or_path says; default: the model's own.
function peft.write(model, folder, base)
  local adapter = model.lora
  local config, mine, others, adapted = adapter.config, {}, {}, {}
  for i, m in ipairs(adapter.modules) do mine[i], adapted[m.name] = m.name, true end
  for _, layer in ipairs(model.linears) do
    for _, part in ipairs(layer.parts) do
      if not adapted[part.name] then others[#others + 1] = part.name end
    end
  end
  for _, name in ipairs(sorted.keys(model.arch.unused)) do others[#others + 1] = name end
  fs.write(fs.join(folder, "adapter_config.json"), json.encode({
    alpha_pattern = pattern_for(adapter.modules, "alpha", config.lora_alpha), auto_mapping = json.null,
    base_model_name_or_path = base or peft.base_path(model), bias = "none", fan_in_fan_out = false, inference_mode = true,
    init_lora_weights = true, layers_pattern = json.null, layers_to_transform = json.null, loftq_config = {},
    lora_alpha = config.lora_alpha, lora_dropout = config.lora_dropout, modules_to_save = json.null, peft_type = "LORA",
    r = config.r, rank_pattern = pattern_for(adapter.modules, "rank", config.r), revision = model.revision or json.null,
    target_modules = json.array(peft.suffixes(mine, others)), task_type = "FEATURE_EXTRACTION", use_dora = false,
    use_rslora = config.use_rslora,
  }, { indent = 2, sort_keys = true }))
end

return peft
