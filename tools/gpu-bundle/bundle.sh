#!/usr/bin/env bash
# Gathers what a GPU machine without Rust needs into target/gpu-bundle: the tests that run on a GPU
# as one executable, the command line, the peers' data, and run.sh.
#
#   tools/gpu-bundle/bundle.sh && scp -r target/gpu-bundle gpu-machine: && ssh gpu-machine gpu-bundle/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
out=target/gpu-bundle
rm -rf "$out" && mkdir -p "$out/golden"

cargo build --release --bin gradus
built=$(cargo test --release -p gradus-gpu-tests --test gpu_tests --no-run --message-format=json |
  sed -n 's/.*"executable":"\([^"]*gpu_tests[^"]*\)".*/\1/p' | tail -1)
cp "$built" "$out/gpu_tests"
cp target/release/gradus "$out/"
strip "$out/gpu_tests" "$out/gradus"
for family in nf4 logprob divergence models trl verl verl_adv verl_kl; do
  cp -r "tests/golden/$family" "$out/golden/"
done
git rev-parse HEAD > "$out/COMMIT"

cat > "$out/run.sh" <<'RUN'
#!/usr/bin/env bash
# Runs all GPU tests. GRADUS_REQUIRE_GPU=0 lets a machine without a GPU skip them. Logs go to
# $OUT, or to ./out. The exit status is that of the tests.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$here/out}
mkdir -p "$out"
export GRADUS_REQUIRE_GPU=${GRADUS_REQUIRE_GPU:-1} GRADUS_GOLDEN="$here/golden"
{ cat "$here/COMMIT"; nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv; } \
  > "$out/machine.txt" 2>&1
"$here/gradus" doctor | tee "$out/doctor.txt"
"$here/gpu_tests" "$@" 2>&1 | tee "$out/tests.txt"
exit "${PIPESTATUS[0]}"
RUN
chmod +x "$out/run.sh" "$out/gpu_tests" "$out/gradus"
du -sh "$out"/* "$out" | sed "s#$out##"
