#!/usr/bin/env bash
# Prints hashes of what a change of structure must leave as it was. Run it before and after, and compare:
#
#   tools/same_bits.sh > before.txt; ...; tools/same_bits.sh | diff before.txt -
#
# One line per PTX file (its entry code, without comments and tables of constants), one per checkpoint of the demo run (seed 0), one for
# the peers' data. The demo needs a release build, and the CPU's vector units decide its bits: compare on one machine.
set -euo pipefail
cd "$(dirname "$0")/.."

generated=kernels/generated
[ -d "$generated" ] || generated=kernels/ptx
for ptx in "$generated"/*.ptx; do
  printf '%s  %s\n' "$(grep -vE '^//|^ *\.global|^$' "$ptx" | sha256sum | cut -c1-64)" "$(basename "$ptx")"
done

cargo build -q --release
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
target/release/gradus train --out "$out" > "$out/log.txt" 2>&1
for state in "$out"/latest/checkpoints/*/state.safetensors; do
  printf '%s  demo %s\n' "$(sha256sum < "$state" | cut -c1-64)" "$(basename "$(dirname "$state")")"
done

printf '%s  tests/golden\n' "$(git ls-files -s tests/golden | cut -d' ' -f2 | sha256sum | cut -c1-64)"
