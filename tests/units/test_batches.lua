-- The stream of micro-batches: any number of ranks share the same draws; each pair goes to exactly one rank, with the keys that it
-- has in a job of one rank. The test plays the ranks one after the other: batches.lua takes only rank and world size from comm.
local ffi = require "ffi"
local batches = require "lorarun.data.batches"
local dataset = require "lorarun.data.dataset"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local run_settings = require "lorarun.train.run_settings"
local load_tokenizer = require("lorarun.formats.tokenizer").load_tokenizer
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local COLUMNS = { "a", "b" }

-- Calls fn(set, model) with a data set of `rows` pairs of many lengths.
local function with_set(rows, fn)
  shell.with_folder(function(folder)
    local lines = {}
    for i = 1, rows do lines[i] = json.encode { a = ("x "):rep(i % 11) .. "y", b = ("z "):rep(i * i % 37) .. "y" } end
    local path = fs.join(folder, "rows.jsonl")
    fs.write(path, table.concat(lines, "\n") .. "\n")
    local set = dataset.open(path, { columns = { { name = "a", kind = "text" }, { name = "b", kind = "text" } } })
    local tokenizer = load_tokenizer(fs.join(os.getenv "LORARUN_TESTS", "golden", "bert"))
    fn(set, { tokenizer = tokenizer, max_length = 24 })
    set:close()
    tokenizer:free()
  end)
end

