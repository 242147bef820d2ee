#!/usr/bin/env python3
"""The C ABI against every golden file and an f64 oracle of every op, with ctypes and numpy only.

    python3 golden_ctypes.py [GOLDEN] [--device cpu] [--library libgradus_c.so] [--verbose]

GOLDEN is a folder with the families nf4, logprob, divergence, trl, verl, verl_kl, verl_adv and models; a
family that is not there is reported and not an error, a folder with none of them is. All settings come
from the files. Exit status 1 on any difference.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from plain.abi import Abi
from plain.every_op import CASES
from plain.families import FAMILIES, files
from plain.models import models

ROOT = HERE.parents[2]


class Score:
    """Counts checks and prints failures as they come."""

    def __init__(self, verbose: bool) -> None:
        self.verbose, self.passed, self.failed = verbose, 0, 0

    def run(self, name: str, check, *arguments) -> None:
        try:
            figure = check(*arguments)
        except Exception:
            self.failed += 1
            print(f"FAILED {name}\n{traceback.format_exc()}")
        else:
            self.passed += 1
            if self.verbose:
                print(f"  {name}: {figure}")


def golden(abi: Abi, folder: pathlib.Path, score: Score) -> None:
    found = 0
    for family, check in FAMILIES.items():
        before, start = score.passed + score.failed, time.perf_counter()
        for file in files(folder / family):
            score.run(f"{family}/{file.name}", check, abi, file)
        count = score.passed + score.failed - before
        found += count
        print(f"{family:12} {count:4} files  {time.perf_counter() - start:6.2f} s" if count else f"{family:12} none")
    for name, check in models(abi, folder / "models"):
        score.run(f"models/{name}", check)
        found += 1
    if not found:
        raise SystemExit(f"{folder}: no golden files")


def every_op(abi: Abi, score: Score) -> set[str]:
    """Every op in f64, which for most is the CPU's; returns those that no check calls."""
    for name, check in CASES.items():
        score.run(f"op/{name}", check, abi)
    missed = abi.ops - abi.called
    print(f"{len(abi.called)} of {len(abi.ops)} ops called")
    if missed:
        print(f"FAILED ops that no check calls: {', '.join(sorted(missed))}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("golden", nargs="?", type=pathlib.Path, default=ROOT / "tests" / "golden")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--library",
        type=pathlib.Path,
        default=os.environ.get("GRADUS_LIBRARY", ROOT / "target" / "release" / "libgradus_c.so"),
    )
    parser.add_argument("--verbose", action="store_true", help="the figure of every check")
    options = parser.parse_args()
    abi, score = Abi(options.library, options.device), Score(options.verbose)
    golden(abi, options.golden, score)
    missed = set() if options.device != "cpu" else every_op(abi, score)
    print(f"{score.passed} passed, {score.failed + bool(missed)} failed")
    return 1 if score.failed or missed else 0


if __name__ == "__main__":
    sys.exit(main())
