-- device_traits.lua: the kinds of devices, and what each does its own way where the choice falls in Lua. Whoever must choose asks
-- here by trait and names no kind: a new backend is a row more.
--
--   traits.DEVICES       device -> its number in C: "cpu", "cuda", "meta"
--   traits.of(device)    the traits of a tensor's device; of "meta", those of the kind that it stands for
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
--   out_of_memory         texts by which a message of C is known to be about its memory
local C = require "lorarun.base.c"

local KINDS = {
  cpu = { number = C.LR_CPU, word = "CPU" },
  cuda = { number = C.LR_CUDA, word = "GPU", residual_in_product = true, plain_weights = true, fp16 = true, own_memory = true,
    asynchronous = true, out_of_memory = { "cuda memory", "out of memory in CUDA", "out of memory in cuBLASLt" } },
}

local traits = { KINDS = KINDS, DEVICES = { meta = C.LR_META } }
local by_number = {}
for name, kind in pairs(KINDS) do
  traits.DEVICES[name] = kind.number
  by_number[tonumber(kind.number)] = kind
end

function traits.of(device) return by_number[C.lr_device_like(traits.DEVICES[device])] end

return traits
