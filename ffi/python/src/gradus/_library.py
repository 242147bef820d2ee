"""Finds the shared library, and refuses one that does not fit these declarations."""

from __future__ import annotations

import ctypes
import os
import pathlib
import sys

from gradus import _error, _sys

__all__ = ["LIBRARY", "Fork", "check", "done", "load", "path"]

NAMES = {"win32": "gradus_c.dll", "darwin": "libgradus_c.dylib"}


def path() -> pathlib.Path:
    """The library: the file that GRADUS_LIBRARY names, else the one in this package.

    Raises ImportError if there is none.
    """
    named = os.environ.get("GRADUS_LIBRARY")
    own = pathlib.Path(__file__).resolve().parent / NAMES.get(sys.platform, "libgradus_c.so")
    found = pathlib.Path(named) if named else own
    if not found.is_file():
        hint = (
            "what GRADUS_LIBRARY names"
            if named
            else "install the package with `pip install ./ffi/python`, or set GRADUS_LIBRARY"
        )
        raise ImportError(f"gradus: no library at {found}: {hint}")
    return found


def check(library: ctypes.CDLL, where: pathlib.Path) -> None:
    """ImportError if the library is of another version or lays a struct out differently."""
    number = library.gradus_version()
    found = (number // 1_000_000, number // 1000 % 1000)
    if found != _sys.VERSION[:2]:
        raise ImportError(
            f"gradus: {where} is version {found[0]}.{found[1]}, this package was made for "
            f"{_sys.VERSION[0]}.{_sys.VERSION[1]}: install both from one source"
        )
    for name, struct in _sys.STRUCTS.items():
        ours, theirs = ctypes.sizeof(struct), library.gradus_sizeof(name.removesuffix("_args").encode())
        if ours != theirs:
            raise ImportError(
                f"gradus: struct {name} has {theirs} bytes in {where} and {ours} here: build the library "
                "from the sources of this package, or run ffi/python/generate.py on its header"
            )


def load() -> ctypes.CDLL:
    where = path()
    try:
        library = ctypes.CDLL(str(where))
        for name, (result, arguments) in _sys.FUNCTIONS.items():
            function = getattr(library, f"gradus_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ImportError(f"gradus: {where} cannot be used: {error}") from error
    check(library, where)
    return library


LIBRARY = load()


class Fork:
    """Whether this process is a fork of one that had used the library: its threads, and a GPU's context, are
    not there any more, and a call would wait for them for ever."""

    used = False
    broken = False

    @classmethod
    def child(cls) -> None:
        cls.broken = cls.used

    @classmethod
    def check(cls) -> None:
        if cls.broken:
            raise RuntimeError(
                "gradus was used before this process was forked: start workers with `spawn` or `forkserver`"
            )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Fork.child)


def done(status: int) -> None:
    """Raises the failure of the call that returned `status`, on the thread that made it."""
    if status != _sys.OK:
        raise _error.of(status, LIBRARY.gradus_last_error().decode(errors="replace"))
