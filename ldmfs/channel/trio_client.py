"""The client for trio's tasks: the same as the blocking one, with a task that waits in the place of the thread."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from ..core.errors import LdmError, NotServed
from ..core.events import Limits, Opened
from ..core.request import Reply, Request
from ..core.wire import Frames
from .address import address
from .blocking import Completion, Prepare, run_handler
from .client import Client, Waiter, raise_error
from .memory import SharedArena

FAIR_TURNS = 64
"""Packets read in a row before other tasks have their turn."""


async def connect(path: Path) -> socket.socket:
    """Connect to a container's socket.  Raises `NotServed` where nobody listens, `OSError` otherwise."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with address(path) as at:
            await trio.socket.from_stdlib_socket(sock).connect(at)
    except ConnectionRefusedError:
        sock.close()
        raise NotServed(f"nobody serves {path.name}") from None
    except BaseException:
        sock.close()
        raise
    return sock


class _Client(Client):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._outbox: deque[tuple[bytes, list[SharedArena]]] = deque()

    def leave(self, frames: Frames) -> None:
        self.send(frames, [])

    def send(self, frames: Frames, arenas: list[SharedArena]) -> None:
        """Send frames: now, or when the socket has room, in a task that no caller's cancellation cuts short."""
        if not self._outbox:
            frames = frames[self.send_now(frames, arenas) :]
        if frames and not self.lost:
            if not self._outbox:
                trio.lowlevel.spawn_system_task(self._flush)
            self._outbox.extend((frame, arenas if place == 0 else []) for place, frame in enumerate(frames))

    async def _flush(self) -> None:
        while self._outbox and not self.lost:
            frame, arenas = self._outbox[0]
            if self.send_now((frame,), arenas):
                self._outbox.popleft()
            else:
                with contextlib.suppress(OSError, trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self.socket)
        self._outbox.clear()


class TrioClient:
    """A connection to one container, for the tasks of one trio run."""

    def __init__(self, sock: socket.socket, own_container: str = "", limits: Limits | None = None) -> None:
        sock.setblocking(False)
        self._client = _Client(sock, own_container, limits)
        self._leading = False
        self._parked: dict[trio.Event, None] = {}
        self._handlers = 0
        self._turns = 0

    @property
    def lost(self) -> bool:
        """Whether the connection is at its end, and a new one is to be made."""
        return self._client.lost

    async def greet(self) -> None:
        """Begin the connection; before anything else.  Raises `NotServed` when it comes to nothing."""
        self._client.send(self._client.machine.hello(), [])
        await self._lead(lambda: self._client.greeted or self._client.lost)
        if self._client.lost:
            raise NotServed("the container went away while it was greeted")

    async def open(self, device: str, chain: tuple[str, ...]) -> Opened:
        """Open a device; raises what the provider refuses it with.  Cancelled, it is as if never opened."""
        opened: Opened = await self._call(lambda waiter: (*self._client.open(device, chain, waiter), []))
        return opened

    async def close(self, consumer_id: int) -> None:
        """Close a device; returns when its close handler has run, or the provider is gone.  Not to be cancelled."""
        with contextlib.suppress(LdmError), trio.CancelScope(shield=True):
            await self._call(lambda waiter: (*self._client.close(consumer_id, waiter), []))

    async def request(self, consumer_id: int, device: str, request: Request, blocks: int) -> Reply:
        """Send a request and wait for the reply; raises its error.  Cancelling cancels the handler."""
        client = self._client
        reply: Reply = await self._call(lambda waiter: client.request(consumer_id, device, request, waiter, blocks))
        return reply

    def request_soon(
        self, consumer_id: int, device: str, request: Request, blocks: int, handler: Completion, context: Any
    ) -> None:
        """Send a request; `handler(context, reply or error)` is run once, by a task of the connection.

        Raises, and does not run the handler, when the request is refused at the entrance.
        """

        def completed(waiter: Waiter) -> None:
            self._handlers -= 1
            run_handler(handler, context, waiter.outcome)

        _, frames, arenas = self._client.request(consumer_id, device, request, Waiter(completed), blocks)
        self._handlers += 1
        if self._handlers == 1:
            trio.lowlevel.spawn_system_task(self._lead, lambda: not self._handlers)
        self._client.send(frames, arenas)

    def aclose(self) -> None:
        """End the connection: whatever is outstanding ends with an error."""
        self._client.lose(NotServed("the connection was closed"))
        trio.lowlevel.notify_closing(self._client.socket)
        self._client.socket.close()
        self._wake_all()

    def detach(self) -> None:
        """Forget the connection, in a process that was forked."""
        self._client.socket.close()

    async def _call(self, prepare: Prepare) -> Any:
        waiter = Waiter(self._wake)
        id, frames, arenas = prepare(waiter)
        self._client.send(frames, arenas)
        try:
            await self._lead(lambda: waiter.outcome is not None)
        except BaseException:
            with contextlib.suppress(ValueError):
                self._client.send(self._client.machine.cancel(id), [])
            raise
        assert waiter.outcome is not None
        return raise_error(waiter.outcome)

    def _wake(self, _waiter: Waiter) -> None:
        if self._parked:
            self._wake_all()

    def _wake_all(self) -> None:
        for event in self._parked:
            event.set()

    async def _lead(self, enough: Callable[[], bool]) -> None:
        """Return when `enough`, reading the socket meanwhile if nobody else does."""
        while not enough():
            if not self._leading:
                self._leading = True
                try:
                    await self._read(enough)
                finally:
                    self._leading = False
                    self._wake_all()
                return
            event = trio.Event()
            self._parked[event] = None
            try:
                await event.wait()
            finally:
                del self._parked[event]

    async def _read(self, enough: Callable[[], bool]) -> None:
        client = self._client
        while not enough():
            self._turns += 1
            size = client.receive() if self._turns % FAIR_TURNS else -1
            if size < 0:
                try:
                    await trio.lowlevel.wait_readable(client.socket)
                except (OSError, trio.ClosedResourceError):
                    size = 0
                else:
                    continue
            client.take(size)
