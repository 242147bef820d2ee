#!/usr/bin/env bash
# The crates as crates.io would have them: packs the four that are published, prints their sizes, refuses one of more than
# 10 MB (the registry's limit), and runs the first op of a project that has nothing but the unpacked packages.
#
#   tools/dist/crates.sh             with the packages of this tree, uncommitted changes included
#   tools/dist/crates.sh --verify    builds every crate from its package as well (what `cargo publish --dry-run` does)
set -euo pipefail
cd "$(dirname "$0")/../.."
crates=(gradus-emu gradus gradus-rft gradus-c)
check=--no-verify
[ "${1:-}" = --verify ] && check=
out=target/package
rm -rf "$out"
cargo package -q --allow-dirty $check "${crates[@]/#/-p}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
for crate in "${crates[@]}"; do
  package=$out/$crate-$version.crate
  bytes=$(stat -c %s "$package")
  echo "$crate-$version.crate: $bytes bytes"
  [ "$bytes" -lt 10000000 ] || { echo "crates.io takes at most 10 MB"; exit 1; }
  tar -xzf "$package" -C "$work"
done

# A user's project. The registry does not have the emulator yet, which the package names as an optional dependency.
cargo init -q --name first_op "$work/user"
cd "$work/user"
cargo add -q --path "$work/gradus-$version"
printf '\n[patch.crates-io]\ngradus-emu = { path = "%s" }\n' "$work/gradus-emu-$version" >> Cargo.toml
cat > src/main.rs <<'END'
use gradus::ops::{LogProb, logprob};
use gradus::{Device, View};

fn main() -> gradus::Result<()> {
    let (logits, targets) = (vec![0.5f32; 4 * 32_000], vec![7i32; 4]);
    let mut logp = vec![0f32; 4];
    let args = LogProb::new(View::rows_of(&logits, 32_000)?, (&targets).into(), (&mut logp).into());
    logprob(&Device::best()?, args)?;
    assert!((logp[0] + (32_000f32).ln()).abs() < 1e-5, "{logp:?}");
    println!("{}", logp[0]);
    Ok(())
}
END
TIMEFORMAT="from cargo add to the first op: %U s of CPU (and %S of the system), %R s of the clock"
time CARGO_TARGET_DIR="$work/target" cargo run -q
