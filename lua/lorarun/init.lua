-- init.lua: what `require "lorarun"` returns: the names a recipe uses. Modules load when first named, so that a prompt opens at
-- once. A function that needs to know which rank this is launches the job first (launch.lua), where the recipe has not.
local lr = {}

local MODULES = {
  fs = "base.fs", json = "base.json", data = "data.dataset", sampler = "data.sampler", schedule = "train.schedule",
  loss = "train.loss", metrics = "train.metrics", optim = "tensor.optim", evaluate = "train.evaluate",
  checkpoint = "train.checkpoint", export = "models.export", hub = "formats.hub", ops = "tensor.ops", tensor = "tensor.tensor",
  autograd = "tensor.autograd", progress = "train.progress", version = "base.version", bugdata = "bugdata",
  memory = "tensor.memory",
}

local function job() return require("lorarun.dist.launch").job() end

-- Remove what ranks were writing in a run's folder when they were killed.
local function sweep(output) require("lorarun.train.files").sweep(output) end

local FUNCTIONS = {
  args = function(spec, argv)
    return require("lorarun.base.args").of_recipe(spec, argv, require("lorarun.dist.settings").is_flag)
  end,
  load_model = function(name, options)
    local load, this = require("lorarun.models.model").load, job()
    if options ~= nil and type(options) ~= "table" then return load(name, options) end -- which refuses them
    local with = { precision = this.precision }
    for key, value in pairs(options or {}) do with[key] = value end
    if this.plan then with.device, with.stands_for = "meta", this.device end
    return load(name, with)
  end,
  --- verify(folder, options): whether a folder that lorarun wrote computes what the model did that wrote it: see verify.lua.
  verify = function(...) return require("lorarun.cli.verify").folder(...) end,
  load_tokenizer = function(...) return require("lorarun.formats.tokenizer").load_tokenizer(...) end,
  train = function(...)
    local planned = job().plan
    if planned then return require("lorarun.plan").train(planned, ...) end
    return require("lorarun.train.trainer").train(...)
  end,
  launch = function(options) return require("lorarun.dist.launch").launch(options, sweep) end,
  scope = function(...) return require("lorarun.tensor.tensor").scope(...) end,
  gradients = function(...) return require("lorarun.tensor.autograd").gradients(...) end,
  no_grad = function(...) return require("lorarun.tensor.autograd").no_grad(...) end,
  adamw = function(...) return require("lorarun.tensor.optim").adamw(...) end,
  threads = function(n)
    local C = require "lorarun.base.c"
    if n ~= nil then
      local check = require "lorarun.base.check"
      if type(n) ~= "number" or n % 1 ~= 0 or n < 0 or n > C.LR_MOST_THREADS then
        local shown = require("lorarun.base.options").shown(n)
        check.fail("lr.threads: the number of threads is %s, expected a whole number from 0 (all cores) to %d", shown,
          C.LR_MOST_THREADS)
      end
      check(C.lr_threads_set(n))
    end
    return C.lr_threads()
  end,
  --- tf32(on): whether a GPU may multiply f32 as TF32; with nothing it only tells.
  tf32 = function(on) return require("lorarun.base.c").lr_tf32(on == nil and -1 or on and 1 or 0) ~= 0 end,
  --- given(args, name): was the option on the command line?
  given = function(args, name) return require("lorarun.base.args").given(args, name) end,
  has_gpu = function()
    local C, planned = require "lorarun.base.c", require("lorarun.dist.launch").planned()
    if planned then return require("lorarun.tensor.device_traits").itself(planned.device).own_memory end
    return C.lr_device_count(C.LR_CUDA) > 0 -- a launcher that only asks does not start the GPU
  end,
  --- split("a,b", ",") -> { "a", "b" }; empty parts are left out.
  split = function(text, separator)
    if type(text) ~= "string" or type(separator) ~= "string" or separator == "" then
      require("lorarun.base.check").fail("lr.split takes a text and what parts it, got %s and %s", tostring(text),
        tostring(separator))
    end
    local parts = {}
    for part in text:gmatch("[^" .. separator .. "]+") do parts[#parts + 1] = part end
    return parts
  end,
  --- similarity(a, b): cosine of every row of a with every row of b: tensor [rows of a, rows of b].
  similarity = function(a, b)
    local ops, Tensor = require "lorarun.tensor.ops", require("lorarun.tensor.tensor").Tensor
    if getmetatable(a) ~= Tensor or getmetatable(b) ~= Tensor then
      require("lorarun.base.check").fail("lr.similarity takes two tensors of embeddings, as model:encode gives them, got a %s and "
        .. "a %s", type(a), type(b))
    end
    return require("lorarun.tensor.tensor").scope(function() return ops.matmul_nt(ops.normalize(a), ops.normalize(b)) end)
  end,
}

-- Every public name, in no order.
local function names()
  local list = { "comm" }
  for name in pairs(FUNCTIONS) do list[#list + 1] = name end
  for name in pairs(MODULES) do list[#list + 1] = name end
  return list
end

-- What `lr` shows at the prompt.
local function shown()
  local list = names()
  table.sort(list)
  return ("lorarun %s: %s"):format(require "lorarun.base.version", table.concat(list, ", "))
end

-- __names: what TAB offers at the prompt; the fields themselves are made when they are first read.
return setmetatable(lr, { __names = names, __tostring = shown, __index = function(t, name)
  local value = FUNCTIONS[name]
  if name == "comm" then
    job()
    value = require "lorarun.dist.comm"
  elseif name == "ops" then
    local ops = require "lorarun.tensor.ops"
    value = require("lorarun.base.guard").tensors(ops, ops.tensors, "lr.ops", require("lorarun.tensor.tensor").Tensor)
  elseif not value and MODULES[name] then
    value = require("lorarun." .. MODULES[name])
    if name == "hub" and require("lorarun.dist.launch").planned() then -- a plan needs no weights
      local resolve = value.resolve
      value = setmetatable({ resolve = function(model, revision) return resolve(model, revision, true) end }, { __index = value })
    end
  end
  if value == nil then
    require("lorarun.base.check").fail("lorarun has no '%s'%s", tostring(name),
      require("lorarun.base.suggest").did_you_mean(tostring(name), names()))
  end
  rawset(t, name, value)
  return value
end })
