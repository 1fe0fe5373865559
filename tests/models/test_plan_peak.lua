-- Plans compared with real steps: the peak of a step on the CPU is the plan's, for both architectures, precisions and policies of
-- recomputing. And the plan of a 7B model, of which there is only config.json, compared with arithmetic.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local data_files = dofile(os.getenv "LORARUN_TESTS" .. "/data.lua")

local golden = fs.join(os.getenv "LORARUN_TESTS", "golden")
local TARGETS = { bert = "query,key,value", qwen2 = "q_proj,k_proj,v_proj" }

-- A program that trains one step, or plans it, and says what the step took. Its code is the same for both.
local RECIPE = [[
local lr, memory, json = require "lorarun", require "lorarun.tensor.memory", require "lorarun.base.json"
local folder, model_folder, targets, options, result_path = unpack(arg)
local given = { data = folder .. "/data", output = folder .. "/out", batch = 6, max_steps = 1, sampling = "shuffled",
  columns = { "current_line", "context" },
  evaluation_steps = 100, max_evaluation_rows = 2 }
for key, value in pairs(assert(loadstring("return " .. options))()) do given[key] = value end
local model = lr.load_model(model_folder, { max_length = 64, precision = given.precision })
given.precision = nil
local free, available = given.free, memory.available -- the memory that is really free, for everything after the step
if free then memory.available = function() return free end end
given.free = nil
model:add_lora { rank = 4, alpha = 8, dropout = 0.1, targets = lr.split(targets, ",") }
given.model = model
require("lorarun.base.c").lr_memory_release_cached(require("lorarun.base.c").LR_CPU) -- the memory that loading no longer uses
local seen = {}
given.on_step = function()
  memory.available = available
  seen = { peak = memory.stats().peak_bytes, scratch = memory.stats().scratch_bytes }
end
local result = lr.train(given)
lr.fs.write(result_path, json.encode(result.batch and { held = result.held, batch = result.batch, policies = result.policies,
  flops_a_token = result.flops_a_token, room = result.room, driver = result.driver, memory = result.memory } or seen))
]]

local function make_data(folder)
  return data_files.make(folder, { train = 30, validation = 30 }, function(i)
    return { current_line = ("x = %d"):format(i), context = ("y = f(x, %d)\n"):format(i):rep(i % 7 + 1), score = i % 2 }
  end)
end

-- Run the recipe as `command`, "" or "plan --gpu-memory 80GB" and the like; returns what it wrote.
local function run(folder, command, model_folder, targets, options)
  local recipe, result, output = fs.join(folder, "recipe.lua"), fs.join(folder, "result.json"), fs.join(folder, "out")
  if fs.exists(output) then fs.remove(output) end
  fs.write(recipe, RECIPE)
  local words = { recipe, folder, model_folder, targets, options, result }
  for i, word in ipairs(words) do words[i] = shell.quote(word) end
  local r = shell.run("$L " .. command .. " " .. table.concat(words, " "))
  -- one step of bf16 changes less than its rounding does
  check.equal((r.err:gsub("[^\n]*whether it is applied cannot be told\n", "")), "", "standard error")
  check.equal(r.status, 0, "status")
  check.equal(fs.exists(output), command == "", "an output folder was made")
  return json.decode_file(result), r.out
end

local function sum(t)
  local n = 0
  for _, value in pairs(t) do n = n + value end
  return n
end

for arch, targets in pairs(TARGETS) do
  test(arch .. ": the peak of a real step is the plan's", function()
    shell.with_folder(function(folder)
      make_data(fs.join(folder, "data"))
      for _, options in ipairs { "{}", '{ recompute = "all" }', "{ recompute = 1 }", '{ precision = "bf16" }',
        '{ loss = require("lorarun.train.loss").by_name "mnr" }', "{ accumulate = 2 }" } do
        local planned = run(folder, "plan", fs.join(golden, arch), targets, options)
        local seen = run(folder, "", fs.join(golden, arch), targets, options)
        local peak = sum(planned.held) + planned.batch.step
        check.near(seen.peak / peak, 1, 0.001, ("%s: of %d bytes planned and %d taken the ratio"):format(options, peak, seen.peak))
        check.equal(seen.scratch, planned.batch.workspace, options .. ": bytes of working memory") -- a text has the full length
      end
    end)
  end)
end

-- The free memory to report so that there is room for `bytes` and the kernels' working memory; `held` bytes are in use already.
local function free_for(p, bytes, held) return (bytes + p.batch.workspace + sum(p.held) - held) / 0.9 end

