-- The collectives on CUDA tensors through NCCL: one rank, and two ranks that share one GPU. With LORARUN_SIMT=1, where CUDA's
-- kernels run on the CPU, through tests/nccl/fake_nccl.c; LORARUN_TEST_NCCL=fake says that this library is in use.
if not require("lorarun").has_gpu() then skip "no GPU" end
local fake = os.getenv "LORARUN_TEST_NCCL" == "fake"
if os.getenv "LORARUN_SIMT" and not fake then skip "NCCL needs a GPU, not CUDA's kernels on the CPU" end
local fs = require "lorarun.base.fs"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local ranks = dofile(os.getenv "LORARUN_TESTS" .. "/dist/ranks.lua")

local function environment(rank)
  local env = ranks.one_gpu(rank)
  env.FAKE_NCCL_tells = 1
  return env
end

-- Did NCCL's communicator end on this rank, once and in this way: "destroyed" after work, "aborted" after a failure?
local function check_ended(result, how)
  if not fake then return end
  local ends = {}
  for word in result.err:gmatch "fake NCCL: (%a+)\n" do ends[#ends + 1] = word end
  check.equal(table.concat(ends, " "), how, result.err)
end

local function run(n, code)
  local results = ranks.run { n, code, timeout = 120, seconds = 300, env = environment }
  for rank, r in ipairs(results) do
    check.equal(r.status, 0, ("status of rank %d, which said '%s',"):format(rank - 1, r.err))
  end
  return results
end

-- Sums, maxima, different numbers of rows and a broadcast, at odd sizes. All ranks print the same.
local CODE = [[
  local tensor = require "lorarun.tensor.tensor"
  local function values(count, base)
    local list = {}
    for i = 1, count do list[i] = base + i % 7 end
    return tensor.from(list, { count }, "f32", "values", "cuda")
  end
  for _, count in ipairs { 1, 3, 1001, 1000003 } do
    local t = comm.all_reduce(values(count, rank))
    local list = t:to_table()
    for i = 1, count do
      local expected = n * (n - 1) / 2 + n * (i % 7)
      assert(list[i] == expected, ("sum of %d: element %d is %g, expected %g"):format(count, i, list[i], expected))
    end
    t:free()
  end
  print(comm.all_reduce(values(3, rank), "max"):to_table()[1])
  local rows, counts = comm.all_gather_rows(rank > 0 and tensor.from({ 1, 2, 3, 4 }, { 2, 2 }, "f32", "rows", "cuda") or nil, 2)
  print(rows and rows.shape[1] or 0, table.concat(counts, " "))
  print(comm.broadcast(values(5, rank * 100), n - 1):to_table()[1])
  comm.barrier()
]]

test("one rank", function()
  check.equal(run(1, CODE)[1].out, "1\n0\t0\n1\n")
end)

test("two ranks on one GPU", function()
  local results = run(2, CODE)
  check.equal(results[1].out, "2\n2\t0 2\n101\n")
  check.equal(results[2].out, results[1].out)
  for _, r in ipairs(results) do check_ended(r, "destroyed") end
end)

-- Two ranks whose second collective does not end. `after`: what rank 1 does after the first one; more: variables of rank 0,
-- or of rank `which`.
local function broken(after, timeout, more, which)
  return ranks.start { 2, ([[
    local tensor = require "lorarun.tensor.tensor"
    local t = tensor.from({ 1, 2 }, { 2 }, "f32", "values", "cuda")
    comm.all_reduce(t)
    if rank == 1 then %s end
    comm.all_reduce(t)
  ]]):format(after), timeout = timeout, env = function(rank)
    local env = environment(rank)
    for name, value in pairs(rank == (which or 0) and more or {}) do env[name] = value end
    return env
  end }
end

test("a rank that has ended is soon an error on the others", function()
  local results = broken("os.exit(3)", 60):wait()
  check.equal(results[2].status, 3)
  check.that(results[1].status ~= 0 and results[1].status ~= 3, "status of rank 0: " .. results[1].status)
  check.that(results[1].err ~= "", "rank 0 said nothing")
end)

-- Launches ranks on a machine with this many GPUs; returns what each says about its own.
local function launched(processes, gpus)
  local result
  shell.with_folder(function(folder)
    local script = fs.join(folder, "ranks.lua")
    fs.write(script, [[
      local lr = require "lorarun"
      local job = lr.launch { processes = ]] .. processes .. [[ }
      local gpu, id = require "lorarun.dist.gpu", require("ffi").new "char[64]"
      local C = require "lorarun.base.c"
      assert(C.lr_device_uuid(C.LR_CUDA, -1, id, 64) == 0)
      local three = lr.comm.all_reduce(require("lorarun.tensor.tensor").full({ 1 }, job.rank + 1)):item()
      local mine = { job.device, require("ffi").string(id), gpu.ranks(), three }
      for rank, text in ipairs(lr.comm.all_gather_bytes(table.concat(mine, " "))) do
        if job.rank == 0 then print(rank - 1, text) end
      end
    ]])
    result = shell.run(("LORARUN_SIMT=%d $L %s"):format(gpus, script))
  end)
  return result
end

if fake then
  test("each launched rank has its own GPU", function()
    local r = launched(2, 2)
    check.equal(r.status, 0, r.err)
    local gpu = "GPU-00000000-0000-0000-0000-%012d"
    check.equal(r.out, ("0\tcuda %s 1 3\n1\tcuda %s 1 3\n"):format(gpu:format(0), gpu:format(1)))
    r = launched("1, gpu_ids = '1'", 2)
    check.equal(r.out, ("0\tcuda %s 1 1\n"):format(gpu:format(1)), r.err)
    r = launched("2, gpu_ids = '2,0'", 3)
    check.equal(r.status, 0, r.err)
    r = launched("1, gpu_ids = '2'", 2)
    check.equal(r.status, 1)
    check.that(r.err:find("gpu_ids is 2 (recipe), and the GPUs here are numbered 0 to 1", 1, true), r.err)
    r = launched("2, gpu_ids = '7,8'", 2)
    check.that(r.err:find("gpu_ids is 7,8 (recipe), and the GPUs here are numbered 0 to 1", 1, true), r.err)
    r = launched(3, 2)
    check.equal(r.status, 1)
    check.that(r.err:find("3 ranks on this machine need a GPU each, and it has 2", 1, true), r.err)
  end)

  test("ranks that share a GPU are refused when they meet", function()
    local code, free_port = 'lr.launch {} print "met"', ranks.free_port()
    local function torchrun(rank)
      return { RANK = rank, WORLD_SIZE = 2, LOCAL_RANK = rank, LOCAL_WORLD_SIZE = 2, MASTER_PORT = free_port, LORARUN_SIMT = 1 }
    end
    for _, r in ipairs(ranks.run { 2, code, join = false, serve = false, env = torchrun }) do
      check.equal(r.status, 1)
      check.equal(r.out, "")
      check.that(r.err:find("2 ranks have the same GPU, and each needs one of its own", 1, true), r.err)
    end
  end)

  test("a step's collectives before the first step leave the gradients as they are", function()
    local results = run(2, [[
      local tensor = require "lorarun.tensor.tensor"
      local t = tensor.zeros({ 1003 }, "f32", "gradients", "cuda")
      require("lorarun.dist.data_parallel").connect({ exchange = t }, { 6, 32 })
      for _, x in ipairs(t:to_table()) do assert(x == 0) end
      print(comm.all_reduce(tensor.full({ 1 }, rank + 1, "f32", "x", "cuda")):item())
    ]])
    check.equal(results[1].out, "3\n")
  end)

  test("ranks know when they share a GPU", function()
    for _, r in ipairs(run(2, 'print(require("lorarun.dist.gpu").ranks())')) do check.equal(r.out, "2\n") end
  end)

  test("a failure of NCCL is an error of all ranks that says which collective it was", function()
    local results = broken("", 60, { FAKE_NCCL_fails = 2 }):wait()
    for _, r in ipairs(results) do
      check.equal(r.status, 1, r.err)
      check_ended(r, "aborted")
    end
    check.that(results[1].err:find "all_reduce %(collective %d+%): ncclAllReduce: remote process exited", results[1].err)
    check.that(results[1].seconds < 20 and results[2].seconds < 20, "a rank waited for the other")
  end)

  test("the others soon name a rank that is killed while NCCL works", function()
    local job = broken("print 'here'", 60, { FAKE_NCCL_hangs = 2 }, 1)
    job:await(1, "here")
    os.execute "sleep 0.3" -- both ranks are in the second collective now
    job:kill(1)
    local results = job:wait()
    check.equal(results[2].status, 137)
    check.equal(results[1].status, 1)
    check.that(results[1].err:find("lost rank 1: the connection was closed", 1, true), results[1].err)
    check_ended(results[1], "aborted")
    check.that(results[1].seconds < 20, "rank 0 waited")
  end)

  test("a collective that does not end is given up after the timeout", function()
    local results = broken("", 2, { FAKE_NCCL_hangs = 2 }):wait()
    for _, r in ipairs(results) do
      check.equal(r.status, 1, r.err)
      check.that(r.err:find("all_reduce", 1, true), r.err)
      check_ended(r, "aborted")
    end
  end)
end
