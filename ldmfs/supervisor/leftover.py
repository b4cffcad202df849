"""What a supervisor that was killed has left alive: containers that serve, and processes that do not.

A container that serves waits at its socket, `<root>/.ldmfs/adopt/<container>`.  It is adopted from there, or told to
end.  The numbers of all processes stand in `run`, `standby`, `upgrade` and `template`, for those that do not
listen.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..channel.address import address
from ..consumer import tree
from ..container.control import Stop, encode
from .process import Process

KILL_SECONDS = 5.0
"""How long a container without a supervisor may take to end before it is killed, and then to be gone."""


def orphans(root: Path) -> dict[str, socket.socket]:
    """Return the containers that can be adopted, by `file_name`, each as a socket that is connected to it.

    They are those of this process's own user.
    """
    found = {}
    for name, end in _doors(root):
        if _user(end) == os.geteuid():
            found[name] = end
        else:
            end.close()
    return found


def _doors(root: Path) -> Iterator[tuple[str, socket.socket]]:
    """Yield a connection to each container that listens for a supervisor."""
    with contextlib.suppress(OSError):
        for path in sorted((tree.private(root) / "adopt").iterdir()):
            end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            end.setblocking(False)
            try:
                with address(path) as at:
                    end.connect(at)
            except OSError:
                end.close()
            else:
                yield path.name, end


def _user(end: socket.socket) -> int:
    """Return whose process has made the socket that we are connected to."""
    _, uid, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def end_all(root: Path) -> None:
    """End every container below `root`, in order those that can be told to, and wait until they are gone."""
    deadline = time.monotonic() + KILL_SECONDS
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(contextlib.closing(process)) for process in _processes(noted(root))]
        ends = [stack.enter_context(end) for _, end in _doors(root)]
        for end in ends:
            with contextlib.suppress(OSError):
                end.send(encode(Stop()))
        for end in ends:
            with contextlib.suppress(OSError):
                end.settimeout(max(0.001, deadline - time.monotonic()))
                while end.recv(1 << 16):
                    pass
        for process in processes:
            if not process.ends(within=max(0, deadline - time.monotonic())):
                _kill(process)


def is_alive(file: Path) -> bool:
    """Tell whether the process whose number stands in `file` is there."""
    for process in _processes([file]):
        process.close()
        return True
    return False


def kill_all(files: Iterable[Path]) -> None:
    """Kill the containers' processes whose numbers stand in `files`, and wait until they are gone."""
    for process in _processes(files):
        with contextlib.closing(process):
            _kill(process)


def noted(root: Path) -> Iterator[Path]:
    """Yield the files in which supervisors note their processes: those that serve, that wait, then the templates."""
    for directory in ("run", "standby", "upgrade", "template"):
        with contextlib.suppress(OSError):
            yield from sorted((tree.private(root) / directory).iterdir())


def _kill(process: Process) -> None:
    process.kill()
    process.ends(within=KILL_SECONDS)


def _processes(files: Iterable[Path]) -> Iterator[Process]:
    """Yield the processes whose numbers stand in `files`, and that are containers' still."""
    for file in files:
        try:
            process = Process(int(file.read_text()))
        except (OSError, ValueError):
            continue
        if process.is_container:
            yield process
        else:
            process.close()