-- The micro-batches of a rank in steps first..last-1: per micro-batch { step, rows, own, tokens, sequences = { key, ids } ... }.
local function stream(set, model, world, rank, options)
  local labels = ffi.new("double[?]", set.rows)
  for i = 0, set.rows - 1 do labels[i] = i end
  local s = batches.new { set = set, model = model, columns = COLUMNS, draws = set.rows, labels = labels,
    sample = function(draw) return draw * 7 % set.rows end, batch = options.batch, accumulate = options.accumulate or 1,
    part = options.part, passes = options.passes, first_step = options.first or 0, last_step = options.last,
    ranks = { rank = rank, world_size = world } }
  local list = {}
  for i = 1, options.micro_batches do
    local packed, info = s:next()
    local sequences, longest = {}, {}
    for k = 0, packed.sequences - 1 do
      local ids = {}
      for t = packed.cu_seqlens[k], packed.cu_seqlens[k + 1] - 1 do ids[#ids + 1] = packed.ids[t] end
      sequences[k + 1] = { key = tonumber(packed.keys[packed.cu_seqlens[k]]) / 65536, ids = table.concat(ids, " ") }
    end
    for k = 0, 2 * #info.rows - 1 do
      local c = k < #info.rows and 1 or 2
      longest[c] = math.max(longest[c] or 0, info.lengths[k])
    end
    check.equal(s:padded_tokens(info), #info.rows * (longest[1] + longest[2]), "padded tokens")
    if #info.own > 0 then
      check.array(s:label_tensor(info.own):to_table(), info.own, 0, "labels") -- the label of a row is its number
    end
    list[i] = { step = info.step, rows = info.rows, own = info.own, last = info.last, total = info.total, tokens = info.tokens,
      batch = info.batch, from = info.from, pass = info.pass, ends = info.ends, most = info.most_tokens,
      packed_tokens = packed.tokens, sequences = sequences }
  end
  s:close()
  return list
end

test("every rank has its share of one rank's batches: rows, order, ids and keys", function()
  with_set(50, function(set, model)
    for _, case in ipairs { { world = 2, batch = 8 }, { world = 3, batch = 4, accumulate = 2 }, { world = 4, batch = 1 } } do
      local world, accumulate = case.world, case.accumulate or 1
      local steps = math.ceil(50 / (case.batch * world * accumulate)) + 1 -- one epoch (its last step is smaller), one more step
      local micro = math.ceil(50 / (case.batch * world)) + accumulate
      local alone = stream(set, model, 1, 0, { batch = case.batch * world, accumulate = accumulate, last = steps,
        micro_batches = micro })
      local parts = {}
      for rank = 0, world - 1 do
        parts[rank] = stream(set, model, world, rank, { batch = case.batch, accumulate = accumulate, last = steps,
          micro_batches = micro })
      end
      for m, one in ipairs(alone) do
        check.equal(#one.own, #one.rows, "one rank has all")
        check.equal(one.tokens, one.packed_tokens)
        local by_key, rows, tokens, most = {}, 0, 0, 0
        for _, sequence in ipairs(one.sequences) do by_key[sequence.key] = sequence.ids end
        local left = #one.sequences
        for rank = 0, world - 1 do
          local part = parts[rank][m]
          check.array(part.rows, one.rows, 0, "rows of all ranks")
          check.equal(part.step, one.step)
          check.equal(part.last, one.last)
          check.equal(part.total, one.total)
          check.equal(part.tokens, one.tokens, "tokens of all ranks")
          local before = -1
          for k, sequence in ipairs(part.sequences) do
            check.equal(sequence.ids, by_key[sequence.key], "a sequence by its key")
            by_key[sequence.key] = nil
            left = left - 1
            if k == #part.own + 1 then before = -1 end -- the second column begins
            check.that(sequence.key > before, "the order is kept in each column")
            before = sequence.key
          end
          rows, tokens, most = rows + #part.own, tokens + part.packed_tokens, math.max(most, part.packed_tokens)
        end
        check.equal(left, 0, "sequences that no rank has")
        check.equal(rows, #one.rows)
        check.equal(tokens, one.tokens)
        check.equal(parts[0][m].most, most, "tokens of the fullest rank")
      end
    end
  end)
end)

test("parts of a batch: its rows in order with their keys, no part across two batches, repeated for each of the passes", function()
  with_set(50, function(set, model)
    for _, world in ipairs { 1, 2 } do
      -- one epoch (3 steps of 16 and one of 2), and the first half of the next
      local options = { batch = 8 / world, accumulate = 2, last = 5, micro_batches = 8 }
      local whole = stream(set, model, world, world - 1, options)
      for _, passes in ipairs { 1, 2 } do
        -- 8 pairs make parts of 3 + 3 + 2, or of 4 + 4 on two ranks; the last step has 2 pairs
        options.part, options.passes = world == 1 and 3 or 2, passes
        options.micro_batches = passes * (7 * (world == 1 and 3 or 2) + 1)
        local parts, at = stream(set, model, world, world - 1, options), 1
        for _, batch in ipairs(whole) do
          local keys = {}
          for _, sequence in ipairs(batch.sequences) do keys[sequence.key] = sequence.ids end
          for pass = 1, passes do
            local from, rows = 0, 0
            repeat
              local part = parts[at]
              check.equal(part.step, batch.step)
              check.equal(part.total, batch.total)
              check.equal(part.batch, #batch.rows)
              check.equal(part.pass, pass)
              check.equal(part.from, from)
              for i, row in ipairs(part.rows) do check.equal(row, batch.rows[from + i]) end
              from, rows = from + #part.rows, rows + 1
              check.equal(part.ends, from == #batch.rows, "the pass ends")
              check.equal(part.last, part.ends and pass == passes and batch.last, "the step ends")
              if world == 1 then
                for _, s in ipairs(part.sequences) do check.equal(s.ids, keys[s.key], "a sequence by its key") end
              end
              at = at + 1
            until part.ends
            check.equal(rows, math.ceil(#batch.rows / (options.part * world)), "parts")
          end
        end
        check.equal(at, #parts + 1)
      end
    end
  end)
end)

test("a stream that begins at a later step gives the same batches as one from the start", function()
  with_set(50, function(set, model)
    local whole = stream(set, model, 2, 1, { batch = 3, accumulate = 2, last = 12, micro_batches = 22 })
    local later = stream(set, model, 2, 1, { batch = 3, accumulate = 2, first = 5, last = 12, micro_batches = 12 })
    local at = 0
    while whole[at + 1].step < 5 do at = at + 1 end
    for m, part in ipairs(later) do
      check.equal(part.step, whole[at + m].step)
      check.array(part.own, whole[at + m].own, 0, "rows")
      for k, sequence in ipairs(part.sequences) do
        check.equal(sequence.key, whole[at + m].sequences[k].key)
        check.equal(sequence.ids, whole[at + m].sequences[k].ids)
      end
    end
  end)
end)

test("the messages about a run that resumes with other settings", function()
  local before = { world_size = 4, batch = 8, accumulate = 1, global_batch = 32, total_steps = 100, compared = 32, seed = 1,
    threads = 2 }
  local function said(changed)
    local now = {}
    for name, value in pairs(before) do now[name] = value end
    for name, value in pairs(changed) do now[name] = value end
    return table.concat(run_settings.changes(before, now), "\n")
  end
  check.equal(said {}, "")
  check.equal(said { world_size = 2, batch = 16, threads = 4 }, "4 ranks of 8 pairs began the run, 2 ranks of 16 pairs go on: a "
    .. "step takes the same 32 pairs, in the same order; results agree up to rounding")
  check.equal(said { threads = 4 }, "warning: threads was 2 when the checkpoint was written and is 4 now: the run will not end in "
    .. "the same bits")
  check.equal(said { world_size = 1, accumulate = 4, compared = 8 }, "4 ranks of 8 pairs began the run, 1 rank of 8 pairs 4 times "
    .. "go on: a step takes the same 32 pairs, in the same order; results agree up to rounding\n"
    .. "warning: the loss compares 8 pairs with each other instead of 32")
  check.equal(said { world_size = 2, global_batch = 16, total_steps = 200 }, "warning: 4 ranks of 8 pairs began the run, 2 ranks "
    .. "of 8 pairs go on: a step takes 16 pairs instead of 32, so the rows that follow are not those that would have followed. "
    .. "The order is kept where ranks x batch x accumulate stays 32")
  check.equal(said { total_steps = 50 }, "warning: the run has 50 steps instead of 100")
  check.equal(said { seed = 2 }, "warning: seed was 1 when the checkpoint was written and is 2 now: the run will not end in the "
    .. "same bits")
end)
