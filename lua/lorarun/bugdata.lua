-- bugdata.lua: makes training data for bug detection from source code.
--
--   local bugdata = require "lorarun.bugdata"
--   local summary = bugdata.make { mutate = { "/usr/lib/python3" }, output = "data", seed = 1, max_rows = 30000 }
--   print(bugdata.describe(summary))
--
-- It writes train.jsonl, validation.jsonl, test.jsonl and summary.json to the output folder. docs/data.md tells what
-- is in them and every option (OPTIONS below holds the defaults). The same input, options and seed give the same bytes.
--
-- How a row comes about: a pair of texts, before and after a fix, is compared line by line. A line of the before text
-- that the fix removed or changed is buggy (score 0), every other line that is not blank is correct (score 1). Each
-- line makes three rows that differ in the context shown with it. A planted bug is such a pair, too: the mutated text
-- is before, the original after.
--
-- What keeps the splits apart (leakage would let a model look good by remembering):
--   - whole files are dealt out, never lines;
--   - files with a function in common, versions of one path and equal files form a group, which goes to one split;
--   - a row whose line, context and kind were already written to another split is dropped and counted.
--
-- What makes a small planted set learnable: bugs and correct lines in equal number, half of the correct ones lines
-- where a bug could have been planted (else "is it code?" would answer most rows), at most one bug per function, so a
-- context shows what is normal around it, and kinds weighted towards those that the text betrays (mutate.lua).
local check = require "lorarun.check"
local C = require "lorarun.c"
local fs = require "lorarun.fs"
local json = require "lorarun.json"
local diff = require "lorarun.diff"
local mutate = require "lorarun.mutate"
local source_tokens = require "lorarun.source_tokens"
local source_functions = require "lorarun.source_functions"
local sources = require "lorarun.bugdata_sources"
local text_hash = require "lorarun.text_hash"
local ffi = require "ffi"

local bugdata = {}

bugdata.SPLITS = { "train", "validation", "test" }
local SHARES = { train = 0.70, validation = 0.15, test = 0.15 }
bugdata.CONTEXTS = { "context_before", "context_after", "context_full" }
local NEAR = 3 -- lines above or below in context_before and context_after

-- Functions that tie two files together have at least this much text: shorter ones are alike by nature.
local SHARED_FUNCTION_LINES, SHARED_FUNCTION_BYTES = 5, 160

-- What draws are for (the purpose of lr_random).
local PURPOSE_ORDER, PURPOSE_BUGS, PURPOSE_CORRECT = 0x42440001, 0x42440002, 0x42440003

bugdata.OPTIONS = {
  seed = 1, extensions = "py,c,lua", max_files = 0, max_rows = 0, max_file_size = 262144, max_context = 2000,
  correct_per_buggy = "auto", similar = 0.5, bugs_per_file = 16, max_commits = 5000,
  message_pattern = sources.MESSAGE_PATTERN,
}

-- ---- options --------------------------------------------------------------------------------------------------------

