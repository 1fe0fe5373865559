-- tools/check_layers.lua about small made-up trees of Lua and of C: what it must let pass, and each thing that it must find.
local fs = require "lorarun.base.fs"
local here = os.getenv "LORARUN_TESTS"
local check_layers = dofile(here .. "/../tools/check_layers.lua")
local shell = dofile(here .. "/shell.lua")

local ORDER, C_ORDER = "layers: `base < models < cli`", "C layers: `core < io < host`"

-- What is wrong with a tree of these files, { ["models/lora.lua"] = text, ["runtime/io/json.c"] = text }, with `order` in
-- docs/architecture.md. Lua's names are those in lua/lorarun.
local function wrong_with(files, known, order)
  local wrong
  shell.with_folder(function(root)
    fs.make(fs.join(root, "docs"))
    fs.make(fs.join(root, "lua/lorarun"))
    fs.write(fs.join(root, "docs/architecture.md"), "# Architecture\n\n" .. (order or C_ORDER .. "\n" .. ORDER) .. "\n")
    for name, text in pairs(files) do
      local path = fs.join(root, name:find "%.lua$" and "lua/lorarun" or ".", name)
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

test("layers: requires of lower folders pass, in every way of writing them", function()
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

test("layers: a require of a higher folder is found, at load or in a function", function()
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

test("layers: comments and strings require nothing; a require that cannot be followed is found", function()
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

test("layers: every folder has its place in the order, and the page has the line with the order", function()
  check_wrong({ ["extra/a.lua"] = "" },
    { "lua/lorarun/extra/a.lua: its folder has no place in the order of docs/architecture.md (layers: ...)" })
  check_wrong({ ["base/a.lua"] = "" },
    { "docs/architecture.md: there is no line: layers: `base < ... < cli`, lowest folder first" }, nil, C_ORDER)
  check_wrong({ ["base/a.lua"] = "" },
    { "docs/architecture.md: there is no line: C layers: `core < ... < host`, lowest folder first" }, nil, ORDER)
end)

test("layers: known exceptions pass, and are reported once they are not needed", function()
  local files = { ["base/a.lua"] = "require 'lorarun.models.b'", ["models/b.lua"] = "" }
  check_wrong(files, {}, { "base/a.lua -> models/b.lua" })
  files["base/a.lua"] = ""
  check_wrong(files, { "tools/lint.sh: 'base/a.lua -> models/b.lua' is no longer required: take it off the list" },
    { "base/a.lua -> models/b.lua" })
end)

test("layers: C's includes that point down pass", function()
  check_wrong({
    ["runtime/lr.h"] = '#include "core/status.def"\n#include "lr_ops.h" /* generated */\n#include <stdint.h>',
    ["runtime/core/status.def"] = "",
    ["runtime/core/core.h"] = '#include "lr.h"',
    ["runtime/io/json.h"] = '#include "core/core.h"',
    ["runtime/io/json.c"] = '#include "io/json.h"\n#include "fd.h"',
    ["runtime/io/fd.h"] = "",
    ["runtime/host/main.cc"] = '  #  include "io/json.h"\n#include "host/host.h"',
    ["runtime/host/host.h"] = '#include "core/core.h"',
    ["kernels/check.h"] = '#include "core/core.h"',
    ["kernels/cuda/cuda.h"] = '#include "check.h"\n#include "lr.h"\n#include <cuda.h>',
    ["kernels/cuda/norm.cu"] = '#include "cuda/cuda.h"\n#include "cuda/host/simt.h"\n#include "lr_ops_table.inc"',
    ["kernels/cuda/host/simt.h"] = "",
  }, {})
end)

test("layers: a C include of a folder above is found, and comments and texts include nothing", function()
  check_wrong({
    ["runtime/lr.h"] = '#include "io/json.h"',
    ["runtime/core/a.c"] = '/* a\n#include "host/host.h" */ // "\n#include "io/json.h"\n//#include "host/host.h"\n'
      .. 'const char *t = "/*";\n#include <host/host.h>\nconst char *u = "*/";\nchar v = \'"\', *w = "\\"/*";\n#include "json.h"',
    ["runtime/io/json.h"] = "",
    ["runtime/io/b.cc"] = '#include "host.h"\n#include "../host/host.h"',
    ["runtime/host/host.h"] = "",
  }, {
    "runtime/core/a.c:3: it includes runtime/io/json.h" .. ABOVE,
    "runtime/core/a.c:6: it includes runtime/host/host.h" .. ABOVE,
    "runtime/core/a.c:9: there is no file json.h, neither beside it nor in runtime/ or kernels/",
    "runtime/io/b.cc:1: there is no file host.h, neither beside it nor in runtime/ or kernels/",
    "runtime/io/b.cc:2: there is no file ../host/host.h, neither beside it nor in runtime/ or kernels/",
    "runtime/lr.h:1: it includes runtime/io/json.h" .. ABOVE,
  })
  check_wrong({ ["runtime/core/a.c"] = "\n#include NAME", ["runtime/extra/b.c"] = "" }, {
    "runtime/extra/b.c: its folder has no place in the order of docs/architecture.md (C layers: ...)",
    "runtime/core/a.c:2: what it includes cannot be told: write the name of the file",
  })
end)

test("layers: kernels stand on the lowest folder of runtime/, which knows none of them, nor do backends each other", function()
  check_wrong({
    ["kernels/cpu/vec.h"] = '#include "core/core.h"\n#include "io/json.h"',
    ["kernels/cuda/norm.cu"] = '#include "cpu/vec.h"',
    ["kernels/check.h"] = '#include "cpu/vec.h"',
    ["runtime/core/core.h"] = '#include "check.h"',
    ["runtime/io/json.h"] = "",
    ["runtime/host/main.c"] = '#include "cpu/vec.h"',
  }, {
    "kernels/check.h:1: it includes kernels/cpu/vec.h, which is another folder's: move what both need into a header of "
      .. "kernels/ itself",
    "kernels/cpu/vec.h:2: it includes runtime/io/json.h, but of runtime/ a kernel may include the lowest folder only: move what it "
      .. "needs there",
    "kernels/cuda/norm.cu:1: it includes kernels/cpu/vec.h, which is another folder's: move what both need into a header of "
      .. "kernels/ itself",
    "runtime/core/core.h:1: it includes kernels/check.h, which is of kernels/: a backend hands its functions to the runtime "
      .. "(runtime/core/device.h)",
    "runtime/host/main.c:1: it includes kernels/cpu/vec.h, which is of kernels/: a backend hands its functions to the runtime "
      .. "(runtime/core/device.h)",
  })
end)

test("layers: C files that include each other in a circle are found", function()
  check_wrong({ ["runtime/core/a.h"] = '\n#include "core/b.h"', ["runtime/core/b.h"] = '#include "c.h"',
    ["runtime/core/c.h"] = '#include "core/a.h"', ["kernels/own.h"] = '#include "own.h"' }, {
      "a circle: kernels/own.h:1 includes kernels/own.h; move what both need into a header below them",
      "a circle: runtime/core/a.h:2 includes runtime/core/b.h, runtime/core/b.h:1 includes runtime/core/c.h, runtime/core/c.h:1 "
        .. "includes runtime/core/a.h; move what both need into a header below them" })
end)
