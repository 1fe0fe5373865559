-- comm.lua: lr.comm: collectives of the ranks of a job.
--
--   lr.comm.rank, .world_size              this rank, from 0, and the number of ranks; 0 and 1 in a process without a job
--   lr.comm.local_rank, .local_world_size  the same among the ranks of this machine
--   local loss = lr.comm.all_reduce(loss, "mean")
--
-- Every rank makes the same calls in the same order. If ranks differ in the call or in sizes, each of them gets an error that says
-- which rank called what, and the next call works. After any other failure (a rank lost, a timeout, Ctrl-C) this rank is no longer
-- connected; comm.rejoin() on all ranks connects them again. With one rank all collectives are identities without a connection.
--
-- Unlike other calls, a collective is not repeated after it ran out of memory, since the other ranks have gone on.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local autograd = require "lorarun.tensor.autograd"
local check = require "lorarun.base.check"
local suggest = require "lorarun.base.suggest"
local tensor = require "lorarun.tensor.tensor"
local using = require "lorarun.base.using"

local comm = { rank = 0, world_size = 1, local_rank = 0, local_world_size = 1 }

local REDUCE = { sum = C.LR_SUM, mean = C.LR_SUM, max = C.LR_MAX, min = C.LR_MIN }
local REDUCE_NUMBER = {
  sum = function(a, b) return a + b end,
  max = function(a, b) return (a ~= a or a >= b) and a or b end, -- NaN wins, as in C
  min = function(a, b) return (a ~= a or a <= b) and a or b end,
}
REDUCE_NUMBER.mean = REDUCE_NUMBER.sum

local job -- the job that this process joined: { handle, store, server, options, rejoined }, or nil
local block, size = ffi.new "char *[1]", ffi.new "int64_t[1]"
local number = ffi.new "double[1]"

-- ---- joining ---------------------------------------------------------------------------------------------------------------
local DEFAULTS = { rank = 0, world_size = 1, local_rank = 0, local_world_size = 1, host = "127.0.0.1", port = 29500, secret = false,
  generation = 0, timeout = 600, serve = false }

local function new_handle(store, options, group)
  local handle, o = ffi.new "lr_comm *[1]", ffi.new "lr_comm_options"
  o.group, o.host, o.timeout, o.rank, o.world_size = group, options.host, options.timeout, options.rank, options.world_size
  check(C.lr_comm_new(handle, store, o))
  return ffi.gc(handle[0], C.lr_comm_free)
end

local function free(cdata, how)
  if cdata then how(ffi.gc(cdata, nil)) end
end

local function disconnect(j)
  free(j.handle, C.lr_comm_free)
  free(j.store, C.lr_store_close)
  free(j.server, C.lr_store_server_stop)
end

local function connect(j)
  local o = j.options
  local secret = o.secret or nil
  if o.serve and o.rank == 0 then
    local server = ffi.new "lr_store_server *[1]"
    check(C.lr_store_serve(server, o.host, o.port, secret, o.world_size))
    j.server = ffi.gc(server[0], C.lr_store_server_stop)
  end
  local store, who = ffi.new "lr_store *[1]", ffi.new "lr_store_member"
  who.secret, who.rank, who.world_size, who.generation = secret, o.rank, o.world_size, o.generation
  check(C.lr_store_connect(store, o.host, o.port, who, o.timeout))
  j.store = ffi.gc(store[0], C.lr_store_close)
  j.handle = new_handle(j.store, o, tostring(o.generation))
end

--- join { rank=, world_size=, local_rank=, local_world_size=, host=, port=, secret=, generation=, timeout=, serve= }: become a
--- rank of a job.
---   host, port    where the job's store is served: by the launcher or, with serve = true, by rank 0 itself
---   secret        needed where the store is not on this machine alone; the same for all ranks
---   generation    0, and one more after every restart of all ranks
---   timeout       seconds that a collective, or joining, may take (600)
--- Returns when all ranks have joined.
function comm.join(options)
  if job then check.fail("this process has joined already, as rank %d of %d; comm.leave() first", comm.rank, comm.world_size) end
  suggest.refuse_unknown("comm.join", options, DEFAULTS)
  local o = {}
  for name, default in pairs(DEFAULTS) do
    o[name] = options[name] == nil and default or options[name]
  end
  local j = { options = o, rejoined = 0 }
  if o.world_size > 1 then
    using.made(j, disconnect, connect)
  else
    j.handle = new_handle(nil, o)
  end
  job = j
  comm.rank, comm.world_size, comm.local_rank, comm.local_world_size = o.rank, o.world_size, o.local_rank, o.local_world_size
