-- probes.lua: does a written folder compute what the model in memory did? A few texts and their embeddings lie in the folder
-- (lorarun_probes.json), with those of the base: an adapter that is silently left out gives the base's. lorarun loads what it wrote
-- again and compares; `lorarun verify` (verify.lua) does so later, and in Python three lines.
local check = require "lorarun.base.check"
local device_traits = require "lorarun.tensor.device_traits"
local dtypes = require "lorarun.base.dtypes"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local memory = require "lorarun.tensor.memory"
local say = require "lorarun.base.say"
local units = require "lorarun.base.units"
local using = require "lorarun.base.using"

local probes = {}

probes.FILE = "lorarun_probes.json"
probes.COUNT = 16

local MOST_BYTES = 2000 -- of a text
local BASE_WIDTH = 256 -- numbers kept of each of the base's embeddings: enough to tell whose an embedding is
-- Largest |e - a| / |a| over all texts. Between programs and machines f32 differs by about 1e-5; 16 bits by some 1e-2 a model.
local ALLOWED, ALLOWED_COARSE = 1e-3, 0.1
-- A change below these shares of what is allowed, and of the difference that is found, is not told from rounding: whether an
-- embedding is nearer to the base's is then chance. Where an adapter is left out, the difference is the change and rounding across
-- it, so the second share admits rounding of half the change (1 / sqrt(1 + 0.5^2) = 0.9).
local RESOLVED, RESOLVED_OF_DIFFERENCE = 0.1, 0.9

-- For models that are saved without data at hand.
local TEXTS = { "def area(width, height):\n    return width * height", "for (int i = 0; i <= n; i++) sum += a[i];", "return None",
  "if x == 1:", "x = y[i] + 1 if a < b else None", "SELECT name FROM users WHERE id = 7", "import numpy as np", "print(\"hello\")",
  "The quick brown fox jumps over the lazy dog.", "How do I read a file line by line?", "1 2 3", "naïve café, 漢字",
  "A function that returns the larger of two numbers.", "Where is the nearest station?", "The train leaves at noon.",
  "try: value = cache[key]\nexcept KeyError: pass" }

-- What Python's str.strip takes off: sentence-transformers up to 5.3 does, so a text with white space at its ends would not be the
-- same text everywhere.
local SPACES = { "%s", "[\28-\31]", "\194[\133\160]", "\225\154\128", "\226\128[\128-\138\168\169\175]", "\226\129\159",
  "\227\128\128" }

local function strip(text)
  local before
  repeat
    before = text
    for _, space in ipairs(SPACES) do text = text:gsub("^" .. space, ""):gsub(space .. "$", "") end
  until text == before
  return text
end

-- At most MOST_BYTES of it, whole characters.
local function shorten(text)
  local cut = text:sub(1, MOST_BYTES)
  if text:find("^[\128-\191]", MOST_BYTES + 1) then cut = cut:gsub("[\192-\255][\128-\191]*$", "") end
  return strip(cut)
end

