"""The control link between the supervisor and a container: JSON messages, a line each, over a socket pair.

It carries the container's life and what the graph tells, never a request.  The supervisor's end may vanish at any
time: a container that has started goes on without it.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import trio

from ..fuse.unanswered import NOTHING, Unanswered
from .provider import PlugIn

MAX_LINE = 64 << 20
"""The longest message in bytes: a description of some hundred thousand consumers."""


MAX_JOIN = 4096
"""The longest first message of a container that is run by hand."""


class Join(msgspec.Struct, tag="join", frozen=True):
    """A container that is run by hand asks for its mount; the answer is `Start` or `Failed`."""

    name: str


class Start(msgspec.Struct, tag="start", frozen=True):
    """What a new container process is to be.  The first message."""

    name: str
    root: str
    plug_ins: tuple[PlugIn, ...]
    first_consumer_id: int = 1
    reissue: bool = False
    unanswered: Unanswered = NOTHING


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Close all consumers, stop the providers and exit."""


class HandOver(msgspec.Struct, tag="hand over", frozen=True):
    """Answer no further request, let those that run end within `seconds`, leave the open files to the next instance."""

    seconds: float


class Describe(msgspec.Struct, tag="describe", frozen=True):
    """Answer with a `Description` of the same number."""

    number: int


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The container's devices are there and it serves them."""


class HandedOver(msgspec.Struct, tag="handed over", frozen=True):
    """The container has nothing any more that the next instance needs, and exits."""


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The container could not start; `usage` says that its configuration is to blame."""

    reason: str
    usage: bool = False


class Description(msgspec.Struct, tag="description", frozen=True):
    """`Registry.describe` of the container."""

    number: int
    data: dict[str, Any]


Message = Join | Start | Stop | HandOver | Describe | Ready | HandedOver | Failed | Description

decode = msgspec.json.Decoder[Message](Message).decode


def encode(message: Message) -> bytes:
    """Return a message as its line."""
    return msgspec.json.encode(message) + b"\n"


class Link:
    """One end of a control link."""

    def __init__(self, end: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
        self._lock = trio.Lock()

    async def send(self, message: Message) -> None:
        """Send a message; raises `trio.BrokenResourceError` when the other end is gone."""
        async with self._lock:
            await self._stream.send_all(encode(message))

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield what the other end sends, until it is gone."""
        buffer = bytearray()
        try:
            async for part in self._stream:
                buffer += part
                while (end := buffer.find(b"\n")) >= 0:
                    line, buffer = bytes(buffer[:end]), buffer[end + 1 :]
                    yield decode(line)
                if len(buffer) > MAX_LINE:
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def aclose(self) -> None:
        """Close this end."""
        await self._stream.aclose()
