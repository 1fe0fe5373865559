-- YAML: unquoted scalars as PyYAML 6 reads them (it made the table), structure, what is refused, and writing.
local C = require "lorarun.base.c"
local json = require "lorarun.base.json"
local yaml = require "lorarun.base.yaml"

local NAN = {}
local SCALARS = {
  { "~", json.null }, { "null", json.null }, { "Null", json.null }, { "NULL", json.null }, { "nULL", "nULL" },
  { "true", true }, { "True", true }, { "TRUE", true }, { "tRUE", "tRUE" }, { "yes", true }, { "Yes", true }, { "YES", true },
  { "no", false }, { "No", false }, { "NO", false }, { "on", true }, { "On", true }, { "ON", true }, { "off", false },
  { "Off", false }, { "OFF", false }, { "y", "y" }, { "n", "n" }, { "0", 0 }, { "00", 0 }, { "07", 7 }, { "08", "08" },
  { "010", 8 }, { "-010", -8 }, { "0o7", "0o7" }, { "1", 1 }, { "-1", -1 }, { "+1", 1 }, { "1_000", 1000 }, { "0x1F", 31 },
  { "0xfg", "0xfg" }, { "-0x1f", -31 }, { "0b101", 5 }, { "0b12", "0b12" }, { "1:30", 90 }, { "1:30:05", 5405 },
  { "-1:30", -90 }, { "1:60", "1:60" }, { "01:30", "01:30" }, { "1:30.5", 90.5 }, { "190:20:30.15", 685230.15 },
  { "1.5", 1.5 }, { "1.", 1.0 }, { ".5", 0.5 }, { "-.5", "-.5" }, { "+.5", "+.5" }, { "1e5", "1e5" }, { "1.0e5", "1.0e5" },
  { "1.0e+5", 100000.0 }, { "1.5E-3", 0.0015 }, { "1e+5", "1e+5" }, { ".inf", math.huge }, { "-.inf", -math.huge },
  { "+.inf", math.huge }, { ".Inf", math.huge }, { ".INF", math.huge }, { ".nan", NAN }, { ".NaN", NAN }, { "-.nan", "-.nan" },
  { "inf", "inf" }, { "nan", "nan" }, { "1_0.5", 10.5 }, { "1.5_0", 1.5 }, { "0.0", 0.0 }, { "00.5", 0.5 },
  { "1.2.3", "1.2.3" }, { "10.0.0.1", "10.0.0.1" }, { "fe80::1", "fe80::1" }, { "0,1", "0,1" }, { "a:b", "a:b" },
  { "all", "all" }, { "no_", "no_" }, { "29500", 29500 }, { "'29500'", "29500" }, { "\"no\"", "no" }, { "'no'", "no" },
  { "!!str 5", "5" }, { "2001-12-14", "2001-12-14" }, { "0x_1", 1 }, { "_1", "_1" }, { "1__0", 10 }, { "0b", "0b" },
  { "0x", "0x" }, { "--", "--" }, { ".", "." }, { "..", ".." }, { "9007199254740993", 9007199254740993 }, { "1.e+3", 1000.0 },
  { ".5e+1", 5.0 }, { "-1.5e-1", -0.15 }, { "12:30:45:50", 2702750 }, { "1:2:3.4", 3723.4 }, { "0:30", "0:30" },
  { "0.1:3", "0.1:3" }, { "5:5.5:5", "5:5.5:5" }, { "!!int 7", 7 }, { "!!float 7", 7.0 }, { "!!bool yes", true },
}

test("scalars have the values that PyYAML gives them", function()
  for _, row in ipairs(SCALARS) do
    local value = yaml.decode("k: " .. row[1]).k
    if row[2] == NAN then
      check.that(value ~= value, row[1])
    else
      check.equal(type(value), type(row[2]), "type of " .. row[1])
      check.equal(value, row[2], row[1])
    end
  end
end)

