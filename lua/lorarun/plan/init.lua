-- init.lua: lorarun plan: what a recipe's training run will need, and how long it will take, before anything is loaded.
--
--   lorarun plan RECIPE.lua [options of the recipe] [--gpu-memory 80GB] [--gpu h100] [--gpus 1,2,4,8]
--
-- The recipe runs as it is, up to lr.train, with a job of its own kind (launch.plan_for): the model is on the meta device, and
-- lr.train comes here. A step of the run's own batch is then taken without bytes, with the allocator that the real one will use, so
-- the memory of a plan is that of the run to the byte, kernels' scratch included; a driver's memory is estimated. Times follow from
-- the work of a step and a rate (throughput.lua), and each says whether that was measured or estimated.
local check = require "lorarun.base.check"
local device_traits = require "lorarun.tensor.device_traits"
local evaluate = require "lorarun.train.evaluate"
local footprint = require "lorarun.train.footprint"
local data_folder = require "lorarun.formats.data_folder"
local launch = require "lorarun.dist.launch"
local lengths = require "lorarun.data.lengths"
local memory = require "lorarun.tensor.memory"
local training_step = require "lorarun.train.step"
local nn = require "lorarun.models.nn"
local optim = require "lorarun.tensor.optim"
local throughput = require "lorarun.train.throughput"
local recompute = require "lorarun.train.recompute"
local say = require "lorarun.base.say"
local settings = require "lorarun.dist.settings"
local setup = require "lorarun.train.setup"
local sorted = require "lorarun.base.sorted"
local suggest = require "lorarun.base.suggest"
local using = require "lorarun.base.using"
local train_options = require "lorarun.train.train_options"

local plan = {}

local FORWARD = 0.5 -- of a step's work: through frozen weights backward is as much again
local DRIVER = 1e9 -- of a GPU's memory: its context, kernels, and what recompute.lua leaves for those that are loaded later
local NCCL = 1.5e9 -- of each GPU's, where there are several: what others report is 0.5 to 1.6 GB
local SCALING = 0.97 -- of N times one GPU's rate is what N GPUs are expected to reach
local EVALUATION_TOKENS = evaluate.BATCH_BYTES / 3 -- of a forward pass, about: code has three bytes a token
local MOST_TOKENS = 2 ^ 24 -- beyond any batch
local SAMPLED_STEPS = 200

-- ---- the command line -----------------------------------------------------------------------------------------------------------
local UNITS = { KB = 1e3, MB = 1e6, GB = 1e9, TB = 1e12, KIB = 2 ^ 10, MIB = 2 ^ 20, GIB = 2 ^ 30, TIB = 2 ^ 40 }

local function bytes_of(text)
  local number, unit = text:match "^([%d.]+)%s*(%a+)$"
  local bytes = tonumber(number) and UNITS[unit:upper()] and tonumber(number) * UNITS[unit:upper()]
  if not bytes or bytes <= 0 then check.fail("--gpu-memory is '%s', expected a size like 80GB or 80GiB", text) end
  return bytes
end

