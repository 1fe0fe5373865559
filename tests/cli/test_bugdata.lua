-- recipes/bugdata.lua in the built program: the three sources, the same bytes for the same seed, no text in two splits,
-- what is skipped, and what the errors say.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local git = require "lorarun.bugdata.git"
local bugdata = require "lorarun.bugdata"

local tools = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local ROOT = fs.dirname(os.getenv "LORARUN_TESTS")
local CONTEXTS = { "context_before", "context_after", "context_full" }

local function with_folder(fn)
  tools.with_folder(function(folder)
    local ok, err = xpcall(fn, debug.traceback, folder)
    os.execute("chmod -R u+rwX " .. tools.quote(folder)) -- a test may have taken rights away
    if not ok then error(err, 0) end
  end)
end

-- Runs a shell command; returns its output (both streams) and its status.
local function shell(command)
  local r = tools.run("{ " .. command .. "; } 2>&1")
  return r.out, r.status
end

local function make(arguments)
  return shell(("$L %s %s"):format(git.quote(fs.join(ROOT, "recipes/bugdata.lua")), arguments))
end

local function must_make(arguments)
  local output, status = make(arguments)
  check.equal(status, 0, "status of bugdata " .. arguments .. "\n" .. output .. "\n")
  return output
end

local function must_fail(arguments, part)
  local output, status = make(arguments)
  check.that(status ~= 0, "it should have failed: bugdata " .. arguments)
  check.that(output:find(part, 1, true), ("the error lacks '%s':\n%s"):format(part, output))
end

local function rows_of(folder, split)
  local rows = {}
  for line in fs.read(fs.join(folder, split .. ".jsonl")):gmatch("[^\n]+") do rows[#rows + 1] = json.decode(line) end
  return rows
end

local function all_rows(folder)
  local rows = {}
  for _, split in ipairs { "train", "validation", "test" } do
    for _, row in ipairs(rows_of(folder, split)) do
      row.split = split
      rows[#rows + 1] = row
    end
  end
  return rows
end

-- A Python file with `functions` functions; no file of another number has the same ones.
local function python_file(number, functions)
  local out = { ("# file %d\nimport os\n"):format(number) }
  for i = 1, functions do
    out[#out + 1] = ([[
def compute_%d_%d(values, limit):
    total = %d
    for index in range(len(values)):
        if values[index] < limit and not values[index] is None:
            total = total + values[index] * %d
    store(total, limit)
    return total

]]):format(number, i, number, i)
  end
  return table.concat(out, "\n")
end

local function write_sources(folder, count)
  fs.make(fs.join(folder, "sub"))
  for i = 1, count do
    fs.write(fs.join(folder, (i % 2 == 0 and "sub/" or "") .. "file" .. i .. ".py"), python_file(i, 4))
  end
end

test("mutate: rows, balance, labels that agree with the original, three splits", function()
  with_folder(function(folder)
    local sources, data = fs.join(folder, "src"), fs.join(folder, "data")
    write_sources(sources, 40)
    local output = must_make(("--mutate %s --output %s"):format(sources, data))
    check.that(output:find("40 files found, 40 pairs used", 1, true), output)
    local by_split, classes, contexts, unchanged = {}, { [0] = 0, [1] = 0 }, {}, 0
    for _, row in ipairs(all_rows(data)) do
      by_split[row.split] = (by_split[row.split] or 0) + 1
      classes[row.score] = classes[row.score] + 1
      contexts[row.context_type] = (contexts[row.context_type] or 0) + 1
      check.that(("\n" .. row.context .. "\n"):find("\n" .. row.current_line .. "\n", 1, true), "the line is not in its context")
      check.that(row.current_line:find("%S"), "a blank line")
      local original = fs.read(fs.join(sources, row.file))
      local is_original = ("\n" .. original):find("\n" .. row.current_line .. "\n", 1, true) ~= nil
      if row.score == 1 then
        check.that(is_original, "a correct line that the source does not have: " .. row.current_line)
      elseif is_original then
        unchanged = unchanged + 1 -- the line after a removed one
      end
    end
    check.that(unchanged < 0.1 * classes[0], unchanged .. " buggy rows show a line as the source has it")
    check.near(classes[0], classes[1], 0.1 * classes[1], "buggy against correct rows")
    for _, kind in ipairs(CONTEXTS) do
      check.near(contexts[kind], (classes[0] + classes[1]) / 3, 0.1 * classes[0], "rows of " .. kind)
    end
    local total = classes[0] + classes[1]
    check.near(by_split.train / total, 0.70, 0.06, "share of train")
    check.near(by_split.validation / total, 0.15, 0.05, "share of validation")
    local summary = json.decode_file(fs.join(data, "summary.json"))
    check.equal(summary.rows.train.total, by_split.train)
    check.equal(summary.rows.train.buggy + summary.rows.train.correct, by_split.train)
    local planted = 0
    for _, count in pairs(summary.planted) do planted = planted + count end
    check.near(planted * 3, classes[0], 0.15 * classes[0], "planted bugs against buggy rows")
    for _, name in ipairs(fs.list(data)) do check.that(not name:find("partial"), "left behind: " .. name) end
  end)
end)

