-- test_fs.lua: lorarun.base.fs, the Lua side of files, folders and paths.
local fs = require "lorarun.base.fs"
local folder = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua").with_folder

test("files left by killed writers are removed, files of running writers are not", function()
  local dir = os.tmpname()
  os.remove(dir)
  fs.make(dir .. "/a/b/c")
  local own = io.open("/proc/self/stat"):read "*n"
  local names = { "kept.json", "x.tmp-999999999-1", ("y.tmp-%d-1"):format(own), "a/z.tmp-999999999-2",
    "a/b/c/deep.tmp-999999999-1" }
  for _, name in ipairs(names) do fs.write(fs.join(dir, name), "") end
  fs.sweep(dir, 2)
  local left = {}
  for i, name in ipairs(names) do left[i] = fs.exists(fs.join(dir, name)) and 1 or 0 end
  check.array(left, { 1, 0, 1, 0, 1 })
  fs.remove(dir)
end)

test("reading and writing", function()
  folder(function(dir)
    local path = fs.join(dir, "a.bin")
    check.equal(fs.stat(path), nil)
    check.that(not fs.exists(path) and not fs.is_file(path) and not fs.is_directory(path))
    fs.write(path, "a\0b\r\n")
    check.equal(fs.read(path), "a\0b\r\n")
    fs.append(path, "c")
    check.equal(fs.read(path), "a\0b\r\nc")
    local st = fs.stat(path)
    check.equal(st.kind, "file")
    check.equal(st.size, 6)
    check.that(math.abs(st.modified - os.time()) < 60, "modified now")
    fs.write(path, "123456789")
    check.equal(fs.crc32c(path), 0xe3069283)
    fs.copy(path, path .. "2")
    fs.rename(path .. "2", path .. "3")
    check.equal(table.concat(fs.list(dir), " "), "a.bin a.bin3")
    check.equal(fs.read(path .. "3"), "123456789")
    check.that(fs.disk_free(dir) > 0)
  end)
end)

test("folders", function()
  folder(function(dir)
    local deep = fs.join(dir, "x", "y")
    fs.make(deep)
    fs.make(deep)
    check.that(fs.is_directory(deep) and fs.exists(deep) and not fs.is_file(deep))
    check.equal(fs.stat(deep).kind, "directory")
    check.equal(#fs.list(deep), 0)
    check.equal(fs.real(deep .. "/../y/."), fs.real(deep))
    fs.write(fs.join(deep, "f"), "")
    fs.remove(fs.join(dir, "x"))
    check.equal(#fs.list(dir), 0)
  end)
end)

test("errors name the path and the user's line", function()
  local missing = "/nowhere/at/all"
  for _, name in ipairs { "read", "list", "real", "disk_free", "crc32c", "remove" } do
    local message = check.raises(missing .. ": No such file", function() return fs[name](missing) + 1 end)
    check.that(message:find("test_fs.lua:%d+: "), message)
  end
  check.raises("No such file", fs.write, missing, "x")
  check.raises("No such file", fs.append, missing, "x")
  check.raises("No such file", fs.copy, missing, missing)
  check.raises("No such file", fs.rename, missing, missing)
  check.raises("/dev/null is a file", fs.make, "/dev/null/x")
  check.raises("is a directory", fs.read, "/")
  check.raises("a path must be a string, got nil", fs.read, nil)
  check.raises("part 2 of a path must be a string, got nil", fs.join, "a", nil, "b")
  check.raises("holds a NUL byte: 'a\\0b'", fs.exists, "a\0b")
  check.raises("the text is a number", fs.write, "/tmp/x", 1)
end)

test("paths", function()
  for _, case in ipairs {
    { "a/b", "a", "b" }, { "a/b/c", "a/", "b//", "c" }, { "a", "a", "" }, { "a", "", "a" }, { "/a", "/", "a" }, { "" },
    { "/b", "a", "/b" }, { "b", "", "", "b" }, { "./x", ".", "x" },
  } do
    check.equal(fs.join(unpack(case, 2)), case[1])
  end
  for path, dir in pairs { ["a/b"] = "a", b = ".", ["/b"] = "/", ["/"] = "/", ["a//b/"] = "a", ["/x/y/z"] = "/x/y", [""] = "." } do
    check.equal(fs.dirname(path), dir, "dirname of " .. path)
  end
  for path, base in pairs { ["a/b"] = "b", b = "b", ["/b/"] = "b", ["/"] = "", ["a/.x"] = ".x" } do
    check.equal(fs.basename(path), base, "basename of " .. path)
  end
  check.equal(fs.basename("x/model.json", ".json"), "model")
  check.equal(fs.basename("x/.json", ".json"), ".json")
  check.equal(fs.basename("x/a.txt", ".json"), "a.txt")
end)

test("a line that does not fit at the end of a file is not written in part", function()
  local path = os.tmpname()
  local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
  fs.write(path, "a line\n")
  local r = shell.run(("ulimit -f 2; $L -e %s 2>&1"):format(shell.quote(("lr.fs.append(%q, ('x'):rep(5000))"):format(path))))
  check.equal(r.status, 1)
  check.that(r.out:find("cannot append to " .. path .. ": only %d+ of 5000 bytes fitted"), r.out)
  check.equal(fs.read(path), "a line\n")
  os.remove(path)
end)

test("fs: contents and first_line read files of the kernel, and return nil if a file cannot be read", function()
  check.that(fs.contents "/proc/meminfo":find "MemTotal")
  check.equal(fs.first_line "/proc/self/comm", fs.contents "/proc/self/comm":match "[^\n]+")
  check.equal(fs.contents "/nowhere/x", nil)
  check.equal(fs.first_line "/nowhere/x", nil)
end)
