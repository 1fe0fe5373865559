#!/usr/bin/env bash
# test_namespaces.sh: two machines as two network namespaces with a cable between them: training over it, a cable that is pulled, a
# secret that differs. It uses namespaces of its own (network, mounts, processes) with the rights of its user, so it changes nothing of
# the machine, and nothing is left after it.
set -uo pipefail
if [ "${1:-}" != inside ]; then
  own=(unshare --net --mount --pid --fork --kill-child --mount-proc)
  [ "$(id -u)" -eq 0 ] || own=("${own[@]}" --user --map-root-user)
  if ! command -v ip >/dev/null || ! why=$("${own[@]}" true 2>&1); then
    echo "SKIPPED: two machines need network namespaces and the ip command: ${why:-no ip}" >&2
    exit 77
  fi
  exec "${own[@]}" bash "$0" inside
fi

program=$LORARUN_PROGRAM
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LC_ALL=C
passed=0 failed=0

# ---- the machines --------------------------------------------------------------------------------------------------------
ip link set lo up && mount -t tmpfs tmpfs /run && mkdir /run/netns || exit 1
for machine in 0 1; do
  ip netns add "m$machine" && ip -n "m$machine" link set lo up || exit 1
done
ip link add cable0 netns m0 type veth peer name cable1 netns m1 || exit 1
for machine in 0 1; do
  ip -n "m$machine" address add "10.77.0.1$machine/24" dev "cable$machine" && ip -n "m$machine" link set "cable$machine" up || exit 1
done

# on MACHINE WORD...: start the program on that machine of the two, in the background; its output goes to m0.txt or m1.txt
on() {
  local machine=$1
  shift
  ip netns exec "m$machine" "$program" --num-processes 2 --num-machines 2 --machine-rank "$machine" --main-process-ip 10.77.0.10 \
    --main-process-port 29500 "$@" >"m$machine.txt" 2>&1 </dev/null &
  pids[machine]=$!
}
# finish: wait for both; their exit statuses are in status[0] and status[1]
finish() {
  local machine
  for machine in 0 1; do
    wait "${pids[machine]}" 2>/dev/null # bash would tell of a killed one
    status[machine]=$?
  done
}
fail() {
  printf '    %s\n' "$1"
  for machine in 0 1; do
    printf '    ---- machine %s, status %s\n' "$machine" "${status[machine]:-none}"
    sed 's/^/    /' "m$machine.txt"
  done
  return 1
}
expect_status() { [ "${status[0]}/${status[1]}" = "$1" ] || fail "expected the statuses $1"; }
expect() { grep -qF -- "$2" "m$1.txt" || fail "expected to read on machine $1: $2"; }
expect_no_ranks() { ! pgrep -f "$program" >/dev/null || fail "still running: $(pgrep -af "$program")"; }
# test NAME: runs the function of that name in a folder of its own; expectations are joined with &&
test() {
  mkdir -p "$work/$1"
  local pids=() status=()
  if cd "$work/$1" && "$1"; then
    passed=$((passed + 1))
    echo "ok     $1"
  else
    failed=$((failed + 1))
    echo "FAILED $1"
  fi
}

# ---- the tests -----------------------------------------------------------------------------------------------------------
rows() { # N: of a data set whose labels follow from the texts
  local i
  for ((i = 1; i <= $1; i++)); do
    printf '{"current_line": "x %s %d", "context": "def f%d(y):\\n    x = %d\\n    return x + y", "score": %d, "context_type": "a"}\n' \
      "$([ $((i % 3)) -eq 0 ] && echo '==' || echo '=')" "$i" "$i" "$i" "$((i % 3 != 0))"
  done
}

two_machines_train_as_one_does() {
  local split common
  mkdir data
  for split in train validation test; do rows 24 >"data/$split.jsonl"; done
  common=(--model "$root/tests/golden/bert" --data data --targets "query,key,value" --rank 4 --batch 4 --epochs 1 --warmup 2
    --evaluation-steps 3 --max-length 32 --threads 1)
  export LORARUN_SECRET=a-cable-between-us
  on 1 "$root/recipes/bugdetect.lua" "${common[@]}" --output two
  on 0 "$root/recipes/bugdetect.lua" "${common[@]}" --output two
  finish
  expect_status 0/0 && expect 0 "on 2 devices" || return 1
  "$program" --num-processes 2 "$root/recipes/bugdetect.lua" "${common[@]}" --output one >one.txt 2>&1 </dev/null ||
    fail "one machine: $(cat one.txt)" || return 1
  cmp one/adapter/adapter_model.safetensors two/adapter/adapter_model.safetensors || fail "the adapters differ"
}

# A recipe that works for a minute, and prints when it has begun.
minute() {
  cat >minute.lua <<'LUA'
local lr = require "lorarun"
local job = lr.launch {}
local C = require "lorarun.base.c"
local stop = C.lr_time() + 60
local begun = false
while lr.comm.all_reduce(C.lr_time() < stop and 0 or 1) == 0 do
  if not begun then io.open("begun" .. job.rank, "w"):close() end
  begun = true
end
LUA
}
begun() {
  local i
  for ((i = 0; i < 1200; i++)); do
    [ -e begun0 ] && [ -e begun1 ] && return 0
    sleep 0.05
  done
  fail "the ranks did not begin"
}

a_pulled_cable_ends_the_job_on_both_machines() {
  local start
  export LORARUN_SECRET=a-cable-between-us
  minute
  on 1 minute.lua
  on 0 minute.lua
  begun || return 1
  start=$SECONDS
  ip -n m1 link set cable1 down
  finish
  ip -n m1 link set cable1 up
  expect_status 1/1 && expect 0 "machine 1 (" && expect 0 ") is lost" && expect 1 "machine 0 (" && expect 1 ") is lost" &&
    expect_no_ranks || return 1
  [ $((SECONDS - start)) -lt 50 ] || fail "it took $((SECONDS - start)) s"
}

a_killed_machine_ends_the_job_on_the_other() {
  export LORARUN_SECRET=a-cable-between-us
  minute
  on 1 minute.lua
  on 0 minute.lua
  begun || return 1
  kill -9 "${pids[0]}"
  finish
  expect_status 137/1 && expect 1 "machine 0 (" && expect 1 ") is lost" && expect_no_ranks
}

a_wrong_secret_does_not_join() {
  minute
  LORARUN_SECRET=a-guess-of-a-secret on 1 minute.lua
  LORARUN_SECRET=a-cable-between-us on 0 --rendezvous-timeout 5 minute.lua
  finish
  expect_status 1/1 && expect 0 "machine 1 of 2 did not come to 10.77.0.10:29500 within 5 s" && expect 1 "the secret differs" &&
    expect_no_ranks
}

test two_machines_train_as_one_does
test a_pulled_cable_ends_the_job_on_both_machines
test a_killed_machine_ends_the_job_on_the_other
test a_wrong_secret_does_not_join
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
