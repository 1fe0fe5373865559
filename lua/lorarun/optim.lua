-- optim.lua: AdamW over the flat buffer of all adapters (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019;
-- the arithmetic is torch.optim.AdamW's). Clipping by global norm happens inside the step, on the device: factor stays there.
local C = require "lorarun.c"
local check = require "lorarun.check"
local tensor = require "lorarun.tensor"

local AdamW = {}
AdamW.__index = AdamW

--- adamw(parameters, options): parameters: { value, grad, count } of lora.lua. options: beta1 = 0.9, beta2 = 0.999, eps = 1e-8,
--- weight_decay = 0, max_grad_norm = 1 (0: no clipping).
local function adamw(parameters, options)
  options = options or {}
  return tensor.persistent(function()
    local device = parameters.value.device
    return setmetatable({
      parameters = parameters, steps = 0,
      beta1 = options.beta1 or 0.9, beta2 = options.beta2 or 0.999, eps = options.eps or 1e-8,
      weight_decay = options.weight_decay or 0, max_grad_norm = options.max_grad_norm or 1,
      m = tensor.zeros({ parameters.count }, "f32", "optimizer state", device),
      v = tensor.zeros({ parameters.count }, "f32", "optimizer state", device),
      factor = tensor.new({ 1 }, "f32", "clip factor", device), norm = tensor.new({ 1 }, "f32", "grad norm", device),
    }, AdamW)
  end)
end

--- One step with learning rate lr; sets the gradients to zero. Returns the gradient's norm before clipping. Where that is not
--- finite nothing is changed and the step does not count: the second result is true.
function AdamW:step(lr)
  local p = self.parameters
  check(C.lr_op_clip_factor(self.factor.handle, self.norm.handle, p.grad.handle, self.max_grad_norm, 1))
  check(C.lr_op_adamw(p.value.handle, self.m.handle, self.v.handle, p.grad.handle, self.factor.handle, lr, self.beta1, self.beta2,
    self.eps, self.weight_decay, self.steps + 1))
  p.grad:fill(0)
  local norm = self.norm.device == "meta" and 0 or self.norm:item() -- planning a step: there are no values
  local skipped = norm ~= norm or norm == math.huge
  if not skipped then self.steps = self.steps + 1 end
  return norm, skipped
end

function AdamW:free()
  for _, name in ipairs { "m", "v", "factor", "norm" } do self[name]:free() end
end

return { adamw = adamw }
