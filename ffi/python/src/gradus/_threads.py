"""Whose threads the CPU device computes on: the library's own, or torch's.

torch's OpenMP threads spin for a while after each of torch's operators, and the library's would have to share
the cores with them. So from the first call with torch's tensors on, the library takes torch's threads, as many
as torch.set_num_threads says. Results do not depend on it.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import sys
from typing import Any

from gradus import _error
from gradus._library import LIBRARY, done

__all__ = ["Threads", "set_threads"]


class Threads:
    """What was chosen: None until somebody did."""

    chosen: str | None = None
    # Keeps the runtime loaded as long as the library may call it.
    runtime: Any = None


def set_threads(of: str) -> bool:
    """Takes the threads of "torch" or the library's "own" in the whole process. False where torch has none that
    can be shared: it is not imported, not built with OpenMP, or its runtime is not found; then they are the
    library's own."""
    if of not in ("torch", "own"):
        raise _error.invalid("set_threads", "of", repr(of), '"torch" or "own"')
    runtime = openmp() if of == "torch" else None
    entry = None if runtime is None else ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p)
    done(LIBRARY.gradus_set_team(entry))
    Threads.chosen, Threads.runtime = of, runtime
    return runtime is not None


def openmp() -> ctypes.CDLL | None:
    """The OpenMP runtime that torch's operators run on: the one beside torch's own libraries, else the only one
    of the process."""
    torch = sys.modules.get("torch")
    if torch is None or "OpenMP" not in torch.__config__.parallel_info().partition("parallel backend:")[2]:
        return None
    found = loaded()
    folder = pathlib.Path(torch.__file__).resolve().parent
    near = [path for path in found if folder in path.parents or folder.parent / "torch.libs" in path.parents]
    candidates = near or found
    if len(candidates) != 1:
        return None
    try:
        runtime = ctypes.CDLL(str(candidates[0]), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        return runtime if hasattr(runtime, "GOMP_parallel") else None
    except OSError:
        return None


def loaded() -> list[pathlib.Path]:
    """The OpenMP runtimes that this process has loaded, where the system says so."""
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists():
        return []
    names = ("libgomp", "libiomp5", "libomp")
    paths = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if line.count("/") > 0}
    return sorted(pathlib.Path(path) for path in paths if pathlib.Path(path).name.startswith(names))
