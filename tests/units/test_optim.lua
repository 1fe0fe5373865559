-- Schedules, AdamW and clipping compared with torch and transformers (tests/golden/optim.json); samplers.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local optim = require "lorarun.tensor.optim"
local sampler = require "lorarun.data.sampler"
local schedule = require "lorarun.train.schedule"
local tensor = require "lorarun.tensor.tensor"

local golden = json.decode_file(fs.join(os.getenv "LORARUN_TESTS", "golden", "optim.json"))

test("schedules", function()
  for _, case in ipairs(golden.schedules) do
    local f = schedule.by_name(case.kind, case.warmup)
    for step = 0, case.total do
      check.near(f(step, case.total), case.factor[step + 1], 1e-12, ("%s(%d) at %d"):format(case.kind, case.warmup, step))
    end
  end
  check.raises("there is no schedule 'quadratic'", schedule.by_name, "quadratic", 1)
  check.raises("warmup is -1", schedule.warmup_linear, -1)
end)

local function flat(lists)
  local all = {}
  for _, list in ipairs(lists) do
    for _, v in ipairs(list) do all[#all + 1] = v end
  end
  return all
end

test("AdamW", function()
  tensor.scope(function()
    for _, case in ipairs(golden.adamw) do
      local parameters = { value = tensor.from(case.start), grad = tensor.zeros { #case.start }, count = #case.start }
      local o = optim.adamw(parameters, { beta1 = case.betas[1], beta2 = case.betas[2], eps = case.epsilon,
        weight_decay = case.weight_decay, max_grad_norm = 0 })
      for step, gradient in ipairs(case.gradients) do
        parameters.grad:write(ffi.new("float[?]", #gradient, gradient))
        o:step(case.learning_rate[step])
        check.array(parameters.value:to_table(), case.parameters[step], 2e-6, "parameters after step " .. step)
        check.array(parameters.grad:to_table(), tensor.zeros({ #gradient }):to_table(), 0, "gradients are cleared")
      end
      o:free()
    end
  end)
end)

test("clipping by global norm", function()
  tensor.scope(function()
    for _, case in ipairs(golden.clip) do
      local g = tensor.from(flat(case.gradients))
      local factor, norm = tensor.new { 1 }, tensor.new { 1 }
      require "lorarun.base.check"(C.lr_op_clip_factor(factor.handle, norm.handle, g.handle, nil, case.max_norm))
      check.near(norm:item(), case.norm, 1e-5 * case.norm, "norm")
      local k, values, clipped = factor:item(), g:to_table(), flat(case.clipped)
      for i, v in ipairs(values) do check.near(v * k, clipped[i], 1e-6 * math.max(1, math.abs(clipped[i])), "clipped " .. i) end
    end
  end)
end)

test("a gradient that is not finite changes nothing and is reported", function()
  tensor.scope(function()
    for _, bad in ipairs { 1 / 0, 0 / 0 } do
      local p = { value = tensor.from { 1, 2 }, grad = tensor.from { 0.5, bad }, count = 2 }
      local o = optim.adamw(p)
      local _, skipped = o:step(0.1)
      check.that(skipped, "the step must be skipped")
      check.equal(o.steps, 0)
      check.array(p.value:to_table(), { 1, 2 }, 0)
      check.array(o.m:to_table(), { 0, 0 }, 0)
      o:free()
    end
  end)
end)

test("a scaled loss: the scale is divided out of its gradients; it halves, doubles after 2000 clean steps, and is saved", function()
  tensor.scope(function()
    local function with(options, grad)
      local p = { value = tensor.from { 1, 2 }, grad = tensor.from(grad), count = 2 }
      return optim.adamw(p, options), p
    end
    local plain, expected = with(nil, { 0.5, 0.25 })
    local scaled, p = with({ scaled = true }, { 0.5 * 65536, 0.25 * 65536 })
    check.near(plain:step(0.1), scaled:step(0.1), 1e-6, "norm of the loss's own gradient")
    check.array(p.value:to_table(), expected.value:to_table(), 1e-6, "values")
    check.equal(scaled.scale:item(), 65536)
    p.grad:fill(1 / 0)
    check.equal(select(2, scaled:step(0.1)), true, "skipped")
    check.equal(scaled.scale:item(), 32768, "halved")
    for step = 1, 2000 do
      check.equal(scaled.scale:item(), 32768, "scale before clean step " .. step)
      scaled:step(0)
    end
    check.equal(scaled.scale:item(), 65536, "doubled")
    scaled:step(0)
    local again = with({ scaled = true, loss_scale = 8 }, { 1, 1 })
    check.equal(again.scale:item(), 8)
    again:restore(scaled:state())
    check.equal(again.scale:item(), 65536)
    check.equal(again.clean:item(), 1, "clean steps")
    check.equal(again.steps, 2002)
    for _, o in ipairs { plain, scaled, again } do o:free() end
  end)
end)

test("a shuffled epoch is a permutation, a different one for each epoch and seed", function()
  for _, rows in ipairs { 1, 2, 5, 16, 17, 1000 } do
    local sample = sampler.shuffled(rows, 7)
    local orders = {}
    for epoch = 0, 1 do
      local seen, order = {}, {}
      for i = 0, rows - 1 do
        local row = sample(epoch * rows + i)
        check.that(row >= 0 and row < rows and not seen[row], ("row %s of %d twice or out of range"):format(row, rows))
        seen[row] = true
        order[#order + 1] = row
      end
      orders[epoch] = table.concat(order, " ")
    end
    if rows >= 16 then
      check.that(orders[0] ~= orders[1], "both epochs have one order")
      local other = {}
      for i = 0, rows - 1 do other[#other + 1] = sampler.shuffled(rows, 8)(i) end
      check.that(table.concat(other, " ") ~= orders[0], "two seeds have one order")
    end
  end
end)

test("weighted draws: classes equally often, rows of a class equally often, a pure function of the draw", function()
  local labels = ffi.new("double[10]", 0, 1, 1, 1, 1, 1, 1, 1, 0, 1)
  local sample, classes = sampler.weighted(labels, 10, 3)
  check.equal(classes[1].count, 2)
  check.near(classes[1].weight, 10 / (2 * 2), 1e-12)
  check.near(classes[2].weight, 10 / (2 * 8), 1e-12)
  local counts, draws = {}, 20000
  for i = 0, draws - 1 do
    local row = sample(i)
    counts[row] = (counts[row] or 0) + 1
  end
  for row = 0, 9 do
    local expected = draws / 2 / (labels[row] == 0 and 2 or 8)
    check.near(counts[row], expected, 5 * math.sqrt(expected), "draws of row " .. row) -- five standard deviations, fixed seed
  end
  check.equal(sample(12345), (sampler.weighted(labels, 10, 3))(12345))
  local other, same = sampler.weighted(labels, 10, 4), 0
  for i = 0, 99 do same = same + (other(i) == sample(i) and 1 or 0) end
  check.that(same < 60, same .. " of 100 draws are those of another seed") -- 28 are expected by chance
end)

test("sampling among some rows", function()
  local list = ffi.new("int64_t[3]", 4, 7, 9)
  local sample = sampler.among(list, sampler.sequential(3))
  check.array({ sample(0), sample(1), sample(2), sample(3) }, { 4, 7, 9, 4 }, 0)
end)
