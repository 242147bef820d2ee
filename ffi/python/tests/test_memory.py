"""Where memory ends, an op raises MemoryError; the process goes on, and so does the op with more room."""

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource")

CHILD = """
import resource
import sys

sys.path[:0] = {path!r}
import conftest  # noqa: F401  where the library is
import numpy as np

import gradus

x = np.linspace(-1.0, 1.0, 1 << 19, dtype=np.float32)
want = gradus.whiten(x)
want = want[0] if isinstance(want, tuple) else want
with open("/proc/self/statm") as f:
    used = int(f.read().split()[0]) * resource.getpagesize()
seen = set()
for step in range(0, 40):
    resource.setrlimit(resource.RLIMIT_AS, (used + (step << 19), -1))
    try:
        got = gradus.whiten(x)
        got = got[0] if isinstance(got, tuple) else got
        assert (got == want).all()
        seen.add("done")
        del got
    except MemoryError as error:
        seen.add("refused" if isinstance(error, gradus.OutOfMemory) else "numpy")
print(sorted(seen))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address spaces are limited on Linux")
def test_an_address_space_limit_is_a_memory_error():
    child = CHILD.format(path=[p for p in sys.path if p])
    run = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, f"{run.returncode}: {run.stderr}"
    assert "refused" in run.stdout and "done" in run.stdout, run.stdout
