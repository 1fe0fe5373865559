-- registers.lua: the registers and spills of every CUDA kernel, as ptxas counted them when the build compiled it
-- (tools/ptxas_report.sh), against the budget in registers.txt. Needs no GPU; run where the build has CUDA (LORARUN_CUDA=on).
-- What was counted is also written, one line a kernel, dtype and architecture, to kernels.txt in the reports' folder.
local fs = require "lorarun.base.fs"
local folder = assert(os.getenv "LORARUN_REGISTERS", "LORARUN_REGISTERS names the folder of ptxas's reports")

-- "void (anonymous namespace)::eights<true, (anonymous namespace)::add_body<float> >(...)" -> "eights:add_body"
-- "void (anonymous namespace)::attention_kernel<__half, 64>(...)" -> "attention_kernel:64"
local function family(signature)
  local name = signature:gsub("%(anonymous namespace%)::", ""):gsub("^void ", "")
  local kernel = name:match "^[%w_:]+"
  local body = kernel == "eights" and name:match "[%w_]*_body"
  local size = name:match "^[%w_:]+<[^<>]*, (%d+)>"
  return body and kernel .. ":" .. body or size and kernel .. ":" .. size or kernel
end

local function demangled(text)
  local path = os.tmpname()
  fs.write(path, text)
  local pipe = assert(io.popen("c++filt <" .. path))
  local out = pipe:read "*a"
  pipe:close()
  os.remove(path)
  return out
end

-- { { signature, architecture, registers, spilled } ... }
local function read_reports()
  local kernels = {}
  for _, file in ipairs(fs.list(folder)) do
    if file:find "%.txt$" and file ~= "kernels.txt" then
      local signature, architecture, spilled
      for line in demangled(fs.read(fs.join(folder, file))):gmatch "[^\n]+" do
        if line:find "Compiling entry function" then
          signature, architecture = line:match "function '(.-)' for '(sm_%w+)'"
        elseif line:find "spill stores" then
          local frame, stores, loads = line:match "(%d+) bytes stack frame, (%d+) bytes spill stores, (%d+) bytes spill loads"
          spilled = math.max(tonumber(frame), tonumber(stores), tonumber(loads))
        else
          kernels[#kernels + 1] = { signature = signature, architecture = architecture, spilled = spilled,
            registers = tonumber(line:match "Used (%d+) registers") }
        end
      end
    end
  end
  return kernels
end

local function read_budget()
  local budget = {}
  for line in fs.read(fs.join(os.getenv "LORARUN_TESTS", "cuda/registers.txt")):gmatch "[^\n]+" do
    local name, registers, spilled = line:match "^(%S+)%s+(%d+)%s+(%d+)$"
    if name then budget[name] = { registers = tonumber(registers), spilled = tonumber(spilled) } end
  end
  return budget
end

test("no kernel needs more registers, or spills more, than its budget allows", function()
  local budget, lines, wrong, seen = read_budget(), {}, {}, {}
  for _, k in ipairs(read_reports()) do
    local name = family(k.signature)
    seen[name] = true
    lines[#lines + 1] = ("%-7s %3d registers %4d bytes spilled  %s"):format(k.architecture, k.registers, k.spilled, k.signature)
    local b = budget[name]
    if not b then
      wrong[#wrong + 1] = ("%s is not in registers.txt: %s %d %d"):format(name, name, k.registers, k.spilled)
    elseif k.registers > b.registers or k.spilled > b.spilled then
      wrong[#wrong + 1] = ("%s for %s: %d registers, %d bytes spilled; the budget is %d and %d"):format(k.signature,
        k.architecture, k.registers, k.spilled, b.registers, b.spilled)
    end
  end
  table.sort(lines)
  fs.write(fs.join(folder, "kernels.txt"), table.concat(lines, "\n") .. "\n")
  check.that(#lines > 0, "no report in " .. folder)
  for name in pairs(budget) do
    if not seen[name] then wrong[#wrong + 1] = name .. " is in registers.txt, but there is no such kernel" end
  end
  check.that(#wrong == 0, table.concat(wrong, "\n"))
end)
