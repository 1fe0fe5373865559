-- test_safetensors.lua: lorarun.formats.safetensors: model folders, shards, their index, writing.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local safetensors = require "lorarun.formats.safetensors"
local folder = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua").with_folder

local function new(dtype, n, device)
  local out = ffi.new "lr_tensor *[1]"
  check.equal(C.lr_tensor_new(out, dtype, 1, ffi.new("int64_t[1]", n), device or C.LR_CPU, "t"), 0)
  return ffi.gc(out[0], C.lr_tensor_destroy)
end

local function f32(...)
  local n = select("#", ...)
  local t = new(C.LR_F32, n)
  check.equal(C.lr_tensor_write(t, 0, n, ffi.new("float[?]", n, ...)), 0)
  return t
end

local function values(weights, name, n)
  local t, out = new(C.LR_F32, n), ffi.new("float[?]", n)
  weights:load(name, { handle = t })
  C.lr_tensor_read(t, 0, n, out)
  local list = {}
  for i = 1, n do list[i] = out[i - 1] end
  return list
end

local function entries()
  return {
    { name = "b", dtype = "bf16", shape = { 2, 2 }, tensor = f32(1, 2, 3, 4) },
    { name = "c", dtype = "f32", shape = { 3 }, tensor = { handle = f32(5, 6, 7) } },
    { name = "a", dtype = "f32", shape = {}, tensor = function() return f32(8) end },
  }
end

