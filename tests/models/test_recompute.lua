-- The trainer's recompute = "auto" | "none" | "all" | n: what it chooses when memory is short, that the results are the same bits,
-- and what it refuses. The tests tell the program how much memory is free.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local data_files = dofile(os.getenv "LORARUN_TESTS" .. "/data.lua")

local golden = fs.join(os.getenv "LORARUN_TESTS", "golden")
local FOLDERS = { bert = "query,key,value", qwen2 = "q_proj,k_proj,v_proj" }
local PLENTY = 1e12

local DEVICE = os.getenv "LORARUN_TEST_DEVICE" or "cpu"

-- The free memory to report so that tensors of this many bytes fit: recompute.lua leaves some of it free, and kernels need scratch
-- as well. scratch: that of the run, as train() returns it.
local function free_for(bytes, scratch)
  if DEVICE == "cuda" then return bytes + scratch + 0.5e9 end
  return (bytes + scratch) / 0.9
end

-- Rows of very different lengths: every fourth step has long ones, of lines_of_long lines. validation: how many rows that split has
local function make_data(folder, rows, lines_of_long, validation)
  return data_files.make(folder, { train = rows, validation = validation or 2 }, function(i)
    return { current_line = ("x = %d"):format(i), score = i % 2,
      context = ("y = f(x, %d)\n"):format(i):rep(math.floor(i / 4) % 4 == 3 and (lines_of_long or 9) or 1) }
  end)
end

-- A program that trains four steps of four pairs, and says what its steps took. FREE: the memory that it believes to be free.
local RECIPE = [[
local lr, memory, C = require "lorarun", require "lorarun.tensor.memory", require "lorarun.base.c"
local folder, arch, targets, free, options = unpack(arg)
local available = memory.available -- the memory that is really free, for everything after the run has chosen its batches
if free ~= "" then memory.available = function() return tonumber(free) end end
local model = lr.load_model(arch, { max_length = 64 })
local device = model.device
model:add_lora { rank = 2, alpha = 4, dropout = 0.1, targets = lr.split(targets, ",") }
local given = { model = model, data = folder .. "/data", output = folder .. "/out", batch = 4, epochs = 1, sampling = "sequential",
  learning_rate = 1e-2, evaluation_steps = 100, columns = { "current_line", "context" } }
for key, value in pairs(assert(loadstring("return " .. options))()) do given[key] = value end
local result = { calls = 0, steps = 0, losses = {}, norms = {} }
if given.loss == "own" then
  given.loss = function(columns, labels)
    result.calls = result.calls + 1
    assert(columns[1]:data()[0])
    return lr.ops.mse(lr.ops.row_dot(columns[1], columns[2]), labels)
  end
end
C.lr_memory_release_cached(memory.DEVICES[device]) -- the memory that loading no longer uses, so that peaks of steps can be compared
memory.reset_peak(device)
local held = memory.stats(device).live_bytes
given.on_step = function(done)
  memory.available = available
  table.insert(result.losses, done.loss)
  table.insert(result.norms, done.grad_norm)
  if given.limit_after == done.step then memory.limit(memory.stats(device).live_bytes + 1e5, device) end
  local stats = memory.stats(device)
  result.steps, result.peak, result.scratch = done.step, stats.peak_bytes - held, stats.scratch_bytes
end
local options_of_train = {}
for key, value in pairs(given) do
  if key ~= "limit_after" and key ~= "own_limit" then options_of_train[key] = value end
end
if given.own_limit then memory.limit(held + given.own_limit, device) end
local ok, err = pcall(lr.train, options_of_train)
if given.own_limit then -- the limit set here still holds, and no other
  local bytes = given.own_limit + held - memory.stats(device).live_bytes
  result.above = not pcall(lr.tensor.new, { math.floor(bytes / 4) + 1 }, "f32", "above", device)
  result.below = pcall(function() lr.tensor.new({ math.floor(bytes / 4) - 1 }, "f32", "below", device):free() end)
  memory.limit(nil, device)
  result.without = pcall(function() lr.tensor.new({ math.floor(bytes / 2) }, "f32", "without", device):free() end)
end
if not ok then result.error = err end
result.adapters = require("lorarun.dist.data_parallel").checksum(model.lora.parameters.value)
model:free()
jit.flush() -- compiled traces keep objects alive that they have seen
collectgarbage() collectgarbage() collectgarbage()
result.left, result.planned_left = memory.stats(device).live_tensors, memory.stats("meta").live_tensors
lr.fs.write(folder .. "/result.json", lr.json.encode(result))
]]

