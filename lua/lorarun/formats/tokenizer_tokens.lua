-- tokenizer_tokens.lua: the tokens that a folder's files add to a tokenizer's vocabulary, and their flags, as transformers 4 (with
-- tokenizers 0.22) and 5 (0.23) add them.
--
-- A token is { content, single_word, lstrip, rstrip, special, normalized }; if normalized is nil, it is the opposite of special. A
-- list of added tokens is { order = contents in the order in which they were added, by = content -> token, special = the contents
-- that are special, calls = the new contents of each call }: each call of add_tokens numbers its new tokens after the highest id.
local files = require "lorarun.formats.tokenizer_config"
local json = require "lorarun.base.json"

local added = {}

local ATTRIBUTES = { "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token" }
local IS_ATTRIBUTE = {}
for _, attribute in ipairs(ATTRIBUTES) do IS_ATTRIBUTE[attribute] = true end
local FLAGS = { "single_word", "lstrip", "rstrip", "normalized", "special" }

-- ---- added tokens ------------------------------------------------------------------------------------------------
local function is_normalized(t)
  if t.normalized == nil then return not t.special end
  return t.normalized
end

local function same(a, b)
  return a.content == b.content and a.single_word == b.single_word and a.lstrip == b.lstrip and a.rstrip == b.rstrip
    and a.special == b.special and is_normalized(a) == is_normalized(b)
end

local function plain_token(content, flags)
  flags = flags or { special = true }
  return { content = content, single_word = flags.single_word or false, lstrip = flags.lstrip or false,
    rstrip = flags.rstrip or false, special = flags.special or false, normalized = flags.normalized }
end

-- A token from an object { content, flags } of a file.
local function read_token(values, key, spec)
  if type(spec) ~= "table" or json.is_array(spec) or type(spec.content) ~= "string" then
    values:refuse(key, "has a token that is no object with a content")
  end
  for _, flag in ipairs(FLAGS) do
    if spec[flag] ~= nil and type(spec[flag]) ~= "boolean" then
      values:refuse(key, "has '%s' as '%s' of the token '%s', expected true or false", tostring(spec[flag]), flag, spec.content)
    end
  end
  return plain_token(spec.content, spec)
end

-- A special token in the form of tokenizer_config.json: a string, or an object that says it is an AddedToken.
local function read_special(values, key, spec)
  if type(spec) == "string" then return spec end
  if type(spec) == "table" and spec.__type == "AddedToken" then return read_token(values, key, spec) end
  values:refuse(key, "is no token: expected a string, or an object with \"__type\": \"AddedToken\"")
end

local function content_of(token) return type(token) == "table" and token.content or token end

local function new_list() return { order = {}, by = {}, special = {}, calls = {} } end

