-- ceilings.lua: what this GPU can do: how fast it copies its memory and multiplies large square matrices. All other figures are
-- compared with these.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local tensor = require "lorarun.tensor.tensor"

return function(bench)
  local report = bench.report
  report:table("ceilings", "Ceilings", { "what", "ms", "rate", "unit", "of data sheet" })
  local rows, width = bench.tiny and 64 or 2 ^ 17, bench.tiny and 64 or 2 ^ 12 -- f32: 2 GiB, beyond any cache
  tensor.scope(function()
    local from, to = bench.random(rows, width, "f32"), tensor.new({ rows, width }, "f32", "copy")
    local t = bench.seconds(function() check(C.lr_op_cast(to.handle, from.handle)) end)
    bench.ceilings.copy = 2 * 4 * rows * width / t
    report:row("ceilings", { "copy, read + written", 1e3 * t, bench.ceilings.copy / 1e9, "GB/s", "" })
  end)
  local side = bench.tiny and 64 or 8192
  for _, dtype in ipairs(bench.device == "cpu" and { "bf16", "f32" } or { "bf16", "f16", "f32" }) do
    tensor.scope(function()
      local x, y, w = bench.random(side, side, dtype), tensor.new({ side, side }, dtype, "y"), bench.weight(side, side, dtype)
      local t = bench.seconds(function() check(C.lr_op_linear(y.handle, x.handle, w.handle, nil, nil)) end)
      local rate = 2 * side ^ 3 / t
      bench.ceilings[dtype] = rate
      local share = bench.peak and dtype ~= "f32" and ("%.1f%% of %s"):format(100 * rate / bench.peak, bench.peak_name) or ""
      report:row("ceilings", { ("GEMM %d^3 %s"):format(side, dtype), 1e3 * t, rate / 1e12, "TFLOP/s", share })
    end)
  end
  report:headline("%-34s %8.0f GB/s", "copy", bench.ceilings.copy / 1e9)
  report:headline("%-34s %8.0f TFLOP/s", "GEMM 8192^3 bf16", bench.ceilings.bf16 / 1e12)
end
