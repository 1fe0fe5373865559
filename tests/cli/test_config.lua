-- lorarun config: questions, answers, the file it writes, and --show.
local fs = require "lorarun.base.fs"
local shell = dofile(os.getenv "LORARUN_TESTS" .. "/shell.lua")
local yaml = require "lorarun.base.yaml"

-- Runs `lorarun config WORDS` in a folder, with the answers on standard input.
local function config(folder, words, answers)
  fs.write(fs.join(folder, "answers"), table.concat(answers or {}, "\n") .. (answers and #answers > 0 and "\n" or ""))
  return shell.run(("cd %s; $L config %s <answers"):format(shell.quote(folder), words))
end

test("answers become an Accelerate file, which lorarun reads", function()
  shell.with_folder(function(folder)
    local r = config(folder, "", { "2", "1", "10.0.0.1", "", "yes", "8", "0,1,2,3", "bf16" })
    check.equal(r.err, "")
    check.equal(r.status, 0)
    check.that(r.out:find "How many machines take part%? %[1%] 2\n" and r.out:find "accelerate_config.yaml was written", r.out)
    local file = yaml.read(fs.join(folder, "accelerate_config.yaml"))
    for key, value in pairs { num_machines = 2, machine_rank = 1, main_process_ip = "10.0.0.1", main_process_port = 29500,
      num_processes = 8, gpu_ids = "0,1,2,3", mixed_precision = "bf16", distributed_type = "MULTI_GPU", use_cpu = false } do
      check.equal(file[key], value, key)
    end
    r = shell.run(("cd %s; LORARUN_SECRET=0123456789abcdef $L config --show --config accelerate_config.yaml --num-processes 4")
      :format(shell.quote(folder)))
    check.equal(r.err, "")
    check.that(r.out:find "num_processes +4 +command line\n" and r.out:find "machine_rank +1 +accelerate_config.yaml:%d+\n"
      and r.out:find "max_restarts +0 +default\n" and r.out:find "secret +set +LORARUN_SECRET\n", r.out)
  end)
end)

test("empty answers give a job on this machine", function()
  shell.with_folder(function(folder)
    local r = config(folder, "--config here.yaml", { "", "no", "", "" })
    check.equal(r.status, 0)
    local file = yaml.read(fs.join(folder, "here.yaml"))
    check.equal(file.num_processes, 1)
    check.equal(file.distributed_type, "NO")
    check.equal(file.mixed_precision, "no")
    check.equal(file.use_cpu, true)
  end)
end)

test("after an invalid answer the question is asked again; a file is not replaced without asking", function()
  shell.with_folder(function(folder)
    local r = config(folder, "", { "two", "2", "2", "0", "10.0.0.1", "0", "29501", "maybe", "no", "3", "4", "half", "bf16" })
    check.equal(r.status, 0)
    for _, part in ipairs { "expected a whole number", "the last of 2 is 1", "must know the port", "answer yes or no",
      "a multiple of 2", "expected one of no, fp16, bf16" } do
      check.that(r.out:find(part, 1, true), part .. " in\n" .. r.out)
    end
    local before = fs.read(fs.join(folder, "accelerate_config.yaml"))
    r = config(folder, "", { "", "no", "", "", "no" })
    check.that(r.out:find "replace it%?" and r.out:find "nothing was written", r.out)
    check.equal(fs.read(fs.join(folder, "accelerate_config.yaml")), before)
    check.equal(config(folder, "", { "", "no", "2", "", "yes" }).status, 0)
    check.that(fs.read(fs.join(folder, "accelerate_config.yaml")) ~= before)
  end)
end)

test("answers that end too early, and unknown words", function()
  shell.with_folder(function(folder)
    local r = config(folder, "", { "1" })
    check.equal(r.status, 1)
    check.that(r.err:find("the answers ended before the question", 1, true), r.err)
    check.equal(fs.exists(fs.join(folder, "accelerate_config.yaml")), false)
    r = config(folder, "--shwo")
    check.equal(r.status, 1)
    check.that(r.err:find("lorarun config does not know '--shwo'", 1, true), r.err)
    check.that(config(folder, "--help").out:find "^usage: lorarun config")
    r = config(folder, "--show --num-machines 2 --num-processes 3")
    check.equal(r.status, 1)
    check.that(r.err:find("num_processes is 3 (command line)", 1, true), r.err)
  end)
end)

test("a recipe may be called config", function()
  shell.with_folder(function(folder)
    fs.write(fs.join(folder, "config"), "print 'a recipe'")
    check.equal(shell.run(("cd %s; $L ./config"):format(shell.quote(folder))).out, "a recipe\n")
  end)
end)

test("a flag for ranks after the recipe's name: the error says where it belongs", function()
  shell.with_folder(function(folder)
    fs.write(fs.join(folder, "r.lua"), "require('lorarun').args { batch = 1 }")
    local r = shell.run(("cd %s; $L r.lua --num-processes 2"):format(shell.quote(folder)))
    check.equal(r.status, 2)
    check.that(r.err:find("stands before the recipe: lorarun --num-processes ... RECIPE.lua", 1, true), r.err)
  end)
end)
