-- weights.lua: the tensors of a model folder, under the names that an architecture gives them. Before anything is allocated, all
-- that the architecture wants is looked for in the file: tensors that are missing, have another shape, or are of another dtype than
-- F32, BF16 and F16 are one error. Other tensors of the file are left out, as in transformers.
local check = require "lorarun.base.check"
local nn = require "lorarun.models.nn"
local safetensors = require "lorarun.formats.safetensors"
local say = require "lorarun.base.say"
local tensor = require "lorarun.tensor.tensor"
local using = require "lorarun.base.using"

local weights = {}

local FLOATS = { f32 = true, bf16 = true, f16 = true }
local SHOWN = 5 -- of many names alike

local function list(names)
  if #names <= SHOWN then return table.concat(names, ", ") end
  return ("%s and %d more"):format(table.concat(names, ", ", 1, SHOWN), #names - SHOWN)
end

-- The tensors that arch.build asks for: { name, shape }, found by building it without bytes. In fp32, which every device has: names
-- and shapes are those of every precision.
local function wanted(arch, sizes)
  local wants = {}
  tensor.scope(function()
    arch.build(sizes, nn.source { dtype = "f32", device = "meta", load = function(name, t)
      wants[#wants + 1] = { name = name, shape = t.shape }
    end })
  end)
  return wants
end

-- The first of the architecture's prefixes with which its probe exists.
local function prefix_of(arch, file)
  for _, p in ipairs(arch.prefixes) do
    if file:has(p .. arch.probe) then return p end
  end
  check.fail("%s: there is no tensor '%s' (nor with prefix '%s'); this is not the model that config.json describes. Its tensors: "
    .. "%s", file.path, arch.probe, table.concat(arch.prefixes, "' or '", 2), list(file:names()))
end

-- Tensors of layers that config.json does not count: transformers leaves them out as well, with a warning.
local function warn_of_layers(file, wants)
  local containers, known = {}, {}
  for _, want in ipairs(wants) do
    local container, index = want.name:match "^(.-%.)(%d+)%."
    if container then
      containers[container] = true
      known[container .. index] = true
    end
  end
  local beyond = {}
  for _, name in ipairs(file:names()) do
    local whole, index = name:match "^(.-%.)(%d+)%."
    for container in pairs(containers) do
      if whole and whole:sub(-#container) == container and not known[container .. index] then beyond[#beyond + 1] = name end
    end
  end
  if #beyond > 0 then
    say.warning("%s: %d tensors of layers beyond config.json's num_hidden_layers are left out: %s", file.path, #beyond,
      list(beyond))
  end
end

local function shown(shape) return "[" .. table.concat(shape, ", ") .. "]" end

--- open(folder, arch, sizes): the folder's weights: { file, prefix, name_of = function(name): the file's name of a tensor,
--- load = function(name, t) }. The caller closes the file.
function weights.open(folder, arch, sizes)
  local file = safetensors.open_folder(folder)
  local opened = { file = file }
  local function name_of(name)
    local full = opened.prefix .. name
    local older = not file:has(full) and arch.older_name and arch.older_name(name)
    return older and file:has(opened.prefix .. older) and opened.prefix .. older or full
  end
  using.made(file, file.close, function()
    opened.prefix = prefix_of(arch, file)
    local missing, other, wants = {}, {}, wanted(arch, sizes)
    for _, want in ipairs(wants) do
      local name = name_of(want.name)
      local info = file:has(name) and file:info(name)
      if not info then missing[#missing + 1] = name
      elseif shown(info.shape) ~= shown(want.shape) then
        other[#other + 1] = ("'%s' has shape %s; config.json makes it %s"):format(name, shown(info.shape), shown(want.shape))
      elseif not FLOATS[info.dtype] then
        other[#other + 1] = ("'%s' has dtype %s, supported are F32, BF16 and F16"):format(name, info.dtype_name)
      end
    end
    if #missing > 0 then check.fail("%s: %d of the model's tensors are missing: %s", file.path, #missing, list(missing)) end
    if #other > 0 then check.fail("%s: %d tensors do not fit: %s", file.path, #other, list(other)) end
    warn_of_layers(file, wants)
  end)
  function opened.load(name, t) file:load(name_of(name), t) end
  return opened
end

return weights