local function list_of(value)
  if type(value) == "table" then return value end
  local list = {}
  for item in value:gmatch("[^,]+") do
    item = item:match("^%s*(.-)%s*$")
    if item ~= "" then list[#list + 1] = item end
  end
  return list
end

local function whole(options, name, least)
  local value = options[name]
  if type(value) ~= "number" or value % 1 ~= 0 or value < least then
    check.fail("--%s must be a whole number of at least %d, not %s", name:gsub("_", "-"), least, tostring(value))
  end
end

local function checked(given)
  local options = {}
  for name, value in pairs(bugdata.OPTIONS) do options[name] = value end
  for name, value in pairs(given) do
    if bugdata.OPTIONS[name] == nil and name ~= "pairs" and name ~= "git" and name ~= "mutate" and name ~= "output" then
      check.fail("bugdata.make has no option '%s'", tostring(name))
    end
    options[name] = value
  end
  for _, name in ipairs { "pairs", "git", "mutate" } do
    if options[name] == "" or (type(options[name]) == "table" and #options[name] == 0) then options[name] = nil end
    if options[name] then
      if options.source then
        check.fail("--%s and --%s: give one source of data, not two", options.source, name)
      end
      options.source = name
    end
  end
  if not options.source then
    check.fail("no source of data: give --pairs DIR (files *_before_merge.EXT and *_after_merge.EXT), --git REPOSITORY "
      .. "or --mutate DIR[,DIR...]")
  end
  if not options.output
    or options.output == "" then check.fail("--output is missing: the folder to write the data to") end
  if options.mutate then options.mutate = list_of(options.mutate) end

  local extensions = list_of(options.extensions)
  options.extensions = {}
  for _, extension in ipairs(extensions) do
    extension = extension:gsub("^%.", ""):lower()
    if not source_tokens.language(extension) then
      check.fail("--extensions: no language is known for '%s'; known are %s", extension,
        table.concat(source_tokens.extensions(), ", "))
    end
    options.extensions[extension] = true
  end
  if not next(options.extensions) then check.fail("--extensions is empty: name at least one, such as py") end

  for name, least in pairs { seed = 0, max_files = 0, max_rows = 0, max_file_size = 1, max_context = 80,
    bugs_per_file = 1,
    max_commits = 0 } do whole(options, name, least) end
  if type(options.similar) ~= "number" or not (options.similar >= 0 and options.similar <= 1) then
    check.fail("--similar must be a share between 0 and 1, not %s", tostring(options.similar))
  end
  if options.correct_per_buggy == "auto" then
    options.correct_per_buggy = options.mutate and 1 or 0
  else
    local number = tonumber(options.correct_per_buggy)
    if not number or number ~= number or number < 0 or number == math.huge then
      check.fail("--correct-per-buggy must be a number from 0 (all correct lines) up, or auto, not %s",
        tostring(options.correct_per_buggy))
    end
    options.correct_per_buggy = number
  end
  return options
end

-- ---- randomness -----------------------------------------------------------------------------------------------------

-- Draws for one name: rng(n) is a whole number below n. Independent of all other names, so neither the order of files
-- nor their number changes what happens to one of them.
local function generator(seed, purpose, name)
  local low, high = text_hash(name)
  local position = ffi.cast("uint64_t", low % 2 ^ 32) + ffi.cast("uint64_t", high % 2 ^ 32) * 2ULL ^ 32
  local words, step = ffi.new("uint32_t[4]"), 0
  return function(n)
    C.lr_random(seed, purpose, step, position, words)
    step = step + 1
    return math.floor(words[0] / 2 ^ 32 * n)
  end
end

-- `count` of the list's elements, any subset equally likely; the list is changed.
local function sample(list, count, rng)
  count = math.min(count, #list)
  for i = 1, count do
    local k = i + rng(#list - i + 1)
    list[i], list[k] = list[k], list[i]
  end
  local out = {}
  for i = 1, count do out[i] = list[i] end
  return out
end

-- ---- groups and splits ----------------------------------------------------------------------------------------------

-- Union-find over item numbers, tied by keys: whatever shares a key is one group.
local function new_groups()
  local groups, parent, first_with = {}, {}, {}
  local function find(i)
    while parent[i] ~= i do
      parent[i] = parent[parent[i]]
      i = parent[i]
    end
    return i
  end
  groups.find = find
  function groups.add(i) parent[i] = i end
  function groups.tie(i, key)
    local other = first_with[key]
    if not other then first_with[key] = i return end
    local a, b = find(i), find(other)
    if a ~= b then parent[math.max(a, b)] = math.min(a, b) end
  end
  return groups
end

-- Calls tie(key) for each function of a text that is long enough to be nobody's coincidence. Indentation does not
-- count.
local function tie_functions(lines, ranges, tie)
  for _, range in ipairs(ranges) do
    if range.kind == "function" then
      local kept = {}
      for i = range.first, math.min(range.last, #lines) do
        local line = lines[i]:match("^%s*(.-)%s*$")
        if line ~= "" then kept[#kept + 1] = line end
      end
      local text = table.concat(kept, "\n")
      if #kept >= SHARED_FUNCTION_LINES and #text >= SHARED_FUNCTION_BYTES then tie("function "
        .. text_hash.key(text)) end
    end
  end
end

-- Reads all items once; leaves out what is unusable or a duplicate; sets item.split. Groups are dealt out in the order
-- of their first item, each to the split that is furthest below its share so far of what the rows will come from
-- (lines; for planted bugs, the functions that will get one), so that small sets get all three splits, too.
local function assign_splits(source, items, options, skip)
  local groups, kept, seen = new_groups(), {}, {}
  source.each(items, function(item, before, after)
    local key = text_hash.key(before .. "\0" .. after)
    if seen[key] then return skip("duplicate of another file", item.name) end
    if before == after and source.kind ~= "mutate" then return skip("no difference", item.name) end
    seen[key] = true
    kept[#kept + 1] = item
    local i = #kept
    groups.add(i)
    item.key = key
    groups.tie(i, "text " .. text_hash.key(before))
    if item.group then groups.tie(i, "group " .. item.group) end
    local lines = diff.split(before)
    local ranges = source_functions.find(source_tokens.scan(before, source_tokens.language(item.name:gsub("@%x+$",
      ""))))
    tie_functions(lines, ranges, function(tied) groups.tie(i, tied) end)
    item.weight = source.kind == "mutate" and math.min(options.bugs_per_file, 1 + #ranges) or #lines
  end)

  local sizes, split_of, have, total = {}, {}, { train = 0, validation = 0, test = 0 }, 0
  for i, item in ipairs(kept) do
    local root = groups.find(i)
    sizes[root] = (sizes[root] or 0) + item.weight
  end
  for i, item in ipairs(kept) do
    local root = groups.find(i)
    if not split_of[root] then
      total = total + sizes[root]
      local best, lack
      for _, split in ipairs(bugdata.SPLITS) do
        local missing = SHARES[split] * total - have[split]
        if not lack or missing > lack then best, lack = split, missing end
      end
      split_of[root] = best
      have[best] = have[best] + sizes[root]
    end
    item.split = split_of[root]
  end
  return kept
end

-- ---- rows -----------------------------------------------------------------------------------------------------------

-- The lines of `before` that the step to `after` removes or changes. An insertion alone removes none; with
-- mark_insertions the line that stands where the missing ones belong counts (the last one, at the end of the file): a
-- planted lost line would be invisible else.
local function buggy_lines(before, after, mark_insertions)
  local buggy = {}
  for _, hunk in ipairs(diff.lines(before, after)) do
    for i = hunk.a_start, hunk.a_start + hunk.a_count - 1 do
      if before[i]:find("%S") then buggy[i] = true end
    end
    if hunk.a_count == 0 and mark_insertions then
      local i = hunk.a_start
      while before[i] and not before[i]:find("%S") do i = i + 1 end
      if before[i] then buggy[i] = true end
    end
  end
  return buggy
end

-- Whole lines around `line` within first..last: all of them where that is at most `limit` bytes, else as many as fit,
-- above and below in turn.
local function full_context(lines, line, first, last, limit)
  local size = last - first
  for i = first, last do
    size = size + #lines[i]
    if size > limit then break end
  end
  if size <= limit then return table.concat(lines, "\n", first, last) end
  local from, to = line, line
  size = #lines[line]
  while true do
    local grew = false
    if from > first and size + 1 + #lines[from - 1] <= limit then
      from, grew = from - 1, true
      size = size + 1 + #lines[from]
    end
    if to < last and size + 1 + #lines[to + 1] <= limit then
      to, grew = to + 1, true
      size = size + 1 + #lines[to]
    end
    if not grew then return table.concat(lines, "\n", from, to) end
  end
end

-- The correct lines to keep: all, or correct_per_buggy for each buggy one, drawn at random; `similar` of them from
-- site_lines.
local function choose_correct(options, item, lines, buggy, site_lines)
  local buggy_count, alike, others = 0, {}, {}
  for i = 1, #lines do
    if buggy[i] then
      buggy_count = buggy_count + 1
    elseif lines[i]:find("%S") then
      local list = site_lines and site_lines[i] and alike or others
      list[#list + 1] = i
    end
  end
  local chosen = {}
  if options.correct_per_buggy == 0 then
    for _, list in ipairs { alike, others } do
      for _, i in ipairs(list) do chosen[i] = true end
    end
    return chosen
  end
  local rng = generator(options.seed, PURPOSE_CORRECT, item.name)
  local wanted = math.floor(buggy_count * options.correct_per_buggy + 0.5)
  local from_alike = site_lines and math.floor(wanted * options.similar + 0.5) or 0
  local picked = sample(alike, from_alike, rng)
  for _, i in ipairs(alike) do chosen[i] = nil end
  for _, i in ipairs(picked) do chosen[i] = true end
  for _, i in ipairs(alike) do
    if not chosen[i] then others[#others + 1] = i end
  end
  for _, i in ipairs(sample(others, wanted - #picked, rng)) do chosen[i] = true end
  return chosen
end

-- Writes a split to "<name>.partial" piece by piece; finish() makes it appear under its name, whole.
local function open_writer(path)
  local partial = path .. ".partial"
  local file, reason = io.open(partial, "wb")
  if not file then check.fail("--output: cannot write %s: %s", partial, tostring(reason)) end
  local writer, pieces, bytes = { path = path }, {}, 0
  local function put()
    local ok, why = file:write(table.concat(pieces))
    if not ok then check.fail("--output: cannot write %s: %s", partial, tostring(why)) end
    pieces, bytes = {}, 0
  end
  function writer.line(text)
    pieces[#pieces + 1], pieces[#pieces + 2] = text, "\n"
    bytes = bytes + #text
    if bytes > 1048576 then put() end
  end
  function writer.close()
    put()
    local ok, why = file:close()
    file = nil
    if not ok then check.fail("--output: cannot write %s: %s", partial, tostring(why)) end
  end
  function writer.publish() fs.rename(partial, path) end
  function writer.abandon()
    if file then file:close() end
    os.remove(partial)
  end
  return writer
end

-- Rows of one pair into its split. Returns how many lines went in.
local function write_pair(state, item, before, after, mark_insertions, site_lines)
  local options, split = state.options, item.split
  local lines, ranges = diff.split(before), item.ranges
  local buggy = buggy_lines(lines, diff.split(after), mark_insertions)
  local correct = choose_correct(options, item, lines, buggy, site_lines)
  local innermost = source_functions.by_line(ranges)
  local counts = state.summary.rows[split]
  for i = 1, #lines do
    if buggy[i] or correct[i] then
      if options.max_rows > 0 and counts.total + #bugdata.CONTEXTS > options.max_rows then return end
      local range = innermost[i] or { first = 1, last = #lines }
      local contexts = {
        context_before = table.concat(lines, "\n", math.max(1, i - NEAR), i),
        context_after = table.concat(lines, "\n", i, math.min(#lines, i + NEAR)),
        context_full = full_context(lines, i, range.first, math.min(range.last, #lines), options.max_context),
      }
      for _, kind in ipairs(bugdata.CONTEXTS) do
        local key = text_hash.key(kind .. "\0" .. lines[i] .. "\0" .. contexts[kind])
        local owner = state.row_owner[key]
        if owner and owner ~= split then
          state.summary.dropped_duplicate_rows = state.summary.dropped_duplicate_rows + 1
        else
          state.row_owner[key] = split
          state.writers[split].line(json.encode({ context = contexts[kind], context_type = kind,
            current_line = lines[i],
            file = item.name, line = i, score = buggy[i] and 0 or 1 }, { sort_keys = true }))
          counts.total = counts.total + 1
          counts[buggy[i] and "buggy" or "correct"] = counts[buggy[i] and "buggy" or "correct"] + 1
        end
      end
    end
  end
end

local function write_item(state, item, before, after)
  local options, summary = state.options, state.summary
  if text_hash.key(before .. "\0" .. after) ~= item.key then
    return state.skip("changed while it was being read", item.name)
  end
  local language = source_tokens.language(item.name:gsub("@%x+$", ""))
  local tokens = source_tokens.scan(before, language)
  item.ranges = source_functions.find(tokens)
  local site_lines
  if options.mutate then
    local mutated, planted
    mutated, planted, site_lines = mutate.plant(tokens, item.ranges, generator(options.seed, PURPOSE_BUGS, item.name),
      options.bugs_per_file)
    if #planted == 0 then return state.skip("no place for a bug", item.name) end
    for _, bug in ipairs(planted) do summary.planted[bug.kind] = (summary.planted[bug.kind] or 0) + 1 end
    before = mutated
    if mutated:len() ~= after:len() then -- lines may have gone: look again
      item.ranges = source_functions.find(source_tokens.scan(mutated, language))
    end
  end
  summary.pairs = summary.pairs + 1
  write_pair(state, item, before, after, options.mutate ~= nil, site_lines)
  item.ranges = nil
end

-- ---- the whole ------------------------------------------------------------------------------------------------------

local function make_in(options, state)
  local summary, skip = state.summary, state.skip
  local source = sources[options.source](options, skip)
  source.kind = options.source
  if #source.items == 0 then
    local extensions = {}
    for extension in pairs(options.extensions) do extensions[#extensions + 1] = "." .. extension end
    table.sort(extensions)
    local what = { mutate = "no file ends in %s",
      pairs = "there are no *_before_merge files ending in %s with their *_after_merge",
      git = "no commit that fixes a bug changes a file ending in %s (see --message-pattern)" }
    local given = type(options[options.source]) == "table" and table.concat(options[options.source], ",")
      or options[options.source]
    check.fail("--%s %s: " .. what[options.source] .. "; --extensions names others", options.source, given,
      table.concat(extensions, ", "))
  end
  summary.files, summary.commits = #source.items, source.commits

  -- A seeded order, so that a bounded run draws from everywhere and not from the top of the folder.
  local rank = {}
  for _, item in ipairs(source.items) do
    local rng = generator(options.seed, PURPOSE_ORDER, item.name)
    rank[item] = rng(2 ^ 32)
  end
  table.sort(source.items, function(a, b)
    if rank[a] ~= rank[b] then return rank[a] < rank[b] end
    return a.name < b.name
  end)
  local items = {}
  for i, item in ipairs(source.items) do
    if options.max_files > 0 and i > options.max_files then break end
    items[i] = item
  end

  local kept = assign_splits(source, items, options, skip)
  local function is_full(split) return options.max_rows > 0
    and summary.rows[split].total + #bugdata.CONTEXTS > options.max_rows end
  for _, split in ipairs(bugdata.SPLITS) do
    state.writers[split] = open_writer(fs.join(options.output, split .. ".jsonl"))
  end
  -- Split by split, so that reading stops where one is full.
  for _, split in ipairs(bugdata.SPLITS) do
    local own = {}
    for _, item in ipairs(kept) do
      if item.split == split then own[#own + 1] = item end
    end
    local at = 1
    while at <= #own and not is_full(split) do
      local chunk = {}
      for i = at, math.min(at + 63, #own) do chunk[#chunk + 1] = own[i] end
      at = at + #chunk
      source.each(chunk, function(item, before, after)
        if not is_full(split) then write_item(state, item, before, after) end
      end)
    end
  end
  if summary.rows.train.total == 0 then
    check.fail("--%s: no row could be made of %d files%s", options.source, summary.files,
      bugdata.describe_skipped(summary))
  end
end

-- Makes the data; options as in OPTIONS plus output and one of pairs, git, mutate. Returns the summary.
function bugdata.make(given)
  local started = C.lr_time()
  local options = checked(given)
  local summary = { source = options.source, seed = options.seed, files = 0, pairs = 0, rows = {}, skipped = {},
    planted = {},
    dropped_duplicate_rows = 0, output = options.output }
  for _, split in ipairs(bugdata.SPLITS) do summary.rows[split] = { total = 0, buggy = 0, correct = 0 } end
  local state = { options = options, summary = summary, row_owner = {}, writers = {} }
  local reported = {}
  function state.skip(reason, name) -- items are loaded twice; each counts once
    local key = reason .. "\0" .. name
    if not reported[key] then
      reported[key] = true
      summary.skipped[reason] = (summary.skipped[reason] or 0) + 1
    end
  end
  fs.make(options.output)

  local ok, err = pcall(function()
    make_in(options, state)
    for _, split in ipairs(bugdata.SPLITS) do state.writers[split].close() end
    for _, split in ipairs(bugdata.SPLITS) do state.writers[split].publish() end
    local stored = {}
    for name, value in pairs(summary) do stored[name] = value end
    stored.output = nil
    fs.write(fs.join(options.output, "summary.json"), json.encode(stored, { sort_keys = true }) .. "\n")
  end)
  if not ok then
    for _, writer in pairs(state.writers) do writer.abandon() end
    error(err, 0)
  end
  summary.seconds = C.lr_time() - started
  return summary
end

local function sorted_counts(counts)
  local names = {}
  for name in pairs(counts) do names[#names + 1] = name end
  table.sort(names, function(a, b)
    if counts[a] ~= counts[b] then return counts[a] > counts[b] end
    return a < b
  end)
  return names
end

-- "; skipped: 3 binary, 1 empty", or "" where nothing was.
function bugdata.describe_skipped(summary)
  local parts = {}
  for _, reason in ipairs(sorted_counts(summary.skipped)) do parts[#parts + 1] = summary.skipped[reason] .. " "
    .. reason end
  return #parts > 0 and "; skipped: " .. table.concat(parts, ", ") or ""
end

-- The summary as lines of text for a person.
function bugdata.describe(summary)
  local out = {}
  local function line(fmt, ...) out[#out + 1] = fmt:format(...) end
  line("%d files found, %d pairs used%s", summary.files, summary.pairs,
    summary.commits and (", %d commits"):format(summary.commits) or "")
  for _, split in ipairs(bugdata.SPLITS) do
    local counts = summary.rows[split]
    line("%-10s %9d rows   %9d buggy   %9d correct", split, counts.total, counts.buggy, counts.correct)
  end
  line("%d rows dropped that another split has", summary.dropped_duplicate_rows)
  for _, reason in ipairs(sorted_counts(summary.skipped)) do line("skipped %7d  %s", summary.skipped[reason],
    reason) end
  local total = 0
  for _, count in pairs(summary.planted) do total = total + count end
  for _, kind in ipairs(sorted_counts(summary.planted)) do
    line("planted %7d  %s (%.0f%%)", summary.planted[kind], kind, 100 * summary.planted[kind] / total)
  end
  line("%.1f s; written to %s", summary.seconds, summary.output)
  return table.concat(out, "\n")
end

return bugdata