-- Runs the program. free: bytes, or nil for the real free memory; keep: keeps the output of the run before; targets: LoRA's, nil:
-- q, k and v. Returns the program's result, with what it printed as `out`.
local function train(folder, arch, free, options, keep, targets)
  local recipe = fs.join(folder, "recipe.lua")
  fs.write(recipe, RECIPE)
  if not keep and fs.exists(fs.join(folder, "out")) then fs.remove(fs.join(folder, "out")) end
  local words = { recipe, folder, fs.join(golden, arch), targets or FOLDERS[arch], free and ("%d"):format(free) or "",
    options or "{}" }
  for i, word in ipairs(words) do words[i] = shell.quote(word) end
  local r = shell.run("$L " .. table.concat(words, " "))
  check.equal(r.err, "", "standard error")
  local result = json.decode_file(fs.join(folder, "result.json"))
  check.equal(result.left, 0, "tensors left")
  check.equal(result.planned_left, 0, "tensors left on the meta device")
  result.out = r.out
  return result
end

local function checkpointing(r) return r.out:match "gradient checkpointing ([^\n]*)" end

for arch in pairs(FOLDERS) do
  test(arch .. ": as much as fits is kept, and the bits are the same", function()
    shell.with_folder(function(folder)
      make_data(fs.join(folder, "data"), 16)
      if DEVICE == "cuda" then train(folder, arch) end -- timing a GPU's algorithms takes memory too, once
      local none, all = train(folder, arch, nil, '{ recompute = "none" }'), train(folder, arch, nil, '{ recompute = "all" }')
      check.equal(checkpointing(none), "off")
      check.equal(checkpointing(all), "on every layer")
      check.that(all.peak < none.peak, "recomputing saves nothing")
      local plenty = train(folder, arch, PLENTY)
      check.equal(checkpointing(plenty), "off (every batch fits the memory)")
      check.equal(plenty.peak, none.peak)
      check.equal(plenty.adapters, none.adapters)
      local one = train(folder, arch, nil, "{ recompute = 1 }")
      check.that(all.peak < one.peak and one.peak < none.peak, "the peaks are in no order")
      local room = 1.01 * one.peak
      local short = train(folder, arch, free_for(room, one.scratch))
      check.equal(short.error, nil)
      check.that(checkpointing(short):find "where memory is short, on at most [12] of [23] layers", short.out)
      check.equal(short.peak, one.peak)
      check.equal(short.adapters, none.adapters)
    end)
  end)
end

-- A GPU's libraries take memory outside any limit, so this is tested on the CPU.
if DEVICE ~= "cuda" then
  test("lr.memory.limit belongs to the user: a run plans for it, keeps within it, and leaves it unchanged", function()
    shell.with_folder(function(folder)
      make_data(fs.join(folder, "data"), 16)
      local none, all = train(folder, "bert", nil, '{ recompute = "none" }'), train(folder, "bert", nil, '{ recompute = "all" }')
      local limit = (none.peak + all.peak) / 2 + none.scratch
      local r = train(folder, "bert", PLENTY, ("{ own_limit = %d }"):format(limit))
      check.equal(r.error, nil)
      check.that(checkpointing(r):find "where memory is short, on at most", r.out)
      check.that(r.peak <= limit and r.peak < none.peak, ("the peak is %d bytes, the limit %d"):format(r.peak, limit))
      check.equal(r.adapters, none.adapters)
      check.that(r.above and r.below and r.without, "after the run the limit is not what it was")
      r = train(folder, "bert", nil, "{ own_limit = 1000 }")
      check.that(r.error:find(", or more with lr.memory.limit", 1, true), r.error)
    end)
  end)
