#!/usr/bin/env bash
# lint.sh: checks every tracked file against the house rules, changes none, and names all that is wrong before it fails.
set -uo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.." || exit 1
git rev-parse --git-dir >/dev/null 2>&1 || {
  echo "lint: this is not a git checkout; lint looks at tracked files only" >&2
  exit 1
}
passed=0 failed=0
# check WHAT COMMAND...: the command prints what is wrong and fails
check() {
  local what=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "lint: FAILED: $what" >&2
  fi
}
tracked() { git ls-files -z -- "$@"; }

formatted() {
  local file bad=0
  while IFS= read -r -d '' file; do
    clang-format --dry-run -Werror "$file" >/dev/null 2>&1 || { echo "$file: not formatted" && bad=1; }
  done < <(tracked '*.c' '*.h' '*.cu' '*.cuh' '*.cc' '*.cpp')
  return $bad
}
lua_clean() { tracked '*.lua' | xargs -0 -r luacheck --quiet --codes --; }
shell_clean() { { tracked '*.sh' && tracked .ci/run; } | xargs -0 -r shellcheck; }
# Source files only: data and prose may be long.
not_long() {
  tracked '*.c' '*.h' '*.cu' '*.cuh' '*.cc' '*.cpp' '*.def' '*.lua' '*.py' '*.sh' '*.cmake' Makefile CMakeLists.txt |
    xargs -0 -r awk 'FNR == 801 { print FILENAME ": over 800 lines: two things in one file?"; bad = 1 } END { exit bad }'
}
# "---- title ----" stands on one line: its dashes do not go on in the next.
rules_on_one_line() {
  tracked '*.c' '*.h' '*.cu' '*.cuh' '*.cc' '*.cpp' '*.def' '*.lua' '*.py' '*.sh' '*.cmake' CMakeLists.txt |
    xargs -0 -r awk '
      FNR == 1 { rule = 0 }
      rule && /----/ && !/[A-Za-z0-9]/ { print FILENAME ":" FNR ": a section rule of two lines"; bad = 1 }
      { rule = /^ *(\/\*|--|#) ---+ .*[A-Za-z0-9]/ }
      END { exit bad }'
}
# Folders of somebody's machine. Tests may name paths that do not exist.
no_machine_paths() {
  ! git grep -nIE '(^|[^A-Za-z0-9_.~-])/(root|home|work|tmp|Users)/[A-Za-z0-9]' -- . ':!tests'
}
no_conflict_or_trailing_space() {
  git -c core.whitespace=blank-at-eol,-blank-at-eof,space-before-tab diff --check "$(git hash-object -t tree /dev/null)" -- \
    '*.c' '*.h' '*.cu' '*.cpp' '*.lua' '*.sh' '*.py' '*.cmake' '*.def' Makefile CMakeLists.txt
}
# A mutant (tests/mutants) whose line has changed would test nothing: mutants.lua is to be changed with it.
mutants_fit() {
  luajit -e 'local apply, bad = dofile "tests/mutants/apply.lua", 0
    for _, mutant in ipairs(dofile "tests/mutants/mutants.lua") do
      local text, why = apply("lua/lorarun", mutant)
      if not text then print(why) bad = 1 end
    end
    os.exit(bad)'
}
# The folders of modules and of C stand on each other in the orders that docs/architecture.md names (tools/check_layers.lua).
layers_hold() {
  luajit -e 'local wrong = dofile "tools/check_layers.lua" "."
    for _, text in ipairs(wrong) do print(text) end
    os.exit(#wrong == 0 and 0 or 1)'
}

# Files, modules and functions that comments and pages name, and links.
names_there() { git ls-files | luajit tools/check_paths.lua; }

check "clang-format (mend with: clang-format -i FILE)" formatted
check "luacheck" lua_clean
check "shellcheck" shell_clean
check "mutants fit the modules (change tests/mutants/mutants.lua with the line)" mutants_fit
check "no module requires, and no C file includes, upwards or in a circle" layers_hold
check "files of at most 800 lines" not_long
check "section rules of one line" rules_on_one_line
check "no absolute path of one machine" no_machine_paths
check "comments and pages name what there is" names_there
check "no trailing spaces, no conflict markers" no_conflict_or_trailing_space
echo "lint: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
