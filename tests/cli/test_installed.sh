#!/usr/bin/env bash
# test_installed.sh: what `make install` puts below a prefix: links of the documentation lead somewhere, in the source tree too, and
# recipes are found from any folder.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(dirname "$LORARUN_PROGRAM")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LC_ALL=C
passed=0 failed=0
check() { # WHAT COMMAND...
  local what=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
    echo "ok     $what"
  else
    failed=$((failed + 1))
    echo "FAILED $what"
  fi
}

# links_lead_somewhere FOLDER: all relative links and pictures of the Markdown files in it
links_lead_somewhere() {
  local page link bad=0
  while IFS= read -r page; do
    while IFS= read -r link; do
      link=${link%%#*}
      case "$link" in '' | http://* | https://* | mailto:*) continue ;; esac
      [ -e "$(dirname "$page")/$link" ] || { echo "    $page: nothing is at $link" && bad=1; }
    done < <(grep -oE '\]\([^) ]+\)|src="[^"]+"' "$page" | sed -E 's/^\]\(//; s/^src="//; s/[)"]$//')
  done < <(find "$1" -maxdepth 2 -name '*.md' \( -path "$1/docs/*" -o -path "$1/[A-Z]*.md" \))
  return $bad
}

installed() {
  env DESTDIR="$work/staged" cmake --install "$build" --prefix /usr >"$work/log" 2>&1 || { cat "$work/log" && return 1; }
  env DESTDIR="$work/staged" cmake --install "$build" --prefix /usr >"$work/log" 2>&1 || { cat "$work/log" && return 1; } # again
}
program="$work/staged/usr/bin/lorarun"
elsewhere() { (mkdir -p "$work/empty" && cd "$work/empty" && "$program" "$@" 2>&1); }
recipe_as_the_docs_write_it() { [[ "$(elsewhere recipes/bugdetect.lua --help)" == "usage: lorarun $work/staged/usr/share/lorarun/recipes/bugdetect.lua"* ]]; }
place_is_told() {
  [ "$(elsewhere bugdetect.lua)" = "lorarun: cannot open the recipe: bugdetect.lua: No such file or directory; there is \
$work/staged/usr/share/lorarun/recipes/bugdetect.lua" ]
}
others_are_not_there() { [ "$(elsewhere recipes/no.lua)" = "lorarun: cannot open the recipe: recipes/no.lua: No such file or directory" ]; }
own_recipe_comes_first() {
  mkdir -p "$work/own/recipes" && echo 'print "mine"' >"$work/own/recipes/bugdetect.lua"
  [ "$(cd "$work/own" && "$program" recipes/bugdetect.lua)" = mine ]
}
gloo_is_found() { [[ "$(elsewhere doctor)" == *"Gloo loads"* ]]; }

check "links of the source tree's pages lead somewhere" links_lead_somewhere "$root"
check "make install works, and a second time" installed
check "links of the installed pages lead somewhere" links_lead_somewhere "$work/staged/usr/share/doc/lorarun"
check "recipes/NAME.lua is found from any folder" recipe_as_the_docs_write_it
check "a recipe's name alone: its place is told" place_is_told
check "a recipe that is nowhere" others_are_not_there
check "a recipe in the working directory comes first" own_recipe_comes_first
check "the module for several ranks is found" gloo_is_found
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
