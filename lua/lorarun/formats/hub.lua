-- hub.lua: finds a model: a folder, a Hugging Face id in the local hub cache, or lorarun's own small model. It downloads nothing
-- and guesses nothing: a revision that is missing, or a snapshot that lacks files, is an error that names the remedy.
--
-- The cache of huggingface_hub: CACHE/models--ORG--NAME/ has refs/BRANCH, each with the number of a commit, and snapshots/COMMIT/,
-- whose files are links to blobs/. An interrupted download leaves blobs/*.incomplete, or links without a blob.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local check = require "lorarun.base.check"
local suggest = require "lorarun.base.suggest"

local hub = {}

local SMALL_MODEL = "all-MiniLM-L6-v2"
local ORGANIZATION = "sentence-transformers" -- where sentence-transformers looks for names without one

local function env(name)
  local value = os.getenv(name)
  return value ~= nil and value ~= "" and value or nil
end

-- The home folder of a user; user "": of the one who runs this program.
local function home_of(user)
  if user == "" and env "HOME" then return env "HOME" end
  local name = user ~= "" and user or env "USER"
  local ok, users = pcall(fs.read, "/etc/passwd")
  for line in (ok and users or ""):gmatch "[^\n]+" do
    local login, home = line:match "^([^:]*):[^:]*:[^:]*:[^:]*:[^:]*:([^:]*)"
    if login == name then return home end
  end
end

--- expand(path): as Python's expanduser and expandvars read it: "~/x", "~user/x", "$NAME/x", "${NAME}/x". An unknown user, or a
--- variable that is not set, stays as it is.
function hub.expand(path)
  path = path:gsub("^~([^/]*)", function(user) return home_of(user) end)
  return (path:gsub("%$(%b{})", function(name) return os.getenv(name:sub(2, -2)) end):gsub("%$([%w_]+)", os.getenv))
end

local function user_cache() return env "XDG_CACHE_HOME" or fs.join(home_of "" or ".", ".cache") end

--- Hugging Face's folder in the user's cache.
function hub.home() return hub.expand(env "HF_HOME" or fs.join(user_cache(), "huggingface")) end

--- The hub cache folder, as huggingface_hub finds it.
function hub.cache()
  return hub.expand(env "HF_HUB_CACHE" or env "HUGGINGFACE_HUB_CACHE" or fs.join(hub.home(), "hub"))
end

-- The caches in which models are looked for, in this order. The variables of sentence-transformers and transformers name caches of
-- the same form as the hub's.
local function caches()
  local list, seen = {}, {}
  for _, folder in ipairs { env "SENTENCE_TRANSFORMERS_HOME" or "", hub.cache(), env "TRANSFORMERS_CACHE" or "" } do
    folder = folder ~= "" and hub.expand(folder) or nil
    if folder and not seen[folder] then list[#list + 1], seen[folder] = folder, true end
  end
  return list
end

--- lorarun's own cache, where `make` puts the small model.
function hub.lorarun_cache() return fs.join(user_cache(), "lorarun") end

--- Folder of lorarun's small model (all-MiniLM-L6-v2), present or not.
function hub.small_model() return fs.join(hub.lorarun_cache(), "models", SMALL_MODEL) end

-- ---- a repository of the cache ----------------------------------------------------------------------------------------------

-- The files in a folder and below, as relative paths, sorted. Refs may lie in folders (refs/pr/1).
local function names_below(folder, prefix, names)
  names = names or {}
  if not fs.is_directory(folder) then return names end
  for _, name in ipairs(fs.list(folder)) do
    local path = fs.join(folder, name)
    if fs.is_directory(path) then names_below(path, (prefix or "") .. name .. "/", names)
    else names[#names + 1] = (prefix or "") .. name end
  end
  return names
end

local function snapshots_of(repository)
  local folder = fs.join(repository, "snapshots")
  return fs.is_directory(folder) and fs.list(folder) or {}
end

local function known_revisions(repository)
  local names = names_below(fs.join(repository, "refs"))
  for _, commit in ipairs(snapshots_of(repository)) do names[#names + 1] = commit end
  return names
end

-- The command that fetches all files of a model.
local function fetching(id, revision)
  return ("hf download %s%s%s"):format(id, revision and " --revision " .. revision or "",
    env "HF_HUB_OFFLINE" and " (with HF_HUB_OFFLINE unset)" or "")
end

-- The commit of a revision: what its ref says, or the revision itself; nil where the cache has neither.
local function commit_of(repository, id, revision)
  local ref = fs.join(repository, "refs", revision or "main")
  if fs.is_file(ref) then
    local commit = fs.read(ref):match "^%s*(.-)%s*$"
    if not commit:find "^[%w._-]+$" or commit:find "^%.+$" then
      check.fail("%s %s, so a download of the model was interrupted; get the rest by: %s", ref,
        commit == "" and "is empty" or "does not hold the number of a commit", fetching(id, revision))
    end
    return commit
  end
  if revision then
    local a_name = not revision:find "/" and not revision:find "^%.+$"
    return a_name and fs.is_directory(fs.join(repository, "snapshots", revision)) and revision or nil
  end
  local commits = snapshots_of(repository)
  if #commits > 1 then
    check.fail("%s has %d snapshots (%s) and no refs/main that says which one the model is; name one: revision = \"...\", or the "
      .. "path of its folder, or get the newest by: %s", repository, #commits, table.concat(commits, ", "), fetching(id))
  end
  return commits[1]
end

-- The first file of weights that an index (model.safetensors.index.json) names and that is missing, or nil.
local function missing_part(folder, name, there)
  local ok, index = pcall(json.decode_file, fs.join(folder, name))
  local map, files = ok and type(index) == "table" and index.weight_map, {}
  for _, file in pairs(type(map) == "table" and map or {}) do files[#files + 1] = tostring(file) end
  table.sort(files)
  for _, file in ipairs(files) do
    local path = fs.join(fs.dirname(name), file):gsub("^%./", "")
    if not there[path] then return path end
  end
end

-- What a snapshot lacks, or nil.
local function missing_from(folder, without_weights)
  local names = names_below(folder)
  local there, weights = {}, false
  for _, name in ipairs(names) do
    local read = name:find "%.json$" or name:find "%.txt$" or name:find "%.safetensors$"
    if read and not fs.exists(fs.join(folder, name)) then return name .. " (a link to nothing)" end
    there[name] = true
    weights = weights or name:find "%.safetensors$" ~= nil or name:find "pytorch_model.*%.bin$" ~= nil
  end
  if not (there["config.json"] or there["adapter_config.json"] or there["modules.json"]) then return "config.json" end
  if there["modules.json"] then
    local ok, modules = pcall(json.decode_file, fs.join(folder, "modules.json"))
    for _, module in ipairs(ok and json.is_array(modules) and modules or {}) do
      local path = type(module) == "table" and module.path
      if type(path) == "string" and path ~= "" and not tostring(module.type):find "Normalize$" -- which has no file
        and not fs.is_directory(fs.join(folder, path)) then
        return path
      end
    end
  end
  if without_weights then return nil end
  for _, name in ipairs(names) do
    local part = name:find "%.safetensors%.index%.json$" and missing_part(folder, name, there)
    if part then return part end
  end
  return not weights and (there["config.json"] and "model.safetensors" or there["adapter_config.json"]
    and "adapter_model.safetensors") or nil
end

-- The folder of a model in a cache, or nil where the cache has nothing of it.
local function find_in(cache, id, revision, without_weights)
  local repository = fs.join(cache, "models--" .. id:gsub("/", "--"))
  if not fs.is_directory(repository) then return nil end
  local commit = commit_of(repository, id, revision)
  if not commit then
    local known = known_revisions(repository)
    check.fail("%s has no revision '%s'%s (%s); get it by: %s", repository, revision or "main",
      revision and suggest.did_you_mean(revision, known) or "",
      #known > 0 and "there are " .. table.concat(known, ", ") or "there is none", fetching(id, revision))
  end
  local folder = fs.join(repository, "snapshots", commit)
  local missing = "all of its files"
  if fs.is_directory(folder) then missing = missing_from(folder, without_weights) end
  if missing then
    check.fail("the snapshot of '%s' in the cache lacks %s (%s); get the rest by: %s", id, missing, folder,
      fetching(id, revision))
  end
  return folder
end

-- ---- names ------------------------------------------------------------------------------------------------------------------

-- The ids that a name may stand for. A name without an organization is one of the hub's oldest models (bert-base-uncased), or a
-- model of sentence-transformers.
local function ids_of(name)
  if name:find "^[%w_][%w._-]*$" then return { name, ORGANIZATION .. "/" .. name } end
  return name:find "^[%w_][%w._-]*/[%w_][%w._-]*$" and { name } or {}
