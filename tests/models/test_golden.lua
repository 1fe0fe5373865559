-- Both architectures compared with Hugging Face's libraries: embeddings, adapters, gradients, a training curve. The file
-- tests/golden/README.md says what the golden files hold.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local safetensors = require "lorarun.formats.safetensors"
local tensor = require "lorarun.tensor.tensor"
local autograd = require "lorarun.tensor.autograd"
local ops = require "lorarun.tensor.ops"
local dataset = require "lorarun.data.dataset"
local loss = require "lorarun.train.loss"
local optim = require "lorarun.tensor.optim"
local schedule = require "lorarun.train.schedule"
local load_model = require("lorarun.models.model").load

local golden = fs.join(os.getenv "LORARUN_TESTS", "golden")
local function path(...) return fs.join(golden, ...) end
local texts = json.decode_file(path "texts.json")
-- The golden numbers were made by a version of sentence-transformers that strips texts (up to 5.3); lorarun does not, like later
-- versions.
for i, text in ipairs(texts.texts) do texts.texts[i] = text:gsub("^%s+", ""):gsub("%s+$", "") end

-- The values of a tensor of a golden file, as C floats, and its shape.
local function read(file, name)
  local shape = file:info(name).shape
  local t = tensor.new(shape, "f32", name)
  file:load(name, t)
  local values, n = t:data()
  t:free()
  return values, n, shape
end

local function with_golden(name, fn)
  local file = safetensors.open(path(name .. ".safetensors"))
  local ok, err = xpcall(fn, debug.traceback, file, json.decode_file(path(name .. ".json")))
  file:close()
  if not ok then error(err, 0) end
end

local function with_model(folder, options, fn)
  local model = load_model(path(folder), options)
  local ok, err = xpcall(fn, debug.traceback, model)
  model:free()
  if not ok then error(err, 0) end
end

-- The largest difference between a tensor and golden values.
local function difference(t, values)
  local mine, n = t:data()
  local worst = 0
  for i = 0, n - 1 do worst = math.max(worst, math.abs(mine[i] - values[i])) end
  return worst
end

-- |a - b| / |b|, both as vectors.
local function relative(t, values)
  local mine, n = t:data()
  local d, s = 0, 0
  for i = 0, n - 1 do
    d = d + (mine[i] - values[i]) ^ 2
    s = s + values[i] ^ 2
  end
  return math.sqrt(d / s)
end

local function check_embeddings(model, values, what, tolerance, options)
  local e = model:encode(texts.texts, options)
  local worst = difference(e, values)
  e:free()
  check.that(worst <= (tolerance or 1e-5), ("%s: embeddings differ by %.3g"):format(what, worst))
end

for _, name in ipairs { "qwen2", "bert", "qwen2_tied", "qwen2_head" } do
  test(name .. ": token ids and embeddings", function()
    with_golden(name, function(file, numbers)
      with_model(name, nil, function(model)
        for i, text in ipairs(texts.texts) do
          local batch = dataset.pack(model.tokenizer, { text }, model.max_length)
          local ids = {}
          for k = 1, batch.tokens do ids[k] = batch.ids[k - 1] end
          batch:close()
          check.array(ids, numbers.ids[i], 0, "ids of text " .. i)
        end
        check_embeddings(model, read(file, "embeddings"), name)
      end)
    end)
  end)
end

test("qwen2: a prompt is put before each text", function()
  with_golden("qwen2", function(file)
    with_model("qwen2", nil, function(model)
      check_embeddings(model, read(file, "embeddings_query"), "query", nil, { prompt_name = "query" })
      check.raises("no prompt named 'nothing'", model.encode, model, texts.texts, { prompt_name = "nothing" })
    end)
  end)
end)

