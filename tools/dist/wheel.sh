#!/usr/bin/env bash
# The Python distributions, in target/dist: wheels `py3-none-manylinux_2_28_ARCHITECTURE` with the library and the command
# `gradus`, stripped, for any Linux with glibc 2.28; and the source distribution, which has the crates with it. The
# linker is zig's, from PyPI: it links against the old C library whatever this machine has, for other architectures too.
#
#   tools/dist/wheel.sh [x86_64] [aarch64]      x86_64 alone by default; aarch64 needs `rustup target add` first
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD dist=$PWD/target/dist
architectures=("$@")
[ $# -gt 0 ] || architectures=(x86_64)
python3 -m venv target/dist-venv
export PATH=$PWD/target/dist-venv/bin:$PATH
python -m pip install -q ziglang==0.17.1 cargo-zigbuild==0.24.1 build==1.6.1 setuptools==84.2.1
mkdir -p "$dist"

# The same commit gives the same bytes: no path of this machine, no time of today.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH CARGO_PROFILE_RELEASE_STRIP=symbols
flags="--remap-path-prefix=$PWD=gradus --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"

stage() { # a copy of the Python package, so that nothing of a build stays in the sources
  rm -rf target/python-stage
  mkdir -p target/python-stage
  git -C ffi/python ls-files -z | (cd ffi/python && xargs -0 cp --parents -t "$root/target/python-stage")
}

old_enough() { # file: the newest symbol version of glibc that it asks for
  local newest
  newest=$(readelf -V "$1" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
  printf '%s: %s bytes, asks for %s\n' "$(basename "$1")" "$(stat -c %s "$1")" "$newest"
  [ "$(printf '%s\nGLIBC_2.28\n' "$newest" | sort -V | tail -1)" = GLIBC_2.28 ]
}

for architecture in "${architectures[@]}"; do
  target=$architecture-unknown-linux-gnu
  RUSTFLAGS=$flags cargo zigbuild --release --target "$target.2.28" -p gradus-c -p gradus-rft --lib --bin gradus
  built=$root/target/$target/release
  old_enough "$built/libgradus_c.so"
  old_enough "$built/gradus"
  stage
  (cd target/python-stage && GRADUS_LIBRARY=$built/libgradus_c.so GRADUS_COMMAND=$built/gradus python -m build -q --wheel \
    --no-isolation -o "$dist" "-C--build-option=--plat-name=manylinux_2_28_$architecture")
done

stage
tools/dist/rust_sources.sh target/python-stage/rust
(cd target/python-stage && python -m build -q --sdist --no-isolation -o "$dist")
ls -l "$dist" | awk 'NR > 1 {print $5, $9}'
