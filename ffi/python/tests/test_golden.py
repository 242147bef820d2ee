"""golden_ctypes.py, which needs ctypes and numpy only, on the committed files; the generated declarations."""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parents[2] / "tests" / "golden"


def test_every_golden_file_and_every_op():
    run = subprocess.run([sys.executable, HERE / "golden_ctypes.py", GOLDEN], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "60 of 60 ops called" in run.stdout and ", 0 failed" in run.stdout


def test_declarations_are_those_of_the_header():
    run = subprocess.run([sys.executable, HERE.parent / "generate.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
