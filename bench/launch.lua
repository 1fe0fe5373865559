-- The time from the command to the first training step on two ranks of this machine, compared with `accelerate launch`:
--   lorarun bench/launch.lua [--ranks 2] [--rounds 5]
-- Both load the small model, add LoRA and train on the first rows; both have run once before, so that files are in memory. Without
-- the environment of `make interop` there is no comparison. (For several ranks on one machine's CPU, Accelerate uses only mpirun;
-- with --multi_gpu and ACCELERATE_USE_CPU it starts them in the same way as ranks on GPUs.)
local C = require "lorarun.base.c"
local lr = require "lorarun"
local fs = lr.fs

local args = lr.args {
  { "ranks", 2, "of one thread each", type = "integer", min = 1 },
  { "rounds", 5, "of each, in turn; the median counts", type = "integer", min = 1 },
}
local BATCH = 8

local root = fs.dirname(fs.dirname(fs.real(arg[0])))
local model, data = lr.hub.small_model(), lr.bugdata.from_this_machine {}
local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function first_line(command)
  local pipe = io.popen(command, "r")
  local line = pipe:read "*l"
  pipe:close()
  return line
end

-- Seconds until the command says that the first step is done.
local function seconds_to_first_step(command)
  local started = C.lr_time()
  local pipe, seconds = io.popen(command, "r"), nil
  for line in pipe:lines() do
    if line == "first step" and not seconds then seconds = C.lr_time() - started end
  end
  pipe:close()
  return seconds or error("this came to no first step: " .. command, 0)
end

local folder = os.tmpname()
os.remove(folder)
fs.make(folder)
fs.write(fs.join(folder, "recipe.lua"), ([[
  local lr = require "lorarun"
  lr.launch { processes = %d, threads = 1 }
  local model = lr.load_model(%q)
  model:add_lora { rank = 16, alpha = 32, dropout = 0.1, targets = { "query", "key", "value" } }
  lr.train { model = model, data = %q, output = %q, batch = %d, max_steps = 1,
    columns = { "current_line", "context" }, sampling = "sequential", learning_rate = 1e-3,
    max_evaluation_rows = 2, max_train_rows = 100, on_step = function() if lr.comm.rank == 0 then print "first step" end end }
]]):format(args.ranks, model, data, fs.join(folder, "out"), BATCH))

local own = ("%s %s 2>/dev/null"):format(quote(fs.real "/proc/self/exe"), quote(fs.join(folder, "recipe.lua")))
local commands = { { "lorarun", own } }
local python = first_line(quote(root .. "/tests/interop/setup.sh") .. " --check 2>/dev/null")
if python then
  commands[2] = { "accelerate launch", ("ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 %s/bin/accelerate launch --multi_gpu "
    .. "--num_processes %d --num_machines 1 --machine_rank 0 --main_process_port 0 --mixed_precision no --dynamo_backend no "
    .. "%s %s %s %d 2>/dev/null"):format(quote(python), args.ranks, quote(root .. "/tests/interop/first_step.py"), quote(model),
    quote(fs.join(data, "train.jsonl")), BATCH) }
else
  print "sentence-transformers is not set up here (make interop does that): no comparison"
end

local times = {}
for round = 0, args.rounds do -- round 0 does not count
  for i, command in ipairs(commands) do
    times[i] = times[i] or {}
    times[i][round] = seconds_to_first_step(command[2]) -- [0] is not part of the list
  end
end
fs.remove(folder)
for i, command in ipairs(commands) do
  table.sort(times[i])
  times[i].median = times[i][math.floor(#times[i] / 2) + 1]
  print(("%-18s %.2f s (%.2f to %.2f) from the command to the first step on %d ranks"):format(command[1], times[i].median,
    times[i][1], times[i][#times[i]], args.ranks))
end
if commands[2] then print(("ratio: %.1f"):format(times[2].median / times[1].median)) end
