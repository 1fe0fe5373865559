-- safetensors.lua: reads and writes the weights of a model, whether they are in one file or in shards. A tensor here is an
-- lr_tensor handle, or an object with one in its field `handle` (tensor/tensor.lua).
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local ffi = require "ffi"
local dtypes = require "lorarun.base.dtypes"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local sorted = require "lorarun.base.sorted"
local using = require "lorarun.base.using"

local safetensors = {}
local Weights = {}
Weights.__index = Weights

local function handle_of(t, what)
  local handle = type(t) == "table" and t.handle or t
  if not ffi.istype("lr_tensor *", handle) and not ffi.istype("const lr_tensor *", handle) then
    check.fail("%s: expected a tensor, got a %s", what, type(t))
  end
  return handle
end

-- ---- reading -----------------------------------------------------------------------------------------------------------
local function open_file(path)
  if type(path) ~= "string" then check.fail("safetensors: a path must be a string, got %s", type(path)) end
  local out = ffi.new "lr_safetensors *[1]"
  check.call(C.lr_safetensors_open, out, path)
  return ffi.gc(out[0], C.lr_safetensors_close)
end

local function close_file(file) C.lr_safetensors_close(ffi.gc(file, nil)) end

-- Names in the order of their data.
local function names_of(file)
  local names, entry = {}, ffi.new "lr_safetensors_entry"
  for i = 0, tonumber(C.lr_safetensors_count(file)) - 1 do
    check(C.lr_safetensors_get(file, i, entry))
    names[#names + 1] = ffi.string(entry.name)
  end
  return names
end

-- The weight_map of an index file, checked: { [tensor] = file name }.
local function read_index(path)
  local index = json.decode_file(path, "python")
  local map = type(index) == "table" and index.weight_map
  if not json.is_object(map) or next(map) == nil then
    check.fail("%s: it has no weight_map that says which file holds which tensor", path)
  end
  for name, shard in sorted(map) do
    if type(shard) ~= "string" or shard:find("[/%z]") or not shard:find("%.safetensors$") then
      check.fail("%s: the file of tensor '%s' is no name of a .safetensors file in the same folder", path, name)
    end
  end
  return map
end

local function open_shards(dir, index_path)
  local map = read_index(index_path)
  local self = setmetatable({ path = index_path, order = {}, place = {}, files = {} }, Weights)
  local shards, file_of = {}, {}
  for _, shard in pairs(map) do shards[shard] = true end
  local missing = {}
  for _, shard in ipairs(sorted.keys(shards)) do
    if not fs.is_file(fs.join(dir, shard)) then missing[#missing + 1] = shard end
  end
  if #missing > 0 then
    check.fail("%s: %d of its files are missing: %s; download them again", index_path, #missing,
      table.concat(missing, ", "))
  end
  return using.made(self, self.close, function()
    for _, shard in ipairs(sorted.keys(shards)) do
      local file = open_file(fs.join(dir, shard))
      self.files[#self.files + 1], file_of[shard] = file, file
      for _, name in ipairs(names_of(file)) do
        if map[name] == shard then self.order[#self.order + 1] = name end
      end
    end
    for _, name in ipairs(sorted.keys(map)) do
      local file = file_of[map[name]]
      local at = tonumber(C.lr_safetensors_find(file, name))
      if at < 0 then check.fail("%s: tensor '%s' should be in %s and is not", index_path, name, map[name]) end
      self.place[name] = { file = file, at = at }
    end
  end)
end

local function open_single(path)
  local file = open_file(path)
  local self = setmetatable({ path = path, order = names_of(file), place = {}, files = { file } }, Weights)
  for i, name in ipairs(self.order) do self.place[name] = { file = file, at = i - 1 } end
  return self
end

-- The command converts the weights alone, in place; all other files of the folder stay.
local CONVERT = [[python3 -c "import glob, torch, safetensors.torch as s; d = '%s'; w = {}; ]]
  .. [[[w.update(torch.load(f, map_location='cpu', weights_only=True)) for f in sorted(glob.glob(d + '/%s*.bin'))]; ]]
  .. [[s.save_file({k: v.clone().contiguous() for k, v in w.items()}, d + '/%s.safetensors', metadata={'format': 'pt'})"]]

--- open_folder(dir, base): the weights in a model folder: base.safetensors, or the shards that base.safetensors.index.json
--- names. base: default "model".
function safetensors.open_folder(dir, base)
  base = base or "model"
  if not fs.is_directory(dir) then check.fail("%s is not a folder", dir) end
  local single = fs.join(dir, base .. ".safetensors")
  local index = single .. ".index.json"
  if fs.is_file(single) then return open_single(single) end
  if fs.is_file(index) then return open_shards(dir, index) end
  for _, name in ipairs(fs.list(dir)) do
    local stem = name:match("^(pytorch_model).*%.bin$") or name:match("^(adapter_model)%.bin$")
    if stem then
      check.fail("%s has only %s, a Python pickle, which can run any code when it is read. Convert it once: %s", dir, name,
        CONVERT:format(dir, stem, stem == "adapter_model" and stem or base))
    end
  end
  check.fail("%s has neither %s.safetensors nor %s.safetensors.index.json", dir, base, base)
end

--- open(path): one .safetensors file, an .index.json, or a folder.
function safetensors.open(path)
  if fs.is_directory(path) then return safetensors.open_folder(path) end
  if path:find("%.index%.json$") then return open_shards(fs.dirname(path), path) end
  return open_single(path)
end

function Weights:find(name)
  if not self.files then check.fail("%s: tensor '%s' is asked for after close()", self.path, tostring(name)) end
  return self.place[name]
    or check.fail("%s: there is no tensor '%s' among its %d", self.path, tostring(name), #self.order)
end

--- names(): of all tensors, in the order of their data.
function Weights:names()
  local names = {}
  for i, name in ipairs(self.order) do names[i] = name end
  return names
end

--- has(name): is it there?
function Weights:has(name) return self.place[name] ~= nil end

--- info(name): { dtype = "f32" (nil where lorarun has no such dtype), dtype_name = "F32", shape = { ... }, bytes }.
function Weights:info(name)
  local place = self:find(name)
  local entry = ffi.new "lr_safetensors_entry"
  check(C.lr_safetensors_get(place.file, place.at, entry))
  local shape = {}
  for i = 1, entry.ndim do shape[i] = tonumber(entry.shape[i - 1]) end
  return { dtype = dtypes.name[entry.dtype], dtype_name = ffi.string(entry.dtype_name), shape = shape,
    bytes = tonumber(entry.bytes) }
end

--- load(name, t): the values into t, which has as many elements; f32, f16 and bf16 are converted. On the meta device only
--- the checks are made.
function Weights:load(name, t)
  local place = self:find(name)
  check.call(C.lr_safetensors_load, place.file, place.at, handle_of(t, name))
end

--- metadata(key): the text the file (with shards: the first that has it) says under key, or nil.
function Weights:metadata(key)
  for _, file in ipairs(self.files or check.fail("%s: metadata after close()", self.path)) do
    local value = C.lr_safetensors_metadata(file, key)
    if value ~= nil then return ffi.string(value) end
  end
end

--- close(): gives the files back; calling it twice does no harm.
function Weights:close()
  for _, file in ipairs(self.files or {}) do close_file(file) end
  self.files, self.place, self.order = nil, {}, {}
end

-- ---- writing -----------------------------------------------------------------------------------------------------------
-- The order of the reference implementation, so that the same tensors give the same bytes: wide dtypes first, then names.
local RANK = { [C.LR_I64] = 1, [C.LR_F32] = 2, [C.LR_I32] = 3, [C.LR_BF16] = 4, [C.LR_F16] = 5 }

-- Entries with what is needed of each, checked: { name, dtype = code, shape, bytes, tensor }, sorted.
local function checked_entries(path, entries)
  local list, seen = {}, {}
  for i, e in ipairs(entries) do
    local what = ("%s: entry %d ('%s')"):format(path, i, tostring(e.name))
    local dtype = dtypes.number[e.dtype]
    if type(e.name) ~= "string" or e.name:find("%z") then check.fail("%s: its name is no string without NUL", what) end
    if seen[e.name] then check.fail("%s: the name occurs twice", what) end
    if not dtype then check.fail("%s: there is no dtype '%s'", what, tostring(e.dtype)) end
    if type(e.shape) ~= "table" then check.fail("%s: its shape is missing", what) end
    if e.tensor == nil then check.fail("%s: its tensor is missing", what) end
    local bytes = dtypes.bytes[e.dtype]
    for k, n in ipairs(e.shape) do
      if type(n) ~= "number" or n < 1 or n ~= math.floor(n) then
        check.fail("%s: dimension %d of its shape is %s", what, k, tostring(n))
      end
      bytes = bytes * n
    end
    seen[e.name] = true
    list[i] = { name = e.name, dtype = dtype, shape = e.shape, bytes = bytes, tensor = e.tensor }
  end
  table.sort(list, function(a, b)
    if a.dtype ~= b.dtype then return RANK[a.dtype] < RANK[b.dtype] end
    return a.name < b.name
  end)
  return list
end

local function write_entry(writer, e)
  local t, release = e.tensor, nil
  if type(t) == "function" then t, release = t() end
  local function done()
    if release then release() end
  end
  using(t, done, function() check.call(C.lr_safetensors_write, writer, e.name, handle_of(t, e.name)) end)
end

local function write_file(path, list, metadata)
  local out = ffi.new "lr_safetensors_writer *[1]"
  check.call(C.lr_safetensors_create, out, path, metadata and json.encode(metadata) or nil)
  local function free(writer) C.lr_safetensors_writer_free(ffi.gc(writer, nil)) end
  using(ffi.gc(out[0], C.lr_safetensors_writer_free), free, function(writer)
    for _, e in ipairs(list) do
      local shape = ffi.new("int64_t[?]", #e.shape, e.shape)
      check.call(C.lr_safetensors_declare, writer, e.name, e.dtype, #e.shape, shape)
    end
    for _, e in ipairs(list) do write_entry(writer, e) end
    check.call(C.lr_safetensors_finish, writer)
  end)
end

--- write(path, entries, metadata): one file, atomically.
---   entries: { { name =, dtype = "f32", shape = { ... }, tensor = }, ... }. tensor may be a function, which is called just before
---   the tensor is written: it returns the tensor and, optionally, a function to call after that. Values are converted to dtype.
---   metadata: { key = "text" }, e.g. { format = "pt" }.
function safetensors.write(path, entries, metadata)
  if type(path) ~= "string" then check.fail("safetensors.write: the path is a %s", type(path)) end
  write_file(path, checked_entries(path, entries), metadata)
end

-- Fill shards in the order given, as Hugging Face does; a tensor larger than a shard has one of its own.
local function split(list, max_bytes)
  local shards, size = {}, 0
  for _, e in ipairs(list) do
    if #shards == 0 or size + e.bytes > max_bytes then
      shards[#shards + 1], size = {}, 0
    end
    table.insert(shards[#shards], e)
    size = size + e.bytes
  end
  return shards
end

-- Remove files of an earlier write under the same base: they would be read in place of the new ones, or as well.
local function remove_stale(dir, base, written)
  local keep = {}
  for _, name in ipairs(written) do keep[name] = true end
  for _, name in ipairs(fs.list(dir)) do
    local rest = name:sub(1, #base) == base and name:sub(#base + 1)
    local ours = rest and (rest == ".safetensors" or rest == ".safetensors.index.json"
      or rest:find("^%-%d%d%d%d%d%-of%-%d%d%d%d%d%.safetensors$"))
    if ours and not keep[name] then fs.remove(fs.join(dir, name)) end
  end
end

-- All shards and their index in a folder; their names go to `written`, the index last.
local function write_shards(dir, base, shards, metadata, written)
  local weight_map, total = {}, 0
  for i, shard in ipairs(shards) do
    local name = ("%s-%05d-of-%05d.safetensors"):format(base, i, #shards)
    write_file(fs.join(dir, name), shard, metadata)
    written[i] = name
    for _, e in ipairs(shard) do
      weight_map[e.name] = name
      total = total + e.bytes
    end
  end
  local name = base .. ".safetensors.index.json"
  fs.write(fs.join(dir, name), json.encode({ metadata = { total_size = total }, weight_map = weight_map }, { indent = 2 }) .. "\n")
  written[#written + 1] = name
end

--- write_sharded(dir, base, entries, max_bytes, metadata): base.safetensors where all fits into max_bytes (default 5e9), else
--- base-00001-of-00003.safetensors and so on with base.safetensors.index.json, as Hugging Face names them. Files of an earlier
--- write under the same base are removed at the end. metadata: default { format = "pt" }. Returns the names of the files.
function safetensors.write_sharded(dir, base, entries, max_bytes, metadata)
  local where = fs.join(dir, base .. ".safetensors")
  local shards = split(checked_entries(where, entries), max_bytes or 5e9)
  if #shards == 0 then check.fail("%s: there is no tensor to write", where) end
  metadata = metadata or { format = "pt" }
  local written
  if #shards == 1 then
    written = { base .. ".safetensors" }
    write_file(where, shards[1], metadata)
  else
    written = {}
    -- Shards of two models in one folder would be read as one model, so all are renamed into place after the last is written.
    local partial = fs.join(dir, ".partial-" .. base)
    if fs.exists(partial) then fs.remove(partial) end
    fs.make(partial)
    using.made(partial, fs.remove, function() write_shards(partial, base, shards, metadata, written) end) -- a full disk, say
    for _, name in ipairs(written) do fs.rename(fs.join(partial, name), fs.join(dir, name)) end
    fs.remove(partial)
  end
  remove_stale(dir, base, written)
  return written
end

return safetensors
