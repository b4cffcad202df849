"""The consumer's machine of the direct channel: see `channel` for the theory of operation."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from .blocks import check_sizes
from .channel import Connection, Header, device_of, error_of, is_inner, kind_name
from .device import check_name
from .errors import (
    DeviceLoop,
    HandleClosed,
    InvalidRequest,
    LdmError,
    NotServed,
    ProtocolError,
    ProviderDied,
    QueueFull,
)
from .events import (
    LIMITS,
    ArenaGone,
    Closed,
    ConsumerEvent,
    Failed,
    Greeted,
    Limits,
    Moving,
    Opened,
    Released,
    Replied,
    State,
)
from .request import Reply
from .wire import (
    AGAIN,
    CLOSE,
    IN_BLOCK,
    INNER,
    MAX_INLINE,
    OPEN,
    REPLY,
    REQUEST,
    TYPES,
    Buffer,
    FrameKind,
    Frames,
    Limit,
    as_bytes,
    cut,
    encode,
    pack,
)

_READY, _CLOSED = State.READY, State.CLOSED


class ConsumerConnection(Connection[ConsumerEvent]):
    """The consumer's side of a connection.

    `context` is whatever the edge wants to have back with the event that ends the id.
    """

    def __init__(self, container: str = "", limits: Limits = LIMITS) -> None:
        super().__init__(container, limits)
        self._open: set[int] = set()
        self._outstanding: dict[int, tuple[int, int, int, Any]] = {}
        """By id: kind of the frame that was sent, consumer id, number of blocks, context."""
        self._cancelled: dict[int, tuple[int, int, int, Any]] = {}
        """The same of those that have ended here, while the provider has not answered them."""
        self._inner: set[int] = set()
        """Consumers on behalf of the provider's own container."""
        self._inner_opens: set[int] = set()
        self._takes_inner = False
        self._provider = ""
        """The name of its container."""
        self._max_outstanding = 0
        self._next_id = 1
        self._next_arena = 1

    def hello(self) -> Frames:
        """Begin the connection."""
        return self._greeting(FrameKind.HELLO, State.GREETING)

    @property
    def is_moving(self) -> bool:
        """Whether the provider has announced that another process takes its place."""
        return self._ready is State.MOVING

    def takes(self, consumer_id: int) -> bool:
        """Tell whether requests of a consumer are to be sent over this connection, and not over the next one."""
        return self._ready is _READY or (self._takes_inner and consumer_id in self._inner)

    def takes_open(self, chain: Sequence[str]) -> bool:
        """Tell the same of an open."""
        return self._ready is _READY or (self._takes_inner and is_inner(self._provider, chain))

    def open(
        self, device: str, chain: Iterable[str] = (), context: Any = None, *, again: bool = False
    ) -> tuple[int, Frames]:
        """Open a device; `chain` are the devices, as `container/device`, that a request will have passed.

        `again` says that it was open over another connection, which has moved.

        Raises `QueueFull`, `InvalidRequest` or `NameTooLong` for the name, `DeviceLoop` for a chain that is too long,
        `NotServed` or `ProviderDied` where there is no connection yet, or no more.
        """
        check_name(device)
        names = tuple(chain)
        if self.is_moving and not self.takes_open(names):
            raise NotServed("the provider's process is about to end")
        if len(names) > Limit.MAX_CHAIN:
            raise DeviceLoop(f"a chain of {len(names)} devices is longer than {Limit.MAX_CHAIN}")
        self._check_ready()
        self._check_room()
        if len(self._open) + len(self._outstanding) + len(self._cancelled) >= Limit.MAX_CONSUMERS:
            raise QueueFull(f"{Limit.MAX_CONSUMERS} consumers over one connection are as many as may be")
        metadata = "\0".join(names).encode()
        id = self._enter_id(FrameKind.OPEN, 0, context)
        if is_inner(self._provider, names):
            self._inner_opens.add(id)
        return id, encode(FrameKind.OPEN, device.encode(), id=id, metadata=metadata, flags=AGAIN if again else 0)

    def request(
        self, consumer_id: int, type: int, data: Buffer = b"", metadata: bytes = b"", offset: int = 0, length: int = 0,
        context: Any = None, *, arena: int = 0, block: int = 0, blocks: int = 0,
    ) -> tuple[int, Frames]:  # fmt: skip
        """Send a request: inline, or with `blocks` in parameter block `block`, which was filled, of `arena`.

        Raises `QueueFull`, `HandleClosed` or `ProviderDied` for the consumer id, `MessageTooLong`, `InvalidRequest`.
        """
        if consumer_id not in self._open or self.state is not _READY:
            self._check_open(consumer_id)
        if len(self._outstanding) + len(self._cancelled) >= self._max_outstanding:
            self._check_room()
        if not isinstance(data, bytes):
            data = as_bytes(data)
        if blocks:
            self._check_location(arena, block + blocks, len(data) + len(metadata))
        data_size, metadata_size, id = len(data), len(metadata), self._next_id
        long = data_size + metadata_size > MAX_INLINE
        if long or metadata_size:
            self._check_size(data_size + metadata_size, metadata_size)
        try:
            header = pack(REQUEST, type, IN_BLOCK if blocks else 0, 0, id, consumer_id, offset, length, data_size,
                          metadata_size, arena, block, blocks)  # fmt: skip
        except struct.error as error:
            raise InvalidRequest(f"a number of the request is out of range: {error}") from None
        if (offset | length) < 0 or type not in TYPES:
            raise InvalidRequest(f"there is no request of type {type} with offset {offset} and length {length}")
        self._next_id = id + 1
        self._outstanding[id] = (REQUEST, consumer_id, blocks, context)
        if long:
            return id, cut(header, id, data, metadata)
        return id, ((header + data + metadata) if metadata_size else header + data,)

    def close(self, consumer_id: int, context: Any = None) -> tuple[int, Frames]:
        """Close a device: the provider cancels the consumer's requests, runs the close handler and answers.

        Raises `HandleClosed` or `ProviderDied`; never refused because of what is outstanding.
        """
        if consumer_id not in self._open or self.state is _CLOSED:
            raise self._not_open(consumer_id)
        self._open.remove(consumer_id)
        self._inner.discard(consumer_id)
        id = self._enter_id(FrameKind.CLOSE, consumer_id, context)
        return id, encode(FrameKind.CLOSE, id=id, consumer_id=consumer_id)

    def cancel(self, id: int) -> Frames:
        """End an open or a request here and now, and ask the provider to stop; no frames where it has ended already.

        Raises `ValueError` for the id of a close, which cannot be cancelled.
        """
        pending = self._outstanding.get(id)
        if pending is None:
            return ()
        if pending[0] == CLOSE:
            raise ValueError("a close cannot be cancelled")
        self._cancelled[id] = self._outstanding.pop(id)
        return () if self.state is _CLOSED else encode(FrameKind.CANCEL, id=id)

    def arena(self, size: int, blocks: int) -> tuple[int, Frames]:
        """Make an arena known; the last frame is sent with its descriptor.  Raises `QueueFull` for one too many."""
        self._check_ready()
        check_sizes(size, blocks)
        if len(self._arenas) >= min(self.peer.max_arenas, self.limits.max_arenas):
            raise QueueFull(f"{len(self._arenas)} arenas over one connection are as many as may be")
        arena, self._next_arena = self._next_arena, self._next_arena + 1
        self._arenas[arena] = blocks
        about = encode(FrameKind.ARENA, arena=arena, length=size, blocks=blocks)
        return arena, about + encode(FrameKind.MEMORY, arena=arena)

    def arena_gone(self, arena: int) -> Frames:
        """Withdraw an arena: no request will come in it any more."""
        del self._arenas[arena]
        return () if self.state is _CLOSED else encode(FrameKind.ARENA_GONE, arena=arena)

    def moved(self) -> tuple[list[Any], list[Any], list[Any]]:
        """End a connection that was to move; return contexts: of what ends by `ProviderDied`, of closes, of `Released`.

        A close has come to its end, since the connection has.
        """
        unanswered = [pending[3] for pending in self._outstanding.values() if pending[0] != CLOSE]
        closed = [pending[3] for pending in self._outstanding.values() if pending[0] == CLOSE]
        released = [pending[3] for pending in self._cancelled.values()]
        self.lost()
        return unanswered, closed, released

    def lost(self) -> dict[int, Any]:
        """End the connection; return the ids that end with it, by `ProviderDied`, with their contexts.

        The provider's process may live on and write into blocks: the arenas that it has are not to be used again.
        """
        ended = {id: pending[3] for id, pending in self._outstanding.items()}
        self._outstanding.clear()
        self._cancelled.clear()
        self._open.clear()
        self._enter(_CLOSED)
        return ended

    def _enter_id(self, kind: int, consumer_id: int, context: Any) -> int:
        id, self._next_id = self._next_id, self._next_id + 1
        self._outstanding[id] = (int(kind), consumer_id, 0, context)
        return id

    def _check_ready(self) -> None:
        if self.state is _CLOSED:
            raise ProviderDied("the connection is closed")
        if self.state not in (State.READY, State.MOVING, State.PIECES):
            raise NotServed("the provider has not answered the greeting yet")

    def _check_room(self) -> None:
        if len(self._outstanding) + len(self._cancelled) >= self._max_outstanding:
            raise QueueFull(f"{self._max_outstanding} requests are outstanding, as many as may be")

    def _check_location(self, arena: int, end: int, inline: int) -> None:
        if inline or self._arenas.get(arena, 0) < end:
            raise ValueError("a request in a block has no inline data, and its blocks are in an arena that is known")

    def _check_open(self, consumer_id: int) -> None:
        if consumer_id not in self._open or self.state is _CLOSED:
            raise self._not_open(consumer_id)
        if not self.takes(consumer_id):
            raise NotServed("the provider's process is about to end")

    def _not_open(self, consumer_id: int) -> LdmError:
        if self.state is _CLOSED:
            return ProviderDied("the connection is closed")
        return HandleClosed(f"consumer {consumer_id} is closed, or was never opened here")

    def _welcome(self, header: Header, body: bytes, descriptors: Sequence[int]) -> Greeted:
        greeted = self._greeted(header, body, descriptors)
        self._provider = greeted.container
        self._max_outstanding = min(self.limits.max_outstanding, self.peer.max_outstanding)
        return greeted

    def _pending(self, id: int, kind: int) -> tuple[tuple[int, int, int, Any], bool]:
        """Return what awaits the answer `kind`, and whether it was cancelled."""
        pending = self._outstanding.get(id) or self._cancelled.get(id)
        if pending is None:
            raise ProtocolError(f"{kind_name(kind)} for {id}, which is not outstanding")
        return pending, id in self._cancelled

    def _opened(self, header: Header, body: bytes, _: Sequence[int]) -> Opened:
        id, consumer_id = header[4:6]
        pending, late = self._pending(id, header[0])
        if pending[0] != OPEN or consumer_id in self._open or not consumer_id:
            raise ProtocolError(f"OPENED for {id} as consumer {consumer_id} answers no open, or that id is in use")
        device = device_of(body)
        del (self._cancelled if late else self._outstanding)[id]
        self._open.add(consumer_id)
        if id in self._inner_opens:
            self._inner_opens.remove(id)
            self._inner.add(consumer_id)
        return Opened(id, consumer_id, *device, late, pending[3])

    def _replied(self, header: Header, body: bytes, _: Sequence[int]) -> Replied | Failed | Released:
        _k, _t, flags, status, id, _c, _o, _l, data_size, metadata_size, _a, _b, _n = header
        pending = self._outstanding.get(id)
        if pending is None or status:
            return self._failed(id, status, body)
        if pending[0] != REQUEST or (flags and (flags != IN_BLOCK or not pending[2] or body)):
            raise ProtocolError(f"REPLY to {id} does not fit what was asked")
        del self._outstanding[id]
        reply = Reply(body[:data_size], body[data_size:]) if metadata_size else Reply(body)
        return Replied(id, reply, flags == IN_BLOCK, pending[3])

    def _failed(self, id: int, status: int, body: bytes) -> Failed | Released:
        pending, late = self._pending(id, REPLY)
        self._inner_opens.discard(id)
        if pending[0] == CLOSE or (late and pending[0] == OPEN and not status):
            raise ProtocolError(f"REPLY to {id} does not fit what was asked")
        if late:
            del self._cancelled[id]
            return Released(id, pending[3])
        error = error_of(status, body)
        del self._outstanding[id]
        return Failed(id, error, pending[3])

    def _closed(self, header: Header, _body: bytes, _: Sequence[int]) -> Closed:
        id, consumer_id = header[4:6]
        pending, _late = self._pending(id, header[0])
        if pending[:2] != (CLOSE, consumer_id):
            raise ProtocolError(f"CLOSED for {id}, which does not close consumer {consumer_id}")
        for each in (*self._outstanding.values(), *self._cancelled.values()):
            if each[0] == REQUEST and each[1] == consumer_id:
                raise ProtocolError(f"CLOSED for consumer {consumer_id}, which has requests outstanding")
        del self._outstanding[id]
        return Closed(id, consumer_id, pending[3])

    def _arena_gone(self, header: Header, _body: bytes, _: Sequence[int]) -> ArenaGone | None:
        arena = header[10]
        if not 0 < arena < self._next_arena:
            raise ProtocolError(f"ARENA_GONE for {arena}, which never was")
        return ArenaGone(arena) if arena in self._arenas else None

    def _moving(self, header: Header, _body: bytes, _: Sequence[int]) -> Moving:
        last = header[4]
        if last >= self._next_id:
            raise ProtocolError(f"MOVING behind {last}, which never was")
        self._ready, self._takes_inner = State.MOVING, bool(header[2] & INNER)
        if self.state is _READY:
            self._enter(State.MOVING)
        moving = Moving([], [])
        for pendings, contexts in (self._outstanding, moving.again), (self._cancelled, moving.released):
            for id, (kind, consumer_id, _blocks, context) in tuple(pendings.items()):
                if id > last and kind != CLOSE and not self._is_taken(id, consumer_id):
                    del pendings[id]
                    contexts.append(context)
        return moving

    def _is_taken(self, id: int, consumer_id: int) -> bool:
        return self._takes_inner and (consumer_id in self._inner if consumer_id else id in self._inner_opens)

    _TAKES = {
        State.NEW: {},
        State.GREETING: {
            FrameKind.WELCOME: _welcome,
            FrameKind.MOVING: _moving,
            FrameKind.ERROR: Connection._peer_failed,
        },
        State.READY: {
            FrameKind.OPENED: _opened,
            FrameKind.REPLY: _replied,
            FrameKind.CLOSED: _closed,
            FrameKind.ARENA_GONE: _arena_gone,
            FrameKind.MOVING: _moving,
            FrameKind.ERROR: Connection._peer_failed,
        },
        State.PIECES: {FrameKind.CONTINUE: Connection._continue},
        State.CLOSED: {},
    }
    _TAKES[State.MOVING] = _TAKES[State.READY]
