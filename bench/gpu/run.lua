-- The benchmarks that need a GPU, in the order in which they explain each other:
--   lorarun bench/gpu/run.lua [--parts ceilings,gemm,kernels,step,load,beside] [--minutes 30] [--out FOLDER]
--
--   ceilings  what the GPU can do: copying, and a product of 8192 x 8192 x 8192
--   gemm      the products of nomic-embed-code, a 7B Qwen2, as a share of that
--   kernels   every kernel, as a share of these
--   step      whole training steps of that model with random weights at several counts of tokens; peak memory against the plan
--   load      a model folder of that size: written, then loaded onto the GPU
--   beside    sentence-transformers + PEFT on the same weights, rows and GPU, where a Python has them with CUDA
-- Ends with a short table. Figures are printed as they come and kept in --out (or $OUT, or build/bench-gpu): bench-gpu.json and
-- bench-gpu.md. A part for which --minutes are not enough is left out, with a note.
--
-- --size tiny and --device cpu are for trying this program itself without a GPU.
local ffi = require "ffi"
local lr = require "lorarun"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local memory = require "lorarun.tensor.memory"
local throughput = require "lorarun.train.throughput"
local sorted = require "lorarun.base.sorted"
local fs, tensor = lr.fs, lr.tensor

local PARTS = { "ceilings", "gemm", "kernels", "step", "load", "beside" }
local args = lr.args {
  { "parts", table.concat(PARTS, ","), "what to measure" },
  { "minutes", 30, "begin nothing after this many", min = 0 },
  { "out", "", "folder for the results; empty: $OUT, or build/bench-gpu" },
  { "size", "7b", "of the model", choices = { "7b", "tiny" } },
  { "device", "cuda", "to measure", choices = { "cuda", "cpu" } },
  { "tokens", "8192,16384,22528,65536", "of the training steps" },
  { "steps", 5, "timed, at each count of tokens", min = 1 },
  { "recompute", "auto", "layers of the steps that are recomputed: as few as fit the memory, or a number" },
  { "model", "", "folder of `load` and `beside`; empty: one is made, in $TMPDIR, and removed again" },
  { "python", "", "for `beside`; empty: python3, where it has sentence-transformers, PEFT and torch with CUDA" },
  { "reference-steps", 8, "timed steps of `beside`", min = 1, type = "integer" },
}

if args.device == "cuda" and not lr.has_gpu() then
  local text = ffi.new "char[512]"
  check(C.lr_device_describe(C.LR_CPU, text, 512))
  print("bench-gpu: skipped: " .. ffi.string(text))
  os.exit(77)
end
tensor.default_device = args.device
io.stdout:setvbuf "line" -- each figure is shown at once

local root = fs.dirname(fs.dirname(fs.dirname(fs.real(arg[0]))))
local tiny = args.size == "tiny"
local device = memory.DEVICES[args.device]
local started = C.lr_time()

local function device_line()
  local text = ffi.new "char[512]"
  check(C.lr_device_describe(device, text, 512))
  return ffi.string(text)
end

local function peak_of(line)
  for name, gpu in sorted(throughput.GPUS) do
    if line:lower():find("%f[%w]" .. name .. "%f[%W]") then return gpu.bf16, name:upper() end
  end
end

-- The argument of every part.
local bench = { args = args, root = root, tiny = tiny, device = args.device, shape = tiny and "tiny" or "nomic",
  synthetic = dofile(fs.join(root, "bench", "lib", "synthetic.lua")), ceilings = {} }
bench.gpu = device_line()
bench.peak, bench.peak_name = peak_of(bench.gpu)

local out = args.out ~= "" and args.out or os.getenv "OUT" or fs.join(root, "build", "bench-gpu")
bench.report = dofile(fs.join(root, "bench", "gpu", "report.lua")).new(out, { gpu = bench.gpu, date = os.date "%Y-%m-%d",
  lorarun = require "lorarun.base.version", command = "lorarun bench/gpu/run.lua --parts " .. args.parts, cuda =
  C.lr_cuda_version() ~= nil and ffi.string(C.lr_cuda_version()) or "none" })
bench.out = out

