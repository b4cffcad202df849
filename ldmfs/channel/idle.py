"""Waiting for a socket without a turn of trio, as long as the run has nothing else to do.

A turn of trio, with its epoll, costs more than a small request.  So a task whose peer will most likely send next waits
in poll(2), for its socket and for whatever the run waits for: all of that is behind trio's epoll, a descriptor which is
readable when there is something to be done.  No task is kept from running, nor does any descriptor, thread or signal
wait for this; a deadline may be noticed `LATE_SECONDS` late.
"""

from __future__ import annotations

import contextlib
import select
from time import monotonic

import trio

LATE_SECONDS = 0.01
"""How late a run may notice a deadline because of this: it goes half of that without a turn, and then waits as long."""

_POLL_MS = 5
"""That other half.  A timer that is due before the kernel's next tick has to be set in the hardware, which in a virtual
machine costs as much as all else here; 1 ms is, and 3 ms, where there are 250 ticks in a second, is not."""


class Idle(trio.abc.Instrument):
    """Knows whether any other task of a run is to run."""

    _of_run: trio.lowlevel.RunVar[Idle] = trio.lowlevel.RunVar("ldmfs-idle")

    def __init__(self) -> None:
        self.runnable: set[trio.lowlevel.Task] = set()
        """Those that have not had their turn.  Of what was scheduled before this began nothing is known."""
        self.until = 0.0
        """When the run has to have its turn; 0 where it has had one."""
        self.epoll = _epoll()

    @classmethod
    def of_run(cls) -> Idle:
        """Return that of the current run."""
        try:
            return cls._of_run.get()
        except LookupError:
            idle = cls()
            if idle.epoll is not None:
                trio.lowlevel.add_instrument(idle)
            cls._of_run.set(idle)
            return idle

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """Count a task that is to run."""
        self.runnable.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count a task no more that runs."""
        self.runnable.discard(task)
        self.until = 0.0


class IdleWait:
    """Waits for one descriptor; to be made, and used, by tasks of the run."""

    def __init__(self, fd: int) -> None:
        self._idle = Idle.of_run()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        if self._idle.epoll is not None:
            self._poll.register(self._idle.epoll, select.POLLIN)
        self._alone = [(fd, select.POLLIN)]

    def ready(self) -> bool:
        """Wait for a moment; tell whether the descriptor is readable and nothing else is to be done.

        Where not, the task has to give others their turn: with `trio.lowlevel.wait_readable`, most likely.
        """
        idle = self._idle
        if idle.runnable or idle.epoll is None:
            return False
        if not idle.until:
            idle.until = monotonic() + LATE_SECONDS / 2
        elif monotonic() > idle.until:
            return False
        return self._poll.poll(_POLL_MS) == self._alone


def _epoll() -> int | None:
    """Return the descriptor of trio's epoll; None for a run that is a guest of another loop, or if it has none.

    trio has no public way to it.
    """
    with contextlib.suppress(AttributeError):
        runner = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        if not runner.is_guest:
            fd: int = runner.io_manager._epoll.fileno()
            return fd
    return None
