-- Limits of the system: those of control groups, read from file trees made up here, and those of a process, which a shell's ulimit
-- sets before it runs the program. Reaching a limit is one error that names it, and never a signal.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local fs = require "lorarun.base.fs"
local hardware = require "lorarun.dist.hardware"
local memory = require "lorarun.tensor.memory"
local tensor = require "lorarun.tensor.tensor"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local MB = 1000 * 1000
local bert = shell.quote(fs.join(os.getenv "LORARUN_TESTS", "golden", "bert"))
local has_spare_addresses = not os.getenv "ASAN_OPTIONS" -- the sanitizer takes most of a process's addresses for itself

-- Calls fn() with these files as /proc and /sys: { ["/sys/fs/cgroup/a/memory.max"] = "1000" }.
local function with_tree(files, fn)
  shell.with_folder(function(root)
    for path, text in pairs(files) do
      fs.make(fs.dirname(root .. path))
      fs.write(root .. path, text .. "\n")
    end
    C.lr_limits_root(root)
    local ok, err = pcall(fn)
    C.lr_limits_root ""
    if not ok then error(err, 0) end
  end)
end

-- The memory that the groups allow, and the name of the tightest group.
local function left()
  local bound = ffi.new "lr_memory_bound"
  check.equal(C.lr_memory_left_by_group(bound), C.LR_OK)
  return tonumber(bound.left), ffi.string(bound.what)
end

local function expect(bytes, what)
  local have, name = left()
  check.equal(have, bytes)
  check.equal(name, what)
end

local function none()
  local _, name = left()
  check.equal(name, "")
end

test("version 2: the tightest limit of a group and the groups above it", function()
  local at = "/sys/fs/cgroup"
  local files = { ["/proc/self/cgroup"] = "0::/job/step/task", [at .. "/job/memory.max"] = "2000000000",
    [at .. "/job/memory.current"] = "500000000", [at .. "/job/memory.stat"] = "anon 1\nfile 9\ninactive_file 100000000\n"
      .. "active_file 40000000\nslab_reclaimable 10000000", [at .. "/job/step/memory.max"] = "max",
    [at .. "/job/step/memory.current"] = "400000000",
    [at .. "/job/step/task/memory.max"] = "max" }
  with_tree(files, function() expect(1650 * MB, "the control group /job allows 2.0 GB") end)
  files[at .. "/job/step/memory.max"] = "450000000" -- this group has no memory.stat
  with_tree(files, function() expect(50 * MB, "the control group /job/step allows 450.0 MB") end)
  files[at .. "/job/step/memory.current"] = "460000000"
  with_tree(files, function() expect(0, "the control group /job/step allows 450.0 MB") end)
end)

test("version 2: the root of a container is its own group, whatever its path on the host", function()
  for _, path in ipairs { "/", "/docker/0123456789", "/../../elsewhere" } do
    with_tree({ ["/proc/self/cgroup"] = "0::" .. path, ["/sys/fs/cgroup/memory.max"] = "1000000",
      ["/sys/fs/cgroup/memory.current"] = "400000" }, function() expect(600000, "the control group / allows 1.0 MB") end)
  end
end)

test("version 1, alone and beside version 2", function()
  local at = "/sys/fs/cgroup/memory/slurm"
  local files = { ["/proc/self/cgroup"] = "12:cpu,cpuacct:/\n5:memory:/slurm/job_7/step_0\n0::/init.scope",
    [at .. "/memory.limit_in_bytes"] = "9223372036854771712", [at .. "/memory.usage_in_bytes"] = "1",
    [at .. "/job_7/memory.limit_in_bytes"] = "800000000", [at .. "/job_7/memory.usage_in_bytes"] = "300000000",
    [at .. "/job_7/memory.stat"] = "cache 7\ninactive_file 5\nactive_file 2\ntotal_inactive_file 9000000\n"
      .. "total_active_file_x 3", -- the group's own value, and the sum with all groups below it, where the job's processes are
    [at .. "/job_7/step_0/memory.limit_in_bytes"] = "9223372036854771712" }
  with_tree(files, function() expect(800 * MB - 300 * MB + 9 * MB + 2, "the control group /slurm/job_7 allows 800.0 MB") end)
end)

