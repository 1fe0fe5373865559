#!/usr/bin/env bash
# build.sh FOLDER [CMAKE-OPTION...]: configures FOLDER when that is due, then builds what changed: all, or $TARGET.
#
# CMake itself notices changed CMake files and new sources. What it cannot mend is done here: a folder that was configured for
# another place (the tree was moved or copied), and other options than last time.
set -euo pipefail
folder=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd -P)
# Inside `make`, the job server is not ours to use; JOBS carries its -j.
unset MAKEFLAGS MFLAGS GNUMAKEFLAGS MAKELEVEL
jobs=${JOBS:-$(nproc)}

options="$root $*"
if [ ! -f "$folder/CMakeCache.txt" ] || [ "$(cat "$folder/.configured" 2>/dev/null)" != "$options" ]; then
  rm -rf "$folder/CMakeCache.txt" "$folder/CMakeFiles"
  mkdir -p "$folder"
  generator=()
  if [ -z "${CMAKE_GENERATOR:-}" ] && command -v ninja >/dev/null 2>&1; then
    generator=(-G Ninja)
  fi
  if ! cmake -S "$root" -B "$folder" ${generator[@]+"${generator[@]}"} "$@" >"$folder/configure.log" 2>&1; then
    cat "$folder/configure.log" >&2
    exit 1
  fi
  printf '%s\n' "$options" >"$folder/.configured"
fi
exec cmake --build "$folder" --parallel "$jobs" ${TARGET:+--target "$TARGET"}
