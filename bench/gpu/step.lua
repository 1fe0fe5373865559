-- step.lua: whole training steps of the 7B with random weights, at several counts of tokens: forward, backward, clipping and AdamW,
-- with as few layers recomputed as the memory allows, as the trainer does. Useful work is 4 N a token (synthetic.lua); its share of
-- the data sheet's peak is the MFU. The peak of memory is compared with the plan's.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local footprint = require "lorarun.train.footprint"
local loss = require "lorarun.train.loss"
local memory = require "lorarun.tensor.memory"
local training_step = require "lorarun.train.step"
local optim = require "lorarun.tensor.optim"
local recompute = require "lorarun.train.recompute"
local tensor = require "lorarun.tensor.tensor"

-- Pairs with the lengths of real data, as many as come nearest to this many tokens.
local function batch_near(bench, tokens, vocabulary)
  local function tokens_of(n)
    local sum = 0
    for _, length in ipairs(bench.synthetic.lengths(n)) do sum = sum + length end
    return sum
  end
  local low, high = 1, math.max(2, math.ceil(tokens / 30))
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if tokens_of(middle) <= tokens then low = middle else high = middle - 1 end
  end
  return bench.synthetic.batch(bench.synthetic.lengths(low), vocabulary), low
end

-- A source of batches (train/step.lua): always the same batch, with the next step number.
local function source_of(batch, pairs_)
  local labels = {}
  for i = 1, pairs_ do labels[i] = i % 2 end
  local info = { step = 0, total = pairs_, batch = pairs_, from = 0, ends = true, last = true, rows = {}, own = {},
    owner = ffi.new("int32_t[?]", pairs_) }
  for i = 1, pairs_ do info.rows[i], info.own[i] = i, i end
  return { next = function()
    info.step = info.step + 1
    return batch, info
  end, label_tensor = function(_, rows, device) return tensor.from(labels, { #rows }, "f32", "labels", device) end }
end

-- The fewest layers to recompute so that this many tokens fit, as recompute.lua chooses; nil: they never fit.
local function fewest_layers(bench, f, tokens, pairs_)
  local wanted = recompute.number(bench.args.recompute, f.model.layer_count)
  check(C.lr_memory_release_cached(memory.DEVICES[bench.device]))
  local room = recompute.usable(memory.available(bench.device), bench.device, 1)
  for layers = wanted or 0, wanted or f.model.layer_count do
    local need, scratch = f:step { tokens = tokens, layers = layers, pairs = pairs_ }
    if need + scratch <= room then return layers, need end
  end
end

local function measure(bench, model, optimizer, tokens)
  local report = bench.report
  local batch, pairs_ = batch_near(bench, tokens, model.sizes.vocabulary)
  local cosine = loss.cosine_similarity()
  local f = footprint.new { model = model, loss = cosine, columns = 2 }
  local layers, need = fewest_layers(bench, f, batch.tokens, pairs_)
  f:free()
  if not layers then
    report:note("a step of %d tokens does not fit the memory", batch.tokens)
    return
  end
  local whole = training_step.new { model = model, loss = cosine, source = source_of(batch, pairs_), columns = 2, seed = 1,
    plan = { cached = false, layers = function() return layers end } }
  local sum, value = model.lora.parameters.loss, 0
  local function step()
    sum:fill(0)
    whole:batch()
    optimizer:step(1e-4)
    value = sum:item()
  end
  local t = C.lr_time()
  step() -- the first step chooses algorithms
  bench.wait()
  local first = C.lr_time() - t
  step()
  bench.wait()
  memory.reset_peak(bench.device)
  local before, times = memory.stats(bench.device).live_bytes, {}
  for i = 1, bench.args.steps do
    t = C.lr_time()
    step()
    bench.wait()
    times[i] = C.lr_time() - t
  end
  table.sort(times)
  local seconds = times[math.ceil(#times / 2)]
  local stats, planned = memory.stats(bench.device), before + need
  local rate = bench.synthetic.useful_work(model, batch) / seconds
  local mfu = bench.peak and ("%.1f%%"):format(100 * rate / bench.peak) or ""
  local ceiling = bench.ceilings.bf16 and ("%.1f%%"):format(100 * rate / bench.ceilings.bf16) or ""
  report:row("step", { ("%d tokens, %d pairs"):format(batch.tokens, pairs_), layers, 1e3 * seconds, batch.tokens / seconds,
    pairs_ / seconds, rate / 1e12, mfu, ceiling, stats.peak_bytes / 1e9, planned / 1e9,
    ("%+.2f%%"):format(100 * (stats.peak_bytes / planned - 1)) },
    { tokens = batch.tokens, pairs = pairs_, seconds = seconds, all_seconds = times, first_seconds = first, loss = value,
      peak_bytes = stats.peak_bytes, planned_bytes = planned, scratch_bytes = stats.scratch_bytes,
      reserved_bytes = stats.reserved_bytes, available_bytes = memory.available(bench.device) })
  report:headline("%-34s %8.0f tokens/s, %.1f pairs/s%s, peak %.1f GB", ("step of %d tokens, %d recomputed"):format(batch.tokens,
    layers), batch.tokens / seconds, pairs_ / seconds, mfu ~= "" and ", MFU " .. mfu or "", stats.peak_bytes / 1e9)
  if value ~= value then report:note("the loss of a step of %d tokens is not a number", batch.tokens) end
end

return function(bench)
  local report = bench.report
  report:table("step", "Training steps of the 7B in bf16, LoRA 16 on q, k, v", { "step", "recomputed", "ms", "tokens/s", "pairs/s",
    "TFLOP/s", "MFU", "of ceiling", "peak GB", "planned GB", "difference" })
  local model = bench.synthetic.model(bench.synthetic.SHAPES[bench.shape], "bf16", bench.device)
  local optimizer = optim.adamw(model.lora.parameters)
  bench.wait()
  local ok, err = pcall(function()
    for text in bench.args.tokens:gmatch "%d+" do
      local tokens = bench.tiny and tonumber(text) / 16 or tonumber(text)
      if bench.time_for(30, ("a step of %d tokens"):format(tokens)) then
        local fits, problem = pcall(measure, bench, model, optimizer, tokens)
        if not fits then report:note("a step of %d tokens failed: %s", tokens, tostring(problem)) end
      end
    end
  end)
  optimizer:free()
  model:free()
  if not ok then error(err, 0) end
end
