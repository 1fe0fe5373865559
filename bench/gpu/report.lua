-- report.lua: the figures of a run of the GPU benchmarks, printed as they come and written as JSON and as markdown.
--
--   local report = dofile(".../report.lua").new(folder, { gpu = "NVIDIA H100 ...", ... })
--   report:table("gemm", "Products of the 7B", { "product", "tokens", "ms", "TFLOP/s" })
--   report:row("gemm", { "gate|up", 8192, 3.2, 695 }, { m = 8192, ... })     the second table goes only into the JSON
--   report:note("..."); report:save(); report:summary()
-- Every row saves the files, so that a run that is cut short keeps its figures.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"

local Report = {}
Report.__index = Report

local function new(folder, about)
  fs.make(folder)
  return setmetatable({ folder = folder, about = about, tables = {}, by_name = {}, notes = {}, lines = {} }, Report)
end

local function with_commas(n)
  local text, times = ("%d"):format(n), 1
  while times > 0 do text, times = text:gsub("^(-?%d+)(%d%d%d)", "%1,%2") end
  return text
end

local function text_of(value)
  if type(value) ~= "number" then return tostring(value) end
  if value % 1 == 0 then return with_commas(value) end
  local size = math.abs(value)
  return (size >= 1000 and "%.0f" or size >= 100 and "%.1f" or size >= 1 and "%.2f" or "%.4f"):format(value)
end

local FIRST, OTHERS = 36, 11 -- widths of columns on the terminal

local function line_of(cells)
  local parts = {}
  for i, cell in ipairs(cells) do
    local text = text_of(cell)
    parts[i] = text .. (" "):rep((i == 1 and FIRST or OTHERS) - #text)
  end
  return (table.concat(parts, "  "):gsub("%s+$", ""))
end

function Report:table(name, title, columns)
  local t = { name = name, title = title, columns = columns, rows = {}, data = {} }
  self.tables[#self.tables + 1], self.by_name[name] = t, t
  print(("\n== %s\n%s"):format(title, line_of(columns)))
end

function Report:row(name, cells, data)
  local t = self.by_name[name]
  t.rows[#t.rows + 1] = cells
  data = data or {}
  data.cells = cells
  t.data[#t.data + 1] = data
  print(line_of(cells))
  self:save()
end

--- Adds a sentence to the figures, such as what was skipped, and why.
function Report:note(format, ...)
  local text = format:format(...)
  self.notes[#self.notes + 1] = text
  print("-- " .. text)
  self:save()
end

--- Adds a line to the short table at the end.
function Report:headline(format, ...) self.lines[#self.lines + 1] = format:format(...) end

local function markdown(self)
  local out = { ("Measured on %s, %s, with lorarun %s: `%s`."):format(self.about.gpu, self.about.date, self.about.lorarun,
    self.about.command), "" }
  for _, t in ipairs(self.tables) do
    out[#out + 1] = "### " .. t.title
    out[#out + 1] = "| " .. table.concat(t.columns, " | ") .. " |"
    out[#out + 1] = "|" .. ("---|"):rep(#t.columns)
    for _, row in ipairs(t.rows) do
      local cells = {}
      for i, cell in ipairs(row) do cells[i] = text_of(cell) end
      out[#out + 1] = "| " .. table.concat(cells, " | ") .. " |"
    end
    out[#out + 1] = ""
  end
  for _, note in ipairs(self.notes) do out[#out + 1] = "- " .. note end
  return table.concat(out, "\n") .. "\n"
end

function Report:save()
  local tables = {}
  for i, t in ipairs(self.tables) do
    tables[i] = { name = t.name, title = t.title, columns = json.array(t.columns), rows = json.array(t.data) }
  end
  fs.write(fs.join(self.folder, "bench-gpu.json"), json.encode({ about = self.about, tables = json.array(tables),
    notes = json.array(self.notes) }, { indent = 1, sort_keys = true }) .. "\n")
  fs.write(fs.join(self.folder, "bench-gpu.md"), markdown(self))
end

function Report:summary()
  print(("\n== %s, %s"):format(self.about.gpu, self.about.date))
  for _, line in ipairs(self.lines) do print(line) end
  for _, note in ipairs(self.notes) do print("-- " .. note) end
  print(("bench-gpu.json and bench-gpu.md are in %s"):format(self.folder))
end

return { new = new }
