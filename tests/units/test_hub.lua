-- Where models are found: the cache in huggingface_hub's layout, errors for incomplete snapshots, and short names of ids.
-- The folders here hold empty files: nothing is loaded.
local ffi = require "ffi"
local fs = require "lorarun.base.fs"
local hub = require "lorarun.formats.hub"

ffi.cdef "int setenv(const char *, const char *, int); int unsetenv(const char *); int symlink(const char *, const char *);"

local COMMIT, OTHER = ("0123456789"):rep(4), ("abcdef0123"):rep(4)
local VARIABLES = { "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "SENTENCE_TRANSFORMERS_HOME",
  "TRANSFORMERS_CACHE", "HF_HUB_OFFLINE", "HOME", "HUB_TEST" }

-- Calls fn(root) with only these variables set; root is an empty folder.
local function with(variables, fn)
  local before, root = {}, os.tmpname()
  os.remove(root)
  fs.make(root)
  for _, name in ipairs(VARIABLES) do
    before[name] = os.getenv(name)
    ffi.C.unsetenv(name)
  end
  for name, value in pairs(variables) do ffi.C.setenv(name, (value:gsub("ROOT", root)), 1) end
  local ok, err = pcall(fn, root)
  for _, name in ipairs(VARIABLES) do
    if before[name] then ffi.C.setenv(name, before[name], 1) else ffi.C.unsetenv(name) end
  end
  fs.remove(root)
  if not ok then error(err, 0) end
end

local function put(path, text)
  fs.make(fs.dirname(path))
  fs.write(path, text or "")
end

-- Makes a repository with a complete snapshot in the cache, and a ref `ref` that names it unless that is false; returns the
-- snapshot's folder.
local function repository(cache, id, ref, commit)
  local at = fs.join(cache, "models--" .. id:gsub("/", "--"))
  local snapshot = fs.join(at, "snapshots", commit or COMMIT)
  put(fs.join(snapshot, "config.json"), "{}")
  put(fs.join(snapshot, "model.safetensors"))
  if ref ~= false then put(fs.join(at, "refs", ref or "main"), commit or COMMIT) end
  return snapshot, at
end

test("where the cache is: the variables of huggingface_hub, with ~ and $", function()
  local function cache(variables, expected)
    with(variables, function(root) check.equal(hub.cache(), (expected:gsub("ROOT", root))) end)
  end
  cache({ HOME = "ROOT" }, "ROOT/.cache/huggingface/hub")
  cache({ HOME = "ROOT", XDG_CACHE_HOME = "~/c" }, "ROOT/c/huggingface/hub")
  cache({ HOME = "ROOT", HF_HOME = "~/hf" }, "ROOT/hf/hub")
  cache({ HOME = "ROOT", HF_HOME = "~" }, "ROOT/hub")
  cache({ HUB_TEST = "ROOT", HF_HOME = "$HUB_TEST/hf" }, "ROOT/hf/hub")
  cache({ HUB_TEST = "ROOT", HF_HUB_CACHE = "${HUB_TEST}/x", HF_HOME = "/y" }, "ROOT/x")
  cache({ HUGGINGFACE_HUB_CACHE = "/old/$HUB_TEST/~" }, "/old/$HUB_TEST/~") -- $HUB_TEST is not set, ~ is not at the beginning
  cache({ HF_HOME = "~no-such-user/x" }, "~no-such-user/x/hub")
  with({ HOME = "ROOT", HF_HOME = "~/hf" }, function(root)
    check.equal(require("lorarun.dist.accelerate").default_path(), root .. "/hf/accelerate/default_config.yaml")
  end)
end)

test("ids with and without an organization", function()
  with({ HF_HUB_CACHE = "ROOT" }, function(root)
    local bert, mini = repository(root, "bert-base-uncased"), repository(root, "sentence-transformers/all-mpnet-base-v2")
    check.equal(hub.resolve "bert-base-uncased", bert)
    check.equal(hub.resolve "all-mpnet-base-v2", mini)
    check.equal(hub.resolve "sentence-transformers/all-mpnet-base-v2", mini)
  end)
end)

