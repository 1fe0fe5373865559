-- guard.lua: wrong calls of the public API give an error that names the user's line and the remedy, not a line of lorarun's.
--   guard.methods(class, what, alive)   every method checks its object first: model.encode{...}, with a dot in place of the
--                                       colon, passes the texts as the model. alive(self, name), if given, is called before each
--   guard.tensors(functions, counts, what, class)   the functions of lr.ops, which check their tensors first
-- The check is one comparison, since some methods are called thousands of times a step.
local check = require "lorarun.base.check"

local guard = {}

local function shown(value)
  if type(value) == "string" then return ("the text '%s'"):format(#value > 40 and value:sub(1, 40) .. "..." or value) end
  if value == nil then return "nothing" end
  if type(value) == "number" or type(value) == "boolean" then return tostring(value) end
  return "a " .. type(value)
end

--- methods(class, what, alive): wrap all functions of a class but its metamethods. The class is the metatable of its objects. what:
--- what users call an object, "model".
function guard.methods(class, what, alive)
  for name, fn in pairs(class) do
    if type(fn) == "function" and name:sub(1, 2) ~= "__" then
      class[name] = function(self, ...)
        if getmetatable(self) ~= class then
          check.fail("%s.%s() was given %s as the %s: call it with a colon, %s:%s(...)", what, name, shown(self), what, what, name)
        end
        if alive then alive(self, name) end
        return fn(self, ...)
      end
    end
  end
end

--- tensors(functions, counts, what, class): a table of the same functions. Those named in `counts` require tensors (objects of the
--- class) as their first counts[name] arguments.
function guard.tensors(functions, counts, what, class)
  local guarded = {}
  for name, value in pairs(functions) do
    local count = counts[name]
    guarded[name] = not count and value or function(...)
      for i = 1, count do
        local t = (select(i, ...))
        if getmetatable(t) ~= class then
          check.fail("%s.%s: argument %d is %s, expected a tensor%s", what, name, i, shown(t),
            type(t) == "table" and ": lr.tensor.from makes one of numbers" or "")
        end
      end
      return value(...)
    end
  end
  return guarded
end

return guard
