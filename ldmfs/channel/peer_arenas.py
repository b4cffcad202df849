"""The arenas that a consumer's process has brought: mapping them, and the requests and replies in their blocks."""

from __future__ import annotations

import array
import contextlib
import os
import socket

import trio

from ..core.errors import ProtocolError
from ..core.events import ArenaReceived, ProviderEvent, RequestReceived
from ..core.extents import ArenaExhausted
from ..core.provider_connection import ProviderConnection
from ..core.request import Reply, Request
from ..core.wire import HEADER
from .memory import Place, ReplyPlace, SharedArena

MAX_DESCRIPTORS = 8
"""Room for descriptors with a packet; MEMORY comes with one, and what is too many ends the connection."""


class PeerArenas:
    """The arenas of one connection, by the number that its consumer has given them."""

    def __init__(self) -> None:
        self._arenas: dict[int, SharedArena] = {}

    def attach(self, event: ArenaReceived) -> None:
        """Map an arena.  Raises `ProtocolError` where that cannot be."""
        self._arenas[event.arena] = SharedArena.attach(event.descriptor, event.size, event.blocks)

    def detach(self, arena: int) -> None:
        """Let go of an arena, which gets no more requests."""
        if shared := self._arenas.pop(arena, None):
            shared.close()

    def close(self) -> None:
        """Let go of all of them."""
        for shared in self._arenas.values():
            shared.close()

    def request(self, event: RequestReceived) -> Request:
        """Take a request from its block.  Raises `ProtocolError` for one that cannot be."""
        shared = self._arenas.get(event.arena)
        if shared is None:
            raise ProtocolError(f"arena {event.arena} could not be mapped")
        taken = shared.arena.take(event.block, event.blocks, event.consumer_id, event.request.type)
        assert taken.header is not None
        request = taken.request(event.request.type, event.request.offset, event.request.length)
        request.place = Place(shared, taken, shared.arena.chain(taken), taken.header.input, request.data)
        return request


def answer(request: Request, reply: Reply) -> bool:
    """Put a reply into the block that its request came in; tell whether it fits there."""
    place: Place | None = request.place
    if place is None:
        return False
    where: ReplyPlace | None = reply.place
    extent = where.data if where and where.shared is place.shared else place.extent_of(reply.data)
    try:
        place.block.answer(reply, extent)
    except ArenaExhausted:
        return False
    return True


def release(request: Request) -> None:
    """Let go of a request's data in shared memory: errors that a provider keeps may know the request for long."""
    if isinstance(request.data, memoryview):
        with contextlib.suppress(BufferError):
            request.data.release()


async def receive_memory(sock: socket.socket, machine: ProviderConnection) -> ProviderEvent | None:
    """Receive the packet that brings an arena's descriptor; None where the connection has ended.

    Raises `ProtocolError` for what the packet or its descriptors must not be.
    """
    frame, fds, complete = await _receive_descriptors(sock)
    event = None
    try:
        if not complete:
            raise ProtocolError("a packet has too many descriptors")
        event = machine.receive(frame, fds) if frame else None
    finally:
        if event is None:
            for fd in fds:
                os.close(fd)
    return event


async def _receive_descriptors(sock: socket.socket) -> tuple[bytes, array.array[int], bool]:
    """Receive one packet and its descriptors, and whether there was room for all of them."""
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
    while True:
        try:
            frame, ancillary, flags, _ = sock.recvmsg(HEADER.size + 1, room, socket.MSG_CMSG_CLOEXEC)
            break
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
        except ConnectionResetError:
            return b"", array.array("i"), True
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return frame, fds, not flags & socket.MSG_CTRUNC
