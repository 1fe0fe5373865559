-- What a folder computes is compared with the model that wrote it, when it is written and later by `lorarun verify`. It is also
-- compared with the base: without the adapter there would be no difference.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local lr = require "lorarun"
local memory = require "lorarun.tensor.memory"
local probes = require "lorarun.models.probes"
local safetensors = require "lorarun.formats.safetensors"
local dataset = require "lorarun.data.dataset"
local verify = require "lorarun.cli.verify"
local load_model = require("lorarun.models.model").load
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local golden = fs.real(fs.join(os.getenv "LORARUN_TESTS", "golden"))
local bert = fs.join(golden, "bert")

-- Calls fn(model, folder) with a BERT that has a trained adapter, and an empty folder.
local function with_adapted(fn, options)
  shell.with_folder(function(folder)
    local model = load_model(bert, options)
    local ok, err = xpcall(function()
      model:load_adapter(fs.join(golden, "adapters", "bert_lora"))
      fn(model, folder)
    end, debug.traceback)
    model:free()
    if not ok then error(err, 0) end
  end)
end

-- Runs the program's `verify` with these words.
local function run(words) return shell.run("$L verify " .. words) end

-- Changes a JSON file in place.
local function edit(path, change)
  local value = json.decode_file(path)
  change(value)
  fs.write(path, json.encode(value))
end

test("a folder is loaded again and compared when it is written; verify does the same later", function()
  for _, precision in ipairs { "fp32", "bf16" } do
    with_adapted(function(model, folder)
      local merged, adapter = fs.join(folder, "merged"), fs.join(folder, "adapter")
      check.that(model:save(merged):find("the embeddings differ by", 1, true), "merged")
      check.that(model:save_adapter(adapter):find("the adapter changes them by", 1, true), "adapter")
      local result = verify.folder(adapter)
      check.equal(result.verdict, "same")
      check.that(result.difference < 1e-5 and result.change > 0.1, "difference and change")
      if precision == "fp32" then
        local both = run(merged .. " " .. adapter)
        check.equal(both.status, 0, both.err .. both.out)
        local _, lines = both.out:gsub("the same", "")
        check.equal(lines, 2, "lines")
      end
    end, { precision = precision })
  end
end)

test("an adapter and merged weights are never saved in one folder, since both would be applied", function()
  with_adapted(function(model, folder)
    local merged, adapter = fs.join(folder, "merged"), fs.join(folder, "adapter")
    model:save(merged, { check = false })
    model:save_adapter(adapter, { check = false })
    check.raises(adapter .. " holds an adapter (adapter_config.json)", model.save, model, adapter)
    check.that(not fs.exists(fs.join(adapter, "model.safetensors")), "weights beside the adapter")
    check.raises(merged .. " holds weights, on which", model.save_adapter, model, merged)
    check.that(not fs.exists(fs.join(merged, "adapter_config.json")), "an adapter beside the weights")
    local train = { model = model, data = "nowhere", columns = { "a", "b" } } -- refused before the data is read
    train.output = adapter
    check.raises(adapter .. " holds an adapter (adapter_config.json)", lr.train, train)
    train.output = fs.join(folder, "run")
    fs.make(train.output)
    fs.rename(merged, fs.join(train.output, "adapter"))
    check.raises(fs.join(train.output, "adapter") .. " holds weights, on which", lr.train, train)
  end)
end)

test("if a folder cannot be written whole, it keeps its old files and nothing of the new ones", function()
  with_adapted(function(model, folder)
    for _, save in ipairs { "save", "save_adapter" } do
      local out = fs.join(folder, save)
      fs.make(fs.join(out, "README.md", "in the way")) -- the last file cannot be written
      fs.write(fs.join(out, "mine.txt"), "kept")
      fs.write(fs.join(out, "tokenizer.json"), "{}")
      check.raises("README.md", model[save], model, out)
      check.equal(table.concat(fs.list(out), " "), "README.md mine.txt tokenizer.json", save)
      check.equal(fs.read(fs.join(out, "mine.txt")), "kept")
    end
  end)
end)

