-- signals.lua: names and numbers of the signals that launchers and ranks handle (Linux; the same on all processors it supports).
local signals = { HUP = 1, INT = 2, QUIT = 3, KILL = 9, USR1 = 10, PIPE = 13, TERM = 15, CONT = 18, XCPU = 24 }

local NAMES = { "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1", "SIGSEGV",
  "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM" }

--- name(15) is "SIGTERM"; name(33) is "signal 33".
function signals.name(number) return NAMES[number] or number == signals.XCPU and "SIGXCPU" or "signal " .. number end

--- The name of the signal that an exit status stands for (143: SIGTERM), or nil.
function signals.of_status(status) return status > 128 and NAMES[status - 128] or nil end

return signals
