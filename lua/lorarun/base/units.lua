-- units.lua: numbers as people read them. One way for each kind, wherever lorarun writes one.
local units = {}

--- size(1234567) is "1.2 MB": bytes, in powers of 1000.
function units.size(bytes)
  local names = { "B", "KB", "MB", "GB", "TB" }
  local u = 1
  while bytes >= 1000 and u < #names do bytes, u = bytes / 1000, u + 1 end
  return (u == 1 and "%d %s" or "%.1f %s"):format(bytes, names[u])
end

units.GIB = 2 ^ 30

--- gib(bytes) is "1.0 GiB": memory, as the tools of GPUs count it.
function units.gib(bytes) return ("%.1f GiB"):format(bytes / units.GIB) end

--- count(1704039) is "1,704,039".
function units.count(n)
  local s = ("%d"):format(n)
  repeat
    local k
    s, k = s:gsub("^(%d+)(%d%d%d)", "%1,%2")
  until k == 0
  return s
end

--- duration(seconds) is "1:02:03", or "2:03" below an hour.
function units.duration(seconds)
  local s = math.floor(seconds + 0.5)
  local h, m = math.floor(s / 3600), math.floor(s / 60) % 60
  return h > 0 and ("%d:%02d:%02d"):format(h, m, s % 60) or ("%d:%02d"):format(m, s % 60)
end

return units