test("verify tells an adapter that is left out, another pooling, a lost base, and when it cannot know", function()
  with_adapted(function(model, folder)
    local adapter = fs.join(folder, "adapter")
    model:save_adapter(adapter)
    local function expect(status, part, words)
      local r = run(words or adapter)
      check.equal(r.status, status, "status of: " .. r.err .. r.out)
      check.that((r.out .. r.err):find(part, 1, true), ("'%s' lacks '%s'"):format(r.out .. r.err, part))
    end
    expect(0, "the same")
    local config = fs.join(adapter, "adapter_config.json")
    local before = fs.read(config)
    edit(config, function(c) c.lora_alpha = 1e-6 end)
    expect(1, "nearer to the base's: the adapter is not applied")
    edit(config, function(c) c.base_model_name_or_path = "/nowhere" end)
    expect(1, "no such folder")
    fs.write(config, before)
    local pooling = fs.join(adapter, "1_Pooling", "config.json")
    edit(pooling, function(c) c.pooling_mode_mean_tokens, c.pooling_mode_cls_token = false, true end)
    expect(1, "OTHER EMBEDDINGS")
    edit(pooling, function(c) c.pooling_mode_mean_tokens, c.pooling_mode_cls_token = true, false end)
    expect(0, "the same")
    local stored = fs.join(adapter, probes.FILE)
    edit(stored, function(p) p.embeddings[1][1] = "x" end)
    expect(1, "damaged")
    fs.remove(stored)
    expect(3, "was not written by lorarun")
    expect(2, "needs a folder", "")
    expect(2, "did you mean '--python'", "--pyton x")
    local flagged = shell.run("$L --cpu verify " .. adapter)
    check.equal(flagged.status, 2)
    check.that(flagged.err:find("--cpu says how ranks run, and lorarun verify has none", 1, true), flagged.err)
    expect(1, "is not a folder", fs.join(folder, "nothing"))

    for _, m in ipairs(model.lora.modules) do m.b:fill(0) end
    check.that(model:save_adapter(adapter) == nil, "an adapter that has learnt nothing is no error, and is said")
    expect(3, "has learnt nothing")
  end)
end)

test("the lines for Python are three, with the folder's path", function()
  with_adapted(function(model, folder)
    model:save_adapter(fs.join(folder, "it's 100% \"mine\""))
    local text = verify.python(fs.join(folder, "it's 100% \"mine\""))
    local _, lines = text:gsub("\n", "")
    check.equal(lines, 3, "lines")
    check.that(text:find('/it\'s 100% \\"mine\\"", np.linalg.norm', 1, true), text)
  end)
end)

test("a folder that computes something else is an error and is kept; if memory is short, it is not checked", function()
  with_adapted(function(model, folder)
    local write, available = safetensors.write, memory.available
    local function with_faults(fn)
      local ok, err = pcall(fn)
      safetensors.write, memory.available = write, available
      if not ok then error(err, 0) end
    end
    with_faults(function() -- the tensors are lost on their way to the disk
      safetensors.write = function(path, entries, metadata)
        local zeros = {}
        for i, e in ipairs(entries) do
          zeros[i] = { name = e.name, dtype = e.dtype, shape = e.shape,
            tensor = require("lorarun.tensor.tensor").zeros(e.shape, "f32") }
        end
        write(path, zeros, metadata)
        for _, e in ipairs(zeros) do e.tensor:free() end
      end
      check.raises("was written, but what it computes is not what the model in memory does", model.save_adapter, model, folder)
    end)
    check.that(fs.is_file(fs.join(folder, "adapter_model.safetensors")), "the folder is kept")
    model:save_adapter(folder) -- the model is unchanged
    with_faults(function()
      memory.available = function() return 1000 end
      check.equal(model:save(fs.join(folder, "merged")), nil, "the line")
    end)
    check.equal(verify.folder(fs.join(folder, "merged")).verdict, "same")
    check.equal(model:save_adapter(fs.join(folder, "adapter"), { base = "org/elsewhere" }), nil, "a base that is not here")
    check.raises("did you mean 'check'", model.save, model, folder, { chek = false })
  end)
end)

