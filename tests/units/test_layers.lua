-- tools/check_layers.lua about small made-up trees: what it must let pass, and each thing that it must find.
local fs = require "lorarun.base.fs"
local here = os.getenv "LORARUN_TESTS"
local check_layers = dofile(here .. "/../tools/check_layers.lua")
local shell = dofile(here .. "/shell.lua")

-- What is wrong with a tree of these files, { ["models/lora.lua"] = text }, with `order` in docs/architecture.md.
local function wrong_with(files, known, order)
  local wrong
  shell.with_folder(function(root)
    fs.make(fs.join(root, "docs"))
    fs.write(fs.join(root, "docs/architecture.md"), "# Architecture\n\n" .. (order or "layers: `base < models < cli`") .. "\n")
    for name, text in pairs(files) do
      local path = fs.join(root, "lua/lorarun", name)
      fs.make(fs.dirname(path))
      fs.write(path, text)
    end
    wrong = check_layers(root, known)
  end)
  return wrong
end

local function check_wrong(files, expected, known, order)
  local wrong = wrong_with(files, known, order)
  check.equal(table.concat(wrong, "\n"), table.concat(expected, "\n"))
end

local ABOVE = ", which is above it: move what both need down, or have it passed in"

test("layers: requires that point down pass, in every way in which they are written", function()
  check_wrong({
    ["init.lua"] = [[local M = { model = "models.model" } return function(n) return require("lorarun." .. M[n]) end]],
    ["base/c.lua"] = [[local ffi = require "ffi" ffi.cdef(require "lorarun.cdef") return require('lorarun.host')]],
    ["base/fs.lua"] = [[local C = require("lorarun.base.c")]],
    ["models/model.lua"] = [[local fs = require "lorarun.base.fs" local ok, arch = pcall(require, "lorarun.models." .. kind)]],
    ["models/bert.lua"] = [[return { fs = require'lorarun.base.fs' }]],
    ["cli/init.lua"] = [[function f() return require("lorarun.models.model") end]],
    ["cli/program.lua"] = [[local ok, lr = pcall(require, "lorarun") require("lorarun.cli").f()]],
  }, {})
end)

test("layers: a require of a folder above is found, at load or in a function", function()
  check_wrong({
    ["base/fs.lua"] = "-- files\nlocal model = require \"lorarun.models.model\"",
    ["models/model.lua"] = "local m = {}\nfunction m.f()\n  return require('lorarun.cli').show(m)\nend",
    ["cli/init.lua"] = "return {}",
  }, {
    "lua/lorarun/base/fs.lua:2: it requires lorarun.models.model" .. ABOVE,
    "lua/lorarun/models/model.lua:3: it requires lorarun.cli" .. ABOVE,
  })
  check_wrong({ ["init.lua"] = "", ["cli/show.lua"] = "local lr = require 'lorarun'" },
    { "lua/lorarun/cli/show.lua:1: it requires lorarun" .. ABOVE })
  check_wrong({ ["base/x.lua"] = "return pcall(require, 'lorarun.models.' .. x)", ["models/bert.lua"] = "" },
    { "lua/lorarun/base/x.lua:1: it requires lorarun.models.bert" .. ABOVE })
end)

test("layers: a circle is found, within a folder, through functions and through computed names", function()
  local cure = "; move what both need into a module below them"
  check_wrong({ ["base/a.lua"] = "\nlocal b = require 'lorarun.base.b'", ["base/b.lua"] = "require('lorarun.base.c')",
    ["base/c.lua"] = "local function f() return require 'lorarun.base.a' end" }, {
      "a circle: lua/lorarun/base/a.lua:2 requires lorarun.base.b, lua/lorarun/base/b.lua:1 requires lorarun.base.c, "
        .. "lua/lorarun/base/c.lua:1 requires lorarun.base.a" .. cure })
  check_wrong({ ["models/model.lua"] = "require('lorarun.models.' .. kind)",
    ["models/bert.lua"] = "require 'lorarun.models.model' require 'lorarun.models.nn'", ["models/nn.lua"] = "" }, {
      "a circle: lua/lorarun/models/bert.lua:1 requires lorarun.models.model, lua/lorarun/models/model.lua:1 requires "
        .. "lorarun.models.bert" .. cure })
  check_wrong({ ["base/a.lua"] = "require 'lorarun.base.a'" },
    { "a circle: lua/lorarun/base/a.lua:1 requires lorarun.base.a" .. cure })
end)

test("layers: comments and texts require nothing; what cannot be followed is found", function()
  check_wrong({ ["models/model.lua"] = "", ["base/a.lua"] = [==[
--[[ require "lorarun.models.model" ]] -- require "lorarun.models.model"
local text = "begins with: require \"lorarun.models.model\"", [[ require "lorarun.models.model" ]], t.require("x")
local lorarun = require "lorarun.models.gone"]==] }, { "lua/lorarun/base/a.lua:3: there is no module lorarun.models.gone" })
  local cure = ": what it requires cannot be told: begin the name with its folder, as in \"lorarun.models.\" .. name"
  for _, text in ipairs { "require(name)", "return require", "pcall(require, name)", "require('lorarun.mod' .. name)",
    "require(f 'lorarun.models.x')" } do
    check_wrong({ ["base/a.lua"] = text }, { "lua/lorarun/base/a.lua:1" .. cure })
  end
end)

test("layers: every folder has its place, and the line is there", function()
  check_wrong({ ["extra/a.lua"] = "" },
    { "lua/lorarun/extra/a.lua: its folder has no place in the order of docs/architecture.md (layers: ...)" })
  check_wrong({ ["base/a.lua"] = "" },
    { "docs/architecture.md: there is no line: layers: `base < ... < cli`, lowest folder first" }, nil, "Layers are good.")
end)

test("layers: what is known passes, until it is no longer needed", function()
  local files = { ["base/a.lua"] = "require 'lorarun.models.b'", ["models/b.lua"] = "" }
  check_wrong(files, {}, { "base/a.lua -> models/b.lua" })
  files["base/a.lua"] = ""
  check_wrong(files, { "tools/lint.sh: 'base/a.lua -> models/b.lua' is no longer required: take it off the list" },
    { "base/a.lua -> models/b.lua" })
end)
