-- hub.lua: where a model is: a folder, a Hugging Face id in the local hub cache, or lorarun's own small model. It never
-- downloads.
local fs = require "lorarun.fs"
local planning = require "lorarun.planning"
local check = require "lorarun.check"

local hub = {}

local function env(name)
  local value = os.getenv(name)
  return value ~= nil and value ~= "" and value or nil
end

--- The hub cache folder, as huggingface_hub finds it.
function hub.cache()
  local home = env "HF_HOME" or fs.join(env "XDG_CACHE_HOME" or fs.join(env "HOME" or ".", ".cache"), "huggingface")
  return env "HF_HUB_CACHE" or env "HUGGINGFACE_HUB_CACHE" or fs.join(home, "hub")
end

--- lorarun's own cache, where `make` puts the small model.
function hub.lorarun_cache()
  return fs.join(env "XDG_CACHE_HOME" or fs.join(env "HOME" or ".", ".cache"), "lorarun")
end

--- Folder of lorarun's small model (all-MiniLM-L6-v2), present or not.
function hub.small_model() return fs.join(hub.lorarun_cache(), "models", "all-MiniLM-L6-v2") end

-- The snapshot of "org/name" in the hub cache: the one that refs/main names, else the newest that has a config.json.
local function snapshot(id, revision)
  local base = fs.join(hub.cache(), "models--" .. id:gsub("/", "--"))
  local ref = fs.join(base, "refs", revision or "main")
  if fs.is_file(ref) then
    local dir = fs.join(base, "snapshots", (fs.read(ref):gsub("%s+$", "")))
    if fs.is_directory(dir) then return dir end
  end
  local snapshots, best, best_time = fs.join(base, "snapshots"), nil, -1
  if not fs.is_directory(snapshots) then return nil end
  for _, name in ipairs(fs.list(snapshots)) do
    local dir = fs.join(snapshots, name)
    local st = fs.stat(fs.join(dir, "config.json")) or fs.stat(fs.join(dir, "adapter_config.json"))
    if name == revision then return dir end
    if st and st.modified > best_time then best, best_time = dir, st.modified end
  end
  return not revision and best or nil
end

--- resolve(model, revision): the folder of a model given as a path or as an id. Raises an error that says how to get it.
function hub.resolve(model, revision)
  if fs.is_directory(model) then return model end
  if fs.exists(model) then check.fail("model '%s' is a file; give the folder that holds config.json", model) end
  local dir = model:find("^[%w][%w%._-]*/[%w][%w%._-]*$") and snapshot(model, revision)
  if dir then return dir end
  if not model:find("/", 1, true) then
    local own = fs.join(hub.lorarun_cache(), "models", model)
    if fs.is_directory(own) then return own end
  end
  local remedy = planning.job and "To fetch what a plan needs of it: hf download %s --include '*.json'"
    or "To fetch it: hf download %s   (HF_HOME moves the cache); or give the path of a folder with config.json, tokenizer.json and "
    .. "model.safetensors"
  check.fail("model '%s' is neither a folder nor in the Hugging Face cache (%s). " .. remedy, model, hub.cache(), model)
end

return hub