local function counts_of(text)
  local list = {}
  for part in (text .. ","):gmatch "%s*([^,]*),%s*" do
    local n = part:match "^%d+$" and tonumber(part)
    if not n or n < 1 or n > 65536 then check.fail("--gpus is '%s', expected numbers of GPUs like 1,2,4,8", text) end
    list[#list + 1] = n
  end
  return list
end

local function gpu_named(text)
  local names = sorted.keys(throughput.GPUS)
  if not throughput.GPUS[text:lower()] then
    check.fail("--gpu is '%s', which is not known%s; there are %s", text, suggest.did_you_mean(text:lower(), names),
      table.concat(names, ", "))
  end
  return text:lower()
end

plan.USAGE = [[
usage: lorarun plan [--gpu-memory 80GB] [--gpu h100] [--gpus 1,2,4,8] [settings of ranks] RECIPE.lua [arguments of the recipe]

What the recipe's lr.train would need and how long it would take. Nothing is loaded; of the model, config.json is enough.

  --gpu-memory SIZE   plan for a GPU with this much memory: 80GB, 80GiB
  --gpu NAME          the GPU that times and memory are of: a100, h100, h200, l4, l40s
  --gpus LIST         compare these numbers of GPUs: 1,2,4,8
With none of these, for this machine's CPU and what is free of its memory.
]]

local OPTIONS = { ["--gpu-memory"] = bytes_of, ["--gpus"] = counts_of, ["--gpu"] = gpu_named }

--- read(words): the words after `plan` on the command line. From now on this program plans. Returns the recipe's path, its own
--- words, and what is planned for: { device = "cuda" or "cpu", gpu = its name, memory = its bytes, counts = numbers of GPUs to
--- compare, processes = ranks that lr.launch was given, plans = how often lr.train was called }. Returns nothing for --help.
function plan.read(words)
  local given, own, recipe, i = {}, {}, nil, 1
  while i <= #words do
    local name, text = words[i]:match "^(%-%-[%w-]+)=(.*)$"
    name = name or words[i]
    if OPTIONS[name] then
      if not text then
        i = i + 1
        text = words[i] or check.fail("%s needs a value", name)
      end
      given[name] = OPTIONS[name](text)
    elseif recipe then
      own[#own + 1] = words[i]
    elseif name == "--help" or name == "-h" then
      return nil
    elseif name:sub(1, 1) ~= "-" then
      recipe = name
    else
      local taken, mistake = settings.take_flag(words, i)
      if not taken then check.fail("%s", mistake or ("lorarun plan has no option '%s'"):format(words[i])) end
      i = i + taken - 1
    end
    i = i + 1
  end
  if not recipe then check.fail("lorarun plan needs a recipe: lorarun plan RECIPE.lua [its options] [--gpu-memory 80GB]") end
  local gpu = next(given) and (given["--gpu"] or "h100")
  local planned = { device = gpu and "cuda" or "cpu", gpu = gpu, counts = given["--gpus"], processes = 1, plans = 0,
    memory = gpu and (given["--gpu-memory"] or throughput.GPUS[gpu].memory) }
  launch.plan_for(planned)
  return recipe, own, planned
end

-- ---- the plan of a run ----------------------------------------------------------------------------------------------------------

-- The bytes that the model holds, by their purpose.
local function held_by()
  local held = { weights = 0, adapters = 0, gradients = 0, optimizer = 0 }
  local NAMES = { adapters = "adapters", ["adapter gradients"] = "gradients", ["optimizer state"] = "optimizer",
    ["clip factor"] = "optimizer", ["grad norm"] = "optimizer" }
  for _, h in ipairs(memory.holders(1000, "meta")) do
    local kind = NAMES[h.name] or "weights"
    held[kind] = held[kind] + h.bytes
  end
  return held
end

-- The memory of one device, and what a driver takes of it. The plan is for the largest number of ranks that it shows.
local function memory_of(planned)
  if device_traits.itself(planned.device).own_memory then
    local most = math.max(planned.processes, unpack(planned.counts or {}))
    return planned.memory, DRIVER + (most > 1 and NCCL or 0)
  end
  local free = memory.available "cpu" or check.fail("the system does not say how much memory is free; give --gpu-memory")
  return recompute.usable(free, "cpu", planned.processes), 0
end

-- The data of the run, if it exists: data sets, the sampler, and the rows that training and evaluation take.
local function open(o, planned)
  local d = {}
  if o.data == "" then -- it is yet to be made
    d.draws, d.evaluated, d.tested = o.max_train_rows, o.max_evaluation_rows, o.max_evaluation_rows
    return d
  end
  d.train, d.validation, d.test = setup.open_data(o)
  local labels = d.train:has(o.score) and d.train:numbers(o.score) or nil
  d.sample, d.draws = setup.choose_rows(o, d.train, labels, planned.processes)
  d.evaluated, d.tested = d.validation and d.validation.rows or 0, d.test and d.test.rows or 0
  return d
end

-- need(tokens, layers, parts, ranks): bytes of a step beyond what is held, and of these the tensors'. parts: { part, cached } as in
-- recompute.split; ranks: how many share the step, 1 unless told otherwise.
local function needs(o, f)
  return function(tokens, layers, parts, ranks)
    local tensors, scratch = f:step { tokens = tokens, layers = layers, pairs = parts.part, batch = parts.cached and o.batch or nil,
      ranks = ranks and { rank = 0, world_size = ranks } }
    return tensors + scratch, tensors
  end
end

-- The policies that are shown: none, quarters, all, and the one that was chosen.
local function shown_policies(layers, chosen)
  local set = { [chosen or 0] = true }
  for quarter = 0, 4 do set[math.floor(layers * quarter / 4 + 0.5)] = true end
  return sorted.keys(set)
end

-- How long it takes on this many ranks. A text is evaluated once, however many rows have it, so the time for evaluating is an upper
-- bound.
local function times(p, o, count, flops)
  local share = count > 1 and SCALING or 1
  if not device_traits.itself(p.planned.device).own_memory then share = 1 / count end -- the ranks have one CPU among them
  local factor = 1 + p.batch.usual_layers / p.layers * p.again + (p.batch.cached and FORWARD or 0)
  local t = { ranks = count, batch = o.batch * o.accumulate * count }
  local pairs_, steps = t.batch, nil
  if p.draws > 0 then
    local epoch
    epoch, steps = setup.count_steps(o, p.draws, count)
    pairs_ = p.draws / epoch -- the last step of an epoch has fewer
  end
  t.seconds = pairs_ / count * p.batch.pair * p.flops_a_token * factor / flops / share
  t.pairs, t.steps = pairs_ / t.seconds, steps
  if steps then
    local rows = math.ceil(steps / o.evaluation_steps) * p.evaluated + p.tested
    t.training = steps * t.seconds / 3600
    t.evaluating = rows * p.batch.pair * p.flops_a_token / 2 / flops / share / count / 3600
  end
  return t
end

-- The most tokens that fit with this many layers recomputed, of pairs as long as the run's are on average.
local function most_tokens(p, o, need, layers)
  local pair = p.batch.pair
  local function need_of(tokens)
    return (need(tokens, layers, { part = math.max(1, math.floor(tokens / pair + 0.5)) }))
  end
  return footprint.largest(need_of, p.room, math.ceil(math.max(pair, #o.columns)), MOST_TOKENS) or 0
end

-- The recipe's batch: what it takes, what of it is recomputed, and whether it is taken in parts.
local function plan_batch(p, o, need, f, largest_part)
  local b, wanted = p.batch, recompute.number(o.recompute, p.layers)
  local parts = { part = o.batch, cached = false }
  local function fewest_of(tokens, of_parts) -- layers, or nil
    return recompute.fewest(p.layers, function(n) return need(tokens, n, of_parts) <= p.room end)
  end
  local layers = wanted or fewest_of(b.largest, parts)
  if not layers then
    parts, layers = recompute.split { loss = o.loss, batch = o.batch, layers = p.layers, tokens = b.largest, counted = largest_part,
      fewest = fewest_of, most = function(n) return most_tokens(p, o, need, n) end }
  end
  b.pairs, b.texts, b.layers = o.batch, o.batch * #o.columns, layers or p.layers
  b.part, b.cached, b.splittable = parts.part, parts.cached, training_step.splittable(o.loss)
  b.tokens = largest_part(b.part)
  b.chosen = wanted and "as the recipe says" or "as few as fit the memory"
  b.usual_layers = wanted or fewest_of(math.ceil(b.mean * b.part / b.pairs), b) or p.layers
  b.longest = fewest_of(b.part * #o.columns * p.model.max_length, b)
  local all, step = need(b.tokens, b.layers, b)
  b.step, b.workspace = step, all - step
  b.fits = all <= p.room
  b.peak = p.memory - p.room + all
  b.kept = f:kept { tokens = b.tokens, pairs = b.part, layers = b.layers }
end

-- How much fits at each policy, with pairs as long as the run's are on average.
local function plan_policies(p, o, need)
  p.policies = {}
  for _, n in ipairs(shown_policies(p.layers, p.batch.layers)) do
    local most = most_tokens(p, o, need, n)
    p.policies[#p.policies + 1] = { layers = n, tokens = most, pairs = math.floor(most / p.batch.pair),
      slower = n / p.layers * p.again, unbounded = most == MOST_TOKENS }
  end
end

local function rate_of(planned, model)
  if device_traits.itself(planned.device).own_memory then return throughput.of_gpu(planned.gpu, model) end
  return throughput.of_cpu(model.precision)
end

local function plan_times(p, o, need)
  local flops, source, measured = rate_of(p.planned, p.model)
  p.rate_source, p.measured, p.times = source, measured, {}
  for _, count in ipairs(flops and (p.planned.counts or { p.planned.processes }) or {}) do
    local t = times(p, o, count, flops)
    t.memory = p.memory - p.room + need(p.batch.tokens, p.batch.layers, p.batch, count)
    p.times[#p.times + 1] = t
  end
end

local function compute(p, o, f, largest_part)
  local need = needs(o, f)
  p.held = held_by()
  p.memory, p.driver = memory_of(p.planned)
  p.room = p.memory - p.driver - p.held.weights - p.held.adapters - p.held.gradients - p.held.optimizer
  plan_batch(p, o, need, f, largest_part)
  plan_policies(p, o, need)
  local rows = math.max(p.evaluated, p.tested)
  if rows > 0 then
    local texts = 2 * rows
    local tensors, scratch = f:evaluation(texts, math.min(EVALUATION_TOKENS, texts * p.model.max_length))
    local bytes = tensors + scratch
    p.evaluation = { rows = rows, bytes = bytes, fits = bytes <= p.room }
  end
  plan_times(p, o, need)
end

--- train(planned, given): what lr.train does while planning. planned: as read() gives it; given: the options of lr.train. Prints
--- the plan and returns it.
function plan.train(planned, given)
  local o = train_options.complete(given, true)
  local model = o.model
  local d = open(o, planned)
  local draws = d.draws > 0 and d.draws or SAMPLED_STEPS * o.batch * o.accumulate -- to sample lengths, where rows are not known
  local _, total_steps = setup.count_steps(o, draws, 1)
  local optimizer = optim.adamw(model.lora.parameters)
  local f = footprint.new { model = model, loss = o.loss, columns = #o.columns }
  local p = { planned = planned, model = model, layers = model.layer_count, draws = d.draws, evaluated = d.evaluated,
    tested = d.tested, assumed = not d.train, parameters = model.lora.parameters.count, frozen = model:frozen_count(),
    flops_a_token = throughput.flops_a_token(model), again = FORWARD * nn.again(model.built.layers) }
  local function free()
    f:free()
    optimizer:free()
    for _, name in ipairs(data_folder.SPLITS) do
      if d[name] then d[name]:close() end
    end
  end
  using(f, free, function()
    local largest_part
    p.batch, largest_part = lengths.sample { columns = o.columns, prefixes = o.prefixes, max_length = model.max_length,
      batch = o.batch, accumulate = o.accumulate, draws = draws, total_steps = total_steps,
      threads = o.loader_threads, set = d.train, sample = d.sample, tokenizer = model.tokenizer }
    compute(p, o, f, largest_part)
  end)
  planned.plans = planned.plans + 1
  say.line(require("lorarun.plan.report").text(p))
  return p
end

return plan
