-- prompts.lua: the prompt before a text: one of the model's folder, by its name, or the user's own, { text = "query: " }. The same
-- in training, evaluation and encode().
local check = require "lorarun.base.check"
local options = require "lorarun.base.options"
local sorted = require "lorarun.base.sorted"
local suggest = require "lorarun.base.suggest"

local prompts = {}

--- What the options prompt and prompt_name may be.
prompts.KINDS = { prompt = options.either(options.text, options.table), prompt_name = options.text }

-- The prompt of that name; what: who asks for it.
local function named(model, name, what)
  local text = model.settings.prompts[name]
  if text then return text end
  local names = sorted.keys(model.settings.prompts)
  check.fail("%s: the model has no prompt named '%s'%s; it has %s. A text of your own is { text = \"query: \" }", what,
    tostring(name), suggest.did_you_mean(tostring(name), names), #names > 0 and table.concat(names, ", ") or "none")
end

-- A literal prompt: { text = "query: " }.
local function literal(given, what)
  options.check(what, given, { text = options.text })
  return given.text or check.fail("%s: text is missing: { text = \"query: \" }", what)
end

--- of(model, options): the text put before each input: prompt = a text (or { text = ... }), or prompt_name = a name of the
--- folder's; else the folder's default one or "".
function prompts.of(model, given)
  given = options.check("prompt()", given, prompts.KINDS)
  if given.prompt and given.prompt_name then check.fail "prompt and prompt_name are both given: give one of them" end
  if type(given.prompt) == "table" then return literal(given.prompt, "prompt") end
  if given.prompt then return given.prompt end
  local name = given.prompt_name or model.settings.default_prompt
  return name and named(model, name, given.prompt_name and "prompt_name" or "the folder's default prompt") or ""
end

--- prefixes(model, columns, given): the text before those of each column, a list. given: { column = the name of a prompt of the
--- folder's, or { text = "query: " } }; a column that is not among them has none, whatever the folder's default.
function prompts.prefixes(model, columns, given)
  given = given or {}
  if type(given) ~= "table" or given[1] ~= nil then
    check.fail("prompts is %s, expected what comes before the texts of each column: { %s = \"query\" }, the name of a prompt of "
      .. "the model, or { %s = { text = \"query: \" } }", type(given) == "table" and "a list" or options.shown(given), columns[1],
      columns[1])
  end
  local known, prefixes = {}, {}
  for c, column in ipairs(columns) do known[column], prefixes[c] = true, "" end
  local strangers = {}
  for column in pairs(given) do
    if not known[column] then strangers[#strangers + 1] = tostring(column) end
  end
  if #strangers > 0 then
    table.sort(strangers)
    check.fail("prompts: there is no column '%s'%s; columns are %s", strangers[1], suggest.did_you_mean(strangers[1], columns),
      table.concat(columns, ", "))
  end
  for c, column in ipairs(columns) do
    local prompt, what = given[column], ("prompts: '%s'"):format(column)
    if type(prompt) == "string" then
      prefixes[c] = named(model, prompt, what)
    elseif type(prompt) == "table" then
      prefixes[c] = literal(prompt, what)
    elseif prompt ~= nil and prompt ~= false then
      check.fail("%s is %s, expected the name of a prompt, or { text = \"query: \" }", what, options.shown(prompt))
    end
  end
  return prefixes
end

return prompts
