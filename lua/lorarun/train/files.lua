-- files.lua: the text files of a run's folder: log.jsonl, the evaluation CSV, training_config.json, evaluation.json, the recipe.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"

local files = {}
local Files = {}
Files.__index = Files

local LEVELS = 2 -- of folders in a run's folder: checkpoints/step-00000123

--- sweep(folder): remove the partial files of ranks that were killed from a run's folder.
function files.sweep(folder)
  if not fs.is_directory(folder) then return end
  for _, name in ipairs(fs.list(folder)) do
    if name:find "^%.partial%-" then fs.remove(fs.join(folder, name)) end -- shards of a model
  end
  fs.sweep(folder, LEVELS)
  require("lorarun.train.checkpoint").sweep(fs.join(folder, "checkpoints"))
end

function files.new(folder)
  return setmetatable({ folder = folder, log_path = fs.join(folder, "log.jsonl"), waiting = {} }, Files)
end

-- Keep the whole lines of a text file for which keep(line) holds; atomic. A last line without a line feed was cut off when the run
-- was killed, or the disk was full.
local function filter(path, keep)
  if not fs.is_file(path) then return end
  local text, kept = fs.read(path), {}
  for line in text:gmatch "([^\n]*)\n" do
    if keep(line) then kept[#kept + 1] = line .. "\n" end
  end
  local result = table.concat(kept)
  if result ~= text then fs.write(path, result) end
end

-- ---- evaluations ---------------------------------------------------------------------------------------------------------------
local HEAD = "epoch,steps,cosine_pearson,cosine_spearman" -- of sentence-transformers' files

-- The step of a row; nil for a line that is no row.
local function step_of_row(line) return tonumber(line:match "^[^,]+,(%d+),[^,]+,[^,]+$") end

-- Keep the rows whose step fits(step).
local function filter_rows(path, fits)
  filter(path, function(line)
    local step = step_of_row(line)
    return line == HEAD or step ~= nil and fits(step)
  end)
end

-- Call fn when the run has begun.
local function when_begun(self, fn)
  if self.waiting then self.waiting[#self.waiting + 1] = fn else fn() end
end

--- begin(step, evaluation_due): a fresh run starts empty files; one resumed at `step` drops what an interrupted run logged after
--- it, so that the files read as if it had never stopped. evaluation_due: the step is evaluated by this run. What was logged
--- before is written now.
function Files:begin(step, evaluation_due)
  files.sweep(self.folder)
  filter(self.log_path, function(line)
    local at = line:find "^{.*}$" and tonumber(line:match '"step": (%d+)')
    return step > 0 and at and at <= step and not (evaluation_due and at == step and line:find('"kind": "evaluation"', 1, true))
  end)
  for _, name in ipairs(fs.list(self.folder)) do
    if name:find "^similarity_evaluation_.*_results%.csv$" then
      if step > 0 then filter_rows(fs.join(self.folder, name), function(at) return at <= step end)
      else fs.write(fs.join(self.folder, name), "") end
    end
  end
  local waiting = self.waiting
  self.waiting = nil
  for _, fn in ipairs(waiting) do fn() end
end

--- One line of log.jsonl.
function Files:log(record)
  local line = json.encode(record, { sort_keys = true }) .. "\n"
  when_begun(self, function() fs.append(self.log_path, line) end)
end

--- One line of similarity_evaluation_<name>_results.csv, in sentence-transformers' format. It replaces the lines of the same step
--- and of later ones, which a resumed run evaluates again. An undefined correlation is nan.
function Files:evaluation(name, epoch, step, result)
  local path = fs.join(self.folder, "similarity_evaluation_" .. name .. "_results.csv")
  local function number(x) return x and ("%.17g"):format(x) or "nan" end
  local row = ("%g,%d,%s,%s\n"):format(epoch, step, number(result.pearson), number(result.spearman))
  when_begun(self, function()
    filter_rows(path, function(at) return at < step end)
    local new = not fs.is_file(path) or fs.stat(path).size == 0
    fs.append(path, (new and HEAD .. "\n" or "") .. row)
  end)
end

--- Any table as indented JSON.
function Files:json(name, value)
  fs.write(fs.join(self.folder, name), json.encode(value, { indent = 2, sort_keys = true }) .. "\n")
end

--- The recipe's text, as it ran.
function Files:recipe(path)
  if path and fs.is_file(path) then fs.copy(path, fs.join(self.folder, "recipe.lua")) end
end

return files
