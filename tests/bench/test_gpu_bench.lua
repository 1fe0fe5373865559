-- make bench-gpu, at sizes that take seconds: every part runs and leaves its figures, on the GPU where there is one (or CUDA's
-- kernels on the CPU), else on the CPU. What the figures are worth is not asked here.
local fs = require "lorarun.base.fs"
local json = require "lorarun.base.json"
local lr = require "lorarun"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")

local script = shell.quote(fs.join(fs.dirname(os.getenv "LORARUN_TESTS"), "bench", "gpu", "run.lua"))
local device = lr.has_gpu() and "cuda" or "cpu"

local function run(folder, words) return shell.run(("$L %s --out %s %s"):format(script, shell.quote(folder), words)) end

test("every part runs, and its figures are in the files", function()
  shell.with_folder(function(folder)
    local r = run(folder, ("--size tiny --device %s --tokens 8192,16384 --steps 1 --python false"):format(device))
    check.equal(r.status, 0, r.out .. r.err)
    check.that(not r.out:find "failed", r.out)
    local result, rows = json.decode_file(fs.join(folder, "bench-gpu.json")), {}
    for _, t in ipairs(result.tables) do
      rows[t.name] = #t.rows
      for _, row in ipairs(t.rows) do check.equal(#row.cells, #t.columns, ("cells of '%s'"):format(row.cells[1])) end
    end
    for name, count in pairs { ceilings = device == "cpu" and 3 or 4, gemm = 15, kernels = 36, step = 2, load = 3, beside = 1 } do
      check.equal(rows[name], count, "rows of " .. name)
    end
    for _, t in ipairs(result.tables) do
      if t.name == "step" then
        for _, row in ipairs(t.rows) do
          check.near(row.peak_bytes / row.planned_bytes, 1, 0.001, "peak of a step beside the plan's")
          check.that(row.loss >= 0, "loss")
        end
      end
    end
    local text = fs.read(fs.join(folder, "bench-gpu.md"))
    check.that(text:find("| GEMM 64^3 bf16 |", 1, true) and text:find("PEFT + torch with CUDA: skipped", 1, true), text)
  end)
end)

test("without time everything is left out, and that is said", function()
  shell.with_folder(function(folder)
    local r = run(folder, ("--size tiny --device %s --minutes 0 --parts step,gemm"):format(device))
    check.equal(r.status, 0, r.err)
    for _, part in ipairs { "gemm", "step" } do
      check.that(r.out:find("no time was left for part " .. part, 1, true), r.out)
    end
  end)
end)

test("a part that is not known, and a GPU that is not there", function()
  shell.with_folder(function(folder)
    local r = run(folder, ("--size tiny --device %s --parts kernel"):format(device))
    check.that(r.status ~= 0 and r.err:find("no part 'kernel'", 1, true), r.err)
    r = shell.run(("env -u LORARUN_SIMT CUDA_VISIBLE_DEVICES= $L %s --out %s"):format(script, shell.quote(folder)))
    check.equal(r.status, 77, r.err)
    check.that(r.out:find "^bench%-gpu: skipped: ", r.out)
  end)
end)
