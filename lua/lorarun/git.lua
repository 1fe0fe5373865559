-- git.lua: reads commits and file versions out of a git repository, through the git program.
--
--   git.check(repo)                                    -- raises unless git is there and repo is a repository
--   local changes = git.changes(repo, { pattern = , extensions = , max_commits = , wanted = function(message) ... end
--   }) changes[i] = { commit, path, before, after }        -- blob ids of one modified file, newest commit first
--   git.blobs(repo, ids, scratch, function(i, text) ... end)   -- contents of the ids in order; text is nil where one
--   is missing
--
-- Two processes do it all, however many commits: one `git log --raw`, which names the blobs, and one `git cat-file
-- --batch`, which streams them. Every argument goes through quote(). Nothing of the repository's own is run (no hooks,
-- filters or text converters).
local check = require "lorarun.check"

local git = {}

-- One word for a POSIX shell, whatever bytes are in it (a NUL cannot be passed at all).
function git.quote(text)
  return "'" .. text:gsub("%z", ""):gsub("'", "'\\''") .. "'"
end

local function command_line(repo, words)
  local parts = { "GIT_OPTIONAL_LOCKS=0 LC_ALL=C git -C", git.quote(repo) }
  for _, word in ipairs(words) do parts[#parts + 1] = git.quote(word) end
  return table.concat(parts, " ")
end

-- Output and exit status. popen tells no status in Lua 5.1, so the shell appends it.
local function run(command)
  local pipe = io.popen("{ " .. command .. "; }; printf '\\n%d' $?", "r")
  if not pipe then check.fail("no process can be started for git") end
  local output = pipe:read("*a")
  pipe:close()
  local text, status = output:match("^(.*)\n(%d+)$")
  return text or "", tonumber(status) or -1
end

function git.check(repo)
  local output, status = run(command_line(repo, { "rev-parse", "--git-dir" }) .. " 2>&1")
  if status == 127 then
    check.fail("--git needs the git program, which is not installed. On Debian: apt-get install git")
  end
  if status ~= 0 then
    local reason = output:gsub("%s+$", ""):match("[^\n]*$")
    check.fail("--git %s is not a git repository that can be read (git says: %s)", repo, reason)
  end
end

function git.changes(repo, options)
  local words = { "log", "-z", "--raw", "--no-abbrev", "--no-merges", "--no-renames", "--no-color", "--diff-filter=M",
    "--regexp-ignore-case", "--extended-regexp", "--grep=" .. options.pattern, "--format=%x01%H%x02%B%x02" }
  if options.max_commits > 0 then words[#words + 1] = "--max-count=" .. options.max_commits end
  words[#words + 1] = "--"
  for _, extension in ipairs(options.extensions) do words[#words + 1] = "*." .. extension end
  local command = command_line(repo, words)
  local output, status = run(command .. " 2>/dev/null")
  if status ~= 0 then
    local reason = run(command .. " 2>&1 >/dev/null"):gsub("%s+$", ""):match("[^\n]*$")
    if reason:find("does not have any commits") then return {}, 0 end
    check.fail("git log failed in %s: %s", repo, reason)
  end
  local changes, commits = {}, 0
  for record in output:gmatch("\1([^\1]*)") do
    local commit, message, files = record:match("^(%x+)\2(.-)\2(.*)$")
    if commit and options.wanted(message) then
      commits = commits + 1
      for before, after, path in files:gmatch(":%d+ 100%d+ (%x+) (%x+) M%z([^%z]+)%z") do
        changes[#changes + 1] = { commit = commit, path = path, before = before, after = after }
      end
    end
  end
  return changes, commits
end

function git.blobs(repo, ids, scratch, fn)
  if #ids == 0 then return end
  local list, reason = io.open(scratch, "wb")
  if not list then check.fail("cannot write %s: %s", scratch, reason) end
  list:write(table.concat(ids, "\n"), "\n")
  list:close()
  local pipe = io.popen(command_line(repo, { "cat-file", "--batch" }) .. " < " .. git.quote(scratch)
    .. " 2>/dev/null", "r")
  local ok, err = pcall(function()
    for i = 1, #ids do
      local header = pipe:read("*l")
      if not header then check.fail("git cat-file ended early in %s, at object %s", repo, ids[i]) end
      local size = header:match("^%x+ blob (%d+)$")
      if size then
        local text = tonumber(size) > 0 and pipe:read(tonumber(size)) or ""
        pipe:read(1) -- the line end after each object
        fn(i, text)
      else
        fn(i, nil)
      end
    end
  end)
  pipe:close()
  os.remove(scratch)
  if not ok then error(err, 0) end
end

return git