local function add_tokens(list, tokens)
  local call = {}
  for _, t in ipairs(tokens) do
    if t.special and t.content ~= "" and not list.special[t.content] then
      list.special[t.content] = is_normalized(t) and "n" or "r"
    end
  end
  for _, t in ipairs(tokens) do
    local known = list.by[t.content]
    if t.content ~= "" and not (known and same(known, t)) then
      local entry = plain_token(t.content, t)
      entry.normalized = is_normalized(t)
      -- before 0.23, tokenizers goes on looking for every version that a token had, unless the token is special
      entry.versions = known and known.versions or ""
      if not list.special[t.content] then entry.versions = entry.versions .. (entry.normalized and "n" or "r") end
      if not known then
        list.order[#list.order + 1] = t.content
        call[#call + 1] = t.content
      end
      list.by[t.content] = entry
    end
  end
  list.calls[#list.calls + 1] = call
end

-- Where tokenizers 0.22 looks for a token: "n": in the normalised text, "r": in the raw text, "nr": in both.
local function looked_for(list, content)
  local versions = list.by[content].versions .. (list.special[content] or "")
  return (versions:find "n" and "n" or "") .. (versions:find "r" and "r" or "")
end

local function file_tokens(file)
  local tokens = {}
  for i, spec in ipairs(file.added_tokens or {}) do tokens[i] = plain_token(spec.content, spec) end
  return tokens
end

-- Two lists: the special tokens with their attributes, { attribute, token }, where token is a string or a token with flags; and
-- special tokens without an attribute. Without added_tokens_decoder, special_tokens_map.json comes before tokenizer_config.json.
local function named_tokens(facts, file, class, generation)
  local config, named, further = facts.config, {}, {}
  local legacy = config:given "added_tokens_decoder" == nil and facts.map or nil
  local function from_map(key)
    local v = legacy and legacy.raw[key]
    if v == nil then return nil end
    if v == json.null then return false end
    if type(v) == "string" then return v end
    local t = read_token(legacy, key, v)
    t.special = true
    return t
  end
  -- if the class has no padding token, the padding of tokenizer.json may name one
  local file_pad = not (generation == 5 and class.built) and type(file.padding) == "table"
    and type(file.padding.pad_token) == "string" and file.padding.pad_token or nil
  for _, attribute in ipairs(ATTRIBUTES) do
    local token = from_map(attribute)
    if token == nil then
      if config:given(attribute) ~= nil then token = config:get(attribute)
      else token = class.tokens and class.tokens[attribute] or attribute == "pad_token" and file_pad end
      if token then token = read_special(config, attribute, token) end
    end
    if token then named[#named + 1] = { attribute, token } end
  end
  local function take(values, key)
    for _, spec in ipairs(files.array(values, key) or {}) do
      local token = type(spec) == "table" and values == legacy and read_token(values, key, spec) or read_special(values, key, spec)
      if type(token) == "table" and values == legacy then token.special = true end
      further[#further + 1] = token
    end
  end
  if generation == 5 then -- keys such as image_token
    for _, key in ipairs(json.keys(config.raw)) do
      if key:find "_token$" and type(config.raw[key]) == "string" and not IS_ATTRIBUTE[key] then
        named[#named + 1] = { key, config.raw[key] }
      end
    end
  end
  local extra = config:get "extra_special_tokens"
  local listed = json.is_array(extra)
  if listed and generation == 5 then take(config, "extra_special_tokens") end
  for _, key in ipairs(listed and {} or json.keys(files.object(config, "extra_special_tokens") or {})) do
    named[#named + 1] = { key, read_special(config, "extra_special_tokens", extra[key]) }
  end
  if generation == 4 or not extra or next(extra) == nil then take(config, "additional_special_tokens") end
  if legacy and (generation == 4 or not listed and config:given "additional_special_tokens" == nil) then
    take(legacy, "additional_special_tokens")
  end
  return named, further
end

-- The tokens of added_tokens_decoder in the order of their ids; without it, those of added_tokens.json and tokenizer.json.
local function decoder_tokens(facts, file, named, further, generation)
  local by_index, indices = {}, {}
  local function put(index, token)
    if not by_index[index] then indices[#indices + 1] = index end
    by_index[index] = token
  end
  local decoder = facts.config:given "added_tokens_decoder" ~= nil and (files.object(facts.config, "added_tokens_decoder") or
    facts.config:refuse("added_tokens_decoder", "is null, expected an object"))
  if decoder then
    for _, key in ipairs(json.keys(decoder)) do
      local index = key:find "^%d+$" and tonumber(key)
      if not index then facts.config:refuse("added_tokens_decoder", "has the key '%s', which is no id", key) end
      put(index, read_token(facts.config, "added_tokens_decoder", decoder[key]))
    end
  else
    local special = {}
    for _, n in ipairs(named) do special[content_of(n[2])] = true end
    for _, t in ipairs(further) do special[content_of(t)] = true end
    for _, content in ipairs(json.keys(facts.added and facts.added.raw or {})) do
      local index = facts.added.raw[content]
      if type(index) ~= "number" then facts.added:refuse(content, "is no id") end
      local token = plain_token(content, { special = special[content] or false, normalized = not special[content] })
      token.unnamed = generation == 4 -- in transformers 4 a special token with this content does not get these flags
      put(index, token)
    end
    for i, spec in ipairs(file.added_tokens or {}) do
      put(type(spec.id) == "number" and spec.id or -i, plain_token(spec.content, spec))
    end
  end
  table.sort(indices)
  local tokens, map = {}, {}
  for i, index in ipairs(indices) do
    tokens[i] = by_index[index]
    if not tokens[i].unnamed then map[tokens[i].content] = tokens[i] end
  end
  return tokens, map
end

-- The list of added tokens. fresh: the class starts without those of tokenizer.json.
local function added_tokens(facts, file, class, generation, fresh)
  local named, further = named_tokens(facts, file, class, generation)
  local decoder, map = decoder_tokens(facts, file, named, further, generation)
  local list, to_add, known, in_add = new_list(), {}, {}, {}
  if not fresh then add_tokens(list, file_tokens(file)) end
  for _, t in ipairs(decoder) do
    if not (list.by[t.content] and same(list.by[t.content], t)) then to_add[#to_add + 1] = t end
  end
  for content in pairs(list.by) do known[content] = true end
  for _, t in ipairs(to_add) do known[t.content], in_add[t.content] = true, t end
  local values, special = {}, {}
  for _, n in ipairs(named) do
    local token = n[2]
    local flags = (generation == 4 or class.flags_in_5) and class.flags and class.flags[n[1]]
    if map[content_of(token)] then
      token = map[content_of(token)]
    elseif flags and type(token) == "string" then
      token = plain_token(token, flags)
    end
    n[2] = token
    values[#values + 1] = token
    special[content_of(token)] = true
  end
  for _, t in ipairs(further) do
    values[#values + 1] = t
    if generation == 4 then special[content_of(t)] = true end
  end
  local seen = {}
  for _, token in ipairs(values) do
    local content = content_of(token)
    local skip = seen[content] or known[content]
    if generation == 4 and type(token) == "table" then -- it looks for the token in a list of strings: in vain
      skip = seen[content] or (in_add[content] and same(in_add[content], token))
    end
    if not skip then to_add[#to_add + 1] = type(token) == "table" and token or plain_token(token) end
    seen[content] = true
  end
  for _, t in ipairs(to_add) do t.special = t.special or special[t.content] or false end
  if #to_add > 0 then add_tokens(list, to_add) end
  if generation == 5 and fresh and class.plain_again then
    local again = {}
    for _, token in ipairs(values) do again[#again + 1] = plain_token(content_of(token)) end
    add_tokens(list, again)
  end
  return list, named
end

-- The id of each added token. vocabulary: token -> id, of `size` tokens.
local function number(list, vocabulary, size)
  local ids, highest = {}, nil
  for _, call in ipairs(list.calls) do
    local next_id = highest and highest >= size and highest + 1 or size
    for _, content in ipairs(call) do
      local id = vocabulary[content]
      if not id then id, next_id = next_id, next_id + 1 end
      ids[content] = id
    end
    for _, content in ipairs(call) do highest = math.max(highest or 0, ids[content]) end
  end
  return ids
end

local function same_order(a, b)
  if #a.order ~= #b.order then return false end
  for i = 1, #a.order do
    if a.order[i] ~= b.order[i] then return false end
  end
  return true
end

-- Is a reading's list of added tokens the same as that of tokenizer.json?
local function is_files(list, file)
  local own = new_list()
  add_tokens(own, file_tokens(file))
  if not same_order(own, list) then return false end
  for content, t in pairs(own.by) do
    if not same(t, list.by[content]) then return false end
  end
  return true
end

added.content_of, added.looked_for, added.tokens, added.number = content_of, looked_for, added_tokens, number
added.same_order, added.is_files = same_order, is_files

return added
