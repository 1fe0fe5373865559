-- tensor.lua: the tensor class: a handle of the C runtime with its shape, and who owns its bytes.
--
-- Lifetimes are explicit, because a garbage collector sees a 16-byte handle and not the megabytes that it holds:
--   - every tensor made inside lr.scope(fn) belongs to that scope and is freed when fn returns, but for what fn returns;
--   - the tape (autograd.lua) is such a scope, whose backward also frees what it has consumed;
--   - t:release() says "I need this no longer": freed now, or when the tape has used what it saved;
--   - __gc is only the net under a leak.
-- A freed tensor keeps its name and shape, and any use of it is an error that says so.
--
-- Invariant: t.saved counts the tape entries that still need t; t.released says that nobody else does.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local dtypes = require "lorarun.base.dtypes"
local memory = require "lorarun.tensor.memory"

local tensor = {}
local Tensor = {}
Tensor.__index = Tensor
tensor.Tensor = Tensor

local DEVICE = memory.DEVICES
local out = ffi.new "lr_tensor *[1]"
local dims = ffi.new("int64_t[?]", C.LR_MAX_DIMS)
local destroy = C.lr_tensor_destroy

tensor.default_device = "cpu"

-- recording: does a tape record (autograd.lua sets it)? Then t:view(), t:slice_rows() and t:slice_columns() of a tensor that needs
-- a gradient are ops (ops.lua sets them). Any other view names its tensor in `of`, because the tape knows nothing of it.
local recording, recorded = false, nil
function tensor.set_recording(on) recording = on end
function tensor.set_recorded_views(views) recorded = views end

-- ---- scopes --------------------------------------------------------------------------------------------------------------
local scope -- the innermost list of tensors, or nil: outside every scope the garbage collector frees

