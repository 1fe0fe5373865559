-- test_comm.lua: what the collectives of lr.comm compute, on 1, 2 and 4 ranks, and what happens when ranks differ, die or stall.
local ranks = dofile(os.getenv "LORARUN_TESTS" .. "/dist/ranks.lua")
local lr = require "lorarun"
local comm = lr.comm

-- Runs code on n ranks; every rank must succeed. Returns what each printed.
local function outputs(n, code, options)
  options = options or {}
  options[1], options[2] = n, code
  local list = {}
  for i, result in ipairs(ranks.run(options)) do
    check.equal(result.status, 0, ("status of rank %d of %d, which said '%s'"):format(i - 1, n, result.err .. result.out))
    list[i] = result.out
  end
  return list
end

-- ---- results ---------------------------------------------------------------------------------------------------------------
-- The ranks check their own results and print "ok". Element i on rank r is (7 r + 3 i) % 11 - 5, which is exact in every dtype.
local RESULTS = [[
  local ffi, C, check = require "ffi", require "lorarun.base.c", require "lorarun.base.check"
  local function value(r, i) return (7 * r + 3 * i) % 11 - 5 end
  local CTYPE = { f32 = "float[?]", i32 = "int32_t[?]", i64 = "int64_t[?]" }
  local function make(size, dtype)
    if dtype == "bf16" or dtype == "f16" then return lr.ops.cast(make(size, "f32"):matrix(), dtype):view { size } end
    local data = ffi.new(CTYPE[dtype], size)
    for i = 0, size - 1 do data[i] = value(rank, i) end
    return lr.tensor.from(data, { size }, dtype)
  end
  local reduced = {
    sum = function(i) local s = 0 for r = 0, n - 1 do s = s + value(r, i) end return s end,
    max = function(i) local s = -99 for r = 0, n - 1 do s = math.max(s, value(r, i)) end return s end,
    min = function(i) local s = 99 for r = 0, n - 1 do s = math.min(s, value(r, i)) end return s end,
  }
  reduced.mean = function(i) return reduced.sum(i) / n end
  local function expect(t, want, what)
    local data, size = t:data()
    for i = 0, size - 1, size > 5000 and 997 or 1 do
      if tonumber(data[i]) ~= want(i) then error(("%s[%d] is %s, expected %s"):format(what, i, tonumber(data[i]), want(i))) end
    end
  end
  for _, size in ipairs { 1, 3, 511, 513, 1001, 1e6 } do
    for _, dtype in ipairs { "f32", "bf16", "f16", "i32", "i64" } do
      if size < 1e6 or dtype == "f32" then
        lr.scope(function()
          for _, op in ipairs { "sum", "max", "min", "mean" } do
            if op ~= "mean" or dtype == "f32" then
              local t = make(size, dtype)
              if comm.all_reduce(t, op) ~= t then error "all_reduce does not return its tensor" end
              expect(t, reduced[op], ("all_reduce(%s) of %d %s"):format(op, size, dtype))
            end
          end
          local all = comm.all_gather(make(size, dtype))
          if #all.shape ~= 1 or all.shape[1] ~= n * size then error "the shape of all_gather" end
          expect(all, function(i) return value(math.floor(i / size), i % size) end, "all_gather")
          for root = 0, n - 1 do
            local t = make(size, dtype)
            if rank ~= root then t:fill(77) end
            expect(comm.broadcast(t, root), function(i) return value(root, i) end, "broadcast")
          end
        end)
      end
    end
  end
  local wide = comm.all_gather(lr.tensor.full({ 2, 3, 5 }, rank))
  if table.concat(wide.shape, ",") ~= 2 * n .. ",3,5" then error "the shape of a wide all_gather" end
  comm.barrier()
  print "ok"
]]
for _, n in ipairs { 1, 2, 4 } do
  test(("tensors on %d ranks"):format(n), function()
    for _, out in ipairs(outputs(n, RESULTS, { seconds = 300 })) do check.equal(out, "ok\n") end
  end)
end

test("numbers", function()
  for _, n in ipairs { 1, 3 } do
    local out = outputs(n, [[
      print(comm.all_reduce(rank + 1), comm.all_reduce(rank + 1, "mean"), comm.all_reduce(n - rank, "max"),
        comm.all_reduce(n - rank, "min"), ("%d"):format(comm.all_reduce(rank == 0 and 2 ^ 53 - 4 or 1)),
        tostring(comm.all_reduce(rank == 0 and 0 / 0 or 1, "max")):find "nan" ~= nil,
        tostring(comm.all_reduce(rank == n - 1 and 0 / 0 or 1, "min")):find "nan" ~= nil)
    ]])
    for rank = 1, n do
      check.equal(out[rank], (n == 1 and "1\t1\t1\t1\t9007199254740988" or "6\t2\t3\t1\t9007199254740990") .. "\ttrue\ttrue\n")
    end
  end
end)

