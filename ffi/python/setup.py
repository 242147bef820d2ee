"""Puts the shared library and the command `gradus` into the package: built by cargo, or the files that GRADUS_LIBRARY and
GRADUS_COMMAND name. With GRADUS_LIBRARY alone there is no command."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

# setuptools' own copy, which its import above puts in place; it has no other name.
from distutils.command.build_scripts import build_scripts  # isort: skip

HERE = pathlib.Path(__file__).resolve().parent
NAMES = {"win32": "gradus_c.dll", "darwin": "libgradus_c.dylib"}
NAME = NAMES.get(sys.platform, "libgradus_c.so")
COMMAND = "gradus.exe" if sys.platform == "win32" else "gradus"


def named(variable: str) -> pathlib.Path | None:
    """The file that an environment variable names; SystemExit if there is none."""
    value = os.environ.get(variable)
    if not value:
        return None
    found = pathlib.Path(value)
    if not found.is_file():
        raise SystemExit(f"{variable}: no file at {found}")
    return found


def built(package: str, file: str) -> pathlib.Path:
    """What cargo builds from the sources, which a source distribution has with it. SystemExit says what is missing."""
    own, root = HERE / "rust", HERE.parents[1]
    if (own / "Cargo.toml").is_file():
        root = own
    elif not (root / "ffi" / "Cargo.toml").is_file():
        raise SystemExit(f"no sources of the library at {root}: install from the repository, or set GRADUS_LIBRARY")
    if shutil.which("cargo") is None:
        raise SystemExit("cargo is needed to build the library; or set GRADUS_LIBRARY to a built one")
    subprocess.run(["cargo", "build", "--release", "-p", package], cwd=root, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    return target / "release" / file


class BuildWithLibrary(build_py):
    def run(self) -> None:
        super().run()
        into = pathlib.Path(self.build_lib) / "gradus"
        # An editable install imports from the sources, and finds its library there.
        into = HERE / "src" / "gradus" if self.editable_mode else into
        into.mkdir(parents=True, exist_ok=True)
        shutil.copy2(named("GRADUS_LIBRARY") or built("gradus-c", NAME), into / NAME)


class BuildCommand(build_scripts):
    """A program where setuptools has scripts."""

    def run(self) -> None:
        into = pathlib.Path(self.build_dir)
        into.mkdir(parents=True, exist_ok=True)
        command = named("GRADUS_COMMAND")
        if command is None and not os.environ.get("GRADUS_LIBRARY"):
            command = built("gradus-rft", COMMAND)
        if command is not None:
            shutil.copy(command, into / COMMAND)
            (into / COMMAND).chmod(0o755)

    def get_source_files(self) -> list[str]:
        return []


class PlatformWheel(bdist_wheel):
    """Any Python 3, but one platform: the library is native, the bindings are ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class Native(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(
    cmdclass={"build_py": BuildWithLibrary, "build_scripts": BuildCommand, "bdist_wheel": PlatformWheel},
    distclass=Native,
    # Without a name here setuptools installs none.
    scripts=[COMMAND],
)