for name, loss in pairs { cosine = "", mnr = 'batch = 15, loss = require("lorarun.train.loss").by_name "mnr"' } do
  test(name .. ": the peak of a batch in parts is the plan's", function()
    shell.with_folder(function(folder)
      make_data(fs.join(folder, "data"))
      local words = { fs.join(golden, "qwen2"), TARGETS.qwen2 }
      local all = run(folder, "plan", words[1], words[2], ('{ recompute = "all", %s }'):format(loss))
      local planned, text = run(folder, "plan", words[1], words[2], ("{ free = %d, %s }"):format(free_for(all, 0.7 * all.batch.step,
        0), loss))
      check.that(planned.batch.part < planned.batch.pairs and planned.batch.fits, text)
      check.equal(planned.batch.cached, name == "mnr")
      local held = planned.held.weights + planned.held.adapters + planned.held.gradients
      local seen, out = run(folder, "", words[1], words[2], ("{ free = %d, %s }"):format(free_for(planned,
        1.02 * planned.batch.step, held), loss))
      check.that(out:find(("in parts of %d that fit the memory"):format(planned.batch.part), 1, true), out)
      local peak = sum(planned.held) + planned.batch.step
      check.near(seen.peak / peak, 1, 0.001, ("of %d bytes planned and %d taken the ratio"):format(peak, seen.peak))
    end)
  end)
end

-- nomic-embed-code: hidden 3584, 28 layers, 28 heads of 128, 4 KV heads, intermediate 18944.
local NOMIC = { architectures = json.array { "Qwen2Model" }, model_type = "qwen2", hidden_size = 3584, num_hidden_layers = 28,
  num_attention_heads = 28, num_key_value_heads = 4, intermediate_size = 18944, vocab_size = 151646, hidden_act = "silu",
  max_position_embeddings = 32768, rope_theta = 1000000, rms_norm_eps = 1e-6 }
local LAYERS, ROUNDED = 28, 1.001 -- a tensor takes at most 256 bytes more than its values, and a weight has room for adapters
local LINEAR = LAYERS * (3584 * (3584 + 2 * 512) + 3584 * 3584 + 3 * 3584 * 18944) -- weights of linear layers