--- Is there time for something that takes this many seconds? If not, notes what is left out.
function bench.time_for(seconds, what)
  if C.lr_time() - started + seconds <= 60 * args.minutes then return true end
  bench.report:note("no time was left for %s", what)
  return false
end

function bench.wait() check(C.lr_device_wait(device)) end

--- seconds(fn): the time of one call of fn, which puts work on the device: the median of several rounds, each of enough calls to be
--- measured. The first calls do not count: they load kernels and choose algorithms.
function bench.seconds(fn)
  local LONG, ROUNDS = tiny and 1e-4 or 0.02, tiny and 1 or 5
  fn()
  fn()
  bench.wait()
  local t = C.lr_time()
  fn()
  bench.wait()
  local calls, times = math.max(1, math.min(200, math.ceil(LONG / (C.lr_time() - t)))), {}
  for round = 1, ROUNDS do
    t = C.lr_time()
    for _ = 1, calls do fn() end
    bench.wait()
    times[round] = (C.lr_time() - t) / calls
  end
  table.sort(times)
  return times[math.ceil(ROUNDS / 2)]
end

--- random(rows, columns, dtype): a matrix on the device.
function bench.random(rows, columns, dtype)
  local t = tensor.new({ rows, columns }, dtype, "bench")
  bench.synthetic.fill(t, -0.5, 0.5, columns % 65536)
  return t
end

--- weight(n, k, dtype): a frozen weight packed for both directions: forward, backward.
function bench.weight(n, k, dtype)
  local w, packed = bench.random(n, k, dtype), {}
  for direction = 1, 2 do
    local handle = ffi.new "lr_tensor *[1]"
    check(C.lr_tensor_pack(handle, w.handle, direction, C["LR_" .. dtype:upper()]))
    packed[direction] = tensor.adopt(handle[0], "weight")
  end
  return packed[1], packed[2]
end

local made -- the folder, if one was made

local function run_make_model()
  made = os.tmpname()
  os.remove(made)
  if os.getenv "TMPDIR" then made = fs.join(os.getenv "TMPDIR", fs.basename(made)) end
  local sizes = tiny and "--layers 2 --hidden 128 --heads 4 --kv-heads 2 --intermediate 192 --vocabulary 300" or ""
  if os.execute(("'%s' '%s' --out '%s' %s"):format(fs.real "/proc/self/exe", fs.join(root, "bench", "gpu", "make_model.lua"), made,
    sizes)) ~= 0 then
    check.fail("no model folder could be made in %s", made)
  end
end

--- model_folder(): the folder of a model of this size, the bytes of its weights, and, if it was made now, the seconds that took.
function bench.model_folder()
  local seconds
  if args.model == "" and not made then
    local t = C.lr_time()
    run_make_model()
    seconds = C.lr_time() - t
  end
  local folder, bytes = made or args.model, 0
  for _, name in ipairs(fs.list(folder)) do
    if name:find "%.safetensors$" then bytes = bytes + fs.stat(fs.join(folder, name)).size end
  end
  return folder, bytes, seconds
end

local function wanted(name)
  for _, part in ipairs(lr.split(args.parts, ",")) do
    if part == name then return true end
  end
end

for _, part in ipairs(lr.split(args.parts, ",")) do
  local known = false
  for _, name in ipairs(PARTS) do known = known or name == part end
  if not known then check.fail("--parts: there is no part '%s'; there are %s", part, table.concat(PARTS, ", ")) end
end
print(("%s\nlorarun %s, CUDA %s"):format(bench.gpu, require "lorarun.base.version", bench.report.about.cuda))
local failed = 0
for _, part in ipairs(PARTS) do
  if wanted(part) and bench.time_for(0, "part " .. part) then
    local t = C.lr_time()
    local ok, err = xpcall(function() tensor.scope(dofile(fs.join(root, "bench", "gpu", part .. ".lua")), bench) end,
      function(e) return tostring(e) end)
    if not ok then -- the other parts may still work
      failed = failed + 1
      bench.report:note("part %s failed: %s", part, err)
    end
    check(C.lr_memory_release_cached(device))
    print(("-- part %s took %.0f s"):format(part, C.lr_time() - t))
  end
end
if made and fs.exists(made) then fs.remove(made) end
bench.report:save()
bench.report:summary()
os.exit(failed == 0 and 0 or 1, true)
