"""pyfuse3's session loop at the speed of a raw loop.

pyfuse3 reads its requests with several tasks that pass a fair lock around, and asks epoll before each.  Most of what a
request costs is that: tasks woken for nothing.  pyfuse3 finds `trio` as a global of its module, which is how its own
asyncio support replaces it; `install` puts a seam there with other versions of three things:

`Lock`
    A task that has released it may take it again.  The others stay parked, and one is woken only when the task that
    reads suspends in a handler: see `inline`.
`lowlevel.wait_readable`
    Polls the descriptor first.  Every `FAIR_TURNS`th time it goes through trio all the same, so that other tasks,
    timers and cancellation have their turn under load.
    Calls what was left for it by `after_answer`.
`open_nursery`
    Starts each reader so that its buffer is there before the kernel writes to it (`buffers`), and so that it goes on
    after `EAGAIN`.  A request that was there at the poll may be gone at the read, when its sender was killed meanwhile;
    on a blocking descriptor the read would then hold up the whole loop.

Invariant: whenever no task is reading or waiting to read the session's descriptor, some task is running (not suspended)
that will come back to read.  Every handler that may suspend is therefore run by `inline`.
"""

from __future__ import annotations

import errno
import os
import select
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import pyfuse3
import trio

from ..core.inline import run_inline
from .buffers import Buffers

FAIR_TURNS = 64
"""Requests taken in a row without going through trio's scheduler."""

T = TypeVar("T")


class _Now:
    """What has happened already: awaiting it costs no coroutine."""

    __slots__ = ()

    __await__ = ().__iter__


NOW = _Now()

_answered: list[Callable[[], object]] = []


def after_answer(call: Callable[[], object]) -> None:
    """Have `call` made when the answer to this request is out and before another one is read.

    For a handler that returns to pyfuse3, which then answers at once, without suspending in between.
    """
    _answered.append(call)


def _call_answered() -> None:
    for call in _answered:
        call()
    _answered.clear()


class BargingLock:
    """A lock that whoever comes first takes, and that wakes a parked task only when told to."""

    __slots__ = ("held", "parked")

    current: BargingLock | None = None

    def __init__(self) -> None:
        self.held = False
        self.parked: deque[trio.lowlevel.Task] = deque()
        BargingLock.current = self

    def __aenter__(self) -> Awaitable[None]:
        if self.held:
            return self._acquire()
        self.held = True
        return NOW  # type: ignore[return-value]

    def __aexit__(self, *exc: object) -> Awaitable[None]:
        self.held = False
        return NOW  # type: ignore[return-value]

    async def _acquire(self) -> None:
        while self.held:
            await self._park()
        self.held = True

    def wake(self) -> None:
        """Let a parked task take the lock, if it is free and there is one."""
        if self.parked and not self.held:
            trio.lowlevel.reschedule(self.parked.popleft())

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()
        self.parked.append(task)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            if task in self.parked:
                self.parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


def wake_reader() -> None:
    """Let another task read the next request: the one that calls this is about to suspend."""
    if BargingLock.current is not None:
        BargingLock.current.wake()


class Unanswered:
    """How many requests are being answered that have suspended, or may have."""

    __slots__ = ("_none", "count")

    def __init__(self) -> None:
        self.count = 0
        self._none: trio.Event | None = None

    def done(self) -> None:
        """Count one less.  Its answer goes out before any other task runs."""
        self.count -= 1
        if not self.count and self._none is not None:
            self._none.set()

    async def wait_none(self) -> None:
        """Wait until there is none."""
        while self.count:
            self._none = trio.Event()
            await self._none.wait()
        self._none = None


unanswered = Unanswered()
"""Those of this process's session: pyfuse3 has one."""


