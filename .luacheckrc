std = "luajit"
max_line_length = 132
exclude_files = { "build*/**" }
globals = {}
ignore = { "581" } -- not (a <= b) is not a > b: it also holds for NaN
files["tests/**"] = { read_globals = { "test", "check", "skip" } }
