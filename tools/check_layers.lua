-- check_layers.lua: does every module of lua/lorarun require, and every C file include, only what is below it? `make lint` asks,
-- tests/units/test_layers.lua asks it about small trees.
--
--   local wrong = dofile "tools/check_layers.lua" (root [, known])   -- a list of texts, empty where all is well
--
-- The order of the folders is the line "layers:" of docs/architecture.md, lowest first. init.lua is above them all, and above
-- it cli/program.lua, with which the executable starts: like a recipe it uses lorarun. What the build makes (lorarun.cdef,
-- lorarun.ops_spec) and what the executable holds (lorarun.host) are below. A require counts wherever it stands, at the top of a
-- file or in a function. Two things are wrong: a require of something above, and a circle of requires, within a folder as well.
-- `known` lists those that are still to be cut, as "train/trainer.lua -> plan/init.lua"; an entry that is no longer needed is wrong
-- too.
--
-- A computed require must begin with its folder: require("lorarun.models." .. name) stands for all modules of models/ that no
-- other file requires by name. Anything else that is computed cannot be followed and is wrong.
--
-- C: the order of the folders of runtime/ is the line "C layers:" of docs/architecture.md, lowest first; runtime/lr.h belongs to
-- the lowest. A file of runtime/ may include its own folder and those below, nothing of kernels/. A file of kernels/ may include
-- the lowest folder of runtime/, the headers that lie in kernels/ itself, and those of its own backend. An #include is looked up as
-- the compiler does it: beside the file, then in runtime/, then in kernels/. What the build makes (lr_ops.h and its like) is below
-- all. Files that include each other in a circle are wrong as well. Calls are not seen, only includes: lr.h declares the public
-- functions of all folders.
local TOP, START = "lorarun", "lorarun.cli.program"
local BELOW = { ["lorarun.cdef"] = true, ["lorarun.ops_spec"] = true, ["lorarun.host"] = true }

local function read(path)
  local file = assert(io.open(path, "r"))
  local text = file:read "*a"
  file:close()
  return text
end

