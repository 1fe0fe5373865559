-- The collectives on CUDA tensors through NCCL: one rank, and two ranks that share one GPU. NCCL refuses two ranks of a host on a
-- device, so each says that it is a host of its own, and they talk through sockets: slow, and the same arithmetic.
if not require("lorarun").has_gpu() then skip "no GPU" end
if os.getenv "LORARUN_SIMT" then skip "NCCL needs a GPU, not CUDA's kernels on the CPU" end
local ranks = dofile(os.getenv "LORARUN_TESTS" .. "/dist/ranks.lua")

local function run(n, code)
  local results = ranks.run { n, code, timeout = 120, seconds = 300, env = function(rank)
    return { NCCL_HOSTID = "host" .. rank, NCCL_SOCKET_IFNAME = "lo", NCCL_IB_DISABLE = 1, NCCL_MNNVL_ENABLE = 0 }
  end }
  for rank, r in ipairs(results) do
    check.equal(r.status, 0, ("status of rank %d, which said '%s',"):format(rank - 1, r.err))
  end
  return results
end

-- Sums, maxima, rows of different counts and a broadcast, at odd sizes. What a rank prints is the same on all of them.
local CODE = [[
  local tensor = require "lorarun.tensor"
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
end)

test("a rank that is gone is an error of the others, soon", function()
  local results = ranks.run { 2, [[
    local tensor = require "lorarun.tensor"
    local t = tensor.from({ 1, 2 }, { 2 }, "f32", "values", "cuda")
    comm.all_reduce(t)
    if rank == 1 then os.exit(3) end
    comm.all_reduce(t)
  ]], timeout = 60, seconds = 120, env = function(rank)
    return { NCCL_HOSTID = "host" .. rank, NCCL_SOCKET_IFNAME = "lo", NCCL_IB_DISABLE = 1, NCCL_MNNVL_ENABLE = 0 }
  end }
  check.equal(results[2].status, 3)
  check.that(results[1].status ~= 0 and results[1].status ~= 3, "status of rank 0: " .. results[1].status)
  check.that(results[1].err ~= "", "rank 0 said nothing")
end)
