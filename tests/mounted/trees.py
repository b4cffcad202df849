"""Trees for tests: mounted by `ldmfs mount`, used through files and programs, and gone at the end without a trace."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ldmfs.fuse.mount import mounts, unmount

from .waiting import wait_until

LDMFS = str(Path(sys.executable).with_name("ldmfs"))
TESTS = Path(__file__).resolve().parent.parent

ENTRY_POINTS = """\
[ldmfs.providers]
probe = mounted.providers:Probe
mortal = mounted.mortal:Mortal
chaos = chaos.providers:Chaos
broken = mounted.there_is_no_such_module:Nothing
brittle = mounted.brittle:Brittle
"""

SECONDS = 45
"""After which a program is taken to hang."""

_numbers = itertools.count(1)


def install_plug_ins(directory: Path) -> Path:
    """Make the plug-ins of `providers.py` known to whoever has `directory` in its PYTHONPATH."""
    info = directory / "ldmfs_test_providers-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ldmfs-test-providers\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return directory


def become(user: int) -> list[str]:
    """Return the beginning of a command that runs the rest as an ordinary user.

    Where the interpreter lies in root's home, the user may search directories and read all the same; nothing else.
    """
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    if not all(directory.stat().st_mode & 1 for directory in Path(sys.executable).resolve().parents):
        command += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return [*command, "--"]


class Tree:
    """A tree below `base`, which has its root, its configuration and the log of the plug-in `probe`.

    `user` runs everything as another user.
    """

    def __init__(self, base: Path, plug_ins: Path, user: int | None = None) -> None:
        self.base = base
        self.root = base / "ldm"
        self.log = base / "events"
        self.log.touch()
        self.crash = base / "crash"
        self.existed = self.root.exists()
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("LDMFS", "XDG", "PYTHON"))},
            "PYTHONPATH": f"{plug_ins}:{TESTS}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LDMFS_ROOT": str(self.root),  # also tells which processes are of this tree
            "LC_ALL": "C.UTF-8",
        }
        self.become = [] if user is None else become(user)

    # -- programs

    def ldmfs(self, *arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return self.run([LDMFS, *map(str, arguments)], **more)

    def sh(self, script: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a script of the shell in the root, in a login session of its own."""
        return self.run(["sh", "-c", script], cwd=self.root, **more)

    def run(self, command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        options: dict[str, Any] = {
            "env": self.environment, "text": True, "capture_output": True, "stdin": subprocess.DEVNULL,
            "timeout": SECONDS, "start_new_session": True, **more,
        }  # fmt: skip
        return subprocess.run([*self.become, *command], check=False, **options)

    # -- its life

    def mount(self, configuration: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Mount in the background; `@log` and `@crash` stand for the files of `probe`."""
        return self.ldmfs("mount", "--background", "--config", self.configure(configuration), *options)

    def configure(self, configuration: str) -> Path:
        """Write the configuration file."""
        file = self.base / "tree.toml"
        file.write_text(configuration.replace("@log", f'"{self.log}"').replace("@crash", f'"{self.crash}"'))
        return file

    def umount(self) -> subprocess.CompletedProcess[str]:
        return self.ldmfs("umount")

    def end(self) -> None:
        """Unmount, and assert that nothing is left; what is left all the same is taken away."""
        try:
            if self.mounts() or (self.root / ".ldmfs").exists():
                done = self.umount()
                assert done.returncode == 0, done.stderr
            assert not self.mounts()
            wait_until(lambda: not self.processes(), what="the end of every process of the tree")
            assert self.root.exists() == self.existed
            assert not self.existed or not list(self.root.iterdir())
        finally:
            self._force()

    def _force(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for mount in self.mounts():
            unmount(mount)
        if not self.existed:
            shutil.rmtree(self.root, ignore_errors=True)

    def mounts(self) -> list[Path]:
        """Return what is mounted at and below the root."""
        return [mount.path for mount in mounts(self.root)]

    def processes(self) -> list[int]:
        """Return the processes that were started for this tree."""
        mark = f"LDMFS_ROOT={self.root}".encode()
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
        return found

    # -- what it tells

    def containers(self) -> dict[str, dict[str, Any]]:
        """Return what the graph tells, by container."""
        done = self.run(["cat", "system/graph"], cwd=self.root)
        assert done.returncode == 0, done.stderr
        graph = json.loads(done.stdout)
        return {container["name"]: container for container in graph["containers"]}

    def device(self, name: str) -> dict[str, Any]:
        """Return what the graph tells of the device CONTAINER/DEVICE."""
        container, _, device = name.partition("/")
        return next(each for each in self.containers()[container]["devices"] if each["name"] == device)

    def supervisor(self) -> int:
        """Return the supervisor's process."""
        return int((self.root / ".ldmfs/lock").read_text())

    def pid(self, container: str) -> int:
        """Return the process of a container's instance."""
        return int((self.root / ".ldmfs/run" / container).read_text())

    def standby(self, container: str) -> int:
        """Return the process of a container's standby, once it waits."""
        return wait_until(lambda: self.containers()[container]["standby"], what=f"the standby of {container}")

    def state(self, container: str) -> str:
        """Return the state of a container; nothing where the supervisor has only begun and does not know of it."""
        return str(self.containers().get(container, {}).get("state", ""))

    def control(self, command: str) -> subprocess.CompletedProcess[str]:
        """Send a command to the supervisor as a shell does; the reply or its error is what `cat` tells."""
        return self.sh(f"echo '{command}' > system/control && cat system/control")

    # -- the plug-in `probe`

    @contextlib.contextmanager
    def made(self, kind: str, container: str = "probe") -> Iterator[Probed]:
        """Give a new device; at the end nobody has it open any more, and it is destroyed."""
        name = f"{kind}-{next(_numbers)}"
        self.order(f"create {kind} {name}", container)
        device = Probed(self, container, name)
        yield device
        wait_until(lambda: self.xattr(device.path, "consumers") == "0", what=f"the close of each consumer of {name}")
        self.order(f"destroy {name}", container)

    def order(self, command: str, container: str = "probe") -> None:
        """Send a command to the factory."""
        with opened(self.root / container / "factory", os.O_RDWR) as fd:
            os.write(fd, command.encode())
            assert os.read(fd, 10) == b"ok"

    def xattr(self, path: Path, key: str) -> str:
        """Return an attribute user.ldm.*."""
        return os.getxattr(path, f"user.ldm.{key}").decode()

    def events(self, name: str) -> list[tuple[str, int]]:
        """Return what has happened to a device of `probe`: what, and to which consumer."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [(what, int(number)) for device, what, number in lines if device == name]


class Probed:
    """A device of the plug-in `probe`."""

    def __init__(self, tree: Tree, container: str, name: str) -> None:
        self.tree = tree
        self.container = container
        self.name = name
        self.path = tree.root / container / name

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def release(self) -> None:
        """Let a gate's requests end."""
        self.tree.order(f"release {self.name}", self.container)

    def count(self, what: str) -> int:
        """Return how often something has happened."""
        return sum(event == what for event, _ in self.tree.events(self.name))

    def wait(self, what: str, times: int = 1) -> int:
        """Wait until something has happened so often; return the consumer of the last time."""
        wait_until(lambda: self.count(what) >= times, what=f"{what} number {times} of {self.name}")
        return [number for event, number in self.tree.events(self.name) if event == what][times - 1]


@contextlib.contextmanager
def opened(path: os.PathLike[str] | str, flags: int = os.O_RDWR) -> Iterator[int]:
    """Open a file; close it without caring for the error that `close` tells."""
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def read_all(fd: int) -> bytes:
    """Return a reply up to its end."""
    return b"".join(iter(lambda: os.read(fd, 1 << 16), b""))


def exchange(path: os.PathLike[str] | str, request: bytes) -> bytes:
    """Open, send a request, return its reply, close."""
    with opened(path) as fd:
        os.write(fd, request)
        return read_all(fd)


def anew(fd: int, path: Path) -> int:
    """Return a new open file in the place of `fd`, which stays open where that fails."""
    new = os.open(path, os.O_RDWR)
    os.close(fd)
    return new


def errno_of(call: Callable[..., Any], *arguments: Any) -> int | None:
    """Return the errno that a call fails with, None when it does not."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return None
