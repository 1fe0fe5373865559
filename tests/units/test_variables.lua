-- Environment variables: values that make no sense are refused, names that nothing reads are warnings.
local ffi = require "ffi"
local settings = require "lorarun.dist.settings"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local variables = require "lorarun.cli.variables"

ffi.cdef "int setenv(const char *, const char *, int); int unsetenv(const char *);"

test("values", function()
  for name, cases in pairs {
    OMP_NUM_THREADS = { { "", "1", "64", " 2 ", "4,2", "4096" }, { "two", "0", "-1", "4097", "1.5", "2x", ",2" } },
    LORARUN_JIT = { { "", "on", "off" }, { "no", "OFF" } },
    LORARUN_TRACEBACK = { { "0", "1" }, { "yes" } },
    LORARUN_ISA = { { "baseline", "avx2", "avx512", "avx512bf16" }, { "avx", "AVX2" } },
    LORARUN_LUA_PATH = { { "" }, { "/no/such" } },
  } do
    for _, value in ipairs(cases[1]) do check.equal(#variables.check { [name] = value }, 0, name .. "=" .. value) end
    for _, value in ipairs(cases[2]) do
      check.raises(("%s is '%s', expected"):format(name, value), variables.check, { [name] = value })
    end
  end
  check.raises("LORARUN_ISA is 'sse', expected one of baseline, avx2, avx512, avx512bf16", variables.check, { LORARUN_ISA = "sse" })
end)

test("names", function()
  local warnings = variables.check { LORARUN_SECRT = "x", LORARUN_X = "", LORARUN_TEST_ANY = "1", PATH = "/bin",
    LORARUN_TESTS = "t", LORARUN_GROUP = "g" }
  check.equal(table.concat(warnings, "; "), "nothing reads the variable LORARUN_SECRT; did you mean LORARUN_SECRET?; "
    .. "nothing reads the variable LORARUN_X")
end)

test("the program reports unknown variables once, before anything runs", function()
  local r = shell.run "LORARUN_TRACEBAK=1 $L --num-processes 2 -e 'lr.launch {}'"
  check.equal(r.status, 0)
  check.equal(select(2, r.err:gsub("warning: nothing reads the variable LORARUN_TRACEBAK", "")), 1, r.err)
  r = shell.run "OMP_NUM_THREADS=many $L -e 'print(1)'"
  check.equal(r.status, 1)
  check.equal(r.out, "")
  check.that(r.err:find("lorarun: OMP_NUM_THREADS is 'many', expected a whole number from 1 to 4096", 1, true), r.err)
end)

test("CUDA_VISIBLE_DEVICES and gpu_ids number the machine's GPUs in the same way", function()
  local before = os.getenv "CUDA_VISIBLE_DEVICES"
  local function gpus(visible, ids)
    ffi.C.setenv("CUDA_VISIBLE_DEVICES", visible, 1)
    settings.forget()
    local ok, s = pcall(settings.resolve, { gpu_ids = ids })
    if before then ffi.C.setenv("CUDA_VISIBLE_DEVICES", before, 1) else ffi.C.unsetenv "CUDA_VISIBLE_DEVICES" end
    if not ok then error(s, 0) end
    return table.concat(s.gpus, " ")
  end
  check.equal(gpus("", "1,0"), "1 0")
  check.equal(gpus("4, 5,7", "7,4"), "2 0") -- in the numbers of this process
  check.raises("gpu_ids is 0,1 (recipe), and CUDA_VISIBLE_DEVICES is 4,5: name GPUs that are in both", gpus, "4,5", "0,1")
  check.raises("and CUDA_VISIBLE_DEVICES is GPU-1a2b", gpus, "GPU-1a2b", "0")
end)
