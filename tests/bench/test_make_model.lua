-- bench/gpu/make_model.lua: what it writes is a model folder that loads, computes, and counts a byte of text as a token.
local fs = require "lorarun.base.fs"
local lr = require "lorarun"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local script = shell.quote(fs.join(fs.dirname(os.getenv "LORARUN_TESTS"), "bench", "gpu", "make_model.lua"))
local TINY = "--layers 2 --hidden 64 --heads 4 --kv-heads 2 --intermediate 160 --vocabulary 300 --max-length 32"

test("a tiny one, in shards: embeddings have unit length, differ, and are the same again", function()
  shell.with_folder(function(folder)
    local r = shell.run(("$L %s --out %s %s --shard 60000"):format(script, shell.quote(folder), TINY))
    check.equal(r.status, 0, r.err)
    check.that(fs.is_file(fs.join(folder, "model.safetensors.index.json")), "there are no shards")
    local model = lr.load_model(folder, { precision = "bf16", device = "cpu" })
    check.equal(model.pooling, "last")
    check.equal(model.max_length, 32)
    check.equal(#model.tokenizer:encode "x = é\n\0", 8)
    local rows = lr.scope(function()
      local e = model:encode { "x = 1", "x == 1", "x = 1" }
      return e:to_table()
    end)
    local norms, dot = { 0, 0, 0 }, 0
    for i = 1, 3 do
      for k = 1, 64 do norms[i] = norms[i] + rows[i][k] ^ 2 end
      check.near(norms[i], 1, 1e-3, "length")
    end
    for k = 1, 64 do dot = dot + rows[1][k] * rows[2][k] end
    check.that(math.abs(dot) < 0.999, "two texts have one embedding")
    check.array(rows[1], rows[3], 0)
    model:free()
  end)
end)

test("shapes that cannot be are refused in one line", function()
  shell.with_folder(function(folder)
    local r = shell.run(("$L %s --out %s --hidden 65 --heads 4"):format(script, shell.quote(folder)))
    check.that(r.status ~= 0 and r.err:find "%-%-hidden 65", r.err)
  end)
end)
