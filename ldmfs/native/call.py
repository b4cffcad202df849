"""Handlers in C that run for a consumer: in a worker thread, cancelled together with what they wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import trio


class Call:
    """One run of a handler: `status` is what it returned.

    `scopes` are those of the opens and requests that the provider makes on behalf of it.  A thread cannot be cut short,
    so that cancelling cancels these, and waits for the handler all the same.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.cancelled = False
        self.scopes: set[trio.CancelScope] = set()
        self._token = trio.lowlevel.current_trio_token()
        self._begun = threading.Lock()
        """Taken by the thread when it begins, or else by who cancels before."""
        self._returned = trio.Event()

    async def run(self, limiter: trio.CapacityLimiter, handler: Callable[..., int], *args: Any) -> int:
        """Run the handler and return its status.  Cancelled, it has not begun or has returned, as `status` tells."""
        try:
            await trio.to_thread.run_sync(self._in_thread, handler, args, limiter=limiter, abandon_on_cancel=True)
        except trio.Cancelled:
            if not self._begun.acquire(blocking=False):
                self.cancel()
                with trio.CancelScope(shield=True):
                    await self._wait()
            raise
        assert self.status is not None
        return self.status

    def cancel(self) -> None:
        """Cancel what the provider waits for on behalf of this call, also what it begins only now."""
        self.cancelled = True
        for scope in tuple(self.scopes):
            scope.cancel()

    def _in_thread(self, handler: Callable[..., int], args: tuple[Any, ...]) -> None:
        if not self._begun.acquire(blocking=False):
            return
        self.status = handler(*args)
        if self.cancelled:  # set before `status` is looked at: one of the two sides sees the other's
            self._token.run_sync_soon(self._returned.set)

    async def _wait(self) -> None:
        if self.status is None:
            await self._returned.wait()
