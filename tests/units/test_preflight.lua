-- The launcher's checks before it starts ranks: each setting that cannot work is one error, before anything has begun.
local fs = require "lorarun.base.fs"
local preflight = require "lorarun.dist.preflight"
local settings = require "lorarun.dist.settings"

local folder = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua").new_folder

local function looked(recipe, what)
  local lines = {}
  settings.forget()
  preflight.check(settings.resolve(recipe), what, function(line) lines[#lines + 1] = line end)
  return table.concat(lines, "\n")
end

local function model_in(dir, weights, name)
  fs.make(fs.join(dir, "model"))
  fs.write(fs.join(dir, "model/config.json"), "{}")
  local head = ('{"%s":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}'):format(name or "w", weights, 4 * weights)
  local f = assert(io.open(fs.join(dir, "model/model.safetensors"), "w"))
  f:write(string.char(#head), ("\0"):rep(7), head)
  f:seek("cur", 4 * weights - 1)
  f:write "x" -- a file with a hole: it has this size, but takes no space on the disk
  f:close()
  return fs.join(dir, "model")
end

test("each check that passes gives a line", function()
  local dir = folder()
  local model = model_in(dir, 1000)
  fs.make(fs.join(dir, "data"))
  fs.write(fs.join(dir, "data/train.jsonl"), "{}\n")
  local text = looked({ processes = 2 }, { model = model, data = fs.join(dir, "data"), output = fs.join(dir, "out/put") })
  for _, part in ipairs { "2 ranks here", "model    " .. model, "free", "train.jsonl", "out/put" } do
    check.that(text:find(part, 1, true), ("'%s' is missing in\n%s"):format(part, text))
  end
  check.equal(#fs.list(fs.join(dir, "out/put")), 0, "files left by the trial")
  fs.remove(dir)
end)

test("a model with its weights in a subfolder, and an adapter, which needs the weights of its base", function()
  local dir = folder()
  local base = model_in(dir, 2 ^ 20)
  local st = fs.join(dir, "st")
  fs.make(st)
  fs.rename(base, fs.join(st, "0_Transformer"))
  fs.write(fs.join(st, "modules.json"), '[{"idx":0,"name":"0","path":"0_Transformer","type":'
    .. '"sentence_transformers.models.Transformer"},{"idx":1,"name":"1","path":"1_Pooling","type":'
    .. '"sentence_transformers.models.Pooling"}]')
  fs.make(fs.join(st, "1_Pooling"))
  fs.write(fs.join(st, "1_Pooling/config.json"), '{"word_embedding_dimension":4,"pooling_mode_mean_tokens":true}')
  check.that(looked({}, { model = st }):find "st, weights of 0%.0 GiB")
  model_in(dir, 2 ^ 40)
  local adapter = fs.join(dir, "adapter")
  fs.make(adapter)
  fs.write(fs.join(adapter, "adapter_config.json"), '{"peft_type":"LORA","base_model_name_or_path":"../model"}')
  check.raises("2 ranks of " .. adapter .. " need at least 16384.0 GiB", looked, { processes = 2 }, { model = adapter })
  fs.remove(dir)
end)

test("more ranks than cores is a message, not an error", function()
  local cores = require("lorarun.base.c").lr_cores()
  check.that(looked({ processes = cores + 1 }, {}):find "take turns")
end)

test("GPUs that do not exist", function()
  if require("lorarun").has_gpu() then return end
  settings.forget()
  settings.take_flag({ "--multi-gpu" }, 1)
  local s = settings.resolve {}
  settings.forget()
  check.raises("--multi-gpu asks for GPUs, and lorarun finds none it can use (", preflight.check, s, {}, function() end)
end)

test("fp16 without a GPU", function()
  if require("lorarun").has_gpu() then return end
  check.raises("mixed_precision is fp16 (recipe), which needs a GPU; on the CPU give --mixed-precision bf16", looked,
    { precision = "fp16" }, {})
end)

test("model, data and output that cannot work", function()
  local dir = folder()
  check.raises("neither a folder nor in the Hugging Face cache", looked, {}, { model = "no/such-model" })
  fs.make(fs.join(dir, "empty"))
  check.raises("has neither config.json", looked, {}, { model = fs.join(dir, "empty") })
  local huge = model_in(dir, 2 ^ 40)
  check.raises("2 ranks of " .. huge .. " need at least 16384.0 GiB of memory", looked, { processes = 2 }, { model = huge })
  check.raises("1 rank of " .. huge .. " needs at least 4096.0 GiB of memory", looked, { precision = "bf16" }, { model = huge })
  model_in(dir, 2 ^ 40, "embeddings.word_embeddings.weight") -- this tensor is stored once
  check.raises("1 rank of " .. huge .. " needs at least 4096.0 GiB of memory", looked, {}, { model = huge })
  fs.write(fs.join(dir, "model/model.safetensors"), "x")
  check.raises("model.safetensors", looked, {}, { model = huge })
  check.raises("there is no data folder", looked, {}, { data = fs.join(dir, "nothing") })
  check.raises("there is no train.jsonl", looked, {}, { data = dir })
  check.raises("cannot be read", looked, {}, { data = { train = fs.join(dir, "nothing.jsonl") } })
  fs.write(fs.join(dir, "file"), "")
  check.raises("file", looked, {}, { output = fs.join(dir, "file") })
  fs.remove(dir)
end)
