-- measure_data.lua: how long a large data set takes to open, to hash and to read at random:
--   lorarun tools/measure_data.lua [rows] [folder]
-- Writes rows of realistic size (a line of code, a context of 3 to 12 such lines, a score, a type; by default 1,704,039, some
-- 450 MB) as JSON Lines and as CSV into the folder, measures, removes them.
local C = require "lorarun.base.c"
local dataset = require "lorarun.data.dataset"
local fs = require "lorarun.base.fs"

local rows = tonumber(arg[1] or 1704039)
local folder = arg[2] or os.getenv "TMPDIR" or "/tmp"
local TYPES = { "context_before", "context_after", "context_full" }
local LINES = { "    if value is None and not self.optional:\n", "        return [item for item in items if item.ready]\n",
  "    for index, name in enumerate(names):\n", "        raise ValueError(\"unexpected: %r\" % name)\n", "\n",
  "        self.total += weights[index] * rates.get(name, 0.0)\n", "    # the caller has checked it \xe2\x80\x93 see above\n" }

local function pick(row, k) return LINES[(row * 7919 + k * 104729 + math.floor(row / 13)) % #LINES + 1] end

local function write(path, record)
  local file = assert(io.open(path, "wb"))
  file:setvbuf("full", 1048576)
  if path:find "csv$" then file:write("current_line,context,score,context_type\n") end
  for row = 0, rows - 1 do
    local context = {}
    for k = 1, 3 + row % 4 do context[k] = pick(row, k) end
    file:write(record(pick(row, 0), table.concat(context), row % 5 == 0 and 0 or 1, TYPES[row % 3 + 1]))
  end
  assert(file:close())
end

local function json(text) return (text:gsub('[\\"]', "\\%0"):gsub("\n", "\\n")) end
local function csv(text) return (text:gsub('"', '""')) end

local function measure(path)
  local size = fs.stat(path).size / 1e6
  local columns = { { name = "current_line", kind = "text" }, { name = "context", kind = "text" },
    { name = "score", kind = "number" }, { name = "context_type", kind = "text" } }
  local best, set = math.huge, nil
  for _ = 1, 3 do
    if set then set:close() end
    local start = C.lr_time()
    set = dataset.open(path, { columns = columns })
    best = math.min(best, C.lr_time() - start)
  end
  print(("%s: %d rows, %.0f MB, %d threads"):format(path, set.rows, size, C.lr_threads()))
  print(("  open    %6.3f s, best of 3 (%.0f MB/s)"):format(best, size / best))
  local start = C.lr_time()
  set:hashes "context"
  print(("  hashes  %6.3f s"):format(C.lr_time() - start))
  start = C.lr_time()
  set:classes "context_type"
  print(("  classes %6.3f s"):format(C.lr_time() - start))
  start = C.lr_time()
  local n = math.min(rows, 100000)
  for i = 1, n do set:text(i * 7919 % rows, "context") end
  print(("  text    %6.2f µs a text, at random"):format((C.lr_time() - start) / n * 1e6))
  set:close()
end

for _, kind in ipairs { "jsonl", "csv" } do
  local path = ("%s/lorarun-measure.%s"):format(folder, kind)
  write(path, kind == "csv" and function(line, context, score, class)
    return ('"%s","%s",%d,%s\n'):format(csv(line), csv(context), score, class)
  end or function(line, context, score, class)
    return ('{"current_line": "%s", "context": "%s", "score": %d, "context_type": "%s"}\n'):format(json(line), json(context),
      score, class)
  end)
  measure(path)
  os.remove(path)
end
