-- repl.lua: the prompt. Reads Lua, runs it, prints the values, until Ctrl-D or `exit`.
--   require("lorarun.cli.repl").run()
--
-- A chunk may take several lines: as long as it can be continued, the prompt asks for more. An expression prints its values, and
-- so does `=expression`. Ctrl-C drops the line being typed, or stops what runs. What is typed runs interpreted, never compiled, so
-- that a loop can be stopped; functions of modules and recipes that it calls are compiled as always.
-- On a terminal, lines are edited with libedit and kept in a history file; without one they are read as they come.
-- With several ranks, rank 0 has the prompt and every rank runs what is typed there (prompt_ranks.lua).
local ffi = require "ffi"
local C = require "lorarun.base.c"
local complete = require "lorarun.cli.complete"
local failure = require "lorarun.cli.failure"
local host = require "lorarun.host"
local say = require "lorarun.base.say"
local show = require "lorarun.cli.show"
local sorted = require "lorarun.base.sorted"

local repl = {}

local PROMPT, CONTINUATION = "> ", ">> "
local HISTORY_LINES = 1000 -- kept in the file; it may grow to twice that between two trims
local CHUNK_NAME = "=stdin"
local HELP = [[
Type Lua: it runs, and an expression prints its value. lr is lorarun. To try:
  model = lr.load_model("all-MiniLM-L6-v2")         a folder, or a Hugging Face id that is in the local cache
  e = model:encode { "a cat", "a kitten", "tax" }   one embedding for each text
  lr.similarity(e, e)                               the cosine of each with each
  model:add_lora { rank = 8, alpha = 16, targets = "all-linear" }, then lr.train { model = model, data = ..., output = ... }
Keys: TAB completes, and lists what there is (lr. and TAB: all of lorarun); Ctrl-C stops what runs; Ctrl-D, exit or quit leaves.
More: docs/getting-started.md, docs/reference.md for every function, lorarun --help for the program's options.
]]

-- ---- history --------------------------------------------------------------------------------------------------------------------
-- A plain text file, one line each, appended to as lines are typed: several prompts may share it, and a crash loses nothing.

local function history_path()
  local state, home = os.getenv "XDG_STATE_HOME", os.getenv "HOME"
  if state and state:sub(1, 1) == "/" then return state .. "/lorarun" end
  if home and home ~= "" then return home .. "/.local/state/lorarun" end
end