end

--- Leave the others. A rank that still waits for this one gets an error.
function comm.leave()
  if not job then return end
  disconnect(job)
  job = nil
  comm.rank, comm.world_size, comm.local_rank, comm.local_world_size = 0, 1, 0, 1
end

--- rejoin(): connect again after an error that ended the connections. All ranks call it equally often.
function comm.rejoin()
  if not job or job.options.world_size == 1 then return end
  free(job.handle, C.lr_comm_free)
  job.handle = nil
  job.rejoined = job.rejoined + 1
  job.handle = new_handle(job.store, job.options, ("%d.%d"):format(job.options.generation, job.rejoined))
end

--- connected(): false after a failure that ended this rank's connections.
function comm.connected() return job == nil or job.handle ~= nil and C.lr_comm_connected(job.handle) ~= 0 end

--- store(): the connection to the job's store (an lr_store), or nil in a process without a job.
function comm.store() return job and job.store end

-- Call a function of C with the job's communicator, or without a job with one of a single rank that is freed after the call.
local function call(fn, ...)
  if job then
    if not job.handle then check.fail "this rank is not connected: an earlier comm.rejoin() failed" end
    return check(fn(job.handle, ...))
  end
  local single = new_handle(nil, DEFAULTS)
  local status = fn(single, ...)
  free(single, C.lr_comm_free)
  return check(status)
end

-- ---- bytes -----------------------------------------------------------------------------------------------------------------
-- The text that C wrote into `block`, which is freed.
local function take_block(length)
  local text = ffi.string(block[0], length)
  C.lr_free(block[0])
  return text
end

local function checked_string(text, what)
  if type(text) ~= "string" then check.fail("%s wants a string, got %s", what, type(text)) end
  return text
end

