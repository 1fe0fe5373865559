#!/usr/bin/env bash
# run.sh BUILD-FOLDER: what lorarun writes loads in sentence-transformers and PEFT and computes the same there, and the other way
# round; so do configuration files and Accelerate. Three base models: the small pretrained one and two random ones, a Qwen2 and a
# BERT, that test what it lacks (last-token pooling, prompts). Prints a line for each check and, last, "N passed, N failed".
set -euo pipefail
cd "$(dirname "$0")/../.."
lorarun=$(cd "$1" && pwd)/lorarun
golden=$PWD/tests/golden
minilm=$(tools/fetch_model.sh --print-path)
python=$(tests/interop/setup.sh)/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

check() { # NAME COMMAND...: its output is shown where it fails
  local name=$1
  shift
  if "$@" >"$work/log" 2>&1 </dev/null; then
    passed=$((passed + 1))
    echo "ok     $name: $(tail -n 1 "$work/log")"
  else
    failed=$((failed + 1))
    sed 's/^/    /' "$work/log"
    echo "FAILED $name"
    return 1
  fi
}

# written NAME MODEL TARGETS MAX-LENGTH: four steps of the recipe, large enough to matter; then the others read both folders
written() {
  local name=$1 model=$2 targets=$3 max_length=$4 out="$work/$1"
  check "$name: the recipe trains" "$lorarun" recipes/bugdetect.lua --model "$model" --targets "$targets" \
    --max-length "$max_length" --data "$work/data" --output "$out" --batch 8 --epochs 1 --max-steps 4 --warmup 0 \
    --learning-rate 0.01 --rank 4 --alpha 8 --evaluation-steps 4 --max-train-rows 64 --max-evaluation-rows 48 --seed 3 &&
    check "$name: lorarun embeds with the adapter" \
      "$lorarun" tests/interop/probes.lua write "$out/adapter" "$golden/texts.json" "$work/$name.json" &&
    check "$name: lorarun embeds the same with the merged weights" \
      "$lorarun" tests/interop/probes.lua check "$out" "$work/$name.json" &&
    check "$name: sentence-transformers and PEFT" \
      "$python" tests/interop/check_folders.py "$lorarun" "$model" "$out" "$out/adapter" "$work/$name.json"
}

# read_back NAME MODEL [OPTION...]: an adapter that PEFT trained, as sentence-transformers saves it
read_back() {
  local name=$1 model=$2 out="$work/$1-by-peft"
  check "$name: PEFT trains an adapter" "$python" tests/interop/make_adapter.py "$model" "$out" "${@:3}" &&
    check "$name: lorarun embeds with it" "$lorarun" tests/interop/probes.lua check "$out" "$out/probes.json"
}

check "data" "$lorarun" recipes/bugdata.lua --mutate lua --max-files 12 --output "$work/data" || exit 1
check "token ids" "$python" tests/interop/check_tokenizer.py "$lorarun" "$minilm" "$golden/qwen2" "$golden/bert" || true
check "Accelerate's configuration" "$python" tests/interop/check_accelerate.py "$lorarun" "$work" || true
written minilm "$minilm" query,key,value 256 || true
written qwen2 "$golden/qwen2" q_proj,k_proj,v_proj 64 || true
written bert "$golden/bert" all-linear 64 || true
read_back minilm "$minilm" || true
read_back qwen2 "$golden/qwen2" --rslora || true
read_back bert "$golden/bert" --targets all-linear || true
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
