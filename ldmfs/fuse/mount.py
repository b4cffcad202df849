"""Mounts and the descriptors behind them: `mount(2)` as root, `fusermount3` as an ordinary user.

The process that mounts reads the kernel's INIT request and keeps it, so that the session of any process can be started
on the connection later: see `session.serve`.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

FUSE_DEV_IOC_CLONE = 0x8004E500
"""Makes a /dev/fuse descriptor another one of the same connection (`include/uapi/linux/fuse.h`)."""

FUSE_HAS_RESEND = 1 << 39
INIT_FLAGS, INIT_FLAGS_AT = struct.Struct("<II"), 40 + 12
"""`flags` and `flags2` of `struct fuse_init_in`, behind the header and three numbers of 32 bits."""

RESEND = struct.pack("<IiQ", 16, 7, 0)
"""FUSE_NOTIFY_RESEND, as a `struct fuse_out_header`."""

MS_NOSUID, MS_NODEV, MS_NOATIME, MNT_DETACH = 0x2, 0x4, 0x400, 0x2

FUSE_TYPE = "fuse.ldmfs"
ROOT_SOURCE = "ldmfs"
"""What the tmpfs at the root of a tree has as its source, by which it is known."""

INIT_BYTES = 1 << 16
"""Room for INIT and for its answer."""

_libc = ctypes.CDLL(None, use_errno=True)


class MountError(Exception):
    """A mount or unmount that failed; the message says why and what to do."""


class MountPoint(NamedTuple):
    """A line of /proc/self/mountinfo."""

    path: Path
    type: str
    source: str


class Connection:
    """A FUSE mount: its own descriptor, and the INIT request that was read from it."""

    def __init__(self, path: Path, fd: int, init: bytes) -> None:
        self.path = path
        self.fd = fd
        self.init = init

    @classmethod
    def mount(cls, path: Path) -> Connection:
        """Mount at `path`, an existing directory, and read INIT.  Raises `MountError`."""
        fd = _mount_as_root(path) if os.geteuid() == 0 else _mount_as_user(path)
        init = os.read(fd, INIT_BYTES)
        os.set_blocking(fd, False)  # a request that is there when polled may be gone when read
        return cls(path, fd, init)

    def device(self, *, reissue: bool = False) -> int:
        """Return a new descriptor of the connection for an instance to serve on.

        It is a clone, so that the kernel ends what the instance had read and not answered, with ECONNABORTED, at the
        moment the instance dies.  With `reissue` it is the connection's own, and the kernel keeps these requests: see
        `resend`.
        """
        if reissue:
            return os.dup(self.fd)
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, FUSE_DEV_IOC_CLONE, array.array("I", [self.fd]))
        except BaseException:
            os.close(fd)
            raise
        return fd

    @property
    def can_resend(self) -> bool:
        """Whether the kernel can hand a request out once more (FUSE_HAS_RESEND in INIT's flags; Linux 6.9)."""
        flags, flags2 = INIT_FLAGS.unpack_from(self.init, INIT_FLAGS_AT)
        return bool((flags2 << 32 | flags) & FUSE_HAS_RESEND)

    def resend(self) -> None:
        """Have the kernel hand out again what was read and not answered, to whoever reads next.

        Once INIT has been answered: that is not to be handed out by the kernel.
        """
        os.write(self.fd, RESEND)

    def answer(self, reply: bytes) -> None:
        """Hand an instance's answer to INIT to the kernel.

        That of the first instance is taken.  The kernel no longer knows the request when later ones answer it.
        """
        with contextlib.suppress(FileNotFoundError):
            os.write(self.fd, reply)

    def unmount(self) -> None:
        """Take the mount away and end the connection: open files give ENOTCONN from here on."""
        unmount(self.path)
        self.close()

    def close(self) -> None:
        """Let go of the descriptor; the mount goes on as long as another process holds one."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _mount_as_root(path: Path) -> int:
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"/dev/fuse: {error.strerror}; load the kernel's module with 'modprobe fuse'") from None
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    try:
        _mount("ldmfs", path, FUSE_TYPE, MS_NOSUID | MS_NODEV | MS_NOATIME, options)
    except MountError:
        os.close(fd)
        raise
    return fd


def _mount_as_user(path: Path) -> int:
    program = shutil.which("fusermount3")
    if program is None:
        raise MountError("fusermount3 is not installed; install the package fuse3, or run as root")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [
            program,
            "-o",
            "nosuid,nodev,noatime,default_permissions,fsname=ldmfs,subtype=ldmfs",
            "--",
            str(path),
        ]
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        done = subprocess.run(
            command, env=environment, pass_fds=[theirs.fileno()], capture_output=True, text=True, check=False
        )
        theirs.close()
        if done.returncode:
            reason = done.stderr.strip() or f"fusermount3 could not mount {path}"
            hint = "; as root: chmod 666 /dev/fuse" if "/dev/fuse: Permission" in reason else ""
            raise MountError(reason + hint)
        _, (fd, *_), _, _ = socket.recv_fds(ours, 1, 1)
    os.set_inheritable(fd, False)
    return fd


def mount_root(path: Path) -> None:
    """Mount a tmpfs for the tree's root, as root only.  Raises `MountError`."""
    _mount(ROOT_SOURCE, path, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=16m")


def _mount(source: str, path: Path, type: str, flags: int, options: str) -> None:
    if _libc.mount(source.encode(), os.fsencode(path), type.encode(), ctypes.c_ulong(flags), options.encode()):
        number = ctypes.get_errno()
        hint = "; run as an ordinary user, or give the capability CAP_SYS_ADMIN" if number == errno.EPERM else ""
        raise MountError(f"{path}: mounting {type}: {os.strerror(number)}{hint}")


def unmount(path: Path) -> None:
    """Detach the mount at `path`, whoever uses it; nothing is done where there is none.  Raises `MountError`.

    Lazily, since the process behind it may be dead, and then every path through it only gives errors.
    """
    if os.geteuid() == 0:
        if _libc.umount2(os.fsencode(path), MNT_DETACH) and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
            raise MountError(f"{path}: unmounting: {os.strerror(ctypes.get_errno())}")
        return
    program = shutil.which("fusermount3") or "fusermount3"
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run([program, "-u", "-z", "-q", "--", str(path)], capture_output=True, text=True, check=False)
        if done.returncode and any(mount.path == path for mount in mounts()):
            raise MountError(done.stderr.strip() or f"{path}: fusermount3 could not unmount")


def mounts(below: Path | None = None) -> list[MountPoint]:
    """Return this process's mounts, those at and below a path where one is given, the latest first."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            path = Path(_unescape(before.split()[4]))
            if below is None or path == below or below in path.parents:
                type, source = after.split()[:2]
                found.append(MountPoint(path, type, source))
    return found[::-1]


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
