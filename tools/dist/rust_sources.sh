#!/usr/bin/env bash
# A folder with the packages of the crates, unpacked, as a workspace that builds without the repository and without a
# registry that knows them.
#
#   tools/dist/rust_sources.sh FOLDER
set -euo pipefail
into=$1
cd "$(dirname "$0")/../.."
crates=(gradus-emu gradus gradus-rft gradus-c)
cargo package -q --allow-dirty --no-verify "${crates[@]/#/-p}"
mkdir -p "$into"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
{
  echo '[workspace]'
  echo 'resolver = "3"'
  printf 'members = ['
  printf '"%s", ' "${crates[@]}"
  printf ']\n\n[patch.crates-io]\n'
  printf '%s\n' 'gradus = { path = "gradus" }' 'gradus-emu = { path = "gradus-emu" }' 'gradus-rft = { path = "gradus-rft" }'
  echo
  sed -n '/^\[profile.release\]/,/^\[profile.bench\]/p' Cargo.toml | sed '$d'
} > "$into/Cargo.toml"
cp Cargo.lock "$into/"
for crate in "${crates[@]}"; do
  mkdir -p "$into/$crate"
  tar -xzf "target/package/$crate-$version.crate" -C "$into/$crate" --strip-components 1
done
