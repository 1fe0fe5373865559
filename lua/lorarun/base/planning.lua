-- planning.lua: does this program plan a run instead of doing it (lorarun plan), and for what?
--
-- planning.job is nil in every program but that one. There it is what plan/init.lua has read from the command line, and then
--   lr.load_model    loads onto the meta device, for which config.json is enough
--   lr.launch        starts no ranks
--   lr.train         plans instead of training
--   lr.has_gpu       answers for the machine that is planned for
--   lr.bugdata.from_this_machine   makes no data
-- This module is all that they need to know.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"

local planning = { job = nil }

--- start(job): from now on this program plans. job: { device = "cuda" or "cpu", gpu = name, memory = bytes of a GPU, counts = list
--- of numbers of GPUs to compare }; it gets processes, as lr.launch was told, and plans: how often lr.train was called.
function planning.start(job)
  job.processes, job.plans = 1, 0
  planning.job = job
  check(C.lr_meta_like(job.device == "cuda" and C.LR_CUDA or C.LR_CPU))
end

--- launch(settings): what lr.launch returns when ranks are planned and not started.
function planning.launch(settings)
  local job = planning.job
  if settings.needs_gpu and job.device == "cpu" then
    check.fail("%s asks for GPUs; say which to plan for: --gpu h100, or --gpu-memory 80GB", settings.needs_gpu)
  end
  job.processes = settings.num_processes
  return { rank = 0, world_size = 1, local_rank = 0, local_world_size = 1, machine_rank = 0, generation = 0,
    precision = settings.precision, device = job.device }
end

return planning
