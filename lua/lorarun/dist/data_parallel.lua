-- data_parallel.lua: what training on several ranks needs beyond training on one. With one rank nothing here moves a byte.
--
-- Every rank runs the same loop over the same numbers: it knows the rows of every micro-batch, the rank that has each, and their
-- lengths. So a step exchanges one all-reduce, and one gather of embeddings where a loss compares all pairs. Whatever ranks decide
-- from (losses, scores, signals) is the same bits on all of them, so that they always decide alike.
local ffi = require "ffi"
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local device_traits = require "lorarun.tensor.device_traits"
local autograd = require "lorarun.tensor.autograd"
local comm = require "lorarun.dist.comm"
local json = require "lorarun.base.json"
local ops = require "lorarun.tensor.ops"
local tensor = require "lorarun.tensor.tensor"

local data_parallel = {}

-- ---- rank 0 speaks for all -----------------------------------------------------------------------------------------------------
--- Stands for an object whose work is rank 0's: it has every method, and none does anything.
data_parallel.silent = setmetatable({}, { __index = function() return function() end end })

--- from_rank_0(fn): call fn on rank 0 alone and return what it returned, a table or value that JSON has, on every rank. An error
--- of fn is an error on every rank.
function data_parallel.from_rank_0(fn)
  local result
  comm.on_rank_0(function() result = fn() end)
  if comm.world_size == 1 then return result end
  local text = comm.broadcast_bytes(comm.rank == 0 and json.encode { result = result } or nil, 0)
  if comm.rank ~= 0 then result = json.decode(text, "what rank 0 sent").result end
  return result
end

--- first_on_machine(fn): call fn on every rank, on the first of each machine before the others: the files that it writes are made
--- once a machine, and the others find them. An error on a first rank is an error on every rank.
function data_parallel.first_on_machine(fn)
  if comm.world_size == 1 then return fn() end
  local first, ok, err = comm.local_rank == 0, true, nil
  if first then ok, err = pcall(fn) end
  for rank, text in ipairs(comm.all_gather_bytes(ok and "" or tostring(err))) do
    if text ~= "" then error(rank - 1 == comm.rank and err or ("rank %d: %s"):format(rank - 1, text), 0) end
  end
  if not first then fn() end
end

