-- check_paths.lua: comments and Markdown pages name only what there is. `git ls-files | luajit tools/check_paths.lua` prints a line
-- for each name that is wrong, and fails; tools/lint.sh runs it.
--   files     a name that ends like a source file of ours, or a path that begins with a folder of ours, is that of a tracked
--             file or the end of its path; `*` and words in capitals stand for any part of a name. A head names its own file.
--             docs/NAME.md is looked for in code as well
--   modules   lorarun.folder.name is a module, or a field of one
--   names     lr_name stands somewhere in the C; lr.name is public
--   links     a link of a page leads to a file that there is, and to a heading of it
-- This file, loaded with the word "module", returns check(files, read), where read(path) gives a file's text; it gives a list of
-- lines. tests/units/test_check_paths.lua calls it on a tree that it makes up.

-- What is not in the tree, and may be named all the same.
local ELSEWHERE = {}
for name in ([[
  lr_ops.h lr_ops_backend.h lr_ops_dispatch.c lr_ops_kernels.h cdef.lua ops_spec.lua
  bench-gpu.md run.sh kernels.txt
  nvml.h device.cc lr_scheduler_type lorarun.host
  recipe.lua my.lua script.py a.py b.py b.txt m0.txt m1.txt x.lua a.b.c X_before_merge.py X_after_merge.py
  lr_x_free lr_f lr_op_square lr_cuda_square
]]):gmatch "%S+" do ELSEWHERE[name] = true end -- made by the build and by tools; others'; made up in examples: files, functions

-- Folders of ours whose names are as well those of users' own folders: a path that begins with one may be anything.
local USERS = { models = true, data = true }

local EXTENSIONS = {}
for name in ("c h cu cuh cc cpp lua md sh py def txt cmake sbatch"):gmatch "%S+" do EXTENSIONS[name] = true end

-- ---- comments --------------------------------------------------------------------------------------------------------------

