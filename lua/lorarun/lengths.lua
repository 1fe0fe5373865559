-- lengths.lua: how many tokens the rows of a data set have, and so the batches that a run will make of them.
local ffi = require "ffi"
local batches = require "lorarun.batches"
local comm = require "lorarun.comm"
local data = require "lorarun.data"

local lengths = {}

local ROWS_A_BATCH = 256 -- that the loader's threads tokenise at a time

--- of_rows(set, tokenizer, o, rows, count): tokens of each of `count` rows, an int32_t array: all texts of a row together. rows: C
--- array of row numbers, or nil for the first `count`. o: { columns, prefixes, max_length, threads }
function lengths.of_rows(set, tokenizer, o, rows, count)
  local result, width = ffi.new("int32_t[?]", count), #o.columns
  local loader = data.loader(set, tokenizer, { columns = o.columns, prefixes = o.prefixes, max_length = o.max_length,
    threads = o.threads or 1 })
  local ok, err = pcall(function()
    local submitted, done = 0, 0
    while done < count do
      while submitted < count and loader:room() > 0 do
        local picked, columns, keys = {}, {}, {}
        for i = submitted, math.min(submitted + ROWS_A_BATCH, count) - 1 do
          for c = 1, width do
            local k = #picked + 1
            picked[k], columns[k], keys[k] = rows and rows[i] or i, c - 1, 0
          end
        end
        loader:submit(picked, columns, keys)
        submitted = submitted + #picked / width
      end
      local packed = loader:next()
      local cu = packed.cu_seqlens
      for i = 0, packed.sequences / width - 1 do result[done + i] = cu[(i + 1) * width] - cu[i * width] end
      done = done + packed.sequences / width
    end
  end)
  loader:close()
  if not ok then error(err, 0) end
  return result
end

--- largest_batch(o, row_tokens): the most tokens that a rank will have in a micro-batch of the steps o.first_step to o.last_step,
--- and the step it is in. o: draws, sample, batch, accumulate as batches.new takes them; row_tokens[row]: tokens of a row. Where
--- several ranks share a batch, theirs differ by at most the longest row.
function lengths.largest_batch(o, row_tokens)
  local world = comm.world_size
  local most, at = 0, o.first_step
  for step = o.first_step, o.last_step - 1 do
    local first, total = batches.range(step, o.draws, o.batch * o.accumulate * world)
    for from = 0, total - 1, o.batch * world do
      local tokens, longest = 0, 0
      for draw = first + from, first + math.min(from + o.batch * world, total) - 1 do
        local n = row_tokens[o.sample(draw)]
        tokens, longest = tokens + n, math.max(longest, n)
      end
      tokens = math.ceil(tokens / world) + (world > 1 and longest or 0)
      if tokens > most then most, at = tokens, step + 1 end
    end
  end
  return most, at
end

return lengths
