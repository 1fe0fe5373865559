-- run_files.lua: the text files of a run's folder: log.jsonl, the evaluation CSV, training_config.json, evaluation.json, the
-- recipe.
local fs = require "lorarun.fs"
local json = require "lorarun.json"

local run_files = {}
local Files = {}
Files.__index = Files

local LEVELS = 2 -- of folders in a run's: checkpoints/step-00000123

--- sweep(folder): remove what ranks that were killed were writing in a run's folder.
function run_files.sweep(folder)
  if not fs.is_directory(folder) then return end
  fs.sweep(folder, LEVELS)
  require("lorarun.checkpoint").sweep(fs.join(folder, "checkpoints"))
end

function run_files.new(folder)
  fs.make(folder)
  return setmetatable({ folder = folder, log_path = fs.join(folder, "log.jsonl") }, Files)
end

-- Keep the lines of a text file for which keep(line) holds; atomic.
local function filter(path, keep)
  if not fs.is_file(path) then return end
  local kept = {}
  for line in fs.read(path):gmatch "[^\n]+" do
    if keep(line) then kept[#kept + 1] = line .. "\n" end
  end
  fs.write(path, table.concat(kept))
end

--- Begin: a fresh run starts empty files; one resumed at `step` drops what an interrupted run logged after it, so that the files
--- read as if it had never stopped.
function Files:begin(step)
  run_files.sweep(self.folder)
  filter(self.log_path, function(line) return step > 0 and (tonumber(line:match '"step": (%d+)') or math.huge) <= step end)
  for _, name in ipairs(fs.list(self.folder)) do
    if name:find "^similarity_evaluation_.*_results%.csv$" then
      filter(fs.join(self.folder, name), function(line)
        local at = line:match "^[^,]*,(%d+),"
        return step > 0 and (not at or tonumber(at) <= step)
      end)
    end
  end
end

--- One line of log.jsonl.
function Files:log(record) fs.append(self.log_path, json.encode(record, { sort_keys = true }) .. "\n") end

--- One line of similarity_evaluation_<name>_results.csv, sentence-transformers' format. A correlation that is not defined is nan.
function Files:evaluation(name, epoch, step, result)
  local path = fs.join(self.folder, "similarity_evaluation_" .. name .. "_results.csv")
  local head = (not fs.is_file(path) or fs.stat(path).size == 0) and "epoch,steps,cosine_pearson,cosine_spearman\n" or ""
  local function number(x) return x and ("%.17g"):format(x) or "nan" end
  fs.append(path, ("%s%g,%d,%s,%s\n"):format(head, epoch, step, number(result.pearson), number(result.spearman)))
end

--- Any table as indented JSON.
function Files:json(name, value)
  fs.write(fs.join(self.folder, name), json.encode(value, { indent = 2, sort_keys = true }) .. "\n")
end

--- The recipe's text, as it ran.
function Files:recipe(path)
  if path and fs.is_file(path) then fs.copy(path, fs.join(self.folder, "recipe.lua")) end
end

return run_files
