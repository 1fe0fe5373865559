-- Tables in the order of their keys: what is printed or chosen from a table is the same in every run. tests/run.lua reverses
-- pairs() in the runs without the JIT compiler.
local json = require "lorarun.base.json"
local sorted = require "lorarun.base.sorted"

local function texts(list)
  local t = {}
  for i, value in ipairs(list) do t[i] = tostring(value) end
  return table.concat(t, " ")
end

test("sorted: numbers first, then the rest as texts; the table may be changed during the loop", function()
  check.equal(texts(sorted.keys { b = 1, a = 1, [10] = 1, [9] = 1, [true] = 1 }), "9 10 a b true")
  local t, seen = { c = 3, a = 1, b = 2 }, {}
  for key, value in sorted(t) do
    seen[#seen + 1] = key .. value
    t[key], t.new = nil, 4
  end
  check.equal(texts(seen), "a1 b2 c3")
  check.equal(#sorted.keys {}, 0)
end)

test("pairs() goes backwards if the compiler is off, so that tests notice code that depends on its order", function()
  local order = {}
  for key in pairs { a = 1, b = 1, c = 1, d = 1 } do order[#order + 1] = key end
  check.that(jit.status() or texts(order) == "d c b a", "the order is " .. texts(order))
end)

test("of several mistakes the error names the first in the alphabet, in every run", function()
  local wrong = {}
  for byte = ("a"):byte(), ("z"):byte() do wrong["un" .. string.char(byte) .. "known"] = 1 end
  check.raises("unaknown", require("lorarun.data.dataset").open, "x", wrong)
  check.raises("unaknown", require("lorarun.dist.comm").join, wrong)
  check.raises("unaknown", json.encode, {}, wrong)
  check.raises("unaknown", require("lorarun.base.args").read, { { "x", 1, "", unbknown = 1, unaknown = 1 } }, {})
  check.raises("'a'", json.encode, { 1, z = 1, b = 1, a = 1 })
  check.raises("no option 'unaknown'", require("lorarun.dist.settings").resolve, wrong)
  check.raises("unaknown", require("lorarun.bugdata").make, wrong)
end)
