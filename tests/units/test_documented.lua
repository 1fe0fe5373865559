-- What the documentation says of defaults is what the code does: the tables of docs/ are read and compared, both ways.
local bugdata = require "lorarun.bugdata"
local fs = require "lorarun.base.fs"
local settings = require "lorarun.dist.settings"
local train_options = require "lorarun.train.train_options"

local DOCS = fs.join(fs.dirname(os.getenv "LORARUN_TESTS"), "docs")

-- The rows of the table whose head begins with `head`: lists of cells without the bars between them.
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
  tensor.scope(function() -- two pairs of equal unit vectors, the cosine between the pairs is 0.8: log(1 + exp(-scale (1 - 0.8)))
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
