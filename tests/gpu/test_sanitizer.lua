-- compute-sanitizer finds nothing in training steps of tiny models: no access out of bounds (memcheck), no race in shared memory
-- (racecheck), no barrier that some threads miss (synccheck). Kernels of cuBLAS are checked, too.
if not require("lorarun").has_gpu() then skip "no GPU" end
local fs = require "lorarun.base.fs"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local probe = shell.run "compute-sanitizer --version"
if probe.status ~= 0 then skip "compute-sanitizer is not on PATH (it comes with the CUDA toolkit)" end
local FOUND = 99 -- compute-sanitizer's exit status if it found something
local script = shell.quote(fs.join(os.getenv "LORARUN_TESTS", "gpu", "one_step.lua"))

for _, tool in ipairs { "memcheck", "racecheck", "synccheck" } do
  test(tool .. " finds nothing", function()
    local r = shell.run(("compute-sanitizer --tool %s --error-exitcode %d $L %s bf16 fp32"):format(tool, FOUND, script))
    check.that(r.status ~= FOUND, r.out:sub(-4000))
    check.equal(r.status, 0, r.out:sub(-2000) .. r.err .. "\nstatus")
    local losses = select(2, r.out:gsub("%a+%d* %a+%d+ %d%.%d+", ""))
    check.equal(losses, 4, "losses that were printed")
  end)
end
