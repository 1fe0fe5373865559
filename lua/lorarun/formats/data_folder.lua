-- data_folder.lua: which files the data of a run is: what lr.train and lr.launch take as `data` is a folder, or a table of paths.
--   { train = path, validation = path, test = path }; all but train may be missing
--   a folder with train.jsonl or train.csv, and so on
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"

local data_folder = {}

data_folder.SPLITS = { "train", "validation", "test" }

--- path(data, split): the file of a split; nil where there is none. An error where a folder has two.
function data_folder.path(data, split)
  if type(data) == "table" then return data[split] end
  local found = {}
  for _, suffix in ipairs { ".jsonl", ".csv" } do
    local path = fs.join(data, split .. suffix)
    if fs.is_file(path) then found[#found + 1] = path end
  end
  if #found > 1 then
    check.fail("there are both %s and %s: give what is meant, as in data = { train = path, validation = path, test = path }",
      found[1], found[2])
  end
  return found[1]
end

--- train_path(data): the path of the training rows; an error where there is none.
function data_folder.train_path(data)
  return data_folder.path(data, "train") or check.fail("there is no train.jsonl (or train.csv) in '%s'", tostring(data))
end

return data_folder
