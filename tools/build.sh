#!/usr/bin/env bash
# build.sh FOLDER [CMAKE-OPTION...]: configures FOLDER if that is due, then builds what changed: everything, or $TARGET. $SOURCE is the
# folder with the CMakeLists.txt, if it is not the root.
#
# CMake itself notices changed CMake files and new sources. This script handles what it cannot: a folder that was configured for
# another place (the tree was moved or copied), with other options than last time, or before there was a CUDA toolkit.
set -euo pipefail
folder=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd -P)
# Inside `make`, the job server is not ours to use; JOBS carries its -j.
unset MAKEFLAGS MFLAGS GNUMAKEFLAGS MAKELEVEL
jobs=${JOBS:-$(nproc)}

nvcc=$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin:/usr/local/cuda/bin command -v nvcc || true)
options="$root $* $nvcc"
if [ ! -f "$folder/CMakeCache.txt" ] || [ "$(cat "$folder/.configured" 2>/dev/null)" != "$options" ]; then
  rm -rf "$folder/CMakeCache.txt" "$folder/CMakeFiles"
  mkdir -p "$folder"
  generator=()
  if [ -z "${CMAKE_GENERATOR:-}" ] && command -v ninja >/dev/null 2>&1; then
    generator=(-G Ninja)
  fi
  if ! cmake -S "${SOURCE:-$root}" -B "$folder" ${generator[@]+"${generator[@]}"} "$@" >"$folder/configure.log" 2>&1; then
    cat "$folder/configure.log" >&2
    exit 1
  fi
  printf '%s\n' "$options" >"$folder/.configured"
  if [ -z "$nvcc" ] && grep -q '^-- CUDA: off' "$folder/configure.log"; then
    echo "building for the CPU alone: there is no nvcc (for GPUs: the CUDA toolkit, 12.4 or later)"
  fi
fi
exec cmake --build "$folder" --parallel "$jobs" ${TARGET:+--target "$TARGET"}
