-- test_json.lua: lorarun.base.json. The expected texts were written by Python 3.11's json.dumps(ensure_ascii=False).
local ffi = require "ffi"
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local C = require "lorarun.base.c"
local folder = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua").with_folder

test("a config file as Python writes it", function()
  local value = {
    r = 16, lora_alpha = 32, lora_dropout = 0.1, target_modules = json.array { "k_proj", "q_proj" }, revision = json.null,
    use_dora = false, loftq_config = {}, layers = json.array(), eps = 1e-8, scale = json.float(2), name = "naïve \"x\"\t\\ \1 /",
    nested = { { 1, 2 }, { a = true } },
  }
  check.equal(json.encode(value, { indent = 2, sort_keys = true }), [[
{
  "eps": 1e-08,
  "layers": [],
  "loftq_config": {},
  "lora_alpha": 32,
  "lora_dropout": 0.1,
  "name": "naïve \"x\"\t\\ \u0001 /",
  "nested": [
    [
      1,
      2
    ],
    {
      "a": true
    }
  ],
  "r": 16,
  "revision": null,
  "scale": 2.0,
  "target_modules": [
    "k_proj",
    "q_proj"
  ],
  "use_dora": false
}]])
  check.equal(json.encode({ a = { 1, 2 }, b = {} }), '{"a": [1, 2], "b": {}}')
  check.equal(json.encode("x"), '"x"')
  check.equal(json.encode(json.null), "null")
end)

test("numbers as Python writes them", function()
  for text, x in pairs {
    ["0"] = -0.0, ["1"] = 1, ["-7"] = -7, ["0.1"] = 0.1, ["1e-08"] = 1e-8, ["0.0001"] = 1e-4, ["1e-05"] = 1e-5,
    ["0.3333333333333333"] = 1 / 3, ["123456789.123"] = 123456789.123, ["-2.5"] = -2.5, ["5e-324"] = 5e-324,
    ["2.225073858507201e-308"] = 2.225073858507201e-308, ["0.1234567890123456"] = 0.1234567890123456,
    ["9007199254740993"] = 9007199254740993LL, ["18446744073709551615"] = 18446744073709551615ULL,
    ["-9223372036854775808"] = -9223372036854775807LL - 1, ["9007199254740992"] = 2 ^ 53,
    ["1000000000000000019884624838656"] = 1e30, ["2251799813685249.5"] = 2251799813685249.5,
  } do
    check.equal(json.encode(x), text)
  end
  for text, x in pairs {
    ["1.0"] = 1, ["0.0"] = 0, ["-0.0"] = -0.0, ["1e+16"] = 1e16, ["1000000000000000.0"] = 1e15, ["1e+22"] = 1e22,
    ["1.5e+300"] = 1.5e300, ["123456.0"] = 123456, ["12345678901234.5"] = 12345678901234.5, ["0.05"] = 0.05,
    ["1.7976931348623157e+308"] = 1.7976931348623157e308, ["1.25e-07"] = 1.25e-7,
  } do
    check.equal(json.encode(json.float(x)), text)
  end
end)

test("every double is read back unchanged", function()
  local random = ffi.new "uint32_t[4]"
  local bits = ffi.new "union { uint32_t u[2]; double d; }"
  for i = 1, 5000 do
    C.lr_random(7, 1, 0, i, random)
    bits.u[0], bits.u[1] = random[0], random[1]
    local x = bits.d
    if x == x and math.abs(x) ~= math.huge then
      check.equal(json.decode(json.encode(x)), x)
      check.equal(json.decode(json.encode(json.float(x))), x)
    end
  end
end)

