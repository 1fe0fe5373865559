-- sources.lua: where the pairs of files come from. Each source is a list of items in a fixed order, and a way to load them:
--
--   local source = sources.pairs(options, skip)  -- or .git, .mutate
--   source.items[i] = { name = , language = , group = }   -- items of equal group must stay in one split (nil: none)
--   source.each(items, function(item, before, after) ... end)   -- loads the given items, in order
--
-- before and after are texts that have passed `screen`; an item that has not is reported to skip(reason, name) and left out. For
-- mutate they are the same text: bugs are planted later, when it is known which split a function is in. Nothing in a folder can
-- stop a run: unreadable entries are skipped and counted, and a folder is entered once, however many links lead to it.
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local git = require "lorarun.bugdata.git"
local scanner = require "lorarun.bugdata.scanner"
local sorted = require "lorarun.base.sorted"

local sources = {}

local LONGEST_LINE = 2000 -- bytes; a longer line was written by a program
local GENERATED_HEAD = 1000 -- bytes at the top, in which a generated file says that it is one

-- Folders without source of their own.
local IGNORED_FOLDERS = { ["__pycache__"] = true, ["node_modules"] = true, ["CVS"] = true }

-- Whether a text is UTF-8 by RFC 3629: no overlong form, no surrogate, nothing above U+10FFFF.
local function is_utf8(text)
  local at = text:find("[\128-\255]")
  while at do
    local b1, b2, b3, b4 = text:byte(at, at + 3)
    local function tail(b) return b and b >= 128 and b < 192 end
    if b1 >= 194 and b1 < 224 and tail(b2) then at = at + 2
    elseif b1 >= 224 and b1 < 240 and tail(b2) and tail(b3)
      and not (b1 == 224 and b2 < 160) and not (b1 == 237 and b2 >= 160) then
      at = at + 3
    elseif b1 >= 240 and b1 < 245 and tail(b2) and tail(b3) and tail(b4)
      and not (b1 == 240 and b2 < 144) and not (b1 == 244 and b2 >= 144) then
      at = at + 4
    else
      return false
    end
    at = text:find("[\128-\255]", at)
  end
  return true
end

-- Why a text is not used, or nil.
function sources.screen(text, max_file_size)
  if #text > max_file_size then return ("larger than %d bytes"):format(max_file_size) end
  if not text:find("%S") then return "empty" end
  if text:find("\0", 1, true) then return "binary" end
  if not is_utf8(text) then return "not UTF-8" end
  local start = 1
  while true do
    local newline = text:find("\n", start, true) or #text + 1
    if newline - start > LONGEST_LINE then
      return ("minified or generated: a line above %d bytes"):format(LONGEST_LINE)
    end
    if newline > #text then break end
    start = newline + 1
  end
  local head = text:sub(1, GENERATED_HEAD):lower()
  for _, mark in ipairs { "do not edit", "@generated", "automatically generated" } do
    if head:find(mark, 1, true) then return "generated: its head says so" end
  end
end

