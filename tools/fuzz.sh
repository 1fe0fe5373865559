#!/usr/bin/env bash
# fuzz.sh FOLDER [SECONDS [NAME...]]: builds the fuzzers of tests/fuzz in FOLDER and runs each, or those that are named, for SECONDS
# (60), one per core at a time. Each first takes its seeds (tests/fuzz/seeds), then what earlier runs found worth keeping
# (FOLDER/corpus); tests/fuzz/words has words for it to use. An input that breaks one is kept in FOLDER/findings: mend the code, and
# add the file to the seeds. Last line: "N passed, N failed".
set -euo pipefail
folder=$1 seconds=${2:-60}
shift $(($# < 2 ? $# : 2))
root=$(cd "$(dirname "$0")/.." && pwd -P)
SOURCE=$root/tests/fuzz "$root/tools/build.sh" "$folder" -DCMAKE_C_COMPILER="${CLANG:-clang}"
cd "$folder"
mkdir -p findings logs

fuzz() { # NAME
  mkdir -p "corpus/$1"
  local words=()
  [ ! -f "$root/tests/fuzz/words/$1" ] || words=("-dict=$root/tests/fuzz/words/$1")
  if "./fuzz_$1" "${words[@]}" -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1 \
    -artifact_prefix="findings/$1-" "corpus/$1" "$root/tests/fuzz/seeds/$1" >"logs/$1" 2>&1 </dev/null; then
    echo "ok     $1: $(sed -n 's/^stat::number_of_executed_units: *//p' "logs/$1") inputs"
  else
    grep -v -e NEW -e REDUCE -e pulse "logs/$1" | tail -n 60 | cut -c1-400 | sed 's/^/    /'
    echo "FAILED $1"
  fi
}
export -f fuzz
export root seconds

if [ $# -eq 0 ]; then
  mapfile -t names < <(cd "$root/tests/fuzz/seeds" && ls)
  set -- "${names[@]}"
fi
printf '%s\n' "$@" | xargs -P "${JOBS:-$(nproc)}" -I{} bash -c 'fuzz {}' | tee logs/all
failed=$(grep -c '^FAILED' logs/all) || true
echo "$(($# - failed)) passed, $failed failed"
[ "$failed" -eq 0 ]
