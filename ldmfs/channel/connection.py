"""One connection of the direct channel: the provider's side of one consumer's process.

Its packets are received and answered in one go as long as there are any, and only then is trio asked to wait.  When it
ends, for whatever reason, its requests are cancelled and its consumers are closed.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import trio

from ..core.channel import refuse_cycle
from ..core.device import Consumer, Execution, Kind
from ..core.dispatch import Dispatch, cancelled_error
from ..core.errors import AccessDenied, LdmError, ProtocolError, ProviderDied, RequestCancelled, StaleHandle
from ..core.events import (
    ArenaGone,
    ArenaReceived,
    CancelRequested,
    CloseRequested,
    Greeted,
    OpenRequested,
    PeerFailed,
    RequestReceived,
)
from ..core.inline import run_inline
from ..core.provider_connection import ProviderConnection
from ..core.registry import Registry
from ..core.request import Reply, Request, RequestType
from ..core.wire import Limit
from .access import allowed, credentials, refusal
from .idle import IdleWait
from .marshalling import marshalled, unmarshalled
from .outbox import Outbox
from .peer_arenas import PeerArenas, answer, receive_memory, release

log = logging.getLogger("ldmfs.channel")

FAIR_TURNS = 64
"""Packets taken in a row before other tasks have their turn; a multiple of `ALONE_TURNS`."""

ALONE_TURNS = 16
"""Packets after which a consumer that waits for each reply is looked at again: has it begun to send several?"""

GIVE_UP_SECONDS = 1.0
"""How long, at a handover's deadline, handlers may take to end that are cancelled, and consumers to take replies."""

_BLOCK, _INLINE, _NON_STANDARD = Kind.BLOCK, Execution.INLINE, RequestType.NON_STANDARD


class _OpenDevice(msgspec.Struct):
    """What a consumer has open."""

    consumer: Consumer
    types: frozenset[RequestType]
    """The types of requests that it may send, decided when it opened the device, as for a file."""
    direct: frozenset[RequestType]
    """Those of them that need nothing but their handler, and no waiting for it."""


