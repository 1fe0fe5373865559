-- Every value in the JSON files of a folder, one after the other, is replaced by one of another kind. Then the folder loads, or one
-- line names the file, and lorarun's own code never fails.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local load_model = require("lorarun.models.model").load
local golden = os.getenv "LORARUN_TESTS" .. "/golden"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local MOST = 12 -- the most values of one table to try, since lists of tokens are long
local WRONG = { json.null, "x", -1.5, json.array {}, { x = 1 }, 2 ^ 40, true, json.array { json.null }, "" }

-- The places of the values, as lists of keys.
local function places(value, above, list)
  list[#list + 1] = above
  local keys = {}
  for key in pairs(type(value) == "table" and value ~= json.null and value or {}) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  for i = 1, math.min(#keys, MOST) do
    local place = { unpack(above) }
    place[#place + 1] = keys[i]
    places(value[keys[i]], place, list)
  end
  return list
end

local function with_value(text, place, wrong)
  local top = json.decode(text)
  if #place == 0 then return json.encode(wrong) end
  local at = top
  for i = 1, #place - 1 do at = at[place[i]] end
  at[place[#place]] = wrong
  return json.encode(top)
end

local function try(folder, what)
  local ok, err = pcall(function()
    local model = load_model(folder)
    model:encode({ "hello world" }):free()
    model:free()
  end)
  if ok then return end
  err = tostring(err)
  check.that(err:find(folder, 1, true) and not err:find("\n", 1, true) and not err:find("attempt to", 1, true)
    and not err:find("bad argument", 1, true), ("%s: %s"):format(what, err))
end

for source, names in pairs {
  bert = { "config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "tokenizer_config.json",
    "config_sentence_transformers.json", "tokenizer.json", "special_tokens_map.json" },
  qwen2 = { "config.json", "tokenizer_config.json", "added_tokens.json" },
  ["adapters/bert_rslora"] = { "adapter_config.json" },
} do
  test(source .. ": a value of another kind", function()
    shell.with_folder(function(folder)
      local function copy(below)
        for _, name in ipairs(fs.list(fs.join(golden, source, below))) do
          local from, to = fs.join(golden, source, below, name), fs.join(folder, below, name)
          if fs.is_directory(from) then copy(fs.join(below, name)) else fs.make(fs.dirname(to)) fs.copy(from, to) end
        end
      end
      copy ""
      local n = 0
      for _, name in ipairs(names) do
        local path = fs.join(folder, name)
        local text = fs.read(path):gsub("tests/golden", function() return golden end) -- an adapter's base
        for _, place in ipairs(places(json.decode(text), {}, {})) do
          n = n + 1
          local wrong = WRONG[n % #WRONG + 1]
          fs.write(path, with_value(text, place, wrong))
          try(folder, ("%s, %s = %s"):format(name, table.concat(place, "."), json.encode(wrong)))
        end
        fs.write(path, text)
      end
      load_model(folder):free() -- the folder is good otherwise
      print(n .. " folders")
    end)
  end)
end
