-- adapter_folder.lua: finds what a folder with a PEFT adapter does not hold itself: its base model and, where it has none, a
-- tokenizer.
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local hub = require "lorarun.formats.hub"
local peft = require "lorarun.formats.peft"
local say = require "lorarun.base.say"

local adapter_folder = {}

local KEY = "base_model_name_or_path"

local warned = {}

-- Warn once: the launcher's checks look at the folder before the model is loaded.
local function warn(fmt, ...)
  local text = fmt:format(...)
  if not warned[text] then say.warning("%s", text) end
  warned[text] = true
end

local function same(a, b) return fs.real(a) == fs.real(b) end

-- The folder of the base, and what the model is to be called: its absolute path, or its Hugging Face id.
local function find(config, folder, without_weights)
  local base = config.base_model_name_or_path
  if base == nil or base == "" then
    check.fail("%s: '%s' is missing; load the base, then model:load_adapter(\"%s\")", config.path, KEY, folder)
  end
  local beside, here = fs.join(folder, base), fs.is_directory(base) and base
  if fs.is_directory(beside) then -- of an absolute path, join() gives that path
    if same(beside, folder) then
      check.fail("%s: '%s' is the adapter's own folder: it must be the model that the adapter was trained on", config.path, KEY)
    end
    if here and not same(here, beside) then
      warn("%s: '%s' is '%s': taking the folder beside the adapter, %s; PEFT would take %s, which the same path is from here",
        config.path, KEY, base, fs.real(beside), fs.real(here))
    end
    return beside, fs.real(beside)
  elseif here then
    return here, fs.real(here)
  elseif base:sub(1, 1) == "/" then
    check.fail("%s: '%s' is '%s', and there is no such folder; write there where the base is now", config.path, KEY, base)
  end
  local ok, found = pcall(hub.resolve, base, config.revision, without_weights)
  if not ok then check.fail("%s: '%s': %s", config.path, KEY, (tostring(found):gsub("^[^\n]-:%d+: ", ""))) end
  return found, fs.is_directory(base) and fs.real(base) or base
end

--- base(folder, without_weights): the base model of the adapter in a folder, as model.load takes it, and its revision or nil. A
--- relative path is looked for from the adapter's folder, then from the working directory, as PEFT does. A base that is an adapter
--- itself is an error; one that has an adapter beside its weights is loaded without it, as by transformers.
function adapter_folder.base(folder, without_weights)
  local config = peft.read(folder)
  local base, name = find(config, folder, without_weights)
  if fs.is_file(fs.join(base, "adapter_config.json")) then
    if hub.has_weights(base, without_weights) then
      warn("%s: '%s' is %s, which has an adapter beside its weights: as in transformers, that one is not applied", config.path, KEY,
        name)
      return name, config.revision
    end
    check.fail("%s: '%s' is %s, which holds an adapter itself; merge that one first: "
      .. "lorarun -e 'lr.load_model(\"%s\"):save(\"NEW\")', and name NEW here", config.path, KEY, name, base)
  end
  return name, config.revision
end

local TOKENIZER = { "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model",
  "sentencepiece.bpe.model", "tokenizer.model" }

--- has_tokenizer(folder): does AutoTokenizer find one there?
function adapter_folder.has_tokenizer(folder)
  for _, name in ipairs(TOKENIZER) do
    if fs.is_file(fs.join(folder, name)) then return true end
  end
  return false
end

return adapter_folder
