"""The tree's root: made at the start, left as it was found at the end, and rid of what a killed supervisor left.

What that left and what still lives is adopted: `Tree.prepare` gives a connection to each such container.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from ..channel.address import file_name
from ..consumer import tree
from ..container.settings import ConfigurationError
from ..fuse.mount import FUSE_TYPE, ROOT_SOURCE, mount_root, mounts, unmount
from ..kernel.device import DIRECTORY
from .leftover import end_all, is_alive, kill_all, noted, orphans

STARTING_SECONDS = 5.0
"""How long a supervisor may take from locking the tree to saying who it is."""

DIRECTORIES = {
    ".": 0o755,
    "adopt": 0o700,
    "channel": 0o755,
    "log": 0o700,
    "run": 0o755,
    "standby": 0o700,
    "template": 0o700,
    "upgrade": 0o700,
}
"""What is made in the directory of the supervisor's own files, with its mode."""


class Tree:
    """The root directory of a tree that this process serves, locked against others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = -1

    def prepare(self) -> dict[str, socket.socket]:
        """Make the root ready; return the containers that run there without a supervisor, by `file_name`.

        Raises `ConfigurationError`, with what to do, when that is not possible.
        """
        with _claimed(self.root) as lock:
            left = orphans(self.root) if lock is not None else {}
            if left and lock is not None:
                self._hold(os.dup(lock))
                _sweep(self.root, keep=left)
                return left
            if lock is not None or _is_stale(self.root):
                _end(self.root)
        self._make()
        return {}

    def _make(self) -> None:
        made = not self.root.exists()
        try:
            if made:
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
        tree.private(self.root).mkdir()
        self._hold(os.open(tree.lock_file(self.root), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        if made:
            _made_mark(self.root).touch()
        _make_directories(self.root)
        (self.root / "kernel").symlink_to(DIRECTORY)  # which is there while the module ldm is loaded

    def _hold(self, lock: int) -> None:
        """Lock the tree, and say who does."""
        self._lock = lock
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tree.lock_file(self.root).write_text(f"{os.getpid()}\n")

    def mount_point(self, container: str) -> Path:
        """Return the directory for a container's mount, which is made where it is missing."""
        path = self.root / container
        path.mkdir(exist_ok=True)
        return path

    def note(self, file: Path, pid: int) -> Path:
        """Write the number of a process to `file`; whoever looks finds a whole one, the old or the new."""
        new = tree.private(self.root) / "pid"
        new.write_text(f"{pid}\n")
        return new.replace(file)

    def forget(self, container: str) -> None:
        """Take away what is left of a container that is not mounted any more."""
        for path in (
            tree.channel_socket(self.root, container),
            tree.adoption_socket(self.root, container),
            tree.pid_file(self.root, container),
        ):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.root / container).rmdir()

    def drop(self, key: str) -> None:
        """End a container that a killed supervisor left and that cannot be adopted, by `file_name`."""
        files = [file for file in noted(self.root) if file.parent.name == "run" and file_name(file.name) == key]
        kill_all(files)
        for name in {path.name for path in (*files, *self.root.iterdir()) if file_name(path.name) == key}:
            unmount(self.root / name)
            self.forget(name)

    def remove(self) -> None:
        """Take away everything that `prepare` made."""
        _take_down(self.root)
        self.release()

    def release(self) -> None:
        """Leave everything as it is to another supervisor."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def supervisor_of(root: Path) -> int | None:
    """Return the process that serves the tree at `root`, None where none does."""
    deadline = time.monotonic() + STARTING_SECONDS
    with contextlib.suppress(OSError), open(tree.lock_file(root), encoding="ascii") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                file.seek(0)
                if text := file.read():
                    return int(text)
            if time.monotonic() > deadline:
                raise ConfigurationError(f"{root} is locked by a process that does not say which it is")
            time.sleep(0.01)
    return None


def clean(root: Path) -> bool:
    """Take away what a killed supervisor left at `root`, its containers included; tell whether there was anything.

    Raises `ConfigurationError` when a supervisor is alive there.
    """
    with _claimed(root) as lock:
        if lock is None and not _is_stale(root):
            return False
        _end(root)
        return True


@contextlib.contextmanager
def _claimed(root: Path) -> Iterator[int | None]:
    """Give the descriptor of the lock of a tree that nobody serves, locked; None where there is no lock."""
    try:
        lock = os.open(tree.lock_file(root), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = supervisor_of(root)
            raise ConfigurationError(
                f"{root} is served already, by process {pid}; 'ldmfs umount --root {root}' ends that"
            ) from None
        yield lock
    finally:
        os.close(lock)


def _is_stale(root: Path) -> bool:
    return any(mount.type == FUSE_TYPE or mount.source == ROOT_SOURCE for mount in mounts(root))


def _make_directories(root: Path) -> None:
    for directory, mode in DIRECTORIES.items():
        path = tree.private(root) / directory
        path.mkdir(exist_ok=True)
        path.chmod(mode)


def _made_mark(root: Path) -> Path:
    """Return the file that says that the root was not there before."""
    return tree.private(root) / "made"


def _end(root: Path) -> None:
    """End the containers that a killed supervisor left, and take everything away."""
    end_all(root)
    _take_down(root)


def _sweep(root: Path, keep: Collection[str]) -> None:
    """Take away what is left of containers that are gone; those of `keep`, by `file_name`, stay as they are."""
    private = tree.private(root)
    for file in tuple(noted(root)):
        waits = file.parent.name in ("standby", "upgrade")
        if waits or (file.parent.name == "run" and file_name(file.name) not in keep):
            kill_all([file])
    for mount in mounts(root):
        if mount.type == FUSE_TYPE and file_name(mount.path.name) not in keep:
            unmount(mount.path)
    _make_directories(root)
    for directory in ("adopt", "channel", "run", "standby", "template", "upgrade"):
        for file in (private / directory).iterdir():
            if directory == "template":  # one lives as long as what it has begun
                stays = is_alive(file)
            else:
                stays = directory not in ("standby", "upgrade") and file_name(file.name) in keep
            if not stays:
                file.unlink()
    tree.supervisor_socket(root).unlink(missing_ok=True)
    for entry in root.iterdir():
        if entry.name not in (private.name, "kernel") and file_name(entry.name) not in keep:
            _remove(entry)


def _take_down(root: Path) -> None:
    """Unmount what is mounted below `root`, and empty it; take it away where it was not there before."""
    made = _made_mark(root).exists()
    below = mounts(root)
    for mount in below:
        if mount.type == FUSE_TYPE:
            unmount(mount.path)
    if any(mount.path == root and mount.source == ROOT_SOURCE for mount in below):
        unmount(root)
    else:
        with contextlib.suppress(OSError):
            for entry in root.iterdir():
                if entry == tree.private(root):
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    _remove(entry)
    if made:
        with contextlib.suppress(OSError):
            root.rmdir()


def _remove(entry: Path) -> None:
    """Take away a link or an empty directory of the root."""
    with contextlib.suppress(OSError):
        if entry.is_symlink():
            entry.unlink()
        else:
            entry.rmdir()
