"""The supervisor's side of the control link with one instance of a container."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import trio

from ..container.control import Describe, Description, Failed, Link, Message, Ready, Stop

DESCRIBE_SECONDS = 2.0
"""How long a container may take to describe itself for the graph."""


class Conversation:
    """What is said to an instance and what it answers, until its end of the link is gone."""

    def __init__(self, link: Link, on_ready: Callable[[], None]) -> None:
        self.ready = trio.Event()
        self.failure = ""
        self.usage = False
        self._link = link
        self._on_ready = on_ready
        self._numbers = itertools.count(1)
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}

    async def run(self, first: Message | None = None) -> None:
        """Send `first`, then take what the instance says until the link ends."""
        with contextlib.suppress(trio.BrokenResourceError):
            if first is not None:
                await self._link.send(first)
            async for message in self._link:
                self._take(message)

    def _take(self, message: Message) -> None:
        if isinstance(message, Ready):
            self.ready.set()
            self._on_ready()
        elif isinstance(message, Failed):
            self.failure, self.usage = message.reason, message.usage
        elif isinstance(message, Description) and message.number in self._answers:
            self._answers[message.number].send_nowait(message.data)

    async def describe(self) -> dict[str, Any] | None:
        """Return `Registry.describe` of the instance, None when it does not answer in `DESCRIBE_SECONDS`."""
        if not self.ready.is_set():
            return None
        number = next(self._numbers)
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._answers[number] = send
        gone = trio.BrokenResourceError, trio.ClosedResourceError  # it has died; that may be known here, or not yet
        try:
            with trio.move_on_after(DESCRIBE_SECONDS), contextlib.suppress(*gone):
                await self._link.send(Describe(number))
                return await receive.receive()
        finally:
            del self._answers[number]
        return None

    async def stop(self) -> None:
        """Tell the instance to stop; it may be gone already."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._link.send(Stop())

    async def aclose(self) -> None:
        """Close the link."""
        await self._link.aclose()
