-- verify.lua: `lorarun verify`: does a folder that lorarun wrote compute what the model in memory did? See models/probes.lua.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local device_traits = require "lorarun.tensor.device_traits"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local probes = require "lorarun.models.probes"
local say = require "lorarun.base.say"
local settings = require "lorarun.dist.settings"
local suggest = require "lorarun.base.suggest"
local using = require "lorarun.base.using"

local verify = {}

local USAGE = [=[
usage: lorarun verify [options] FOLDER...

Loads a folder that lorarun wrote (merged weights or an adapter) and compares the embeddings of the texts in its lorarun_probes.json
with those of the model that was saved. A missing adapter, another base, pooling, tokenizer or length show as a difference.

  --python           print the three lines of Python that compare with sentence-transformers, and load nothing
  --precision P      fp32, bf16 or fp16; default: the model's own, or fp32 where this machine lacks that
  --device D         cpu or cuda; default: the GPU where there is one
  --help             show this and exit

Exit status: 0 the same embeddings; 1 other embeddings, or the folder does not load; 2 wrong usage; 3 unknown: the folder has no
probes, or its adapter changes nothing.
]=]

-- It must stay three lines. Every version of transformers understands torch_dtype; without it version 5 computes in the weights'
-- 16 bits.
local PYTHON = {
  'import json, numpy as np; from sentence_transformers import SentenceTransformer; folder, n = FOLDER, np.linalg.norm\n',
  'p = json.load(open(folder + "/lorarun_probes.json", encoding="utf-8")); a, b = np.array(p["embeddings"]), np.array(p["base"]); ',
  'e = SentenceTransformer(folder, model_kwargs={"torch_dtype": "float32"}).encode(p["texts"]); k = b.shape[1]\n',
  'print("the same embeddings" if n(e - a) <= p["allowed"] * n(a) and (p["change"] < 0.1 * p["allowed"] or ',
  'n((e - a)[:, :k]) <= n(e[:, :k] - b)) ',
  'else "OTHER EMBEDDINGS", "difference", n(e - a) / n(a), "allowed", p["allowed"])\n',
}

--- python(folder): the three lines of Python that compare a folder's embeddings as sentence-transformers computes them.
function verify.python(folder)
  local path = json.encode(fs.real(folder)):gsub("%%", "%%%%")
  return (table.concat(PYTHON):gsub("FOLDER", path))
end

--- folder(path, options): compare, with options precision and device: { verdict = "same", "other", "unlearned", "unclear",
--- difference, change, text }. An error where the folder has no probes or does not load.
function verify.folder(path, options)
  options = options or {}
  suggest.refuse_unknown("lr.verify", options, { precision = true, device = true })
  if not fs.is_directory(path) then check.fail("'%s' is not a folder", path) end
  local stored = probes.read(path)
    or check.fail("%s has no %s: it was not written by lorarun, or by an older one", path, probes.FILE)
  local device = options.device or require("lorarun.tensor.tensor").default_device
  local stored_precision = stored.precision == "fp16" and not device_traits.of(device).fp16 and "fp32" or stored.precision
  local precision = options.precision or stored_precision
  local model = require("lorarun.models.model").load(path, { precision = precision, device = device })
  return using(model, model.free, function() return probes.compare(stored, model) end)
end

local OPTIONS = { "--python", "--precision", "--device", "--help" }
local STATUS = { same = 0, other = 1, unlearned = 3, unclear = 3 }

-- The words after `lorarun verify`: { folders, python, precision, device }, or { help = true }.
local function read(words)
  local given, i, flag = { folders = {} }, 1, settings.any_given()
  if flag then
    check.fail("%s says how ranks run, and lorarun verify has none: --device and --precision go after the word verify", flag)
  end
  while i <= #words do
    local word = words[i]
    if word == "--help" or word == "-h" then return { help = true } end
    if word == "--python" then
      given.python = true
    elseif word == "--precision" or word == "--device" then
      i = i + 1
      given[word:sub(3)] = words[i] or check.fail("%s needs a value", word)
    elseif word:sub(1, 1) == "-" then
      check.fail("lorarun verify does not know '%s'%s", word, suggest.did_you_mean(word, OPTIONS))
    else
      given.folders[#given.folders + 1] = word
    end
    i = i + 1
  end
  if #given.folders == 0 then check.fail("lorarun verify needs a folder (lorarun verify --help)") end
  return given
end

-- One folder: its exit status.
local function one(folder, given)
  if not fs.is_directory(folder) then check.fail("'%s' is not a folder", folder) end
  if not probes.read(folder) then
    say.note("%s has no %s: it was not written by lorarun, or by an older one", folder, probes.FILE)
    return 3
  elseif given.python then
    io.write(verify.python(folder))
    return 0
  end
  local result = verify.folder(folder, { precision = given.precision, device = given.device })
  say.line(("%s: %s: %s"):format(folder, result.verdict == "same" and "the same" or result.verdict == "other" and "OTHER EMBEDDINGS"
    or "cannot be told", result.text))
  return STATUS[result.verdict]
end

--- run(words): the command. Returns the exit status.
function verify.run(words)
  local failure = require "lorarun.cli.failure"
  local ok, given = failure.call(read, words)
  if not ok then
    say.note("%s", given.message)
    return 2
  elseif given.help then
    io.write(USAGE)
    return 0
  end
  if not given.device and C.lr_device_count(C.LR_CUDA) > 0 then given.device = "cuda" end
  local worst = 0
  for _, folder in ipairs(given.folders) do
    local done, status = failure.call(one, folder, given)
    if not done then
      io.stdout:flush()
      say.note("%s", status.message)
      status = 1
    end
    if status == 1 or worst == 0 then worst = status end
  end
  return worst
end

return verify
