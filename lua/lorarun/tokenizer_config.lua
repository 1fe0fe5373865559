-- tokenizer_config.lua: a folder's tokenizer_config.json, which transformers reads beside tokenizer.json.
local check = require "lorarun.check"
local fs = require "lorarun.fs"
local json = require "lorarun.json"

local config = {}

--- read(folder): nil where the folder has no tokenizer_config.json, else
---   path              the file
---   values            its keys and values (json.null for null)
---   model_max_length  the longest text in tokens, as the file has it (a number, or what else stands there), nil where it says
---                     nothing. Files of models without a limit say 1e30.
function config.read(folder)
  local path = fs.join(folder, "tokenizer_config.json")
  if not fs.is_file(path) then return nil end
  local values = json.decode_file(path)
  if type(values) ~= "table" or json.is_array(values) then check.fail("%s: its top is not an object", path) end
  local length = values.model_max_length
  if length == nil then length = values.max_len end -- its name in transformers' first releases
  if length == json.null then length = nil end
  return { path = path, values = values, model_max_length = length }
end

return config
