#!/usr/bin/env bash
# Compiles, without running, for the platforms that no machine here has. Skips none in silence: a target whose standard
# library cannot be had is named.
#
#   tools/dist/platforms.sh [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/../.."
targets=("$@")
[ $# -gt 0 ] || targets=(aarch64-unknown-linux-gnu aarch64-apple-darwin x86_64-pc-windows-gnu)
for target in "${targets[@]}"; do
  rustup target add "$target" || { echo "$target: no standard library to be had"; exit 1; }
  cargo check -q --target "$target" -p gradus -p gradus-rft -p gradus-c --features gradus-c/emu
  echo "$target: gradus, gradus-rft and gradus-c compile"
done
