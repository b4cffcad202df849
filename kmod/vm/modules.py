# SPDX-License-Identifier: GPL-2.0-only
"""Modules for a guest's kernel: ldm.ko, the bundled providers in C, and any other provider that is one source file.

They are built in copies of the sources, one for each kernel, below `build/vm` in the repository.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from .kernel import REPOSITORY, Kernel, locked, run

SOURCES = {"kmod": ("*.c", "*.h", "Makefile", "Kbuild"), "providers": ("*.c",)}
"""What is copied."""


def build(kernel: Kernel, providers: Sequence[Path] = ()) -> dict[str, Path]:
    """Return the modules by name: those of the repository and one for each source file in `providers`."""
    directory = REPOSITORY / "build/vm" / kernel.headers.name
    with locked(directory):
        kmod = _copy_sources(directory)
        run("make", "-C", kmod, f"KDIR={kernel.headers}")
        modules = {module.stem: module for name in SOURCES for module in (directory / name).rglob("*.ko")}
        return modules | {source.stem: _build_provider(kernel, source.resolve(), directory) for source in providers}


def check(kernel: Kernel, source: Path) -> None:
    """Have sparse, coccinelle, checkpatch and the compiler look at the sources.  `source` has a kernel's scripts.

    Raises `VmError`, with what they found.
    """
    directory = REPOSITORY / "build/check"
    with locked(directory):
        kmod = _copy_sources(directory)
        run("make", "-C", kmod, f"KDIR={kernel.headers}", f"KSOURCE={source}", "--keep-going", "check", "style")


def _copy_sources(directory: Path) -> Path:
    """Copy the sources; return the directory of those of ldm.ko."""
    for name, patterns in SOURCES.items():
        _copy(_matching(REPOSITORY / name, patterns), directory / name)
    return directory / "kmod"


def build_one(kernel: Kernel, source: Path, directory: Path, *, flags: str = "", symbols: Path | None = None) -> Path:
    """Build a module of one source file in a directory of its own; return it."""
    _copy([source], directory)
    _write(directory / "Kbuild", f"obj-m := {source.stem}.o\nccflags-y := {flags}\n".encode())
    known = [f"KBUILD_EXTRA_SYMBOLS={symbols}"] if symbols else []
    run("make", "-C", kernel.headers, f"M={directory}", *known, "modules")
    return directory / f"{source.stem}.ko"


def _build_provider(kernel: Kernel, source: Path, directory: Path) -> Path:
    """Build a provider with the header and the symbols of ldm.ko, and nothing else of it."""
    digest = hashlib.sha256(str(source.parent).encode()).hexdigest()[:8]
    kmod = directory / "kmod"
    flags = f"-I{kmod} -Wall -Wextra -Wno-unused-parameter"
    return build_one(
        kernel, source, directory / f"more-{digest}-{source.stem}", flags=flags, symbols=kmod / "Module.symvers"
    )


def _matching(directory: Path, patterns: Iterable[str]) -> list[Path]:
    return [file for pattern in patterns for file in directory.glob(pattern) if not file.name.endswith(".mod.c")]


def _copy(sources: Iterable[Path], target: Path) -> None:
    """Copy what differs, so that make builds what has changed and no more; take away what is gone."""
    target.mkdir(parents=True, exist_ok=True)
    sources = list(sources)
    for source in sources:
        _write(target / source.name, source.read_bytes())
    names = {source.name for source in sources}
    for old in _matching(target, ("*.c", "*.h")):
        if old.name not in names:
            old.unlink()


def _write(target: Path, data: bytes) -> None:
    if not target.exists() or target.read_bytes() != data:
        target.write_bytes(data)