-- The words of a Lua text, without comments: { kind = "name", "string" or a sign, text, line }.
local function words_of(text)
  local list, at, line = {}, 1, 1
  local function add(kind, value) list[#list + 1] = { kind = kind, text = value, line = line } end
  local function go_to(next_at)
    for _ in text:sub(at, next_at - 1):gmatch "\n" do line = line + 1 end
    at = next_at
  end
  while at <= #text do
    local comment, level = text:match("^(%-?%-?)%[(=*)%[", at)
    if comment == "" or comment == "--" then -- a long string or comment
      local from = at + #comment + #level + 2
      local last, finish = text:find("]" .. level .. "]", from, true)
      if comment == "" then add("string", text:sub(from, (last or #text + 1) - 1)) end
      go_to((finish or #text) + 1)
    elseif text:find("^%-%-", at) then
      go_to(text:find("\n", at, true) or #text + 1)
    elseif text:find("^[%a_]", at) then
      local name = text:match("^[%w_]+", at)
      add("name", name)
      at = at + #name
    elseif text:find("^[\"']", at) then
      local quote, finish = text:sub(at, at), at + 1
      while finish <= #text and text:sub(finish, finish) ~= quote do
        finish = finish + (text:sub(finish, finish) == "\\" and 2 or 1)
      end
      add("string", text:sub(at + 1, finish - 1))
      go_to(finish + 1)
    elseif text:find("^%.%.", at) then
      add("..", "..")
      at = at + #text:match("^%.+", at)
    else
      local sign = text:sub(at, at)
      if sign:find "%S" then add(sign, sign) end
      go_to(at + 1)
    end
  end
  return list
end

-- What a text requires: a list of { line, name = module } or { line, prefix = "lorarun.models." }, or { line } where that cannot be
-- told.
local function requires_of(text)
  local words, found = words_of(text), {}
  for i, word in ipairs(words) do
    local before = words[i - 1] and words[i - 1].kind
    if word.kind == "name" and word.text == "require" and before ~= "." and before ~= ":" then
      local following = words[i + 1]
      local called = following and (following.kind == "(" or following.kind == ",") -- ",": pcall(require, name)
      local argument, after = words[i + (called and 2 or 1)], words[i + (called and 3 or 2)]
      local item = { line = word.line }
      if argument and argument.kind == "string" then
        item[called and after and after.kind == ".." and "prefix" or "name"] = argument.text
      end
      found[#found + 1] = item
    end
  end
  return found
end

-- All modules of the tree, by name and as a list: { file = "models/lora.lua", path = "lua/lorarun/models/lora.lua", folder =
-- "models", name = "lorarun.models.lora" }.
local function modules_of(root)
  local modules, found = {}, assert(io.popen(("cd '%s/lua/lorarun' && find . -name '*.lua' | sort"):format(root)))
  for path in found:lines() do
    local file = path:gsub("^%./", "")
    local name = file == "init.lua" and TOP or "lorarun." .. file:gsub("/init%.lua$", ""):gsub("%.lua$", ""):gsub("/", ".")
    local module = { file = file, path = "lua/lorarun/" .. file, folder = file:match "^([^/]+)/", name = name }
    modules[#modules + 1], modules[name] = module, module
  end
  found:close()
  return modules
end

-- Follows the edges from module to module; `report` is called once for each circle, with its edges.
local function find_circles(modules, report)
  local state, path = {}, {} -- state: "open" while the module is on the path, "done" after
  local function visit(module)
    state[module] = "open"
    for _, edge in ipairs(module.edges) do
      path[#path + 1] = edge
      if state[edge.to] == "open" then
        local first = #path
        while path[first].from ~= edge.to do first = first - 1 end
        report { unpack(path, first) }
      elseif not state[edge.to] then
        visit(edge.to)
      end
      path[#path] = nil
    end
    state[module] = "done"
  end
  for _, module in ipairs(modules) do
    if not state[module] then visit(module) end
  end
end

-- The folders of the line that begins with `title`, by height: { base = 1, tensor = 2, ... }, and the first height above them all;
-- nil where there is no such line.
local function heights_of(page, title)
  local line = ("\n" .. page):match("\n" .. title .. ": `([^`\n]+)`")
  if not line then return nil end
  local height, top = {}, 1
  for folder in line:gmatch "[^%s<]+" do height[folder], top = top, top + 1 end
  return height, top
end

local function say_circles(files, verb, cure, say)
  find_circles(files, function(edges)
    local places = {}
    for i, edge in ipairs(edges) do
      places[i] = ("%s:%d %s %s"):format(edge.from.path, edge.line, verb, edge.to.name)
    end
    say("a circle: %s; %s", table.concat(places, ", "), cure)
  end)
end

local function check_lua(root, page, known, say)
  local height, top = heights_of(page, "layers")
  if not height then return say "docs/architecture.md: there is no line: layers: `base < ... < cli`, lowest folder first" end
  local needed = {}

  local modules, named = modules_of(root), {}
  local function height_of(module)
    if module.name == TOP then return top end
    if module.name == START then return top + 1 end
    return height[module.folder or ""]
  end
  for _, module in ipairs(modules) do
    module.edges = {}
    if not height_of(module) then
      say("%s: its folder has no place in the order of docs/architecture.md (layers: ...)", module.path)
      height[module.folder or ""] = 1
    end
    module.requires = requires_of(read(root .. "/" .. module.path))
    for _, item in ipairs(module.requires) do
      if item.name then named[item.name] = true end
    end
  end

  local allowed = {}
  for _, entry in ipairs(known or {}) do allowed[entry] = true end
  for _, module in ipairs(modules) do
    local function add(line_number, to)
      local entry = module.file .. " -> " .. to.file
      if allowed[entry] then
        needed[entry] = true
      elseif height_of(to) > height_of(module) then
        say("%s:%d: it requires %s, which is above it: move what both need down, or have it passed in", module.path, line_number,
          to.name)
      else
        table.insert(module.edges, { from = module, to = to, line = line_number })
      end
    end
    for _, item in ipairs(module.requires) do
      local name, prefix = item.name, item.prefix
      if prefix and prefix:find "^lorarun%.[%w_.]*$" and prefix:find "%.$" then
        for _, to in ipairs(modules) do
          local unnamed = to ~= module and to.name ~= START and not named[to.name]
          if unnamed and to.name:sub(1, #prefix) == prefix then add(item.line, to) end
        end
      elseif not name then
        say("%s:%d: what it requires cannot be told: begin the name with its folder, as in \"lorarun.models.\" .. name",
          module.path, item.line)
      elseif modules[name] then
        add(item.line, modules[name])
      elseif (name == TOP or name:find "^lorarun%.") and not BELOW[name] then
        say("%s:%d: there is no module %s", module.path, item.line, name)
      end
    end
  end

  say_circles(modules, "requires", "move what both need into a module below them", say)
  for _, entry in ipairs(known or {}) do
    if not needed[entry] then say("tools/lint.sh: '%s' is no longer required: take it off the list", entry) end
  end
end

-- ---- C ---------------------------------------------------------------------------------------------------------------------
-- A C text whose comments are blank, line by line what it was.
local function without_comments(text)
  local parts, at = {}, 1
  while at <= #text do
    local sign = text:find("[/\"']", at) or #text + 1
    parts[#parts + 1] = text:sub(at, sign - 1)
    local two, finish = text:sub(sign, sign + 1), sign
    if two == "/*" then
      finish = select(2, text:find("*/", sign + 2, true)) or #text
      parts[#parts + 1] = " " .. text:sub(sign, finish):gsub("[^\n]", "")
    elseif two == "//" then
      finish = (text:find("\n", sign, true) or #text + 1) - 1
    else
      local quote = text:sub(sign, sign)
      while quote ~= "/" and finish < #text do -- a string ends with its line at the latest
        finish = finish + 1
        local letter = text:sub(finish, finish)
        if letter == quote or letter == "\n" then break end
        if letter == "\\" then finish = finish + 1 end
      end
      parts[#parts + 1] = text:sub(sign, finish)
    end
    at = finish + 1
  end
  return table.concat(parts)
end

-- The C files of the tree, by path and as a list: { path = "runtime/io/json.c", top = "runtime", folder = "io", name = path }.
-- A file of runtime/ or kernels/ itself has no folder.
local function c_files_of(root)
  local names = {}
  for ending in ("c h cc cpp cu cuh def inc"):gmatch "%a+" do names[#names + 1] = "-name '*." .. ending .. "'" end
  local any = table.concat(names, " -o ")
  local command = ("cd '%s' && find runtime kernels \\( %s \\) 2>/dev/null | LC_ALL=C sort"):format(root, any)
  local files, found = {}, assert(io.popen(command))
  for path in found:lines() do
    local file = { path = path, name = path, top = path:match "^[^/]+", folder = path:match "^[^/]+/([^/]+)/", edges = {} }
    files[#files + 1], files[path] = file, file
  end
  found:close()
  return files
end

local function check_c(root, page, say)
  local height = heights_of(page, "C layers")
  if not height then return say "docs/architecture.md: there is no line: C layers: `core < ... < host`, lowest folder first" end
  local files = c_files_of(root)
  for _, file in ipairs(files) do
    if file.top == "runtime" then
      local place = file.folder and height[file.folder] or 1
      if file.folder and not height[file.folder] then
        say("%s: its folder has no place in the order of docs/architecture.md (C layers: ...)", file.path)
        height[file.folder] = 1
      end
      file.height = place
    end
  end

  -- What is wrong where `from` includes `to`, or nil.
  local function objection(from, to)
    if from.top == "runtime" then
      if to.top == "kernels" then
        return "which is of kernels/: a backend hands its functions to the runtime (runtime/core/device.h)"
      end
      return to.height > from.height and "which is above it: move what both need down, or have it passed in" or nil
    elseif to.top == "runtime" then
      return to.height > 1 and "but of runtime/ a kernel may include the lowest folder only: move what it needs there" or nil
    end
    return to.folder and to.folder ~= from.folder
      and "which is another folder's: move what both need into a header of kernels/ itself" or nil
  end

  for _, file in ipairs(files) do
    local number = 0
    for line in (without_comments(read(root .. "/" .. file.path)) .. "\n"):gmatch "(.-)\n" do
      number = number + 1
      local argument = line:match "^%s*#%s*include%f[^%w_]%s*(.*)"
      local sign, name = (argument or ""):match "^([\"<])([^\">]+)[\">]"
      local beside = name and sign == "\"" and files[file.path:match "^(.*/)" .. name]
      local to = name and (beside or files["runtime/" .. name] or files["kernels/" .. name])
      if to then
        local why = objection(file, to)
        if why then
          say("%s:%d: it includes %s, %s", file.path, number, to.path, why)
        else
          table.insert(file.edges, { from = file, to = to, line = number })
        end
      elseif argument and not name then
        say("%s:%d: what it includes cannot be told: write the name of the file", file.path, number)
      elseif sign == "\"" and not name:find "^lr_[%w_]+%.[%w]+$" then -- lr_...: made by the build
        say("%s:%d: there is no file %s, neither beside it nor in runtime/ or kernels/", file.path, number, name)
      end
    end
  end
  say_circles(files, "includes", "move what both need into a header below them", say)
end

return function(root, known)
  local wrong, page = {}, read(root .. "/docs/architecture.md")
  local function say(fmt, ...) wrong[#wrong + 1] = fmt:format(...) end
  check_lua(root, page, known, say)
  check_c(root, page, say)
  return wrong
end
