"""The tree's root: made at the start, left as it was found at the end, and cleaned of what a killed run left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
from pathlib import Path

from ..consumer import tree
from ..container.settings import ConfigurationError
from ..fuse.mount import FUSE_TYPE, ROOT_SOURCE, mount_root, mounts, unmount
from ..kernel.device import DIRECTORY

CONTAINER_MODULE = "ldmfs.container.process"
"""What the command line of a container's process has in it."""

KILL_SECONDS = 5.0
"""How long a killed process may take to be gone."""


class Tree:
    """The root directory of a tree that this process serves, locked against others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made = False
        self._lock = -1

    def prepare(self) -> None:
        """Make the root ready.  Raises `ConfigurationError`, with what to do, when that is not possible."""
        clean(self.root)
        self._made = not self.root.exists()
        try:
            if self._made:
                self.root.mkdir(parents=True)
            entries = os.listdir(self.root)
        except OSError as error:
            raise ConfigurationError(f"{self.root}: {error.strerror}; choose another root with --root") from None
        if entries:
            raise ConfigurationError(f"{self.root} is not empty; choose another root with --root, or empty it")
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise ConfigurationError(f"{self.root} is not writable for you; choose another root with --root")
        if os.geteuid() == 0:
            mount_root(self.root)
        for directory, mode in ((".", 0o755), ("channel", 0o755), ("log", 0o700), ("run", 0o755)):
            path = tree.private(self.root) / directory
            path.mkdir()
            path.chmod(mode)
        (self.root / "kernel").symlink_to(DIRECTORY)  # which is there while the module ldm is loaded
        self._lock = os.open(tree.lock_file(self.root), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self._lock, b"%d\n" % os.getpid())

    def mount_point(self, container: str) -> Path:
        """Return the directory for a container's mount, which is made where it is missing."""
        path = self.root / container
        path.mkdir(exist_ok=True)
        return path

    def remove(self) -> None:
        """Take away everything that `prepare` made."""
        _take_down(self.root)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._made:
            with contextlib.suppress(OSError):
                self.root.rmdir()


def supervisor_of(root: Path) -> int | None:
    """Return the process that serves the tree at `root`, None where none does."""
    try:
        with open(tree.lock_file(root), encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0)
    except OSError:
        pass
    return None


def clean(root: Path) -> bool:
    """Take away what a killed supervisor left at `root`, its containers included; tell whether there was anything.

    Raises `ConfigurationError` when a supervisor is alive there.
    """
    pid = supervisor_of(root)
    if pid is not None:
        raise ConfigurationError(f"{root} is served already, by process {pid}; 'ldmfs umount --root {root}' ends that")
    stale = any(mount.type == FUSE_TYPE or mount.source == ROOT_SOURCE for mount in mounts(root))
    if not stale and not tree.lock_file(root).exists():
        return False
    kill_containers(root)
    _take_down(root)
    return True


def kill_containers(root: Path) -> None:
    """Kill the containers that run without a supervisor, and wait until they are gone."""
    try:
        files = list((tree.private(root) / "run").iterdir())
    except OSError:
        return
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            pid = int(file.read_text())
            fd = os.pidfd_open(pid)
            try:
                if CONTAINER_MODULE.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    select.select([fd], (), (), KILL_SECONDS)
            finally:
                os.close(fd)


def _take_down(root: Path) -> None:
    """Unmount what is mounted below `root`, and empty it."""
    below = mounts(root)
    for mount in below:
        if mount.type == FUSE_TYPE:
            unmount(mount.path)
    if any(mount.path == root and mount.source == ROOT_SOURCE for mount in below):
        unmount(root)
        return
    try:
        entries = list(root.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry == tree.private(root):
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.is_symlink():
            entry.unlink()
        else:
            with contextlib.suppress(OSError):
                entry.rmdir()
