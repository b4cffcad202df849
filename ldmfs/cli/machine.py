"""What `ldmfs doctor` looks at on the machine: packages, FUSE, what else of the kernel is used.

It must run where packages are missing, so it imports only what needs none.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import os
import platform
import re
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from .. import __version__
from ..fuse.abilities import Abilities, abilities, can_clone
from ..fuse.mount import Connection, MountError

OK, LIMITED, MISSING = "ok", "limited", "missing"

LEAST_LINUX = 5, 14

EXTRAS = {"sensor": "sensor", "zstd": "codec"}
"""Extras of the package that plug-ins need, each with its plug-in."""


class Check(NamedTuple):
    """One thing that was looked at."""

    check: str
    state: str
    found: str
    do: str = ""
    needed: bool = True

    @property
    def in_need(self) -> bool:
        """Whether ldmfs does not work for what was found."""
        return self.needed and self.state == MISSING


# -- Python, Linux, packages


def installation() -> Iterator[Check]:
    """Look at the interpreter, the kernel's release, and the packages that ldmfs and its plug-ins need."""
    release = platform.release()
    old = _numbers(release) < LEAST_LINUX
    least = ".".join(map(str, LEAST_LINUX))
    yield Check("Linux", LIMITED if old else OK, release, f"tested from Linux {least} on" if old else "", needed=False)
    try:
        about = metadata.metadata("ldmfs")
    except metadata.PackageNotFoundError:
        yield Check("ldmfs", MISSING, f"{__version__}, not installed: no plug-in is found", f"{_pip()} -e .")
        return
    yield _at_least("Python", platform.python_version(), about["Requires-Python"] or "", "another interpreter")
    yield Check("ldmfs", OK, __version__)
    for requirement in metadata.requires("ldmfs") or []:
        name, _, extra = requirement.partition(";")
        package, wanted = re.match(r"([\w.-]+)(.*)", name).groups()  # type: ignore[union-attr]  # any name matches
        extra = re.sub(r".*extra == .(\w+).*", r"\1", extra).strip()
        if not extra:
            yield _package(package, wanted, f"{_pip()} '{package}{wanted}'")
        elif extra in EXTRAS:
            check = _package(package, wanted, f"{_pip()} 'ldmfs[{extra}]'")
            yield check._replace(needed=False, found=f"{check.found}, for the plug-in {EXTRAS[extra]}")


def _package(name: str, wanted: str, command: str) -> Check:
    """Import a package: one whose libraries are missing is installed and does not work all the same."""
    try:
        importlib.import_module(name)
        return _at_least(name, metadata.version(name), wanted, command)
    except metadata.PackageNotFoundError:
        return Check(name, MISSING, "not installed", command)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return Check(name, MISSING, "not installed", command)
        return Check(name, MISSING, f"cannot be imported: {error}", f"{command} --force-reinstall")


