-- tokenizer_generations.lua: what transformers 4 and transformers 5 make of a folder's tokenizer (AutoTokenizer, no remote code).
--
-- Each generation's reading is a table of parts: normalizer, pre_tokenizer, model, added tokens, special tokens around a text, side
-- of truncation. lorarun uses the reading if both generations have the same, or if only one of them can load the folder. If the two
-- differ, nothing tells which of them the model was trained with, and the folder is refused.
-- Written after transformers 4.57 and 5.23 with tokenizers 0.22 and 0.23.
local check = require "lorarun.base.check"
local classes = require "lorarun.formats.tokenizer_classes"
local files = require "lorarun.formats.tokenizer_config"
local json = require "lorarun.base.json"
local added = require "lorarun.formats.tokenizer_tokens"
local sorted = require "lorarun.base.sorted"

local generations = {}

-- ---- parts in one form, to be compared ---------------------------------------------------------------------------
-- The type of a part. If the part names none, its keys decide, as in C (normalizer.c).
local function type_of(part)
  if type(part.type) == "string" then return part.type == "Bert" and "BertNormalizer" or part.type end
  return part.lowercase ~= nil and "BertNormalizer" or part.normalizers and "Sequence" or part.strip_left ~= nil and "Strip"
    or part.pattern and "Replace" or "Prepend"
end

local COMPARED = { -- the fields that change ids; parts of other types are compared whole
  BertNormalizer = function(p)
    local accents = json.unless_null(p.strip_accents)
    if accents == nil then accents = p.lowercase end
    return { p.clean_text, p.handle_chinese_chars, accents, p.lowercase }
  end,
  ByteLevel = function(p) return { p.add_prefix_space, p.use_regex ~= false } end,
}

