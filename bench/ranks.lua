-- Training on several ranks: how evenly tokens are spread, how much faster they are than one rank, and the time in the all-reduce:
--   lorarun bench/ranks.lua [--data FOLDER] [--max-length 128] [--batch 64] [--rounds 3] [--steps 20]
-- Evenness is the mean number of tokens per rank / that of the fullest rank, over 100 steps in the recipe's order of rows. This is
-- the largest share of the ranks' time that can be used. Scaling is measured in tokens/s of the median step (in some of the first
-- steps memory grows) with one thread per rank, and also for two independent runs, because ranks on one machine share its memory
-- and caches.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local lr = require "lorarun"
local fs, json = lr.fs, lr.json

local args = lr.args {
  { "model", "", "folder; empty: the small model" },
  { "data", "", "folder with train.jsonl; empty: the small preset's" },
  { "max-length", 128, "tokens a text", type = "integer", min = 1 },
  { "batch", 64, "pairs a rank for evenness; a quarter of it for scaling", type = "integer", min = 4 },
  { "steps", 20, "timed, in each round", type = "integer", min = 1 },
  { "rounds", 3, "of timing; the median counts; 0: evenness alone", type = "integer", min = 0 },
  { "precision", "fp32", "of the timed steps", choices = { "fp32", "bf16" } },
}
local WARMUP = 10

local model = args.model ~= "" and args.model or lr.hub.small_model()
local data = args.data ~= "" and args.data or lr.bugdata.from_this_machine {}

-- ---- evenness ----------------------------------------------------------------------------------------------------------------
local function evenness(world)
  local columns = { "current_line", "context" }
  local set = lr.data.open(fs.join(data, "train.jsonl"), { columns = { { name = "score", kind = "number" },
    { name = columns[1], kind = "text" }, { name = columns[2], kind = "text" } } })
  local sample = lr.sampler.weighted(set:numbers "score", set.rows, 1)
  local loader = lr.data.loader(set, lr.load_tokenizer(model), { columns = columns, max_length = args.max_length,
    balance = { world = world, rank = 0 } })
  local n, total, fullest, fullest_in_order, shortest, longest, seconds = world * args.batch, 0, 0, 0, math.huge, 0, 0
  for step = 0, 99 do
    local rows, places, keys = {}, {}, {}
    for i = 1, 2 * n do rows[i], places[i], keys[i] = sample(step * n + (i - 1) % n), i <= n and 0 or 1, i end
    local started = C.lr_time()
    loader:submit(rows, places, keys)
    local batch = loader:next()
    seconds = seconds + C.lr_time() - started
    local balanced, in_order = 0, 0
    for rank = 0, world - 1 do
      local tokens = 0
      for i = rank * args.batch, (rank + 1) * args.batch - 1 do
        local pair = batch.lengths[i] + batch.lengths[n + i]
        tokens, shortest, longest = tokens + pair, math.min(shortest, pair), math.max(longest, pair)
      end
      in_order, balanced, total = math.max(in_order, tokens), math.max(balanced, tonumber(batch.rank_tokens[rank])), total + tokens
    end
    fullest, fullest_in_order = fullest + balanced, fullest_in_order + in_order
  end
  loader:close()
  set:close()
  print(("%d ranks of %d pairs (%d to %d tokens, mean %.0f): %.2f%% even balanced, %.2f%% in order; %.1f ms to tokenise a step on "
    .. "each rank"):format(world, args.batch, shortest, longest, total / (100 * n), 100 * total / world / fullest,
    100 * total / world / fullest_in_order, seconds * 10))
end

-- ---- scaling -----------------------------------------------------------------------------------------------------------------
local recipe = fs.join(fs.dirname(fs.dirname(fs.real(arg[0]))), "recipes", "bugdetect.lua")
local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function median(list)
  table.sort(list)
  return list[math.ceil(#list / 2)]
end

-- Several runs at the same time, each on `ranks` ranks: tokens/s of the median step, and the share of time in the all-reduce.
local function timed(runs, processes)
  local folder = os.tmpname()
  os.remove(folder)
  fs.make(folder)
  local command = {}
  for i = 1, runs do
    command[i] = ("%s %s --model %s --data %s --output %s --processes %d --threads 1 --batch %d --max-length %d --max-steps %d "
      .. "--precision %s --targets query,key,value --evaluation-steps 100000 --max-evaluation-rows 2 >/dev/null 2>&1 & p%d=$!;")
      :format(quote(fs.real "/proc/self/exe"), quote(recipe), quote(model), quote(data), quote(fs.join(folder, tostring(i))),
      processes, args.batch / 4, args.max_length, args.steps + WARMUP, args.precision, i)
  end
  for i = 1, runs do command[#command + 1] = ("wait $p%d || exit 1;"):format(i) end
  if os.execute(table.concat(command, " ")) ~= 0 then error "a run failed" end
  local rate, exchange = 0, nil
  for i = 1, runs do
    local before, rates = nil, {}
    for line in fs.read(fs.join(folder, tostring(i), "log.jsonl")):gmatch "[^\n]+" do
      local record = json.decode(line, "log.jsonl")
      if record.kind == "step" then
        if record.step > WARMUP then rates[#rates + 1] = record.tokens / (record.seconds - before) end
        before, exchange = record.seconds, record.exchange
      end
    end
    rate = rate + median(rates)
  end
  fs.remove(folder)
  return rate, exchange
end

local function scaling()
  local one, apart, two, exchange = {}, {}, {}, {}
  for round = 1, args.rounds do
    one[round] = timed(1, 1)
    apart[round] = timed(2, 1)
    two[round], exchange[round] = timed(1, 2)
  end
  local ffi_text = ffi.new "char[512]"
  C.lr_device_describe(C.LR_CPU, ffi_text, 512)
  print(("%s, %s, batch %d a rank: 1 rank %.0f tokens/s, 2 ranks %.0f: %.1f%% of twice one; two runs apart %.0f: 2 ranks have "
    .. "%.1f%% of that; %.2f%% of the time in the all-reduce, waiting for each other included"):format(ffi.string(ffi_text),
    args.precision, args.batch / 4, median(one), median(two), 50 * median(two) / median(one), median(apart),
    100 * median(two) / median(apart), 100 * median(exchange)))
end

for _, world in ipairs { 2, 4, 8 } do evenness(world) end
if args.rounds > 0 then scaling() end
