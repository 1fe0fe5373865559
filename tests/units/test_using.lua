-- What is opened is closed, and the first error is the one that is reported.
local using = require "lorarun.base.using"

local function resource()
  local r = { closed = 0 }
  return r, function(it) it.closed = it.closed + 1 end
end

test("using: the results are passed on, and the resource is closed once", function()
  local r, close = resource()
  local a, b, c = using(r, close, function(it) return it, nil, 3 end)
  check.that(a == r and b == nil and c == 3)
  check.equal(r.closed, 1)
end)

test("using: after an error the resource is closed, and the error is passed on unchanged", function()
  local r, close = resource()
  local thrown = { what = "an object" }
  local ok, err = pcall(using, r, close, function() error(thrown) end)
  check.that(not ok and err == thrown)
  ok, err = pcall(using, r, function() error "while closing" end, function() error("the first", 0) end)
  check.that(not ok and err == "the first", tostring(err))
  check.equal(r.closed, 1)
  check.raises("while closing", using, r, function() error "while closing" end, function() end)
end)

test("using.made: the resource stays open without an error, and is closed after one", function()
  local r, close = resource()
  local made, more = using.made(r, close, function(it) return it.closed end)
  check.that(made == r and more == 0 and r.closed == 0)
  check.raises("it failed", using.made, r, close, function() error "it failed" end)
  check.equal(r.closed, 1)
end)
