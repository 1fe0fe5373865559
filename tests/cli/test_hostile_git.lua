-- bugdata --git on repositories whose configuration names programs. Each program would write a marker file; none is run, and the
-- commits are still read.
local fs = require "lorarun.base.fs"
local git = require "lorarun.bugdata.git"

local tools = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local quote = tools.quote
local AUTHOR = "-c user.name=a -c user.email=a@b"

local function sh(command, message)
  local r = tools.run(command)
  check.equal(r.status, 0, (message or command) .. "\n" .. r.out .. r.err .. "\n")
  return (r.out:gsub("\n$", ""))
end

-- Calls fn(repo, marker, evil, folder). repo: a repository with a commit that fixes a bug in "a b.py"; evil: a program that appends
-- to `marker`.
local function with_repository(fn, init)
  tools.with_folder(function(folder)
    local repo, marker = fs.join(folder, "repo"), fs.join(folder, "marker")
    local evil = fs.join(folder, "evil")
    fs.write(evil, ("#!/bin/sh\necho \"$0 $*\" >>%s\nexit 1\n"):format(marker))
    local commit = "git add -A && git " .. AUTHOR .. " -c commit.gpgsign=false commit -q -m "
    sh(("chmod +x %s && git init -q %s %s && cd %s && echo 1 >'a b.py' && %s one && echo 2 >'a b.py' && echo 3 >c && %s 'Fix it'")
      :format(evil, init or "", repo, repo, commit, commit))
    fn(repo, marker, evil, folder)
  end)
end

