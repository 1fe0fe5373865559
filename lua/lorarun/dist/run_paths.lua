-- run_paths.lua: refuses an output folder that is, holds, or lies in an input. The run would replace the weights or rows that it
-- reads, or the next run would find its files among them.
--
--   run_paths.refuse_overlap("--output", "out", { { "the model", "models/base" }, { "the data", "data" } })
--
-- Paths are compared as the system resolves them: links and ".." count, and the output need not exist.
local check = require "lorarun.base.check"
local data_folder = require "lorarun.formats.data_folder"
local fs = require "lorarun.base.fs"

local run_paths = {}

--- real(path): the absolute path with links resolved. The part that does not exist yet is appended as it is.
function run_paths.real(path)
  local missing = {}
  while not fs.exists(path) do
    missing[#missing + 1] = fs.basename(path)
    path = fs.dirname(path)
  end
  local real = fs.real(path)
  for i = #missing, 1, -1 do
    if missing[i] == ".." then real = fs.dirname(real)
    elseif missing[i] ~= "." then real = fs.join(real, missing[i]) end
    if fs.exists(real) then real = fs.real(real) end -- a ".." may lead to a link
  end
  return real
end

local function inside(path, folder)
  return folder == "/" or path:sub(1, #folder + 1) == folder .. "/"
end

--- refuse_overlap(option, output, inputs): an error where the folder `output`, given as `option`, is, holds, or lies in one of the
--- inputs: { what, path }, each a folder or a file; those without a path or that do not exist are left out.
function run_paths.refuse_overlap(option, output, inputs)
  local folder = run_paths.real(output)
  for _, input in ipairs(inputs) do
    local what, path = input[1], input[2]
    if type(path) == "string" and path ~= "" and fs.exists(path) then
      local real = fs.real(path)
      local relation = real == folder and "is" or inside(folder, real) and "lies inside" or inside(real, folder) and "holds"
      if relation then
        check.fail("%s %s %s %s (%s): writing there would change what is read; choose another folder", option, output, relation,
          what, path)
      end
    end
  end
end

--- of_data(data): the inputs that a run's `data` stands for: a folder, or files by their split.
function run_paths.of_data(data)
  if type(data) ~= "table" then return { { "the data", data } } end
  local list = {}
  for _, split in ipairs(data_folder.SPLITS) do
    list[#list + 1] = { ("the %s data"):format(split), data[split] }
  end
  return list
end

--- of_model(model): the folders that a loaded model was read from.
function run_paths.of_model(model)
  return { { "the model", model.folder }, { "the model's weights", model.weights_folder }, { "the adapter", model.adapter_folder } }
end

return run_paths
