# SPDX-License-Identifier: GPL-2.0-only
"""The kernels that guests boot: Debian's own, and one built to find mistakes.

Debian's is that of the headers that are installed (linux-headers-amd64), unpacked and not installed.  The debug kernel
is built from the package linux-source with `debug.config`, which takes some minutes.  Each is made once and kept in the
cache directory: `$XDG_CACHE_HOME/ldmfs` where that is set, else `build/kernel` in the repository.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent

SOURCES = Path("/usr/src")

BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "fuse")
"""What a kernel may have as modules and a guest cannot do without."""

PACKAGES = {
    "debian": ("busybox-static", "gcc", "kmod", "linux-headers-amd64", "make", "qemu-system-x86"),
    "debug": ("bc", "bison", "flex", "libelf-dev", "linux-source", "xz-utils"),
    "check": ("coccinelle", "linux-source", "sparse", "xz-utils"),
}
"""Debian packages that a kernel needs, and the checks of the sources; all need the first ones too."""

XZ = b"\xfd7zXZ\x00"
ELF = b"\x7fELF"


class VmError(Exception):
    """A guest cannot be had on this machine: its text says why, and what would help."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted, and that modules can be built for."""

    name: str
    image: Path
    headers: Path
    """What kbuild calls KDIR."""
    modules: tuple[Path, ...] = ()
    """To be loaded before the root is mounted, in this order."""
    options: tuple[str, ...] = ()
    """For its command line."""


def debian() -> Kernel:
    """Return Debian's kernel, unpacked at the first call."""
    release = _headers_release()
    directory = _once(_cache() / f"debian-{release}", lambda new: _unpack(release, new))
    modules = tuple(sorted((directory / "modules").iterdir()))
    return Kernel("debian", directory / "image", SOURCES / f"linux-headers-{release}", modules)


def debug() -> Kernel:
    """Return the debug kernel, built at the first call."""
    archive, package = _source()
    configuration = (HERE / "debug.config").read_bytes()
    digest = hashlib.sha256(configuration).hexdigest()[:12]
    directory = _once(_cache() / f"debug-{package}-{digest}", lambda new: _build(archive, new))
    return Kernel("debug", directory / "arch/x86/boot/bzImage", directory, options=("kasan_multi_shot", "kmemleak=on"))


def scripts() -> Path:
    """Return a directory of the kernel's source that has nothing but its scripts, unpacked at the first call."""
    archive, package = _source()
    return _once(_cache() / f"scripts-{package}", lambda new: _extract_source(archive, new, "scripts"))


def packages(name: str) -> list[str]:
    """Return the Debian packages that the kernel of this name is got with, and its guests and modules; or `check`."""
    return sorted({*PACKAGES["debian"], *PACKAGES[name]})


def missing(name: str) -> list[str]:
    """Return those that are not installed."""
    told = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Status}\n", *packages(name)],
        check=False,
        capture_output=True,
        text=True,
    )
    installed = {line.split()[0] for line in told.stdout.splitlines() if line.endswith("ok installed")}
    return [package for package in packages(name) if package not in installed]


KERNELS: dict[str, Callable[[], Kernel]] = {"debian": debian, "debug": debug}


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "ldmfs" if base else REPOSITORY / "build/kernel"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a directory where there is none, and let nobody else in who asks by this function."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a program; what it has printed is told when it fails."""
    done = subprocess.run(
        command, check=False, cwd=cwd, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise VmError(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout[-20_000:]}")


def _output(*command: str | Path) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        raise VmError(f"{command[0]}: {told.strip()}") from None


def _once(directory: Path, make: Callable[[Path], None]) -> Path:
    """Return a directory that `make` has filled, once; what was interrupted is gone on with."""
    with locked(directory):
        made = directory / ".made"
        if not made.exists():
            print(f"making {directory}", file=sys.stderr)
            make(directory)
            made.touch()
    return directory


# -- Debian's


def _headers_release() -> str:
    """Return what `uname -r` says under the kernel of the headers that are installed, such as 6.1.0-44-amd64."""
    depends = _output("dpkg-query", "-W", "-f", "${Depends}", "linux-headers-amd64")
    return depends.split()[0].removeprefix("linux-headers-")


def _unpack(release: str, directory: Path) -> None:
    root = directory / "root"
    run("apt-get", "download", f"linux-image-{release}", cwd=directory)
    (package,) = directory.glob("linux-image-*.deb")
    run("dpkg", "-x", package, root)
    run("/sbin/depmod", "-b", root, release)
    _extract(root / f"boot/vmlinuz-{release}", directory / "image")
    shutil.rmtree(directory / "modules", ignore_errors=True)
    (directory / "modules").mkdir()
    for number, module in enumerate(_needed(root, release)):
        shutil.copyfile(module, directory / "modules" / f"{number:02}-{module.name}")
    shutil.rmtree(root)
    package.unlink()


def _needed(root: Path, release: str) -> list[Path]:
    """Return `BOOT_MODULES` and what they depend on, each after what it needs."""
    files: dict[Path, None] = {}
    for name in BOOT_MODULES:
        for line in _output("/sbin/modprobe", "-d", root, "-S", release, "--show-depends", name).splitlines():
            what, _, file = line.partition(" ")
            if what == "insmod":
                files[Path(file.strip())] = None
    return list(files)


def _extract(image: Path, target: Path) -> None:
    """Take the ELF kernel out of a bzImage: qemu enters it directly, where unpacking would be emulated."""
    data = image.read_bytes()
    at = data.find(XZ)
    while at >= 0:
        with contextlib.suppress(lzma.LZMAError):
            kernel = lzma.LZMADecompressor().decompress(data[at:])
            if kernel.startswith(ELF):
                target.write_bytes(kernel)
                return
        at = data.find(XZ, at + 1)
    shutil.copyfile(image, target)


# -- the debug kernel


def _source() -> tuple[Path, str]:
    """Return the archive of the kernel's source, and the version of its package."""
    archive = max(SOURCES.glob("linux-source-*.tar.xz"), default=None)
    if archive is None:
        raise VmError("the debug kernel, and the checks of the sources, need the package linux-source")
    release = archive.name.removesuffix(".tar.xz")
    return archive, _output("dpkg-query", "-W", "-f", "${Version}", release)


def _extract_source(archive: Path, directory: Path, *parts: str) -> None:
    """Unpack the source, or some directories of it."""
    top = archive.name.removesuffix(".tar.xz")
    run("tar", "-x", "-f", archive, "-C", directory, "--strip-components=1", *(f"{top}/{part}" for part in parts))


def _build(archive: Path, directory: Path) -> None:
    if not (directory / ".config").exists():
        _extract_source(archive, directory)
        environment = {**os.environ, "KCONFIG_ALLCONFIG": str(HERE / "debug.config")}
        run("make", "-C", directory, "-s", "allnoconfig", env=environment)
        _check(directory / ".config")
    run("make", "-C", directory, "-s", f"-j{os.cpu_count()}", "bzImage", "modules")


def _check(configuration: Path) -> None:
    """See that kconfig has left what was asked for: it drops what depends on something that is not there."""
    made = configuration.read_text().splitlines()
    asked = [line for line in (HERE / "debug.config").read_text().splitlines() if line.startswith("CONFIG_")]
    missing = [line for line in asked if line not in made]
    if missing:
        configuration.unlink()
        raise VmError(f"this kernel cannot be configured with {', '.join(missing)}")
