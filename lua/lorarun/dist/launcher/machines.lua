-- machines.lua: connects the launchers of a job on several machines, through a small store of their own. Machine 0 serves it at
-- the address and port that all were given. A launcher may take part if it knows the secret, has a machine number of its own, and
-- agrees on lorarun's version and on the numbers of machines and ranks; any disagreement is an error on all machines.
--   local link = machines.join(job, say)       returns when all machines are there
-- Machine 0 decides (failure_policy.lua), the others do what it orders:
--   link:gather(generation, views, arrived, policy)    adds the others' views and signals; a silent machine fails the job
--   link:publish(generation, orders)                   orders for the others; with the port of the ranks' store
--   link:ended(generation)                             have all ranks of the others ended?
--   link:exchange(generation, ranks, started) -> orders or nil   report to machine 0, and read its orders; an error: it is lost
--   link:leave()
-- Nothing here waits longer than SILENCE seconds for a machine that is gone.
local C = require "lorarun.base.c"
local check = require "lorarun.base.check"
local ffi = require "ffi"
local json = require "lorarun.base.json"
local sorted = require "lorarun.base.sorted"
local using = require "lorarun.base.using"

local machines = {}
local Link = {}
Link.__index = Link

local SILENCE = 15        -- seconds after which a machine counts as lost
local PATIENCE = 30       -- seconds between two lines about a machine that is missing at the start
local LAST_GREETING = 5   -- seconds that machine 0 waits until the others have read how the job ended

-- ---- the store --------------------------------------------------------------------------------------------------------

-- The store's messages are about ranks; the members of this one are machines.
local function checked(status)
  if status >= 0 then return end
  local text = ffi.string(C.lr_last_error()):gsub("%f[%a]rank(s?)%f[%A]", "machine%1")
  check.fail("%s", (text:gsub("a machine of its own", "a --machine-rank of its own")))
end

