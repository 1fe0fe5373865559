#!/usr/bin/env bash
# run.sh FOLDER [PART]: every test of `ctest -L gpu` whose name has PART in it, with neither CTest nor CMake at hand: FOLDER holds the built
# lorarun, test_device and test_reference (beside it, or in its tests/). Logs go to $OUT, or to FOLDER/gpu-tests. Ends in a short table;
# status 1 where one failed, 77 where all were skipped.
set -uo pipefail
folder=$(cd "$1" && pwd)
part=${2:-}
tests=$(cd "$(dirname "$0")/.." && pwd)
logs=${OUT:-$folder/gpu-tests}
mkdir -p "$logs"
export LORARUN_TESTS=$tests LORARUN_PROGRAM=$folder/lorarun
SKIPPED=77
passed=0 failed=0 skipped=0
table=""

program() { if [ -x "$folder/$1" ]; then echo "$folder/$1"; else echo "$folder/tests/$1"; fi; }

# try NAME SECONDS COMMAND...: run it, keep what it printed, add a line to the table.
try() {
  local name=$1 limit=$2 log status began=$SECONDS verdict
  shift 2
  [[ $name == *"$part"* ]] || return 0
  log=$logs/${name//\//-}.log
  timeout "$limit" "$@" >"$log" 2>&1
  status=$?
  case $status in
    0) verdict=passed passed=$((passed + 1)) ;;
    "$SKIPPED") verdict="skipped: $(sed -n 's/^skipped: //p' "$log" | head -1)" skipped=$((skipped + 1)) ;;
    124) verdict="FAILED: not done after $limit s" failed=$((failed + 1)) ;;
    *) verdict="FAILED: $(sed -n '/^FAILED /{s///;N;s/\n */: /p;q}' "$log" | cut -c 1-150)" failed=$((failed + 1)) ;;
  esac
  [ "$status" -eq 0 ] || [ "$status" -eq "$SKIPPED" ] || tail -n 40 "$log"
  printf -v line '%-24s %4d s  %s' "$name" $((SECONDS - began)) "$verdict"
  echo "$line"
  table+=$line$'\n'
}

try test_device 120 "$(program test_device)"
for dtype in bf16 f16; do
  try "test_reference/$dtype" 300 env LORARUN_TEST_DEVICE=cuda LORARUN_TEST_HALF=$dtype "$(program test_reference)"
done
for file in units/test_autograd models/test_golden models/test_recompute models/test_last_layer; do
  try "$(basename $file)" 300 env LORARUN_TEST_DEVICE=cuda "$LORARUN_PROGRAM" "$tests/run.lua" "$tests/$file.lua"
done
try test_train_ranks 600 env LORARUN_TEST_DEVICE=cuda "$LORARUN_PROGRAM" "$tests/run.lua" "$tests/dist/test_train_ranks.lua" \
  "1, 2 and 4 ranks"
for file in "$tests"/gpu/test_*.lua; do
  try "$(basename "$file" .lua)" 400 "$LORARUN_PROGRAM" "$tests/run.lua" "$file"
done

printf '\n%s\n%d passed, %d failed, %d skipped; logs: %s\n' "$table" $passed $failed $skipped "$logs"
[ $failed -eq 0 ] || exit 1
[ $((passed + skipped)) -gt 0 ] || { echo "no test has '$part' in its name" >&2 && exit 1; }
[ $passed -gt 0 ] || exit $SKIPPED
