#!/usr/bin/env bash
# What a GPU is asked in 15 minutes, by one command, with everything built before: the rows that the constants
# of the timing model are fitted on, bits, this build beside another one, whole steps, large shapes,
# peers, the tests. It lies in the bundle, beside the executables (bundle.sh).
#
#   measure.sh [--against DIR] [--peers DIR] [--out DIR] [--dry-run]
#
# --against: another bundle; both are timed in turn. --peers: tools/peers, where python3 has torch. --dry-run: prints
# the plan, looks at every file, and asks no GPU. A step ends when its time is up. Exit status: 0 if all
# steps that ran succeeded, 1 if one did not, 2 without a GPU or for a file that is missing.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
against='' peers='' out="$here/measured" dry=0
while [ $# -gt 0 ]; do
  case $1 in
    --against | --peers | --out)
      [ $# -ge 2 ] || { echo "measure.sh: $1 wants a folder" >&2; exit 2; }
      case $1 in
        --against) against=$2 ;;
        --peers) peers=$2 ;;
        --out) out=$2 ;;
      esac
      shift 2
      ;;
    --dry-run) dry=1; shift ;;
    *) echo "measure.sh: $1 is no option; there are --against, --peers, --out and --dry-run" >&2; exit 2 ;;
  esac
done

# Name, seconds, what it is for. In this order: what decides most comes first.
steps='constants 60 rows that the constants of tools/emu/src/time/rates.rs are fitted on
bits 60 the emulator beside hardware, products of any number of rows
ab 180 this build and the other one in turn, six rounds
steps 120 rollouts and updates, per call and from a graph
large 150 shapes of models of 8 to 70 billion parameters
counters 90 ncu on the kernels that a step spends most in
peers 120 torch, bitsandbytes, Liger and QuACK on the same rows
tests 120 the tests that ask for a GPU'

# Rows whose work is next to nothing, and rows that one resource binds.
constants='copy_rows|group_advantage|embedding 512|lerp|convert|logprob 32|rope|matmul 1 x|grad_norm'
# Rows that a change of a kernel is seen in.
compared='attention|rmsnorm|swiglu|matmul|lora_grad|logprob|sample|adamw|policy_loss'
# Tests of bits: instructions of the emulator beside the GPU's, products beside the CPU's and for any number of rows.
instructions=conformance products=products

wrong() { echo "measure.sh: $*" >&2; exit 2; }
for file in gradus ops device train run.sh; do
  [ -x "$here/$file" ] || wrong "$here/$file is missing: tools/gpu-bundle/bundle.sh makes it"
done
[ -z "$against" ] || [ -x "$against/gradus" ] || wrong "--against $against: it has no gradus"
[ -z "$peers" ] || [ -f "$peers/gpu_compare.py" ] || wrong "--peers $peers: it has no gpu_compare.py"

# Why a step is left out; nothing if it is not.
left_out() {
  case $1 in
    ab) [ -n "$against" ] || echo 'no --against' ;;
    counters) command -v ncu > /dev/null || echo 'no ncu' ;;
    peers) [ -n "$peers" ] || echo 'no --peers' ;;
  esac
}

bench() { "$1/gradus" bench --device cuda --seconds "$3" --ops "$4" --json "$out/$2.json"; }

constants() { bench "$here" constants 0.5 "$constants"; }
bits() { "$here/device" "$instructions" && "$here/ops" "$products"; }
ab() {
  local round
  for round in 1 2 3 4 5 6; do
    bench "$here" "ab-this-$round" 0.05 "$compared" && bench "$against" "ab-other-$round" 0.05 "$compared" || return
  done
}
steps() { bench "$here" steps 5 'rollout_step|update_step'; }
large() { "$here/gradus" bench --device cuda --shapes large --seconds 0.05 --json "$out/large.json"; }
counters() {
  ncu --clock-control none --set full --launch-skip 20 --launch-count 40 --csv \
    "$here/gradus" bench --device cuda --seconds 0.01 --ops "$compared"
}
peers() {
  python3 "$peers/gpu_compare.py" --here --device cuda --gradus "$here/gradus" --rounds 2 --seconds 0.05 \
    --json "$out/peers.json"
}
tests() { OUT="$out/tests" "$here/run.sh"; }

if [ "$dry" = 1 ]; then
  total=0
  while read -r name seconds what; do
    why=$(left_out "$name")
    printf '%-10s %4d s  %s%s\n' "$name" "$seconds" "$what" "${why:+  (left out: $why)}"
    total=$((total + seconds))
  done <<< "$steps"
  printf '%-10s %4d s\n' total "$total"
  for ops in "$constants" "$compared" 'rollout_step|update_step'; do
    "$here/gradus" bench --list --ops "$ops" > /dev/null || wrong "no row is called $ops"
  done
  for tests in "device $instructions" "ops $products"; do
    read -r file filter <<< "$tests"
    "$here/$file" --list "$filter" | grep -q ': test$' || wrong "$file has no test called $filter"
  done
  [ "$total" -le 900 ] || wrong "$total s are more than 15 minutes"
  exit 0
fi

# One row asks for the device: without one this says why.
mkdir -p "$out" || exit 2
"$here/gradus" bench --device cuda --seconds 0.01 --ops 'group_advantage' > "$out/probe.txt" 2>&1 ||
  wrong "no GPU to measure: $(tail -n 1 "$out/probe.txt")"
{ cat "$here/COMMIT"; nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv; } \
  > "$out/machine.txt" 2>&1
export -f bench constants bits ab steps large counters peers tests
export here out against peers constants compared instructions products
status=0
while read -r name seconds what; do
  why=$(left_out "$name")
  if [ -n "$why" ]; then
    printf '%-10s left out: %s\n' "$name" "$why"
    continue
  fi
  start=$SECONDS
  timeout "$seconds" bash -c "$name" < /dev/null > "$out/$name.txt" 2>&1
  code=$?
  case $code in
    0) said=done ;;
    124) said='time is up' ;;
    *) said="failed ($code): see $out/$name.txt"; status=1 ;;
  esac
  printf '%-10s %4d s  %s\n' "$name" $((SECONDS - start)) "$said"
done <<< "$steps"
exit "$status"
