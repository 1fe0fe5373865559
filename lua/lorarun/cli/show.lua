-- show.lua: values as text for people: what the prompt prints.
--   show(value [, { depth = 4, width = 100, items = 60 }]) -> text
-- Tables have sorted keys, are on one line where they fit the width and indented where not, and are cut at `depth` levels and
-- `items` entries; a table inside itself is shown as <cycle>. A value with __tostring (tensors, models, cdata types) is shown by
-- it.
local KEYWORDS = {}
for word in ([[and break do else elseif end false for function goto if in local nil not or repeat return then true until
  while]]):gmatch "%a+" do KEYWORDS[word] = true end

local ESCAPES = { ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t", ['"'] = '\\"', ["\\"] = "\\\\", ["\0"] = "\\0" }
local function quote(text)
  return '"' .. text:gsub('[%c"\\]', function(c) return ESCAPES[c] or ("\\%d"):format(c:byte()) end) .. '"'
end

local RANK = { number = 1, string = 2, boolean = 3 }
local function before(a, b)
  local ra, rb = RANK[type(a)] or 4, RANK[type(b)] or 4
  if ra ~= rb then return ra < rb end
  if ra <= 2 then return a < b end
  return tostring(a) < tostring(b)
end

local function own_text(value)
  local mt = debug.getmetatable(value)
  if type(mt) == "table" and rawget(mt, "__tostring") then
    local ok, text = pcall(tostring, value)
    return ok and text or ("<%s whose __tostring fails: %s>"):format(type(value), tostring(text))
  end
end

local function scalar(value)
  if type(value) == "string" then return quote(value) end
  if type(value) == "function" then
    local info = debug.getinfo(value, "S")
    if info.what ~= "C" then return ("function <%s:%d>"):format(info.short_src, info.linedefined) end
  end
  return own_text(value) or tostring(value)
end

local render

local function key_text(key)
  if type(key) == "string" and key:find "^[%a_][%w_]*$" and not KEYWORDS[key] then return key end
  return "[" .. (type(key) == "table" and tostring(key) or scalar(key)) .. "]"
end

-- One text for each entry: the array part without keys, then the rest, sorted.
local function entries_of(t, state, depth, indent)
  local texts, keys, length = {}, {}, 0
  while rawget(t, length + 1) ~= nil do length = length + 1 end
  for i = 1, math.min(length, state.items) do texts[i] = render(rawget(t, i), state, depth, indent) end
  for key in next, t do
    if not (type(key) == "number" and key >= 1 and key <= length and key % 1 == 0) then keys[#keys + 1] = key end
  end
  table.sort(keys, before)
  for _, key in ipairs(keys) do
    if #texts >= state.items then break end
    texts[#texts + 1] = key_text(key) .. " = " .. render(rawget(t, key), state, depth, indent)
  end
  local left = length + #keys - #texts
  if left > 0 then texts[#texts + 1] = ("... %d more"):format(left) end
  return texts, length > 0 and #keys == 0
end

local function fill(texts, width, pad)
  local lines, line = {}, ""
  for i, text in ipairs(texts) do
    if i < #texts then text = text .. "," end
    if line ~= "" and #pad + #line + 1 + #text > width then
      lines[#lines + 1] = pad .. line
      line = ""
    end
    line = line == "" and text or line .. " " .. text
  end
  lines[#lines + 1] = pad .. line
  return table.concat(lines, "\n")
end

function render(value, state, depth, indent)
  if type(value) ~= "table" then return scalar(value) end
  local own = own_text(value)
  if own then return own end
  if state.open[value] then return "<cycle>" end
  if next(value) == nil then return "{}" end
  if depth >= state.depth then return "{...}" end
  state.open[value] = true
  local texts, is_array = entries_of(value, state, depth + 1, indent + 2)
  state.open[value] = nil
  local flat = "{ " .. table.concat(texts, ", ") .. " }"
  if indent + #flat <= state.width and not flat:find("\n", 1, true) then return flat end
  local pad = (" "):rep(indent + 2)
  local body = is_array and not flat:find("[\n{]", 3) and fill(texts, state.width, pad)
    or pad .. table.concat(texts, ",\n" .. pad)
  return "{\n" .. body .. "\n" .. (" "):rep(indent) .. "}"
end

return function(value, options)
  options = options or {}
  local state = { depth = options.depth or 4, width = options.width or 100, items = options.items or 60, open = {} }
  return render(value, state, 0, 0)
end
