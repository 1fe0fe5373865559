-- tokenize_folders.lua: ids of texts by many tokenizers, for check_tokenizer_folders.py:  lorarun tokenize_folders.lua ROOT COUNT
-- ROOT/texts.json: { texts, max_length }; ROOT/0, ROOT/1, ...: the folders. ROOT/ids.json: for each folder the ids of each text,
-- whole and cut, or the message with which lorarun refuses the folder.
local json = require "lorarun.base.json"
local fs = require "lorarun.base.fs"
local load_tokenizer = require("lorarun.formats.tokenizer").load_tokenizer

local root = arg[1]
local given, all = json.decode_file(fs.join(root, "texts.json")), json.array {}
for i = 0, tonumber(arg[2]) - 1 do
  local ok, tok = pcall(load_tokenizer, fs.join(root, tostring(i)))
  if ok then
    local ids = json.array {}
    for _, text in ipairs(given.texts) do ids[#ids + 1] = json.array(tok:encode(text)) end
    for _, text in ipairs(given.texts) do ids[#ids + 1] = json.array(tok:encode(text, { max_length = given.max_length })) end
    all[i + 1] = ids
    tok:free()
  else
    all[i + 1] = tostring(tok)
  end
end
fs.write(fs.join(root, "ids.json"), json.encode(all))
