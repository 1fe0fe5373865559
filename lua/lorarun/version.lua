-- version.lua: the version of the program these modules run in.
return require("ffi").string(require("lorarun.c").lr_version())
