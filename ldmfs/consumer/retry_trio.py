"""A way to a device that outlives its provider's process, for trio's tasks."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from ..core.errors import HandleClosed, LdmError, QueueFull, RequestCancelled
from ..core.request import Reply, Request
from .device import About
from .name import as_error
from .retry import GONE, Outstanding, Patience, RetryingBase, open_anew


class Way(About, Protocol):
    """An open device, by whatever path."""

    async def request(self, request: Request) -> Reply: ...
    async def close(self) -> None: ...


class Retrying(RetryingBase[Way]):
    """The ways to one device, each opened when the provider of the one before has ended.

    `_opening` is held by the task that opens anew; the others wait for it, and find the new way.
    """

    _closed: trio.Event

    def __init__(self, open: Callable[[float], Awaitable[Way]], seconds: float) -> None:
        """Open nothing yet; `open` gets the time of trio's clock at which waiting for a provider is to end."""
        super().__init__(seconds, trio.current_time)
        self._open = open
        self._closed = trio.Event()
        self._opening = trio.Lock()
        self._scope = trio.CancelScope()

    async def open(self) -> Retrying:
        """Open the device.  Cancelled, it is as if never opened."""
        self._way = await self._opened(Patience(self._seconds, trio.current_time))
        return self

    async def request(self, request: Request) -> Reply:
        """Send a request, again and again while its provider ends.  Raises the last end when `seconds` are over.

        Cancelling stops that, and cancels the handler.
        """
        return await self._request(request, None)

    async def _request(self, request: Request, patience: Patience | None) -> Reply:
        while True:
            way, sent = self._way, trio.current_time()
            try:
                return await way.request(request)
            except LdmError as error:
                if not self._is_gone(way, error):
                    raise
                patience = self._patience(patience, sent)
                if (pause := patience.pause()) is None:
                    raise
                await self._pause(pause)
                await self._renew(way, patience)

    async def close(self) -> None:
        """Close the device, and give up what is being tried again."""
        self._closed.set()
        self._scope.cancel()
        await self._way.close()

    # -- the way

    async def _pause(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._closed.wait()
        if self._closed.is_set():
            raise HandleClosed("the device was closed while its provider was away")

    async def _renew(self, way: Way, patience: Patience) -> None:
        """Open the device anew, where `way` is at its end and no other task has done so."""
        async with self._opening:
            if self._way is not way or not open_anew(way):
                return
            new: Way | None = None
            with trio.CancelScope() as self._scope:
                if self._closed.is_set():
                    self._scope.cancel()
                new = await self._opened(patience)
            if new is None:
                raise HandleClosed("the device was closed while it was opened anew")
            self._way = new
            with contextlib.suppress(LdmError):  # what a file has to tell of a provider that is gone
                await way.close()
        if self._closed.is_set():
            await new.close()
            raise HandleClosed("the device was closed while it was opened anew")

    async def _opened(self, patience: Patience) -> Way:
        while True:
            try:
                return await self._open(patience.deadline)
            except GONE:
                if (pause := patience.pause()) is None:
                    raise
                await self._pause(pause)

    # -- completion handlers

    def _wait_for(self, each: Outstanding) -> None:
        trio.lowlevel.spawn_system_task(self._finish, each)

    def _put_off(self, way: Way, each: Outstanding, error: LdmError) -> None:
        trio.lowlevel.spawn_system_task(self._finish, each, way, error)

    async def _finish(self, each: Outstanding, way: Way | None = None, error: LdmError | None = None) -> None:
        """Bring a request to its end; an attempt over `way`, if there was one, has ended with `error`."""
        outcome: Reply | LdmError = RequestCancelled("the trio run ended")
        try:
            if way is None or error is None:
                outcome = await self.request(each.request)
            else:
                outcome = await self._again(each, way, error)
        except Exception as failure:
            outcome = as_error(failure)
        finally:
            each.handler(None, outcome)

    async def _again(self, each: Outstanding, way: Way, error: LdmError) -> Reply | LdmError:
        while True:
            patience = each.patience = self._patience(each.patience, each.sent)
            if (pause := patience.pause()) is None:
                return error
            await self._pause(pause)
            await self._renew(way, patience)
            each.sent = trio.current_time()
            try:
                return await self._request(each.request, patience)
            except QueueFull as full:  # as many as were outstanding may be again, if others let them
                way, error = self._way, full.with_traceback(None)
