"""A process of a container, as the supervisor holds it: by a pidfd, since it need not be a child of this process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .templates import Ending


TEMPLATE_MODULE = "ldmfs.container.template"
"""What the command line of a container's process has in it, which is a fork of the template."""

TOLD_SECONDS = 1.0
"""How long it may take until the parent of a process that has ended says how."""


class TemplateDied(OSError):
    """The template ended before it said whether it has begun a process; another one may be asked."""


class Process:
    """A process that this supervisor has started, or one that it has adopted.

    One that has no number here (it is of another PID namespace) seems to live for ever.
    """

    def __init__(self, pid: int, ending: Ending | None = None, pidfd: int = -1) -> None:
        self.pid = pid
        self._ending = ending
        self._fd = pidfd
        self._gone = False
        if pid > 0 and pidfd < 0:
            try:
                self._fd = os.pidfd_open(pid)
            except ProcessLookupError:
                self._gone = True

    def ends(self, within: float = 0) -> bool:
        """Tell whether it has ended, or does within some seconds, for which this blocks."""
        return self._gone or (self._fd >= 0 and bool(select.select([self._fd], (), (), within)[0]))

    @property
    def is_container(self) -> bool:
        """Whether it is what supervisors start: its number may have become that of another process."""
        with contextlib.suppress(OSError):
            return TEMPLATE_MODULE.encode() in Path(f"/proc/{self.pid}/cmdline").read_bytes()
        return False

    async def wait(self) -> None:
        """Wait until it has ended, and its parent has said how."""
        import trio  # here, since `leftover` is for programs that serve nothing, too

        if self._gone:
            return
        if self._fd < 0:
            await trio.sleep_forever()
        await trio.lowlevel.wait_readable(self._fd)
        if self._ending is not None:
            with trio.move_on_after(TOLD_SECONDS):
                await self._ending.known.wait()

    def kill(self) -> None:
        """Send SIGKILL, if it is there."""
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def outcome(self) -> str:
        """Return how it has ended; of a process that was adopted nobody can know."""
        status = None if self._ending is None else self._ending.status
        if status is None:
            return "ended"
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-status).name}"
        return f"exited with status {status}"

    def close(self) -> None:
        """Let go of it: it has ended."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._gone = True