test("no group, no limit, or nonsense in their files", function()
  with_tree({}, none)
  with_tree({ ["/proc/self/cgroup"] = "0::/a", ["/sys/fs/cgroup/a/memory.max"] = "max" }, none)
  with_tree({ ["/proc/self/cgroup"] = "0::/a", ["/sys/fs/cgroup/a/memory.max"] = "lots" }, none)
  with_tree({ ["/proc/self/cgroup"] = "nonsense\n1:2\n::\n5:cpu:/a", ["/sys/fs/cgroup/a/memory.max"] = "1" }, none)
end)

test("available memory: as much as the tightest limit leaves, and the name of that limit", function()
  local before = memory.available()
  with_tree({ ["/proc/self/cgroup"] = "0::/a", ["/sys/fs/cgroup/a/memory.max"] = "1000000" }, function()
    local bytes, what = memory.available()
    check.equal(bytes, MB)
    check.equal(what, "the control group /a allows 1.0 MB")
    local cpu = hardware.cpu()
    check.equal(cpu.limit, what)
    check.equal(cpu.available, MB)
  end)
  check.that(before > MB)
end)

test("processor time: that of the tightest group, in both versions", function()
  with_tree({ ["/proc/self/cgroup"] = "0::/a/b", ["/sys/fs/cgroup/a/cpu.max"] = "150000 100000",
    ["/sys/fs/cgroup/a/b/cpu.max"] = "max 100000" }, function() check.equal(hardware.cpu().quota, 1.5) end)
  with_tree({ ["/proc/self/cgroup"] = "3:cpu,cpuacct:/a/b", ["/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us"] = "50000",
    ["/sys/fs/cgroup/cpu/a/cpu.cfs_period_us"] = "100000", ["/sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us"] = "-1",
    ["/sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us"] = "100000" }, function() check.equal(hardware.cpu().quota, 0.5) end)
  with_tree({}, function() check.equal(hardware.cpu().quota, nil) end)
end)

test("a tensor that is too large for the control group is an error, before the kernel kills the process", function()
  C.lr_memory_release_cached(C.LR_CPU)
  with_tree({ ["/proc/self/cgroup"] = "0::/job/task", ["/sys/fs/cgroup/job/memory.max"] = "50000000",
    ["/sys/fs/cgroup/job/memory.current"] = "10000000" }, function()
    check.raises("(the control group /job allows 50.0 MB, of which 40.0 MB are left)", tensor.new, { 20 * MB }, "f32", "large",
      "cpu")
    tensor.new({ 2 * MB }, "f32", "fits", "cpu"):free()
  end)
  C.lr_memory_release_cached(C.LR_CPU)
end)

-- Run code under a limit, with two compute threads on any machine.
local function under(limit, code, words)
  return shell.run(("ulimit %s; OMP_NUM_THREADS=${T:-2} $L %s -e %s"):format(limit, words or "", shell.quote(code)))
end

local function refused(r, ...)
  check.equal(r.status, 1, "status, with " .. r.err)
  for _, part in ipairs { ... } do check.that(r.err:find(part, 1, true), ("'%s' is missing in: %s"):format(part, r.err)) end
  check.equal(select(2, r.err:gsub("lorarun: ", "")), 1, "errors in " .. r.err)
end

local ENCODE = ("print(lr.load_model(%s):encode({ 'a text', 'another' }).shape[1])"):format(bert)

test("few addresses (ulimit -v) are enough, and too few are an error", function()
  if not has_spare_addresses then return end
  for _, kilobytes in ipairs { 4000000, 700000 } do
    local r = under("-v " .. kilobytes, ENCODE)
    check.equal(r.err, "")
    check.equal(r.out, "2\n")
  end
  local r = shell.run("ulimit -s 1000000; ulimit -v 3000000; OMP_NUM_THREADS=4 $L -e " .. shell.quote(ENCODE)) -- stacks of 1 GB
  check.equal(r.out, "2\n", r.err)
  refused(under("-v 200000", ENCODE), "no addresses are left for tensors (ulimit -v: 204.8 MB)")
  refused(under("-v 700000", "lr.tensor.new({ 100e6 }, 'f32', 'big')"), "out of cpu memory: 400000000 bytes for big, 0 held",
    "(ulimit -v: 716.8 MB)")
  refused(under("-v 300000", "local t = {} for i = 1, 1e9 do t[i] = { i } end"),
    "not enough memory for Lua's tables and strings (ulimit -v: 307.2 MB)")
  r = shell.run("ulimit -v 300000; OMP_NUM_THREADS=64 $L -e 'lr.launch {}'")
  refused(r, " of 64 compute threads can be started (ulimit -v: 307.2 MB", "set OMP_NUM_THREADS to fewer")
end)

