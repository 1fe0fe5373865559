-- fs.lua: files, folders and paths. Writing is atomic: a reader sees the old file or the new one, never a part.
-- Every function raises an error that names the path; stat and its kin return nil or false where nothing is there.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local ffi = require "ffi"

local fs = {}
local KIND = { [C.LR_FILE_REGULAR] = "file", [C.LR_FILE_DIRECTORY] = "directory", [C.LR_FILE_OTHER] = "other" }

-- A NUL would silently shorten the name, and nil would reach C as a null pointer.
local function checked(path, what)
  if type(path) ~= "string" then check.fail("%s must be a string, got %s", what or "a path", type(path)) end
  if path:find("\0", 1, true) then
    check.fail("%s holds a NUL byte: '%s'", what or "a path", (path:gsub("%z", "\\0")))
  end
  return path
end

-- ---- looking ------------------------------------------------------------------------------------------------
--- stat(path): { kind = "file", "directory" or "other", size = bytes, mode = permission bits,
--- modified = seconds since the epoch }, or nil.
function fs.stat(path)
  local st = ffi.new "lr_stat"
  local status = C.lr_file_stat(checked(path), st)
  if status == C.LR_ENOTFOUND then return nil end
  check(status)
  return { kind = KIND[st.kind], size = tonumber(st.size), mode = st.mode, modified = st.modified }
end

local function kind(path)
  local st = fs.stat(path)
  return st and st.kind
end
function fs.exists(path) return fs.stat(path) ~= nil end
function fs.is_file(path) return kind(path) == "file" end
function fs.is_directory(path) return kind(path) == "directory" end

--- list(dir): the names in it, sorted, without "." and "..".
function fs.list(dir)
  local block, count = ffi.new "char *[1]", ffi.new "int64_t[1]"
  check.call(C.lr_dir_list, checked(dir), block, count)
  local names, p = {}, ffi.gc(block[0], C.lr_free)
  local at = p
  for i = 1, tonumber(count[0]) do
    names[i] = ffi.string(at)
    at = at + #names[i] + 1
  end
  C.lr_free(ffi.gc(p, nil))
  return names
end

--- real(path): absolute, links resolved.
function fs.real(path)
  local out = ffi.new "char *[1]"
  check.call(C.lr_path_real, checked(path), out)
  local real = ffi.string(out[0])
  C.lr_free(out[0])
  return real
end

--- disk_free(path): bytes that may still be written to the file system that holds path.
function fs.disk_free(path)
  local bytes = C.lr_disk_free(checked(path))
  check(tonumber(bytes))
  return tonumber(bytes)
end

--- crc32c(path): checksum of the file's bytes, 0 to 2^32 - 1.
function fs.crc32c(path)
  local out = ffi.new "uint32_t[1]"
  check.call(C.lr_file_crc32c, checked(path), out)
  return out[0]
end

-- ---- reading and writing ------------------------------------------------------------------------------------
--- read(path): the whole file as a string.
function fs.read(path)
  local data, size = ffi.new "char *[1]", ffi.new "int64_t[1]"
  check.call(C.lr_file_read, checked(path), data, size)
  local p = ffi.gc(data[0], C.lr_free) -- the net under ffi.string, which may run out of memory
  local text = ffi.string(p, size[0])
  C.lr_free(ffi.gc(p, nil))
  return text
end

--- contents(path): the whole file, or nil where it cannot be read. Unlike read() it takes files of /proc and /sys, whose size is 0.
function fs.contents(path)
  local file = io.open(path, "r")
  local text = file and file:read "*a"
  if file then file:close() end
  return text
end

--- first_line(path): the first line of such a file; nil where it cannot be read or the line is empty.
function fs.first_line(path) return (fs.contents(path) or ""):match "^[^\n]+" end

local function checked_text(path, text)
  if type(text) ~= "string" then check.fail("cannot write %s: the text is a %s", path, type(text)) end
  return text
end

--- write(path, text): atomic; the file keeps its permissions where it existed.
function fs.write(path, text)
  check.call(C.lr_file_write, checked(path), checked_text(path, text), #text)
end

--- append(path, text): in one write, so that lines of several processes do not mix.
function fs.append(path, text)
  check.call(C.lr_file_append, checked(path), checked_text(path, text), #text)
end

--- make(dir): with its parents; an existing directory is no error.
function fs.make(dir) check.call(C.lr_dir_make, checked(dir)) end

--- copy(from, to): one file, atomic like write.
function fs.copy(from, to) check.call(C.lr_file_copy, checked(from), checked(to)) end

--- rename(from, to): replaces a file that is there.
function fs.rename(from, to) check.call(C.lr_file_rename, checked(from), checked(to)) end

--- remove(path): a file, or a folder with all in it. Links are removed, not followed.
function fs.remove(path) check.call(C.lr_tree_remove, checked(path)) end

--- sweep(folder, depth): remove the temporary files (names of atomic.c) of writers that were killed, in the folder and `depth`
--- levels below. Files of processes that run are left alone.
function fs.sweep(folder, depth)
  for _, name in ipairs(fs.list(folder)) do
    local path, pid = folder .. "/" .. name, name:match "%.tmp%-(%d+)%-%d+$"
    if pid and not fs.exists("/proc/" .. pid) then fs.remove(path) end
    if depth > 0 and fs.is_directory(path) then fs.sweep(path, depth - 1) end
  end
end

-- ---- paths --------------------------------------------------------------------------------------------------
--- join(a, b, ...): with one "/" in between. Empty parts are skipped; an absolute part starts afresh.
function fs.join(...)
  local path = ""
  for i = 1, select("#", ...) do
    local part = checked((select(i, ...)), "part " .. i .. " of a path")
    if part:sub(1, 1) == "/" or path == "" then path = part
    elseif part ~= "" then path = path:gsub("/+$", "") .. "/" .. part end
  end
  return path
end

--- dirname("a/b") is "a", of "b" ".", of "/b" "/". A trailing slash does not count.
function fs.dirname(path)
  path = checked(path):gsub("(.)/+$", "%1")
  local dir = path:match("^(.*)/[^/]*$")
  if not dir then return "." end
  dir = dir:gsub("/+$", "")
  return dir == "" and "/" or dir
end

--- basename("a/b.txt") is "b.txt"; basename("a/b.txt", ".txt") is "b". A trailing slash does not count.
function fs.basename(path, suffix)
  local name = checked(path):gsub("(.)/+$", "%1"):match("([^/]*)$")
  if suffix and #name > #suffix and name:sub(-#suffix) == suffix then name = name:sub(1, -#suffix - 1) end
  return name
end

return fs