function Link:set(key, value)
  local text = json.encode(value)
  checked(C.lr_store_set(self.store, key, text, #text))
end

-- The value, or nil where nobody set it within `timeout` seconds.
function Link:get(key, timeout)
  local value, size = ffi.new "char *[1]", ffi.new "int64_t[1]"
  local status = C.lr_store_get(self.store, key, timeout, value, size)
  if status == C.LR_ETIMEOUT then return nil end
  checked(status)
  local text = ffi.string(value[0], size[0])
  C.lr_free(value[0])
  return json.decode(text, key)
end

local function connect(job)
  local out, who = ffi.new "lr_store *[1]", ffi.new "lr_store_member"
  who.secret, who.rank, who.world_size, who.generation = job.secret, job.machine_rank, job.machines, 0
  checked(C.lr_store_connect(out, job.host, job.port, who, job.rendezvous_timeout))
  C.lr_store_set_patience(out[0], SILENCE)
  return out[0]
end

-- An address of IPv6 has colons of its own.
local function address_of(job) return (job.host:find ":" and "[%s]:%d" or "%s:%d"):format(job.host, job.port) end

-- ---- the start --------------------------------------------------------------------------------------------------------

-- On machine 0: waits until all others have said hello -> nothing where all agree, else what is wrong.
function Link:receive(say)
  local job, deadline = self.job, C.lr_time() + self.job.rendezvous_timeout
  local wrong
  for machine = 1, job.machines - 1 do
    local hello
    while not hello do
      local left = deadline - C.lr_time()
      if left <= 0 then
        return ("machine %d of %d did not come to %s within %d s"):format(machine, job.machines, address_of(job),
          job.rendezvous_timeout)
      end
      hello = self:get("hello/" .. machine, math.min(left, PATIENCE))
      if not hello then say(("waiting for machine %d of %d at %s"):format(machine, job.machines, address_of(job))) end
    end
    self.hosts[machine], self.heard[machine] = hello.host, { at = C.lr_time() }
    if hello.num_processes ~= job.world_size then
      wrong = ("num_processes is %d on machine %d (%s) and %d on machine 0 (%s); start all machines with the same settings"):format(
        hello.num_processes, machine, hello.host, job.world_size, job.host_name)
    end
  end
  return wrong
end

function Link:welcome(say)
  local wrong = self:receive(say)
  for _, heard in pairs(self.heard) do heard.at = C.lr_time() end
  self:set("welcome", { host = self.job.host_name, wrong = wrong })
  if wrong then
    self:leave()
    check.fail("%s", wrong)
  end
end

function Link:introduce()
  local job = self.job
  self:set("hello/" .. job.machine_rank, { num_processes = job.world_size, host = job.host_name })
  local welcome = self:get("welcome", job.rendezvous_timeout + SILENCE) -- machine 0 gives up first, and names who is missing
  if not welcome then check.fail("machine 0 at %s does not answer", address_of(job)) end
  if welcome.wrong then
    self:leave()
    check.fail("%s", welcome.wrong)
  end
  self.hosts[0] = welcome.host
end

function machines.join(job, say)
  local link = setmetatable({ job = job, hosts = {}, heard = {}, beat = 0, signals = {} }, Link)
  return using.made(link, link.close, function()
    if job.machine_rank == 0 then
      local server = ffi.new "lr_store_server *[1]"
      checked(C.lr_store_serve(server, job.host, job.port, job.secret, job.machines))
      link.server = server[0]
    end
    link.store = connect(job)
    if job.machine_rank == 0 then link:welcome(say) else link:introduce() end
  end)
end

-- ---- machine 0 --------------------------------------------------------------------------------------------------------

-- Read each machine's latest report. A report with a new beat shows that the machine is alive.
function Link:listen()
  local now = C.lr_time()
  for machine, heard in sorted(self.heard) do
    local report = self:get("report/" .. machine, 0)
    if report and report.beat ~= heard.beat then
      heard.beat, heard.at, heard.report = report.beat, now, report
    end
  end
end

function Link:gather(generation, views, arrived, policy)
  self:listen()
  local now = C.lr_time()
  for machine, heard in sorted(self.heard) do
    local report = heard.report
    if report and report.generation == generation then
      for _, view in ipairs(report.views) do views[#views + 1] = view end
      if heard.generation ~= generation then heard.generation, heard.signals = generation, 0 end
      for i = heard.signals + 1, #report.signals do arrived[#arrived + 1] = report.signals[i] end
      heard.signals = #report.signals
    end
    if now - heard.at > SILENCE and not heard.lost then
      heard.lost = true
      policy:fail { status = 1, final = true,
        what = ("machine %d (%s) is lost: nothing was heard of it for %d s"):format(machine, self.hosts[machine], SILENCE) }
    end
  end
end

function Link:publish(generation, orders) self:set("orders/" .. generation, orders) end

function Link:ended(generation)
  for _, heard in pairs(self.heard) do
    local r = heard.report
    if not heard.lost and not (r and r.generation == generation and r.started and r.running == 0) then return false end
  end
  return true
end

-- ---- the others -------------------------------------------------------------------------------------------------------

-- Ranks may write any bytes, and JSON takes UTF-8 alone.
local function as_text(s)
  return pcall(json.encode, s) and s or s:gsub("[\128-\255]", "?")
end

function Link:exchange(generation, ranks, started)
  if self.generation ~= generation then self.generation, self.signals = generation, {} end
  for _, number in ipairs(ranks:take_signals()) do self.signals[#self.signals + 1] = number end
  local views = started and ranks:views() or {}
  for _, view in ipairs(views) do
    view.failure = as_text(view.failure)
    for i, line in ipairs(view.lines or {}) do view.lines[i] = as_text(line) end
  end
  self.beat = self.beat + 1
  self:set("report/" .. self.job.machine_rank, { generation = generation, beat = self.beat, started = started,
    running = ranks.running, signals = json.array(self.signals), views = json.array(views) })
  return self:get("orders/" .. generation, 0)
end

-- ---- the end ----------------------------------------------------------------------------------------------------------

--- Machine 0 waits a moment until the others have read how the job ended.
function Link:leave()
  local ok = pcall(function()
    if self.job.machine_rank ~= 0 then return self:set("left/" .. self.job.machine_rank, true) end
    local deadline = C.lr_time() + LAST_GREETING
    for machine, heard in sorted(self.heard) do
      if not heard.lost then self:get("left/" .. machine, math.max(0, deadline - C.lr_time())) end
    end
  end)
  self:close()
  return ok
end

function Link:close()
  C.lr_store_close(self.store)
  C.lr_store_server_stop(self.server)
  self.store, self.server = nil, nil
end

return machines
