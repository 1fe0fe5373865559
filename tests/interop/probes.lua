-- probes.lua: embeddings as lorarun computes them, for other programs to compare with, and the other way round.
--   lorarun tests/interop/probes.lua write FOLDER TEXTS.json OUT.json     TEXTS.json: { "texts": [...] }
--   lorarun tests/interop/probes.lua check FOLDER PROBES.json   PROBES.json: also "embeddings": [[...], ...], "max_length": n
--   lorarun tests/interop/probes.lua save FOLDER PROBES.json NEW  the same, and the adapter of FOLDER is written to the folder NEW
-- FOLDER holds a model or an adapter. `check` prints the largest difference and ends with status 1 if it is above 1e-4, or
-- if the model cuts texts at another length.
local lr = require "lorarun"
local mode, folder, texts_path, last = arg[1], arg[2], arg[3], arg[4]

local given = lr.json.decode(lr.fs.read(texts_path), texts_path)
local model = lr.load_model(folder)
local texts = {}
-- sentence-transformers strips white space from both ends of a text before it makes tokens of it.
for i, text in ipairs(given.texts) do texts[i] = text:match "^%s*(.-)%s*$" end
local embeddings = model:encode(texts):to_table()

if mode == "write" then
  lr.fs.write(last, lr.json.encode { texts = texts, embeddings = embeddings, max_length = model.max_length })
elseif mode == "check" or mode == "save" then
  local tolerance, worst = 1e-4, 0
  if #given.embeddings ~= #texts or #texts == 0 then error(("%d texts, %d embeddings"):format(#texts, #given.embeddings)) end
  for i, row in ipairs(given.embeddings) do
    if #row ~= model.dimension then error(("embedding %d has %d numbers, expected %d"):format(i, #row, model.dimension)) end
    for k, value in ipairs(row) do
      local difference = math.abs(value - embeddings[i][k])
      if not (difference <= worst) then worst = difference end -- NaN is the worst
    end
  end
  if model.max_length ~= given.max_length then
    error(("max_length is %d, expected %d"):format(model.max_length, given.max_length))
  end
  print(("%d embeddings, largest difference %.2g, allowed is %.2g"):format(#texts, worst, tolerance))
  if mode == "save" then model:save_adapter(last) end
  model:free()
  if not (worst <= tolerance) then os.exit(1, true) end
else
  error("usage: probes.lua write FOLDER TEXTS.json OUT.json | check FOLDER PROBES.json | save FOLDER PROBES.json NEW")
end
