-- bugdata.lua: makes training data for recipes/bugdetect.lua out of source code.
--
--   lorarun recipes/bugdata.lua --pairs fixes --output data              X_before_merge.py beside X_after_merge.py
--   lorarun recipes/bugdata.lua --git project --output data              commits of a repository that fix bugs
--   lorarun recipes/bugdata.lua --mutate /usr/lib/python3 --output data  bugs planted in correct code
--
-- It writes train.jsonl, validation.jsonl, test.jsonl and summary.json. docs/data.md describes them; the work is done in
-- lua/lorarun/bugdata/init.lua.
local bugdata = require "lorarun.bugdata"

local default = bugdata.OPTIONS
local args = require("lorarun.base.args").parse {
  { "output", "", "folder to write the data to" },
  { "pairs", "", "source: folder with *_before_merge.EXT and *_after_merge.EXT files" },
  { "git", "", "source: git repository; files before and after each commit that fixes a bug" },
  { "mutate", "", "source: folders (a,b,c) of correct code to plant bugs in" },
  { "seed", default.seed, "same seed, same input, same bytes", type = "integer", min = 0 },
  { "extensions", default.extensions, "file name endings to read" },
  { "max_rows", default.max_rows, "rows per split; 0: no limit", type = "integer", min = 0 },
  { "max_files", default.max_files, "files (pairs) to read, drawn at random; 0: all", type = "integer", min = 0 },
  { "max_file_size", default.max_file_size, "in bytes; larger files are skipped", type = "integer", min = 1 },
  { "max_context", default.max_context, "most bytes of context_full: whole lines around the line", type = "integer", min = 80 },
  { "correct_per_buggy", default.correct_per_buggy, "correct lines kept for a buggy one; 0: all; auto: 1 with --mutate, else 0" },
  { "similar", default.similar, "--mutate: share of the kept correct lines where a bug could have been planted", min = 0,
    max = 1 },
  { "bugs_per_file", default.bugs_per_file, "--mutate: most bugs planted in one file", type = "integer", min = 1 },
  { "max_commits", default.max_commits, "--git: newest commits to look at; 0: all", type = "integer", min = 0 },
  { "message_pattern", "", "--git: extended regex for the messages of commits that fix bugs; empty: fix, bug, closes #1 ..." },
}

print(bugdata.describe(bugdata.make(args)))
