-- After its attention, the last layer is computed only at the rows that pooling takes. Embeddings and gradients are the same as
-- when it is computed at all rows, dropout included.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local memory = require "lorarun.tensor.memory"
local tensor = require "lorarun.tensor.tensor"
local autograd = require "lorarun.tensor.autograd"
local ops = require "lorarun.tensor.ops"
local dataset = require "lorarun.data.dataset"
local load_model = require("lorarun.models.model").load

local golden = fs.join(os.getenv "LORARUN_TESTS", "golden")
local texts = json.decode_file(fs.join(golden, "texts.json")).texts

local function with_model(arch, options, fn)
  local model = load_model(fs.join(golden, arch), options)
  model:add_lora { rank = 4, alpha = 8, dropout = 0.3, targets = "all-linear" }
  for i, m in ipairs(model.lora.modules) do -- as if trained for a while: B starts as zero
    require "lorarun.base.check"(require("lorarun.base.c").lr_tensor_uniform(m.b.handle, 5, i, -0.2, 0.2))
  end
  local ok, err = xpcall(fn, debug.traceback, model)
  model:free()
  if not ok then error(err, 0) end
end

-- Embeddings, the gradients of a loss that weights each of their numbers differently, and the bytes that the forward pass keeps for
-- backward. all_rows: computes the last layer at all rows.
local function step(model, all_rows, recompute)
  local result = {}
  model.lora.parameters.grad:fill(0)
  autograd.gradients(function()
    local batch = dataset.pack(model.tokenizer, texts, model.max_length)
    local ctx = model:context(batch, { training = true, seed = 3, step = 2, recompute = recompute })
    batch:close()
    if all_rows then ctx.pooled = nil end
    local before = memory.stats(model.device).live_bytes
    local e = model:forward(ctx)
    result.kept = memory.stats(model.device).live_bytes - before
    local n, weights = e:elements(), {}
    for i = 1, n do weights[i] = math.sin(i) end
    if model.device ~= "meta" then result.embeddings = e:view({ n }):to_table() end
    local dots = ops.row_dot(e, tensor.from(weights, e.shape, "f32", "weights", model.device))
    return ops.mse(dots, tensor.zeros(dots.shape, "f32", "target", model.device))
  end)
  if model.device ~= "meta" then result.gradients = model.lora.parameters.grad:to_table() end
  return result
end

for _, case in ipairs { { "qwen2", "last" }, { "qwen2", "cls" }, { "bert", "cls" }, { "bert", "last" } } do
  local arch, pooling = unpack(case)
  for precision, tolerance in pairs { fp32 = 1e-5, bf16 = 3e-2 } do
    test(("%s, %s pooling, %s: the same embeddings and gradients as by all rows"):format(arch, pooling, precision), function()
      with_model(arch, { pooling = pooling, precision = precision }, function(model)
        local all = step(model, true)
        for _, recompute in ipairs { 0, 99 } do
          local pooled = step(model, false, recompute)
          for _, what in ipairs { "embeddings", "gradients" } do
            local e = check.relative(pooled[what], all[what])
            check.that(e <= tolerance, ("%s differ by %.3g, recomputing %d layers"):format(what, e, recompute))
          end
          check.that(pooled.kept < all.kept, "nothing is saved")
        end
      end)
    end)
  end
end

test("the last layer gives only pooled rows, if pooling takes single rows", function()
  for pooling, rows in pairs { cls = #texts, last = #texts, mean = false } do
    with_model("bert", { pooling = pooling }, function(model)
      tensor.scope(function()
        local batch = dataset.pack(model.tokenizer, texts, model.max_length)
        local ctx, tokens = model:context(batch), batch.tokens
        batch:close()
        local hidden = autograd.no_grad(model.arch.forward, model.built, ctx)
        check.equal(hidden.shape[1], rows or tokens, pooling)
      end)
    end)
  end
end)

test("a step takes no more memory for the last layer than pooled rows need", function()
  local kept = {}
  for _, pooling in ipairs { "cls", "mean" } do
    with_model("bert", { pooling = pooling, device = "meta" }, function(model) kept[pooling] = step(model).kept end)
  end
  check.that(kept.cls < kept.mean, ("%d bytes are kept, by all rows %d"):format(kept.cls, kept.mean))
end)
