-- dtypes.lua: the element types of tensors: their names in Lua, their numbers in C, their sizes.
local C = require "lorarun.base.c"

local dtypes = {
  number = { f32 = C.LR_F32, bf16 = C.LR_BF16, f16 = C.LR_F16, i32 = C.LR_I32, i64 = C.LR_I64 }, -- an lr_dtype, by name
  name = {}, -- by number
  bytes = { f32 = 4, bf16 = 2, f16 = 2, i32 = 4, i64 = 8 }, -- of an element
  element = { f32 = "float", bf16 = "uint16_t", f16 = "uint16_t", i32 = "int32_t", i64 = "int64_t" }, -- as C declares one
  of_precision = { fp32 = "f32", bf16 = "bf16", fp16 = "f16" }, -- that weights and activations of a model have
}
for name, number in pairs(dtypes.number) do dtypes.name[tonumber(number)] = name end

return dtypes
