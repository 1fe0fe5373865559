-- device_traits.lua: the kinds of devices, and what each does its own way where Lua must choose. Other modules ask here for a
-- trait and name no kind. The drivers tell all this (lr_device_traits in lr.h), so a new backend needs nothing here.
--
--   traits.DEVICES           device -> its number in C: "cpu", "cuda", "meta"
--   traits.KINDS             device -> its traits; "meta" has none of its own
--   traits.itself(device)    the traits of a device, none of "meta"
--   traits.of(device)        the traits of a tensor's device; of "meta", those of the kind that it stands for
--
-- Traits:
--   word                  what messages call one: "CPU", "GPU"
--   residual_in_product   a linear layer adds the residual stream in its product, which costs nothing there and rounds once
--                         (GPUs: GEMM's beta). Else the norm after it does, which on the CPU was measured to be faster.
--   plain_weights         frozen weights are multiplied as plain matrices, so adapters may lie beside them (lora_linear.lua). The
--                         CPU's are in a layout of oneDNN's.
--   fp16                  products in fp16 exist
--   own_memory            its memory is not the host's, and the driver says how much of it is free
--   asynchronous          ops are queued, and a first exchange of gradients is worth a rehearsal
local ffi = require "ffi"
local C = require "lorarun.base.c"

local traits = { KINDS = {}, DEVICES = {} }
local by_number, told = {}, ffi.new "lr_device_traits"
for number = 0, C.LR_DEVICE_COUNT - 1 do
  local name = ffi.string(C.lr_device_name(number))
  traits.DEVICES[name] = number
  if number ~= C.LR_META and C.lr_device_traits_of(number, told) == C.LR_OK then
    local kind = { word = ffi.string(told.noun) }
    for _, trait in ipairs { "residual_in_product", "plain_weights", "fp16", "own_memory", "asynchronous" } do
      kind[trait] = told[trait] ~= 0
    end
    traits.KINDS[name], by_number[number] = kind, kind
  end
end

function traits.itself(device) return traits.KINDS[device] or {} end

function traits.of(device) return by_number[C.lr_device_like(traits.DEVICES[device])] end

return traits