for _, arch in ipairs { "qwen2", "bert" } do
  for _, kind in ipairs { "lora", "rslora", "all_linear" } do
    test(("%s: embeddings with PEFT's adapter %s"):format(arch, kind), function()
      with_golden(arch, function(file)
        with_model(arch, nil, function(model)
          model:load_adapter(path("adapters", arch .. "_" .. kind))
          check_embeddings(model, read(file, "embeddings_" .. kind), kind)
        end)
      end)
    end)
  end

  test(arch .. ": bf16 embeddings are near the fp32 ones", function()
    with_golden(arch, function(file)
      with_model(arch, { precision = "bf16" }, function(model)
        check_embeddings(model, read(file, "embeddings"), "bf16", 0.05)
      end)
    end)
  end)

  -- Loss and gradients of a batch, which is given as columns of texts.
  local function gradients(model, columns, labels, the_loss, recompute)
    local flat = {}
    for _, column in ipairs(columns) do
      for _, text in ipairs(column) do flat[#flat + 1] = text end
    end
    local n = #columns[1]
    return autograd.gradients(function()
      local batch = dataset.pack(model.tokenizer, flat, model.max_length)
      local ctx = model:context(batch, { training = true, recompute = recompute })
      batch:close()
      local e = model:forward(ctx)
      local parts = {}
      for c = 1, #columns do parts[c] = ops.rows(e, (c - 1) * n, c * n) end
      return the_loss.compute(parts, labels and tensor.from(labels, { n }), e)
    end)
  end

  local function pairs_batch(first, count)
    local a, b, y = {}, {}, {}
    for i = first, first + count - 1 do
      local p = texts.pairs[i + 1]
      a[#a + 1], b[#b + 1], y[#y + 1] = p.first, p.second, p.score
    end
    return { a, b }, y
  end

  local function check_gradients(model, file, prefix)
    for _, m in ipairs(model.lora.modules) do
      local layer
      for _, l in ipairs(model.linears) do
        for _, part in ipairs(l.parts) do if part.name == m.name then layer = l end end
      end
      local entry, a_from
      for k, adapter in ipairs(layer.lora.adapters) do
        if adapter.b == m.b then entry, a_from = adapter, layer.lora.adapters[k].r_from end
      end
      local key = "base_model.model." .. m.name
      local a_grad = layer.lora.a.grad:slice_rows(a_from, a_from + m.rank)
      local da = relative(a_grad, read(file, prefix .. key .. ".lora_A.weight"))
      local db = relative(entry.b_grad, read(file, prefix .. key .. ".lora_B.weight"))
      a_grad:free()
      check.that(da <= 1e-4, ("%s lora_A gradient: relative error %.3g"):format(m.name, da))
      check.that(db <= 1e-4, ("%s lora_B gradient: relative error %.3g"):format(m.name, db))
    end
  end

  for _, recompute in ipairs { 0, 99 } do
    test(("%s: loss and LoRA gradients, cosine similarity, %s"):format(arch, recompute > 0 and "recomputed" or "kept"), function()
      with_golden(arch, function(file, numbers)
        with_model(arch, nil, function(model)
          model:load_adapter(path("adapters", arch .. "_lora"))
          local columns, labels = pairs_batch(0, 6)
          local value = gradients(model, columns, labels, loss.cosine_similarity(), recompute)
          check.near(value, numbers.cosine.loss, 1e-5, "loss")
          check_gradients(model, file, "grad.cosine.")
        end)
      end)
    end)
  end

  test(arch .. ": loss and LoRA gradients, multiple negatives ranking with hard negatives", function()
    with_golden(arch, function(file, numbers)
      with_model(arch, nil, function(model)
        model:load_adapter(path("adapters", arch .. "_lora"))
        local columns = { {}, {}, {} }
        for i, triplet in ipairs(texts.triplets) do
          for c = 1, 3 do columns[c][i] = triplet[c] end
        end
        local value = gradients(model, columns, nil, loss.multiple_negatives_ranking())
        check.near(value, numbers.mnr.loss, 3e-5, "loss")
        check_gradients(model, file, "grad.mnr.")
      end)
    end)
  end)

  test(arch .. ": a training curve of 20 steps", function()
    with_golden(arch, function(file, numbers)
      with_model(arch, nil, function(model)
        model:load_adapter(path("adapters", arch .. "_lora"))
        for _, m in ipairs(model.lora.modules) do m.b:fill(0) end
        local curve = numbers.curve
        local s = curve.settings
        local optimizer = optim.adamw(model.lora.parameters, { max_grad_norm = s.clip, weight_decay = s.weight_decay })
        local rate = schedule.warmup_linear(s.warmup)
        for step = 0, s.steps - 1 do
          local columns, labels = { {}, {} }, {}
          for i, row in ipairs(curve.rows[step + 1]) do
            local p = texts.pairs[row + 1]
            columns[1][i], columns[2][i], labels[i] = p.first, p.second, p.score
          end
          local value = gradients(model, columns, labels, loss.cosine_similarity())
          local lr = s.learning_rate * rate(step, s.steps)
          local norm = optimizer:step(lr)
          check.near(lr, curve.learning_rate[step + 1], 1e-9, "learning rate of step " .. step)
          check.near(value, curve.loss[step + 1], 1e-4, "loss of step " .. step)
          check.near(norm, curve.grad_norm[step + 1], 1e-4, "gradient norm of step " .. step)
        end
        for _, m in ipairs(model.lora.modules) do
          local key = "final.base_model.model." .. m.name
          check.that(difference(m.a, read(file, key .. ".lora_A.weight")) < 1e-4, m.name .. " lora_A at the end")
          check.that(difference(m.b, read(file, key .. ".lora_B.weight")) < 1e-4, m.name .. " lora_B at the end")
        end
        check_embeddings(model, read(file, "embeddings_final"), "final", 1e-4)
        optimizer:free()
      end)
    end)
  end)

  test(arch .. ": a packed batch gives what one text at a time gives", function()
    with_model(arch, nil, function(model)
      local together = model:encode(texts.texts, { batch_tokens = 100000 })
      for i, text in ipairs(texts.texts) do
        local alone = model:encode { text }
        local row = together:slice_rows(i - 1, i)
        local worst = difference(alone, (row:data()))
        check.that(worst < 2e-6, ("text %d differs by %.3g"):format(i, worst))
        row:free()
        alone:free()
      end
      together:free()
    end)
  end)
end

test("merged weights and the adapter give the same embeddings", function()
  local folder = os.tmpname()
  os.remove(folder)
  for _, arch in ipairs { "qwen2", "bert", "qwen2_tied" } do
    local adapter = arch == "bert" and "bert_lora" or "qwen2_lora"
    with_model(arch, nil, function(model)
      if arch == "qwen2_tied" then
        model:add_lora { rank = 2, alpha = 4, targets = "all-linear" }
        for _, m in ipairs(model.lora.modules) do -- not zero, but small compared with the weights
          require "lorarun.base.check"(require("lorarun.base.c").lr_tensor_uniform(m.b.handle, 5, 9, -0.02, 0.02))
        end
      else
        model:load_adapter(path("adapters", adapter))
      end
      local e = model:encode(texts.texts)
      model:save(fs.join(folder, "merged"))
      local written, base = safetensors.open_folder(fs.join(folder, "merged")), safetensors.open_folder(path(arch))
      for _, name in ipairs(base:names()) do check.equal(written:info(name).dtype_name, base:info(name).dtype_name, name) end
      written:close()
      base:close()
      model:save_adapter(fs.join(folder, "adapter"), { base = fs.real(path(arch)) })
      -- the tied model's file is bf16: merging rounds
      local tolerance = arch == "qwen2_tied" and 0.02 or 1e-5
      for _, form in ipairs { "merged", "adapter" } do
        local again = load_model(fs.join(folder, form))
        local f = again:encode(texts.texts)
        local worst = difference(f, (e:data()))
        check.that(worst <= (form == "adapter" and 1e-6 or tolerance), ("%s %s differs by %.3g"):format(arch, form, worst))
        f:free()
        again:free()
      end
      e:free()
      fs.remove(folder)
    end)
  end
end)

