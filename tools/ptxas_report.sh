#!/usr/bin/env bash
# ptxas_report.sh FOLDER COMPILER ARGUMENT...: runs nvcc as CMake calls it and keeps what ptxas reports of each kernel's registers and
# spills in FOLDER, one file per source. All other output passes through. tests/cuda/registers.lua compares it with the budget.
set -uo pipefail
folder=$1
shift
source=
for argument in "$@"; do
  case $argument in
    *.cu) source=$argument ;;
  esac
done
[ -n "$source" ] || exec "$@"
mkdir -p "$folder"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$@" -Xptxas -v >"$log" 2>&1
status=$?
grep -vE '^ptxas info|bytes stack frame|^$' "$log" >&2
if [ $status -eq 0 ]; then
  grep -E 'Compiling entry function|bytes stack frame|Used [0-9]+ registers' "$log" >"$folder/$(basename "$source" .cu).txt"
fi
exit $status
