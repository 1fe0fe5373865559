-- options.lua: checks the table of options that a function takes: their names, and the kind of each value.
--   options.check(what, given, spec)  -> given, or a new table where it is nil. An error names `what`, the option and its kind
--   spec: { name = kind, ... }; a kind is one of these, or { test = function(value) -> boolean, text = "an even number" }
--     options.any, .boolean, .text, .number, .table, .func
--     options.whole(least [, most])  a whole number        options.from(least)  a number of at least `least`
--     options.choice { "a", "b" }    one of these          options.maybe(kind)  the kind, or false, which means not given
--     options.either(kind, kind)     one of two kinds
local check = require "lorarun.base.check"
local sorted = require "lorarun.base.sorted"
local suggest = require "lorarun.base.suggest"

local options = {}

local function of_type(name, text)
  return { test = function(value) return type(value) == name end, text = text }
end

options.any = { test = function() return true end, text = "anything" }
options.boolean = of_type("boolean", "true or false")
options.text = of_type("string", "a text")
options.table = of_type("table", "a table")
options.func = of_type("function", "a function")
options.number = { test = function(value) return type(value) == "number" and value - value == 0 end, text = "a number" }

function options.from(least)
  return { test = function(value) return options.number.test(value) and value >= least end,
    text = ("a number of at least %g"):format(least) }
end

function options.whole(least, most)
  most = most or 2 ^ 53
  return { test = function(value) return type(value) == "number" and value % 1 == 0 and value >= least and value <= most end,
    text = most < 2 ^ 53 and ("a whole number from %.0f to %.0f"):format(least, most)
      or ("a whole number of at least %.0f"):format(least) }
end

function options.choice(list)
  local set, shown = {}, {}
  for i, value in ipairs(list) do
    set[value], shown[i] = true, ("'%s'"):format(value)
  end
  return { test = function(value) return set[value] or false end, text = table.concat(shown, ", ", 1, #list - 1) .. " or "
    .. shown[#list], choices = list }
end

function options.maybe(kind)
  return { test = function(value) return value == false or kind.test(value) end, text = kind.text, choices = kind.choices }
end

function options.either(one, other)
  return { test = function(value) return one.test(value) or other.test(value) end, text = one.text .. ", or " .. other.text,
    choices = one.choices or other.choices }
end

--- shown(value): a value as an error names it: a text in quotes, a table as what it is.
function options.shown(value)
  if type(value) == "string" then return ("'%s'"):format(value) end
  if type(value) == "number" or type(value) == "boolean" or value == nil then return tostring(value) end
  return "a " .. type(value)
end

function options.check(what, given, spec)
  if given == nil then return {} end
  if type(given) ~= "table" then check.fail("%s takes a table of options, got %s", what, options.shown(given)) end
  suggest.refuse_unknown(what, given, spec)
  for name, value in sorted(given) do -- of several mistakes always the same one is named
    local kind = spec[name]
    if not kind.test(value) then
      local meant = kind.choices and type(value) == "string" and suggest.did_you_mean(value, kind.choices) or ""
      check.fail("%s: %s is %s, expected %s%s", what, name, options.shown(value), kind.text, meant)
    end
  end
  return given
end

return options
