"""The client for trio's tasks: the same as the blocking one, with a task that waits in the place of the thread."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from ..core.errors import LdmError, NotServed
from ..core.events import Limits, Opened
from ..core.request import Reply, Request
from ..core.wire import Frames
from .address import connecting
from .client import Client
from .completion_handlers import Completion, run_handler
from .idle import IdleWait
from .memory import SharedArena
from .move import Move
from .waiter import Waiter, raise_error

FAIR_TURNS = 64
"""Packets read in a row before other tasks have their turn."""


async def connect(path: Path) -> socket.socket:
    """Connect to a container's socket.  Raises `NotServed` where nobody listens, `OSError` otherwise."""
    with connecting(path) as (sock, at):
        await trio.socket.from_stdlib_socket(sock).connect(at)
    return sock


class _Client(Client):
    _pushing = False

    def lose(self, error: LdmError) -> None:
        """End the connection, and close the socket for whoever waits for it."""
        super().lose(error)
        self._close_socket()

    def _go_away(self, move: Move) -> None:
        super()._go_away(move)
        self._close_socket()

    def _close_socket(self) -> None:
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    def send(self, frames: Frames, shared: SharedArena | None = None) -> None:
        """Send frames: now, or when the socket has room, in a task that no caller's cancellation cuts short."""
        super().send(frames, shared)
        if self.outbox and not self._pushing:
            self._pushing = True
            trio.lowlevel.spawn_system_task(self._push)

    async def _push(self) -> None:
        try:
            while self.outbox:
                with contextlib.suppress(OSError, trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self.socket)
                self.flush()
        finally:
            self._pushing = False


