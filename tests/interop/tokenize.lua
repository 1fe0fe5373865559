-- tokenize.lua: ids of many texts, for check_tokenizer.py:  lorarun tokenize.lua TOKENIZER TEXTS IDS [max_length]
-- TEXTS: each text as "size\n" and that many bytes. IDS: a line of ids for each, then a line without special tokens.
local tok = require("lorarun.formats.tokenizer").load_tokenizer(arg[1])
local input, output = assert(io.open(arg[2], "rb")), assert(io.open(arg[3], "wb"))
local max_length = tonumber(arg[4])
for size in function() return input:read "*l" end do
  size = tonumber(size)
  local text = size > 0 and assert(input:read(size)) or ""
  output:write(table.concat(tok:encode(text, { max_length = max_length }), " "), "\n")
  output:write(table.concat(tok:encode(text, { add_special_tokens = false }), " "), "\n")
end
output:close()
tok:free()
