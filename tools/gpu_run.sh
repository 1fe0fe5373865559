#!/usr/bin/env bash
# gpu_run.sh: in the folder that gpu_bundle.sh makes, as run.sh: unpacks the bundle once and runs from it, in the source tree around it.
#
#   build-gpu/run.sh test [PART]            the tests that want a GPU: tests/gpu/run.sh
#   build-gpu/run.sh bench [OPTION...]      the benchmarks: bench/gpu/run.lua
#   build-gpu/run.sh lorarun [WORD...]      the program itself: doctor, -e 'CODE', a recipe
#
# It unpacks into $LORARUN_GPU (a folder below $TMPDIR), which holds lorarun's cache too: the second call finds the choices of the
# first.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
bundle=${LORARUN_GPU:-${TMPDIR:-/tmp}/lorarun-gpu}

if [ ! -f "$bundle/unpacked" ] || [ "$here/bundle.tar.xz" -nt "$bundle/unpacked" ]; then
  mkdir -p "$bundle"
  if command -v xz >/dev/null; then
    tar -C "$bundle" -xJf "$here/bundle.tar.xz"
  else
    python3 -m tarfile -e "$here/bundle.tar.xz" "$bundle"
  fi
  touch "$bundle/unpacked"
fi

# link LIBRARY: links it to where the program looks, unless the system finds it by itself.
link() {
  local name=$1 found
  [ ! -e "$bundle/lib/$name" ] || return 0
  ! ldconfig -p 2>/dev/null | grep -q "$name " || return 0
  found=$(for place in "${CUDA_HOME:-}" /usr/local/cuda /usr/local/cuda-* \
    "$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"] + "/nvidia")' 2>/dev/null)"; do
    [ ! -d "$place" ] || find -L "$place" -name "$name" -print -quit 2>/dev/null
  done | head -n 1) || true
  if [ -n "$found" ]; then
    ln -s "$found" "$bundle/lib/$name"
  else
    echo "run.sh: $name was not found on this machine" >&2
  fi
}
blas=$(grep -aom 1 'libcublasLt\.so\.[0-9]*' "$bundle/lorarun")
link "$blas"
link libnccl.so.2

export XDG_CACHE_HOME=$bundle/cache
command=${1:-}
[ $# -eq 0 ] || shift
cd "$root"
case $command in
  test) exec tests/gpu/run.sh "$bundle" "$@" ;;
  bench) exec "$bundle/lorarun" bench/gpu/run.lua "$@" ;;
  lorarun) exec "$bundle/lorarun" "$@" ;;
  *) sed -n 's/^# \{3\}//p' "$0" >&2 && exit 2 ;;
esac
