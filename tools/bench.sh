#!/usr/bin/env bash
# bench.sh FOLDER [PART]: builds and runs every benchmark whose name has PART in it (without PART: all): CMake's targets bench_*, then
# bench/*.lua in the built program. Each prints its own figures and what to compare them with. The first that fails ends the script.
set -euo pipefail
folder=$1
part=${2:-}
root=$(cd "$(dirname "$0")/.." && pwd)
ran=0

# Ninja lists targets as "name: kind", make as "... name".
targets=$(cmake --build "$folder" --target help | sed -nE 's/^(\.\.\. )?(bench_[A-Za-z0-9_]+)(: phony)?$/\2/p' | sort -u)
for target in $targets; do
  [[ $target == *"$part"* ]] || continue
  cmake --build "$folder" --target "$target" >/dev/null
  program=$(find "$folder" -type f -name "$target" -perm -u+x -print -quit)
  printf '\n== %s\n' "$target"
  "$program"
  ran=$((ran + 1))
done
for script in "$root"/bench/*.lua; do
  [[ -f $script && $(basename "$script" .lua) == *"$part"* ]] || continue
  printf '\n== %s\n' "$(basename "$script" .lua)"
  "$folder/lorarun" "$script"
  ran=$((ran + 1))
done
if [ "$ran" -eq 0 ]; then
  echo "bench: no benchmark has '$part' in its name" >&2
  exit 1
fi