local function open_history()
  local folder = history_path()
  if not folder then return nil end
  local path, lines = folder .. "/history", {}
  local f = io.open(path, "r")
  if f then
    for line in f:lines() do lines[#lines + 1] = line end
    f:close()
  elseif C.lr_dir_make(folder) < 0 then
    return nil -- without a word: a home that cannot be written to would be told at every start
  end
  local first = math.max(1, #lines - HISTORY_LINES + 1)
  for i = first, #lines do host.edit_remember(lines[i]) end
  if #lines > 2 * HISTORY_LINES then
    local text = table.concat(lines, "\n", first) .. "\n"
    C.lr_file_write(path, text, #text)
  end
  if C.lr_file_private(path) < 0 then return nil end -- what was typed may hold a password
  return io.open(path, "a")
end

-- ---- lines ----------------------------------------------------------------------------------------------------------------------

local function in_columns(words)
  local width, longest = math.max(C.lr_terminal_width(1), 20), 0
  for _, word in ipairs(words) do longest = math.max(longest, #word) end
  local columns = math.max(1, math.floor((width + 1) / (longest + 2)))
  local rows = math.ceil(#words / columns)
  local lines = {}
  for row = 1, rows do
    local cells = {}
    for i = row, #words, rows do cells[#cells + 1] = words[i] .. (" "):rep(longest + 2 - #words[i]) end
    lines[row] = table.concat(cells):gsub("%s+$", "")
  end
  return table.concat(lines, "\n")
end

local function offer(before)
  local insert, candidates = complete(before)
  return insert, candidates and in_columns(candidates)
end

-- A reader is read(prompt) -> line, or nil at the end of input, or nil, true where Ctrl-C dropped the line.
local function edited_lines()
  local history = open_history()
  local last
  return function(prompt)
    local line = host.edit_line(prompt)
    if not line then return nil, host.interrupted() end
    if line:find "%S" and line ~= last then
      host.edit_remember(line)
      if history then
        history:write(line, "\n")
        history:flush()
      end
      last = line
    end
    return line
  end
end

local function plain_lines()
  local prompts = C.lr_terminal_width(0) > 0
  return function(prompt)
    if prompts then
      io.write(prompt)
      io.flush()
    end
    local line = io.read "*l"
    if line then return line end
    return nil, host.interrupted()
  end
end

-- ---- chunks ---------------------------------------------------------------------------------------------------------------------

local function incomplete(message) return message:find "'?<eof>'?$" ~= nil end

-- text -> chunk, or nil, message, whether more lines could complete it
local function compile(text)
  local expression, forced = text:gsub("^%s*=", "", 1)
  local chunk, expression_error = loadstring("return " .. expression, CHUNK_NAME)
  if chunk then return chunk end
  if forced > 0 then return nil, expression_error, incomplete(expression_error) end
  local statement_error
  chunk, statement_error = loadstring(text, CHUNK_NAME)
  if chunk then return chunk end
  return nil, statement_error, incomplete(statement_error) or incomplete(expression_error)
end

-- "help", "exit" or "quit" where the line is that word, with or without brackets; nil for all else, and where the user has given
-- the name a value.
local function command(line)
  local word = line:match "^%s*(%l+)%s*$" or line:match "^%s*(%l+)%s*%(%s*%)%s*;?%s*$"
  if (word == "help" or word == "exit" or word == "quit") and rawget(_G, word) == nil then return word end
end

-- read -> chunk, its text; nil, message; nil, nil where there is nothing to run; nil, nil, true at the end of input;
-- nil, nil, "exit" or "quit" where that was typed
local function read_chunk(read)
  local text
  while true do
    local line, dropped = read(text and CONTINUATION or PROMPT)
    if not line then
      if dropped then
        io.write "\n"
        return nil
      end
      if not text then return nil, nil, true end
      local _, message = compile(text)
      return nil, message
    end
    local word = not text and command(line)
    if word == "help" then
      io.write(HELP)
      return nil
    elseif word then
      return nil, nil, word
    end
    text = text and text .. "\n" .. line or line
    if not text:find "%S" then return nil end
    local chunk, message, more = compile(text)
    if chunk then return chunk, text end
    if not more then return nil, message end
  end
end

local function display(value, width)
  return say.visible(type(value) == "string" and value or show(value, { width = width }))
end

local function print_values(...)
  local width = C.lr_terminal_width(1)
  local texts = {}
  for i = 1, select("#", ...) do texts[i] = display((select(i, ...)), width > 0 and width or nil) end
  io.write(table.concat(texts, "\t"), "\n")
end

local function complain(text)
  io.stdout:flush()
  say.error_line(text)
end

-- Run fn so that Ctrl-C stops it. -> true, how many values it returned, those values; or nil, what went wrong
local function evaluate(fn)
  local function finish(ok, ...)
    if ok then return true, select("#", ...), ... end
    local report = ...
    if host.interrupted() then report.message = "interrupted" .. (report.place and " at " .. report.place or "") end
    -- a single call is the typed line itself
    return nil, #report.calls > 1 and failure.text(report) or report.message
  end
  return finish(failure.call_by(host.evaluate, fn))
end

-- -> nil, or what went wrong
local function run_and_print(chunk)
  jit.off(chunk, true)
  local results = { evaluate(chunk) }
  if results[1] and results[2] > 0 then
    results = { evaluate(function() print_values(unpack(results, 3, results[2] + 2)) end) }
  end
  return not results[1] and results[2] or nil
end

-- Run a chunk here and on the other ranks, where there are any, and print every rank's error.
local function run_everywhere(chunk, text, ranks)
  if ranks then ranks.tell(text) end
  local message = run_and_print(chunk)
  if message then complain(message) end
  for rank, theirs in sorted(ranks and ranks.settle(message) or {}) do
    if theirs ~= message then complain(("[rank %d] %s"):format(rank, theirs)) end
  end
  if ranks then host.interrupted() end -- a Ctrl-C that was meant for another rank must not drop the next line
end

-- A rank without a prompt: runs what rank 0 sends, until there is no more. Only rank 0 prints the values.
local function follow(ranks)
  for text in ranks.hear do
    local chunk = compile(text)
    jit.off(chunk, true)
    local ok, message = evaluate(chunk)
    ranks.settle(not ok and message or nil)
  end
end

function repl.run()
  local comm = package.loaded["lorarun.dist.comm"]
  local ranks = comm and comm.world_size > 1 and require "lorarun.cli.prompt_ranks" or nil
  host.interrupts(true)
  if ranks and comm.rank > 0 then
    follow(ranks)
    host.interrupts(false)
    return
  end
  local read
  if host.edit_open(offer) then read = edited_lines() else read = plain_lines() end
  if C.lr_terminal_width(0) > 0 then
    io.write(("lorarun %s, %s. lr is lorarun; help tells more, TAB completes, Ctrl-C stops, Ctrl-D leaves.\n"):format(
      ffi.string(C.lr_version()), jit.version))
    if ranks then io.write(("%d ranks run every line; rank 0 prints.\n"):format(comm.world_size)) end
  end
  local chunk, text, ended
  repeat
    chunk, text, ended = read_chunk(read)
    if chunk then run_everywhere(chunk, text, ranks) elseif text then complain(text) end
    io.flush()
  until ended
  if ranks then ranks.tell(nil) end
  if ended == true and C.lr_terminal_width(0) > 0 then io.write "\n" end -- Ctrl-D leaves the cursor after the prompt
  host.edit_close()
  host.interrupts(false)
end

return repl
