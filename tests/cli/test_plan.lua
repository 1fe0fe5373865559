-- lorarun plan, as a user calls it: what it prints, what it does not do (load weights, start ranks, write), and what can be wrong.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local data_files = dofile(os.getenv "LORARUN_TESTS" .. "/data.lua")
local quote, run = shell.quote, shell.run

local root = fs.dirname(os.getenv "LORARUN_TESTS")
local recipe = quote(fs.join(root, "recipes", "bugdetect.lua"))
local golden = fs.join(os.getenv "LORARUN_TESTS", "golden")

-- Calls fn with an empty folder, which is also lorarun's cache, and plan(words, environment).
local function with_cache(fn)
  shell.with_folder(function(folder)
    fn(folder, function(words, environment)
      return run(("XDG_CACHE_HOME=%s %s $L plan %s"):format(quote(folder), environment or "", words))
    end)
  end)
end

-- Makes a model folder with config.json alone, by default that of the golden model `name`.
local function bare_model(folder, name, changes)
  local config = json.decode_file(fs.join(golden, name, "config.json"))
  for key, value in pairs(changes or {}) do config[key] = value end
  fs.make(folder)
  fs.write(fs.join(folder, "config.json"), json.encode(config))
  return quote(folder)
end

local function make_data(folder, rows)
  return quote(data_files.make(folder, rows, function(i)
    return { current_line = ("x = %d"):format(i), context = ("y = f(x)\n"):rep(i % 5 + 1), score = i % 2,
      context_type = "context_full" }
  end))
end

local function has(r, ...)
  for _, part in ipairs { ... } do
    check.that((r.out .. r.err):find(part, 1, true), ("the output lacks '%s':\n%s%s"):format(part, r.out, r.err))
  end
end

test("with config.json alone, no tokenizer, no data: everything is planned, and assumptions are named", function()
  with_cache(function(folder, plan)
    local model = bare_model(fs.join(folder, "model"), "qwen2")
    local r = plan(("%s --model %s --gpu-memory 24GB --gpus 1,2,8 --max-length 64 --output %s"):format(recipe, model,
      quote(fs.join(folder, "out"))))
    check.equal(r.err, "")
    check.equal(r.status, 0)
    has(r, "(qwen2, 3 layers, dimension 64, mean pooling (assumed: there is no modules.json)) in bf16, LoRA rank 16",
      "on a GPU of 24.0 GB",
      "steps on 1 GPU, of 850,000 training rows (as many as the recipe takes at most",
      "weights", "74,976 parameters",
      "adapters", "gradients", "optimizer", "driver and libraries", "estimated", "left for a batch", "batch of 64 pairs, 128 texts",
      "assumed, there being no data", "recompute: none (as few as fit the memory)", "kept for backward", "layers.*.mlp.gate_up",
      "layers.*.self_attn.qkv", "attention", "the largest batch that fits", "none", "all 3 layers", "evaluation of 780,000 rows",
      "GPUs", "memory a GPU", "pairs/s", "hours to the end", "speed: estimated: 544 TFLOP/s, 55% of the peak of H100 in bf16")
    local batches = {}
    for ranks, batch in r.out:gmatch "\n  (%d+) +(%d+)  [^\n]*estimated" do batches[ranks] = tonumber(batch) end
    check.equal(batches["1"], 64)
    check.equal(batches["2"], 128)
    check.equal(batches["8"], 512)
    local unknown = plan(("%s --model %s --gpus 1 --max-train-rows 0 --max-length 64"):format(recipe, model)) -- how many rows
    check.equal(unknown.out:match "\n  tokens: (%d+)", r.out:match "\n  tokens: (%d+)")
    check.that(not fs.exists(fs.join(folder, "out")), "an output folder was made")
    check.that(not fs.exists(fs.join(folder, "lorarun")), "data was made in the cache")
  end)
end)