-- Each of these gives the text with all but its comments blanked out, line by line as it was, and the text without its comments.
local function split_by(text, next_piece)
  local comments, code, at = {}, {}, 1
  while at <= #text do
    local first, last, kind = next_piece(text, at)
    if not first then first, last = #text + 1, #text end
    local before = text:sub(at, first - 1)
    comments[#comments + 1] = before:gsub("[^\n]", " ")
    code[#code + 1] = before
    local piece = text:sub(first, last)
    local blank = piece:gsub("[^\n]", " ")
    comments[#comments + 1] = kind == "comment" and piece or blank
    code[#code + 1] = kind == "comment" and blank or piece
    at = last + 1
  end
  return table.concat(comments), table.concat(code)
end

local function end_of_line(text, at) return (text:find("\n", at, true) or #text + 1) - 1 end

-- The end of a string in quotes that begins at `at`; a line's end ends it, too.
local function end_of_string(text, at)
  local quote, i = text:sub(at, at), at + 1
  while i <= #text do
    local c = text:sub(i, i)
    if c == "\\" then
      i = i + 1
    elseif c == quote or c == "\n" then
      return i
    end
    i = i + 1
  end
  return #text
end

local function c_piece(text, at)
  while true do
    at = text:find("[/\"']", at)
    if not at then return nil end
    local two = text:sub(at, at + 1)
    if two == "//" then return at, end_of_line(text, at), "comment" end
    if two == "/*" then return at, select(2, text:find("*/", at + 2, true)) or #text, "comment" end
    if two:sub(1, 1) ~= "/" then return at, end_of_string(text, at), "string" end
    at = at + 1
  end
end

local function lua_piece(text, at)
  while true do
    at = text:find("[%-\"'%[]", at)
    if not at then return nil end
    local comment = text:sub(at, at + 1) == "--"
    local level = text:match("^%[(=*)%[", comment and at + 2 or at)
    if level then
      local last = select(2, text:find("]" .. level .. "]", at, true)) or #text
      return at, last, comment and "comment" or "string"
    end
    if comment then return at, end_of_line(text, at), "comment" end
    if text:find("^[\"']", at) then return at, end_of_string(text, at), "string" end
    at = at + 1
  end
end

-- Shell, CMake, Make, YAML, ops.def: a # that begins a word. Python's long strings are its documentation.
local function hash_piece(text, at)
  while true do
    local hash, long = text:find("#", at, true), text:find('"""', at, true)
    if long and (not hash or long < hash) then return long, select(2, text:find('"""', long + 3, true)) or #text, "comment" end
    if not hash then return nil end
    if hash == 1 or text:find("^%s", hash - 1) then return hash, end_of_line(text, hash), "comment" end
    at = hash + 1
  end
end

local PIECES = { lua = lua_piece }
for name in ("c h cu cuh cc cpp"):gmatch "%S+" do PIECES[name] = c_piece end
for name in ("sh py def txt cmake sbatch"):gmatch "%S+" do PIECES[name] = hash_piece end

local function extension(path) return path:match "%.(%w+)$" or path:match "Makefile$" and "cmake" or "" end

-- ---- what there is -----------------------------------------------------------------------------------------------------------

local function plain(text) return (text:gsub("%p", "%%%0")) end

-- Every path, and every end of it that begins at a folder; folders likewise, with a / at the end.
local function known_paths(files)
  local known, top = {}, {}
  for _, path in ipairs(files) do
    local folder = ""
    for part in path:gmatch "([^/]*)/" do
      if (folder == "" or folder == "lua/lorarun/" or folder == "runtime/") and not USERS[part] then top[part] = true end
      folder = folder .. part .. "/"
      for tail in ("/" .. folder):gmatch "()/" do
        local name = folder:sub(tail)
        if name ~= "" then known[name], known[name:sub(1, -2)] = true, true end
      end
    end
    for tail in ("/" .. path):gmatch "()/" do known[path:sub(tail)] = true end
  end
  return known, top
end

local function found(known, name)
  if known[name] or known[name .. "/"] then return true end
  for ending in pairs(EXTENSIONS) do if known[name .. "." .. ending] then return true end end
  local below = name:match "^[^/]+/(.+/.+)$" -- of somebody's root/
  if below and known[below] then return true end
  if not name:find "[*%u]" then return false end
  local pattern = "^" .. plain(name):gsub("%%%*", "[^/]*"):gsub("%f[%u]%u+%f[%A]", "[^/]*") .. "$"
  for path in pairs(known) do if path:find(pattern) then return true end end
  return false
end

-- GitHub's name of a heading.
local function anchors(text)
  local set = {}
  for heading in ("\n" .. text):gmatch "\n#+ ([^\n]*)" do
    local name = heading:lower():gsub("[^%w%- _\128-\255]", ""):gsub(" ", "-")
    set[name] = true
  end
  return set
end

-- ---- the look at one text ----------------------------------------------------------------------------------------------------

local function check(files, read)
  local known, top = known_paths(files)
  local complaints, texts, comments, c_names, public = {}, {}, {}, {}, nil
  for _, path in ipairs(files) do
    local kind = extension(path)
    if (PIECES[kind] or kind == "md") and not path:find "check_paths%.lua$" then -- which make up names
      local text = read(path):gsub("\r", "")
      texts[path] = text
      if kind == "md" then
        comments[path] = text
      else
        local comment, code = split_by(text, PIECES[kind])
        comments[path] = comment
        if PIECES[kind] == c_piece or kind == "def" or path:find "^tools/" then
          for name in code:gmatch "lr_[%w_]+" do c_names[name] = true end
        end
        if kind == "def" then -- an op's functions are made from its row
          for op in code:gmatch "\n([%l_%d]+) " do
            for _, form in ipairs { "lr_%s", "lr_cpu_%s", "lr_cuda_%s" } do c_names[form:format(op)] = true end
          end
        end
        if path == "lua/lorarun/init.lua" then
          public = { comm = true, h = true }
          for name in code:gmatch "([%a_][%w_]*) = " do public[name] = true end
        end
      end
    end
  end

  local function c_name_found(name)
    if c_names[name] then return true end
    name = name:match "^(.-_)%u+" or name -- lr_op_NAME
    if name:sub(-1) ~= "_" then return false end -- lr_json_*: some name that begins so
    for other in pairs(c_names) do if other:sub(1, #name) == name then return true end end
    return false
  end

  local function complain(path, line, format, ...)
    complaints[#complaints + 1] = ("%s:%d: "):format(path, line) .. format:format(...)
  end

  local function look_for_files(path, number, line)
    for before, name in line:gmatch "()([%w_%-%.%*/<>~$%%{}]+)" do
      local left = line:sub(before - 1, before - 1)
      name = name:gsub("[%.%-]+$", ""):gsub("^%.+/", "")
      local ours = EXTENSIONS[extension(name)] and name:find "^[%w_*][%w_%-%.%*/]*$"
      local folder = name:match "^([%w_%-]+)/[%w_%-%.%*/]*$"
      name = name:gsub("^%u+/", "") -- PREFIX/share
      local elsewhere = left:find "[<:@=]" or ELSEWHERE[name] or ELSEWHERE[name:match "[^/]*$"]
      if (ours or folder and top[folder]) and not elsewhere and not found(known, name) then
        complain(path, number, "there is no %s", name)
      end
    end
  end

  local function look_for_names(path, number, line)
    for name in line:gmatch "%f[%w_]lr_[%w_]+" do
      if not c_name_found(name) and not ELSEWHERE[name] then complain(path, number, "%s is nowhere in the C code", name) end
    end
    for before, module in line:gmatch "()%f[%w_]lorarun(%.[%l_][%w_%.]*)" do
      module = module:gsub("%.+$", "")
      local name = "lua/lorarun" .. module:gsub("%.", "/")
      local owner = name:match "^(.*)/"
      local ending = EXTENSIONS[name:match "[^/]*$"]
      if line:sub(before - 1, before - 1) ~= "/" and not ending and not (known[name .. ".lua"] or known[name .. "/"] or
          known[owner .. ".lua"] or ELSEWHERE[name:match "[^/]*$" .. ".lua"] or ELSEWHERE["lorarun" .. module]) then
        complain(path, number, "there is no module lorarun%s", module)
      end
    end
    for before, name in line:gmatch "()%f[%w_]lr%.([%l_][%w_]*)" do
      if public and not public[name] and not line:sub(before - 1, before - 1):find "[/.]" then
        complain(path, number, "lr.%s is not public", name)
      end
    end
  end

  local function look_at_links(path, number, line)
    for target in line:gmatch "%]%(([^)%s]+)%)" do
      if not target:find "^%a+:" then
        local file, anchor = target:match "^([^#]*)#?(.*)$"
        local folder = path:match "^(.*/)" or ""
        local whole = file == "" and path or folder .. file
        while whole:find "[^/]+/%.%./" do whole = whole:gsub("[^/]+/%.%./", "", 1) end
        if not texts[whole] and not known[whole] then
          complain(path, number, "the link leads to %s, which is not there", target)
        elseif anchor ~= "" and not anchors(texts[whole] or "")[anchor] then
          complain(path, number, "%s has no heading #%s", whole, anchor)
        end
      end
    end
  end

  for _, path in ipairs(files) do
    if comments[path] then
      local head = comments[path]:match "^%A*([%w_]+%.%l+): "
      if head and EXTENSIONS[extension(head)] and head ~= path:match "[^/]*$" then complain(path, 1, "the head says %s", head) end
      local number = 0
      for line in (comments[path] .. "\n"):gmatch "([^\n]*)\n" do
        number = number + 1
        look_for_files(path, number, line)
        look_for_names(path, number, line)
        if extension(path) == "md" then look_at_links(path, number, line) end
      end
      if extension(path) ~= "md" then
        number = 0
        for line in (texts[path] .. "\n"):gmatch "([^\n]*)\n" do
          number = number + 1
          for name in line:gmatch "%f[%w]docs/[%w_%-]+%.md" do
            if not known[name] then complain(path, number, "there is no page %s", name) end
          end
        end
      end
    end
  end
  return complaints
end

if ... == "module" then return check end

local files = {}
for path in io.lines() do files[#files + 1] = path end
local complaints = check(files, function(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end)
for _, line in ipairs(complaints) do print(line) end
os.exit(#complaints == 0 and 0 or 1)
