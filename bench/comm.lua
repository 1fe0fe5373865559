-- The collectives between ranks of this machine, which talk over TCP:
--   lorarun bench/comm.lua [--ranks 2] [--times 50]
-- Each rank has one compute thread. Times are medians on rank 0; all ranks enter a collective together, after a barrier.
local lr = require "lorarun"
local ranks = dofile((arg[0]:match "^(.*)/" or ".") .. "/../tests/dist/ranks.lua")

local args = lr.args {
  { "ranks", 2, "how many", min = 2 },
  { "times", 50, "each collective", min = 1 },
}

local results = ranks.run { args.ranks, ([[
  local C = require "lorarun.base.c"
  local function median(what, fn)
    local list = {}
    for i = 1, %d do
      comm.barrier()
      local t = C.lr_time()
      fn()
      list[i] = (C.lr_time() - t) * 1e3
    end
    table.sort(list)
    local ms = list[math.ceil(#list / 2)]
    if rank == 0 then print(("%%-44s %%8.3f ms  (%%.3f to %%.3f)"):format(what, ms, list[1], list[#list])) end
    return ms
  end
  median("barrier", comm.barrier)
  median("all_reduce of a number", function() comm.all_reduce(1) end)
  for _, size in ipairs { 1000, 147456, 1769472, 6881280 } do
    local t = lr.tensor.zeros { size }
    local ms = median(("all_reduce of %%d floats (%%.1f MiB)"):format(size, size / 2 ^ 18), function() comm.all_reduce(t) end)
    if rank == 0 and size > 1e5 then
      print(("%%44s %%8.2f GB/s sent by each rank"):format("", 2 * (n - 1) / n * 4 * size / ms / 1e6))
    end
    t:free()
  end
  local embeddings = lr.tensor.zeros { 64, 384 }
  median("all_gather of 64 rows of 384 floats", function() comm.all_gather(embeddings):free() end)
]]):format(args.times), seconds = 600 }
for rank, result in ipairs(results) do
  if result.status ~= 0 then error(("rank %d failed: %s"):format(rank - 1, result.err), 0) end
end
print(("%d ranks, one thread each"):format(args.ranks))
io.write(results[1].out)