-- A normalizer or pre-tokenizer as one text, with its Sequences flattened.
local function canonical(part, inner)
  local texts = {}
  local function walk(p, depth)
    if type(p) ~= "table" or depth > 32 then -- C refuses this, with its place in the file
      texts[#texts + 1] = tostring(p)
      return
    end
    local kind = type_of(p)
    if kind == "Sequence" and json.is_array(p[inner]) then
      for _, q in ipairs(p[inner]) do walk(q, depth + 1) end
    elseif COMPARED[kind] then
      local fields = COMPARED[kind](p)
      for i = 1, 4 do fields[i] = tostring(fields[i]) end
      texts[#texts + 1] = kind .. ":" .. table.concat(fields, ",")
    else
      texts[#texts + 1] = json.encode(p)
    end
  end
  if part then walk(part, 0) end
  return table.concat(texts, "\n")
end

-- ---- the readings ------------------------------------------------------------------------------------------------
local function side_of(facts, file)
  local config = facts.config
  local side = files.text(config, "truncation_side")
  if side == nil then
    if config:given "truncation_side" ~= nil then config:refuse("truncation_side", "is null, expected 'right' or 'left'") end
    local truncation = file.truncation
    return type(truncation) == "table" and truncation.direction == "Left" and "left" or "right"
  end
  if side ~= "left" and side ~= "right" then config:refuse("truncation_side", "is '%s', expected 'right' or 'left'", side) end
  return side
end

local function token_of(named, attribute)
  for _, n in ipairs(named) do
    if n[1] == attribute then return added.content_of(n[2]) end
  end
end

-- transformers 4: tokenizer.json, with the settings that the class writes over it.
local function four(facts, file, class, remote)
  local config = facts.config
  if json.is_array(config:get "extra_special_tokens") then -- also an empty one
    return nil, ("%s: transformers 4 reads 'extra_special_tokens' as an object only"):format(config.path)
  end
  if class == classes.known.RobertaTokenizer then files.boolean(config, "add_prefix_space", false) end -- both refuse null
  local r = { normalizer = file.normalizer, pre_tokenizer = file.pre_tokenizer, model = file.model }
  if class.normalizer then
    if not file.normalizer then
      return nil, ("%s: transformers 4 needs a normalizer in it for this class"):format(file.path)
    end
    if type(file.normalizer) == "table" and type_of(file.normalizer) == "BertNormalizer" then
      local n, old = {}, file.normalizer
      for key, value in pairs(old) do n[key] = value end
      n.type, n.lowercase = "BertNormalizer", files.boolean(config, "do_lower_case", true)
      if config:get "strip_accents" ~= nil then files.boolean(config, "strip_accents") end
      n.strip_accents = config:get "strip_accents"
      local chinese = files.boolean(config, "tokenize_chinese_chars", true)
      if class.normalizer.handle_chinese_chars then n.handle_chinese_chars = chinese end
      r.normalizer = n
      r.renormalized = canonical(n, "normalizers") ~= canonical(old, "normalizers")
    end
  end
  local pre, prefix = file.pre_tokenizer, config:get "add_prefix_space"
  if prefix == nil and config:given "add_prefix_space" == nil then prefix = false end
  if prefix ~= nil then files.boolean(config, "add_prefix_space") end
  if type(pre) == "table" and pre.type == "ByteLevel" and prefix ~= nil and pre.add_prefix_space ~= prefix then
    r.pre_tokenizer = { type = "ByteLevel", add_prefix_space = prefix, trim_offsets = pre.trim_offsets, use_regex = pre.use_regex }
  end
  r.added, r.named = added.tokens(facts, file, class, 4, false)
  if remote or class.llama then
    local function wanted(key, default, attribute)
      if not files.boolean(config, key, default) then return {} end
      return { token_of(r.named, attribute) or config:refuse(key, "is true, but there is no %s", attribute) }
    end
    r.around = { before = remote and {} or wanted("add_bos_token", true, "bos_token"),
      after = wanted("add_eos_token", false, "eos_token") }
  end
  return r
end

-- transformers 5: most classes build the tokenizer again from its vocabulary. registered: the class of the model.
local function five(facts, file, class)
  local config = facts.config
  if class.llama then return nil, "transformers 5 builds another kind of tokenizer for this class" end
  local map = config:given "added_tokens_decoder" == nil and facts.map
  for _, t in ipairs(map and files.array(map, "additional_special_tokens") or {}) do
    if type(t) == "table" then
      return nil, ("%s: transformers 5 reads 'additional_special_tokens' as strings only"):format(map.path)
    end
  end
  local r = { normalizer = file.normalizer, pre_tokenizer = file.pre_tokenizer, model = file.model }
  if class.built then
    local prefix = config:get "add_prefix_space"
    if prefix ~= nil then files.boolean(config, "add_prefix_space") end
    if config:given "add_prefix_space" ~= nil and prefix == nil and class.built == classes.known.GPT2Tokenizer.built then
      return nil, ("%s: transformers 5 reads 'add_prefix_space' as true or false only"):format(config.path)
    end
    r.normalizer, r.pre_tokenizer, r.model = class.built(config)
  end
  r.added, r.named = added.tokens(facts, file, class, 5, class.built ~= nil)
  if r.model.unknown then r.model.unk_token = token_of(r.named, "unk_token") or "None" end
  if class.around then
    r.around = { before = { token_of(r.named, class.around.before) or class.around.missing and class.around.missing[1] },
      after = { token_of(r.named, class.around.after) or class.around.missing and class.around.missing[2] } }
  end
  return r
end

-- ---- which class -------------------------------------------------------------------------------------------------
local function stripped(name) return name == "PreTrainedTokenizerFast" and name or (name:gsub("Fast$", "")) end

local function known_class(name, values)
  local class = classes.known[stripped(name)] or stripped(name) == "PreTrainedTokenizer" and classes.known.PreTrainedTokenizerFast
  if class then return class end
  values:refuse("tokenizer_class", "is '%s', which lorarun does not know; it knows %s. Where tokenizer.json alone says how texts "
    .. "become tokens, write PreTrainedTokenizerFast there", name, table.concat(sorted.keys(classes.known), ", "))
end

-- The code of gte-Qwen2 and of models derived from it: it puts eos_token after the text if add_eos_token is true.
local GTE = "tokenization_qwen.Qwen2TokenizerFast"

-- The name of the code that auto_map of a file gives for the tokenizer, or nil.
local function remote_code(values)
  local map = values:get "auto_map"
  if json.is_object(map) then map = json.unless_null(map.AutoTokenizer) end
  if map == nil then return nil end
  if type(map) == "string" then return map end
  for i = 2, 1, -1 do
    if type(map) == "table" and type(map[i]) == "string" then return map[i] end
  end
  values:refuse("auto_map", "names no tokenizer")
end

local function refuse_settings(facts, file)
  local config = facts.config
  for _, setting in ipairs { { "from_slow", "the tokenizer is made of other files than tokenizer.json then" },
    { "fix_mistral_regex", "the pattern of tokenizer.json is replaced by Mistral's then" } } do
    local key, why = setting[1], setting[2]
    if config:get(key) then config:refuse(key, "is %s: %s, which lorarun does not do", tostring(config.raw[key]), why) end
  end
  if config:get "tokenizer_file" then
    config:refuse("tokenizer_file", "is '%s': transformers 4 reads that file and transformers 5 reads %s; remove the key",
      tostring(config.raw.tokenizer_file), file.path)
  end
  for _, name in ipairs(files.array(config, "fast_tokenizer_files") or {}) do
    if name ~= "tokenizer.json" then
      config:refuse("fast_tokenizer_files", "names '%s', a tokenizer.json of some versions of transformers; keep only the one "
        .. "that is meant, as tokenizer.json", tostring(name))
    end
  end
end

-- ---- agreement ---------------------------------------------------------------------------------------------------
local function model_text(m)
  return m.type == "WordPiece" and ("WordPiece %s %s %s"):format(tostring(m.unk_token), tostring(m.continuing_subword_prefix),
    tostring(m.max_input_chars_per_word)) or ("%s %s"):format(tostring(m.type), tostring(m.ignore_merges == true))
end

-- Does BERT's normalizer leave this string alone, whatever its settings? Then it does not matter when the string is normalised.
local function plain_ascii(s) return not s:find "[^%l%d%p ]" end

-- What differs between two readings, in words, or nil.
local function difference(a, b, split)
  if canonical(a.normalizer, "normalizers") ~= canonical(b.normalizer, "normalizers") then return "the normalizer" end
  if canonical(a.pre_tokenizer, "pretokenizers") ~= canonical(b.pre_tokenizer, "pretokenizers") then return "the pre_tokenizer" end
  if model_text(a.model) ~= model_text(b.model) then return "the model's settings" end
  for _, pair in ipairs { { a, b }, { b, a } } do
    for _, content in ipairs(pair[1].added.order) do
      local t, other = pair[1].added.by[content], pair[2].added.by[content]
      if not other then return ("the added token '%s', which only one of them has"):format(content) end
      if t.single_word ~= other.single_word or t.lstrip ~= other.lstrip or t.rstrip ~= other.rstrip
        or t.normalized ~= other.normalized
        or split and not pair[1].added.special[content] ~= not pair[2].added.special[content] then
        return ("the flags of the added token '%s'"):format(content)
      end
    end
  end
  return nil
end

-- The first added token that transformers 4 finds in other places of a text than the files say, or nil. (Transformers 5 does as the
-- files say.) If a token's `normalized` has changed, transformers 4 looks for it in both ways; if BERT's normalizer was given other
-- settings, it looks for the token as the old normalizer left it.
local function unwritten_token(a)
  for _, content in ipairs(a.added.order) do
    local t = a.added.by[content]
    local once = added.looked_for(a.added, content) == (t.normalized and "n" or "r")
    if not once or a.renormalized and t.normalized and not plain_ascii(content) then return content end
  end
end

-- The ids that a post-processor of tokenizer.json puts around a text. What C refuses, with its place, is passed over here.
local function around_of(part, before, after)
  local function ids(list, of, position)
    for _, id in ipairs(type(of) == "table" and of or {}) do
      table.insert(list, position or #list + 1, id)
      position = position and position + 1
    end
    return position
  end
  if type(part) ~= "table" then return end
  if part.type == "Sequence" then
    for _, p in ipairs(type(part.processors) == "table" and part.processors or {}) do around_of(p, before, after) end
  elseif type(part.cls) == "table" and type(part.sep) == "table" then
    ids(before, { part.cls[2] }, 1)
    ids(after, { part.sep[2] })
  elseif type(part.single) == "table" and type(part.special_tokens) == "table" then
    local position = 1
    for _, piece in ipairs(part.single) do
      local special = type(piece) == "table" and piece.SpecialToken
      if type(special) == "table" then
        local token = part.special_tokens[special.id]
        local next_position = ids(position and before or after, type(token) == "table" and token.ids, position)
        position = position and next_position
      else
        position = nil
      end
    end
  end
end

-- A post-processor that puts these ids around a text, in the form that the library tokenizers reads.
local function template(before, after)
  local single, special = json.array {}, {}
  local function put(name, ids)
    if #ids == 0 then return end
    local names = json.array {}
    for i, id in ipairs(ids) do names[i] = tostring(id) end
    single[#single + 1] = { SpecialToken = { id = name, type_id = 0 } }
    special[name] = { id = name, ids = json.array(ids), tokens = names }
  end
  put("before", before)
  single[#single + 1] = { Sequence = { id = "A", type_id = 0 } }
  put("after", after)
  return { type = "TemplateProcessing", single = single, special_tokens = special,
    pair = json.array { { Sequence = { id = "A", type_id = 0 } }, { Sequence = { id = "B", type_id = 1 } } } }
end

local function shown_ids(list)
  local texts = {}
  for i, id in ipairs(list) do texts[i] = tostring(id) end
  return table.concat(texts, " ")
end

-- The class that a model's tokenizer has if no file names one, or nil.
local function registered_class(facts) return classes.of_model[facts.model_type or ""] or facts.tokenizer_class end

local function refuse(facts, file, name, what)
  local remedy = classes.overruled[facts.model_type or ""] and ("transformers 5 makes a %s of every %s model's: only a "
    .. "tokenizer.json like that class's own is read alike"):format(registered_class(facts), facts.model_type)
    or "where tokenizer.json is right, write PreTrainedTokenizerFast as tokenizer_class, which leaves it as it is"
  check.fail("%s: transformers 4 and transformers 5 read this tokenizer differently (tokenizer_class %s, model_type %s): they "
    .. "differ in %s. lorarun cannot know with which of them the model was trained. Make this file and %s say the same; %s",
    file.path, name or "none", tostring(facts.model_type), what, facts.config.path, remedy)
end

-- The readings of transformers 4 and 5, each nil, with a reason, if that generation cannot load the folder; the name of the class;
-- and whether the tokens are made by code in the folder that lorarun knows.
local function readings(facts, file)
  local config, model = facts.config, facts.model
  local remote = remote_code(config)
  if not remote and not config:get "tokenizer_class" then remote = remote_code(model) end
  if remote and remote:gsub("^.*%-%-", "") ~= GTE then
    check.fail("%s: 'auto_map' names %s, code of the folder's own that makes tokens, which lorarun cannot run. Where "
      .. "tokenizer.json alone says how texts become tokens, remove that entry", config.path, remote)
  end
  local holder = files.text(config, "tokenizer_class") and config or model
  local name, registered = files.text(holder, "tokenizer_class"), registered_class(facts)
  local a, b, reason
  if not name and not registered then
    if facts.model_type then
      model:refuse("model_type", "is '%s': lorarun does not know the tokenizer of such a model, and no file names its "
        .. "tokenizer_class", facts.model_type)
    end
    reason = ("%s: no tokenizer_class, and no model_type"):format(config.path)
  elseif name == "TokenizersBackend" then
    reason = ("%s: transformers 4 has no tokenizer_class TokenizersBackend"):format(holder.path)
  else
    a, reason = four(facts, file, known_class(name or registered, holder), remote)
  end
  if not remote then
    local name5 = classes.overruled[facts.model_type or ""] and registered or name or registered or "PreTrainedTokenizerFast"
    local class = name5 == "TokenizersBackend" and classes.known.PreTrainedTokenizerFast or known_class(name5, holder)
    if class.llama and canonical(file.pre_tokenizer, "pretokenizers"):find("ByteLevel:", 1, true) then
      class = classes.known.PreTrainedTokenizerFast
    end
    b = five(facts, file, class)
  end
  return a, b, reason, name or registered, remote ~= nil
end

--- read(facts, file): what the folder's files change in tokenizer.json (for lr_tokenizer_load_changed), the name of the class, and
--- whether code in the folder makes the tokens. facts: tokenizer_config.facts; file: tokenizer.json's parts { path, normalizer,
--- pre_tokenizer, post_processor, added_tokens, truncation, model = settings of its model, id = function(token): its id in the
--- vocabulary or nil, vocabulary = function(): token -> id, and the number of tokens }. Raises an error if the generations read the
--- folder differently.
function generations.read(facts, file)
  local config = facts.config
  refuse_settings(facts, file)
  local split, side = files.boolean(config, "split_special_tokens", false), side_of(facts, file)
  local a, b, reason, name, own_code = readings(facts, file)
  local r = a or b or check.fail("%s", reason)
  local what = a and b and difference(a, b, split)
  local token = a and unwritten_token(a)
  if token then what = what or ("the added token '%s', which transformers 4 goes on to look for as it was"):format(token) end
  local numbered = {}
  local function ids_of(list)
    numbered[list] = numbered[list] or added.number(list, file.vocabulary())
    return numbered[list]
  end
  local function around(reading)
    local before, after = {}, {}
    if not reading.around then
      around_of(file.post_processor, before, after)
      return before, after
    end
    local function fill(list, named)
      for i, t in ipairs(named) do list[i] = type(t) == "number" and t or file.id(t) or ids_of(reading.added)[t] end
      return list
    end
    return fill(before, reading.around.before), fill(after, reading.around.after)
  end
  if a and b and not what then
    if not added.same_order(a.added, b.added) then
      for _, content in ipairs(a.added.order) do
        if not what and ids_of(a.added)[content] ~= ids_of(b.added)[content] then
          what = ("the id of the added token '%s'"):format(content)
        end
      end
    end
    local before4, after4 = around(a)
    local before5, after5 = around(b)
    if shown_ids(before4) ~= shown_ids(before5) or shown_ids(after4) ~= shown_ids(after5) then
      what = ("the special tokens around a text: ids %s ... %s and %s ... %s"):format(shown_ids(before4), shown_ids(after4),
        shown_ids(before5), shown_ids(after5))
    end
  end
  if not a and model_text(b.model) ~= model_text(file.model) then
    what = "the settings of the model, which transformers 5 does not read"
  end
  if what then refuse(facts, file, name, what) end

  local changes = { truncation_side = side, split_special_tokens = split }
  if r.normalizer ~= file.normalizer then changes.normalizer = r.normalizer or json.null end
  if r.pre_tokenizer ~= file.pre_tokenizer then changes.pre_tokenizer = r.pre_tokenizer or json.null end
  if r.around then
    local before, after = around(r)
    changes.post_processor = template(before, after)
  end
  if not added.is_files(r.added, file) then
    local ids, list = ids_of(r.added), json.array {}
    for i, content in ipairs(r.added.order) do
      local t = r.added.by[content]
      list[i] = { id = ids[content], content = content, single_word = t.single_word, lstrip = t.lstrip, rstrip = t.rstrip,
        normalized = t.normalized, special = r.added.special[content] ~= nil }
    end
    changes.added_tokens = list
  end
  return changes, name, own_code
end

return generations
