-- Settings of a launch, from the command line, a file and the recipe: which of these decides, and what is refused.
local settings = require "lorarun.dist.settings"

-- Flags of the command line stay for the life of the process, so each test begins by forgetting them.
local function flags(...)
  settings.forget()
  local argv, i = { ... }, 1
  while i <= #argv do
    local taken, mistake = settings.take_flag(argv, i)
    if not taken then error(mistake or "no flag: " .. argv[i], 0) end
    i = i + taken
  end
end

test("without any setting there is one rank, in fp32", function()
  flags()
  local s = settings.resolve {}
  check.equal(s.num_processes, 1)
  check.equal(s.precision, "fp32")
  check.equal(s.ranks_here, 1)
  check.equal(s.first_rank, 0)
  check.equal(s.timeout, 600)
  check.equal(s.origin.num_processes, "default")
end)

test("settings in the recipe, and flags in all their spellings", function()
  flags("--num_processes=6", "--mixed-precision", "bf16", "--cpu")
  local s = settings.resolve { processes = 2, precision = "fp16", max_restarts = 3 }
  check.equal(s.num_processes, 6)
  check.equal(s.origin.num_processes, "command line")
  check.equal(s.precision, "bf16")
  check.equal(s.max_restarts, 3)
  check.equal(s.origin.max_restarts, "recipe")
  check.equal(s.use_cpu, true)
end)

test("an option after the recipe's name counts as the command line", function()
  flags()
  local args = require("lorarun.base.args").read({ { "processes", 1, type = "integer" }, { "precision", "fp32" } },
    { "--processes", "3" })
  local s = settings.resolve { processes = args.processes, precision = args.precision, args = args }
  check.equal(s.origin.num_processes, "command line")
  check.equal(s.origin.mixed_precision, "recipe")
end)

test("machines share ranks evenly, know where machine 0 is, and have a secret", function()
  local secret = os.tmpname()
  local f = assert(io.open(secret, "w"))
  f:write "open sesame, open\n"
  f:close()
  flags("--num-processes", "8", "--num-machines", "2", "--machine-rank", "1", "--main-process-ip", "10.0.0.1", "--secret-file",
    secret)
  assert(os.execute("chmod 640 " .. secret) == 0)
  local s = settings.resolve {}
  check.equal(#s.warnings, 1)
  check.that(s.warnings[1]:find("open to other users of this machine (its mode is 640)", 1, true), s.warnings[1])
  assert(os.execute("chmod 600 " .. secret) == 0)
  check.equal(#settings.resolve {}.warnings, 0)
  for text, part in pairs { ["15 bytes it has"] = "has 15 bytes, and could be guessed", ["\0" .. ("x"):rep(31)] = "has a NUL byte",
    [("x"):rep(31) .. "\0"] = "has a NUL byte" } do
    require("lorarun.base.fs").write(secret, text)
    check.raises(part, settings.resolve, {})
    check.raises("head -c 32 /dev/urandom | base64", settings.resolve, {})
  end
  os.remove(secret)
  check.equal(s.ranks_here, 4)
  check.equal(s.first_rank, 4)
  check.equal(s.main_process_port, 29500)
  check.equal(s.secret, "open sesame, open")
  check.raises("the secret cannot be read", settings.resolve, {})

  flags("--num-processes", "5", "--num-machines", "2")
  check.raises("num_processes is 5 (command line), which num_machines is 2 (command line) does not divide", settings.resolve, {})
  flags("--num-processes", "4", "--num-machines", "2")
  check.raises("--main-process-ip", settings.resolve, {})
  flags("--num-processes", "4", "--num-machines", "2", "--main-process-ip", "10.0.0.1")
  check.raises("must share a secret", settings.resolve, {})
  flags("--num-processes", "4", "--num-machines", "2", "--main-process-ip", "10.0.0.1", "--main-process-port", "0")
  check.raises("must know the port", settings.resolve, {})
  flags("--machine-rank", "1")
  check.raises("machine_rank is 1 (command line), but num_machines is 1 (default)", settings.resolve, {})
end)

test("addresses of machine 0", function()
  local function address(ip, port)
    flags("--main-process-ip", ip, "--main-process-port", port or "29500")
    if not port then flags("--main-process-ip", ip) end
    local s = settings.resolve {}
    return s.main_process_ip .. " " .. tostring(s.main_process_port)
  end
  check.equal(address "[::1]", "::1 nil")
  check.equal(address("[::1]", "29501"), "::1 29501")
  check.equal(address "[::1]:29502", "::1 29502")
  check.equal(address("node1:29502", "29502"), "node1 29502")
  check.raises("main_process_ip is a:1 (command line), which names a port, and main_process_port is 2 (command line)", address,
    "a:1", "2")
  check.raises("main_process_ip (command line) is 'http://a', expected", address, "http://a")
end)

test("GPUs: one for each rank", function()
  flags("--num-processes", "4", "--gpu-ids", "0,1, 2")
  check.raises("gpu_ids is 0,1, 2 (command line): 3 for 4 ranks", settings.resolve, {})
  flags("--gpu-ids", "0,x")
  check.raises("expected numbers with commas", settings.resolve, {})
  flags("--gpu-ids", "1,1")
  check.raises("1 is there twice", settings.resolve, {})
  flags("--num-processes", "2", "--gpu-ids", "all", "--multi-gpu")
  check.equal(settings.resolve {}.needs_gpu, "--multi-gpu")
  flags("--multi-gpu", "--cpu")
  check.equal(settings.resolve {}.needs_gpu, nil)
end)

test("mistakes are named", function()
  check.raises("--num-processes is 'four', expected a whole number", flags, "--num-processes", "four")
  for _, text in ipairs { "1e1", "0x4", "2.0", "1_0", "nan", "" } do -- to Lua some are numbers; to Python none is an integer
    check.raises(("--num-processes is '%s', expected a whole number"):format(text), flags, "--num-processes=" .. text)
  end
  check.raises("--timeout is 'inf', expected a number", flags, "--timeout", "inf")
  check.raises("--timeout is '0x10', expected a number", flags, "--timeout", "0x10")
  flags("--timeout", "1.5e2")
  check.equal(settings.resolve {}.timeout, 150)
  check.raises("--num-processes is 0, expected 1 to", flags, "--num-processes", "0")
  check.raises("--timeout needs a value: --timeout SECONDS", flags, "--timeout")
  check.raises("--cpu takes no value", flags, "--cpu=yes")
  check.raises("fp8, which is not supported", flags, "--mixed-precision", "fp8")
  check.raises("expected one of no, fp16, bf16", flags, "--mixed-precision", "int8")
  check.raises("no flag", flags, "--num-process", "4")
  flags()
  check.raises("no option 'process'; did you mean 'processes'?", settings.resolve, { process = 2 })
  check.raises("precision is 'half', expected fp32, bf16 or fp16", settings.resolve, { precision = "half" })
  check.raises("lr.launch: processes is '2.5'", settings.resolve, { processes = 2.5 })
end)

test("every flag is in the help, once", function()
  local help = settings.flag_help()
  for _, flag in ipairs { "--config", "--num-processes", "--main-process-ip", "--max-restarts", "--secret-file" } do
    local _, times = help:gsub(flag:gsub("%-", "%%-") .. " ", "")
    check.equal(times, 1, flag)
  end
end)
