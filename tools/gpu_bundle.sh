#!/usr/bin/env bash
# gpu_bundle.sh [FOLDER]: all that `tests/gpu/run.sh` and `bench/gpu/run.lua` need on a machine with a GPU that has neither this
# project's libraries nor a network, in FOLDER (build-gpu): bundle.tar.xz, and run.sh, which unpacks it there. That machine also
# needs this source tree, NVIDIA's driver, and cuBLASLt (of the CUDA toolkit, or of PyTorch's packages); Python for the comparison
# with sentence-transformers.
#
# In the archive: the program and the two C tests, stripped, for the GPUs of $ARCHITECTURES (90-real); the shared libraries they
# need, except those that every Linux has; and, if they are on this machine, the small model (as bf16) and a part of its data for
# the recipe's test.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd -P)
folder=$(realpath -m "${1:-$root/build-gpu}")
work=$folder.work
cache=${XDG_CACHE_HOME:-$HOME/.cache}/lorarun
architectures=${ARCHITECTURES:-90-real}
TRAIN_ROWS=8000 EVALUATION_ROWS=3000

mkdir -p "$folder" "$work"
# The program looks for libraries beside itself. A variable would do the same, but programs that it starts would inherit it. The linker
# reads this variable if it is given no other path: quoting $ORIGIN through CMake and its generators is not possible in one way for all.
# shellcheck disable=SC2016  # $ORIGIN is the dynamic linker's
export LD_RUN_PATH='$ORIGIN/lib'
generator=()
command -v ninja >/dev/null && generator=(-G Ninja)
cmake -S "$root" -B "$work" ${generator[@]+"${generator[@]}"} -DLORARUN_CUDA=on -DLORARUN_CUDA_ARCHITECTURES="$architectures" \
  -DCMAKE_SKIP_BUILD_RPATH=ON \
  -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags -DCMAKE_MODULE_LINKER_FLAGS=-Wl,--disable-new-dtags \
  >"$folder/configure.log" || { cat "$folder/configure.log" && exit 1; }
cmake --build "$work" --parallel "${JOBS:-$(nproc)}" --target lorarun lorarun_gloo test_device test_reference

packed=$work/packed
rm -rf "$packed"
mkdir -p "$packed/lib"
for file in lorarun lorarun_gloo.so tests/test_device tests/test_reference; do
  strip -o "$packed/$(basename "$file")" "$work/$file"
done
# Libraries of the C library and the compiler are left out: they must be that machine's own.
ldd "$packed/lorarun" "$packed/lorarun_gloo.so" | sed -nE 's/^[^/]*=> (\/[^ ]+) .*/\1/p' | sort -u |
  grep -vE '/(ld-linux|libc|libm|libdl|librt|libpthread|libresolv|libstdc\+\+|libgcc_s)[-.]' | while read -r library; do
  cp -L "$library" "$packed/lib/"
done
strip --strip-unneeded "$packed"/lib/*

model=$cache/models/all-MiniLM-L6-v2 data=$cache/bugdata-1-30000
if [ -f "$model/model.safetensors" ] && [ -f "$data/summary.json" ]; then
  target=$packed/cache/lorarun
  mkdir -p "$target/models" "$target/bugdata-1-30000"
  cp -r "$model" "$target/models/"
  "$work/lorarun" "$root/tools/to_bf16.lua" "$target/models/all-MiniLM-L6-v2/model.safetensors"
  cp "$data/summary.json" "$target/bugdata-1-30000/"
  head -n $TRAIN_ROWS "$data/train.jsonl" >"$target/bugdata-1-30000/train.jsonl"
  for split in validation test; do head -n $EVALUATION_ROWS "$data/$split.jsonl" >"$target/bugdata-1-30000/$split.jsonl"; done
else
  echo "the small model and its data are not here (make run fetches them): the recipe's test will be left out there"
fi
tar -C "$packed" -cf - . | xz -6 -T0 >"$folder/bundle.tar.xz"
cp "$root/tools/gpu_run.sh" "$folder/run.sh"
printf '%s: %s; carry it with the source tree, then there: %s/run.sh test, %s/run.sh bench\n' "$folder/bundle.tar.xz" \
  "$(du -h "$folder/bundle.tar.xz" | cut -f 1)" "$(basename "$folder")" "$(basename "$folder")"
