"""The provider's side of the direct channel: a container's listening socket and its connections.

A connection is one consumer's process.  Its packets are received and answered in one go as long as there are any, and
only then is trio asked to wait.  When it ends, for whatever reason, its requests are cancelled and its consumers are
closed.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import trio

from ..core.blocks import ArenaExhausted
from ..core.channel import refuse_cycle
from ..core.device import Consumer, Execution, Kind, LogicalDevice, Peer
from ..core.dispatch import Dispatch, cancelled_error
from ..core.errors import (
    AccessDenied,
    InvalidRequest,
    LdmError,
    NotSupported,
    ProtocolError,
    ProviderDied,
    ProviderFailed,
    RequestCancelled,
    StaleHandle,
)
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
from ..core.wire import HEADER, Frames, Limit
from .idle import IdleWait
from .memory import Place, ReplyPlace, SharedArena

log = logging.getLogger("ldmfs.channel")

FAIR_TURNS = 64
"""Packets taken in a row before other tasks have their turn; a multiple of `ALONE_TURNS`."""

ALONE_TURNS = 16
"""Packets after which a consumer that waits for each reply is looked at again: has it begun to send several?"""

MAX_DESCRIPTORS = 8
"""Room for descriptors with a packet; MEMORY comes with one, and what is too many ends the connection."""

GIVE_UP_SECONDS = 1.0
"""How long, at a handover's deadline, handlers may take to end that are cancelled, and consumers to take replies."""

SO_PEERGROUPS = 59
"""Socket option that tells a peer's supplementary groups (`include/uapi/asm-generic/socket.h`)."""

MAX_GROUPS = 65536
"""Groups that one process can be in (`NGROUPS_MAX`)."""

_BLOCK, _INLINE, _NON_STANDARD = Kind.BLOCK, Execution.INLINE, RequestType.NON_STANDARD
_WRITING = frozenset(RequestType) - {RequestType.READ}

_libc = ctypes.CDLL(None)


async def serve(listener: socket.socket, registry: Registry, dispatch: Dispatch) -> None:
    """Take in connections on a listening `SOCK_SEQPACKET` socket until cancelled."""
    await Server(listener, registry, dispatch).run()