test("sentence-transformers' cache and the old one of transformers", function()
  with({ HF_HUB_CACHE = "ROOT/hub", SENTENCE_TRANSFORMERS_HOME = "ROOT/st", TRANSFORMERS_CACHE = "ROOT/tf" }, function(root)
    local in_st, in_tf = repository(root .. "/st", "a/st"), repository(root .. "/tf", "a/tf")
    local both = repository(root .. "/st", "a/both")
    repository(root .. "/hub", "a/both")
    check.equal(hub.resolve "a/st", in_st)
    check.equal(hub.resolve "a/tf", in_tf)
    check.equal(hub.resolve "a/both", both)
    check.raises(("cache (%s/st, %s/hub, %s/tf)"):format(root, root, root), hub.resolve, "a/none")
  end)
end)

test("the small model by its short name", function()
  with({ XDG_CACHE_HOME = "ROOT" }, function(root)
    local own = root .. "/lorarun/models/all-MiniLM-L6-v2"
    check.raises("To fetch it: hf download sentence-transformers/all-MiniLM-L6-v2 ", hub.resolve, "all-MiniLM-L6-v2")
    check.raises("hf download bert-base-uncased (sentence-transformers/bert-base-uncased where it is one of", hub.resolve,
      "bert-base-uncased")
    check.raises("the small model is not there (" .. own .. "); tools/fetch_model.sh fetches it", hub.resolve, hub.small_model())
    put(own .. "/config.json", "{}")
    check.equal(hub.resolve "all-MiniLM-L6-v2", own)
    check.equal(hub.resolve "sentence-transformers/all-MiniLM-L6-v2", own)
    check.raises("neither a folder nor in", hub.resolve, "somebody/all-MiniLM-L6-v2")
    check.raises("hf download sentence-transformers/all-MiniLM-L6-v2 --revision v1", hub.resolve, "all-MiniLM-L6-v2", "v1")
  end)
end)

test("revisions: branches, tags and commits, and unknown ones", function()
  with({ HF_HUB_CACHE = "ROOT" }, function(root)
    local main, at = repository(root, "a/b")
    local other = repository(root, "a/b", "refs/pr/1", OTHER)
    check.equal(hub.resolve "a/b", main)
    check.equal(hub.resolve("a/b", "main"), main)
    check.equal(hub.resolve("a/b", "refs/pr/1"), other)
    check.equal(hub.resolve("a/b", OTHER), other)
    for _, revision in ipairs { "v2", OTHER:sub(1, 8), "../snapshots/" .. COMMIT, ".." } do
      check.raises(("%s has no revision '%s'"):format(at, revision), hub.resolve, "a/b", revision)
    end
    check.raises(("(there are main, refs/pr/1, %s, %s); get it by: hf download a/b --revision v2"):format(COMMIT, OTHER),
      hub.resolve, "a/b", "v2")
    check.raises("did you mean 'main'?", hub.resolve, "a/b", "mian")
    check.raises("the revision is ''", hub.resolve, "a/b", "")
    fs.write(at .. "/refs/main", OTHER .. "\n")
    check.equal(hub.resolve "a/b", other)
  end)
end)