test("strings of any size, also empty ones", function()
  for _, n in ipairs { 1, 2, 4 } do
    local out = outputs(n, [[
      local sizes = { 0, 1, 3, 2047, 2048, 2049, 1e6 }
      for k, size in ipairs(sizes) do
        local all = comm.all_gather_bytes(string.char(65 + rank):rep(size))
        if #all ~= n then error "count" end
        for r = 0, n - 1 do if all[r + 1] ~= string.char(65 + r):rep(size) then error("bytes of rank " .. r) end end
        all = comm.all_gather_bytes(string.char(65 + rank):rep(sizes[(k + rank) % #sizes + 1])) -- different sizes
        for r = 0, n - 1 do
          if all[r + 1] ~= string.char(65 + r):rep(sizes[(k + r) % #sizes + 1]) then error("bytes of rank " .. r) end
        end
        for root = 0, n - 1 do
          local text = ("\0%d"):format(root):rep(size)
          if comm.broadcast_bytes(rank == root and text or nil, root) ~= text then error "broadcast_bytes" end
        end
      end
      print "ok"
    ]])
    for rank = 1, n do check.equal(out[rank], "ok\n") end
  end
end)

test("rows: different counts, none on some ranks, none at all", function()
  local out = outputs(4, [[
    local function mine(count, width) return count > 0 and lr.tensor.full({ count, width }, rank) or nil end
    for _, unit in ipairs { 1, 700 } do
      local t, counts = comm.all_gather_rows(mine(rank * unit, 3), 3)
      if t.shape[1] ~= 6 * unit or t.shape[2] ~= 3 then error "shape" end
      local rows, at = t:to_table(), 1
      for r = 0, 3 do
        if counts[r + 1] ~= r * unit then error "counts" end
        for _ = 1, r * unit do
          if rows[at][1] ~= r or rows[at][3] ~= r then error "rows" end
          at = at + 1
        end
      end
    end
    local none, counts = comm.all_gather_rows(nil, 3)
    print(none, table.concat(counts, " "))
    print(select(2, pcall(comm.all_gather_rows, mine(1, 2 + rank % 2))):match "rows: (.*)")
  ]])
  for rank = 0, 3 do
    check.equal(out[rank + 1], ("nil\t0 0 0 0\nrank %d has rows of %d, rank %d of %d\n"):format(
      rank, 2 + rank % 2, (rank + 1) % 2, 3 - rank % 2))
  end
end)

test("sums have the same bits on all ranks and in every run", function()
  local code = [[
    local t = lr.tensor.new { 100003 }
    local C, check = require "lorarun.base.c", require "lorarun.base.check"
    check(C.lr_tensor_uniform(t.handle, rank + 1, 1, -1, 1))
    comm.all_reduce(t)
    local small = lr.tensor.new { 301 }
    check(C.lr_tensor_uniform(small.handle, rank + 1, 2, -1, 1))
    comm.all_reduce(small)
    local ffi = require "ffi"
    local function sum(x) -- of the bits
      local data, size = x:data()
      local words, s = ffi.cast("uint32_t *", data), 0
      for i = 0, size - 1 do s = (s * 31 + words[i]) % 4294967291 end
      return s
    end
    print(sum(t), sum(small), ("%.17g"):format(comm.all_reduce(0.1 + rank / 3)))
  ]]
  for _, n in ipairs { 2, 4 } do
    local first = outputs(n, code)
    for rank = 2, n do check.equal(first[rank], first[1]) end
    check.equal(outputs(n, code)[1], first[1], "the second run")
  end
end)

test("without joining there is one rank", function()
  check.equal(comm.rank, 0)
  check.equal(comm.world_size, 1)
  check.equal(comm.all_reduce(5), 5)
  check.equal(comm.broadcast_bytes "x", "x")
  lr.scope(function()
    check.array(comm.all_gather(lr.tensor.from({ 1, 2 })):to_table(), { 1, 2 })
    check.array(comm.all_reduce(lr.tensor.from({ 1, 2 }), "mean"):to_table(), { 1, 2 })
    comm.all_reduce(lr.tensor.new({ 4 }, "f32", "planned", "meta"))
  end)
  comm.barrier()
  comm.join { rank = 0, world_size = 1 }
  check.raises("joined already, as rank 0 of 1", comm.join, {})
  comm.leave()
  check.raises("no option 'ranks'", comm.join, { ranks = 2 })
  check.raises("there is no rank 3 among 1", comm.join, { rank = 3 })
  check.raises("there is no 'product'; there are sum, mean, max, min", comm.all_reduce, 1, "product")
  check.raises("there is no rank 1 among 1", comm.broadcast, lr.tensor.zeros { 2 }, 1)
  check.raises("wants a tensor, got string", comm.all_reduce, "x")
end)

-- ---- ranks that differ -----------------------------------------------------------------------------------------------------
test("ranks that differ get one error each, and go on", function()
  local out = outputs(3, [[
    local function try(what, fn)
      local ok, err = pcall(fn)
      print(what, ok, (tostring(err):gsub("^%S+:%d+: ", "")))
    end
    local function zeros(size, dtype) return lr.tensor.zeros({ size }, dtype) end
    try("kind", function() if rank == 1 then comm.barrier() else comm.all_reduce(zeros(1001)) end end)
    try("size", function() comm.all_reduce(zeros(rank == 2 and 5000 or 4000)) end)
    try("dtype", function() comm.all_reduce(zeros(5, rank == 0 and "i32" or "f32")) end)
    try("op", function() comm.all_reduce(zeros(5), rank == 0 and "max" or "sum") end)
    try("number op", function() comm.all_reduce(1, rank == 0 and "max" or "sum") end)
    try("root", function() comm.broadcast(zeros(5), rank) end)
    try("gather", function() comm.all_gather(zeros(rank + 1)) end)
    local gone = zeros(5)
    if rank == 1 then gone:free() end
    try("freed", function() comm.all_reduce(gone) end)
    try("strided", function() comm.broadcast(rank == 2 and lr.tensor.zeros({ 4, 4 }):slice_columns(0, 2) or zeros(8)) end)
    try("after", function() print(comm.all_reduce(1)) end)
  ]])
  for rank = 0, 2 do
    local text = out[rank + 1]
    local function has(part) check.that(text:find(part, 1, true), ("rank %d: no '%s' in:\n%s"):format(rank, part, text)) end
    has "kind\tfalse\tthe ranks do not agree on collective 2: ranks 0, 2 want all_reduce(sum) of 1001 f32; rank 1 wants barrier"
    has "size\tfalse\tthe ranks do not agree on collective 3: ranks 0, 1 want all_reduce(sum) of 4000 f32; rank 2 wants all_reduce"
    has "dtype\tfalse\tthe ranks do not agree on collective 4: rank 0 wants all_reduce(sum) of 5 i32; ranks 1, 2 want all_reduce"
    has "op\tfalse\tthe ranks do not agree on collective 5: rank 0 wants all_reduce(max) of 5 f32; ranks 1, 2 want all_reduce(sum)"
    has(rank == 0 and "number op\tfalse\tcomm.all_reduce of a number: rank 0 wants max, rank 1 sum"
      or ("number op\tfalse\tcomm.all_reduce of a number: rank %d wants sum, rank 0 max"):format(rank))
    has "root\tfalse\tthe ranks do not agree on collective 7: rank 0 wants broadcast of 5 f32 from rank 0; rank 1 wants"
    has "gather\tfalse\tthe ranks do not agree on collective 8: rank 0 wants all_gather into 3 f32; rank 1 wants"
    has(rank == 1 and "freed\tfalse\tall_reduce: the tensor ('tensor') was freed and is used again"
      or "freed\tfalse\trank 1 failed in all_reduce: all_reduce: the tensor ('tensor') was freed and is used again")
    has(rank == 2 and "strided\tfalse\tbroadcast: the tensor ('tensor') of shape [4, 2] has rows that do not follow each other"
      or "strided\tfalse\trank 2 failed in broadcast: broadcast: the tensor")
    has "3\nafter\ttrue"
  end
end)

test("rank 0 does the work for all, and all get its error", function()
  local out = outputs(2, [[
    print("value", comm.on_rank_0(function() return 7, 8 end))
    print("error", pcall(comm.on_rank_0, function() error("disk full", 0) end))
    print("odd", pcall(comm.on_rank_0, function() error("", 0) end))
    print(comm.all_reduce(1))
  ]])
  check.equal(out[1], "value\t7\t8\nerror\tfalse\tdisk full\nodd\tfalse\t\n2\n")
  check.equal(out[2], "value\nerror\tfalse\trank 0: disk full\nodd\tfalse\trank 0: it failed without a message\n2\n")
end)

-- ---- lost ranks ------------------------------------------------------------------------------------------------------------
-- Rank `victim` gets a signal while the others wait for it.
local function lose(n, victim, signal, code, timeout)
  local job = ranks.start { n, ([[
    print "joined"
    local t = lr.tensor.zeros { 300000 }
    if rank == %d then os.execute "sleep 100" end
    local ok, err = pcall(function() %s end)
    print(ok, (tostring(err):gsub("^%%S+:%%d+: ", "")))
    print(pcall(comm.barrier))
  ]]):format(victim, code), timeout = timeout or 60 }
  for rank = 0, n - 1 do job:await(rank, "joined") end
  os.execute "sleep 0.3" -- the others are in the collective now
  job:kill(victim, signal)
  local C = require "lorarun.base.c"
  local began = C.lr_time()
  for rank = 0, n - 1 do
    if rank ~= victim then job:await(rank, "this rank left the others before") end
  end
  local seconds = C.lr_time() - began
  job:kill(victim)
  return job:wait(), seconds
end

test("a peer that is killed is named within 5 seconds", function()
  for _, code in ipairs { "comm.all_reduce(t)", "comm.barrier()", "comm.all_gather(t)", "comm.broadcast(t, 2)" } do
    local results, seconds = lose(3, 1, "KILL", code)
    check.that(seconds < 5, ("it took %.1f s"):format(seconds))
    for _, rank in ipairs { 0, 2 } do
      check.equal(results[rank + 1].status, 0)
      check.that(results[rank + 1].out:find "false\t[%a_]+ %(collective 2%): lost ranks? [%d, ]*1[^%d]", results[rank + 1].out)
    end
    check.equal(results[2].status, 137)
  end
end)

test("the others end at their timeout when a peer is stopped", function()
  local results = lose(3, 2, "STOP", "comm.all_reduce(t)", 2)
  local named = 0
  for rank = 0, 1 do -- the first rank to give up names the one it waited for; the other rank may only see the first one leave
    local out = results[rank + 1].out
    if out:find("false\tall_reduce (collective 2): waited 2.0 s for rank 2\n", 1, true) then named = named + 1
    else check.that(out:find "false\tall_reduce %(collective 2%): lost ranks? ", out) end
  end
  check.that(named > 0, "nobody says that it waited for rank 2")
end)

test("joining: a rank that never connects, a wrong number of ranks", function()
  local results = ranks.run { 2, [[
    if rank == 1 then return end
    print(pcall(comm.join, { rank = 0, world_size = 2, port = tonumber(os.getenv "MASTER_PORT"), timeout = 1 }))
  ]], join = false }
  check.that(results[1].out:find("false\t.*rank 0 waited 1%.0 s for rank 1 to join"), results[1].out)
  results = ranks.run { 2, [[
    local ok, err = pcall(comm.join, { rank = rank, world_size = 2 + rank, port = tonumber(os.getenv "MASTER_PORT"), timeout = 20 })
    print(ok, err, comm.world_size)
  ]], join = false }
  for rank = 0, 1 do
    check.that(results[rank + 1].out:find "^false\t.+\t1\n$", results[rank + 1].out)
    check.that(results[rank + 1].out:find("3", 1, true), "the wrong number is not named: " .. results[rank + 1].out)
  end
end)

test("after a failure all ranks can connect again", function()
  local out = outputs(2, [[
    if rank == 1 then comm.rejoin() else
      local ok, err = pcall(comm.barrier)
      print(ok, tostring(err):match "lost rank 1")
      comm.rejoin()
    end
    print(comm.all_reduce(1))
  ]])
  check.equal(out[1], "false\tlost rank 1\n2\n")
  check.equal(out[2], "2\n")
end)

test("an interrupt ends a waiting collective on all ranks", function()
  local results = ranks.run { 2, [[
    local C = require "lorarun.base.c"
    if rank == 0 then
      C.lr_interrupt_enable(1)
      C.lr_interrupt_raise()
      print(pcall(comm.barrier))
      comm.leave()
    else
      os.execute "sleep 0.5"
      print(pcall(comm.barrier))
    end
  ]] }
  check.that(results[1].out:find("interrupted while waiting in barrier (collective 2)", 1, true), results[1].out)
  check.that(results[2].out:find "lost rank 0", results[2].out)
end)
