-- autograd.lua: the tape. While a tape records, every op of ops.lua appends an entry; backward walks the entries in reverse.
--
--   local loss = autograd.gradients(function() return some_loss end)    -- adds to the .grad of every parameter it used
--
-- An entry holds the op's differentiable inputs, its outputs, what it saved, and its backward function, which gets the gradients
-- of the outputs (nil where an output had no part in the loss) and returns those of the inputs.
--
-- Ownership. The tape is a scope (tensor.lua): it owns every tensor made under it. Backward frees gradients and saved tensors as
-- soon as they are used, so that memory falls from the first entry on. A gradient that two inputs share has holders = 2; a rule
-- that wants to overwrite its incoming gradient asks autograd.writable.
--
-- Parameters are leaves with a .grad of their own (a view into the flat gradient buffer): rules may accumulate into it directly
-- (lora_linear.lua does, with beta = 1); a gradient returned for one is added.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local tensor = require "lorarun.tensor.tensor"

local autograd = {}
local tape -- the recording tape, or nil

--- Is anything being recorded?
function autograd.recording() return tape ~= nil end

--- wants(t): does a tensor need a gradient?
local function wants(t) return t ~= nil and (t.needs_grad or t.grad ~= nil) end
autograd.wants = wants

--- refuse(t, what): an error where something is recorded and t needs a gradient that `what` does not give it. t: a tensor, or nil.
function autograd.refuse(t, what)
  if tape and t and (wants(t) or t.of) then
    check.fail("%s has no gradient for '%s', which needs one", what, (t.of or t).name)
  end
end

