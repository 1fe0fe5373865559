std = "luajit"
max_line_length = 120
exclude_files = { "build*/**" }
globals = {}
files["tests/**"] = { read_globals = { "test", "check" } }
