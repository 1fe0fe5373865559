-- init.lua: lorarun.bugdata: makes training data for bug detection from source code.
--
--   local bugdata = require "lorarun.bugdata"
--   local summary = bugdata.make { mutate = { "/usr/lib/python3" }, output = "data", seed = 1, max_rows = 30000 }
--   print(bugdata.describe(summary))
--
-- It writes train.jsonl, validation.jsonl, test.jsonl and summary.json to the output folder. docs/data.md describes them and every
-- option (OPTIONS below holds the defaults). The same input, options and seed give the same bytes.
--
-- A row shows a line with its context and says whether the line is buggy. bugdata/sources.lua finds pairs of texts, before and
-- after a fix; bugdata/rows.lua makes rows of a pair. A planted bug makes such a pair as well: the mutated text is before, the
-- original after.
--
-- The splits have no text in common: bugdata/splits.lua puts files into splits so that no function is in two of them, and a row
-- whose kind, line and context are already in another split is dropped here, and counted.
--
-- Why a model can learn from a small set of planted bugs: there are as many correct lines as buggy ones; half of the correct ones
-- are lines where a bug could have been planted (otherwise "is it code?" would answer most rows); a function has at most one bug,
-- so the context shows what is normal there; and kinds of bugs that can be seen in the text are more frequent (mutate.lua).
local check = require "lorarun.base.check"
local C = require "lorarun.base.c"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local random = require "lorarun.base.random"
local mutate = require "lorarun.bugdata.mutate"
local kinds = require "lorarun.base.options"
local launch = require "lorarun.dist.launch"
local data_parallel = require "lorarun.dist.data_parallel"
local sorted = require "lorarun.base.sorted"
local scanner = require "lorarun.bugdata.scanner"
local functions = require "lorarun.bugdata.functions"
local sources = require "lorarun.bugdata.sources"
local rows = require "lorarun.bugdata.rows"
local splits = require "lorarun.bugdata.splits"
local text_hash = require "lorarun.base.text_hash"
local using = require "lorarun.base.using"

local bugdata = {}