end

-- First names of paths that are no organization's: the hub's own words, and usual folders for trained models.
local FOLDERS = {}
for _, name in ipairs { "models", "datasets", "spaces", "model", "output", "outputs", "out", "runs", "checkpoints", "tmp" } do
  FOLDERS[name] = true
end

-- Is the name a path? An id has one "/" at most, and the working directory has no folder with its first name.
local function is_path(name)
  local first = name:match "^([^/]+)/"
  return #ids_of(name) == 0 or first ~= nil and (FOLDERS[first] ~= nil or fs.is_directory(first))
end

local function fail_path(name)
  local parent = fs.dirname(name)
  if name == hub.small_model() then
    check.fail("the small model is not there (%s); tools/fetch_model.sh fetches it, as `make run` does, or name another by --model",
      name)
  end
  if not fs.is_directory(parent) then
    check.fail("there is no model folder '%s': there is no folder %s%s", name, parent,
      name:find "^~" and " (~ is the shell's, and only at the beginning of a word)" or "")
  end
  local folders = {}
  for _, entry in ipairs(fs.list(parent)) do
    if fs.is_directory(fs.join(parent, entry)) then folders[#folders + 1] = entry end
  end
  check.fail("there is no model folder '%s'%s", name, suggest.did_you_mean(fs.basename(name), folders))
end

--- resolve(model, revision, without_weights): the folder of a model given as a path or as an id; revision: a branch, a tag or a
--- whole commit number (default: main); without_weights: the settings are enough, as for a plan. The error says how to fetch the
--- model. A folder named by its path has no revisions.
function hub.resolve(model, revision, without_weights)
  if type(model) ~= "string" or model == "" then
    check.fail("the model is '%s', expected a folder or a Hugging Face id", tostring(model))
  end
  if revision ~= nil and (type(revision) ~= "string" or revision == "") then
    check.fail("the revision is '%s', expected a branch, a tag or a commit number", tostring(revision))
  end
  if fs.is_directory(model) then return model end
  if fs.exists(model) then check.fail("model '%s' is a file; give the folder that holds config.json", model) end
  local ids, where = ids_of(model), caches()
  for _, cache in ipairs(where) do
    for _, id in ipairs(ids) do
      local folder = find_in(cache, id, revision, without_weights)
      if folder then return folder end
    end
  end
  local own = #ids > 0 and (model:match("^" .. ORGANIZATION:gsub("%-", "%%-") .. "/(.+)$") or model)
  if own == SMALL_MODEL and (revision or "main") == "main" and fs.is_directory(hub.small_model()) then return hub.small_model() end
  if is_path(model) then fail_path(model) end
  if own == SMALL_MODEL then ids = { ids[2] or ids[1] } end -- the small model is known to be of sentence-transformers
  local theirs = ids[2] and (" (%s where it is one of sentence-transformers')"):format(ids[2]) or ""
  local remedy = without_weights and ("To fetch what is needed of it: %s --include '*.json'%s"):format(
    fetching(ids[1], revision), theirs)
    or ("To fetch it: %s%s   (HF_HOME moves the cache); or give the path of a folder with config.json, tokenizer.json and "
    .. "model.safetensors"):format(fetching(ids[1], revision), theirs)
  check.fail("model '%s' is neither a folder nor in the Hugging Face cache (%s). %s", model, table.concat(where, ", "), remedy)
end

--- has_weights(folder, meta): does the folder hold a model's weights, or with `meta` the config.json that is enough there?
function hub.has_weights(folder, meta)
  if not fs.is_file(fs.join(folder, "config.json")) then return false end
  if meta then return true end
  for _, name in ipairs { "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json" } do
    if fs.is_file(fs.join(folder, name)) then return true end
  end
  return false
end

return hub
