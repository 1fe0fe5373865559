-- test_recipes.lua: recipes that are meant to be copied run on a few rows, as a user runs them; the README shows them unchanged.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local root = fs.dirname(os.getenv "LORARUN_TESTS")
local pairs_recipe = fs.join(root, "recipes", "pairs.lua")

test("recipes/pairs.lua: a model trained on the user's pairs, from one file", function()
  shell.with_folder(function(folder)
    local lines = {}
    for i = 1, 130 do
      lines[i] = json.encode({ query = ("what is %d?"):format(i), passage = ("%d is the number after %d"):format(i, i - 1) })
    end
    fs.write(fs.join(folder, "mine.jsonl"), table.concat(lines, "\n") .. "\n")
    local r = shell.run(("cd %s; $L %s --data mine.jsonl --model %s --output out"):format(shell.quote(folder),
      shell.quote(pairs_recipe), shell.quote(fs.join(os.getenv "LORARUN_TESTS", "golden", "bert"))))
    check.equal(r.status, 0, r.err)
    check.that(r.out:find("multiple_negatives_ranking", 1, true) and r.out:find("130 train", 1, true)
      and r.out:find("trained +3 steps"), r.out)
    check.equal(shell.run(("$L verify %s %s"):format(shell.quote(fs.join(folder, "out")),
      shell.quote(fs.join(folder, "out", "adapter")))).status, 0)
    check.equal(fs.read(fs.join(folder, "out", "recipe.lua")), fs.read(pairs_recipe))
    local settings = json.decode_file(fs.join(folder, "out", "training_config.json")).settings
    check.equal(settings.data, "mine.jsonl")
    -- the columns have other names
    local renamed = fs.read(fs.join(folder, "mine.jsonl")):gsub('"query"', '"question"')
    fs.write(fs.join(folder, "other.jsonl"), renamed)
    r = shell.run(("cd %s; $L %s --data other.jsonl --model %s --output other"):format(shell.quote(folder),
      shell.quote(pairs_recipe), shell.quote(fs.join(os.getenv "LORARUN_TESTS", "golden", "bert"))))
    check.equal(r.status, 1)
    check.that(r.err:find("query", 1, true) and r.err:find("other.jsonl", 1, true), r.err)
  end)
end)

test("the README shows recipes/pairs.lua as it is", function()
  local code = fs.read(pairs_recipe):match "\n(local lr = .*)$"
  check.that(code, "the recipe begins with comments")
  check.that(fs.read(fs.join(root, "README.md")):find("```lua\n" .. code .. "```", 1, true), "README.md has another text of it")
end)
