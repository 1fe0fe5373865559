-- version.lua: the version of the program these modules run in.
return require("ffi").string(require("lorarun.base.c").lr_version())
