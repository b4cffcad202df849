"""A process of a container, as the supervisor holds it: by a pidfd, since it need not be a child of this process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import trio

CONTAINER_MODULE = "ldmfs.container.process"
"""What the command line of a container's process has in it."""


class Process:
    """A process that this supervisor has started, or one that it has adopted.

    One that has no number here (it is of another PID namespace) seems to live for ever.
    """

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._child = child
        self._fd = -1
        self._gone = False
        if pid > 0:
            try:
                self._fd = os.pidfd_open(pid)
            except ProcessLookupError:
                self._gone = True

    @classmethod
    async def start(cls, link: socket.socket, log: Path) -> Process:
        """Start a container's process on its end of a control link, which stays the caller's; `log` takes its output.

        Raises `OSError` where there is no room for another process.
        """
        await trio.lowlevel.checkpoint()
        child = _popen(link.fileno(), log)
        return cls(child.pid, child)

    def ends(self, within: float = 0) -> bool:
        """Tell whether it has ended, or does within some seconds, for which this blocks."""
        return self._gone or (self._fd >= 0 and bool(select.select([self._fd], (), (), within)[0]))

    @property
    def is_container(self) -> bool:
        """Whether it is what supervisors start: its number may have become that of another process."""
        with contextlib.suppress(OSError):
            return CONTAINER_MODULE.encode() in Path(f"/proc/{self.pid}/cmdline").read_bytes()
        return False

    async def wait(self) -> None:
        """Wait until it has ended."""
        if self._gone:
            return
        if self._fd < 0:
            await trio.sleep_forever()
        await trio.lowlevel.wait_readable(self._fd)

    def kill(self) -> None:
        """Send SIGKILL, if it is there."""
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def outcome(self) -> str:
        """Return how it has ended; of a process that was adopted nobody can know."""
        status = None if self._child is None else self._child.wait()
        if status is None:
            return "ended"
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-status).name}"
        return f"exited with status {status}"

    def close(self) -> None:
        """Let go of it: it has ended."""
        if self._child is not None:
            self._child.wait()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._gone = True


def _popen(fd: int, log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", CONTAINER_MODULE, str(fd)],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