--- texts_of(set, columns): COUNT different texts of a data set, from all over it, the columns in turn; always the same.
function probes.texts_of(set, columns)
  local texts, seen, column = {}, {}, 0
  local stride = math.max(1, math.floor(set.rows / (4 * probes.COUNT)))
  for row = 0, set.rows - 1, stride do
    if #texts == probes.COUNT then break end
    if row / set.rows >= #texts / probes.COUNT then
      column = column % #columns + 1
      local text = shorten(set:text(row, columns[column]))
      if text ~= "" and not seen[text] then seen[text], texts[#texts + 1] = true, text end
    end
  end
  return #texts > 0 and texts or TEXTS
end

-- ---- measuring ---------------------------------------------------------------------------------------------------------------
local function encode(model, texts)
  local e = model:encode(texts)
  local rows = e:to_table()
  e:free()
  return rows
end

-- |a - b| of the first `width` numbers of all rows; b nil: |a|.
local function distance(a, b, width)
  local sum = 0
  for i, row in ipairs(a) do
    for k = 1, width or #row do sum = sum + (row[k] - (b and b[i][k] or 0)) ^ 2 end
  end
  return math.sqrt(sum)
end

--- measure(model, texts): what is to be stored of the model as it is in memory, its adapter included: { texts, embeddings, base,
--- change = |embeddings - base| / |base|, precision }. texts: default: some of lorarun's own.
function probes.measure(model, texts)
  texts = texts or TEXTS
  local embeddings = encode(model, texts)
  local base = model.lora and model.lora:off(function() return encode(model, texts) end) or embeddings
  return { texts = texts, embeddings = embeddings, base = base, change = distance(embeddings, base) / distance(base),
    precision = model.precision }
end

-- Six digits are enough, and a third of the bytes.
local function rounded(rows, width)
  local list = {}
  for i, row in ipairs(rows) do
    list[i] = {}
    for k = 1, math.min(width or #row, #row) do list[i][k] = tonumber(("%.6g"):format(row[k])) end
  end
  return json.array(list)
end

--- write(folder, measured, coarse): store it. coarse: the folder's weights were rounded to 16 bits.
function probes.write(folder, measured, coarse)
  if measured.change ~= measured.change then
    check.fail("%s was written, but embeddings of the model in memory are not numbers: it has diverged, or was so", folder)
  end
  coarse = coarse or measured.precision ~= "fp32" or require("lorarun.base.c").lr_tf32(-1) ~= 0
  fs.write(fs.join(folder, probes.FILE), json.encode {
    lorarun = require "lorarun.base.version", texts = json.array(measured.texts), embeddings = rounded(measured.embeddings),
    base = rounded(measured.base, BASE_WIDTH), change = measured.change, precision = measured.precision,
    allowed = coarse and ALLOWED_COARSE or ALLOWED })
end

-- ---- comparing ---------------------------------------------------------------------------------------------------------------
local function is_matrix(rows, count)
  local ok = type(rows) == "table" and #rows == count
  for _, row in ipairs(ok and rows or {}) do
    ok = ok and type(row) == "table" and #row > 0 and #row == #rows[1]
    for _, x in ipairs(ok and row or {}) do ok = ok and type(x) == "number" end
  end
  return ok
end

--- read(folder): what write() stored there, checked; nil where there is none.
function probes.read(folder)
  local path = fs.join(folder, probes.FILE)
  if not fs.is_file(path) then return nil end
  local stored = json.decode_file(path)
  local texts = type(stored) == "table" and stored.texts
  local ok = type(texts) == "table" and #texts > 0 and type(stored.allowed) == "number" and type(stored.change) == "number"
    and is_matrix(stored.embeddings, #texts) and is_matrix(stored.base, #texts) and #stored.base[1] <= #stored.embeddings[1]
  for _, text in ipairs(ok and texts or {}) do ok = ok and type(text) == "string" end
  if not ok then check.fail("%s is no file of probes, or a damaged one", path) end
  return stored
end

--- compare(stored, model): { verdict = "same", "other", "unlearned" or "unclear", difference, text }
function probes.compare(stored, model)
  local rows = encode(model, stored.texts)
  if #rows[1] ~= #stored.embeddings[1] then
    return { verdict = "other", difference = math.huge,
      text = ("embeddings have %d numbers, not %d"):format(#rows[1], #stored.embeddings[1]) }
  end
  local width = #stored.base[1]
  local allowed = model.precision == "fp32" and stored.allowed or ALLOWED_COARSE
  local difference = distance(rows, stored.embeddings) / distance(stored.embeddings)
  local astray = distance(rows, stored.embeddings, width) > distance(rows, stored.base, width)
  local result = { verdict = "same", difference = difference, change = stored.change }
  local resolved = stored.change >= math.max(RESOLVED * allowed, RESOLVED_OF_DIFFERENCE * difference)
  if not (difference <= allowed) or astray and resolved then
    result.verdict = "other"
  elseif stored.change == 0 then
    result.verdict = "unlearned"
  elseif not resolved then
    result.verdict = "unclear"
  end
  result.text = ("%d texts: the embeddings differ by %.2g (allowed is %g)"):format(#rows, difference, allowed)
  if result.verdict == "other" then
    result.text = result.text .. (astray and "; they are nearer to the base's: the adapter is not applied" or "")
  elseif result.verdict == "unlearned" then
    result.text = result.text .. "; they are the base's: there is no adapter, or it has learnt nothing (its B is zero)"
  else
    result.text = ("%s; the adapter changes them by %.2g%s"):format(result.text, stored.change, resolved and ""
      or ", which rounding hides: whether it is applied cannot be told")
  end
  return result
end

-- Bytes that loading a model a second time takes: weights in their layouts, and something for a pass.
local function bytes_of(model)
  local layouts = device_traits.of(model.device).plain_weights and 1 or 2 -- of a weight, one for each direction
  return 1.1 * model:frozen_count() * dtypes.bytes[dtypes.of_precision[model.precision]] * layouts + 64e6
end

--- again(model, folder): load the folder that the model has just written, on the same device in the same precision, and compare:
--- compare()'s result, or nil and why it cannot be loaded beside the model here. An error where it does not load.
function probes.again(model, folder)
  local bytes, free = bytes_of(model), memory.available(model.device)
  if free and bytes > free then
    return nil, ("loading it beside the model takes %s, and %s are free"):format(units.size(bytes), units.size(free))
  end
  local ok, result = pcall(function()
    local other = model:another(folder)
    return using(other, other.free, function() return probes.compare(probes.read(folder), other) end)
  end)
  if ok then return result end
  if tostring(result):find "out of [%w ]*memory" then return nil, "there is not enough memory to load it beside the model" end
  check.fail("%s was written, and does not load again: %s", folder, result)
end

--- demand(model, folder): again(), and an error where the folder computes something else, which the message says is kept; a note
--- where it cannot be told. Returns the line to show, or nil.
function probes.demand(model, folder)
  local result, why = probes.again(model, folder)
  if not result then
    say.note("%s is written, but not checked: %s. To check it: lorarun verify %s", folder, why, folder)
  elseif result.verdict == "other" then
    check.fail("%s was written, but what it computes is not what the model in memory does: %s. The folder is kept; "
      .. "lorarun verify %s compares again", folder, result.text, folder)
  elseif result.verdict ~= "same" and model.lora then
    say.note("warning: %s: %s", folder, result.text)
  else
    return ("%s, loaded again: %s"):format(folder, result.text)
  end
end

return probes
