-- Loading weights: how fast tensors of a safetensors folder are loaded onto a device, compared with plain reading of the same
-- bytes, and how much host memory that takes:
--   lorarun bench/load.lua [--model FOLDER] [--cold]
-- Without --model a folder of 2 GB of bf16 is written first (bench/gpu/make_model.lua) and removed at the end. Files are read once
-- before anything is timed, so what is measured is not the disk; with --cold they are dropped from memory before each round.
-- "Tensors" are loaded one after the other and freed again; "model" is lr.load_model, which on the CPU also packs every weight
-- twice. Each case runs in a process of its own. Its memory is the peak of resident memory, less what it had when loading began:
-- for a GPU that is what the host needs besides; on the CPU it includes the largest tensor, or the model.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local lr = require "lorarun"
local safetensors = require "lorarun.formats.safetensors"
local fs = lr.fs

local args = lr.args {
  { "model", "", "folder; none: one is made" },
  { "cold", false, "from the disk" },
  { "rounds", 3, "of each case; the best counts", min = 1, type = "integer" },
  { "case", "", "run this case alone, in this process: tensors or model, device, precision" },
}
local program = fs.real "/proc/self/exe"
local here = fs.dirname(arg[0])
local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

-- Bytes of memory of this process: "VmHWM": the peak since the last reset; "VmRSS": now.
local function resident(what)
  return tonumber(fs.read("/proc/self/status"):match(what .. ":%s+(%d+) kB")) * 1024
end

local function reset_peak()
  local f = assert(io.open("/proc/self/clear_refs", "w"))
  f:write "5"
  f:close()
end

local function shards(folder)
  local list, bytes = {}, 0
  for _, name in ipairs(fs.list(folder)) do
    if name:find "%.safetensors$" then
      list[#list + 1] = fs.join(folder, name)
      bytes = bytes + fs.stat(list[#list]).size
    end
  end
  if #list == 0 then check.fail("%s has no .safetensors file", folder) end
  return list, bytes
end

-- Drops the files from the system's page cache.
local function drop(files)
  for _, path in ipairs(files) do
    local command = ("dd if=%s iflag=nocache count=0 status=none"):format(quote(path))
    if os.execute(command) ~= 0 then check.fail("failed: %s", command) end
  end
end

-- ---- one case, in a process of its own -----------------------------------------------------------------------------------------
local DTYPE = { fp32 = "f32", bf16 = "bf16" }

local function load_tensors(device, precision)
  local weights = safetensors.open_folder(args.model)
  for _, name in ipairs(weights:names()) do
    local t = lr.tensor.new(weights:info(name).shape, DTYPE[precision], name, device)
    weights:load(name, t)
    t:free()
  end
  check(C.lr_device_wait(device == "cuda" and C.LR_CUDA or C.LR_CPU))
  weights:close()
end

local function load_model(device, precision)
  local model = lr.load_model(args.model, { device = device, precision = precision })
  check(C.lr_device_wait(device == "cuda" and C.LR_CUDA or C.LR_CPU))
  model:free()
end

local function run_case(text)
  local what, device, precision = text:match "^(%a+) (%a+) (%w+)$"
  local work = ({ tensors = load_tensors, model = load_model })[what] or check.fail("--case '%s'", text)
  lr.tensor.zeros({ 1 }, "f32", "first", device):free() -- starts the device
  reset_peak()
  local before, best = resident "VmRSS", math.huge
  for _ = 1, args.rounds do
    if args.cold then drop((shards(args.model))) end
    local started = C.lr_time()
    work(device, precision)
    best = math.min(best, C.lr_time() - started)
  end
  print(("%.6f %d"):format(best, resident "VmHWM" - before))
end

-- ---- all cases -----------------------------------------------------------------------------------------------------------------
local function seconds_of(command, files)
  local best = math.huge
  for _ = 1, args.rounds do
    if args.cold then drop(files) end
    local started = C.lr_time()
    if os.execute(command) ~= 0 then check.fail("failed: %s", command) end
    best = math.min(best, C.lr_time() - started)
  end
  return best
end

-- Plain reading by n processes, each of which reads its part of every file.
local function plain_read(files, n)
  local parts, block = {}, 4 * 2 ^ 20
  for i = 0, n - 1 do
    local list = {}
    for j, path in ipairs(files) do
      local blocks = math.ceil(fs.stat(path).size / block / n)
      list[j] = ("dd if=%s of=/dev/null bs=%d skip=%d count=%d status=none"):format(quote(path), block, i * blocks, blocks)
    end
    parts[i + 1] = "(" .. table.concat(list, " && ") .. ") &"
  end
  return seconds_of(table.concat(parts, " ") .. " wait", files)
end

local function measure(folder)
  local files, bytes = shards(folder)
  local function line(name, seconds, note) print(("  %-34s %8.2f GB/s%s"):format(name, bytes / seconds / 1e9, note or "")) end
  print(("%s: %.2f GB in %d files, %d threads"):format(folder, bytes / 1e9, #files, lr.threads()))
  if not args.cold then plain_read(files, 1) end -- now the files are in memory
  line("plain reading (dd)", plain_read(files, 1))
  line(("plain reading by %d processes"):format(lr.threads()), plain_read(files, lr.threads()))
  for _, device in ipairs(lr.has_gpu() and { "cpu", "cuda" } or { "cpu" }) do
    for _, what in ipairs { "tensors", "model" } do
      for _, precision in ipairs { "bf16", "fp32" } do
        local case = ("%s %s %s"):format(what, device, precision)
        local pipe = io.popen(("%s %s --model %s --rounds %d%s --case %s"):format(quote(program), quote(arg[0]), quote(folder),
          args.rounds, args.cold and " --cold" or "", quote(case)))
        local seconds, peak = pipe:read "*a":match "([%d.]+) (%d+)"
        pipe:close()
        if not seconds then check.fail("the case '%s' failed", case) end
        line(case, tonumber(seconds), (", %.0f MB of host memory"):format(tonumber(peak) / 1e6))
      end
    end
  end
end

if args.case ~= "" then
  run_case(args.case)
elseif args.model ~= "" then
  measure(args.model)
else
  local folder = os.tmpname()
  os.remove(folder)
  local made = os.execute(("%s %s --out %s --layers 4 --vocabulary 20000 --shard 1e9"):format(quote(program),
    quote(fs.join(here, "gpu", "make_model.lua")), quote(folder)))
  local ok, err = pcall(made == 0 and measure or check.fail, folder)
  fs.remove(folder)
  if not ok then error(err, 0) end
end
