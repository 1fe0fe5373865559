-- apply.lua: a mutant of mutants.lua, in any Lua: apply(folder of the modules, mutant) -> the text of its module with the mistake,
-- or nil and why the table no longer fits the module.
return function(folder, mutant)
  local name, file, from, to = mutant[1], mutant[2], mutant[5], mutant[6]
  local path = ("%s/%s.lua"):format(folder, file)
  local f, why = io.open(path, "rb")
  if not f then return nil, ("mutant %s: %s"):format(name, why) end
  local text = f:read "*a"
  f:close()
  local first, last = text:find(from, 1, true)
  if not first then return nil, ("mutant %s: %s has no '%s' any more"):format(name, path, from) end
  if text:find(from, last + 1, true) then return nil, ("mutant %s: %s has '%s' more than once"):format(name, path, from) end
  text = text:sub(1, first - 1) .. to .. text:sub(last + 1)
  local ok, wrong = loadstring(text, file)
  if not ok then return nil, ("mutant %s is no Lua: %s"):format(name, wrong) end
  return text
end
