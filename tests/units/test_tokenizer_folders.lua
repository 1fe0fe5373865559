-- The files beside tokenizer.json have the effect that transformers' AutoTokenizer gives them: folders and their ids with
-- transformers 4 and 5 (tests/golden/make_tokenizer_folders.py), and what is refused.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local using = require "lorarun.base.using"
local load_tokenizer = require("lorarun.formats.tokenizer").load_tokenizer
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local GOLDEN = os.getenv "LORARUN_TESTS" .. "/golden/"
local FILES = { "tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json", "added_tokens.json" }

-- Makes one change: { file, { key, ... }, value } sets the value at these keys; without a value the key is removed, without keys
-- the file.
local function apply(files, change)
  local name, keys, value = change[1], change[2], change[3]
  if not keys then
    files[name] = nil
    return
  end
  files[name] = files[name] or {}
  local t = files[name]
  for i = 1, #keys - 1 do
    local key = json.is_array(t) and keys[i] + 1 or keys[i]
    t[key] = t[key] or {}
    t = t[key]
  end
  local last = keys[#keys]
  t[json.is_array(t) and last + 1 or last] = value
end

-- Makes the folder of a base with changes, as transformers would find it, and calls with(folder) while it exists.
local function with_folder(base, changes, with)
  local files = {}
  for _, name in ipairs(FILES) do
    local path = GOLDEN .. base .. "/" .. name
    if fs.is_file(path) then files[name] = json.decode_file(path) end
  end
  for _, change in ipairs(changes) do apply(files, change) end
  return using(shell.new_folder(), fs.remove, function(folder)
    for name, values in pairs(files) do fs.write(fs.join(folder, name), json.encode(values)) end
    return with(folder)
  end)
end

local function try(base, changes, options)
  return with_folder(base, changes, function(folder)
    local ok, tok = pcall(load_tokenizer, folder, options)
    return { tok = ok and tok or nil, err = not ok and tostring(tok) or nil }
  end)
end

-- Refused although both generations agree on the texts of this test: on others they would not.
local CAREFUL = { ["clean_text false"] = "they differ in the normalizer",
  ignore_merges = "they differ in the model's settings" }

local texts
for line in io.lines(GOLDEN .. "tokenizer/folders.jsonl") do
  local row = json.decode(line)
  if row.texts then
    texts = row
  else
    test(("golden folder: %s, %s"):format(row.base, row.name), function()
      local four, five = row.both or row["4"], row.both or row["5"]
      local result = try(row.base, row.changes)
      if CAREFUL[row.name] or type(four) == "table" and type(five) == "table" and not row.both then
        check.equal(result.tok, nil, "a tokenizer")
        check.that(result.err:find("transformers 4 and transformers 5 read this tokenizer differently", 1, true), result.err)
        check.that(result.err:find(CAREFUL[row.name] or "they differ in ", 1, true), result.err)
        return
      end
      local expected = type(four) == "table" and four or five
      if type(expected) ~= "table" then
        check.that(result.err and result.err:find("tokenizer_config.json: '", 1, true), tostring(result.err))
        return
      end
      check.that(result.tok, result.err)
      for i, text in ipairs(texts.texts) do
        check.array(result.tok:encode(text), expected[i], 0, "text " .. i)
        check.array(result.tok:encode(text, { max_length = texts.max_length }), expected[i + #texts.texts], 0, "cut text " .. i)
      end
      result.tok:free()
    end)
  end
end

local CONFIG, FILE = "tokenizer_config.json", "tokenizer.json"
local REFUSED = {
  { "'truncation_side' is 'Left', expected 'right' or 'left'", { { CONFIG, { "truncation_side" }, "Left" } } },
  { "'truncation_side' is true, expected a text", { { CONFIG, { "truncation_side" }, true } } },
  { "'do_lower_case' is null, expected true or false", { { CONFIG, { "do_lower_case" }, json.null } } },
  { "'do_lower_case' is 1, expected true or false", { { CONFIG, { "do_lower_case" }, 1 } } },
  { "'strip_accents' is the text 'no', expected true or false", { { CONFIG, { "strip_accents" }, "no" } } },
  { "'split_special_tokens' is null", { { CONFIG, { "split_special_tokens" }, json.null } } },
  { "'added_tokens_decoder' is a list", { { CONFIG, { "added_tokens_decoder" }, json.array {} } } },
  { "'added_tokens_decoder' is null", { { CONFIG, { "added_tokens_decoder" }, json.null } } },
  { "has the key 'x', which is no id", { { CONFIG, { "added_tokens_decoder", "x" }, { content = "x" } } } },
  { "has a token that is no object with a content", { { CONFIG, { "added_tokens_decoder", "5" }, "x" } } },
  { "has '1' as 'lstrip' of the token '[MASK]'", { { CONFIG, { "added_tokens_decoder", "4", "lstrip" }, 1 } } },
  { "'mask_token' is no token", { { CONFIG, { "mask_token" }, { content = "[MASK]" } } } },
  { "'additional_special_tokens' is the text 'x', expected a list", { { CONFIG, { "additional_special_tokens" }, "x" } } },
  { "'extra_special_tokens' is 5, expected an object", { { CONFIG, { "extra_special_tokens" }, 5 } } },
  { "'tokenizer_class' is 'BertJapaneseTokenizer', which lorarun does not know; it knows BertTokenizer, ",
    { { CONFIG, { "tokenizer_class" }, "BertJapaneseTokenizer" } } },
  { "'auto_map' names tokenization_own.Tokenizer, code of the folder's own", { { CONFIG, { "auto_map" }, {
    AutoTokenizer = json.array { "tokenization_own.Tokenizer", json.null } } } } },
  { "'from_slow' is true", { { CONFIG, { "from_slow" }, true } } },
  { "'fix_mistral_regex' is true", { { CONFIG, { "fix_mistral_regex" }, true } } },
  { "'tokenizer_file' is '/elsewhere'", { { CONFIG, { "tokenizer_file" }, "/elsewhere" } } },
  { "'fast_tokenizer_files' names 'tokenizer.4.0.json'", { { CONFIG, { "fast_tokenizer_files" },
    json.array { "tokenizer.4.0.json", "tokenizer.json" } } } },
  { "it holds a list, expected an object", { { CONFIG, json.array {} }, { CONFIG, nil } }, "[1, 2]" },
}
for _, case in ipairs(REFUSED) do
  test("refused: " .. case[1], function()
    local changes = case[2]
    if case[3] then changes = {} end
    local result = with_folder("bert", changes, function(folder)
      if case[3] then fs.write(fs.join(folder, CONFIG), case[3]) end
      local ok, tok = pcall(load_tokenizer, folder)
      return { tok = ok and tok or nil, err = tostring(tok) }
    end)
    check.equal(result.tok, nil, "a tokenizer")
    check.that(result.err:find(case[1], 1, true), result.err)
    check.that(result.err:find("tokenizer_config.json: ", 1, true), result.err)
  end)
end

test("gte-Qwen2's own code puts eos_token after a text", function()
  local map = { CONFIG, { "auto_map" }, { AutoTokenizer = json.array { "a/b--tokenization_qwen.Qwen2Tokenizer",
    "a/b--tokenization_qwen.Qwen2TokenizerFast" } } }
  local plain, with = try("qwen2", {}), try("qwen2", { map, { CONFIG, { "add_eos_token" }, true } })
  check.that(with.tok, with.err)
  local ids = plain.tok:encode "def f(x): return x"
  ids[#ids + 1] = plain.tok:id "<|endoftext|>"
  check.array(with.tok:encode "def f(x): return x", ids)
  check.array(with.tok:encode("def f(x): return x", { max_length = 3 }), { ids[1], ids[2], ids[#ids] })
  local without = try("qwen2", { map })
  check.array(without.tok:encode "x", plain.tok:encode "x")
  for _, r in ipairs { plain, with, without } do r.tok:free() end
end)

test("a model's type can be given if there is no config.json", function()
  local bare = { { CONFIG }, { "config.json" }, { FILE, { "normalizer", "lowercase" }, false } }
  local told, alone = try("bert", bare, { model_type = "bert" }), try("bert", bare)
  check.array(told.tok:encode "The", told.tok:encode "the")
  check.equal(told.tok.class, "BertTokenizer")
  check.that(alone.tok:encode("The")[2] ~= alone.tok:encode("the")[2], "tokenizer.json alone lowers nothing")
  check.equal(alone.tok.class, nil)
  told.tok:free()
  alone.tok:free()
  check.raises("no option 'model'", load_tokenizer, GOLDEN .. "bert", { model = "bert" })
end)

-- Every key of the files with a value of every other type: either an error that names the place, or a tokenizer that works.
local WRONG = { json.null, true, -1, 1.5, 2 ^ 31, "x", json.array { json.array {} }, { x = {} } }
local function paths_of(value, at, paths, depth)
  if type(value) ~= "table" or value == json.null then return paths end
  local keys = {}
  for key in pairs(value) do keys[#keys + 1] = key end
  table.sort(keys)
  for i, key in ipairs(keys) do
    if i > 5 then break end -- only the first few entries of long lists and vocabularies
    local path = {}
    for k, v in ipairs(at) do path[k] = v end
    path[#path + 1] = json.is_array(value) and key - 1 or key
    paths[#paths + 1] = path
    if depth < 6 then paths_of(value[key], path, paths, depth + 1) end
  end
  return paths
end
for _, base in ipairs { "bert", "qwen2" } do
  for _, name in ipairs { FILE, CONFIG, "special_tokens_map.json" } do
    test(("wrong types in %s of %s"):format(name, base), function()
      local paths = paths_of(json.decode_file(GOLDEN .. base .. "/" .. name), {}, {}, 0)
      local refused, taken = 0, 0
      with_folder(base, name == CONFIG and {} or { { CONFIG, { "added_tokens_decoder" } } }, function(folder)
        local original = fs.read(fs.join(folder, name))
        for _, path in ipairs(paths) do
          for _, wrong in ipairs(WRONG) do
            local files = { [name] = json.decode(original) }
            apply(files, { name, path, wrong })
            local out = assert(io.open(fs.join(folder, name), "wb")) -- fs.write would wait for the disk
            out:write(json.encode(files[name]))
            out:close()
            local ok, tok = pcall(load_tokenizer, folder)
            if ok then
              taken = taken + 1
              pcall(tok.encode, tok, "The [MASK] x = <|endoftext|> y")
              tok:free()
            else
              refused = refused + 1
              local err = tostring(tok)
              if not (err:find(folder, 1, true) and err:find ".json") or err:find "attempt to" or err:find "traceback" then
                check.that(false, ("%s = %s: %s"):format(table.concat(path, "."), json.encode(wrong), err))
              end
            end
          end
        end
      end)
      check.that(refused > 20 and taken > 10, ("%d refused, %d taken"):format(refused, taken))
    end)
  end
end