local function changes_of(repo, scratch)
  local opened = git.open(repo)
  local changes, commits = opened:changes { pattern = "fix", extensions = { "py" }, max_commits = 0,
    wanted = function(message) return message:find "^Fix" ~= nil end }
  local ids, texts = {}, {}
  for _, change in ipairs(changes) do
    ids[#ids + 1] = change.before
    ids[#ids + 1] = change.after
  end
  opened:blobs(ids, scratch, 100, function(i, text, reason) texts[i] = text or reason end)
  return changes, texts, commits
end

local function must_read(repo, folder)
  local changes, texts, commits = changes_of(repo, fs.join(folder, "ids"))
  check.equal(commits, 1, "commits")
  check.equal(#changes, 1, "changes")
  check.equal(changes[1].path, "a b.py")
  check.equal(texts[1], "1\n")
  check.equal(texts[2], "2\n")
end

-- Every setting of git that names a program, or a file or folder that can name one.
local function poison(repo, evil)
  for _, setting in ipairs { "core.pager", "pager.log", "pager.rev-parse", "pager.cat-file", "core.editor", "core.sshCommand",
    "core.gitProxy", "core.askPass", "core.fsmonitor", "core.alternateRefsCommand", "core.attributesFile", "gpg.program",
    "gpg.ssh.program", "gpg.x509.program", "gpg.openpgp.program", "diff.external", "diff.evil.command", "diff.evil.textconv",
    "filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "merge.evil.driver", "interactive.diffFilter",
    "sequence.editor", "uploadpack.packObjectsHook", "remote.origin.uploadpack", "remote.origin.receivepack",
    "alias.log", "alias.rev-parse", "alias.cat-file" } do
    sh(("git -C %s config %s %s"):format(repo, setting, setting:find "^alias" and quote("!" .. evil) or evil))
  end
  for setting, value in pairs { ["log.showSignature"] = "true", ["credential.helper"] = "!" .. evil, ["log.follow"] = "true",
    ["core.hooksPath"] = fs.dirname(evil) .. "/hooks", ["protocol.allow"] = "always", ["protocol.ext.allow"] = "always",
    ["core.repositoryformatversion"] = "1", ["extensions.partialClone"] = "origin", ["remote.origin.promisor"] = "true",
    ["remote.origin.url"] = "ext::" .. evil, ["remote.origin.partialclonefilter"] = "blob:none", ["diff.ignoreSubmodules"] = "none",
    ["color.ui"] = "always", ["log.mailmap"] = "true", ["core.untrackedCache"] = "true" } do
    sh(("git -C %s config %s %s"):format(repo, setting, quote(value)))
  end
  fs.write(fs.join(repo, ".git/info/attributes"), "* diff=evil filter=evil merge=evil\n")
  fs.write(fs.join(repo, ".gitattributes"), "* diff=evil filter=evil merge=evil\n")
  local hooks = fs.dirname(evil) .. "/hooks"
  fs.make(hooks)
  for _, hook in ipairs { "post-checkout", "post-index-change", "reference-transaction", "fsmonitor-watchman", "pre-auto-gc" } do
    sh(("cp %s %s/%s; cp %s %s/.git/hooks/%s"):format(evil, hooks, hook, evil, repo, hook))
  end
end

test("no program that the repository's configuration names is run", function()
  with_repository(function(repo, marker, evil, folder)
    -- the newest commit has a signature, which gpg.program would check because of log.showSignature
    sh(([[cd %s && git cat-file commit HEAD | \
      sed '/^committer/a gpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----' >%s/commit && \
      git update-ref HEAD $(git hash-object -t commit -w %s/commit)]]):format(repo, folder, folder))
    poison(repo, evil)
    os.remove(marker)
    must_read(repo, folder)
    check.that(not fs.exists(marker), "a program of the repository ran:\n" .. (fs.exists(marker) and fs.read(marker) or ""))
    -- the settings do work: git itself, run in the ordinary way, runs the program
    tools.run(("cd %s && git log --raw"):format(repo))
    check.that(fs.exists(marker), "git did not run gpg.program either: this test proves nothing")
  end)
end)

test("files that a partial clone lacks are not fetched", function()
  with_repository(function(repo, marker, evil, folder)
    local before = sh(("git -C %s rev-parse 'HEAD~1:a b.py'"):format(repo))
    poison(repo, evil)
    fs.remove(("%s/.git/objects/%s/%s"):format(repo, before:sub(1, 2), before:sub(3)))
    os.remove(marker)
    local _, texts = changes_of(repo, fs.join(folder, "ids"))
    check.equal(texts[1], "missing from the repository")
    check.equal(texts[2], "2\n")
    check.that(not fs.exists(marker), "git fetched")
    tools.run(("cd %s && GIT_ALLOW_PROTOCOL=ext git cat-file -p %s"):format(repo, before))
    check.that(fs.exists(marker), "git did not fetch either: this test proves nothing")
    -- also if the newest commit itself is missing
    os.remove(marker)
    local head = sh(("git -C %s rev-parse HEAD"):format(repo))
    fs.remove(("%s/.git/objects/%s/%s"):format(repo, head:sub(1, 2), head:sub(3)))
    check.raises("lorarun never fetches", changes_of, repo, fs.join(folder, "ids"))
    check.that(not fs.exists(marker), "git fetched the newest commit")
  end)
end)

test("variables of the environment select no other repository and no program", function()
  with_repository(function(repo, marker, evil, folder)
    sh(("git init -q %s/other"):format(folder))
    local code = ([[local repo = require "lorarun.bugdata.git".open(%q)
      local changes = repo:changes { pattern = "fix", extensions = { "py" }, max_commits = 0, wanted = function() return true end }
      print(#changes, changes[1].path)]]):format(repo)
    local r = tools.run(([[GIT_DIR=%s/other/.git GIT_WORK_TREE=%s/other GIT_OBJECT_DIRECTORY=%s/other/.git/objects GIT_PAGER=%s \
      GIT_EXTERNAL_DIFF=%s GIT_SSH_COMMAND=%s GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=log.showSignature GIT_CONFIG_VALUE_0=true \
      GIT_CONFIG_KEY_1=gpg.program GIT_CONFIG_VALUE_1=%s $L -e %s]]):format(folder, folder, folder, evil, evil, evil, evil,
      quote(code)))
    check.equal(r.out, "1\ta b.py\n", r.err)
    check.that(not fs.exists(marker), "a program ran")
  end)
end)

test("git's own refusal of another user's repository still holds", function()
  with_repository(function(repo)
    local code = ("require 'lorarun.bugdata.git'.open %q"):format(repo)
    local r = tools.run("GIT_TEST_ASSUME_DIFFERENT_OWNER=1 $L -e " .. quote(code))
    check.that(r.status ~= 0 and r.err:find("dubious ownership", 1, true), r.err)
  end)
end)

test("messages and paths cannot look like other commits; objects of another kind, or too large, are skipped", function()
  with_repository(function(repo, _, _, folder)
    -- a message with the bytes that could separate records of the output, a "file" that is a tree, and a file above the limit
    local tree = sh(("git -C %s rev-parse HEAD^{tree}"):format(repo))
    local forged = "Fix\1" .. ("1"):rep(40) .. "\2Fix\2:100644 100644 " .. ("2"):rep(40) .. " " .. ("3"):rep(40) .. " M"
    sh(([[cd %s && head -c 200 /dev/zero | tr '\0' x >'a b.py' && git add -A && git update-index --add --cacheinfo 100644,%s,t.py &&
      git update-ref HEAD $(git %s commit-tree -p HEAD -m 'Fix t' $(git write-tree --missing-ok))]]):format(repo, tree, AUTHOR))
    local blob = sh(("git -C %s rev-parse 'HEAD:a b.py'"):format(repo))
    sh(([[cd %s && git update-index --cacheinfo 100644,%s,t.py && echo 4 >'a b.py' && git add 'a b.py' && \
      printf %%s %s >%s/message && git update-ref HEAD $(git %s commit-tree -p HEAD -F %s/message \
      $(git write-tree))]]):format(repo, blob, quote(forged), folder, AUTHOR, folder))
    local changes, texts, commits = changes_of(repo, fs.join(folder, "ids"))
    check.equal(commits, 3, "commits")
    local found = {}
    for i, change in ipairs(changes) do found[#found + 1] = change.path .. ": " .. texts[2 * i - 1] .. ", " .. texts[2 * i] end
    check.equal(table.concat(found, "; "):gsub("\n", ""), "a b.py: larger than 100 bytes, 4; "
      .. "t.py: not a plain file, larger than 100 bytes; a b.py: 2, larger than 100 bytes; a b.py: 1, 2")
  end)
end)

test("linked work trees, shallow and shared clones, and repositories with SHA-256 are read", function()
  with_repository(function(repo, _, _, folder)
    sh(("git -C %s worktree add -q %s/tree HEAD && git clone -q --shared %s %s/shared && "
      .. "git clone -q --depth 1 file://%s %s/shallow"):format(repo, folder, repo, folder, repo, folder))
    must_read(fs.join(folder, "tree"), folder)
    must_read(fs.join(folder, "shared"), folder)
    local changes, _, commits = changes_of(fs.join(folder, "shallow"), fs.join(folder, "ids"))
    check.equal(#changes, 0)
    check.equal(commits, 0)
  end)
  with_repository(function(repo, _, _, folder) must_read(repo, folder) end, "--object-format=sha256")
end)