local function wrap(handle, shape, dtype, device, name)
  local t = setmetatable({ handle = ffi.gc(handle, destroy), shape = shape, dtype = dtype, device = device, name = name,
    saved = 0, released = false, needs_grad = false }, Tensor)
  if scope then scope[#scope + 1] = t end
  return t
end

local function keep(list, value, depth)
  if getmetatable(value) == Tensor then
    value.kept = true
    if list then list[#list + 1] = value end
  elseif type(value) == "table" and getmetatable(value) == nil and (depth or 0) < 4 then
    for _, v in pairs(value) do keep(list, v, (depth or 0) + 1) end
  end
end

-- Leave a scope: free its tensors, except those marked by keep(), which move to the scope around it.
local function leave(list, outer)
  for i = 1, #list do
    local t = list[i]
    if t.kept then t.kept = nil else t:free() end
  end
  scope = outer
end

local function finish(list, outer, ok, ...)
  if ok then
    for i = 1, select("#", ...) do keep(outer, (select(i, ...))) end
  end
  leave(list, outer)
  if not ok then error((...), 0) end
  return ...
end

--- scope(fn, ...): call fn and free every tensor made meanwhile, except those it returns (also inside plain tables).
function tensor.scope(fn, ...)
  if type(fn) ~= "function" then check.fail("lr.scope takes a function, got %s", fn == nil and "nothing" or "a " .. type(fn)) end
  local outer, list = scope, {}
  scope = list
  return finish(list, outer, pcall(fn, ...))
end

--- own(value): tensors made outside (also inside plain tables) are from now on the innermost scope's, and are freed with it.
function tensor.own(value)
  if getmetatable(value) == Tensor then
    scope[#scope + 1] = value
  elseif type(value) == "table" and getmetatable(value) == nil then
    for _, v in pairs(value) do tensor.own(v) end
  end
end

--- Push a scope by hand, for the tape; pop_scope(list, keep_fn) frees it.
function tensor.push_scope()
  local list = { outer = scope or false }
  scope = list
  return list
end

function tensor.pop_scope(list, ...)
  local outer = list.outer or nil
  for i = 1, select("#", ...) do keep(outer, (select(i, ...))) end
  leave(list, outer)
end

--- Run fn outside every scope: for tensors that live as long as what holds them (weights, optimizer state).
function tensor.persistent(fn, ...)
  local outer = scope
  scope = nil
  local function restore(ok, ...)
    scope = outer
    if not ok then error((...), 0) end
    return ...
  end
  return restore(pcall(fn, ...))
end

-- ---- making ----------------------------------------------------------------------------------------------------------------
local function set_dims(shape)
  if type(shape) ~= "table" then check.fail("a shape is %s, expected a list of sizes, such as { 2, 3 }", tostring(shape)) end
  local n = #shape
  if n < 1 or n > C.LR_MAX_DIMS then check.fail("a tensor has 1 to %d dimensions, not %d", C.LR_MAX_DIMS, n) end
  for i = 1, n do
    local size = shape[i]
    if type(size) ~= "number" or size % 1 ~= 0 then
      check.fail("size %d of a shape is %s, expected a whole number", i, tostring(size))
    end
    dims[i - 1] = size
  end
  return n
end

-- C data that holds `count` elements of a dtype, as far as it can be told: a pointer does not say how many.
local ELEMENT = { f32 = "float", bf16 = tostring(ffi.typeof "uint16_t"):match "<(.*)>", f16 = tostring(ffi.typeof "uint16_t"):match
  "<(.*)>", i32 = tostring(ffi.typeof "int32_t"):match "<(.*)>", i64 = tostring(ffi.typeof "int64_t"):match "<(.*)>" }

local function check_data(values, t, count)
  if type(values) ~= "cdata" then
    check.fail("'%s' takes C data of %d %s, got %s", t.name, count, t.dtype, values == nil and "nothing" or "a " .. type(values))
  end
  local kind = tostring(ffi.typeof(values)):match "^ctype<(.*)>$"
  local element, array = kind:gsub("^const ", ""):match "^(.-) ([%[%*(])"
  if element ~= ELEMENT[t.dtype] then check.fail("'%s' is %s, and was given C data that is '%s'", t.name, t.dtype, kind) end
  if array ~= "*" and ffi.sizeof(values) < count * dtypes.bytes[t.dtype] then
    check.fail("'%s' has %d elements, and was given C data of %d", t.name, count, ffi.sizeof(values) / dtypes.bytes[t.dtype])
  end
end

--- new(shape, dtype, name, device): contents undefined. shape: array of 1 to 4 sizes; dtype: "f32" (default), "bf16", "f16",
--- "i32", "i64"; name: what it is, for errors and the memory table.
function tensor.new(shape, dtype, name, device)
  dtype = dtype or "f32"
  device = device or tensor.default_device
  local code = dtypes.number[dtype] or check.fail("there is no dtype '%s'; there are f32, bf16, f16, i32, i64", tostring(dtype))
  local where = DEVICE[device] or memory.number_of(device)
  check.call(C.lr_tensor_new, out, code, set_dims(shape), dims, where, name)
  return wrap(out[0], shape, dtype, device, name or "tensor")
end

--- A tensor of the same shape, dtype and device as t.
function tensor.like(t, name)
  return tensor.new(t.shape, t.dtype, name or t.name, t.device)
end

function tensor.full(shape, value, dtype, name, device)
  local t = tensor.new(shape, dtype, name, device)
  check(C.lr_tensor_fill(t.handle, value))
  return t
end

function tensor.zeros(shape, dtype, name, device)
  return tensor.full(shape, 0, dtype, name, device)
end

--- from(values, shape, dtype): values is a Lua array, nested arrays, or C data (a pointer or array of the dtype's elements).
function tensor.from(values, shape, dtype, name, device)
  dtype = dtype or "f32"
  if type(values) == "table" and type(values[1]) == "table" then
    local rows, width, flat = #values, #values[1], {}
    for i = 1, rows do
      if #values[i] ~= width then check.fail("row %d has %d values, row 1 has %d", i, #values[i], width) end
      for j = 1, width do flat[#flat + 1] = values[i][j] end
    end
    values, shape = flat, shape or { rows, width }
  end
  if type(values) ~= "table" and type(values) ~= "cdata" then
    check.fail("a tensor is made of a list of numbers, of lists of them, or of C data, not of %s", values == nil and "nothing"
      or "a " .. type(values))
  end
  shape = shape or type(values) == "table" and { #values } or check.fail "a tensor made of C data needs a shape"
  local t = tensor.new(shape, dtype, name, device)
  local n = t:elements()
  if type(values) == "table" then
    if #values ~= n then check.fail("%d values for a tensor of %d elements", #values, n) end
    local whole = dtype == "i32" or dtype == "i64"
    for i = 1, n do
      local v = values[i]
      if type(v) ~= "number" or whole and v % 1 ~= 0 then
        check.fail("value %d is %s, expected a %s for a tensor of %s", i, tostring(v), whole and "whole number" or "number", dtype)
      end
    end
    if dtype == "bf16" or dtype == "f16" then
      local f = tensor.from(values, shape, "f32", name, device)
      check(C.lr_op_cast(t:matrix().handle, f:matrix().handle))
      f:free()
      return t
    end
    values = ffi.new(dtypes.element[dtype] .. "[?]", n, values)
  elseif device ~= "meta" then
    check_data(values, t, n)
  end
  check(C.lr_tensor_write(t.handle, 0, n, values))
  return t
end

--- Adopt a handle that C made (lr_tensor_pack and the like).
function tensor.adopt(handle, name)
  local info = ffi.new "lr_tensor_info"
  check(C.lr_tensor_describe(handle, info))
  local shape = {}
  for i = 1, info.ndim do shape[i] = tonumber(info.shape[i - 1]) end
  local device
  for kind, number in pairs(DEVICE) do
    if number == info.device then device = kind end
  end
  return wrap(handle, shape, dtypes.name[info.dtype], device, name or ffi.string(C.lr_tensor_name(handle)))
end

--- pack(w, direction): the frozen weight w[N,K] for op linear (1) or linear_backward (2), in the layout that its device likes. On
--- a GPU that is w's own, and so are the bytes.
function tensor.pack(w, direction)
  check.call(C.lr_tensor_pack, out, w.handle, direction, dtypes.number[w.dtype])
  return tensor.adopt(out[0])
end

-- ---- views -----------------------------------------------------------------------------------------------------------------
local function view(t, offset, shape, ld)
  check.call(C.lr_tensor_view, out, t.handle, offset, set_dims(shape), dims, ld or 0)
  local v = wrap(out[0], shape, t.dtype, t.device, t.name)
  v.ld = ld
  if recording then v.of = (t.needs_grad or t.grad) and t or t.of end
  return v
end

--- The views below without their gradient: for ops that record one themselves, and for bytes alone.
function tensor.raw_view(t, shape, offset) return view(t, offset or 0, shape) end

function tensor.raw_rows(t, from, to)
  local width = t:elements() / t.shape[1]
  return view(t, from * width, { to - from, unpack(t.shape, 2) })
end

function tensor.raw_columns(t, from, to) return view(t, from, { t.shape[1], to - from }, t.ld or t.shape[2]) end

-- A tape records, and t needs a gradient.
local function in_loss(t) return recording and (t.needs_grad or t.grad) end

--- The same bytes from element `offset` on, with another shape (contiguous).
function Tensor:view(shape, offset)
  if in_loss(self) then return recorded.view(self, shape, offset) end
  return view(self, offset or 0, shape)
end

--- Rows from..to-1 (from 0) of a contiguous tensor of any rank.
function Tensor:slice_rows(from, to)
  return (in_loss(self) and recorded.rows or tensor.raw_rows)(self, from, to)
end

--- Columns from..to-1 (from 0) of a matrix: rows keep their stride.
function Tensor:slice_columns(from, to)
  return (in_loss(self) and recorded.columns or tensor.raw_columns)(self, from, to)
end

--- column_views(): two functions: columns(t, from, to) gives the handle of a view, the other frees all of these views. A view that
--- is not freed keeps its bytes until its scope ends.
function tensor.column_views()
  local list = {}
  return function(t, from, to)
    local v = tensor.raw_columns(t, from, to)
    list[#list + 1] = v
    return v.handle
  end, function()
    for i = 1, #list do list[i]:free() end
  end
end

--- As a matrix: a vector becomes one row, higher ranks keep their last dimension.
function Tensor:matrix()
  local n = #self.shape
  if n == 2 then return self end
  local width = self.shape[n]
  return view(self, 0, { self:elements() / width, width })
end

-- ---- lifetime --------------------------------------------------------------------------------------------------------------
function Tensor:free()
  C.lr_tensor_free(self.handle)
end

--- This tensor's owner needs it no longer. Its bytes go now, or when the tape has used what it saved of it.
function Tensor:release()
  if self.saved == 0 then self:free() else self.released = true end
end

-- ---- reading ---------------------------------------------------------------------------------------------------------------
function Tensor:elements()
  local n = 1
  for i = 1, #self.shape do n = n * self.shape[i] end
  return n
end

--- All values as C data of the tensor's dtype (16-bit floats as float), in row order.
function Tensor:data()
  local t = self
  check(C.lr_tensor_read(t.handle, 0, 0, nil)) -- freed, packed and meta tensors have no values: say so before allocating
  if t.dtype == "bf16" or t.dtype == "f16" then
    t = tensor.new(self.shape, "f32", self.name, self.device)
    check(C.lr_op_cast(t:matrix().handle, self:matrix().handle))
  end
  local n = t:elements()
  local buffer = ffi.new(dtypes.element[t.dtype] .. "[?]", n)
  check(C.lr_tensor_read(t.handle, 0, n, buffer))
  if t ~= self then t:free() end
  return buffer, n
end

--- The one value of a tensor of one element.
function Tensor:item()
  if self:elements() ~= 1 then check.fail("item(): '%s' has %d elements", self.name, self:elements()) end
  return tonumber(self:data()[0])
end

--- Nested Lua arrays.
function Tensor:to_table()
  local data, n = self:data()
  local function level(dim, offset, count)
    local t, inner = {}, count / self.shape[dim]
    for i = 1, self.shape[dim] do
      if dim == #self.shape then t[i] = tonumber(data[offset + i - 1])
      else t[i] = level(dim + 1, offset + (i - 1) * inner, inner) end
    end
    return t
  end
  return level(1, 0, n)
end

-- Backward would read other values than those that the loss was computed from.
local function refuse_if_recorded(t, what)
  if t.saved > 0 or recording and t.needs_grad then
    check.fail("%s: '%s' is part of a loss whose gradients are yet to be computed; write into another tensor", what, t.name)
  end
end

--- Overwrite all values from C data of the tensor's dtype.
function Tensor:write(values)
  refuse_if_recorded(self, "write()")
  if self.device ~= "meta" then check_data(values, self, self:elements()) end
  check(C.lr_tensor_write(self.handle, 0, self:elements(), values))
  return self
end

function Tensor:fill(value)
  refuse_if_recorded(self, "fill()")
  check(C.lr_tensor_fill(self.handle, value))
  return self
end

require("lorarun.base.guard").methods(Tensor, "tensor")

local EDGE = 3 -- values shown at each end of a row, rows at each end of a matrix

local function format_row(data, offset, width)
  local parts = {}
  for i = 0, width - 1 do
    if width > 2 * EDGE and i == EDGE then parts[#parts + 1] = "..." end
    if width <= 2 * EDGE or i < EDGE or i >= width - EDGE then
      parts[#parts + 1] = ("%.6g"):format(tonumber(data[offset + i]))
    end
  end
  return "[" .. table.concat(parts, ", ") .. "]"
end

function Tensor:__tostring()
  local head = ("tensor [%s] %s on %s"):format(table.concat(self.shape, ", "), self.dtype, self.device)
  local info = ffi.new "lr_tensor_info"
  C.lr_tensor_describe(self.handle, info)
  if info.freed ~= 0 then return head .. " (freed)" end
  if info.packed ~= 0 then return head .. " (packed)" end
  if self.device == "meta" then return head end
  local data, n = self:data()
  local width = self.shape[#self.shape]
  local rows, lines = n / width, {}
  for r = 0, rows - 1 do
    if rows > 2 * EDGE and r == EDGE then lines[#lines + 1] = "  ..." end
    if rows <= 2 * EDGE or r < EDGE or r >= rows - EDGE then lines[#lines + 1] = "  " .. format_row(data, r * width, width) end
  end
  return head .. "\n" .. table.concat(lines, "\n")
end

return tensor
