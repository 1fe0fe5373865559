-- git.lua: reads commits and file versions out of a git repository, through the git program.
--
--   local repo = git.open(path)                        -- raises unless git is there and path is a repository
--   local changes, commits = repo:changes { pattern = , extensions = , max_commits = , wanted = function(message) ... end }
--       -- changes[i] = { commit, path, before, after }: blob ids of one modified file, newest commit first
--   repo:blobs(ids, scratch, limit, function(i, text, reason) ... end)
--       -- contents of the ids in order; text is nil where one is missing, or larger than limit bytes
--
-- The repository may be anybody's, and its configuration can name programs: to page, to verify signatures, to convert or filter
-- files, to watch for changes, to fetch what a partial clone lacks. So its configuration is read by `git rev-parse` alone, which
-- runs none of them and tells where its objects are (and refuses repositories of other users, see git's safe.directory). All else
-- is read through a git directory of our own, made for each call and empty except for the name of the repository's object folder,
-- in an environment of our own: there is no configuration, attribute file, hook, replaced object or remote that git could find.
--
-- Two processes do the work, however many commits: one `git log --raw`, which names the blobs, and one `git cat-file --batch`,
-- which streams them. Every argument goes through quote().
local check = require "lorarun.base.check"
local fs = require "lorarun.base.fs"
local using = require "lorarun.base.using"

local git = {}
local Repository = {}
Repository.__index = Repository

local CHUNK = 65536 -- bytes of a blob that is too large, thrown away at a time

-- One word for a POSIX shell, whatever bytes are in it (a NUL cannot be passed, and is left out).
function git.quote(text)
  return "'" .. text:gsub("%z", ""):gsub("'", "'\\''") .. "'"
end

local function quoted(words)
  local parts = {}
  for i, word in ipairs(words) do parts[i] = git.quote(word) end
  return table.concat(parts, " ")
end

-- Output and exit status. In Lua 5.1 popen gives no status, so the shell appends it.
local function run(command)
  local pipe = io.popen("{ " .. command .. "; }; printf '\\n%d' $?", "r")
  if not pipe then check.fail("no process can be started for git") end
  local output = pipe:read("*a")
  pipe:close()
  local text, status = output:match("^(.*)\n(%d+)$")
  return text or "", tonumber(status) or -1
end

-- What git says, in one line.
local function one_line(text) return (text:gsub("%s+$", ""):gsub("%s+", " ")) end

-- ---- the repository's own directory -------------------------------------------------------------------------------------
-- Variables that would lead git to another repository than the one named. Configuration that is given in variables is the user's
-- own and stays: safe.directory may be among it.
local MISLEADING = { "GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES",
  "GIT_INDEX_FILE", "GIT_NAMESPACE", "GIT_PREFIX", "GIT_SHALLOW_FILE", "GIT_GRAFT_FILE", "GIT_REPLACE_REF_BASE" }

-- The answer of `git rev-parse`, or nil and what git says.
local function rev_parse(path, ...)
  local command = ("unset %s; LC_ALL=C GIT_OPTIONAL_LOCKS=0 git -C %s --no-pager -c core.fsmonitor=false "
    .. "-c core.hooksPath=/dev/null -c protocol.allow=never rev-parse %s </dev/null"):format(table.concat(MISLEADING, " "),
    git.quote(path), quoted { ... })
  local output, status = run(command .. " 2>/dev/null")
  if status == 0 then return (output:gsub("\n$", "")) end
  if status == 127 then
    check.fail("--git needs the git program, which is not installed. On Debian: apt-get install git")
  end
  return nil, one_line((run(command .. " 2>&1")))
end

function git.open(path)
  local function path_of(name)
    local answer, reason = rev_parse(path, "--git-path", name)
    if not answer then check.fail("--git %s is not a git repository that can be read (git says: %s)", path, reason) end
    return fs.join(path, answer)
  end
  local repo = setmetatable({ path = path }, Repository)
  repo.objects, repo.shallow = fs.real(path_of "objects"), path_of "shallow"
  repo.format = rev_parse(path, "--show-object-format") == "sha256" and "sha256" or "sha1"
  repo.head = (rev_parse(path, "--verify", "--quiet", "HEAD") or ""):match("^%x+$") -- nil before the first commit
  return repo
end

-- ---- a directory of our own -----------------------------------------------------------------------------------------------
local CONFIG = { sha1 = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n",
  sha256 = "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n\tobjectformat = sha256\n" }

-- The shell command that runs git on the repository's objects and on nothing else of it.
function Repository:command(words)
  local environment = { "LC_ALL=C", "GIT_OBJECT_DIRECTORY=" .. self.objects, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_SYSTEM=/dev/null",
    "GIT_CONFIG_GLOBAL=/dev/null", "GIT_ATTR_NOSYSTEM=1", "GIT_NO_REPLACE_OBJECTS=1", "GIT_NO_LAZY_FETCH=1",
    "GIT_ALLOW_PROTOCOL=none", "GIT_PROTOCOL_FROM_USER=0", "GIT_TERMINAL_PROMPT=0", "GIT_OPTIONAL_LOCKS=0" }
  if fs.exists(self.shallow) then environment[#environment + 1] = "GIT_SHALLOW_FILE=" .. fs.real(self.shallow) end
  for _, name in ipairs { "PATH", "LD_LIBRARY_PATH", "GIT_EXEC_PATH" } do
    local value = os.getenv(name)
    if value then environment[#environment + 1] = name .. "=" .. value end
  end
  return ("(d=$(mktemp -d) || exit 1; trap 'rm -rf \"$d\"' EXIT; trap 'exit 1' HUP INT TERM; mkdir \"$d/refs\" && "
    .. "echo 'ref: refs/heads/none' >\"$d/HEAD\" && printf %%s %s >\"$d/config\" && "
    .. "env -i %s GIT_DIR=\"$d\" HOME=\"$d\" XDG_CONFIG_HOME=\"$d\" git --no-pager %s)")
    :format(git.quote(CONFIG[self.format]), quoted(environment), quoted(words))
end

-- What `git log` printed, as changes, and the number of commits. The output is a row of texts that end in NUL, which is in no
-- message and no path, so a commit's message cannot be taken for anything else.
local function parse_log(output, wanted)
  local changes, commits = {}, 0
  local at, commit = 1, nil
  local function next_text()
    local stop = output:find("\0", at, true)
    local text = stop and output:sub(at, stop - 1)
    at = stop and stop + 1 or #output + 1
    return text
  end
  for text in next_text do
    if text:find("^%x+$") then
      commit = wanted(next_text() or "") and text or nil
      commits = commits + (commit and 1 or 0)
    elseif text:find "^\n?:" then
      local path = next_text()
      local before, after = text:match("^\n?:%d+ 100%d+ (%x+) (%x+) M$")
      if commit and before then changes[#changes + 1] = { commit = commit, path = path, before = before, after = after } end
    end
  end
  return changes, commits
end

function Repository:changes(options)
  if not self.head then return {}, 0 end
  local words = { "log", "-z", "--raw", "--no-abbrev", "--no-merges", "--no-renames", "--no-color", "--no-ext-diff",
    "--no-textconv", "--no-show-signature", "--no-mailmap", "--diff-filter=M", "--regexp-ignore-case", "--extended-regexp",
    "--grep=" .. options.pattern, "--format=%x00%H%x00%B%x00" }
  if options.max_commits > 0 then words[#words + 1] = "--max-count=" .. options.max_commits end
  words[#words + 1] = self.head
  words[#words + 1] = "--"
  for _, extension in ipairs(options.extensions) do words[#words + 1] = "*." .. extension end
  local command = self:command(words)
  local output, status = run(command .. " 2>/dev/null")
  if status ~= 0 then
    check.fail("git log failed in %s (git says: %s). lorarun never fetches: where the clone is a partial one, fetch all of it "
      .. "first", self.path, one_line((run(command .. " 2>&1 >/dev/null"))))
  end
  return parse_log(output, options.wanted)
end

function Repository:blobs(ids, scratch, limit, fn)
  if #ids == 0 then return end
  local list, reason = io.open(scratch, "wb")
  if not list then check.fail("cannot write %s: %s", scratch, reason) end
  list:write(table.concat(ids, "\n"), "\n")
  list:close()
  local function close(pipe)
    pipe:close()
    os.remove(scratch)
  end
  local command = self:command { "cat-file", "--batch" } .. " < " .. git.quote(scratch) .. " 2>/dev/null"
  using(io.popen(command, "r"), close, function(pipe)
    for i = 1, #ids do
      local header = pipe:read("*l")
      if not header then check.fail("git cat-file ended early in %s, at object %s", self.path, ids[i]) end
      local kind, size = header:match("^%x+ (%a+) (%d+)$")
      size = tonumber(size)
      if not size then
        fn(i, nil, "missing from the repository")
      elseif kind == "blob" and size <= limit then
        local text = size > 0 and pipe:read(size) or ""
        pipe:read(1) -- the line end after each object
        fn(i, text)
      else
        local left = size + 1
        while left > 0 and pipe:read(math.min(left, CHUNK)) do left = left - math.min(left, CHUNK) end
        fn(i, nil, kind == "blob" and ("larger than %d bytes"):format(limit) or "not a plain file")
      end
    end
  end)
end

return git