test("the same seed gives the same bytes, JIT on or off; another seed others", function()
  with_folder(function(folder)
    local sources = fs.join(folder, "src")
    write_sources(sources, 12)
    local function bytes(arguments, environment)
      local data = fs.join(folder, "data" .. #fs.list(folder))
      local _, status = shell(("LORARUN_JIT=%s $L %s --mutate %s --output %s %s"):format(environment,
        git.quote(fs.join(ROOT, "recipes/bugdata.lua")), sources, data, arguments))
      check.equal(status, 0, "status")
      local parts = {}
      for _, name in ipairs(fs.list(data)) do parts[#parts + 1] = name .. "\n" .. fs.read(fs.join(data, name)) end
      return table.concat(parts)
    end
    local first = bytes("--seed 3", "on")
    check.equal(bytes("--seed 3", "on"), first)
    check.equal(bytes("--seed 3", "off"), first)
    check.that(bytes("--seed 4", "on") ~= first, "the seed makes no difference")
  end)
end)

test("no function and no row is in two splits, even if files were copied", function()
  with_folder(function(folder)
    local sources, data = fs.join(folder, "src"), fs.join(folder, "data")
    fs.make(fs.join(sources, "vendor"))
    for i = 1, 24 do
      local text = python_file(i, 3)
      fs.write(fs.join(sources, ("a%d.py"):format(i)), text)
      fs.write(fs.join(sources, ("vendor/copy%d.py"):format(i)), text)                      -- the same file
      fs.write(fs.join(sources, ("vendor/part%d.py"):format(i)),                            -- one of its functions, indented
        "class Copy:\n    number = " .. i .. "\n\n" .. python_file(i, 1):match("(def .*)$"):gsub("[^\n]+", "    %0"))
    end
    local output = must_make(("--mutate %s --output %s --correct-per-buggy 0"):format(sources, data))
    check.that(output:find("skipped      24  duplicate of another file", 1, true), output)
    local split_of_number, split_of_row, splits = {}, {}, {}
    for _, row in ipairs(all_rows(data)) do
      local number = row.file:match("(%d+)%.py$")
      check.equal(split_of_number[number] or row.split, row.split, "split of file " .. row.file)
      split_of_number[number], splits[row.split] = row.split, true
      local key = row.context_type .. "\0" .. row.current_line .. "\0" .. row.context
      check.equal(split_of_row[key] or row.split, row.split, "split of a row")
      split_of_row[key] = row.split
    end
    check.that(splits.train and splits.validation and splits.test, "a split is empty")
  end)
end)

local BEFORE = "def f(a):\n    x = 1\n\n    if a > x:\n        return a\n    unused()\n    return x\n\n\ny = f(2)\n"
local AFTER = "def f(a):\n    x = 1\n    check(a)\n\n    if a >= x:\n        return a\n    return x\n\n\ny = f(2)\n"

test("pairs: every line of the before file, labelled by the diff, with its three contexts", function()
  with_folder(function(folder)
    local sources, data = fs.join(folder, "src"), fs.join(folder, "data")
    fs.make(fs.join(sources, "deep"))
    fs.write(fs.join(sources, "deep/one_before_merge.py"), BEFORE)
    fs.write(fs.join(sources, "deep/one_after_merge.py"), AFTER)
    fs.write(fs.join(sources, "same_before_merge.py"), AFTER)
    fs.write(fs.join(sources, "same_after_merge.py"), AFTER)
    fs.write(fs.join(sources, "alone_before_merge.py"), BEFORE)
    fs.write(fs.join(sources, "other.py"), BEFORE)
    local output = must_make(("--pairs %s --output %s"):format(sources, data))
    check.that(output:find("1  no *_after_merge file beside it", 1, true), output)
    check.that(output:find("1  no difference", 1, true), output)
    local rows = rows_of(data, "train")
    check.equal(#rows, 7 * 3, "rows")
    local at = {}
    for _, row in ipairs(rows) do
      check.equal(row.file, "deep/one.py")
      check.equal(row.score, (row.line == 4 or row.line == 6) and 0 or 1, "score of line " .. row.line)
      at[row.line .. row.context_type] = row.context
    end
    check.equal(at["4context_before"], "def f(a):\n    x = 1\n\n    if a > x:")
    check.equal(at["4context_after"], "    if a > x:\n        return a\n    unused()\n    return x")
    check.equal(at["4context_full"], "def f(a):\n    x = 1\n\n    if a > x:\n        return a\n    unused()\n    return x")
    check.equal(at["1context_before"], "def f(a):")
    check.equal(at["10context_after"], "y = f(2)")
    check.equal(at["10context_full"], BEFORE:sub(1, -2), "a line outside all functions has the file")
  end)
end)

test("context_full is bounded in whole lines that include the line", function()
  with_folder(function(folder)
    local sources, data = fs.join(folder, "src"), fs.join(folder, "data")
    fs.make(sources)
    local before = { "def f():" }
    for i = 2, 200 do before[i] = "    value_" .. i .. " = " .. i end
    local text = table.concat(before, "\n") .. "\n"
    fs.write(fs.join(sources, "a_before_merge.py"), text)
    fs.write(fs.join(sources, "a_after_merge.py"), (text:gsub("value_100 = 100", "value_100 = 101")))
    must_make(("--pairs %s --output %s --max-context 300"):format(sources, data))
    local seen = 0
    for _, row in ipairs(rows_of(data, "train")) do
      if row.context_type == "context_full" then
        seen = seen + 1
        check.that(#row.context <= 300 and #row.context > 200, "bytes of context: " .. #row.context)
        check.that(("\n" .. row.context .. "\n"):find("\n" .. row.current_line .. "\n", 1, true), "the line is missing")
        check.that(("\n" .. text):find("\n" .. row.context .. "\n", 1, true), "not whole lines of the file")
      end
    end
    check.equal(seen, 200)
  end)
end)

test("files that cannot be used are skipped and counted; links and unreadable folders do no harm", function()
  with_folder(function(folder)
    local sources, data = fs.join(folder, "src"), fs.join(folder, "data")
    write_sources(sources, 6)
    fs.write(fs.join(sources, "nul.py"), "x = 1\0\n")
    fs.write(fs.join(sources, "latin.py"), "x = '\233'\n")
    fs.write(fs.join(sources, "caf\233.py"), python_file(78, 2))
    fs.write(fs.join(sources, "surrogate.py"), "x = '\237\160\128'\n")
    fs.write(fs.join(sources, "empty.py"), " \n\n")
    fs.write(fs.join(sources, "long.py"), "x = '" .. ("a"):rep(3000) .. "'\n")
    fs.write(fs.join(sources, "made.py"), "# Automatically generated by x. DO NOT EDIT\ny = a + b\n")
    fs.write(fs.join(sources, "huge.py"), ("y = a + b\n"):rep(30000))
    fs.write(fs.join(sources, "bare.py"), "# no code\n")
    fs.write(fs.join(sources, "crlf.py"), (python_file(77, 2):gsub("\n", "\r\n")))
    shell(("cd %s && ln -s .. sub/loop && ln -s nowhere.py broken.py && ln -s self.py self.py && mkfifo pipe.py "
      .. "&& mkdir shut && chmod 000 shut"):format(git.quote(sources)))
    local output = must_make(("--mutate %s --output %s"):format(sources, data))
    for _, part in ipairs { "1  binary", "2  not UTF-8", "1  empty", "1  minified or generated", "1  generated: its head",
      "1  larger than 262144 bytes", "1  no place for a bug",
      "folder met before", "2  unreadable", "1  not a plain file", "1  a name that is not UTF-8" } do
      check.that(output:find(part, 1, true), ("the summary lacks '%s':\n%s"):format(part, output))
    end
    local crlf = 0
    for _, row in ipairs(all_rows(data)) do
      check.that(not row.current_line:find("\r", 1, true) and not row.context:find("\r", 1, true), "a carriage return")
      if row.file == "crlf.py" then crlf = crlf + 1 end
    end
    check.that(crlf > 0, "the file with \\r\\n made no rows")
  end)
end)

test("max-rows, max-files and correct-per-buggy limit the rows", function()
  with_folder(function(folder)
    local sources, data = fs.join(folder, "src"), fs.join(folder, "data")
    write_sources(sources, 30)
    must_make(("--mutate %s --output %s --max-rows 60"):format(sources, data))
    for _, split in ipairs { "train", "validation", "test" } do
      check.equal(#rows_of(data, split), 60, "rows of " .. split)
    end
    must_make(("--mutate %s --output %s --max-files 5 --correct-per-buggy 3 --similar 0"):format(sources, data))
    local files, classes = {}, { [0] = 0, [1] = 0 }
    for _, row in ipairs(all_rows(data)) do
      files[row.file] = true
      classes[row.score] = classes[row.score] + 1
    end
    local count = 0
    for _ in pairs(files) do count = count + 1 end
    check.equal(count, 5, "files")
    check.near(classes[1] / classes[0], 3, 0.3, "correct rows per buggy row")
  end)
end)

test("git: files before and after the commits that fix bugs, and no others", function()
  with_folder(function(folder)
    local repo, data = fs.join(folder, "it's a repo"), fs.join(folder, "data")
    fs.make(repo)
    local function run(command)
      local output, status = shell(("cd %s && %s"):format(git.quote(repo), command))
      check.equal(status, 0, "status of " .. command .. "\n" .. output .. "\n")
    end
    local function commit(message)
      run("git add -A && git -c user.name=a -c user.email=a@b -c commit.gpgsign=false commit -q -m " .. git.quote(message))
    end
    run("git init -q .")
    must_fail(("--git %s --output %s"):format(git.quote(repo), data), "no commit that fixes a bug")
    fs.write(fs.join(repo, "a b.py"), BEFORE)
    fs.write(fs.join(repo, "c.py"), "z = 1\n")
    fs.write(fs.join(repo, "d.txt"), "one\n")
    commit "Add files"
    fs.write(fs.join(repo, "a b.py"), AFTER)
    fs.write(fs.join(repo, "d.txt"), "two\n")
    commit "Handle equality\n\nFixes #12"
    fs.write(fs.join(repo, "c.py"), "z = 2\n")
    commit "Fix typo"
    fs.write(fs.join(repo, "c.py"), "z = 3\n")
    commit "Prefix the value"
    fs.write(fs.join(repo, "c.py"), "z = 4\nw = 5\n")
    commit "Bug: the value was wrong"
    local output = must_make(("--git %s --output %s"):format(git.quote(repo), data))
    check.that(output:find("2 files found, 2 pairs used, 2 commits", 1, true), output)
    local scores = {}
    for _, row in ipairs(all_rows(data)) do
      local path = row.file:match("^(.*)@%x+$")
      scores[path] = scores[path] or {}
      scores[path][row.line] = row.score
    end
    check.equal(scores["a b.py"][4], 0)
    check.equal(scores["a b.py"][6], 0)
    check.equal(scores["a b.py"][5], 1)
    check.equal(scores["c.py"][1], 0)
    output = must_make(("--git %s --output %s --message-pattern '^Prefix'"):format(git.quote(repo), data))
    check.that(output:find("1 files found, 1 pairs used, 1 commits", 1, true), output)
    for _, name in ipairs(fs.list(data)) do check.that(not name:find("partial"), "left behind: " .. name) end
  end)
end)

test("errors name the option and what to do", function()
  with_folder(function(folder)
    local sources, data = fs.join(folder, "src"), fs.join(folder, "data")
    write_sources(sources, 3)
    must_fail("--output " .. data, "give --pairs DIR")
    must_fail(("--mutate %s --pairs %s --output %s"):format(sources, sources, data), "give one source of data, not two")
    must_fail("--mutate " .. sources, "--output is missing")
    must_fail(("--mutate %s/none --output %s"):format(sources, data), "there is no such folder")
    must_fail(("--mutate %s/file1.py --output %s"):format(sources, data), "is a file; name the folder")
    must_fail(("--mutate %s --output %s --extensions lua"):format(sources, data), "no file ends in .lua")
    must_fail(("--mutate %s --output %s --extensions cobol"):format(sources, data), "no language is known for 'cobol'")
    must_fail(("--pairs %s --output %s"):format(sources, data), "no *_before_merge files")
    must_fail(("--git %s --output %s"):format(sources, data), "is not a git repository")
    must_fail(("--mutate %s --output %s/file1.py/x"):format(sources, sources), "--output")
    must_fail(("--mutate %s --output %s --correct-per-buggy few"):format(sources, data),
      "correct_per_buggy is 'few', expected a number from 0 (all correct lines) up, or auto")
    must_fail(("--mutate %s --output %s --similar 2"):format(sources, data), "--similar is '2'")
    fs.write(fs.join(sources, "b_before_merge.c"), "\0")
    fs.write(fs.join(sources, "b_after_merge.c"), "\0")
    must_fail(("--pairs %s --output %s"):format(sources, data), "no row could be made")
    check.that(not fs.exists(fs.join(data, "train.jsonl")), "a failed run left a file")
    for _, name in ipairs(fs.exists(data) and fs.list(data) or {}) do check.that(not name:find("partial"), name) end
  end)
end)

test("from this machine: made once, then found", function()
  with_folder(function(folder)
    local sources, data = fs.join(folder, "src"), fs.join(folder, "data")
    write_sources(sources, 10)
    local given = { folders = { sources }, output = data, max_rows = 90, seed = 2 }
    local output, summary = bugdata.from_this_machine(given)
    check.equal(output, data)
    check.equal(summary.rows.train.total, 90)
    local again, second = bugdata.from_this_machine(given)
    check.equal(again, data)
    check.equal(second, nil, "a second summary")
    check.raises("there are no Python sources", bugdata.from_this_machine, { folders = {}, output = fs.join(folder, "x") })
  end)
end)
