-- optim.lua: AdamW over the flat buffer of all adapters (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019;
-- the arithmetic is torch.optim.AdamW's). Clipping by global norm, the loss scale of fp16 and the test for overflow are on the
-- device: nothing in a step waits for a number.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local guard = require "lorarun.base.guard"
local options = require "lorarun.base.options"
local tensor = require "lorarun.tensor.tensor"

local AdamW = {}
AdamW.__index = AdamW

-- The scale of an fp16 run's loss, torch's GradScaler: gradients below fp16's smallest number would be lost. It begins at SCALE, is
-- doubled after INTERVAL clean steps on end, and halved when a gradient overflows.
local SCALE, GROWTH, BACKOFF, INTERVAL = 65536, 2, 0.5, 2000

local OPTIONS = { beta1 = options.from(0), beta2 = options.from(0), eps = options.from(0), weight_decay = options.from(0),
  max_grad_norm = options.from(0), scaled = options.boolean, loss_scale = options.from(0) }

--- adamw(parameters, options): parameters: { value, grad, count } of lora.lua; where it has norm and scale, the gradient's norm and
--- a copy of the loss scale are written there. options: beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0, max_grad_norm = 1
--- (0: no clipping), scaled = are the gradients those of the loss times self.scale ([1] f32, on the device), which it adapts;
--- loss_scale = the first scale (65536).
local function adamw(parameters, given)
  if type(parameters) ~= "table" or not parameters.value then
    check.fail("lr.adamw takes the model:parameters() of a model with adapters, got %s%s", options.shown(parameters),
      parameters == nil and ": call model:add_lora first" or "")
  end
  given = options.check("lr.adamw", given, OPTIONS)
  return tensor.persistent(function()
    local device = parameters.value.device
    local self = setmetatable({
      parameters = parameters, steps = 0,
      beta1 = given.beta1 or 0.9, beta2 = given.beta2 or 0.999, eps = given.eps or 1e-8,
      weight_decay = given.weight_decay or 0, max_grad_norm = given.max_grad_norm or 1,
      m = tensor.zeros({ parameters.count }, "f32", "optimizer state", device),
      v = tensor.zeros({ parameters.count }, "f32", "optimizer state", device),
      factor = tensor.new({ 1 }, "f32", "clip factor", device),
      norm = parameters.norm or tensor.new({ 1 }, "f32", "grad norm", device),
    }, AdamW)
    if given.scaled then
      self.scaling = tensor.from({ given.loss_scale or SCALE, 0 }, { 2 }, "f32", "loss scale", device)
      self.scale, self.clean = self.scaling:view { 1 }, self.scaling:view({ 1 }, 1)
      self.scale_matrix = self.scaling:view { 1, 1 }
    end
    return self
  end)
end

--- apply(lr): one step with learning rate lr; sets the gradients to zero. Nothing waits for the device: whether the step counts,
--- taken() says.
function AdamW:apply(lr)
  if type(lr) ~= "number" or not (lr >= 0 and lr < math.huge) then
    check.fail("the learning rate is %s, expected a number of at least 0", tostring(lr))
  end
  local p, scale = self.parameters, self.scale
  check(C.lr_op_clip_factor(self.factor.handle, self.norm.handle, p.grad.handle, scale and scale.handle or nil, self.max_grad_norm))
  check(C.lr_op_adamw(p.value.handle, self.m.handle, self.v.handle, p.grad.handle, self.factor.handle, lr, self.beta1, self.beta2,
    self.eps, self.weight_decay, self.steps + 1))
  if scale then
    check(C.lr_op_loss_scale(scale.handle, self.clean.handle, self.norm.handle, GROWTH, BACKOFF, INTERVAL))
    if p.scale then check(C.lr_op_cast(p.scale.handle, self.scale_matrix.handle)) end
  end
  p.grad:fill(0)
end

--- taken(norm): did the step that apply() began count? norm: its gradient norm. Where that is not finite, nothing was changed and
--- the step does not count.
function AdamW:taken(norm)
  local finite = norm - norm == 0
  if finite then self.steps = self.steps + 1 end
  return finite
end

--- One step with learning rate lr, to its end. Returns the gradient's norm before clipping, and whether the step was skipped.
function AdamW:step(lr)
  self:apply(lr)
  local norm = self.norm.device == "meta" and 0 or self.norm:item() -- planning a step: there are no values
  return norm, not self:taken(norm)
end

--- state(): what a checkpoint keeps besides m and v; restore(state) takes it.
function AdamW:state()
  local scaling = self.scaling and self.scaling:data()
  return { steps = self.steps, loss_scale = scaling and scaling[0], clean_steps = scaling and scaling[1] }
end

function AdamW:restore(state)
  self.steps = state.steps
  if self.scaling and state.loss_scale then
    self.scaling:write(ffi.new("float[2]", state.loss_scale, state.clean_steps))
  end
end

function AdamW:free()
  for _, name in ipairs { "m", "v", "factor", "scaling", "scale", "clean", "scale_matrix" } do
    if self[name] then self[name]:free() end
  end
  if self.norm ~= self.parameters.norm then self.norm:free() end
end

guard.methods(AdamW, "optimizer")

return { adamw = adamw }