--- record(inputs, outputs, saved, backward): called by ops. inputs: array of up to n tensors (with holes as false); outputs:
--- array of tensors; saved: array of tensors that backward reads. Outputs need gradients when any input does.
--- always: record even where no input needs gradients (recompute: parameters may hide inside).
function autograd.record(inputs, outputs, saved, backward, always)
  if not tape then return end
  local any = always or false
  for i = 1, #inputs do
    local t = inputs[i]
    if t then
      if wants(t) then
        any = true
      elseif t.of then
        check.fail("'%s' is a view of a tensor that needs a gradient, and none would pass through it; t:view(), t:slice_rows() and "
          .. "t:slice_columns() pass it on", t.name)
      end
    end
  end
  if not any then return end
  for i = 1, #outputs do outputs[i].needs_grad = true end
  for i = 1, #saved do saved[i].saved = saved[i].saved + 1 end
  tape[#tape + 1] = { inputs = inputs, outputs = outputs, saved = saved, backward = backward }
end

--- A gradient tensor that may be overwritten with the shape of g: g itself where nobody else holds it.
function autograd.writable(g)
  if (g.holders or 1) == 1 then return g, true end
  return tensor.like(g, "gradient"), false
end

--- Let one gradient tensor be that of n inputs.
function autograd.share(g, n)
  g.holders = (g.holders or 1) + n - 1
  return g
end

local function drop(g)
  local holders = (g.holders or 1) - 1
  if holders == 0 then g:release() else g.holders = holders end
end

local function add_into(target, g)
  check(C.lr_op_add(target:matrix().handle, target:matrix().handle, g:matrix().handle, 1, 1))
end

-- Hand gradient g to input t.
local function give(grads, t, g)
  if t.grad then
    add_into(t.grad, g)
    drop(g)
    return
  end
  local have = grads[t]
  if not have then
    grads[t] = g
    return
  end
  local sum, same = autograd.writable(have)
  check(C.lr_op_add(sum:matrix().handle, have:matrix().handle, g:matrix().handle, 1, 1))
  if not same then drop(have) end
  drop(g)
  grads[t] = sum
end

-- What an entry has saved is needed by one entry less.
local function unsave(entry)
  for i = 1, #entry.saved do
    local s = entry.saved[i]
    s.saved = s.saved - 1
    if s.saved == 0 and s.released then s:free() end
  end
end

-- After an error: entries that will not be walked give up what they saved.
local function forget(entries)
  for e = #entries, 1, -1 do
    unsave(entries[e])
    entries[e] = nil
  end
end

-- Walk the entries from the last to the first. grads maps tensors to their gradients.
local function walk(entries, grads)
  for e = #entries, 1, -1 do
    local entry = entries[e]
    local d, any = {}, false
    for i = 1, #entry.outputs do
      d[i] = grads[entry.outputs[i]]
      grads[entry.outputs[i]] = nil
      any = any or d[i] ~= nil
    end
    if any then
      local results = { entry.backward(unpack(d, 1, #entry.outputs)) }
      local returned = {}
      for i = 1, #entry.inputs do
        local g = results[i]
        if g then
          returned[g] = true
          if entry.inputs[i] and wants(entry.inputs[i]) then give(grads, entry.inputs[i], g) else drop(g) end
        end
      end
      for i = 1, #entry.outputs do
        if d[i] and not returned[d[i]] then drop(d[i]) end
      end
    end
    unsave(entry)
    entries[e] = nil
  end
end

local function set_tape(new_tape)
  tape = new_tape
  tensor.set_recording(new_tape ~= nil)
end

local function under_tape(new_tape, fn, ...)
  local outer = tape
  set_tape(new_tape)
  local function restore(ok, ...)
    set_tape(outer)
    if not ok then error((...), 0) end
    return ...
  end
  return restore(pcall(fn, ...))
end

--- no_grad(fn, ...): call fn with nothing recorded.
function autograd.no_grad(fn, ...)
  if type(fn) ~= "function" then check.fail("lr.no_grad takes a function, got %s", fn == nil and "nothing" or "a " .. type(fn)) end
  return under_tape(nil, fn, ...)
end

--- checked_loss(value, what): value, where it is what gradients can be computed of. what: how an error calls it ("the loss").
function autograd.checked_loss(value, what)
  if getmetatable(value) ~= tensor.Tensor then
    check.fail("%s is a %s, expected a tensor of one element%s", what, type(value), type(value) == "number"
      and ": without :item(), which gives a number that has no gradient" or "")
  elseif value:elements() ~= 1 then
    check.fail("%s has the shape [%s], expected one element, such as the mean over the pairs", what,
      table.concat(value.shape, ", "))
  elseif value.dtype ~= "f32" then
    check.fail("%s is %s, expected f32", what, value.dtype)
  elseif not value.needs_grad then
    check.fail("%s depends on no parameter: nothing could be learned from it. Gradients pass through lr.ops and model:forward of a "
      .. "model with adapters, not through model:encode, lr.no_grad, or numbers read from a tensor", what)
  end
  return value
end

--- backward(fn, scale, take, what): run fn, which returns a loss of one element (and whatever else), and add d(scale * loss)/dp to
--- p.grad of every parameter p it used. scale: a number, or a tensor of one element. take(loss) is called before, with the tensor.
--- All tensors made meanwhile are freed; fn's second result is returned. what: the loss, as an error calls it.
function autograd.backward(fn, scale, take, what)
  local list, entries = tensor.push_scope(), {}
  local ok, result = pcall(function()
    local value, more = under_tape(entries, fn)
    autograd.checked_loss(value, what or "the loss")
    take(value)
    local theirs = type(scale) ~= "number"
    if theirs then autograd.share(scale, 2) end -- not to be overwritten or freed
    walk(entries, { [value] = theirs and scale or tensor.full(value.shape, scale, "f32", "gradient", value.device) })
    if theirs then scale.holders = nil end
    return more
  end)
  forget(entries)
  tensor.pop_scope(list)
  if not ok then error(result, 0) end
  return result
end

--- gradients(fn, scale): backward(fn, scale or 1) for recipes. Returns fn's results with the loss as a number.
function autograd.gradients(fn, scale)
  if type(fn) ~= "function" then check.fail("lr.gradients takes a function that returns the loss, got a %s", type(fn)) end
  local number
  local extra = autograd.backward(fn, scale or 1, function(loss) number = loss.device == "meta" and 0 or loss:item() end)
  return number, extra
end

-- Run fn(unpack(inputs)) under a tape of its own and walk it with the gradients of its results. Returns those of the inputs that
-- need one, false for the others.
local function run_backward(fn, inputs, d_outputs)
  local entries, grads = {}, {}
  local ok, err = pcall(function()
    local outputs = { under_tape(entries, fn, unpack(inputs)) }
    for i = 1, #outputs do grads[outputs[i]] = d_outputs[i] end
    walk(entries, grads)
  end)
  forget(entries)
  if not ok then error(err, 0) end
  local result = {}
  for i = 1, #inputs do result[i] = grads[inputs[i]] or false end
  return unpack(result)
end

--- gradient_of(fn, inputs, d_outputs): the gradients of fn(unpack(inputs)) at all inputs, given those of its results. For tests
--- and for losses computed in pieces.
function autograd.gradient_of(fn, inputs, d_outputs)
  local flags = {}
  for i = 1, #inputs do
    flags[i] = inputs[i].needs_grad
    inputs[i].needs_grad = true
  end
  for _, d in pairs(d_outputs) do autograd.share(d, 2) end -- they are the caller's: not to be overwritten or freed
  local function restore(ok, ...)
    for i = 1, #inputs do inputs[i].needs_grad = flags[i] end
    for _, d in pairs(d_outputs) do d.holders = nil end
    if not ok then error((...), 0) end
    return ...
  end
  return restore(pcall(run_backward, fn, inputs, d_outputs))
end

--- recompute(fn, ...): fn(...) without keeping what its backward needs: backward runs fn again ("gradient checkpointing",
--- Chen et al., 2016). fn gets tensors and returns one or more tensors, and must be a pure function of them. It may release its
--- inputs, as every layer does: they are pinned until backward has run it again.
function autograd.recompute(fn, ...)
  if not tape then return fn(...) end
  local inputs = { ... }
  local released = {}
  local function pinned(...)
    for i = 1, #inputs do
      released[i] = inputs[i].released
      inputs[i].saved = inputs[i].saved + 1
    end
    local function unpin(...)
      for i = 1, #inputs do
        inputs[i].saved = inputs[i].saved - 1
        inputs[i].released = released[i]
      end
      return ...
    end
    return unpin(fn(...))
  end
  -- Backward needs the results as keys alone: their values may go.
  local function again(...)
    local results = { pinned(...) }
    for i = 1, #results do
      local passed = false
      for j = 1, #inputs do passed = passed or results[i] == inputs[j] end
      if not passed then results[i]:release() end
    end
    return unpack(results)
  end
  local outputs = { tensor.scope(autograd.no_grad, pinned, ...) }
  local n = #outputs
  autograd.record(inputs, outputs, inputs, function(...)
    local d = { ... }
    for i = 1, n do
      if d[i] then autograd.share(d[i], 2) end -- the inner walk drops one hold, the outer walk the other
    end
    return tensor.scope(run_backward, again, inputs, d)
  end, true)
  return unpack(outputs)
end

return autograd
