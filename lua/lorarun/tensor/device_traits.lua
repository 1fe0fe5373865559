-- device_traits.lua: what a kind of device does its own way, where the choice falls in Lua. Models do not know it; nn.lua and
-- lora.lua ask.
--
--   residual_in_product   a linear layer adds the residual stream in its product, which costs nothing there and rounds once
--                         (GPUs: GEMM's beta). Else the norm behind it does: on the CPU that was measured to be faster.
--   lora_in_product       frozen weights are multiplied as plain matrices, so adapters may lie beside them (fused_lora.lua). The
--                         CPU's are in a layout of oneDNN's.
local C = require "lorarun.base.c"
local memory = require "lorarun.tensor.memory"

local WAYS = { [tonumber(C.LR_CPU)] = {}, [tonumber(C.LR_CUDA)] = { residual_in_product = true, lora_in_product = true } }

--- of(device): the ways of a tensor's device; of the meta device, those of the kind that it stands for.
return { of = function(device) return WAYS[C.lr_device_like(memory.DEVICES[device])] end }