-- All files below a folder with one of the extensions: { path, name }, name relative to the folder, sorted within each folder.
local function walk(root, prefix, wanted, skip, visited, out)
  local function enter(folder, relative)
    local known, real = pcall(fs.real, folder)
    if not known then return skip("unreadable folder", relative) end
    if visited[real] then return skip("folder met before (a link, or named twice)", relative) end
    visited[real] = true
    local ok, names = pcall(fs.list, folder)
    if not ok then return skip("unreadable folder", relative) end
    for _, name in ipairs(names) do
      local path = fs.join(folder, name)
      local below = relative == "" and name or relative .. "/" .. name
      local extension = name:match("%.([^.]+)$")
      local hidden = name:sub(1, 1) == "."
      if not hidden and not IGNORED_FOLDERS[name] then
        local known_too, stat = pcall(fs.stat, path) -- an error where a folder on the way may not be entered
        if not known_too or not stat then
          if extension and wanted[extension:lower()] then skip("unreadable", below) end
        elseif stat.kind == "directory" then
          enter(path, below)
        elseif extension and wanted[extension:lower()] then
          if stat.kind ~= "file" then
            skip("not a plain file", below)
          elseif not is_utf8(below) then
            skip("a name that is not UTF-8", below) -- it could not be written into a row
          else
            out[#out + 1] = { path = path, name = below, language = scanner.language(name) }
          end
        end
      end
    end
  end
  enter(root, prefix)
end

local function need_folder(option, path)
  local stat = fs.stat(path)
  if not stat then check.fail("--%s %s: there is no such folder", option, path) end
  if stat.kind ~= "directory" then
    check.fail("--%s %s is a file; name the folder that holds the sources", option, path)
  end
end

local function read(path, name, options, skip)
  local ok, text = pcall(function()
    local stat = fs.stat(path)
    if not stat or stat.size <= options.max_file_size then return fs.read(path) end -- a huge one is not even read
  end)
  if not ok then return skip("unreadable", name) end
  if not text then return skip(("larger than %d bytes"):format(options.max_file_size), name) end
  local reason = sources.screen(text, options.max_file_size)
  if reason then return skip(reason, name) end
  return text
end

function sources.mutate(options, skip)
  local items, visited = {}, {}
  for _, folder in ipairs(options.mutate) do
    need_folder("mutate", folder)
    local prefix = #options.mutate > 1 and folder:gsub("/+$", ""):match("[^/]*$") or ""
    walk(folder, prefix, options.extensions, skip, visited, items)
  end
  local source = { items = items }
  function source.each(list, fn)
    for _, item in ipairs(list) do
      local text = read(item.path, item.name, options, skip)
      if text then fn(item, text, text) end
    end
  end
  return source
end

function sources.pairs(options, skip)
  need_folder("pairs", options.pairs)
  local files, by_name, items = {}, {}, {}
  walk(options.pairs, "", options.extensions, skip, {}, files)
  for _, file in ipairs(files) do by_name[file.name] = file end
  for _, file in ipairs(files) do
    local stem, extension = file.name:match("^(.*)_before_merge(%.[^.]+)$")
    local partner = stem and by_name[stem .. "_after_merge" .. extension]
    local after_stem, after_extension = file.name:match("^(.*)_after_merge(%.[^.]+)$")
    if partner then
      items[#items + 1] = { name = stem .. extension, path = file.path, after = partner.path, language = file.language }
    elseif stem then
      skip("no *_after_merge file beside it", file.name)
    elseif not after_stem then
      skip("neither *_before_merge nor *_after_merge", file.name)
    elseif not by_name[after_stem .. "_before_merge" .. after_extension] then
      skip("no *_before_merge file beside it", file.name)
    end
  end
  local source = { items = items }
  function source.each(list, fn)
    for _, item in ipairs(list) do
      local before = read(item.path, item.name, options, skip)
      local after = before and read(item.after, item.name, options, skip)
      if after then fn(item, before, after) end
    end
  end
  return source
end

-- What says in a commit message that a bug was fixed: an extended regular expression for git, whole words in either case ...
sources.MESSAGE_PATTERN = "(^|[^[:alnum:]_])(fix(e[sd]|ing)?|bug(s|fix|fixes)?|defects?|faults?|regressions?"
  .. "|cve-[0-9]+-[0-9]+|(issue|close[sd]?|resolve[sd]?) #[0-9]+)([^[:alnum:]_]|$)"
-- ... and words of its subject which say that the bug was not in the code.
local NOT_CODE = { "typo", "spelling", "docs?", "documentation", "docstrings?", "comments?", "readme", "changelog",
  "whitespace",
  "formatting", "lint", "merge" }

local function is_code_fix(message)
  local subject = " " .. message:match("^%s*([^\n]*)"):lower() .. " "
  for _, word in ipairs(NOT_CODE) do
    if subject:find("[^%w_]" .. word .. "[^%w_]") then return false end
  end
  return true
end

function sources.git(options, skip)
  local repo = git.open(options.git)
  local changes, commits = repo:changes { pattern = options.message_pattern, extensions = sorted.keys(options.extensions),
    max_commits = options.max_commits, wanted = is_code_fix }
  local source = { items = {}, commits = commits }
  for _, change in ipairs(changes) do
    if is_utf8(change.path) then
      -- versions of one file share most of their text: one group
      source.items[#source.items + 1] = { name = change.path .. "@" .. change.commit:sub(1, 12), group = change.path,
        change = change, language = scanner.language(change.path) }
    else
      skip("a name that is not UTF-8", change.path)
    end
  end
  function source.each(list, fn)
    local ids = {}
    for _, item in ipairs(list) do
      ids[#ids + 1] = item.change.before
      ids[#ids + 1] = item.change.after
    end
    local before
    repo:blobs(ids, fs.join(options.output, "objects.partial"), options.max_file_size, function(i, text, absent)
      local item = list[math.ceil(i / 2)]
      local reason = absent or sources.screen(text, options.max_file_size)
      if i % 2 == 1 then
        before = not reason and text or nil
        if reason then skip(reason, item.name) end
      elseif before then
        if reason then skip(reason, item.name) else fn(item, before, text) end
      end
    end)
  end
  return source
end

return sources
