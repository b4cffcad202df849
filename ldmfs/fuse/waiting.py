"""Waits that a signal ends: the watch over requests of the file edge that have become old.

watch = Watch(nursery)
await watch.wait(event, lambda: signals.pending(tid))     # raises Interrupted
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ..core.dispatch import Event
from ..core.errors import Interrupted, LdmError
from .signals import Pending

OLD_SECONDS = 0.05
"""From this age on it is looked at whether a request's sender wants to leave."""

SLOW_SECONDS = 0.4
"""Between looks at a request that has been waiting for long."""


class KilledInWait(Interrupted):
    """The thread that waited is being killed; what it waited for is of no use to anyone."""


class Watch:
    """Looks after the waits of one mount, with one task that runs while there is any."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._waits: dict[_Wait, None] = {}
        self._looking = False

    async def wait(self, event: Event, pending: Callable[[], Pending]) -> None:
        """Wait until `event` is set.

        Raises `Interrupted`, or `KilledInWait`, when `pending` tells so, which is called in a worker thread from
        `OLD_SECONDS` on at growing intervals.
        """
        wait = _Wait(pending)
        if not self._looking:
            self._looking = True
            self._nursery.start_soon(self._look, name="ldmfs-watch")
        self._waits[wait] = None
        try:
            with wait.scope:
                await event.wait()
        finally:
            del self._waits[wait]
        if wait.ended is not None:
            raise wait.ended

    async def _look(self) -> None:
        while self._waits:
            await trio.sleep(OLD_SECONDS)
            now = trio.current_time()
            old = [wait for wait in self._waits if now >= wait.next_look]
            if old:
                await trio.to_thread.run_sync(_look_at, old)
            for wait in old:
                wait.next_look = now + min(2 * (now - wait.began), SLOW_SECONDS)
                if wait.seen is not Pending.NONE:
                    error = KilledInWait if wait.seen is Pending.FATAL else Interrupted
                    wait.ended = error("the caller has a signal pending")
                    wait.scope.cancel()
        self._looking = False


class _Wait:
    __slots__ = ("began", "ended", "next_look", "pending", "scope", "seen")

    def __init__(self, pending: Callable[[], Pending]) -> None:
        self.pending = pending
        self.scope = trio.CancelScope()
        self.began = trio.current_time()
        self.next_look = self.began + OLD_SECONDS
        self.seen = Pending.NONE
        self.ended: LdmError | None = None


def _look_at(waits: list[_Wait]) -> None:
    for wait in waits:
        wait.seen = wait.pending()