def inline(coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
    """Run `coroutine`; if it suspends, first let another task read the next request."""
    return run_inline(coroutine, wake_reader)


class _Reader:
    """Waits for the session's descriptor, and puts the kernel's in its place once INIT is answered."""

    def __init__(self, take_over: int | None, on_init: Callable[[], object] = lambda: None) -> None:
        self.take_over = take_over
        self.on_init = on_init
        self.poller: select.poll | None = None
        self.waits = 0
        self.buffers = Buffers()
        self._fd = -1
        self._stopped = False

    def stop(self) -> None:
        """Read no further request.  What is not read stays in the kernel, for whoever reads next."""
        self._stopped = True
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)

    def wait_readable(self, fd: int) -> Awaitable[None]:
        self.waits += 1
        if self.poller is None:
            self.poller = select.poll()
            self.poller.register(fd, select.POLLIN)
            self._fd = fd
        elif self.take_over is not None:
            # The first wait was for the replayed INIT.  Its answer is out, so from here on the kernel is the peer.
            os.dup2(self.take_over, fd, inheritable=False)
            os.close(self.take_over)
            os.set_blocking(fd, False)
            self.take_over = None
            self.on_init()
        if self.waits % FAIR_TURNS and not self._stopped and self.poller.poll(0):
            if self.buffers.pending:
                self.buffers.before_read()
            if _answered:
                _call_answered()
            return NOW  # type: ignore[return-value]
        return self._wait(fd)

    async def _wait(self, fd: int) -> None:
        if not self._stopped:
            try:
                await trio.lowlevel.wait_readable(fd)
            except trio.ClosedResourceError:
                if not self._stopped:
                    raise
        if _answered:  # by other tasks meanwhile too
            _call_answered()
        if self._stopped:
            await trio.sleep_forever()
        if self.buffers.pending:
            self.buffers.before_read()


class _ReaderNursery:
    """A nursery in which a task that pyfuse3 starts outlives an `EAGAIN`."""

    def __init__(self, nursery: trio.Nursery, buffers: Buffers) -> None:
        self._nursery = nursery
        self._buffers = buffers

    def start_soon(self, loop: Callable[..., Any], _nursery: object, *args: Any, name: object = None) -> None:
        self._nursery.start_soon(self._read, loop, *args, name=name)

    async def _read(self, loop: Callable[..., Any], *args: Any) -> None:
        while True:
            self._buffers.begin()
            try:
                await loop(self, *args)
                return wake_reader()  # when the connection has ended, each of them has to find out
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
            finally:
                self._buffers.end()


def _seam(behind: types.ModuleType, **names: object) -> types.SimpleNamespace:
    """Return the names of a module with some replaced.  No module with `__getattr__`: that would slow each look-up."""
    return types.SimpleNamespace(**{**{name: getattr(behind, name) for name in dir(behind)}, **names})


class _OpenNursery:
    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._manager: AbstractAsyncContextManager[trio.Nursery] = trio.open_nursery()

    async def __aenter__(self) -> _ReaderNursery:
        return _ReaderNursery(await self._manager.__aenter__(), self._buffers)

    async def __aexit__(self, *exc: Any) -> bool | None:
        return await self._manager.__aexit__(*exc)


def install(take_over: int | None = None, on_init: Callable[[], object] = lambda: None) -> _Reader:
    """Give pyfuse3 the lean loop; `take_over` is the kernel's descriptor, for a session that starts on a replayed INIT.

    `on_init` is called once, when INIT has been answered.  Returns what reads, which can be told to stop.

    To be called before `pyfuse3.main`; `uninstall` undoes it.
    """
    reader = _Reader(take_over, on_init)
    lowlevel = _seam(trio.lowlevel, wait_readable=reader.wait_readable)
    seam = _seam(trio, lowlevel=lowlevel, Lock=BargingLock, open_nursery=lambda: _OpenNursery(reader.buffers))
    pyfuse3.trio = seam  # type: ignore[attr-defined]
    return reader


def uninstall() -> None:
    """Give pyfuse3 its own trio back."""
    pyfuse3.trio = trio  # type: ignore[attr-defined]
    _answered.clear()
    BargingLock.current = None
