-- doctor.lua: `lorarun doctor`: what this machine has for training, whether it computes the right results, what is wrong, and the
-- cure (diagnose.lua).
--   lorarun doctor [--json]      exit status 0 where training works, even on the CPU alone; 1 where it does not
-- Each device is tested by a child process, which is this program again: one process uses one GPU, and a GPU that hangs or kills
-- the child does no harm to the rest.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local diagnose = require "lorarun.cli.diagnose"
local hardware = require "lorarun.dist.hardware"
local json = require "lorarun.base.json"
local report = require "lorarun.train.report"
local say = require "lorarun.base.say"
local units = require "lorarun.base.units"

local doctor = {}

local USAGE = [[
usage: lorarun doctor [--json]     what this machine has for training, a test of each device (a second), what is wrong, and the cure
       --json                      the same as JSON, for programs and bug reports
]]
local TEST_SECONDS = 60 -- most that one test may take; starting a GPU and its libraries takes several
local gib = units.gib

-- ---- the self-tests ----------------------------------------------------------------------------------------------------------
-- Run this program with these words, for at most `seconds`. Returns what it wrote to each stream and its exit status; where it was
-- ended, the status is nil and a third value says why.
local function run_child(words, seconds)
  local out = ffi.new "lr_group *[1]"
  check.call(C.lr_group_new, out, 1)
  local group, event, streams = ffi.gc(out[0], C.lr_group_free), ffi.new "lr_event", { "", "" }
  local argv, none = ffi.new("const char *[?]", #words + 1), ffi.new "const char *[1]"
  for i, word in ipairs(words) do argv[i - 1] = word end
  local ends, status, why = C.lr_time() + seconds, nil, nil
  check(C.lr_group_spawn(group, 0, argv, none, "", 0))
  repeat
    check(C.lr_group_wait(group, math.max(0, ends - C.lr_time()), event))
    if event.kind == C.LR_EVENT_OUTPUT then
      streams[event.stream] = streams[event.stream] .. ffi.string(event.data, tonumber(event.size))
    elseif event.kind == C.LR_EVENT_EXIT then
      status = event.status
    elseif event.kind == C.LR_EVENT_SIGNAL then
      why = ("signal %d"):format(event.status)
    elseif C.lr_time() >= ends then
      why = ("no end within %d seconds"):format(seconds)
    end
  until status or why
  C.lr_group_free(ffi.gc(group, nil))
  return streams, status, why
end

local function test(device, index, name)
  local streams, status, why = run_child({ "lorarun", "doctor", "--self-test", device, tostring(index) }, TEST_SECONDS)
  local ok, result = pcall(json.decode, streams[1])
  if status ~= 0 or not ok or type(result) ~= "table" then
    local words = streams[2]:gsub("^lorarun: ", ""):gsub("%s+$", "")
    result = { error = why or words ~= "" and words or ("it ended with status %d"):format(status) }
  end
  result.name, result.device, result.index = name, device, index
  return result
end

-- The child's part.
local function self_test(device, index)
  check(C.lr_rank_show()) -- the parent reads standard output from here on
  io.write(json.encode(require("lorarun.cli.self_test").run(device, tonumber(index))), "\n")
end

-- ---- facts -------------------------------------------------------------------------------------------------------------------
-- A GPU is called by NVML's number everywhere in what is printed; `index` is CUDA's.
local function gpu_name(gpus, index)
  for _, g in ipairs(gpus) do
    if g.cuda == index then return ("GPU %d"):format(g.number) end
  end
  return ("GPU %d"):format(index)
end

local function gather()
  local devices = C.lr_device_count(C.LR_CUDA)
  local missing = devices == 0 and ffi.string(C.lr_device_missing(C.LR_CUDA)) or nil -- asking starts a GPU that is there
  local gpus = hardware.gpus()
  local facts = { lorarun = require "lorarun.base.version", lua = jit.version, driver = hardware.driver(), gpus = gpus,
    links = hardware.links(gpus), pci_gpus = hardware.pci_gpus(), cpu = hardware.cpu(), limits = hardware.limits(),
    libraries = hardware.libraries(), cache = hardware.cache(), nccl = {}, cublas = {}, tests = {},
    cuda = { built = hardware.cuda_built(), devices = devices, missing = missing,
      visible_devices = os.getenv "CUDA_VISIBLE_DEVICES" } }
  facts.nccl.version, facts.nccl.missing = hardware.nccl()
  facts.cublas.version, facts.cublas.missing = hardware.cublas()
  for index = 0, devices - 1 do facts.tests[#facts.tests + 1] = test("cuda", index, gpu_name(gpus, index)) end
  facts.tests[#facts.tests + 1] = test("cpu", 0, "CPU")
  return facts
end

-- ---- what is printed ---------------------------------------------------------------------------------------------------------
local function rate_text(rate, unit)
  local prefixes, i = { "", "k", "M", "G", "T", "P" }, 1
  while rate >= 1000 and i < #prefixes do rate, i = rate / 1000, i + 1 end
  return ("%.3g %s%s"):format(rate, prefixes[i], unit)
end

local function test_text(t)
  if t.error then return "failed: " .. t.error end
  local text = ("%s products at %s, "):format(t.dtype, rate_text(t.flops, "FLOP/s"))
  text = text .. (t.device == "cpu" and ("copies at %s, "):format(rate_text(t.to_device, "B/s"))
    or ("copies to it at %s, from it at %s, "):format(rate_text(t.to_device, "B/s"), rate_text(t.from_device, "B/s")))
  return text .. (t.right and "results right" or "results WRONG")
end

local function gpu_text(g)
  if g.error then return g.error end
  local parts = { g.name or "?" }
  local function add(value, fmt, ...) if value then parts[#parts + 1] = fmt:format(...) end end
  add(g.capability, "compute capability %d.%d", unpack(g.capability or {}))
  add(g.load.free, "%s of %s free", gib(g.load.free or 0), gib(g.load.total or 0))
  add(g.load.utilization, "%d%% busy", g.load.utilization)
  add(g.ecc_uncorrected, "%d uncorrected memory errors", g.ecc_uncorrected)
  add(g.nvlinks, "%d NVLinks up", g.nvlinks)
  add(not g.cuda, "not used by CUDA here")
  return table.concat(parts, ", ")
end

-- The links between GPUs, one line for each kind.
local function link_rows(links)
  local ways, order = {}, {}
  for _, link in ipairs(links) do
    local way = link.nvlink and "NVLink" or link.peer and "PCIe, peer to peer" or link.peer == false and "the processor's memory"
      or "not told"
    if not ways[way] then ways[way], order[#order + 1] = {}, way end
    table.insert(ways[way], ("%d-%d"):format(link.from, link.to))
  end
  local rows = {}
  for i, way in ipairs(order) do
    rows[i] = { i == 1 and "links" or "", ("%s: %s"):format(way, #order == 1 and #links > 1 and "all of them"
      or table.concat(ways[way], " ")) }
  end
  return rows
end

local function driver_text(d)
  if not d.kernel and d.missing then return "none: " .. d.missing end
  return (d.kernel or d.version or "?") .. (d.cuda and (", for CUDA up to %d.%d"):format(unpack(d.cuda)) or "")
    .. (d.missing and "; " .. d.missing or "")
end

local function rows_of(facts)
  local rows, c = {}, facts.cpu
  local function row(name, text) rows[#rows + 1] = { name, text } end
  row("driver", driver_text(facts.driver))
  row("CUDA", (facts.cuda.built and "built with " .. facts.cuda.built .. ", whose runtime is in the program; "
    or "not built with its toolkit; ") .. (facts.cuda.missing or ("GPUs it finds: %d"):format(facts.cuda.devices)))
  row("cuBLASLt", facts.cublas.version or "none: " .. facts.cublas.missing)
  row("NCCL", facts.nccl.version or "none: " .. facts.nccl.missing)
  for _, g in ipairs(facts.gpus) do row(("GPU %d"):format(g.number), gpu_text(g)) end
  for _, r in ipairs(link_rows(facts.links)) do rows[#rows + 1] = r end
  row("CPU", c.text)
  row("cores", ("%d%s, %d compute threads"):format(c.cores, c.quota and (" (time of %.1f)"):format(c.quota) or "", c.threads))
  row("memory", ("%s of %s available%s"):format(c.available and gib(c.available) or "?", c.total and gib(c.total) or "?",
    c.limit and (" (%s)"):format(c.limit) or ""))
  row("limits", table.concat(facts.limits.process, ", "))
  row("/dev/shm", facts.limits.shm_free and gib(facts.limits.shm_free) .. " free" or "none")
  local locked = facts.limits.locked
  row("locked", locked == math.huge and "no limit" or locked and "at most " .. units.size(locked) or "?")
  row("libraries", ("%s, Gloo %s"):format(facts.libraries.text or "?", facts.libraries.gloo and "loads" or "missing"))
  row("models", ("%s: %s"):format(facts.cache.folder, facts.cache.models and ("%d in the Hugging Face cache"):format(
    facts.cache.models) or "there is no Hugging Face cache"))
  for i, t in ipairs(facts.tests) do row(i == 1 and "tests" or "", ("%s: %s"):format(t.name, test_text(t))) end
  return rows
end

local function print_report(facts, wrong, verdict)
  say.line(report.block(("lorarun %s (%s)"):format(facts.lorarun, facts.lua), rows_of(facts)))
  for _, f in ipairs(wrong) do say.line(("\n%s: %s\n  cure: %s"):format(f.level, f.what, f.cure)) end
  say.line("\n" .. verdict)
end

-- JSON has no infinity: no limit is null.
local function print_json(facts, wrong, works, verdict)
  if facts.limits.locked == math.huge then facts.limits.locked = json.null end
  facts.findings, facts.works, facts.verdict = json.array(wrong), works, verdict
  for _, name in ipairs { "gpus", "links", "tests" } do json.array(facts[name]) end
  json.array(facts.limits.process)
  say.line(json.encode(facts, { indent = 2, sort_keys = true }))
end

--- run(words): the command with the words after `doctor`. Returns the exit status.
function doctor.run(words)
  if words[1] == "--self-test" then
    self_test(words[2], words[3])
    return 0
  elseif words[1] == "--help" or words[1] == "-h" then
    io.write(USAGE)
    return 0
  elseif words[1] and words[1] ~= "--json" or words[2] then
    check.fail("lorarun doctor does not know '%s' (lorarun doctor --help)", words[2] or words[1])
  end
  local facts = gather()
  local wrong = diagnose.of(facts)
  local works, verdict = diagnose.verdict(facts)
  if words[1] then print_json(facts, wrong, works, verdict) else print_report(facts, wrong, verdict) end
  return works and 0 or 1
end

return doctor
