"""What a rule is applied to: a device, one path to it, and what is known of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, Protocol

import trio

from ..consumer.device import About
from ..consumer.name import DeviceName
from ..core.device import Kind
from ..core.request import Reply, Request, RequestType

Expected = bytes | Callable[[bytes], bool] | None


class Handle(About, Protocol):
    """A device that was opened."""

    async def send(self, request: Request) -> Reply: ...
    async def close(self) -> None: ...


Open = Callable[[str], Awaitable[Handle]]


class Way(NamedTuple):
    """One path to a device."""

    name: str
    open_named: Open
    consumers: Callable[[], int | None]
    at: DeviceName | None


class Subject(NamedTuple):
    """A device, one path to it, and what is known of it."""

    name: str
    path: str
    open_named: Open
    consumers: Callable[[], int | None]
    """How many consumers it has now; None where nobody tells."""
    others: int | None
    """How many it had before."""
    at: DeviceName | None
    """Where another process finds it."""
    kind: Kind
    size: int
    accepts: frozenset[RequestType]
    request: Request | None
    reply: Expected
    slow: Request | None
    writable: bool

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Handle]:
        """Open the device, and close it."""
        handle = await self.open_named(self.name)
        try:
            yield handle
        finally:
            await handle.close()

    async def ask(self, handle: Handle) -> bytes:
        """Send the sample request, check its reply and return it."""
        if self.request is None:
            return b""
        data = bytes((await handle.send(self.request)).data)
        if callable(self.reply):
            assert self.reply(data), f"the reply to the sample request is not what was expected: {data[:200]!r}"
        elif self.reply is not None:
            assert data == self.reply, f"the reply is {data[:200]!r}, not {self.reply[:200]!r}"
        return data

    async def only_others_are_left(self) -> None:
        """Wait for what another process does, or the kernel some time after the close of a file."""
        while self.consumers() != self.others:  # noqa: ASYNC110
            await trio.sleep(0.005)


Rule = Callable[[Subject], Awaitable[None]]