test("decoding", function()
  local t = json.decode [[ {"a": [], "b": {}, "c": [1, -2.5e3, null, true, false], "s": "é\u00e9\ud83d\ude00\n",
    "m": 1000000000000000019884624838656, "big": 9007199254740993} ]]
  check.that(json.is_array(t.a) and not json.is_array(t.b) and json.is_array(t.c))
  check.equal(#t.c, 5)
  check.equal(t.c[2], -2500)
  check.equal(t.c[3], json.null)
  check.equal(tostring(json.null), "null")
  check.equal(t.s, "éé😀\n")
  check.equal(t.m, 1e30)
  check.equal(t.big, 2 ^ 53)
  check.equal(json.encode(t), '{"a": [], "b": {}, "big": 9007199254740992, "c": [1, -2500, null, true, false], '
    .. '"m": 1000000000000000019884624838656, "s": "éé😀\\n"}')
  check.equal(json.decode '"a\\u0000b"', "a\0b")
  check.equal(json.decode " 7 ", 7)
end)

test("errors of decoding", function()
  check.raises('f.json:2:3: not valid JSON: the key \'a\' occurs twice', json.decode, '{"a":1,\n  "a":2}', "f.json")
  check.raises("JSON text is empty", json.decode, "")
  check.raises("there is no reader 'lax'", json.decode, "1", "f.json", "lax")
  check.raises("f.json: the JSON text is a nil", json.decode, nil, "f.json")
  folder(function(dir)
    local path = fs.join(dir, "x.json")
    fs.write(path, "[1,]")
    check.raises(path .. ":1:4: not valid JSON", json.decode_file, path)
    fs.write(path, "[1]")
    check.equal(json.decode_file(path)[1], 1)
  end)
end)

test("as Python reads", function()
  local t = json.decode('{"a": 1, "b": NaN, "a": [Infinity, -Infinity, 1e999, -7], "c": {"d": 1, "d": 2}}', "f.json", "python")
  check.equal(#t.a, 4)
  check.equal(t.a[1], math.huge)
  check.equal(t.a[2], -math.huge)
  check.equal(t.a[3], math.huge)
  check.equal(t.a[4], -7)
  check.that(t.b ~= t.b, "NaN")
  check.equal(t.c.d, 2)
  check.raises("f.json:1:2: not valid JSON: 'N' where a value is expected", json.decode, "[NaN]", "f.json")
  check.raises("f.json:1:2: not valid JSON: '-' where", json.decode, "[-Inf]", "f.json", "python")
end)

test("keys in a given order", function()
  local o = json.object { { "z", 1 }, { "a", json.object {} }, { "m", { json.null } } }
  check.equal(json.encode(o), '{"z": 1, "a": {}, "m": [null]}')
  check.raises("the key 'a' occurs twice", json.object, { { "a", 1 }, { "a", 2 } })
  check.raises("key 1 is a number", json.object, { { 1, 2 } })
end)

test("a value that cannot be written is an error that names its place", function()
  local loop = { x = {} }
  loop.x.y = { 1, loop }
  check.raises("json.encode: x.y[2]: the table contains itself", json.encode, loop)
  check.raises("json.encode: a.b[3]: a function has no JSON form", json.encode, { a = { b = { 1, 2, print } } })
  check.raises("the value: a thread has no JSON form", json.encode, coroutine.create(print))
  check.raises("a.b: nan has no JSON form", json.encode, { a = { b = 0 / 0 } })
  check.raises("inf has no JSON form", json.encode, { json.float(-math.huge) })
  check.raises("[2]: inf has no JSON form", json.encode, { 1, math.huge })
  check.raises("a: an array with elements 1..2 and the key 'x'", json.encode, { a = { 1, 2, x = 3 } })
  check.raises("the key '1.5' is a number", json.encode, { [1.5] = 1 })
  check.raises("an array with the key 'x'", json.encode, json.array { 1, x = 2 })
  check.raises("a table with a metatable of its own", json.encode, setmetatable({}, {}))
  check.raises("a: the string is not UTF-8 at byte 2 (0xff)", json.encode, { a = "x\255" })
  check.raises("not UTF-8 at byte 1", json.encode, { ["\192\128"] = 1 })
  check.raises("not UTF-8", json.encode, "\237\160\128")
  check.raises("a cdata has no JSON form", json.encode, ffi.new "int[1]")
  check.raises("metatable of its own", json.array, json.null)
  check.raises("expected a number", json.float, "1")
  check.raises("json.encode has no option 'ident'; did you mean 'indent'?", json.encode, 1, { ident = 2 })
  check.raises("indent is '2', expected a whole number", json.encode, 1, { indent = "2" })
  check.raises("no order to keep", json.encode, 1, { sort_keys = false })
  check.raises("json.null cannot have fields", function() json.null.x = 1 end)
  local shared = { 1 } -- occurs twice, but not inside itself
  check.equal(json.encode { shared, shared }, "[[1], [1]]")
end)

test("keys of an object: in the order of the text as in Python, otherwise sorted", function()
  local text = '{"b": 1, "a": {"z": [], "y": {"d": 1, "c": 2}}, "10": 0}'
  local kept, plain = json.decode(text, nil, "python"), json.decode(text)
  check.equal(table.concat(json.keys(kept), " "), "b a 10")
  check.equal(table.concat(json.keys(kept.a), " ") .. " " .. table.concat(json.keys(kept.a.y), " "), "z y d c")
  check.equal(table.concat(json.keys(plain), " "), "10 a b")
  check.equal(table.concat(json.keys { [2] = true, x = true }, " "), "2 x")
end)
