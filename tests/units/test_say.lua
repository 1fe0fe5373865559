-- Messages of lorarun: nothing in them that came from a file controls the terminal.
local fs = require "lorarun.base.fs"
local say = require "lorarun.base.say"

local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local ESC = "\27[31m\27]0;title\7"

test("characters that control a terminal are written as their numbers, letters stay", function()
  for text, want in pairs { ["plain\ttext\n"] = "plain\ttext\n", ["a\27[0mb"] = "a\\x1b[0mb",
    ["\0\1\r\8\127"] = "\\x00\\x01\\x0d\\x08\\x7f",
    ["Größe 長さ 😀 العربية"] = "Größe 長さ 😀 العربية", ["\194\155" .. "31m"] = "\\u009b31m", ["\155" .. "31m"] = "\\x9b31m",
    ["a\226\128\174b\226\129\166c\226\128\142\216\156\226\128\168"] = "a\\u202eb\\u2066c\\u200e\\u061c\\u2028",
    ["\192\155 \237\160\128 \244\144\128\128 \226\128"] = "\\xc0\\x9b \\xed\\xa0\\x80 \\xf4\\x90\\x80\\x80 \\xe2\\x80",
    ["a\226\128\141b\194\160"] = "a\226\128\141b\194\160" } do
    check.equal(say.visible(text), want)
    check.equal(say.visible(want), want)
  end
end)

test("a path as Python reads it", function()
  for text, want in pairs { ["models/a"] = '"models/a"', ['a"b\\c'] = '"a\\x22b\\x5cc"', ["a\27[1m\n1"] = '"a\\x1b[1m\\x0a1"',
    ["長さ"] = '"長さ"' } do
    check.equal(say.python(text), want)
  end
  for _, name in ipairs { "models/export", "train/report", "cli/verify" } do
    local source = fs.read(fs.join(fs.dirname(os.getenv "LORARUN_TESTS"), "lua", "lorarun", name .. ".lua"))
    check.that(not source:find("SentenceTransformer(%q", 1, true), name .. " writes Python by Lua's rules")
  end
end)

test("of a file's value that is longer than any path, only the beginning is shown", function()
  local long = ("k"):rep(100000)
  local ok, err = pcall(require("lorarun.base.check").fail, "config.json: '%s' is %d, not %s", long, 3, "x")
  check.that(not ok and err:find("kkk... (100000 bytes)' is 3, not x", 1, true), "the end of the message")
  check.that(#err < 5000, "its length")
end)

-- Out and err have no control characters except line feeds and tabs.
local function clean(r, what)
  for _, text in ipairs { r.out, r.err } do
    check.that(not text:find "[^%C\n\t]" and not text:find "\194[\128-\159]" and not text:find("\226\128\174", 1, true),
      what .. " wrote " .. ("%q"):format(text))
  end
  return r
end

test("paths, keys and texts of files are never printed unchanged on a terminal", function()
  shell.with_folder(function(folder)
    local name = "m" .. ESC .. "\226\128\174\194\155x"
    local model = fs.join(folder, name)
    fs.make(model)
    local function run(command) return clean(shell.run(("cd %s; %s"):format(shell.quote(folder), command)), command) end
    local function lua(code) return run("$L -e " .. shell.quote(code)) end
    local r = lua(("lr.load_model(%q)"):format(model))
    check.that(r.status == 1 and r.err:find("m\\x1b[31m\\x1b]0;title\\x07\\u202e\\u009bx", 1, true), r.err)
    fs.write(fs.join(model, "config.json"), '{"model_type": "\\u001b[31mbert\\u009b"}')
    check.that(lua(("lr.load_model(%q)"):format(model)).err:find("\\x1b[31mbert", 1, true), "model_type")
    fs.write(fs.join(model, "config.json"), '{"a": 1, "b' .. "\27" .. '": }')
    lua(("lr.load_model(%q)"):format(model))
    fs.write(fs.join(folder, "d.jsonl"), '{"te\\u001b[31mxt": 1, "\194\155": 2}\n')
    check.that(lua [[require "lorarun.data.dataset".open("d.jsonl", { { "text", "text" } })]].status ~= 0, "data")
    fs.write(fs.join(folder, "c.yaml"), "distributed_type: MULTI_CPU\nnum_processes: 1\n\"k\\e[31m\": \"\"\n\"\\x9b\": v\n")
    check.that(run("$L config --show --config c.yaml").err:find("\\u009b", 1, true), "yaml")
    lua(("error(%q)"):format("from a file: " .. ESC))
    run("$L " .. shell.quote("--no" .. ESC))
    run("$L " .. shell.quote("none" .. ESC .. ".lua"))
    fs.write(fs.join(folder, "p.lua"), ("return %q, { %q }\n"):format(ESC, ESC .. "\194\155"))
    run "$L -i <p.lua" -- values as the prompt shows them
    check.equal(shell.run("$L -e 'print \"\\27[1mmine\"'").out, "\27[1mmine\n") -- output of a recipe is left as it is
  end)
end)

test("modules print messages only through say", function()
  local root = fs.join(fs.dirname(os.getenv "LORARUN_TESTS"), "lua/lorarun")
  local own = { ["say.lua"] = true, ["progress.lua"] = true } -- these print themselves
  local function look(folder)
    for _, name in ipairs(fs.list(folder)) do
      local path = fs.join(folder, name)
      if fs.is_directory(path) then look(path)
      elseif not own[name] then
        local line = 0
        for text in (fs.read(path) .. "\n"):gmatch "(.-)\n" do
          line = line + 1
          local raw = text:find "io%.stderr:write" or text:find "^%s*print[%( ]" or text:find "then print[%( ]"
          check.that(not raw, ("%s:%d: %s"):format(path, line, text))
        end
      end
    end
  end
  look(root)
end)
