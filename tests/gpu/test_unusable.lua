-- A GPU that exists but cannot be used is an error that says why. Runs with tests/cuda_api in place of a GPU.
if os.getenv "LORARUN_TEST_CUDA" ~= "fake" then skip "the GPU is no fake that can be broken" end
local fs = require "lorarun.base.fs"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local function launched(environment, flags)
  local result
  shell.with_folder(function(folder)
    local script = fs.join(folder, "recipe.lua")
    fs.write(script, 'print(require("lorarun").launch({}).device)')
    result = shell.run(("%s $L %s %s"):format(environment, flags, script))
  end)
  return result
end

test("a GPU that cannot be used ends the job before it begins, unless the user chose the CPU", function()
  check.equal(launched("", "").out, "cuda\n")
  local r = launched("FAKE_CUDA_UNABLE=1", "")
  check.equal(r.status, 1)
  check.equal(r.out, "")
  check.that(r.err:find("the GPU cannot be used: the GPU's driver does not manage virtual memory", 1, true), r.err)
  check.that(r.err:find("--cpu trains on the CPU", 1, true), r.err)
  check.equal(launched("FAKE_CUDA_UNABLE=1", "--cpu").out, "cpu\n")
end)
