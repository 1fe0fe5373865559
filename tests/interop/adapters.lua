-- adapters.lua ROOT AGAIN: each folder in ROOT holds an adapter and expected.json (check_adapters.py): its embeddings, or that it
-- must be refused. Each is loaded, compared, and written to AGAIN. The last line has the counts; the status is 1 if one was wrong.
local lr = require "lorarun"
local root, again = arg[1], arg[2]
local same, refused, wrong = 0, 0, 0

for _, name in ipairs(lr.fs.list(root)) do
  local folder = lr.fs.join(root, name)
  local expected = lr.json.decode_file(lr.fs.join(folder, "expected.json"))
  local ok, model = pcall(lr.load_model, folder)
  local worst = 0
  if ok then
    for i, row in ipairs(model:encode(expected.texts):to_table()) do
      for k, value in ipairs(row) do worst = math.max(worst, math.abs(value - expected.embeddings[i][k])) end
    end
    if not expected.refuse then model:save_adapter(lr.fs.join(again, name)) end
    model:free()
  end
  if not ok and expected.refuse and model:find("path_initial_model_for_weight_conversion", 1, true) then
    refused = refused + 1
  elseif ok and not expected.refuse and worst < 2e-5 then
    same = same + 1
  else
    wrong = wrong + 1
    print(("%s: %s; %s"):format(name, ok and ("differs by %.2g"):format(worst) or model, lr.json.encode(expected.config)))
  end
end
print(("%d adapters the same, %d refused that change the base, %d wrong"):format(same, refused, wrong))
if wrong > 0 or same == 0 then os.exit(1, true) end
