#!/usr/bin/env bash
# tools/gpu_run.sh: unpacks a bundle once and again when it is newer, runs from it, passes statuses on, and says how it is used.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fail() { echo "FAILED $*" >&2 && exit 1; }

mkdir -p "$folder/tree/build-gpu" "$folder/packed/lib"
cp "$root/tools/gpu_run.sh" "$folder/tree/build-gpu/run.sh"
# bundle WORD: a bundle whose program prints WORD and its own words.
bundle() {
  printf '#!/bin/sh\n# libcublasLt.so.99\necho "%s $*"; pwd; exit 3\n' "$1" >"$folder/packed/lorarun"
  chmod +x "$folder/packed/lorarun"
  tar -C "$folder/packed" -cf - . | xz >"$folder/tree/build-gpu/bundle.tar.xz"
}
export LORARUN_GPU=$folder/unpacked
run() { "$folder/tree/build-gpu/run.sh" "$@" 2>"$folder/err"; }

bundle first
status=0
out=$(run lorarun doctor "two words") || status=$?
[ "$status" -eq 3 ] || fail "the status is $status, expected the program's"
[ "$out" = "first doctor two words
$folder/tree" ] || fail "it printed: $out"
grep -q "libcublasLt.so.99 was not found" "$folder/err" || fail "a missing library was not named: $(cat "$folder/err")"

sleep 1.1 # file times may be whole seconds
bundle second
out=$(run bench --parts gemm) || true
[[ $out == "second bench/gpu/run.lua --parts gemm"* ]] || fail "after a new bundle it printed: $out"

mkdir -p "$folder/cuda/lib64"
touch "$folder/cuda/lib64/libcublasLt.so.99"
CUDA_HOME=$folder/cuda run lorarun >/dev/null || true
[ "$(readlink "$LORARUN_GPU/lib/libcublasLt.so.99")" = "$folder/cuda/lib64/libcublasLt.so.99" ] || fail "cuBLASLt was not linked"

status=0
run || status=$?
[ "$status" -eq 2 ] || fail "without a command the status is $status"
grep -q "run.sh test \[PART\]" "$folder/err" || fail "without a command it says: $(cat "$folder/err")"
echo "ok"
