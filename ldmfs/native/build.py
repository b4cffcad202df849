"""Builds providers in C as shared objects: what setup.py and `python -m ldmfs.native` have in common.

setup.py runs this file by itself, so that it imports nothing of the package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent

SOURCES = ("runtime.c", "request.c", "timer.c")
"""What each shared object is made of beside its provider."""

HEADERS = ("ldm.h", "ldm_user.h", "ldm_ioctl.h")
"""What a provider's source includes, by way of the first one."""

COMPILE = ("-std=gnu11", "-O2", "-g", "-fPIC", "-fvisibility=hidden", "-pthread")
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused-parameter")
LINK = ("-shared", "-pthread")

PACKAGES = "a C compiler is missing; on Debian: apt install gcc libc6-dev"


class BuildError(Exception):
    """A provider cannot be built; the message has the reason."""


def includes() -> Path:
    """Return the directory of `HEADERS`: beside this file where the package is installed, else that of the checkout."""
    installed = HERE / "include"
    return installed if installed.is_dir() else HERE.parents[1] / "kmod"


def compiler() -> str:
    """Return the C compiler: `$CC`, else `cc`.  Raises `BuildError` where there is none."""
    name = shutil.which(os.environ.get("CC") or "cc")
    if name is None:
        raise BuildError(PACKAGES)
    return name


def build(source: Path, output: Path) -> None:
    """Build a provider.  Raises `BuildError` with what the compiler says."""
    directories = [f"-I{includes()}", f"-I{HERE}"]
    sources = [str(source), *(str(HERE / name) for name in SOURCES)]
    command = [compiler(), *COMPILE, *WARNINGS, *LINK, *directories, "-o", str(output), *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{source} cannot be compiled:\n{done.stderr.rstrip()}")