test("probes: sixteen different texts from all over a data set, stripped and short", function()
  shell.with_folder(function(folder)
    local lines = {}
    for i = 0, 999 do
      lines[i + 1] = json.encode { a = (i % 2 == 0 and "\t " or "\194\160") .. "a" .. math.floor(i / 3) .. "\227\128\128\n",
        b = ("é"):rep(2000) .. i, c = "" }
    end
    fs.write(fs.join(folder, "train.jsonl"), table.concat(lines, "\n"))
    local columns = { { name = "a", kind = "text" }, { name = "b", kind = "text" }, { name = "c", kind = "text" } }
    local set = dataset.open(fs.join(folder, "train.jsonl"), { columns = columns })
    local texts, again = probes.texts_of(set, { "a", "c" }), probes.texts_of(set, { "a", "c" })
    check.equal(table.concat(texts, ","), table.concat(again, ","))
    check.equal(#texts, 16, "texts")
    check.equal(texts[1], "a0")
    check.that(tonumber(texts[16]:sub(2)) > 290, "the last text is " .. texts[16])
    check.equal(#probes.texts_of(set, { "b" })[1], 2000, "bytes")
    check.that(#probes.texts_of(set, { "c" }) == 16, "texts of lorarun's own where there is none")
    set:close()
  end)
end)

test("a real difference is told from rounding, and a missing adapter from one that changes little", function()
  local function verdict(precision, embedding, adapted, base)
    local function length(x, y) return math.sqrt((x[1] - (y or { 0, 0 })[1]) ^ 2 + (x[2] - (y or { 0, 0 })[2]) ^ 2) end
    local model = { precision = precision, encode = function()
      return { to_table = function() return { embedding } end, free = function() end }
    end }
    return probes.compare({ texts = { "x" }, embeddings = { adapted }, base = { base },
      allowed = precision == "fp32" and 1e-3 or 0.1, change = length(adapted, base) / length(base) }, model).verdict
  end
  check.equal(verdict("fp32", { 1, 1e-5 }, { 1, 0 }, { 1, 0.5 }), "same")
  check.equal(verdict("fp32", { 1, 0.002 }, { 1, 0 }, { 1, 0.5 }), "other", "more than is allowed")
  check.equal(verdict("fp32", { 1, 0.0005 }, { 1, 0 }, { 1, 0.0005 }), "other", "the base's, though within what is allowed")
  check.equal(verdict("fp32", { 0 / 0, 0 }, { 1, 0 }, { 1, 0.5 }), "other", "no number")
  check.equal(verdict("fp32", { 1, 0, 0 }, { 1, 0 }, { 1, 0.5 }), "other", "another dimension")
  check.equal(verdict("fp32", { 1, 0 }, { 1, 0 }, { 1, 0 }), "unlearned")
  check.equal(verdict("fp32", { 1, 1e-5 }, { 1, 0 }, { 1, 5e-5 }), "unclear")
  check.equal(verdict("bf16", { 1, 0.008 }, { 1, 0 }, { 1, 0.005 }), "unclear", "rounding is larger than the change")
  check.equal(verdict("bf16", { 1, 0.016 }, { 1, 0 }, { 1, 0.0125 }), "unclear", "rounding is as large as the change")
  check.equal(verdict("bf16", { 1, 0.053 }, { 1, 0 }, { 1, 0.05 }), "other", "the base's, and rounding")
  check.equal(verdict("bf16", { 1, 0.01 }, { 1, 0 }, { 1, 0.05 }), "same")
end)