class Connection:
    """One connection of a consumer's process."""

    def __init__(self, sock: socket.socket, registry: Registry, dispatch: Dispatch, nursery: trio.Nursery) -> None:
        self._socket = sock
        self._registry = registry
        self._dispatch = dispatch
        self._nursery = nursery
        self._machine = ProviderConnection(registry.container)
        self._peer, self._groups = credentials(sock)
        self._arenas = PeerArenas()
        self._open_devices: dict[int, _OpenDevice] = {}
        self._cancels: dict[int, Callable[[], None]] = {}
        self._buffer = bytearray(Limit.MAX_FRAME + 1)  # a packet that fills it is too long, which the machine finds
        self._reader: trio.lowlevel.Task | None = None
        """The one task that reads; a task that has to wait for a handler leaves that to another one."""
        self._outbox = Outbox(sock, nursery)
        self._send = self._outbox.send
        self._wait = IdleWait(sock.fileno())
        self._idle: trio.Event | None = None
        self._ending: LdmError | None = None
        """What requests end with that are given up, as the container's time is over."""
        self.ended = trio.Event()

    async def run(self) -> None:
        """Read until the connection ends, and close what it has left open; or until another task reads."""
        me = self._reader = trio.lowlevel.current_task()
        with trio.CancelScope() as scope:
            try:
                await self._receive(scope)
            except ProtocolError as error:
                log.info("the connection of process %d ends: %s", self._peer.pid, error)
                with contextlib.suppress(OSError):
                    for frame in self._machine.fail(error):
                        self._socket.send(frame)
            finally:
                if self._reader is me:
                    await self._end()

    async def _end(self) -> None:
        lost = self._machine.lost()
        for id in lost.requests:
            if cancel := self._cancels.get(id):
                cancel()
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for consumer_id in lost.consumers:
                    nursery.start_soon(self._dispatch.close, self._open_devices.pop(consumer_id).consumer)
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._arenas.close()
        self._answered()
        self.ended.set()

    def _hand_over(self) -> None:
        """Let another task read: the one that does is about to wait for a handler."""
        self._reader = None
        self._nursery.start_soon(self.run)

    # -- the end of the container

    def move(self, *, inner: bool) -> None:
        """Take no more requests, and tell the consumer: see `core.wire`."""
        self._send(self._machine.moving(inner=inner))

    @property
    def idle(self) -> bool:
        """Whether all that was taken is answered."""
        return self._machine.idle

    async def wait_idle(self) -> None:
        """Wait until all that was taken is answered."""
        while not self._machine.idle:
            self._idle = trio.Event()
            await self._idle.wait()

    async def finish(self) -> None:
        """End the connection, which has been moved, and close its consumers; what is not answered yet is given up."""
        self._ending = ProviderDied("the container's process ended before the request was answered")
        for cancel in tuple(self._cancels.values()):
            cancel()
        with trio.move_on_after(GIVE_UP_SECONDS):
            await self.wait_idle()
        # Still reading: a close handler may close devices whose providers close devices of this connection.
        async with trio.open_nursery() as nursery:
            for device in tuple(self._open_devices.values()):
                nursery.start_soon(self._dispatch.close, device.consumer)
        with trio.move_on_after(GIVE_UP_SECONDS):
            while self._outbox.frames:
                await self._outbox.flushed.wait()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)  # it is read to its end
        await self.ended.wait()

    def _answered(self) -> None:
        if self._idle is not None and self._machine.idle:
            self._idle.set()

    # -- packets

    async def _receive(self, scope: trio.CancelScope) -> None:
        """Read; `scope` is what the request is cancelled by that this task answers, or comes to wait for.

        One for each request would cost as much as all else that is done for a small one.  While the task reads, nobody
        cancels it: a request that did not suspend was answered before anybody could, and behind another one it is done.
        """
        sock, machine, receive = self._socket, self._machine, self._socket.recv_into
        buffer, me, view, unsent = self._buffer, self._reader, memoryview(self._buffer), self._outbox.frames
        turns, alone, ready = 0, False, self._wait.ready
        while True:
            turns += 1
            if unsent:
                await self._outbox.flushed.wait()
            waits = alone and turns % ALONE_TURNS
            if waits:
                if not ready():
                    await trio.lowlevel.wait_readable(sock)
            elif not turns % FAIR_TURNS:
                await trio.lowlevel.checkpoint()
            try:
                size = receive(buffer)
            except BlockingIOError:
                alone = True
                continue
            except ConnectionResetError:
                return
            if not size:
                return
            if not waits:
                alone = False
            event = machine.receive(view[:size])
            if type(event) is RequestReceived:
                running = self._request(event, scope)
                if running is not None:
                    await run_inline(running, self._hand_over)
                    if self._reader is not me:
                        return
            elif event is None:
                if machine.awaits_memory:
                    self._take(await receive_memory(sock, machine))
            elif type(event) is PeerFailed:
                return
            else:
                self._take(event)

    # -- events

    def _take(self, event: object) -> None:
        match event:
            case Greeted():
                self._peer = msgspec.structs.replace(self._peer, container=event.container or None)
                self._send(self._machine.welcome())
            case OpenRequested():
                scope = trio.CancelScope()
                self._cancels[event.id] = scope.cancel
                self._nursery.start_soon(self._open, event, scope)
            case CancelRequested():
                if cancel := self._cancels.get(event.id):
                    cancel()
            case CloseRequested():
                self._nursery.start_soon(self._close, event)
            case ArenaReceived():
                try:
                    self._arenas.attach(event)
                except ProtocolError as error:
                    log.info("process %d: %s", self._peer.pid, error)
                    self._send(self._machine.arena_gone(event.arena))
            case ArenaGone():
                self._arenas.detach(event.arena)

    async def _open(self, event: OpenRequested, scope: trio.CancelScope) -> None:
        outcome: Consumer | LdmError | None = None
        with scope:
            try:
                outcome = await self._opened(event)
            except LdmError as error:
                outcome = error
        if outcome is None:
            outcome = self._ending or RequestCancelled(f"the open of {event.device!r} was cancelled")
        del self._cancels[event.id]
        if isinstance(outcome, LdmError):
            self._send(self._machine.failed(event.id, outcome))
            self._answered()
            return
        device = outcome.device
        types = allowed(device, self._peer, self._groups)
        inline = device.request_execution is _INLINE and device.kind is not _BLOCK
        direct = types - {_NON_STANDARD} if inline else frozenset()
        self._open_devices[outcome.id] = _OpenDevice(outcome, types, direct)
        frames = self._machine.opened(
            event.id, outcome.id, kind=device.kind, size=device.size, accepts=types,
            execution=device.request_execution,
        )  # fmt: skip
        self._send(frames)
        self._answered()
        if not frames:  # the connection ended meanwhile
            del self._open_devices[outcome.id]
            with trio.CancelScope(shield=True):
                await self._dispatch.close(outcome)

    async def _opened(self, event: OpenRequested) -> Consumer:
        refuse_cycle(self._registry.container, event.device, event.chain)
        device = self._registry.find(event.device)
        if not allowed(device, self._peer, self._groups):
            raise AccessDenied(f"user {self._peer.uid} may not use {event.device!r}")
        if event.again and device.adopt_handler is None:
            raise StaleHandle(f"device {event.device!r} keeps no consumers over an upgrade; open it anew")
        return await self._dispatch.open(device, msgspec.structs.replace(self._peer, chain=event.chain))

    async def _close(self, event: CloseRequested) -> None:
        consumer = self._open_devices.pop(event.consumer_id).consumer
        with trio.CancelScope(shield=True):
            await self._dispatch.close(consumer)
        await trio.lowlevel.checkpoint_if_cancelled()  # the container ends, and its requests with no answer
        self._send(self._machine.closed(event.id))
        self._answered()

    def _request(self, event: RequestReceived, scope: trio.CancelScope) -> Coroutine[Any, Any, None] | None:
        """Answer a request, or return what does so, in `scope`."""
        opened = self._open_devices[event.consumer_id]
        request, consumer = event.request, opened.consumer
        try:
            if request.type in opened.direct and not event.blocks:  # the usual case, without detours
                reply = self._dispatch.request_inline(consumer, request)
                self._send(self._machine.replied(event.id, reply.data, reply.metadata))
                return None
            if request.type not in opened.types:
                raise refusal(consumer.device, request)
            if event.blocks:
                request = self._arenas.request(event)
            device = consumer.device
            if device.kind is _BLOCK:
                request = device.bounded(request)
            if request.type is _NON_STANDARD:
                request.object = unmarshalled(device, request)
            if device.request_execution is _INLINE:
                self._answer(event, request, consumer, self._dispatch.request_inline(consumer, request))
                if event.blocks:
                    release(request)
                return None
            ticket = self._dispatch.admit(consumer, scope.cancel)
        except LdmError as error:
            self._send(self._machine.failed(event.id, error))
            if event.blocks:
                release(request)
            return None
        self._cancels[event.id] = scope.cancel
        return self._run_request(event, request, consumer, ticket, scope)

    async def _run_request(
        self, event: RequestReceived, request: Request, consumer: Consumer, ticket: int, scope: trio.CancelScope
    ) -> None:
        outcome: Reply | LdmError
        try:
            outcome = await self._dispatch.request(consumer, request, ticket)
        except LdmError as error:
            outcome = error
        except BaseException:
            if scope.cancel_called:  # else the container ends, and its requests with no answer
                self._done(event, request, consumer, self._ending or cancelled_error(consumer))
            raise
        self._done(event, request, consumer, outcome)
        del outcome  # the error's traceback knows this frame, and this frame the request's memory

    def _done(self, event: RequestReceived, request: Request, consumer: Consumer, outcome: Reply | LdmError) -> None:
        """Answer a request whose handler has ended."""
        del self._cancels[event.id]
        if isinstance(outcome, LdmError):
            self._send(self._machine.failed(event.id, outcome))
        else:
            self._answer(event, request, consumer, outcome)
        self._answered()
        if event.blocks:
            release(request)

    def _answer(self, event: RequestReceived, request: Request, consumer: Consumer, reply: Reply) -> None:
        """Send a reply: in the block where the request came in one and the reply fits, else inline."""
        try:
            if request.type is _NON_STANDARD:
                reply = marshalled(consumer.device, reply)
            if event.blocks and answer(request, reply):
                self._send(self._machine.replied_in_block(event.id))
            else:
                self._send(self._machine.replied(event.id, reply.data, reply.metadata))
        except LdmError as error:
            self._send(self._machine.failed(event.id, error))