--- broadcast_bytes(text, root): the root's string of any bytes, on all ranks. The arguments of the others are not used.
function comm.broadcast_bytes(text, root)
  root = root or 0
  if comm.rank == root then checked_string(text, "comm.broadcast_bytes") else text = nil end
  call(C.lr_comm_broadcast_bytes, text, text and #text or 0, root, block, size)
  return take_block(tonumber(size[0]))
end

--- all_gather_bytes(text) -> { string of rank 0, string of rank 1, ... }. They may differ in length and be empty.
function comm.all_gather_bytes(text)
  checked_string(text, "comm.all_gather_bytes")
  local n = comm.world_size
  local sizes = ffi.new("int64_t[?]", n)
  call(C.lr_comm_all_gather_bytes, text, #text, block, sizes)
  local list, at = {}, 0
  for rank = 0, n - 1 do
    local length = tonumber(sizes[rank])
    list[rank + 1] = ffi.string(block[0] + at, length)
    at = at + length
  end
  C.lr_free(block[0])
  return list
end

-- ---- tensors and numbers ---------------------------------------------------------------------------------------------------
local function is_tensor(x) return getmetatable(x) == tensor.Tensor end

local function checked_tensor(x, what)
  if not is_tensor(x) then check.fail("%s wants a tensor, got %s", what, type(x)) end
  autograd.refuse(x, what)
  return x
end

-- Every rank reduces all numbers in rank order: the same bits everywhere.
local function reduce_number(x, op)
  number[0] = x
  local sum
  for rank, text in ipairs(comm.all_gather_bytes(op .. "\0" .. ffi.string(number, 8))) do
    local theirs = text:match "^(%a+)%z"
    if theirs ~= op then
      check.fail("comm.all_reduce of a number: rank %d wants %s, rank %d %s", comm.rank, op, rank - 1, theirs or "something else")
    end
    ffi.copy(number, text:sub(-8), 8)
    local value = tonumber(number[0])
    sum = sum and REDUCE_NUMBER[op](sum, value) or value
  end
  return op == "mean" and sum / comm.world_size or sum
end

--- all_reduce(x, op): x of all ranks as one. op: "sum" (default), "mean", "max", "min".
---   x a tensor   overwritten, and returned: element by element, rounded to its dtype; "mean" is for floating point only
---   x a number   a new number, computed in double precision: exact for whole numbers below 2^53
--- All ranks get the same bits.
function comm.all_reduce(x, op)
  op = op or "sum"
  local reduce = REDUCE[op] or check.fail("comm.all_reduce: there is no '%s'; there are sum, mean, max, min", tostring(op))
  if type(x) == "number" then return reduce_number(x, op) end
  checked_tensor(x, "comm.all_reduce")
  if op == "mean" and (x.dtype == "i32" or x.dtype == "i64") then
    check.fail("comm.all_reduce: '%s' is %s; the mean is for floating point", x.name, x.dtype)
  end
  call(C.lr_comm_all_reduce, x.handle, reduce)
  if op == "mean" and comm.world_size > 1 then
    tensor.scope(function()
      local m = x:matrix().handle
      check(C.lr_op_add(m, m, m, 1 / comm.world_size, 0))
    end)
  end
  return x
end

--- all_gather(t): the rows of all ranks' t, which has the same shape everywhere, in rank order: [world_size * rows, ...].
function comm.all_gather(t)
  checked_tensor(t, "comm.all_gather")
  local out = tensor.new({ comm.world_size * t.shape[1], unpack(t.shape, 2) }, t.dtype, t.name, t.device)
  call(C.lr_comm_all_gather, out.handle, t.handle)
  return out
end

--- all_gather_rows(t[, width]) -> matrix [sum of rows, width], { rows of rank 0, rows of rank 1, ... }. Ranks may have different
--- numbers of rows; one without rows passes nil and the width. Where no rank has rows, the result is nil and the counts.
function comm.all_gather_rows(t, width)
  if t then checked_tensor(t, "comm.all_gather_rows") end
  if t and #t.shape ~= 2 then check.fail("comm.all_gather_rows: '%s' is no matrix", t.name) end
  width = t and t.shape[2] or tonumber(width) or check.fail "comm.all_gather_rows: a rank without rows must pass their width"
  local mine = t and ("%d %d %s %s"):format(t.shape[1], width, t.dtype, t.device) or ("0 %d - -"):format(width)
  local counts, total, dtype, device = {}, 0, nil, nil
  for i, text in ipairs(comm.all_gather_bytes(mine)) do
    local rows, their_width, their_dtype, their_device = text:match "^(%d+) (%d+) (%S+) (%S+)$"
    if not rows then check.fail("comm.all_gather_rows: rank %d gathers something else", i - 1) end
    if tonumber(their_width) ~= width then
      check.fail("comm.all_gather_rows: rank %d has rows of %d, rank %d of %d", comm.rank, width, i - 1, tonumber(their_width))
    end
    counts[i] = tonumber(rows)
    total = total + counts[i]
    if counts[i] > 0 then dtype, device = dtype or their_dtype, device or their_device end
  end
  if total == 0 then return nil, counts end
  local out = tensor.new({ total, width }, dtype, t and t.name or "gathered rows", device)
  call(C.lr_comm_all_gather, out.handle, t and t.handle or nil)
  return out, counts
end

--- broadcast(t, root): the root's values (rank 0) into t of every rank; returns t.
function comm.broadcast(t, root)
  call(C.lr_comm_broadcast, checked_tensor(t, "comm.broadcast").handle, root or 0)
  return t
end

--- barrier(): returns when all ranks have called it.
function comm.barrier() call(C.lr_comm_barrier) end

-- ---- one rank for all ------------------------------------------------------------------------------------------------------
--- on_rank_0(fn): run fn on rank 0 while the others wait. If it fails, all ranks get its error, so none waits for a rank that has
--- ended. Returns what fn returned on rank 0, nothing elsewhere. fn must not call collectives.
function comm.on_rank_0(fn)
  if comm.rank ~= 0 then
    local why = comm.broadcast_bytes(nil, 0)
    if why ~= "" then check.fail_as_well("rank 0: " .. why) end
    return
  end
  local function finish(ok, ...)
    local why = ok and "" or tostring((...))
    local told, failure = pcall(comm.broadcast_bytes, (ok or why ~= "") and why or "it failed without a message", 0)
    if not ok then error((...), 0) end
    if not told then error(failure, 0) end
    return ...
  end
  return finish(pcall(fn))
end

return comm
