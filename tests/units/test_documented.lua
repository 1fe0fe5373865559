-- Defaults and names in the documentation are those of the code: the pages of docs/ are read and compared in both directions.
local bugdata = require "lorarun.bugdata"
local fs = require "lorarun.base.fs"
local mutate = require "lorarun.bugdata.mutate"
local scanner = require "lorarun.bugdata.scanner"
local settings = require "lorarun.dist.settings"
local sorted = require "lorarun.base.sorted"
local throughput = require "lorarun.train.throughput"
local train_options = require "lorarun.train.train_options"
local variables = require "lorarun.cli.variables"

local DOCS = fs.join(fs.dirname(os.getenv "LORARUN_TESTS"), "docs")

-- The rows of the table whose header begins with `head`, each as a list of its cells.
local function table_of(page, head)
  local text, rows = fs.read(fs.join(DOCS, page)), {}
  local at = select(2, text:find("\n" .. head, 1, true))
  check.that(at, ("%s has a table that begins with '%s'"):format(page, head))
  local body = text:sub(at):match "^[^\n]*\n|[-|]+|\n(.-)\n\n"
  for line in (body .. "\n"):gmatch "([^\n]*)\n" do
    local cells = {}
    for cell in line:gsub("\\|", "\1"):gmatch "|([^|]*)" do cells[#cells + 1] = cell:match "^%s*(.-)%s*$" end
    rows[#rows + 1] = cells
  end
  check.that(#rows > 3, page .. ": rows of the table")
  return rows
end

-- "`a`, `b = c`" -> { "a", "b = c" }
local function quoted(cell)
  local list = {}
  for name in cell:gmatch "`([^`]*)`" do list[#list + 1] = name end
  return list
end

-- "1, `{ a, b }`, false" -> { "1", "{ a, b }", "false" }
local function defaults_in(cell)
  local list = {}
  cell = cell:gsub("`([^`]*)`", function(code) return (code:gsub(",", "\1")) end)
  for part in cell:gmatch "[^,]+" do list[#list + 1] = part:gsub("\1", ","):match "^%s*(.-)%s*$" end
  return list
end

local function same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then return a == b end
  for key, value in pairs(a) do if not same(value, b[key]) then return false end end
  for key in pairs(b) do if a[key] == nil then return false end end
  return true
end

test("docs/reference.md: the options of lr.train and their defaults", function()
  local seen = {}
  for _, cells in ipairs(table_of("reference.md", "| option | default | |")) do
    local names, values = quoted(cells[1]), defaults_in(cells[2])
    for i, name in ipairs(names) do
      local default = train_options.DEFAULTS[name]
      check.that(default ~= nil, ("the code has no option '%s'"):format(name))
      check.that(not seen[name], ("'%s' is there twice"):format(name))
      seen[name] = true
      if cells[2] == "required" then
        check.equal(default, false, name)
      else
        check.equal(#values, #names, "defaults of " .. cells[1])
        local value = assert(loadstring("return " .. values[i]))()
        check.that(same(value, default), ("the default of '%s' is documented as %s"):format(name, values[i]))
      end
    end
  end
  for name in pairs(train_options.DEFAULTS) do check.that(seen[name], ("the option '%s' is not documented"):format(name)) end
end)

test("docs/reference.md: the defaults of losses and of AdamW", function()
  local text = fs.read(fs.join(DOCS, "reference.md"))
  local scale, gather = text:match "multiple_negatives_ranking { scale = (%d+), gather = (%a+) }"
  local losses, ops = require "lorarun.train.loss", require "lorarun.tensor.ops"
  check.equal(tostring(losses.multiple_negatives_ranking().gather), gather)
  local tensor = require "lorarun.tensor.tensor"
  tensor.scope(function() -- two pairs of equal unit vectors with a cosine of 0.8 between the pairs: log(1 + exp(-scale (1 - 0.8)))
    local e = tensor.from { { 1, 0 }, { 0.8, 0.6 }, { 1, 0 }, { 0.8, 0.6 } }
    local function loss(options)
      return losses.multiple_negatives_ranking(options).compute({ ops.rows(e, 0, 2) }, nil, e):item()
    end
    check.near(loss(), math.log(1 + math.exp(-0.2 * tonumber(scale))), 1e-6)
    check.near(loss { scale = 3 }, math.log(1 + math.exp(-0.2 * 3)), 1e-6)
  end)
  local model = require("lorarun.models.model").load(fs.join(os.getenv "LORARUN_TESTS", "golden", "bert"), { max_length = 8 })
  model:add_lora { rank = 1, targets = { "query" } }
  local optimizer = require("lorarun.tensor.optim").adamw(model:parameters())
  local betas = ("%g, %g, %g"):format(optimizer.beta1, optimizer.beta2, optimizer.eps):gsub("e%-0", "e-")
  check.that(text:find("AdamW with " .. betas, 1, true), betas)
  check.equal(optimizer.max_grad_norm, train_options.DEFAULTS.clip)
  check.equal(optimizer.weight_decay, train_options.DEFAULTS.weight_decay)
  optimizer:free()
  model:free()
end)

test("docs/data.md: the options of bugdata and their defaults", function()
  local seen = {}
  for _, cells in ipairs(table_of("data.md", "| option | default | |")) do
    for _, text in ipairs(quoted(cells[1])) do
      local name = text:match("^%-%-([%w-]+)"):gsub("-", "_")
      local default = bugdata.OPTIONS[name]
      seen[name] = true
      if cells[2] == "" then
        check.equal(default, nil, name)
      elseif cells[2] ~= "see above" then
        check.equal(cells[2], tostring(default), name)
      end
    end
  end
  for name in pairs(bugdata.OPTIONS) do check.that(seen[name], ("the option '%s' is not documented"):format(name)) end
end)

test("docs/data.md: kinds of planted bugs and their weights, file name endings", function()
  local rows, seen = table_of("data.md", "| kind | weight | example |"), {}
  for _, cells in ipairs(rows) do seen[quoted(cells[1])[1]] = tonumber(cells[2]) end
  for _, kind in ipairs(mutate.KINDS) do check.equal(seen[kind[1]], kind[2], kind[1]) end
  check.equal(#rows, #mutate.KINDS)
  local text = fs.read(fs.join(DOCS, "data.md")):match "| `%-%-extensions[^\n]*"
  for _, ending in ipairs(scanner.extensions()) do
    check.that(text:find("%f[%w]" .. ending .. "%f[%W]"), "data.md lacks the ending " .. ending)
  end
end)

test("docs/memory.md: the GPUs of lorarun plan", function()
  local text = fs.read(fs.join(DOCS, "memory.md")):match "| `%-%-gpu h100`[^\n]*"
  for name in sorted(throughput.GPUS) do check.that(text:find("%f[%w]" .. name .. "%f[%W]"), "memory.md lacks " .. name) end
end)

test("docs/launching.md: the settings of lr.launch and their defaults", function()
  local now = settings.resolve {}
  local NAMES = { processes = "num_processes", machines = "num_machines", threads = "num_cpu_threads_per_process" }
  for _, cells in ipairs(table_of("launching.md", "| flag (before the recipe) | in `lr.launch` | default | |")) do
    local values = defaults_in(cells[3])
    for _, flag in ipairs(quoted(cells[1])) do
      check.that(settings.is_flag(flag:match "^%-%-([%w-]+)"), flag .. " is no flag")
    end
    for i, name in ipairs(quoted(cells[2])) do
      if tonumber(values[i]) then
        check.equal(now[NAMES[name] or name], tonumber(values[i]), name)
      elseif values[i] == "none" or values[i] == "all" then
        check.that(not now[name], name)
      elseif values[i] == "fp32" and name == "precision" then
        check.equal(now.precision, "fp32")
      end
    end
  end
end)

-- ---- names ------------------------------------------------------------------------------------------------------------------

local ROOT = fs.dirname(DOCS)

-- All pages that users and contributors read: name -> text.
local function pages()
  local list = { ["README.md"] = fs.read(fs.join(ROOT, "README.md")) }
  for _, name in ipairs(fs.list(DOCS)) do
    if name:find "%.md$" then list[name] = fs.read(fs.join(DOCS, name)) end
  end
  return list
end

test("docs/reference.md: every public name", function()
  local text, missing = fs.read(fs.join(DOCS, "reference.md")), {}
  local source = fs.read(fs.join(ROOT, "lua", "lorarun", "init.lua"))
  local modules = source:match "local MODULES = (%b{})"
  local functions = source:match "local FUNCTIONS = (%b{})"
  local function look(name) if not text:find(("%%f[%%w]lr%%.%s%%f[^%%w_]"):format(name)) then missing[#missing + 1] = name end end
  for name in modules:gmatch "([%w_]+) = " do look(name) end
  for name in functions:gmatch "\n  ([%w_]+) = function" do look(name) end
  look "comm"
  check.equal(table.concat(missing, ", "), "")
end)

-- Functions of lr and methods of models, tensors and tokenizers in the pages are looked up in the objects that a recipe gets.
test("docs: names of the API in the pages exist", function()
  local lr = require "lorarun"
  local classes = { model = require("lorarun.models.model").Model, t = lr.tensor.Tensor,
    tok = lr.load_tokenizer(fs.join(os.getenv "LORARUN_TESTS", "golden", "bert")) }
  local ELSEWHERE = { ["lr.h"] = true }
  for page, text in sorted(pages()) do
    for name in text:gmatch "%f[%w_./]lr%.[%l_][%w_.]*" do
      name = name:gsub("%.+$", "")
      local value = lr
      for part in name:sub(4):gmatch "[^.]+" do
        if ELSEWHERE[name] then break end
        local ok, field = pcall(function() return value[part] end)
        check.that(ok and field ~= nil, ("%s: there is no %s"):format(page, name))
        value = field
      end
    end
    for object, method in text:gmatch "%f[%w_]([%a]+):([%l_]+)[%({ ]" do
      local class = classes[object]
      check.that(not class or class[method], ("%s: there is no %s:%s"):format(page, object, method))
    end
  end
  classes.tok:free()
end)

test("docs: variables LORARUN_... in the pages are known to the program, and the reference lists all of them", function()
  for page, text in sorted(pages()) do
    for name in text:gmatch "LORARUN_[%u_]+" do
      local built = text:find("-D" .. name, 1, true) or name == "LORARUN_CUDA" -- an option of CMake
      check.that(built or #variables.check { [name] = "" } == 0, ("%s: nothing reads %s"):format(page, name))
    end
  end
  local text = fs.read(fs.join(DOCS, "reference.md"))
  local of_users = fs.read(fs.join(ROOT, "lua", "lorarun", "cli", "variables.lua")):match "local OURS = (%b{})"
  for name in of_users:gmatch "%f[%w_](%u[%u_]+) = " do
    check.that(text:find("`LORARUN_" .. name), "reference.md lacks LORARUN_" .. name)
  end
end)

test("docs/launching.md: every flag of ranks", function()
  local text = fs.read(fs.join(DOCS, "launching.md"))
  for _, flag in ipairs(settings.flags()) do check.that(text:find("`" .. flag, 1, true), "launching.md lacks " .. flag) end
end)

-- A flag in a page belongs to the program, a recipe, a tool or a benchmark, so its name must stand in their code.
test("docs: flags in the pages exist", function()
  local code = {}
  local function gather(folder)
    for _, name in ipairs(fs.list(folder)) do
      local path = fs.join(folder, name)
      if fs.is_directory(path) then gather(path) elseif name:find "%.[%l]+$" then code[#code + 1] = fs.read(path) end
    end
  end
  for _, folder in ipairs { "lua", "recipes", "bench", "tools" } do gather(fs.join(ROOT, folder)) end
  local all = table.concat(code, "\n")
  local OTHERS = { ["--user"] = true }
  for page, text in sorted(pages()) do
    for flag in text:gmatch "%f[%-%w]%-%-(%l[%w_-]+)" do
      local name = flag:gsub("-", "_")
      check.that(all:find("--" .. flag, 1, true) or all:find('{ "' .. name .. '"', 1, true)
        or settings.is_flag(flag) or all:find("%f[%w_]" .. name .. " = ") or OTHERS["--" .. flag],
        ("%s: there is no flag --%s"):format(page, flag))
    end
  end
end)