class TrioClient:
    """A connection to one container, for the tasks of one trio run."""

    def __init__(
        self, sock: socket.socket, own_container: str = "", limits: Limits | None = None, path: Path | None = None
    ) -> None:
        """Begin with a connection; `path` is where another one can be made, to a provider that has moved."""
        sock.setblocking(False)
        self._path = path
        self._client = _Client(sock, own_container, limits)
        self._wait = IdleWait(sock.fileno())
        self._leading = False
        self._parked: dict[Waiter, trio.Event] = {}
        self._expected = 0
        self._due: Waiter | None = None
        self._turns = 0

    @property
    def lost(self) -> bool:
        """Whether the connection is at its end, and a new one is to be made."""
        return self._client.lost

    def is_refused(self, consumer_id: int) -> bool:
        """Tell whether a device was refused by a provider that has moved, so that it has to be opened anew."""
        return self._client.is_refused(consumer_id)

    def alive(self) -> bool:
        """Tell whether the provider's process is there, by looking, which `lost` does not."""
        return self._client.alive()

    async def greet(self) -> None:
        """Begin the connection; before anything else.  Raises `NotServed` when it comes to nothing."""
        try:
            await self._call(self._client.greet)
        except LdmError as error:
            raise NotServed(f"the container went away while it was greeted: {error}") from None

    async def open(self, device: str, chain: tuple[str, ...]) -> Opened:
        """Open a device; raises what the provider refuses it with.  Cancelled, it is as if never opened."""
        opened: Opened = await self._call(self._client.open, device, chain)
        return opened

    async def close(self, consumer_id: int) -> None:
        """Close a device; returns when its close handler has run, or the provider is gone.  Not to be cancelled."""
        with contextlib.suppress(LdmError), trio.CancelScope(shield=True):
            await self._call(self._client.close, consumer_id)

    async def request(self, consumer_id: int, device: str, request: Request, blocks: int) -> Reply:
        """Send a request and wait for the reply; raises its error.  Cancelling cancels the handler."""
        reply: Reply = await self._call(self._client.request, consumer_id, device, blocks, request)
        return reply

    def request_soon(
        self, consumer_id: int, device: str, request: Request, blocks: int, handler: Completion, context: Any
    ) -> None:
        """Send a request; `handler(context, reply or error)` is run once, by a task of the connection.

        Raises, and does not run the handler, when the request is refused at the entrance.
        """

        def completed(waiter: Waiter) -> None:
            assert waiter.outcome is not None
            self._expected -= 1
            if self._due is not None:
                self._due.end(waiter.outcome)
            run_handler(handler, context, waiter.outcome)

        frames = self._client.request(consumer_id, device, blocks, request, Waiter(completed))
        self._expected += 1
        if self._expected == 1 and self._due is None:
            self._due = Waiter()
            trio.lowlevel.spawn_system_task(self._complete)
        self._client.send(frames)

    def aclose(self) -> None:
        """End the connection: whatever is outstanding ends with an error."""
        self._client.lose(NotServed("the connection was closed"))

    async def _call(self, prepare: Callable[..., Frames], *args: Any) -> Any:
        waiter, client = Waiter(), self._client
        frames = prepare(*args, waiter)
        try:
            client.send(frames)
            await (self._follow(waiter) if self._leading else self._lead(waiter, waits=True))
        except BaseException:
            with contextlib.suppress(ValueError):
                client.cancel(waiter)
            if prepare == client.open and waiter.outcome is None:  # it may be open by now, and is to be closed then
                trio.lowlevel.spawn_system_task(self._follow, waiter)
            raise
        assert waiter.outcome is not None
        try:
            return raise_error(waiter.outcome)
        finally:
            del waiter

    async def _complete(self) -> None:
        """Read for the completion handlers until none is outstanding."""
        try:
            while self._expected:
                due = self._due = Waiter()
                await self._follow(due)
        finally:
            self._due = None

    async def _follow(self, waiter: Waiter) -> None:
        """Return when the waiter has its outcome, reading the socket when nobody else does any more."""
        while waiter.outcome is None:
            if not self._leading:
                await self._lead(waiter)
                return
            waiter.done = self._wake
            event = self._parked[waiter] = trio.Event()
            try:
                await event.wait()
            finally:
                del self._parked[waiter]
                self._hand_on()

    def _wake(self, waiter: Waiter) -> None:
        if (event := self._parked.get(waiter)) is not None:
            event.set()

    def _hand_on(self) -> None:
        """Wake one of those who wait, where nobody reads the socket."""
        if not self._leading and self._parked:
            next(iter(self._parked.values())).set()

    async def _lead(self, waiter: Waiter, *, waits: bool = False) -> None:
        """Read the socket until the waiter has its outcome; `waits` where the answer cannot be there yet."""
        client = self._client
        self._leading = True
        try:
            while waiter.outcome is None:
                if client.away:
                    await self._reconnect()
                    continue
                self._turns += 1
                if not self._turns % FAIR_TURNS:
                    await trio.lowlevel.checkpoint()
                size = await self._waited() if waits else client.receive()
                waits = size < 0
                if waits:
                    continue
                client.take(size)
                if not size and not client.away:
                    return
        finally:
            self._leading = False
            self._hand_on()

    async def _waited(self) -> int:
        """Wait for a packet and receive it, as `Client.receive`."""
        client = self._client
        if not self._wait.ready() and not client.lost:
            try:
                await trio.lowlevel.wait_readable(client.socket)
            except (OSError, trio.ClosedResourceError):
                return 0
        return client.receive()

    async def _reconnect(self) -> None:
        """Go on with the process that has taken the provider's place, or end the connection where there is none."""
        client = self._client
        try:
            if self._path is None:
                raise NotServed("the provider has moved")
            sock = await connect(self._path)
        except LdmError as error:
            client.lose(error)
        except OSError as error:
            client.lose(NotServed(f"the provider has moved: {error.strerror}"))
        else:
            if client.away:
                sock.setblocking(False)
                client.resume(sock)
                self._wait = IdleWait(sock.fileno())
            else:  # it was closed meanwhile
                sock.close()