--- agree(when, values): raise an error on every rank where the ranks' values (names to numbers or strings) are not all alike; it
--- names the ranks that most of the others contradict.
function data_parallel.agree(when, values)
  if comm.world_size == 1 then return end
  local list = comm.all_gather_bytes(json.encode(values))
  local counts, common = {}, nil
  for _, text in ipairs(list) do
    counts[text] = (counts[text] or 0) + 1
    if not common or counts[text] > counts[common] then common = text end
  end
  if counts[common] == #list then return end
  local expected, differences = json.decode(common), {}
  for i, text in ipairs(list) do
    local theirs = json.decode(text)
    local function compare(names)
      for name in pairs(names) do
        local text_there = ("%s is %s on rank %d and %s on others"):format(name, tostring(theirs[name]), i - 1,
          tostring(expected[name]))
        if theirs[name] ~= expected[name] and not differences[text_there] then
          differences[text_there] = true
          differences[#differences + 1] = text_there
        end
      end
    end
    compare(theirs)
    compare(expected)
  end
  table.sort(differences)
  check.fail("%s the ranks differ: %s", when, table.concat(differences, "; "))
end

--- checksum(t): of a tensor's bytes, for agree().
function data_parallel.checksum(t)
  local values = t:data()
  return C.lr_crc32c(0, values, ffi.sizeof(values))
end

-- ---- the sum over ranks --------------------------------------------------------------------------------------------------------
data_parallel.SIGUSR1 = 10

--- ending(signal): the signal where it is one that ends the run, or nil. SIGUSR1 asks for a checkpoint, and the run goes on.
function data_parallel.ending(signal) return signal ~= 0 and signal ~= data_parallel.SIGUSR1 and signal or nil end

local SIGNALS = { 15, 2, data_parallel.SIGUSR1 } -- SIGTERM, SIGINT; where several arrived, the first of these counts

--- connect(parameters, gathered): run the collectives of a step once, over the gradients before there are any and over a tensor of
--- the shape `gathered` (or nil). NCCL takes its memory at its first collective, so it has it before free memory is measured.
function data_parallel.connect(parameters, gathered)
  local exchange = parameters.exchange
  if comm.world_size == 1 or not device_traits.itself(exchange.device).asynchronous then return end
  comm.all_reduce(exchange, "sum")
  if not gathered then return end
  tensor.scope(function() comm.all_gather(tensor.zeros(gathered, "f32", "embeddings", exchange.device)) end)
end

--- reduce(parameters): add up all ranks' gradients, their shares of the loss and the signals that arrived, in one all-reduce.
--- Returns the seconds that took, slower ranks included. One rank alone waits for nothing.
function data_parallel.reduce(parameters)
  if comm.world_size == 1 then return 0 end
  local values, pending = ffi.new("float[?]", parameters.signals:elements()), C.lr_signal_pending()
  for i, number in ipairs(SIGNALS) do values[i - 1] = pending == number and 1 or 0 end
  parameters.signals:write(values)
  parameters.loss:data() -- waits for the device, so that what follows is the exchange alone
  local started = C.lr_time()
  comm.all_reduce(parameters.exchange, "sum")
  return C.lr_time() - started
end

--- outcome(parameters): the scalars of a step: its loss, the gradient's norm, an fp16 run's scale of the loss (nil in other
--- precisions), and, where there are several ranks, the signal that arrived at any of them (0: none), which all see after the same
--- step. Waits for the device, once.
function data_parallel.outcome(parameters)
  local values = parameters.step_scalars:data()
  local signal = 0
  for i = #SIGNALS, 1, -1 do
    if values[i] > 0 then signal = SIGNALS[i] end
  end
  local last = parameters.step_scalars:elements() - 1
  local scale = values[last - 1] > 0 and values[last - 1] or nil
  return values[0], values[last], scale, comm.world_size > 1 and signal or nil
end

-- ---- the embeddings of all ranks -----------------------------------------------------------------------------------------------
-- Row k of the ranks' embeddings is place[k] where they lie one rank after the other, each column by column, and k is the order of
-- one rank alone. own: the rows that are this rank's.
local function places(owner, pairs_, columns, ranks)
  local lists = {}
  for rank = 0, ranks.world_size - 1 do lists[rank] = {} end
  for i = 0, pairs_ - 1 do table.insert(lists[owner[i]], i) end
  local place, own, at = ffi.new("int32_t[?]", columns * pairs_), {}, 0
  for rank = 0, ranks.world_size - 1 do
    for c = 0, columns - 1 do
      for _, i in ipairs(lists[rank]) do
        place[c * pairs_ + i] = at
        at = at + 1
        if rank == ranks.rank then own[#own + 1] = c * pairs_ + i end
      end
    end
  end
  return place, own
end

--- gather(e, owner, pairs, columns, width, ranks): the embeddings [columns * pairs, width] of a whole micro-batch, in the order in
--- which one rank alone would have them, out of every rank's own e (nil where it has none). owner: the rank that has each pair.
--- ranks: { rank, world_size }, other than those of the job for a step on the meta device only. Recorded: each rank's gradient is
--- that of its own rows, and since every rank computes the whole loss, the sum over ranks is the whole gradient.
function data_parallel.gather(e, owner, pairs_, columns, width, ranks)
  local place, own = places(owner, pairs_, columns, ranks)
  local rows = columns * pairs_
  local planned = e and e.device == "meta" -- a step that is only counted sends nothing
  local theirs = planned and tensor.new({ rows, width }, e.dtype, "embeddings", "meta")
    or autograd.no_grad(comm.all_gather_rows, e, width) -- recorded below, with its places
  local all = ops.gather_rows(theirs, tensor.from(place, { rows }, "i32", "places", theirs.device))
  theirs:release()
  if e then
    local mine = tensor.from(own, { #own }, "i32", "places", e.device)
    autograd.record({ e }, { all }, { mine }, function(d_all) return ops.gather_rows(d_all, mine) end)
  end
  return all
end

return data_parallel