test("lengths come from the data: counted with a tokenizer, estimated without one", function()
  with_cache(function(folder, plan)
    local data = make_data(fs.join(folder, "data"), 60)
    local options = (" --data %s --targets query,key,value --batch 8 --max-length 32 --max-steps 5"):format(data)
    local counted = plan(recipe .. " --model " .. quote(fs.join(golden, "bert")) .. options)
    check.equal(counted.err, "")
    has(counted, "(counted in the data)", "in the largest of 5 batches", "this machine's CPU", "nine tenths of what is free now",
      "working memory of kernels", "evaluation of 60 rows")
    check.that(not counted.out:find("GPU", 1, true), counted.out)
    local bare = plan(recipe .. " --model " .. bare_model(fs.join(folder, "model"), "bert") .. options)
    check.equal(bare.err, "")
    has(bare, "estimated, there being no tokenizer.json: 3 bytes a token")
  end)
end)

test("a batch that does not fit is taken in parts, or the remedy is named; the recipe's own settings are obeyed", function()
  with_cache(function(folder, plan)
    local model = bare_model(fs.join(folder, "model"), "qwen2", { hidden_size = 1024, intermediate_size = 4096 })
    local words = ("%s --model %s --gpu-memory 1300MB --max-length 512 --precision fp32"):format(recipe, model)
    local r = plan(words .. " --batch 1024 --recompute all")
    has(r, "does not fit: give --recompute auto, or --batch ", "--precision bf16")
    local smaller = r.out:match "or %-%-batch (%d+)"
    has(plan(words .. " --recompute all --batch " .. smaller), " fits")
    local seconds = {}
    for _, loss in ipairs { "cosine", "mnr" } do
      r = plan(words .. " --batch 1024 --loss " .. loss)
      local parts, pairs_ = r.out:match "of 1024 pairs, 2048 texts\n  in (%d+) parts of (%d+) pairs?, at most [%d,]+ tokens, since"
      check.that(parts and tonumber(parts) == math.ceil(1024 / tonumber(pairs_)), r.out)
      has(r, " fits", "as few as fit the memory")
      check.equal(r.out:find("GradCache", 1, true) ~= nil, loss == "mnr", "GradCache")
      seconds[loss] = tonumber(r.out:match "\n  1  +1,024  +[%d.]+ GB  +([%d.]+)")
    end
    check.that(seconds.mnr > 1.2 * seconds.cosine and seconds.mnr < 1.6 * seconds.cosine, "texts are embedded once more")
    -- If parts without recomputing are long enough, they take less time than fewer parts with it.
    r = plan(words:gsub("1300MB", "3GB") .. " --batch 1024")
    local part = tonumber(r.out:match "parts of (%d+) pairs?, at most")
    check.that(part and r.out:find("recompute: none (as few as fit the memory)", 1, true), r.out)
    local most = tonumber(r.out:match "\n  all 3 layers +[%d,]+ +(%d+)")
    check.that(part < most / 1.5, r.out)
    has(plan(words .. " --recompute 2"), "recompute: 2 of 3 layers (as the recipe says)")
    has(plan(words .. " --recompute some"), "recompute is 'some'")
    local huge = plan(("%s --model %s --gpu-memory 20MB"):format(recipe, model))
    check.equal(huge.status, 0)
    has(huge, "left for a batch", "0 B", "does not fit: the model alone takes 1.", " GB; take a device with more memory")
  end)
end)

