#!/usr/bin/env bash
# A wheel as its user gets it: in an empty environment, without Rust on the path, the Python of both READMEs that needs no
# torch, and the command.
#
#   tools/dist/try_wheel.sh FILE.whl
set -euo pipefail
wheel=$(realpath "$1")
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for readme in README.md ffi/python/README.md; do
  awk '/^```python$/ {inside = 1; next} /^```$/ {inside = 0} inside' "$readme" | sed '/^import torch/,$d' > "$work/$(echo "$readme" | tr / _).py"
done
cd "$work"
export PATH=/usr/bin:/bin
unset GRADUS_LIBRARY PYTHONPATH
if command -v cargo > /dev/null; then echo "cargo is on the path: this would not show what a user has"; exit 1; fi
python3 -m venv empty
empty/bin/pip install -q "$wheel"
for program in ./*.py; do
  [ -s "$program" ] || { echo "$program: no Python found"; exit 1; }
  empty/bin/python "$program"
done
empty/bin/gradus --version
empty/bin/gradus toy sort3 --rows 200 > sort3.jsonl
empty/bin/gradus train --data sort3.jsonl --reward exact --set phases=sft --set sft.epochs=1 --out runs > log.txt 2>&1 || { cat log.txt; exit 1; }
echo "$(basename "$wheel"): $(stat -c %s "$wheel") bytes, works in an empty environment"
