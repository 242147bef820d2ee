#!/usr/bin/env bash
# Builds the fuzz targets with coverage counters, on the stable compiler, and runs each for so many
# seconds (default 60) from tools/fuzz/corpus/<target>. Fails at the first finding, whose input is left in
# tools/fuzz/artifacts.
#
#   tools/fuzz/run.sh [seconds] [target ...]
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(calls nf4_parse safetensors config verify reward_line
  chat tokenizer jsonl parquet folder adapter)
# What `cargo fuzz` passes, without the sanitizers, which need a nightly compiler. A target triple keeps
# the flags away from build scripts.
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions"
cargo build --release --target "$host"
mkdir -p artifacts
for target in "${targets[@]}"; do
  mkdir -p "corpus/$target" "target/found/$target"
  echo "== $target, $seconds s"
  "target/$host/release/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 \
    -artifact_prefix="artifacts/$target-" "target/found/$target" "corpus/$target" 2>&1 | grep -vE "^#[0-9]+\s+(NEW|REDUCE|pulse|INITED)" | tail -25
done