test("speeds that were measured on this machine count, and the plan says so", function()
  with_cache(function(folder, plan)
    local model = bare_model(fs.join(folder, "model"), "qwen2")
    fs.make(fs.join(folder, "lorarun"))
    local function rates(text) fs.write(fs.join(folder, "lorarun", "rates.json"), text) end
    rates(json.encode { ["NVIDIA H100 80GB HBM3 (sm_90, 132 multiprocessors)"] = { bf16 = { flops = 5e14, model = "m",
      date = "2026-01-02" } } })
    local words = ("%s --model %s --gpus 1,4 --precision "):format(recipe, model)
    local r = plan(words .. "bf16")
    has(r, "speed: measured here on 2026-01-02 with m")
    check.that(r.out:find "\n  1 [^\n]*measured" and r.out:find "\n  4 [^\n]*estimated", r.out)
    has(plan(words .. "fp32"), "speed: estimated: 37 TFLOP/s")
    has(plan(words .. "fp32 --tf32"), "speed: estimated: 272 TFLOP/s, 55% of the peak of H100 in tf32")
    has(plan(words .. "bf16 --gpu a100"), "speed: estimated: 203 TFLOP/s, 65% of the peak of A100 in bf16")
    for _, damaged in ipairs { "{", "[]", '{"NVIDIA H100": 3}', '{"NVIDIA H100": {"bf16": {"flops": "fast"}}}' } do
      rates(damaged)
      has(plan(words .. "bf16"), "speed: estimated: 544 TFLOP/s")
    end
  end)
end)

test("a run's speed is remembered for plans of the same machine", function()
  with_cache(function(folder, plan)
    fs.write(fs.join(folder, "remember.lua"), [[
      local linears = { { n = 1000, k = 1000 } }
      local function run(seconds, recomputed)
        require("lorarun.train.throughput").remember { seconds = seconds, tokens = 1e6, recomputed = recomputed,
          model = { linears = linears, device = "cpu", precision = "fp32", name = "tiny" } }
      end
      run(3, false) run(100, true)
      assert(not require("lorarun.train.throughput").of_cpu "fp32", "too short, or computed twice")
      run(100, false)
      local flops, source, measured = require("lorarun.train.throughput").of_cpu "fp32"
      assert(flops == 4e6 * 1e6 / 100 and source:find "tiny" and measured)
      assert(not require("lorarun.train.throughput").of_cpu "bf16")
    ]])
    local r = run(("XDG_CACHE_HOME=%s $L %s"):format(quote(folder), quote(fs.join(folder, "remember.lua"))))
    check.equal(r.err, "")
    local data = make_data(fs.join(folder, "data"), 60)
    local words = ("%s --model %s --data %s --targets query,key,value --max-length 32 --batch 4"):format(recipe,
      quote(fs.join(golden, "bert")), data)
    r = plan(words)
    has(r, "ranks", "measured here on ", " with tiny")
    local function rate(result) return tonumber(result.out:match "\n  %d +%d+ +[%d.]+ %aB +[%d.e-]+ +([%d.]+)") end
    local two = plan("--num-processes 2 " .. words) -- share the CPU
    check.that(rate(two) < 1.1 * rate(r) and rate(two) > 0.9 * rate(r), two.out)
    local large = plan(words .. "00") -- more than there are rows
    check.that(rate(large) < 1.1 * rate(r) and rate(large) > 0.9 * rate(r), large.out)
    has(plan(words .. " --precision bf16"), "time\n  unknown: no run of twenty seconds or more in bf16 has been timed")
  end)
end)

test("no ranks are started, and the memory is shared among them", function()
  with_cache(function(folder, plan)
    local data = make_data(fs.join(folder, "data"), 60)
    local words = ("%s --model %s --data %s --targets query,key,value --max-length 32"):format(recipe,
      quote(fs.join(golden, "bert")), data)
    has(plan(words .. " --processes 4"), "on one of 4 ranks on this machine's CPU")
    has(plan("--num-processes 3 " .. words), "on one of 3 ranks on this machine's CPU")
  end)
end)

test("in a plan without a GPU the recipe takes its small preset, in a plan with a GPU it does not", function()
  with_cache(function(_, plan)
    has(plan(recipe), "small preset", "all-MiniLM-L6-v2")
    local r = plan(recipe .. " --gpu-memory 80GB")
    check.that(not r.out:find("small preset", 1, true), r.out)
    has(r, "model 'nomic-ai/nomic-embed-code' is neither a folder nor in the Hugging Face cache")
  end)
end)