-- Purposes of random draws (lr_random's second number).
local PURPOSE_ORDER, PURPOSE_BUGS = 0x42440001, 0x42440002
local CHUNK = 256 -- items that are loaded between two checks whether their split is full

bugdata.OPTIONS = {
  seed = 1, extensions = "py,c,lua", max_files = 0, max_rows = 0, max_file_size = 262144, max_context = 2000,
  correct_per_buggy = "auto", similar = 0.5, bugs_per_file = 16, max_commits = 5000,
  message_pattern = sources.MESSAGE_PATTERN,
}

-- ---- options --------------------------------------------------------------------------------------------------------------------

local FOLDERS = kinds.either(kinds.text, kinds.table)
local KINDS = {
  output = kinds.text, pairs = kinds.text, git = kinds.text, mutate = FOLDERS, seed = kinds.whole(0), extensions = FOLDERS,
  max_files = kinds.whole(0), max_rows = kinds.whole(0), max_file_size = kinds.whole(1), max_context = kinds.whole(80),
  bugs_per_file = kinds.whole(1), max_commits = kinds.whole(0), message_pattern = kinds.text,
  similar = { test = function(v) return kinds.number.test(v) and v >= 0 and v <= 1 end, text = "a share between 0 and 1" },
  correct_per_buggy = { text = "a number from 0 (all correct lines) up, or auto", test = function(v)
    local number = tonumber(v)
    return v == "auto" or number ~= nil and number >= 0 and number < math.huge
  end },
}

local function list_of(value)
  if type(value) == "table" then return value end
  local list = {}
  for item in value:gmatch("[^,]+") do
    item = item:match("^%s*(.-)%s*$")
    if item ~= "" then list[#list + 1] = item end
  end
  return list
end

-- The options, with defaults, checked: mutate is a list, extensions a set, correct_per_buggy a number, source names the one given.
local function checked(given)
  if given == nil then check.fail "bugdata.make takes a table of options" end
  kinds.check("bugdata.make", given, KINDS)
  local options = {}
  for name, value in pairs(bugdata.OPTIONS) do options[name] = value end
  for name, value in pairs(given) do options[name] = value end
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
  if not options.output or options.output == "" then
    check.fail("--output is missing: the folder to write the data to")
  end
  if options.mutate then options.mutate = list_of(options.mutate) end
  if options.message_pattern == "" then options.message_pattern = bugdata.OPTIONS.message_pattern end

  local extensions = list_of(options.extensions)
  options.extensions = {}
  for _, extension in ipairs(extensions) do
    extension = extension:gsub("^%.", ""):lower()
    if not scanner.language(extension) then
      check.fail("--extensions: no language is known for '%s'; known are %s", extension,
        table.concat(scanner.extensions(), ", "))
    end
    options.extensions[extension] = true
  end
  if not next(options.extensions) then check.fail("--extensions is empty: name at least one, such as py") end
  options.correct_per_buggy = options.correct_per_buggy == "auto" and (options.mutate and 1 or 0)
    or tonumber(options.correct_per_buggy)
  return options
end

-- ---- writing --------------------------------------------------------------------------------------------------------------------

-- Writes a file piece by piece under a temporary name; publish() renames it, so that it appears whole. mark: part of the temporary
-- name, different for every process, since two may make the same data at once.
local function open_writer(path, mark)
  local partial = ("%s.%s.partial"):format(path, mark)
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

local function is_full(state, split)
  local limit = state.options.max_rows
  return limit > 0 and state.summary.rows[split].total >= limit
end

-- Write the rows of one item to its split.
local function write_item(state, item, before, after)
  local options, summary, split = state.options, state.summary, item.split
  if text_hash.key(before .. "\0" .. after) ~= item.key then
    return state.skip("changed while it was being read", item.name)
  end
  local tokens = scanner.scan(before, item.language)
  local pair = { name = item.name, before = before, after = after, ranges = functions.find(tokens) }
  if options.mutate then
    local rng = random.generator(options.seed, PURPOSE_BUGS, item.name)
    local mutated, planted, site_lines = mutate.plant(tokens, pair.ranges, rng, options.bugs_per_file)
    if #planted == 0 then return state.skip("no place for a bug", item.name) end
    for _, bug in ipairs(planted) do summary.planted[bug.kind] = (summary.planted[bug.kind] or 0) + 1 end
    -- found again: a lost line moves what is below it
    pair.before, pair.ranges = mutated, functions.find(scanner.scan(mutated, item.language))
    pair.site_lines, pair.mark_insertions = site_lines, true
  end
  summary.pairs = summary.pairs + 1
  local counts, owner = summary.rows[split], state.row_owner
  rows.each(pair, options, function(row)
    if is_full(state, split) then return false end
    local key = text_hash.key(row.context_type .. "\0" .. row.current_line .. "\0" .. row.context)
    if owner[key] and owner[key] ~= split then
      summary.dropped_duplicate_rows = summary.dropped_duplicate_rows + 1
      return
    end
    owner[key] = split
    state.writers[split].line(json.encode(row, { sort_keys = true }))
    local class = row.score == 0 and "buggy" or "correct"
    counts.total, counts[class] = counts.total + 1, counts[class] + 1
  end)
end

-- ---- from sources to files ------------------------------------------------------------------------------------------------------

local function make_in(options, state)
  local summary, skip = state.summary, state.skip
  local source = sources[options.source](options, skip)
  source.kind = options.source
  if #source.items == 0 then
    local extensions = sorted.keys(options.extensions)
    for i, extension in ipairs(extensions) do extensions[i] = "." .. extension end
    local what = { mutate = "no file ends in %s",
      pairs = "there are no *_before_merge files ending in %s with their *_after_merge",
      git = "no commit that fixes a bug changes a file ending in %s (see --message-pattern)" }
    local given = type(options[options.source]) == "table" and table.concat(options[options.source], ",")
      or options[options.source]
    check.fail("--%s %s: " .. what[options.source] .. "; --extensions names others", options.source, given,
      table.concat(extensions, ", "))
  end
  summary.files, summary.commits = #source.items, source.commits

  -- A seeded random order, so that a bounded run reads files from everywhere, not those at the top of the folder.
  local rank = {}
  for _, item in ipairs(source.items) do
    rank[item] = random.generator(options.seed, PURPOSE_ORDER, item.name)(2 ^ 32)
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

  local kept = splits.assign(source, items, options, skip)
  for _, split in ipairs(splits.NAMES) do
    state.writers[split] = open_writer(fs.join(options.output, split .. ".jsonl"), state.mark)
  end
  -- Split by split, so that reading stops when one is full.
  for _, split in ipairs(splits.NAMES) do
    local own = {}
    for _, item in ipairs(kept) do
      if item.split == split then own[#own + 1] = item end
    end
    local at = 1
    while at <= #own and not is_full(state, split) do
      local chunk = {}
      for i = at, math.min(at + CHUNK - 1, #own) do chunk[#chunk + 1] = own[i] end
      at = at + #chunk
      source.each(chunk, function(item, before, after)
        if not is_full(state, split) then write_item(state, item, before, after) end
      end)
    end
  end
  if summary.rows.train.total == 0 then
    check.fail("--%s: no row could be made of %d files%s", options.source, summary.files,
      bugdata.describe_skipped(summary))
  end
end

--- make(options): makes the data. Options: those of OPTIONS, output, and one of pairs, git, mutate. Returns the summary.
function bugdata.make(given)
  local started = C.lr_time()
  local options = checked(given)
  local summary = { source = options.source, seed = options.seed, files = 0, pairs = 0, rows = {}, skipped = {},
    planted = {}, dropped_duplicate_rows = 0, output = options.output }
  for _, split in ipairs(splits.NAMES) do summary.rows[split] = { total = 0, buggy = 0, correct = 0 } end
  local state = { options = options, summary = summary, row_owner = {}, writers = {},
    mark = ("%x"):format(text_hash.key(os.time() .. tostring({}) .. started)) }
  local reported = {}
  function state.skip(reason, name) -- items are loaded twice; each is counted once
    local key = reason .. "\0" .. name
    if not reported[key] then
      reported[key] = true
      summary.skipped[reason] = (summary.skipped[reason] or 0) + 1
    end
  end
  local made, reason = pcall(fs.make, options.output)
  if not made then -- without the place that the inner error begins with
    check.fail("--output %s cannot be written: %s", options.output, (tostring(reason):gsub("^%S+:%d+: ", "")))
  end

  local function abandon()
    for _, writer in pairs(state.writers) do writer.abandon() end
  end
  using.made(state, abandon, function()
    make_in(options, state)
    for _, split in ipairs(splits.NAMES) do state.writers[split].close() end
    for _, split in ipairs(splits.NAMES) do state.writers[split].publish() end
    local stored = {}
    for name, value in pairs(summary) do stored[name] = value end
    stored.output = nil
    fs.write(fs.join(options.output, "summary.json"), json.encode(stored, { sort_keys = true }) .. "\n")
  end)
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

-- "; skipped: 3 binary, 1 empty", or "" where nothing was skipped.
function bugdata.describe_skipped(summary)
  local parts = {}
  for _, reason in ipairs(sorted_counts(summary.skipped)) do
    parts[#parts + 1] = summary.skipped[reason] .. " " .. reason
  end
  return #parts > 0 and "; skipped: " .. table.concat(parts, ", ") or ""
end

--- describe(summary): the summary as lines of text.
function bugdata.describe(summary)
  local out = {}
  local function line(fmt, ...) out[#out + 1] = fmt:format(...) end
  line("%d files found, %d pairs used%s", summary.files, summary.pairs,
    summary.commits and (", %d commits"):format(summary.commits) or "")
  for _, split in ipairs(splits.NAMES) do
    local counts = summary.rows[split]
    line("%-10s %9d rows   %9d buggy   %9d correct", split, counts.total, counts.buggy, counts.correct)
  end
  line("%d rows dropped that another split has", summary.dropped_duplicate_rows)
  for _, reason in ipairs(sorted_counts(summary.skipped)) do
    line("skipped %7d  %s", summary.skipped[reason], reason)
  end
  local total = 0
  for _, count in pairs(summary.planted) do total = total + count end
  for _, kind in ipairs(sorted_counts(summary.planted)) do
    line("planted %7d  %s (%.0f%%)", summary.planted[kind], kind, 100 * summary.planted[kind] / total)
  end
  line("%.1f s; written to %s", summary.seconds, summary.output)
  return table.concat(out, "\n")
end

-- ---- the small preset -----------------------------------------------------------------------------------------------------------

-- Folders that hold Python's standard library where this machine has one.
local function python_folders()
  local found = {}
  for _, parent in ipairs { "/usr/lib", "/usr/local/lib", "/usr/lib64", "/opt/homebrew/lib" } do
    local ok, names = pcall(fs.list, parent)
    for _, name in ipairs(ok and names or {}) do
      local folder = fs.join(parent, name)
      if name:find("^python3") and fs.is_directory(folder) then found[#found + 1] = folder end
    end
  end
  -- and where the python3 on the PATH has it (a folder that is found twice is read once)
  local pipe = io.popen("python3 -I -c 'import os; print(os.path.dirname(os.__file__))' 2>/dev/null", "r")
  local own = pipe and pipe:read("*l")
  if pipe then pipe:close() end
  if own and fs.is_directory(own) then found[#found + 1] = own end
  return found
end

local HERE = { seed = kinds.whole(0), max_rows = kinds.whole(0), folders = kinds.table, output = kinds.text }

--- from_this_machine(options): data made of this machine's own Python sources, to try things out without data. One rank of each
--- machine makes it, once; it is kept in lorarun's cache. Options: seed, max_rows, folders (to read others), output. Contexts are
--- short, for a model of 128 tokens, and a sample of the files is enough for the rows. Returns the folder, and the summary where it
--- was made by this call.
function bugdata.from_this_machine(given)
  given = kinds.check("bugdata.from_this_machine", given, HERE)
  local seed, max_rows = given.seed or bugdata.OPTIONS.seed, given.max_rows or 30000
  local output = given.output
    or fs.join(require("lorarun.formats.hub").lorarun_cache(), ("bugdata-%d-%d"):format(seed, max_rows))
  if launch.planned() then return fs.is_file(fs.join(output, "summary.json")) and output or "" end
  local summary
  data_parallel.first_on_machine(function()
    if fs.is_file(fs.join(output, "summary.json")) then return end
    local folders = given.folders or python_folders()
    if #folders == 0 then
      check.fail("there are no Python sources on this machine to make data of; give --data, or make some of any sources: "
        .. "lorarun recipes/bugdata.lua --mutate DIR --output DATA")
    end
    summary = bugdata.make { mutate = folders, output = output, seed = seed, max_rows = max_rows, extensions = "py",
      max_context = 450, max_files = 2500 }
  end)
  return output, summary
end

return bugdata
