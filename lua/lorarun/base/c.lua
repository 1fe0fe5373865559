-- c.lua: the C API. The declarations are runtime/lr.h itself; the ABI number proves that text and program belong together.
local ffi = require "ffi"
ffi.cdef(require "lorarun.cdef")
local C = ffi.C
if C.lr_abi_version() ~= C.LR_ABI_VERSION then
  error(("lorarun's Lua modules (ABI %d) do not belong to this program (ABI %d)"):format(C.LR_ABI_VERSION, C.lr_abi_version()))
end
return C
