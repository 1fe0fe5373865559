#!/usr/bin/env bash
# The program and its module are built so that a mistake in memory is hard to use: stack protector, checked copies, read-only
# relocations bound at the start, an address that differs from run to run, no executable stack.
set -euo pipefail
export LC_ALL=C
command -v readelf >/dev/null || exit 77
folder=$(dirname "$LORARUN_PROGRAM")
[ "${LORARUN_BUILD:-}" = "Release" ] || exit 77 # others trade some of it for what they are for
passed=0 failed=0
has() { # WHAT FILE PATTERN READELF-OPTION...
  local what=$1 file=$2 pattern=$3
  shift 3
  if readelf -W "$@" "$file" | grep -E "$pattern" >/dev/null; then
    passed=$((passed + 1))
    echo "ok     $(basename "$file"): $what"
  else
    failed=$((failed + 1))
    echo "FAILED $(basename "$file"): $what"
  fi
}
for file in "$LORARUN_PROGRAM" "$folder/lorarun_gloo.so"; do
  has "relocations are read-only" "$file" '^ *GNU_RELRO ' -l
  has "and bound at the start" "$file" '\(FLAGS(_1)?\) .*NOW' -d
  has "the stack is not executable" "$file" '^ *GNU_STACK .* RW +0x' -l
  has "functions with buffers check the stack" "$file" ' UND __stack_chk_fail' --dyn-syms
  has "copies are checked" "$file" ' UND __[a-z]+_chk' --dyn-syms
  has "the address is not fixed" "$file" 'Type: +DYN' -h
done
has "it is a position-independent executable" "$LORARUN_PROGRAM" '\(FLAGS_1\) .*PIE' -d
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