test("nomic-embed-code from its config.json: weights, adapters and activations are as arithmetic says", function()
  shell.with_folder(function(folder)
    make_data(fs.join(folder, "data"))
    fs.make(fs.join(folder, "nomic"))
    fs.write(fs.join(folder, "nomic", "config.json"), json.encode(NOMIC))
    local p, out = run(folder, "plan --gpu-memory 80GB", fs.join(folder, "nomic"), TARGETS.qwen2,
      '{ precision = "bf16", batch = 64 }')
    local parameters = LINEAR + LAYERS * (3584 + 2 * 512 + 2 * 3584) + 3584 + 151646 * 3584
    check.near(LINEAR, 6.525e9, 0.001e9, "weights of linear layers")
    check.equal(p.flops_a_token, 4 * LINEAR)
    check.that(out:find("7,069,121,024 parameters", 1, true) and parameters == 7069121024, out)

    local function within(bytes, exact, what)
      check.that(bytes >= exact and bytes <= exact * ROUNDED + 256 * LAYERS,
        ("%s: %.0f bytes, expected %.0f and a little"):format(what, bytes, exact))
    end
    within(p.held.weights, 2 * parameters, "weights")
    local trained = LAYERS * 4 * (3 * 3584 + 3584 + 2 * 512) -- rank 4: A and B of q, k and v
    within(p.held.adapters, 4 * trained, "adapters")
    within(p.held.optimizer, 8 * trained, "optimizer")
    check.near(p.room, 80e9 - p.driver - sum(p.held), 1, "what is left for a batch")

    -- Bytes per token and layer in bf16, as docs/memory.md lists them. LoRA on q, k and v also keeps their input, and at the end
    -- of each row its product with the A's, in a multiple of eight columns.
    local EXACT = { ["layers.*.mlp.gate_up"] = 2 * 37888, ["layers.*.self_attn.qkv"] = 2 * 4608, attention = 2 * 3584,
      residual = 2 * 2 * 3584, normalised = 2 * (3584 + 16), ["attention statistics"] = 4 * 28 }
    check.equal(p.batch.layers, 0)
    local seen = {}
    for _, k in ipairs(p.batch.kept) do
      if EXACT[k.name] then
        seen[#seen + 1] = k.name
        within(k.bytes, EXACT[k.name] * LAYERS * p.batch.largest, k.name)
      end
    end
    check.equal(#seen, 6, "kinds of activations that are kept")

    -- The more layers are recomputed, the more tokens fit; and each count was tried.
    local before = 0
    for _, policy in ipairs(p.policies) do
      check.that(policy.tokens > before, "the policies are in no order")
      before = policy.tokens
    end
    local most = p.policies[1].tokens
    local per_token = LAYERS * sum(EXACT)
    check.that(most * per_token <= p.room and most * per_token * 1.02 > p.room, ("%d tokens fit in %.1f GB"):format(
      most, p.room / 1e9))
  end)
end)

-- A step takes the memory of its tensors from the device, and a little for the holes between them, also after steps of other sizes.
test("the allocator takes little more memory than a step holds", function()
  shell.with_folder(function(folder)
    fs.write(fs.join(folder, "config.json"), json.encode(NOMIC))
    local C, memory = require "lorarun.base.c", require "lorarun.tensor.memory"
    check.equal(C.lr_meta_like(C.LR_CUDA), 0)
    local model = require("lorarun").load_model(folder, { device = "meta", precision = "bf16", max_length = 512 })
    model:add_lora { rank = 16, alpha = 32, dropout = 0.05, targets = { "q_proj", "k_proj", "v_proj" } }
    local f = require("lorarun.train.footprint").new { model = model, loss = require("lorarun.train.loss").cosine_similarity(),
      columns = 2 }
    check.equal(C.lr_memory_release_cached(C.LR_META), 0)
    local held = memory.stats("meta").live_bytes
    local function reserved(peak, allowed, what)
      local ratio = (memory.stats("meta").reserved_bytes - held) / peak
      check.that(ratio > 1 and ratio < allowed, ("%s: %.4f of the peak are reserved"):format(what, ratio))
    end
    local most = 0
    for i = 0, 9 do
      most = math.max(most, (f:step { tokens = 18000 + i * 701 % 2000, pairs = 128, layers = 0 }))
      reserved(most, 1.015, "step " .. i)
    end
    for _, spec in ipairs { { 33000, 11 }, { 64000, 22 }, { 100000, 28 } } do
      check.equal(C.lr_memory_release_cached(C.LR_META), 0)
      reserved(f:step { tokens = spec[1], pairs = 128, layers = spec[2] }, 1.02, spec[2] .. " layers recomputed")
    end
    f:free()
    model:free()
  end)
end)

test("a recomputed layer keeps the residual stream alone, and its last product is not repeated, unless it has adapters", function()
  shell.with_folder(function(folder)
    fs.write(fs.join(folder, "config.json"), json.encode(NOMIC))
    local C, nn = require "lorarun.base.c", require "lorarun.models.nn"
    check.equal(C.lr_meta_like(C.LR_CUDA), 0)
    for _, case in ipairs { { targets = { "q_proj", "v_proj" }, down = 1 }, { targets = { "down_proj" }, down = 2 } } do
      local model = require("lorarun").load_model(folder, { device = "meta", precision = "bf16", max_length = 512 })
      model:add_lora { rank = 4, alpha = 8, dropout = 0, targets = case.targets }
      local f = require("lorarun.train.footprint").new { model = model, loss = require("lorarun.train.loss").cosine_similarity(),
        columns = 2 }
      local calls, linear = {}, nn.linear
      nn.linear = function(x, layer, ...)
        local kind = layer.name:match "[^.]+$"
        calls[kind] = (calls[kind] or 0) + 1
        return linear(x, layer, ...)
      end
      local ok, kept = pcall(function()
        f:step { tokens = 4096, pairs = 16, layers = LAYERS }
        nn.linear = linear
        return f:kept { tokens = 4096, pairs = 16, layers = LAYERS }
      end)
      nn.linear = linear
      check.that(ok, kept)
      check.equal(calls.o_proj, 2 * LAYERS)
      check.equal(calls.down_proj, case.down * LAYERS)
      local bytes = 0
      for _, k in ipairs(kept) do bytes = bytes + k.bytes end
      check.near(bytes / (4096 * (LAYERS + 1) * 2 * 3584), 1, 0.01, "bytes kept, as a share of the stream's") -- + the last norm's
      check.near(nn.again(model.built.layers), case.down == 2 and 1
        or 1 - 3584 * 18944 * LAYERS / LINEAR, 1e-6)
      f:free()
      model:free()
    end
  end)
end)

test("a plan for the CPU uses the free memory of this machine, and weights packed for both directions", function()
  shell.with_folder(function(folder)
    make_data(fs.join(folder, "data"))
    local p = run(folder, "plan", fs.join(golden, "bert"), TARGETS.bert, "{}")
    local free = require("lorarun.tensor.memory").available "cpu"
    check.that(p.memory > 0.3 * free and p.memory < 2 * free, ("%g of memory planned for, %g free"):format(p.memory, free))
    check.equal(p.driver, 0)
    local gpu = run(folder, "plan --gpu-memory 1GiB", fs.join(golden, "bert"), TARGETS.bert, "{}")
    check.equal(gpu.memory, 2 ^ 30)
    check.that(gpu.held.weights < p.held.weights, "a GPU needs no weight twice")
  end)
end)