test("one file", function()
  folder(function(dir)
    safetensors.write(fs.join(dir, "model.safetensors"), entries(), { format = "pt", base = "é" })
    for _, path in ipairs { dir, fs.join(dir, "model.safetensors") } do
      local w = safetensors.open(path)
      check.equal(table.concat(w:names(), " "), "a c b") -- wide dtypes first, then names
      check.equal(w.path, fs.join(dir, "model.safetensors"))
      check.that(w:has "a" and not w:has "x")
      local info = w:info "b"
      check.equal(info.dtype .. info.dtype_name .. table.concat(info.shape, "x") .. info.bytes, "bf16BF162x28")
      check.equal(#w:info("a").shape, 0)
      check.array(values(w, "b", 4), { 1, 2, 3, 4 })
      check.array(values(w, "a", 1), { 8 })
      check.equal(w:metadata "base", "é")
      check.equal(w:metadata "none", nil)
      w:load("c", new(C.LR_BF16, 3, C.LR_META))
      check.raises("there is no tensor 'x' among its 3", w.info, w, "x")
      check.raises("tensor 'c' has 3 elements, but 't' [4] has 4", w.load, w, "c", new(C.LR_F32, 4))
      check.raises("c: expected a tensor, got a string", w.load, w, "c", "t")
      w:close()
      w:close()
      check.raises("after close()", w.load, w, "c", new(C.LR_F32, 3))
      check.raises("after close()", w.metadata, w, "format")
      check.that(not w:has "a")
    end
  end)
end)

test("shards as Hugging Face names them", function()
  folder(function(dir)
    -- a: 4 bytes, c: 12, b: 8
    local written = safetensors.write_sharded(dir, "model", entries(), 16)
    check.equal(table.concat(written, " "), "model-00001-of-00002.safetensors model-00002-of-00002.safetensors "
      .. "model.safetensors.index.json")
    check.equal(fs.read(fs.join(dir, "model.safetensors.index.json")), [[
{
  "metadata": {
    "total_size": 24
  },
  "weight_map": {
    "a": "model-00001-of-00002.safetensors",
    "b": "model-00002-of-00002.safetensors",
    "c": "model-00001-of-00002.safetensors"
  }
}
]])
    local w = safetensors.open_folder(dir)
    check.equal(table.concat(w:names(), " "), "a c b")
    check.array(values(w, "b", 4), { 1, 2, 3, 4 })
    check.array(values(w, "c", 3), { 5, 6, 7 })
    check.equal(w:metadata "format", "pt")
    w:close()
    -- A tensor larger than a shard gets a shard of its own; the earlier shards are removed.
    written = safetensors.write_sharded(dir, "model", entries(), 3)
    check.equal(#written, 4)
    check.equal(table.concat(fs.list(dir), " "), table.concat(written, " "))
    -- If all tensors fit in one shard, there is one file; index and shards are removed; files with another base name stay.
    safetensors.write_sharded(dir, "model2", entries())
    check.equal(table.concat(safetensors.write_sharded(dir, "model", entries()), " "), "model.safetensors")
    check.equal(table.concat(fs.list(dir), " "), "model.safetensors model2.safetensors")
    safetensors.write_sharded(dir, "model", entries(), 16)
    check.that(not fs.exists(fs.join(dir, "model.safetensors")))
    w = safetensors.open(fs.join(dir, "model.safetensors.index.json"))
    check.equal(#w:names(), 3)
    w:close()
    check.raises("there is no tensor to write", safetensors.write_sharded, dir, "none", {})
  end)
end)

test("if not all shards can be written, those of an earlier write stay as they were", function()
  folder(function(dir)
    safetensors.write_sharded(dir, "model", entries(), 16)
    local before = {}
    for _, name in ipairs(fs.list(dir)) do before[name] = fs.read(fs.join(dir, name)) end
    local others = entries()
    for i, e in ipairs(others) do
      local t = e.tensor
      e.tensor = e.name == "b" and function() error("the disk is full", 0) end or t
      others[i] = e
    end
    check.raises("the disk is full", safetensors.write_sharded, dir, "model", others, 16, { format = "other" })
    local names = fs.list(dir)
    check.equal(#names, 3, "files: " .. table.concat(names, " ") .. ";")
    for _, name in ipairs(names) do check.that(fs.read(fs.join(dir, name)) == before[name], name .. " changed") end
  end)
end)

test("an index that does not match the files", function()
  folder(function(dir)
    safetensors.write_sharded(dir, "model", entries(), 16)
    local path = fs.join(dir, "model.safetensors.index.json")
    local first = "model-00001-of-00002.safetensors"
    local function index(map)
      fs.write(path, type(map) == "string" and map or json.encode { weight_map = map })
    end
    index { a = first, x = first }
    check.raises(path .. ": tensor 'x' should be in " .. first .. " and is not", safetensors.open, dir)
    index { b = first }
    check.raises("tensor 'b' should be in", safetensors.open, dir)
    index { a = "model-00009-of-00009.safetensors", b = "model-00008-of-00009.safetensors" }
    check.raises("2 of its files are missing: model-00008-of-00009.safetensors, model-00009", safetensors.open, dir)
    for _, name in ipairs { "../x.safetensors", "/etc/x.safetensors", "x.bin", 7 } do
      index { a = name }
      check.raises("the file of tensor 'a' is no name of a .safetensors file", safetensors.open, dir)
    end
    for _, text in ipairs { "{}", "[]", "null", '{"weight_map": []}', '{"weight_map": null}', '{"weight_map": {}}' } do
      index(text)
      check.raises("it has no weight_map", safetensors.open, dir)
    end
    index "{"
    check.raises(path .. ":1:2: not valid JSON", safetensors.open, dir)
    index { a = first } -- a tensor that the index does not list does not exist
    local w = safetensors.open(dir)
    check.equal(table.concat(w:names(), " "), "a")
    w:close()
    fs.write(fs.join(dir, first), "not a tensor file")
    check.raises(first, safetensors.open, dir)
  end)
end)

test("folders without safetensors", function()
  folder(function(dir)
    check.raises("has neither model.safetensors nor model.safetensors.index.json", safetensors.open, dir)
    check.raises("has neither adapter_model.safetensors", safetensors.open_folder, dir, "adapter_model")
    fs.write(fs.join(dir, "pytorch_model-00001-of-00002.bin"), "PK\3\4")
    local message = check.raises("a Python pickle, which can run any code", safetensors.open, dir)
    check.that(message:find("glob.glob(d + '/pytorch_model*.bin')", 1, true), message)
    check.that(message:find("d = '" .. dir .. "'", 1, true), message)
    check.raises("is a PyTorch pickle (zip)", safetensors.open, fs.join(dir, "pytorch_model-00001-of-00002.bin"))
    check.raises("is not a folder", safetensors.open_folder, fs.join(dir, "none"))
    check.raises("No such file", safetensors.open, fs.join(dir, "none"))
    check.raises("a path must be a string", safetensors.open, nil)
  end)
end)

test("entries that cannot be written leave no file", function()
  folder(function(dir)
    local path = fs.join(dir, "x.safetensors")
    local t = f32(1, 2)
    for message, e in pairs {
      ["name is no string"] = { dtype = "f32", shape = { 2 }, tensor = t },
      ["there is no dtype 'f8'"] = { name = "a", dtype = "f8", shape = { 2 }, tensor = t },
      ["its shape is missing"] = { name = "a", dtype = "f32", tensor = t },
      ["dimension 1 of its shape is 0"] = { name = "a", dtype = "f32", shape = { 0 }, tensor = t },
      ["dimension 2 of its shape is 1.5"] = { name = "a", dtype = "f32", shape = { 2, 1.5 }, tensor = t },
      ["its tensor is missing"] = { name = "a", dtype = "f32", shape = { 2 } },
      ["declared with 3 elements"] = { name = "a", dtype = "f32", shape = { 3 }, tensor = t },
      ["cannot take f32"] = { name = "a", dtype = "i32", shape = { 2 }, tensor = t },
      ["expected a tensor, got a number"] = { name = "a", dtype = "f32", shape = { 2 }, tensor = function() return 7 end },
      ["the merge failed"] = { name = "a", dtype = "f32", shape = { 2 }, tensor = function() error "the merge failed" end },
    } do
      check.raises(message, safetensors.write, path, { e })
    end
    local e = { name = "a", dtype = "f32", shape = { 2 }, tensor = t }
    check.raises("the name occurs twice", safetensors.write, path, { e, e })
    check.raises("metadata 'a' is no string", safetensors.write, path, { e }, { a = 1 })
    check.equal(#fs.list(dir), 0)
  end)
end)

test("a function's tensor is released once, also after an error", function()
  folder(function(dir)
    local released = 0
    local function make() return f32(1, 2), function() released = released + 1 end end
    local path = fs.join(dir, "x.safetensors")
    safetensors.write(path, { { name = "a", dtype = "f16", shape = { 2 }, tensor = make } })
    check.equal(released, 1)
    check.raises("elements", safetensors.write, path, { { name = "a", dtype = "f16", shape = { 3 }, tensor = make } })
    check.equal(released, 2)
  end)
end)

test("an allocation that fails is tried once more", function()
  folder(function(dir)
    local path = fs.join(dir, "x.safetensors")
    for n = 0, 40 do
      C.lr_memory_fail(n, 1)
      local ok, err = pcall(function()
        safetensors.write(path, { { name = "a", dtype = "f16", shape = { 2 }, tensor = f32(1, 2) } }, { format = "pt" })
        local w = safetensors.open(path)
        check.array(values(w, "a", 2), { 1, 2 })
        w:close()
      end)
      C.lr_memory_fail(-1, 0)
      -- The tensors of this test itself are made without a second try.
      check.that(ok or tostring(err):find "is %-1, expected 0", tostring(err))
    end
  end)
end)
