#!/usr/bin/env bash
# Builds the test executables that ask for a GPU and prints their paths. Fails if one of them lacks a test that its
# folder has: a file that no `mod` names would never run.
#
#   tools/gpu-bundle/executables.sh [options for cargo test]
set -euo pipefail
cd "$(dirname "$0")/../.."
names=(ops device train)
built=$(cargo test "$@" "${names[@]/#/--test=}" --no-run --message-format=json |
  sed -n 's/.*"name":"\(ops\|device\|train\)".*"executable":"\([^"]*\)".*/\1 \2/p')
total=0
for name in "${names[@]}"; do
  path=$(sed -n "s/^$name //p" <<< "$built")
  in_tree=$(grep -rh '^ *#\[test\]$' --include='*.rs' "tests/$name" | wc -l)
  in_executable=$("$path" --list | grep -c ': test$')
  if [ "$in_tree" != "$in_executable" ]; then
    echo "tests/$name has $in_tree tests, its executable $in_executable" >&2
    exit 1
  fi
  total=$((total + in_executable))
  echo "$path"
done
echo "$total tests in ${names[*]}, as many as in their folders" >&2
