#!/usr/bin/env bash
# run.sh BUILD-FOLDER: models and adapters that lorarun writes load in sentence-transformers and PEFT and compute the same there,
# and the other way round. The same holds for configuration files and Accelerate. Both generations of the libraries (setup.sh) are
# tested at the same time, with three base models: the small pretrained one, and a Qwen2 and a BERT with random weights for what it
# lacks (last-token pooling, prompts). Prints a line for each check and, last, "N passed, N failed".
set -euo pipefail
cd "$(dirname "$0")/../.."
lorarun=$(cd "$1" && pwd)/lorarun
golden=$PWD/tests/golden
minilm=$(tools/fetch_model.sh --print-path)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { # COMMAND...: shows the output only if the command fails
  "$@" >"$work/log" 2>&1 </dev/null || {
    sed 's/^/    /' "$work/log"
    printf 'FAILED %s\n0 passed, 1 failed\n' "$*"
    exit 1
  }
}

# written NAME MODEL TARGETS MAX-LENGTH: four steps of the recipe, large enough to matter, and the embeddings after them
written() {
  local name=$1 model=$2 targets=$3 max_length=$4 out="$work/$1"
  say "$lorarun" recipes/bugdetect.lua --model "$model" --targets "$targets" \
    --max-length "$max_length" --data "$work/data" --output "$out" --batch 8 --epochs 1 --max-steps 4 --warmup 0 \
    --learning-rate 0.01 --rank 4 --alpha 8 --evaluation-steps 4 --max-train-rows 64 --max-evaluation-rows 48 --seed 3
  say "$lorarun" tests/interop/probes.lua write "$out/adapter" "$golden/texts.json" "$work/$name.json"
  say "$lorarun" tests/interop/probes.lua check "$out" "$work/$name.json"
}

for generation in 5 6; do tests/interop/setup.sh $generation >/dev/null; done
say "$lorarun" recipes/bugdata.lua --mutate lua --max-files 12 --output "$work/data"
written minilm "$minilm" query,key,value 256
written qwen2 "$golden/qwen2" q_proj,k_proj,v_proj 64
written bert "$golden/bert" all-linear 64

for generation in 5 6; do
  mkdir "$work/$generation"
  "$(tests/interop/setup.sh $generation)/bin/python" -W ignore tests/interop/check_all.py "$lorarun" "$work/$generation" "$work" \
    "minilm=$minilm" "qwen2=$golden/qwen2" "bert=$golden/bert" >"$work/$generation.log" 2>&1 </dev/null &
  running[generation]=$!
done
passed=0 failed=0
for generation in 5 6; do
  wait "${running[generation]}" || true
  cat "$work/$generation.log"
  # The last line of a log has the numbers; a run that ended early has no such line.
  read -r ok wrong < <(sed -n '$s/.*: \([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$work/$generation.log") || { ok=0 wrong=1; }
  passed=$((passed + ok)) failed=$((failed + wrong))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
