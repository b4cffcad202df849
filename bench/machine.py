"""What the benchmark ran on, without anything that names the machine."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
import sysconfig
from importlib.metadata import PackageNotFoundError, version

from .report import lines

PACKAGES = ("ldmfs", "pyfuse3", "trio", "mfusepy", "pyzmq", "pynng", "dbus-fast", "grpcio")


def describe() -> str:
    """Return the machine and the software as a list."""
    return lines([
        ("day", datetime.datetime.now(datetime.UTC).date().isoformat()),
        ("CPU", f"{_field('/proc/cpuinfo', 'model name')}, {len(os.sched_getaffinity(0))} core(s) for this run"),
        ("memory", f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / (1 << 20):.1f} GiB"),
        ("virtual machine", "yes" if " hypervisor " in f" {_field('/proc/cpuinfo', 'flags')} " else "no"),
        ("kernel", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}, {_python_build()}"),
        ("libfuse", _first_line("pkg-config", "--modversion", "fuse3") or _first_line("fusermount3", "--version")),
        *((name, _version(name)) for name in PACKAGES),
        ("dbus-daemon", _first_line("dbus-daemon", "--version")),
        ("C compiler", _first_line("gcc", "--version")),
        ("load before the run", f"{os.getloadavg()[0]:.2f}"),
    ])  # fmt: skip


def _python_build() -> str:
    """Return how the interpreter was configured: the options without paths, and what its compiler was told."""
    options = [option.strip("'\"") for option in (sysconfig.get_config_var("CONFIG_ARGS") or "").split()]
    switches = [option for option in options if option.startswith(("--enable", "--with")) and "/" not in option]
    flags = " ".join(str(sysconfig.get_config_var(name) or "") for name in ("PY_CFLAGS", "PY_CORE_CFLAGS", "OPT"))
    level = next((flag for flag in ("-O3", "-O2", "-O1", "-O0") if flag in flags.split()), "-O unknown")
    profiled = "--enable-optimizations" in options or "-fprofile-use" in flags
    linked = "--with-lto" in options or "-flto" in flags
    return (
        f"configured with {' '.join(switches) or 'no options'} ({level}, "
        f"{'with' if profiled else 'no'} profile-guided and {'with' if linked else 'no'} link-time optimisation, "
        "as far as sysconfig tells)"
    )


def _field(path: str, name: str) -> str:
    with open(path, encoding="utf-8") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0].strip()
