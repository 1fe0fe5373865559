-- Every allocation fails in turn, while a model is loaded, given adapters, used, trained for a step and saved. Each time there is
-- an error that says so, never a crash, and nothing is leaked.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local autograd = require "lorarun.tensor.autograd"
local dataset = require "lorarun.data.dataset"
local fs = require "lorarun.base.fs"
local load_model = require("lorarun.models.model").load
local memory = require "lorarun.tensor.memory"
local training_step = require "lorarun.train.step"
local ops = require "lorarun.tensor.ops"
local optim = require "lorarun.tensor.optim"
local tensor = require "lorarun.tensor.tensor"

local golden = fs.join(os.getenv "LORARUN_TESTS", "golden")
local TEXTS = { "x = 1", "def f(x): return x" }

local function held()
  jit.flush()
  collectgarbage() collectgarbage()
  local s = memory.stats()
  return s.live_tensors, s.host_objects
end

-- Calls work() once for each of its allocations, with that one failing. work must free all that it allocates.
local function fail_each(what, work)
  work() -- the first call makes what is made once and kept
  local before = tonumber(C.lr_memory_attempts())
  work()
  local attempts = tonumber(C.lr_memory_attempts()) - before
  check.that(attempts > 50, ("%s allocates only %d times"):format(what, attempts))
  local tensors, objects = held()
  local failed = 0
  for n = 0, attempts + 5 do
    C.lr_memory_fail(n, 2) -- twice: lorarun collects garbage and tries again once
    local ok, err = pcall(work)
    C.lr_memory_fail(-1, 0)
    if not ok then
      failed = failed + 1
      check.that(tostring(err):find("memory", 1, true), ("%s, allocation %d: %s"):format(what, n, err))
    end
    local tensors_now, objects_now = held()
    check.equal(tensors_now, tensors, ("%s: tensors alive after allocation %d of %d failed (%s)"):format(what, n, attempts,
      tostring(err)))
    check.that(objects_now <= objects, ("%s: %d small allocations leaked when allocation %d of %d failed (%s)"):format(what,
      objects_now - objects, n, attempts, tostring(err)))
  end
  check.that(failed > attempts / 2, ("%s: only %d of %d failures were noticed"):format(what, failed, attempts))
end

local function train_step(model)
  local optimizer = optim.adamw(model.lora.parameters)
  local ok, err = pcall(function()
    autograd.gradients(function()
      local batch = dataset.pack(model.tokenizer, TEXTS, model.max_length)
      local made, ctx = pcall(model.context, model, batch, { training = true, recompute = 1 })
      batch:close()
      if not made then error(ctx, 0) end
      local e = model:forward(ctx)
      return ops.mse(ops.row_dot(ops.rows(e, 0, 1), ops.rows(e, 1, 2)), tensor.from { 0.5 })
    end)
    optimizer:step(1e-3)
  end)
  optimizer:free()
  if not ok then error(err, 0) end
end

-- A batch of two pairs, taken one after the other, with a loss that compares them.
local function step_in_parts(model)
  local from, pass, batch = 0, 1, nil
  local function close()
    if batch then batch:close() end
    batch = nil
  end
  local function take()
    close()
    batch = dataset.pack(model.tokenizer, TEXTS, model.max_length)
    local info = { step = 1, rows = { from }, own = { from }, owner = ffi.new "int32_t[1]", batch = 2, total = 2, from = from,
      ends = from == 1, last = pass == 2 }
    from, pass = 1 - from, pass + from
    return batch, info
  end
  local step = training_step.new { model = model, loss = require("lorarun.train.loss").by_name "mnr", columns = 2, seed = 1,
    source = { next = take }, plan = { cached = true, layers = function() return 1 end } }
  local ok, last = pcall(step.batch, step)
  close()
  if not ok then error(last, 0) end
  assert(model.lora.parameters.loss:item() > 0 and last and pass == 3)
end

for _, folder in ipairs { "bert", "qwen2_tied" } do
  local path = fs.join(golden, folder)

  test(folder .. ": every allocation of loading and of adding adapters fails in turn", function()
    fail_each("loading", function()
      local model = load_model(path)
      local ok, err = pcall(model.add_lora, model, { rank = 2, dropout = 0.1, targets = "all-linear" })
      model:free()
      if not ok then error(err, 0) end
    end)
  end)

  test(folder .. ": every allocation of encoding, a training step and saving fails in turn", function()
    local model = load_model(path)
    model:add_lora { rank = 2, dropout = 0.1, targets = "all-linear" }
    local save_to = os.tmpname()
    os.remove(save_to)
    fail_each("encoding", function() model:encode(TEXTS):free() end)
    fail_each("a training step", function() train_step(model) end)
    fail_each("a batch in parts", function() step_in_parts(model) end)
    -- probes are measured beforehand and not checked: encoding and loading are tested above
    local options = { probes = require("lorarun.models.probes").measure(model, TEXTS), check = false }
    fail_each("saving", function() model:save_adapter(save_to, options) end)
    fs.remove(save_to)
    model:free()
  end)
end

test("the error names what holds the memory, and settings that need less", function()
  local kept = tensor.zeros({ 1000, 1000 }, "f32", "my big tensor")
  C.lr_memory_fail(0, 10)
  local ok, err = pcall(tensor.zeros, { 10, 10 }, "f32", "one more")
  C.lr_memory_fail(-1, 0)
  check.that(not ok)
  for _, part in ipairs { "memory", "my big tensor", "4.0 MB", "--batch" } do
    check.that(err:find(part, 1, true), ("'%s' lacks '%s'"):format(err, part))
  end
  kept:free()
end)