test("variables of OpenMP that take threads away change no result", function()
  local code = ("local d = lr.load_model(%s):encode { 'a text', 'another' }:data() print(d[0], d[50], lr.threads())"):format(bert)
  local function run(variables) return shell.run(variables .. " $L -e " .. shell.quote(code)).out end
  local one, two = run "OMP_NUM_THREADS=1", run "OMP_NUM_THREADS=2"
  check.equal(one:match "^(.-)%d\n$", two:match "^(.-)%d\n$")
  check.equal(run "OMP_NUM_THREADS=2 OMP_DYNAMIC=true", two)
  check.equal(run "OMP_NUM_THREADS=2 OMP_MAX_ACTIVE_LEVELS=0", two)
  check.equal(run "OMP_NUM_THREADS=2 OMP_THREAD_LIMIT=1", one)
  check.equal(run "OMP_NUM_THREADS=2 ONEDNN_DEFAULT_FPMATH_MODE=ANY DNNL_DEFAULT_FPMATH_MODE=ANY", two)
end)

test("libraries that cannot handle a lack of memory are not called when memory is short", function()
  if not has_spare_addresses then return end
  refused(under("-v unlimited", ([[
    local ffi, model = require "ffi", lr.load_model(%s)
    ffi.cdef "typedef struct { unsigned long most, hard; } limit; int setrlimit(int, const limit *);"
    local pages = tonumber(io.open "/proc/self/statm":read "*n")
    local most = pages * 4096 + 8e6
    ffi.C.setrlimit(9, ffi.new("limit", most, most)) -- the limit of addresses
    model:encode { "a text" }]]):format(bert)), "oneDNN", "ulimit -v")
end)

test("a small stack (ulimit -s) applies to the main thread alone", function()
  if not has_spare_addresses then return end
  check.equal(under("-s 64", ENCODE).out, "2\n")
end)

test("data (ulimit -d)", function()
  if not has_spare_addresses then return end
  refused(under("-d 200000", "lr.tensor.new({ 60e6 }, 'f32', 'big')"), "(ulimit -d: 204.8 MB, of which ")
  check.equal(under("-d 400000", ENCODE).out, "2\n")
end)

test("files: their size (ulimit -f) and their number (ulimit -n)", function()
  shell.with_folder(function(folder)
    local path = fs.join(folder, "file")
    refused(under("-f 8", ("lr.fs.write(%q, ('x'):rep(20000))"):format(path)), "cannot write " .. path, "(ulimit -f: ")
    check.equal(#fs.list(folder), 0, "files left over")
    refused(under("-f 8", ("lr.fs.append(%q, ('x'):rep(20000)) lr.fs.append(%q, 'x')"):format(path, path)),
      "cannot append to " .. path)
    local r = under("-f 8", ("lr.launch { model = %s, output = %q }"):format(bert, fs.join(folder, "out")), "--num-processes 2")
    check.that(r.status == 1 and r.err:find("a file may not grow so large here (ulimit -f: ", 1, true), r.err)
    fs.remove(fs.join(folder, "out"))
  end)
  refused(under("-n 16", "lr.launch {}", "--num-processes 2"), "Too many open files (ulimit -n: 16 open files)")
end)

test("the launcher's checks know the limits", function()
  local preflight, settings = require "lorarun.dist.preflight", require "lorarun.dist.settings"
  settings.forget()
  local model = fs.join(os.getenv "LORARUN_TESTS", "golden", "bert")
  with_tree({ ["/proc/self/cgroup"] = "0::/a/b", ["/sys/fs/cgroup/a/memory.max"] = "100000" }, function()
    check.raises("are left (the control group /a allows 100.0 KB); start fewer ranks on this machine", preflight.check,
      settings.resolve { processes = 2, use_cpu = true }, { model = model }, function() end)
    check.raises("; raise the limit", preflight.check, settings.resolve { use_cpu = true }, { model = model }, function() end)
  end)
end)
