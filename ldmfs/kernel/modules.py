"""Loading kernel modules: ldm itself, and those of its providers."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from .sysfs import loaded

PREFIX = "ldm_"
"""What the name of a provider's module begins with: that of `ramdisk` is ldm_ramdisk."""

ROOT_PARAMETER = Path("/sys/module/ldm/parameters/root")
"""Where the kernel looks for devices in user space."""


class ModuleError(Exception):
    """A module cannot be loaded; the message has the reason, in one line."""


def load(providers: tuple[str, ...], root: Path) -> None:
    """Load the modules of providers, and ldm, which looks for devices in user space below `root` from now on.

    Each is the name of a provider, followed by the module's parameters if there are any: `ramdisk size=64M`.  What is
    loaded already stays as it is.  Raises `ModuleError`.
    """
    if not loaded():
        _modprobe("ldm", f"root={root}")
    try:
        ROOT_PARAMETER.write_text(str(root))
    except OSError as error:
        raise ModuleError(f"kernel module ldm: {ROOT_PARAMETER}: {error.strerror}") from None
    for provider in providers:
        name, *parameters = _split(provider)
        _modprobe(PREFIX + name.removeprefix(PREFIX), *parameters)


def _split(provider: str) -> list[str]:
    try:
        return shlex.split(provider) or [provider]
    except ValueError as error:
        raise ModuleError(f"kernel module {provider!r}: {error}") from None


def _modprobe(*arguments: str) -> None:
    program = shutil.which("modprobe") or shutil.which("modprobe", path="/sbin:/usr/sbin")
    if program is None:
        raise ModuleError(f"kernel module {arguments[0]} cannot be loaded: modprobe is missing; install kmod")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        *_, reason = done.stderr.strip().splitlines() or [f"modprobe ended with status {done.returncode}"]
        raise ModuleError(f"kernel module {arguments[0]} cannot be loaded: {reason}")