test("maps, lists, anchors, and the line of each key", function()
  local map, lines = yaml.decode([[
# a comment
a: &x [1, two, null]
b:
  c: "quoted: 1"
  d: |
    block
    text
e: *x
"f": 'it''s'
]])
  check.equal(map.a[2], "two")
  check.equal(map.a[3], json.null)
  check.that(json.is_array(map.a))
  check.equal(map.b.c, "quoted: 1")
  check.equal(map.b.d, "block\ntext\n")
  check.equal(map.e, map.a)
  check.equal(map.f, "it's")
  check.equal(lines.b, 3)
  check.equal(lines.e, 8)
  check.equal(next((yaml.decode "")), nil)
  check.equal(yaml.decode "# nothing\n---\n", json.null, "a document with nothing in it")
  check.equal(yaml.decode("- 1")[1], 1)
end)

test("what is refused, and where", function()
  for text, part in pairs {
    ["a: 1\nb: [1\n"] = "x.yaml:3:1: not valid YAML",
    ["a: 1\na: 2"] = "x.yaml:2:1: the key 'a' occurs twice; the first is in line 1",
    ["a: 1\n---\nb: 2"] = "a second document", ["a: *b"] = "x.yaml:1:4: there is no anchor 'b'",
    ["a: !!python/object:os.system x"] = "with the tag tag:yaml.org,2002:python/object:os.system",
    ["a: !!int no"] = "'no' with the tag", ["[a]: 1"] = "a key that is no scalar",
    ["<<: {a: 1}"] = "merge keys", ["a: !!set {x}"] = "a collection with the tag", ["a: \"\\q\""] = "unknown escape character",
    ["a: \1"] = "control characters are not allowed", ["a: \255\254"] = "not valid YAML", ["a:\tb: c"] = "not valid YAML",
    ["version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"] = "x.yaml is a git-lfs pointer",
    [("["):rep(300) .. ("]"):rep(300)] = "nested more than 100 levels", [("#"):rep(2 ^ 20 + 1)] = "at most 1048576 are read",
  } do
    check.raises(part, yaml.decode, text, "x.yaml")
  end
end)

test("written maps are read back unchanged", function()
  local map = { yes = "yes", number = 29500, text = "main", no = false, nothing = json.null, quote = "it's", like_a_number = "0x1F",
    empty = "", address = "10.0.0.1", list = "0,1", colon = "a: b", hash = "a #b", dash = "- x", tilde = "~", space = " x " }
  local text = yaml.encode(map)
  local back = yaml.decode(text)
  for key, value in pairs(map) do check.equal(back[key], value, key) end
  check.that(text:find("like_a_number: '0x1F'", 1, true) and text:find("text: main\n", 1, true), text)
  check.raises("yaml.encode: x is a table", yaml.encode, { x = {} })
  check.raises("not plain ASCII", yaml.encode, { x = "a\nb" })
end)

test("damaged files are errors or values, never crashes", function()
  local sample = "a: &x [1, 'two', {b: null}]\nc: *x\n\"d\": |\n  text\n? e\n: !!str 5\n"
  local state = 1
  local function draw(n)
    state = (state * 1103515245 + 12345) % 2 ^ 31
    return math.floor(state / 2 ^ 31 * n)
  end
  local refused = 0
  for _ = 1, 3000 do
    local bytes = { sample:byte(1, -1) }
    for _ = 1, 1 + draw(4) do
      local at = 1 + draw(#bytes)
      local kind = draw(3)
      if kind == 0 then bytes[at] = draw(256)
      elseif kind == 1 then table.remove(bytes, at)
      else table.insert(bytes, at, 32 + draw(96)) end
    end
    local ok, err = pcall(yaml.decode, string.char(unpack(bytes)), "f.yaml")
    if not ok then
      check.that(tostring(err):find("f.yaml", 1, true), err)
      refused = refused + 1
    end
  end
  check.that(refused > 100 and refused < 3000, refused .. " refused")
end)

test("running out of memory is an error and leaks nothing", function()
  for after = 0, 1 do
    C.lr_memory_fail(after, 100)
    local ok, err = pcall(yaml.decode, "a: 1", "f.yaml")
    C.lr_memory_fail(-1, 0)
    check.that(not ok and tostring(err):find "memory", err)
  end
  check.equal(yaml.decode("a: 1").a, 1)
end)
