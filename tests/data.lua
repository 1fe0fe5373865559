-- data.lua: for tests: data folders.  local data = dofile(os.getenv "LORARUN_TESTS" .. "/data.lua")
local data_folder = require "lorarun.formats.data_folder"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"

local data = {}

--- write_rows(path, count, row): a .jsonl file of row(1) to row(count).
function data.write_rows(path, count, row)
  local lines = {}
  for i = 1, count do lines[i] = json.encode(row(i)) .. "\n" end
  fs.write(path, table.concat(lines))
end

--- make(folder, counts, row): a data folder, whose path is returned. counts: { train = 60, validation = 2 }, or one number for
--- train, validation and test.
function data.make(folder, counts, row)
  fs.make(folder)
  for _, split in ipairs(data_folder.SPLITS) do
    local count = type(counts) == "table" and counts[split] or type(counts) == "number" and counts
    if count then data.write_rows(fs.join(folder, split .. ".jsonl"), count, row) end
  end
  return folder
end

return data