def _at_least(name: str, version: str, wanted: str, command: str) -> Check:
    if _numbers(version) < _numbers(wanted):
        return Check(name, MISSING, f"{version}, wanted is {wanted}", command)
    return Check(name, OK, version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def _pip() -> str:
    return f"{sys.executable} -m pip install"


# -- FUSE


def fuse_device() -> Check:
    """Look at /dev/fuse, as this user and for others."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        mode = os.fstat(fd).st_mode
        os.close(fd)
    except OSError as error:
        fix = {errno.EACCES: "as root: chmod 666 /dev/fuse", errno.EPERM: "allow this container the device /dev/fuse"}
        return Check("/dev/fuse", MISSING, os.strerror(error.errno or 0), fix.get(error.errno or 0, "modprobe fuse"))
    if not mode & stat.S_IROTH or not mode & stat.S_IWOTH:
        return Check("/dev/fuse", LIMITED, f"not for all users: {stat.filemode(mode)}", "chmod 666 /dev/fuse")
    return Check("/dev/fuse", OK, stat.filemode(mode))


def fusermount() -> Check:
    """Look at the program by which ordinary users mount; root does without."""
    program = shutil.which("fusermount3")
    needed = os.geteuid() != 0
    if program is None:
        found = "not installed: ordinary users cannot mount"
        return Check("fusermount3", MISSING, found, "apt install fuse3", needed)
    about = os.stat(program)
    if about.st_uid or not about.st_mode & stat.S_ISUID:
        found = f"{program} is not setuid root: ordinary users may not be able to mount"
        return Check("fusermount3", LIMITED, found, f"chown root {program} && chmod u+s {program}", needed)
    return Check("fusermount3", OK, f"{program}, setuid root", "", needed)


def trial_mount() -> tuple[Abilities | None, list[Check]]:
    """Mount in a temporary directory, see what the kernel's INIT tells, and unmount."""
    by = "as root" if os.geteuid() == 0 else "through fusermount3"
    try:
        with tempfile.TemporaryDirectory(prefix="ldmfs-doctor-") as directory:
            connection = Connection.mount(Path(directory))
            try:
                able, clones = abilities(connection.init), can_clone(connection.fd)
            finally:
                connection.unmount()
    except (MountError, OSError) as error:
        found, _, do = str(error).partition("; ")
        return None, [Check("mount", MISSING, found, do)]
    return able, [
        Check("mount", OK, f"{by}, FUSE {able.protocol[0]}.{able.protocol[1]}"),
        Check("FUSE_DEV_IOC_CLONE", OK, "a crash ends requests under way at once")
        if clones
        else Check("FUSE_DEV_IOC_CLONE", MISSING, "refused", "Linux 4.2 or later"),
        Check("FUSE_NOTIFY_RESEND", OK, 'on_crash = "reissue" is possible', needed=False)
        if able.resend
        else Check("FUSE_NOTIFY_RESEND", LIMITED, 'on_crash = "reissue" acts as "fail"', "Linux 6.9 or later", False),
    ]


# -- the kernel's other abilities


def sealed_memory() -> Check:
    """Try what shared memory is made of."""
    name, seals = "memfd seals", fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    try:
        fd = os.memfd_create("ldmfs-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        finally:
            os.close(fd)
    except OSError as error:
        return Check(name, MISSING, os.strerror(error.errno or 0), "allow the system call memfd_create")
    return Check(name, OK, "shared memory of the direct channel")


def peer_groups() -> Check:
    """Try what tells a container the groups of a consumer on the direct channel."""
    from ..channel.access import SO_PEERGROUPS

    name = "SO_PEERGROUPS"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            ours.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
        except OSError as error:
            if error.errno != errno.ERANGE:  # there are more groups than that has room for
                found = "over the direct channel, supplementary groups do not count"
                return Check(name, LIMITED, found, "Linux 4.13 or later", needed=False)
    return Check(name, OK, "supplementary groups count over the direct channel", needed=False)


def process_descriptors() -> Check:
    """Try what the supervisor watches and signals its containers by."""
    try:
        fd = os.pidfd_open(os.getpid())
        try:
            signal.pidfd_send_signal(fd, 0)
        finally:
            os.close(fd)
    except OSError as error:
        return Check("pidfd", MISSING, os.strerror(error.errno or 0), "allow pidfd_open and pidfd_send_signal")
    return Check("pidfd", OK, "deaths of containers are noticed at once")


def kernel_module() -> Check:
    """Look whether devices of the kernel's container can be."""
    if Path("/sys/class/ldm").is_dir():
        count = len(os.listdir("/sys/class/ldm"))
        return Check("module ldm", OK, f"loaded, {count} devices in /dev/ldm/kernel", needed=False)
    dependencies = Path("/lib/modules", platform.release(), "modules.dep")
    installed = dependencies.exists() and re.search(r"/ldm\.ko\b", dependencies.read_text())
    found, do = "not loaded: no container kernel", "make kmod-install && modprobe ldm"
    return Check("module ldm", MISSING, found, "modprobe ldm" if installed else do, needed=False)
