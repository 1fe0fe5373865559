-- class.lua: the class of models, by which other modules know one. Its methods are model.lua's.
local check = require "lorarun.base.check"
local kinds = require "lorarun.base.options"

local Model = {}
Model.__index = Model

--- is(value): is it a model?
local function is(value) return getmetatable(value) == Model end

--- expect(value, what): an error where it is no model, or one that was freed. what: who wants it.
local function expect(value, what)
  if not is(value) then
    check.fail("%s takes a model, got %s%s", what, kinds.shown(value), type(value) == "string"
      and (": load it first, lr.load_model(%q)"):format(value) or "")
  end
  if value.freed then check.fail("%s: the model %s was freed", what, value.name) end
end

return { Model = Model, is = is, expect = expect }
