-- say.lua: every line that lorarun writes for people, on a terminal or into a log.
--
--   say.line(text)            -- to standard output
--   say.note(fmt, ...)        -- "lorarun: ..." to standard error
--   say.warning(fmt, ...)     -- "lorarun: warning: ..."
--   say.error_line(text)      -- a line of standard error as it is
--   say.visible(text)         -- the text without anything that a terminal would act on
--   say.python(text)          -- the text as a string literal of Python, to be copied into a program
--
-- Paths, keys and texts come from files of others, so all lines go through visible(): control characters, ANSI escapes and marks
-- that change the direction of writing are written as their numbers (\x1b, \u202e). Line feeds and tabs stay. What a recipe prints
-- itself does not pass here.
local ffi = require "ffi"
local C = require "lorarun.base.c"

local say = {}

function say.visible(text)
  if not text:find "[^\t\n -~]" then return text end
  local out = ffi.new "char *[1]"
  if C.lr_text_visible(text, #text, out) ~= 0 then return (text:gsub("[^\t\n -~]", "?")) end -- memory ran out
  local visible = ffi.string(out[0])
  C.lr_free(out[0])
  return visible
end

--- python(text): in double quotes. Lua's %q is not it: \27 is another character in Python.
function say.python(text)
  return '"' .. text:gsub('[%c"\\]', function(c) return ("\\x%02x"):format(c:byte()) end) .. '"'
end

function say.line(text) io.stdout:write(say.visible(text), "\n") end
function say.error_line(text) io.stderr:write(say.visible(text), "\n") end
function say.note(fmt, ...) say.error_line("lorarun: " .. fmt:format(...)) end
function say.warning(fmt, ...) say.error_line("lorarun: warning: " .. fmt:format(...)) end

return say