test("a broken ref, and a missing one", function()
  with({ HF_HUB_CACHE = "ROOT" }, function(root)
    local snapshot, at = repository(root, "a/b")
    fs.write(at .. "/refs/main", "")
    check.raises(at .. "/refs/main is empty", hub.resolve, "a/b")
    for _, text in ipairs { ".", "..", "../snapshots/" .. COMMIT, "two words" } do
      fs.write(at .. "/refs/main", text)
      check.raises(at .. "/refs/main does not hold the number of a commit", hub.resolve, "a/b")
    end
    fs.write(at .. "/refs/main", OTHER) -- its files were never fetched; the other snapshot is another model
    check.raises("lacks all of its files", hub.resolve, "a/b")
    fs.remove(at .. "/refs/main")
    check.equal(hub.resolve "a/b", snapshot, "the only one there is")
    repository(root, "a/b", false, OTHER)
    check.raises(("has 2 snapshots (%s, %s) and no refs/main"):format(COMMIT, OTHER), hub.resolve, "a/b")
    fs.remove(at .. "/snapshots")
    check.raises("has no revision 'main'", hub.resolve, "a/b")
  end)
end)

test("a snapshot that lacks files", function()
  with({ HF_HUB_CACHE = "ROOT" }, function(root)
    local snapshot = repository(root, "a/b")
    local function lacks(what) check.raises(("the snapshot of 'a/b' in the cache lacks %s ("):format(what), hub.resolve, "a/b") end
    fs.remove(snapshot .. "/model.safetensors")
    lacks "model.safetensors"
    check.equal(hub.resolve("a/b", nil, true), snapshot, "a plan needs no weights")
    put(snapshot .. "/model.safetensors.index.json",
      '{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}')
    lacks "model-00001-of-00002.safetensors"
    put(snapshot .. "/model-00001-of-00002.safetensors")
    lacks "model-00002-of-00002.safetensors"
    ffi.C.symlink("../../blobs/gone", snapshot .. "/model-00002-of-00002.safetensors")
    lacks "model-00002-of-00002.safetensors (a link to nothing)"
    fs.remove(snapshot .. "/model-00002-of-00002.safetensors")
    put(snapshot .. "/model-00002-of-00002.safetensors")
    check.equal(hub.resolve "a/b", snapshot)
    put(snapshot .. "/modules.json", '[{"path":"","type":"x.Transformer"},{"path":"1_Pooling","type":"x.Pooling"},'
      .. '{"path":"2_Normalize","type":"x.Normalize"}]')
    lacks "1_Pooling"
    put(snapshot .. "/1_Pooling/config.json", "{}")
    check.equal(hub.resolve "a/b", snapshot)
    ffi.C.symlink("../../../blobs/gone", snapshot .. "/1_Pooling/other.json")
    lacks "1_Pooling/other.json (a link to nothing)"
    fs.remove(snapshot .. "/1_Pooling/other.json")
    fs.remove(snapshot .. "/config.json")
    fs.remove(snapshot .. "/modules.json")
    lacks "config.json"
    put(snapshot .. "/adapter_config.json", "{}")
    check.equal(hub.resolve "a/b", snapshot)
  end)
end)

test("an error about a path does not advise to download it", function()
  with({ HF_HUB_CACHE = "ROOT/hub" }, function(root)
    fs.make(root .. "/models/mine")
    for _, name in ipairs { "./no-such", "/no/such", "~/no-such", "no-such/", "a/b/c", "../x", "models/x",
      root .. "/models/mien" } do
      local err = check.raises("there is no model folder '" .. name .. "'", hub.resolve, name)
      check.that(not err:find "download", err)
    end
    check.raises("did you mean 'mine'?", hub.resolve, root .. "/models/mien")
    check.raises("~ is the shell's", hub.resolve, "~/models/x")
    fs.make "hub_test_folder" -- in the current folder
    local ok, err = pcall(hub.resolve, "hub_test_folder/no-such") -- otherwise this would be an id
    fs.remove "hub_test_folder"
    check.that(not ok and err:find("there is no model folder 'hub_test_folder/no-such'", 1, true), err)
    check.raises("To fetch it: hf download a/b   (HF_HOME", hub.resolve, "a/b")
    ffi.C.setenv("HF_HUB_OFFLINE", "1", 1)
    check.raises("hf download a/b (with HF_HUB_OFFLINE unset)", hub.resolve, "a/b")
    check.raises("the model is ''", hub.resolve, "")
  end)
end)
