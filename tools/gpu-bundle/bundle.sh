#!/usr/bin/env bash
# Gathers what a GPU machine without Rust needs into target/gpu-bundle: the test executables that ask
# for a GPU, the command line, the peers' data, run.sh for the tests, and measure.sh for what is to be measured.
#
#   tools/gpu-bundle/bundle.sh && scp -r target/gpu-bundle gpu-machine: && ssh gpu-machine gpu-bundle/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
out=target/gpu-bundle
rm -rf "$out" && mkdir -p "$out/golden"

cargo build --release --bin gradus
executables=$(tools/gpu-bundle/executables.sh --release)
for path in $executables; do
  # A name without the hash that cargo appends.
  cp "$path" "$out/$(basename "${path%-*}")"
done
cp target/release/gradus "$out/"
strip "$out"/{ops,device,train,gradus}
for family in nf4 logprob divergence models trl verl verl_adv verl_kl; do
  cp -r "tests/golden/$family" "$out/golden/"
done
git rev-parse HEAD > "$out/COMMIT"
cp tools/gpu-bundle/measure.sh "$out/"
mkdir "$out/peers" && cp tools/peers/gpu_*.py "$out/peers/"

cat > "$out/run.sh" <<'RUN'
#!/usr/bin/env bash
# Runs all GPU tests; arguments go to each executable. GRADUS_REQUIRE_GPU=0 lets a machine without a
# GPU skip them. Logs go to $OUT, or to ./out. The exit status is 0 if all tests pass.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$here/out}
mkdir -p "$out"
export GRADUS_REQUIRE_GPU=${GRADUS_REQUIRE_GPU:-1} GRADUS_GOLDEN="$here/golden"
{ cat "$here/COMMIT"; nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv; } \
  > "$out/machine.txt" 2>&1
"$here/gradus" doctor | tee "$out/doctor.txt"
status=0
# Checks of the sources, and of the manifest beside them, have nothing to read here.
sources=(--skip gates:: --skip tree:: --skip layers:: --skip prose:: --skip sizes:: --skip kernels::
  --skip recipes::every_file --skip recipes::the_phases)
for tests in ops device train; do
  "$here/$tests" "${sources[@]}" "$@" 2>&1 | tee "$out/$tests.txt"
  [ "${PIPESTATUS[0]}" = 0 ] || status=1
done
exit "$status"
RUN
chmod +x "$out"/{run.sh,ops,device,train,gradus}
du -sh "$out"/* "$out" | sed "s#$out##"