test("a user's recipe: --help, code after lr.train, several trainings, none", function()
  with_cache(function(folder, plan)
    has(plan(recipe .. " --help"), "usage: lorarun", "--learning-rate")
    local help = plan "--help"
    check.equal(help.status, 0)
    has(help, "usage: lorarun plan", "--gpu-memory SIZE")
    local path = fs.join(folder, "own.lua")
    local function own(code, words)
      fs.write(path, ([[
        local lr = require "lorarun"
        local model = lr.load_model(%q, { device = "cpu" })
        model:add_lora { rank = 2, targets = "all-linear" }
        local function train() return lr.train { model = model, data = "", output = "out", batch = 4,
          columns = { "current_line", "context" } } end
        %s]]):format(fs.join(golden, "bert"), code))
      return plan(quote(path) .. (words or ""))
    end
    local r = own "local p = train() print(('planned %d layers'):format(p.layers))"
    check.equal(r.status, 0)
    has(r, "planned 2 layers")
    check.equal(select(2, own("train() train()").out:gsub("the largest batch that fits", "")), 2)
    r = own "local p = train() print(p.test.spearman)"
    check.equal(r.status, 0)
    has(r, "the recipe failed after lr.train, which only planned and returns no results: ", "own.lua:6: ")
    r = own "print 'nothing'"
    check.equal(r.status, 1)
    has(r, "own.lua never called lr.train: there is nothing to plan")
    r = own "error 'broken'"
    check.equal(r.status, 1)
    has(r, "own.lua:6: broken")
    check.equal(own("train()", " a b").status, 0)
  end)
end)

test("what can be wrong, each in one line on standard error, status not 0", function()
  with_cache(function(folder, plan)
    local bad = fs.join(folder, "bad.lua")
    fs.write(bad, "local local")
    for words, part in pairs {
      [""] = "lorarun plan needs a recipe: lorarun plan RECIPE.lua",
      ["--multi-gpu " .. recipe .. " --model " .. quote(fs.join(golden, "bert"))] =
        "--multi-gpu asks for GPUs; say which to plan for: --gpu h100, or --gpu-memory 80GB",
      ["--gpu h100 " .. recipe .. " --model a/b"] = "To fetch what is needed of it: hf download a/b --include '*.json'",
      ["--gpu-memory"] = "--gpu-memory needs a value",
      ["--gpu-memory lots " .. recipe] = "--gpu-memory is 'lots', expected a size like 80GB or 80GiB",
      [recipe .. " --gpu-memory 80"] = "--gpu-memory is '80', expected a size",
      [recipe .. " --gpus=1,x"] = "--gpus is '1,x', expected numbers of GPUs like 1,2,4,8",
      [recipe .. " --gpus 0"] = "--gpus is '0', expected",
      [recipe .. " --gpu h10"] = "--gpu is 'h10', which is not known; did you mean 'h100'?; there are a100, h100",
      ["--sideways " .. recipe] = "lorarun plan has no option '--sideways'",
      [recipe .. " --sideways"] = "unknown option --sideways",
      ["nothing.lua"] = "cannot open the recipe",
      [quote(bad)] = "bad.lua:1:",
      [recipe .. " --gpus 1 --model " .. quote(fs.join(golden, "bert")) .. " --max-length 32 --targets query --data nowhere"] =
        "there is no train.jsonl (or train.csv) in 'nowhere'",
    } do
      local r = plan(words)
      check.that(r.status ~= 0, words .. ": status 0")
      check.that(r.err:find(part, 1, true), ("%s: the error is '%s', which lacks '%s'"):format(words, r.err, part))
      check.equal(select(2, r.err:gsub("\n", "")), 1, words .. ": lines of the error")
    end
  end)
end)
