"""Puts the shared library into the package: built by cargo, or the file that GRADUS_LIBRARY names."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
NAMES = {"win32": "gradus_c.dll", "darwin": "libgradus_c.dylib"}
NAME = NAMES.get(sys.platform, "libgradus_c.so")


def library() -> pathlib.Path:
    """Where the library is, after building it if need be. SystemExit says what is missing."""
    named = os.environ.get("GRADUS_LIBRARY")
    if named:
        found = pathlib.Path(named)
        if not found.is_file():
            raise SystemExit(f"GRADUS_LIBRARY: no file at {found}")
        return found
    root = HERE.parents[1]
    if not (root / "ffi" / "Cargo.toml").is_file():
        raise SystemExit(f"no sources of the library at {root}: install from the repository, or set GRADUS_LIBRARY")
    if shutil.which("cargo") is None:
        raise SystemExit("cargo is needed to build the library; or set GRADUS_LIBRARY to a built one")
    subprocess.run(["cargo", "build", "--release", "-p", "gradus-c"], cwd=root, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    return target / "release" / NAME


class BuildWithLibrary(build_py):
    def run(self) -> None:
        super().run()
        into = pathlib.Path(self.build_lib) / "gradus"
        # An editable install imports from the sources, and finds its library there.
        into = HERE / "src" / "gradus" if self.editable_mode else into
        into.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library(), into / NAME)


class PlatformWheel(bdist_wheel):
    """Any Python 3, but one platform: the library is native, the bindings are ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class Native(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel}, distclass=Native)
