"""Peers that speak the protocol badly, or not at all."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import trio

from ldmfs.channel.address import address, listen
from ldmfs.channel.memory import SharedArena
from ldmfs.consumer.tree import channel_socket
from ldmfs.core.consumer_connection import ConsumerConnection
from ldmfs.core.device import Execution, Kind
from ldmfs.core.events import ArenaReceived, Failed, Opened, OpenRequested, Replied
from ldmfs.core.provider_connection import ProviderConnection
from ldmfs.core.request import Request, RequestType
from ldmfs.core.wire import FrameKind, Frames, Limit

from .served import Served

CALL = RequestType.CALL


class RawPeer:
    """A consumer's end of a connection, with the socket in the hands of the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = trio.socket.from_stdlib_socket(sock)
        self.machine = ConsumerConnection()
        self.consumer_id = 0

    async def send(self, *frames: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Send packets; the descriptors go with MEMORY, or else with the first."""
        sharing = next((frame for frame in frames if frame[:1] == bytes([FrameKind.MEMORY])), frames[0])
        for frame in frames:
            fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            await self.socket.sendmsg([frame], fds if descriptors and frame is sharing else [])

    async def receive(self) -> Any:
        """Return the next event."""
        while True:
            packet = await self.socket.recv(Limit.MAX_FRAME)
            assert packet, "the connection ended"
            if (event := self.machine.receive(packet)) is not None:
                return event

    async def greet(self) -> RawPeer:
        await self.send(*self.machine.hello())
        await self.receive()
        return self

    async def open(self, device: str = "d") -> RawPeer:
        await self.send(*self.machine.open(device)[1])
        opened = await self.receive()
        assert isinstance(opened, Opened)
        self.consumer_id = opened.consumer_id
        return self

    async def ended(self) -> bytes:
        """Wait for the end of the connection; return the last packet before it."""
        last = b""
        with contextlib.suppress(ConnectionResetError):
            while packet := await self.socket.recv(Limit.MAX_FRAME):
                last = packet
        return last

    async def works(self) -> bool:
        """Tell whether a request is answered as it should be."""
        await self.send(*self.machine.request(self.consumer_id, CALL, b"hello")[1])
        event = await self.receive()
        return isinstance(event, Replied) and event.reply.data == b"HELLO"

    async def share(self, blocks: int = 4, size: int = 1 << 20) -> tuple[SharedArena, int]:
        """Make an arena and tell the provider."""
        shared = SharedArena.create(size, blocks)
        arena, frames = self.machine.arena(size, blocks)
        await self.send(*frames, descriptors=(shared.fd,))
        return shared, arena

    def in_block(self, arena: int, block: int = 0, blocks: int = 1) -> Frames:
        """Return the frame of a CALL in a block."""
        return self.machine.request(self.consumer_id, CALL, arena=arena, block=block, blocks=blocks)[1]

    async def fails(self) -> int:
        """Return the errno that the next answer has."""
        event = await self.receive()
        assert isinstance(event, Failed), event
        return event.error.errno


@contextlib.asynccontextmanager
async def raw(box: Served) -> AsyncIterator[RawPeer]:
    """Connect."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with address(box.socket) as at:
        sock.connect(at)
    peer = RawPeer(sock)
    try:
        yield peer
    finally:
        peer.socket.close()


@contextlib.asynccontextmanager
async def user(box: Served, device: str = "d") -> AsyncIterator[RawPeer]:
    """Connect, greet, open a device."""
    async with raw(box) as peer:
        await peer.greet()
        yield await peer.open(device)


@contextlib.contextmanager
def closing(fd: int) -> Any:
    """Close a descriptor at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def call(data: bytes) -> Request:
    return Request(CALL, data)


class RawProvider:
    """A provider's end of a connection, with the socket in the hands of the test."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.socket = sock
        self.machine = ProviderConnection("box")
        self.arenas: list[SharedArena] = []

    async def send(self, *frames: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Send packets, the first with descriptors."""
        for frame in frames:
            fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            await self.socket.sendmsg([frame], fds)
            descriptors = ()

    async def receive(self) -> Any:
        """Return the next event; of an arena, which is mapped, the one behind it."""
        while True:
            packet, ancillary, _, _ = await self.socket.recvmsg(Limit.MAX_FRAME, socket.CMSG_SPACE(64))
            assert packet, "the connection ended"
            fds = [int.from_bytes(data[:4], "little") for _, _, data in ancillary]
            event = self.machine.receive(packet, fds)
            if isinstance(event, ArenaReceived):
                self.arenas.append(SharedArena.attach(event.descriptor, event.size, event.blocks))
            elif event is not None:
                return event

    async def greet(self) -> RawProvider:
        await self.receive()
        await self.send(*self.machine.welcome())
        return self

    async def opens(self) -> int:
        """Receive an open; return its id."""
        event = await self.receive()
        assert isinstance(event, OpenRequested)
        return event.id

    def opened(self, id: int, consumer_id: int = 1) -> Frames:
        """Return the frame that answers an open."""
        return self.machine.opened(
            id, consumer_id, kind=Kind.MESSAGE, size=0, accepts=frozenset(RequestType), execution=Execution.ASYNC
        )

    async def ended(self) -> bytes:
        """Wait for the end of the connection; return the last packet before it."""
        last = b""
        with contextlib.suppress(ConnectionResetError):
            while packet := await self.socket.recv(Limit.MAX_FRAME):
                last = packet
        return last

    def close(self) -> None:
        """Close the connection, as a process does that ends."""
        self.socket.close()
        for shared in self.arenas:
            shared.close()


class RawContainer:
    """A container whose providers are `RawProvider`s."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = trio.socket.from_stdlib_socket(listener)
        self._connections: list[RawProvider] = []

    async def accept(self) -> RawProvider:
        """Take in the next connection."""
        self._connections.append(RawProvider((await self._listener.accept())[0]))
        return self._connections[-1]

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.close()


@contextlib.contextmanager
def raw_container(root: Path, name: str = "box") -> Iterator[RawContainer]:
    """Listen for consumers."""
    path = channel_socket(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with listen(path) as listener:
        container = RawContainer(listener)
        try:
            yield container
        finally:
            container.close()