class Server:
    """What takes in connections on a listening `SOCK_SEQPACKET` socket, which stays the caller's, and those it has."""

    def __init__(self, listener: socket.socket, registry: Registry, dispatch: Dispatch) -> None:
        self._listener = listener
        self._registry = registry
        self._dispatch = dispatch
        self._accepting = trio.CancelScope()
        self._all_accepted = trio.Event()
        self._connections: set[Connection] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        listening = trio.socket.from_stdlib_socket(self._listener)
        async with trio.open_nursery() as nursery:
            with self._accepting:
                await self._accept(listening, nursery)
            self._all_accepted.set()
            await trio.sleep_forever()  # and serve the connections that there are

    async def _accept(self, listening: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            try:
                sock, _ = await listening.accept()
            except OSError as error:
                log.warning("a connection could not be taken: %s", error.strerror)
                await trio.sleep(0.1)  # out of descriptors, most likely: some will be given back
                continue
            end = socket.socket(fileno=sock.detach())
            end.setblocking(False)
            connection = Connection(end, self._registry, self._dispatch, nursery)
            self._connections.add(connection)
            nursery.start_soon(self._serve, connection)

    async def _serve(self, connection: Connection) -> None:
        await connection.run()
        await connection.ended.wait()
        self._connections.discard(connection)

    async def hand_over(self, deadline: float, others: trio.Event) -> None:
        """Answer what has come, until `deadline`, and end the connections: consumers go on with the next instance.

        What is outstanding may wait for requests that come on behalf of this container, over any connection, so these
        are taken until nothing is outstanding, on this path or, as `others` tells, on another one.  What still runs at
        the deadline fails with `ProviderDied`.
        """
        self._accepting.cancel()
        await self._all_accepted.wait()  # it may have one in hand
        with trio.move_on_at(deadline) as time:
            self._announce(inner=True)
            await others.wait()
            await self._all_idle()
            self._announce(inner=False)
            await self._all_idle()
        if time.cancelled_caught:
            self._announce(inner=False)
        async with trio.open_nursery() as nursery:
            for connection in self._connections:
                nursery.start_soon(connection.finish)

    def _announce(self, *, inner: bool) -> None:
        for connection in self._connections:
            connection.move(inner=inner)

    async def _all_idle(self) -> None:
        while busy := [connection for connection in self._connections if not connection.idle]:
            await busy[0].wait_idle()


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
        self._send_frame = sock.send
        self._registry = registry
        self._dispatch = dispatch
        self._nursery = nursery
        self._machine = ProviderConnection(registry.container)
        self._peer, self._groups = _credentials(sock)
        self._arenas: dict[int, SharedArena] = {}
        self._open_devices: dict[int, _OpenDevice] = {}
        self._cancels: dict[int, Callable[[], None]] = {}
        self._buffer = bytearray(Limit.MAX_FRAME + 1)  # a packet that fills it is too long, which the machine finds
        self._reader: trio.lowlevel.Task | None = None
        """The one task that reads; a task that has to wait for a handler leaves that to another one."""
        self._outbox: deque[bytes] = deque()
        self._flushed = trio.Event()
        """Set when the outbox is empty again; a new one whenever it fills."""
        self._wait = IdleWait(sock.fileno())
        self._idle: trio.Event | None = None
        self._ending: LdmError | None = None
        """What requests end with that are given up, as the container's time is over."""
        self.ended = trio.Event()

    async def run(self) -> None:
        """Read until the connection ends, and close what it has left open; or until another task reads."""
        me = self._reader = trio.lowlevel.current_task()
        try:
            await self._receive()
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
        for shared in self._arenas.values():
            shared.close()
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
            while self._outbox:
                await self._flushed.wait()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)  # it is read to its end
        await self.ended.wait()

    def _answered(self) -> None:
        if self._idle is not None and self._machine.idle:
            self._idle.set()

    # -- packets

    async def _receive(self) -> None:
        sock, machine, receive = self._socket, self._machine, self._socket.recv_into
        buffer, me, view = self._buffer, self._reader, memoryview(self._buffer)
        turns, alone, ready = 0, False, self._wait.ready
        while True:
            turns += 1
            if self._outbox:
                await self._flushed.wait()
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
                running = self._request(event)
                if running is not None:
                    await run_inline(running, self._hand_over)
                    if self._reader is not me:
                        return
            elif event is None:
                if machine.awaits_memory:
                    await self._receive_memory()
            elif type(event) is PeerFailed:
                return
            else:
                self._take(event)

    async def _receive_memory(self) -> None:
        """Receive one packet with its descriptors, and map the arena that it brings."""
        room = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
        while True:
            try:
                frame, ancillary, flags, _ = self._socket.recvmsg(HEADER.size + 1, room, socket.MSG_CMSG_CLOEXEC)
                break
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except ConnectionResetError:
                return
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        try:
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError("a packet has too many descriptors")
            event = self._machine.receive(frame, fds) if frame else None
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        if event is not None:
            self._take(event)

    def _send(self, frames: Frames) -> None:
        """Send now what the socket has room for; the rest goes before the next packet is received."""
        if not self._outbox:
            try:
                while frames:
                    self._send_frame(frames[0])
                    frames = frames[1:]
                return
            except BlockingIOError:
                self._flushed = trio.Event()
                self._nursery.start_soon(self._flush)
            except OSError:  # the consumer is gone, as the next receive will tell
                return
        self._outbox.extend(frames)

    async def _flush(self) -> None:
        """Send what is in the outbox, as its one task."""
        while self._outbox:
            try:
                self._socket.send(self._outbox[0])
                self._outbox.popleft()
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                except trio.ClosedResourceError:
                    self._outbox.clear()
            except OSError:
                self._outbox.clear()
        self._flushed.set()

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
                    self._arenas[event.arena] = SharedArena.attach(event.descriptor, event.size, event.blocks)
                except ProtocolError as error:
                    log.info("process %d: %s", self._peer.pid, error)
                    self._send(self._machine.arena_gone(event.arena))
            case ArenaGone():
                if shared := self._arenas.pop(event.arena, None):
                    shared.close()

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
        allowed = self._allowed(device)
        inline = device.request_execution is _INLINE and device.kind is not _BLOCK
        direct = allowed - {_NON_STANDARD} if inline else frozenset()
        self._open_devices[outcome.id] = _OpenDevice(outcome, allowed, direct)
        frames = self._machine.opened(
            event.id, outcome.id, kind=device.kind, size=device.size, accepts=allowed,
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
        if not self._allowed(device):
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

    def _request(self, event: RequestReceived) -> Coroutine[Any, Any, None] | None:
        """Answer a request, or return what does so."""
        opened = self._open_devices[event.consumer_id]
        request, consumer = event.request, opened.consumer
        try:
            if request.type in opened.direct and not event.blocks:  # the usual case, without detours
                reply = self._dispatch.request_inline(consumer, request)
                self._send(self._machine.replied(event.id, reply.data, reply.metadata))
                return None
            if request.type not in opened.types:
                raise self._refusal(consumer.device, request)
            if event.blocks:
                request = self._from_block(event)
            device = consumer.device
            if device.kind is _BLOCK:
                request = device.bounded(request)
            if request.type is _NON_STANDARD:
                request.object = _unmarshalled(device, request)
            if device.request_execution is _INLINE:
                self._answer(event, request, consumer, self._dispatch.request_inline(consumer, request))
                if event.blocks:
                    _release(request)
                return None
            scope = trio.CancelScope()
            ticket = self._dispatch.admit(consumer, scope.cancel)
        except LdmError as error:
            self._send(self._machine.failed(event.id, error))
            if event.blocks:
                _release(request)
            return None
        self._cancels[event.id] = scope.cancel
        return self._run_request(event, request, consumer, ticket, scope)

    async def _run_request(
        self, event: RequestReceived, request: Request, consumer: Consumer, ticket: int, scope: trio.CancelScope
    ) -> None:
        outcome: Reply | LdmError | None = None
        with scope:
            try:
                outcome = await self._dispatch.request(consumer, request, ticket)
            except LdmError as error:
                outcome = error
        if outcome is None:
            outcome = self._ending or cancelled_error(consumer)
        del self._cancels[event.id]
        if isinstance(outcome, LdmError):
            self._send(self._machine.failed(event.id, outcome))
        else:
            self._answer(event, request, consumer, outcome)
        self._answered()
        del outcome  # the error's traceback knows this frame, and this frame the request's memory
        if event.blocks:
            _release(request)

    def _from_block(self, event: RequestReceived) -> Request:
        shared = self._arenas.get(event.arena)
        if shared is None:
            raise ProtocolError(f"arena {event.arena} could not be mapped")
        taken = shared.arena.take(event.block, event.blocks, event.consumer_id, event.request.type)
        assert taken.header is not None
        request = taken.request(event.request.type, event.request.offset, event.request.length)
        request.place = Place(shared, taken, shared.arena.chain(taken), taken.header.input, request.data)
        return request

    def _answer(self, event: RequestReceived, request: Request, consumer: Consumer, reply: Reply) -> None:
        """Send a reply: in the block where the request came in one and the reply fits, else inline."""
        place: Place | None = request.place
        try:
            if request.type is _NON_STANDARD:
                reply = _marshalled(consumer.device, reply)
            if place is not None and event.blocks:
                with contextlib.suppress(ArenaExhausted):
                    where: ReplyPlace | None = reply.place
                    extent = where.data if where and where.shared is place.shared else place.extent_of(reply.data)
                    place.block.answer(reply, extent)
                    self._send(self._machine.replied_in_block(event.id))
                    return
            self._send(self._machine.replied(event.id, reply.data, reply.metadata))
        except LdmError as error:
            self._send(self._machine.failed(event.id, error))

    # -- access

    def _allowed(self, device: LogicalDevice) -> frozenset[RequestType]:
        """Return the types of requests that the peer may send: as the device's file would let it read and write."""
        rights = self._rights(device)
        allowed = (frozenset({RequestType.READ}) if rights & 4 else frozenset()) | (
            _WRITING if rights & 2 else frozenset()
        )
        return device.accepts & allowed

    @staticmethod
    def _refusal(device: LogicalDevice, request: Request) -> LdmError:
        if request.type in device.accepts:
            return AccessDenied(f"{device.name!r} takes no {request.type.name} requests from this consumer")
        return NotSupported(f"device {device.name!r} takes no {request.type.name} requests")

    def _rights(self, device: LogicalDevice) -> int:
        if self._peer.uid == 0:
            return 7
        if self._peer.uid == device.uid:
            return device.mode >> 6 & 7
        if device.gid == self._peer.gid or device.gid in self._groups:
            return device.mode >> 3 & 7
        return device.mode & 7


def _release(request: Request) -> None:
    """Let go of a request's data in shared memory: errors that a provider keeps may know the request for long."""
    if isinstance(request.data, memoryview):
        with contextlib.suppress(BufferError):
            request.data.release()


def _unmarshalled(device: LogicalDevice, request: Request) -> Any:
    if device.unmarshal is None:
        raise NotSupported(f"device {device.name!r} has no 'unmarshal' for NON_STANDARD requests of other containers")
    try:
        return device.unmarshal(bytes(request.data))
    except LdmError:
        raise
    except BaseException as error:  # whatever it is, it is no end of the container
        raise InvalidRequest(f"the request could not be unmarshalled: {type(error).__name__}: {error}") from None


def _marshalled(device: LogicalDevice, reply: Reply) -> Reply:
    if device.marshal is None:
        return reply
    try:
        return Reply(device.marshal(reply.object), reply.metadata)
    except LdmError:
        raise
    except BaseException as error:
        log.exception("device %s: its marshal raised", device.name)
        raise ProviderFailed(f"the reply of device {device.name!r} could not be marshalled: {error}") from None


def _credentials(sock: socket.socket) -> tuple[Peer, frozenset[int]]:
    """Return who is at the other end, as the kernel tells it, and the groups that it is in."""
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid, gid, 0, "channel"), _groups(sock)


def _groups(sock: socket.socket) -> frozenset[int]:
    """Return a peer's supplementary groups; not by `getsockopt` of Python, which has room for 256 of them only."""
    groups = (ctypes.c_uint32 * MAX_GROUPS)()
    size = ctypes.c_uint32(ctypes.sizeof(groups))
    if _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, groups, ctypes.byref(size)):
        return frozenset()
    return frozenset(groups[: size.value // 4])