end

-- A layer's last product is repeated only if it has adapters.
for arch, down in pairs { bert = "output.dense", qwen2 = "down_proj" } do
  test(arch .. ": the same bits with adapters on the last product of a layer", function()
    shell.with_folder(function(folder)
      make_data(fs.join(folder, "data"), 16)
      local targets = FOLDERS[arch] .. "," .. down
      local none = train(folder, arch, nil, '{ recompute = "none" }', false, targets)
      local all = train(folder, arch, nil, '{ recompute = "all" }', false, targets)
      check.equal(none.error, nil)
      check.equal(all.adapters, none.adapters)
      check.equal(table.concat(all.norms, " "), table.concat(none.norms, " "))
    end)
  end)
end

for name, options in pairs { ["cosine similarity"] = "", ["multiple negatives ranking"] =
  'loss = require("lorarun.train.loss").by_name "mnr", batch = 3, accumulate = 2, epochs = 2,' } do
  for _, arch in ipairs { "bert", "qwen2" } do
    test(("%s, %s: a batch that cannot fit is taken in parts that do, with the same gradients"):format(arch, name), function()
      shell.with_folder(function(folder)
        make_data(fs.join(folder, "data"), 16)
        local all = train(folder, arch, nil, ('{ %s recompute = "all" }'):format(options))
        check.that(not all.out:find("in parts", 1, true), all.out)
        local room = 0.7 * all.peak
        local r = train(folder, arch, free_for(room, all.scratch), ("{ %s }"):format(options))
        check.equal(r.error, nil)
        check.that(r.out:find " effective, in parts of [12] that fit the memory", r.out)
        local peak, there = r.peak + r.scratch, room + all.scratch
        check.that(peak <= there, ("the peak is %d bytes, there is room for %d"):format(peak, there))
        check.equal(#all.losses, 4)
        check.array(r.losses, all.losses, 1e-5, "losses")
        check.array(r.norms, all.norms, 1e-4, "gradient norms")
      end)
    end)
  end
end

test("running out of memory nevertheless: one error with step, batch, holders and remedy; the last checkpoint is whole", function()
  shell.with_folder(function(folder)
    make_data(fs.join(folder, "data"), 16)
    local whole = train(folder, "bert", nil, '{ recompute = "none", evaluation_steps = 2 }')
    local r = train(folder, "bert", nil, '{ recompute = "none", evaluation_steps = 2, limit_after = 2 }')
    check.equal(r.steps, 2)
    for _, part in ipairs { ("out of %s memory: "):format(DEVICE), "  in step 3, in a batch of ", " tokens (4 pairs)\n",
      "  held now, largest first:\n", "embeddings.word_embeddings", "  to need less: a smaller --batch, a smaller --max-length, ",
      "  the checkpoint of step 2 is whole: lr.train with resume = \"latest\" goes on from it" } do
      check.that(r.error:find(part, 1, true), ("'%s' lacks '%s'"):format(r.error, part))
    end
    local resumed = train(folder, "bert", nil, '{ recompute = "none", evaluation_steps = 2, resume = "latest" }', true)
    check.that(resumed.out:find("step-00000002, step 2 of 4", 1, true), resumed.out)
    check.equal(resumed.adapters, whole.adapters)
  end)
end)

test("a pair that cannot fit is refused before the first step", function()
  shell.with_folder(function(folder)
    make_data(fs.join(folder, "data"), 16)
    local r = train(folder, "bert", free_for(2e4, 0))
    check.equal(r.steps, 0)
    check.that(r.error:find "step %d has a pair of %d+ tokens, which needs .* even with all 2 layers recomputed, and .* are free; "
      and r.error:find("tokens fit: give a smaller --max-length, or --precision bf16", 1, true), r.error)
  end)
end)

test("a batch that neither fits nor can be split is refused before the first step, with numbers and remedies", function()
  shell.with_folder(function(folder)
    make_data(fs.join(folder, "data"), 16)
    local all = train(folder, "bert", nil, '{ recompute = "all" }')
    local free = free_for(0.7 * all.peak, all.scratch)
    local r = train(folder, "bert", free, '{ loss = "own" }')
    check.equal(r.steps, 0)
    for _, part in ipairs { "step 4 has a batch of ", "(4 pairs), which needs ", "even with all 2 layers recomputed, and ",
      " are free; ", "give --batch ", "or a smaller --max-length", "--precision bf16" } do
      check.that(r.error:find(part, 1, true), ("'%s' lacks '%s'"):format(r.error, part))
    end
    check.that(not fs.exists(fs.join(folder, "out")), "something was written")
    local smaller = tonumber(r.error:match "%-%-batch (%d+)")
    check.that(smaller >= 1 and smaller < 4, r.error)
    check.equal(train(folder, "bert", free, ('{ batch = %d, loss = "own" }'):format(smaller)).error, nil)
    check.equal(train(folder, "bert", free, '{ recompute = "all" }').error, nil) -- a number is taken as it is
  end)
end)

test("the lengths of the texts count if a batch of the longest possible texts would not fit", function()
  shell.with_folder(function(folder)
    make_data(fs.join(folder, "data"), 16, 1)
    local all = train(folder, "bert", nil, '{ recompute = "all" }')
    local r = train(folder, "bert", free_for(1.05 * all.peak, all.scratch))
    check.equal(r.error, nil)
    check.equal(r.steps, 4)
    check.equal(r.adapters, all.adapters)
  end)
end)

test("an evaluation that cannot fit is refused before the first step", function()
  shell.with_folder(function(folder)
    make_data(fs.join(folder, "data"), 16, 9, 2000)
    local all = train(folder, "bert", nil, '{ recompute = "all", max_evaluation_rows = 2 }')
    local free = free_for(1.2 * all.peak, all.scratch)
    local r = train(folder, "bert", free)
    check.equal(r.steps, 0)
    for _, part in ipairs { "evaluating the 2000 rows of ", "validation.jsonl (4000 different texts) needs ", " are free; ",
      "give a smaller --max-evaluation-rows" } do
      check.that(r.error:find(part, 1, true), ("'%s' lacks '%s'"):format(r.error, part))
    end
    check.equal(train(folder, "bert", free, "{ max_evaluation_rows = 2 }").error, nil)
  end)
end)

test("a loss of the recipe's own is not tried on the meta device: it may read values", function()
  shell.with_folder(function(folder)
    make_data(fs.join(folder, "data"), 16)
    local r = train(folder, "bert", nil, '{ loss = "own" }')
    check.equal(r.error, nil)
    check.equal(r.calls, 4)
  end)
end)

test("recompute is auto, none, all or a number", function()
  shell.with_folder(function(folder)
    make_data(fs.join(folder, "data"), 16)
    for _, value in ipairs { '"some"', "-1", "1.5" } do
      local r = train(folder, "bert", nil, ("{ recompute = %s }"):format(value))
      check.that(r.error:find(("recompute is '%s'; expected auto, none, all or a number of layers"):format(value:gsub('"', "")), 1,
        true), r.error)
    end
    check.equal(checkpointing(train(folder, "bert", nil, "{ recompute = 1 }")), "on 1 of 2 layers")
    check.equal(checkpointing(train(folder, "bert", nil, '{ recompute = "99" }')), "on every layer")
  end)
end)

test("trying an evaluation without bytes leaves no tensors, which would make the next step look smaller", function()
  local memory, footprint = require "lorarun.tensor.memory", require "lorarun.train.footprint"
  local model = require("lorarun.models.model").load(fs.join(golden, "bert"), { max_length = 64, device = "meta" })
  model:add_lora { rank = 2, targets = { "query" } }
  local f = footprint.new { model = model, loss = require("lorarun.train.loss").cosine_similarity(),
    columns = 2 }
  local before = memory.stats("meta").live_bytes
  local bytes = f:evaluation(10, 64)
  check.that(bytes > 10 * model.dimension * 4, "bytes of an evaluation")
  check.equal(memory.stats("meta").live_bytes, before, "bytes left")
  f:free()
  model:free()
end)
