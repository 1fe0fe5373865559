-- Rewrites a .safetensors file with its float tensors in bf16:  lorarun tools/to_bf16.lua FILE
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local safetensors = require "lorarun.formats.safetensors"
local tensor = require "lorarun.tensor.tensor"

local path = arg[1] or check.fail "usage: lorarun tools/to_bf16.lua FILE"
local FLOAT = { f32 = true, f16 = true, bf16 = true }
local file, entries = safetensors.open(path), {}
for i, name in ipairs(file:names()) do
  local info = file:info(name)
  local dtype = FLOAT[info.dtype] and "bf16" or info.dtype or check.fail("%s: '%s' is %s", path, name, info.dtype_name)
  entries[i] = { name = name, dtype = dtype, shape = info.shape, tensor = function()
    local t = tensor.new(info.shape, dtype, name, "cpu")
    file:load(name, t)
    return t, function() t:free() end
  end }
end
local temporary = path .. ".bf16"
safetensors.write(temporary, entries, { format = "pt" })
file:close()
fs.rename(temporary, path)
