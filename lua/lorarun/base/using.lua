-- using.lua: a resource is given back whether what uses it ends or fails, and the error that reaches the user is the first one.
--
--   local text = using(open(path), close, function(file) return read(file) end)
--   local link = using.made(new_link(), Link.close, function(link) link:greet() end)   -- closed only where the function fails
--
-- The error passes on unchanged: its text begins with the place that it had where it was raised.
local using = {}

local function finish(resource, close, ok, ...)
  if not ok then
    pcall(close, resource)
    error((...), 0)
  end
  close(resource)
  return ...
end

local function finish_made(resource, close, ok, ...)
  if not ok then
    pcall(close, resource)
    error((...), 0)
  end
  return resource, ...
end

--- made(resource, close, fn): the resource, and then what fn(resource) returns. close(resource) is called where fn fails.
function using.made(resource, close, fn) return finish_made(resource, close, pcall(fn, resource)) end

--- using(resource, close, fn): what fn(resource) returns; close(resource) is called in any case.
return setmetatable(using, { __call = function(_, resource, close, fn)
  return finish(resource, close, pcall(fn, resource))
end })
