-- tokenizer.lua: turns text into token ids, as the tokenizer.json of a model folder says.
--   local tok = lr.load_tokenizer(folder)
--   tok:encode("if x:", { max_length = 512 })   -- Lua array of ids
-- A tokenizer never changes, so it can be shared. free() gives its memory back at once; without it the garbage collector does.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local config = require "lorarun.formats.tokenizer_config"
local ffi = require "ffi"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local guard = require "lorarun.base.guard"
local options = require "lorarun.base.options"

local tokenizer = {}
local Tokenizer = {}
local count = ffi.new "int64_t[1]"

-- Fields: vocab_size (the highest id + 1), handle (the lr_tokenizer), file_max_length (the file's own
-- truncation, nil where it has none), class (transformers' tokenizer_class, nil for a tokenizer.json alone), own_code (the
-- post_processor that stands for code of the folder's own, nil where there is none).
function Tokenizer.__index(self, key)
  local method = Tokenizer[key]
  if method == nil and key == "handle" then
    check.fail("the tokenizer of %s was freed", self.path)
  end
  return method
end

local OPTIONS = { add_special_tokens = options.boolean, max_length = options.whole(1) }

local NO_OPTIONS = {}

-- The ids of text, an array. options: add_special_tokens (default true); max_length: of the ids, special ones included.
function Tokenizer:encode(text, given)
  if type(text) ~= "string" then check.fail("encode: the text must be a string, got a %s", type(text)) end
  given = given and options.check("encode", given, OPTIONS) or NO_OPTIONS
  local special = given.add_special_tokens ~= false and 1 or 0
  local room = math.max(64, math.floor(#text / 2))
  local ids = ffi.new("int32_t[?]", room)
  local function run()
    check.call(C.lr_tokenizer_encode, self.handle, text, #text, special, given.max_length or 0, ids, room, count)
    return tonumber(count[0])
  end
  local n = run()
  if n > room then -- more tokens than guessed
    ids, room = ffi.new("int32_t[?]", n), n
    run()
  end
  local out = {}
  for i = 1, n do out[i] = ids[i - 1] end
  return out
end

-- The token with this id, as tokenizer.json writes it, or nil.
function Tokenizer:token(id)
  if type(id) ~= "number" then check.fail("token: the id must be a number, got a %s", type(id)) end
  local token = C.lr_tokenizer_token(self.handle, id)
  return token ~= nil and ffi.string(token) or nil
end

-- The id of a token written so, or nil.
function Tokenizer:id(token)
  if type(token) ~= "string" then check.fail("id: the token must be a string, got a %s", type(token)) end
  local id = C.lr_tokenizer_id(self.handle, token)
  return id >= 0 and id or nil
end

-- Give the memory back. A second time does nothing.
function Tokenizer:free()
  local handle = rawget(self, "handle")
  if handle then
    self.handle = nil
    C.lr_tokenizer_free(ffi.gc(handle, nil))
  end
end

guard.methods(Tokenizer, "tokenizer")

function Tokenizer.__tostring(self)
  return ("tokenizer %s (%d tokens)"):format(self.path, self.vocab_size)
end

-- A part of tokenizer.json; nil where it is null or missing.
local function part(doc, ...) return json.unless_null(json.part(doc, ...)) end

-- The model's settings with its type, which files of the first releases do not name (as load_model in tokenizer.c).
local function model_settings(doc)
  local m = {}
  for _, key in ipairs { "type", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "ignore_merges" } do
    m[key] = part(doc, "model", key)
  end
  if m.type == nil and json.has(doc, "model", "merges") then m.type = "BPE" end
  if m.type == nil and m.unk_token and m.continuing_subword_prefix and m.max_input_chars_per_word then m.type = "WordPiece" end
  return m
end

-- The parts of a tokenizer.json for tokenizer_generations.read; nil for a file that C will refuse, naming the place.
local function parts_of(doc, path)
  local file = { path = path, model = model_settings(doc) }
  if file.model.type ~= "BPE" and file.model.type ~= "WordPiece" then return nil end
  for _, key in ipairs { "normalizer", "pre_tokenizer", "post_processor", "added_tokens", "truncation", "padding" } do
    file[key] = part(doc, key)
  end
  if file.added_tokens ~= nil and not json.is_array(file.added_tokens) then return nil end
  for _, token in ipairs(file.added_tokens or {}) do
    if type(token) ~= "table" or type(token.content) ~= "string" then return nil end
  end
  file.id = function(token)
    local id = part(doc, "model", "vocab", token)
    return type(id) == "number" and id or nil
  end
  file.vocabulary = function()
    local vocabulary, size = part(doc, "model", "vocab"), 0
    if type(vocabulary) ~= "table" or json.is_array(vocabulary) then return {}, 0 end
    for _ in pairs(vocabulary) do size = size + 1 end
    return vocabulary, size
  end
  return file
end

-- Load a folder's tokenizer.json together with the files beside it; false where there are none. Also returns the class, and the
-- post_processor where code of the folder's own adds the special tokens.
local function load_folder(out, folder, model_type, tokenizer_class)
  local path = fs.join(folder, "tokenizer.json")
  local facts = fs.is_file(path) and config.facts(folder, model_type, tokenizer_class)
  if not facts then return false end
  local doc = json.parse(fs.read(path), path)
  local file, read, class, own_code = parts_of(doc, path), {}, nil, nil
  if file then read, class, own_code = require("lorarun.formats.tokenizer_generations").read(facts, file) end
  local changes = json.parse(json.encode(read), path)
  check.call(C.lr_tokenizer_load_changed, out, doc, path, changes, facts.config.path)
  C.lr_json_free(ffi.gc(doc, nil))
  C.lr_json_free(ffi.gc(changes, nil))
  return true, class, own_code and read.post_processor or nil
end

local LOAD_OPTIONS = { model_type = options.text, tokenizer_class = options.text }

-- path: a folder, whose tokenizer is what transformers' AutoTokenizer makes of it, or a tokenizer.json, which counts alone.
-- options: model_type, which counts where the folder has no config.json; tokenizer_class, which counts where no file of the folder
-- names one and the model_type is not one of tokenizer_classes.lua's.
function tokenizer.load_tokenizer(path, given)
  if type(path) ~= "string" then check.fail("load_tokenizer: the folder must be a string, got a %s", type(path)) end
  given = options.check("lr.load_tokenizer", given, LOAD_OPTIONS)
  local out = ffi.new "lr_tokenizer *[1]"
  local loaded, class, own_code
  if fs.is_directory(path) then loaded, class, own_code = load_folder(out, path, given.model_type, given.tokenizer_class) end
  if not loaded then check.call(C.lr_tokenizer_load, out, path) end
  local handle = ffi.gc(out[0], C.lr_tokenizer_free)
  local max_length = tonumber(C.lr_tokenizer_file_max_length(handle))
  return setmetatable({
    path = path, handle = handle, vocab_size = tonumber(C.lr_tokenizer_vocab_size(handle)),
    file_max_length = max_length > 0 and max_length or nil, class = class, own_code = own_code,
  }, Tokenizer)
end

return tokenizer
