"""The direct channel's two state machines: frames in, events out; calls in, frames out.

Theory of operation.  An edge owns the socket.  It passes each packet that it receives, with its descriptors, to
`receive`, which returns at most one event; each call of the edge returns the frames that it has to send, in this order
and in the order of the calls.  Nothing is kept of a packet, so that its buffer may be used again.  One party at a time:
a machine has no locks.

Two rules:

1.  Every id ends exactly once.  On the consumer's side by `Opened`, `Replied`, `Closed`, `Failed`, by `cancel`, or by
    being in what `lost` returns.  A provider answers every id, also one whose cancellation was asked for; the answer to
    an id that was cancelled is dropped, and tells with `Released` that its parameter blocks may be used again.
2.  Every consumer id that the provider's edge gave to `opened` is closed exactly once: by `CloseRequested`, by being in
    what `lost` returns, or, where `opened` came too late and returned no frames, by the edge at once.

A frame that is not allowed raises `ProtocolError`.  The edge then sends what `fail` returns, closes the connection and
the packet's descriptors, and calls `lost`; nothing but this connection is concerned.

    state       consumer                             provider                           what `receive` takes
    NEW         hello() -> GREETING                  HELLO -> GREETING                  HELLO (provider)
    GREETING    WELCOME -> READY                     welcome() -> READY                 WELCOME (consumer)
    READY       first frame of a long message -> PIECES                                 see `_TAKES`
    PIECES      its last frame -> READY                                                 CONTINUE
    any         fail(), lost() or ERROR -> CLOSED
    CLOSED                                                                              nothing
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec

from .blocks import check_sizes
from .device import Execution, Kind, check_name
from .errors import (
    DeviceLoop,
    HandleClosed,
    InvalidRequest,
    LdmError,
    MessageTooLong,
    NotServed,
    ProtocolError,
    ProviderDied,
    QueueFull,
    from_errno,
)
from .request import Reply, Request, RequestType
from .wire import (
    GREETING,
    HEADER,
    MAGIC,
    MAX_INLINE,
    OPENED,
    TYPES,
    VERSION,
    Buffer,
    Flag,
    FrameKind,
    Frames,
    Limit,
    as_bytes,
    as_text,
    cut,
    encode,
    pack,
    unpack,
)

_KINDS = tuple(Kind)
_EXECUTIONS = tuple(Execution)
_HEADER_SIZE = HEADER.size
_INLINE = int(MAX_INLINE)
_MAX_METADATA = int(Limit.MAX_METADATA)
_REQUEST, _REPLY, _OPEN, _CLOSE = map(int, (FrameKind.REQUEST, FrameKind.REPLY, FrameKind.OPEN, FrameKind.CLOSE))
_IN_BLOCK = int(Flag.IN_BLOCK)

Header: TypeAlias = tuple[int, ...]


class Limits(msgspec.Struct, frozen=True):
    """What one side takes, as it tells the other in its greeting; `max_arenas` 0 lets all travel inline."""

    max_outstanding: int = int(Limit.MAX_OUTSTANDING)
    max_arenas: int = int(Limit.MAX_ARENAS)
    max_payload: int = int(Limit.MAX_PAYLOAD)


LIMITS = Limits()


class Greeted(msgspec.Struct):
    """The other side's greeting: the name of its container, empty for a program that is none."""

    container: str
    limits: Limits


class PeerFailed(msgspec.Struct):
    """The other side gave up the connection and said why; the edge calls `lost` and closes."""

    error: LdmError


class ArenaGone(msgspec.Struct):
    """Consumer: the provider cannot use the arena; send `arena_gone`.  Provider: the arena gets no more requests."""

    arena: int


class Opened(msgspec.Struct):
    """A device was opened.  With `late` its open was cancelled before: the edge calls `close` for it."""

    id: int
    consumer_id: int
    kind: Kind
    size: int
    accepts: frozenset[RequestType]
    execution: Execution
    late: bool
    context: Any


class Replied(msgspec.Struct):
    """A request was answered; with `in_block` the reply is in its parameter block and `reply` is empty."""

    id: int
    reply: Reply
    in_block: bool
    context: Any


class Failed(msgspec.Struct):
    """An open or a request ended with an error."""

    id: int
    error: LdmError
    context: Any


class Closed(msgspec.Struct):
    """A device was closed: its close handler has run."""

    id: int
    consumer_id: int
    context: Any


class Released(msgspec.Struct):
    """The provider is done with a request that had been cancelled."""

    id: int
    context: Any


class OpenRequested(msgspec.Struct):
    """A consumer opens `device`; `chain` are the devices, as `container/device`, on whose behalf it does so."""

    id: int
    device: str
    chain: tuple[str, ...]


class RequestReceived(msgspec.Struct):
    """A request came.  Where `blocks` is not 0 its data and metadata are in a parameter block: `Arena.take`."""

    id: int
    consumer_id: int
    request: Request
    arena: int
    block: int
    blocks: int


class CancelRequested(msgspec.Struct):
    """An open or a request is no longer wanted; the edge cancels its handler and answers it all the same."""

    id: int


class CloseRequested(msgspec.Struct):
    """A consumer closes; the edge answers its requests that are outstanding, then calls `closed`."""

    id: int
    consumer_id: int


class ArenaReceived(msgspec.Struct):
    """An arena came with its descriptor, which the edge owns from now on.

    It maps it where it is a memfd of `size` bytes that cannot shrink, else it sends `arena_gone`.
    """

    arena: int
    size: int
    blocks: int
    descriptor: int


ConsumerEvent: TypeAlias = Greeted | PeerFailed | ArenaGone | Opened | Replied | Failed | Closed | Released
ProviderEvent: TypeAlias = (
    Greeted
    | PeerFailed
    | ArenaGone
    | OpenRequested
    | RequestReceived
    | CancelRequested
    | CloseRequested
    | ArenaReceived
)


class State(enum.Enum):
    """Where a connection stands."""

    NEW = "new"
    GREETING = "greeting"
    READY = "ready"
    PIECES = "pieces"
    CLOSED = "closed"


_CLOSED = State.CLOSED

Event = TypeVar("Event")
Handler: TypeAlias = Callable[[Any, Header, bytes, Sequence[int]], Any]


class _Connection(Generic[Event]):
    """What both sides have in common: receiving, greeting, long messages, the end."""

    _TAKES: ClassVar[dict[State, dict[int, Handler]]]

    def __init__(self, container: str, limits: Limits) -> None:
        self.container = container
        self.limits = limits
        """What this side takes."""
        self.peer = Limits(0, 0, 0)
        """What the other side takes; at least `MAX_INLINE` bytes of payload."""
        self._arenas: dict[int, int] = {}
        """The number of blocks of each arena."""
        self._long: tuple[Header, list[bytes], int] | None = None
        """The first header of a message in pieces, what has come of it, and how many bytes have not."""
        self._enter(State.NEW)

    def receive(self, frame: Buffer, descriptors: Sequence[int] = ()) -> Event | None:
        """Take one packet and what came with it; return what it means for the edge, if anything.

        Raises `ProtocolError` for what is not allowed; `fail` and `lost` are then what is left to do.
        """
        try:
            header = unpack(frame)
        except struct.error:
            raise ProtocolError(f"a frame of {len(frame)} bytes is shorter than its header") from None
        handler = self._takes.get(header[0])
        if handler is None:
            raise ProtocolError(f"{_kind(header[0])} is not allowed in state {self.state.value}")
        body = bytes(frame[_HEADER_SIZE:])
        size = header[8] + header[9]
        if len(body) != size or size > _INLINE or header[9] > _MAX_METADATA or descriptors:
            return self._unusual(handler, header, body, descriptors)
        return handler(self, header, body, ())  # type: ignore[no-any-return]

    def fail(self, error: LdmError) -> Frames:
        """Give up the connection; return what tells the other side why."""
        if self.state is _CLOSED:
            return ()
        self._enter(_CLOSED)
        return encode(FrameKind.ERROR, as_text(str(error)), status=_status(error))

    def _enter(self, state: State) -> None:
        self.state = state
        self._takes = self._TAKES[state]

    def _unusual(self, handler: Handler, header: Header, body: bytes, descriptors: Sequence[int]) -> Event | None:
        """Take a frame with a descriptor, or the first of a long message; whatever else brings it here is refused."""
        kind, size = header[0], header[8] + header[9]
        if descriptors and kind != FrameKind.ARENA:
            raise ProtocolError(f"descriptors came with {_kind(kind)}")
        if len(body) != min(size, _INLINE):
            raise ProtocolError(f"{_kind(kind)} has {len(body)} bytes of {size} behind its header")
        if header[9] > _MAX_METADATA:
            raise ProtocolError(f"{_kind(kind)} has {header[9]} bytes of metadata, {_MAX_METADATA} are allowed")
        if size <= _INLINE:
            return handler(self, header, body, descriptors)  # type: ignore[no-any-return]
        if kind not in (_REQUEST, _REPLY) or size > self.limits.max_payload:
            raise ProtocolError(f"{_kind(kind)} of {size} bytes is too long")
        self._long = header, [body], size - len(body)
        self._enter(State.PIECES)
        return None

    def _continue(self, header: Header, body: bytes, _: Sequence[int]) -> Event | None:
        assert self._long is not None
        first, pieces, missing = self._long
        if header[4] != first[4] or len(body) != min(missing, _INLINE):
            raise ProtocolError(
                f"CONTINUE with {len(body)} bytes of {header[4]}, where {missing} of {first[4]} are due"
            )
        pieces.append(body)
        self._long = first, pieces, missing - len(body)
        if missing > len(body):
            return None
        self._enter(State.READY)
        self._long = None
        return self._takes[first[0]](self, first, b"".join(pieces), ())  # type: ignore[no-any-return]

    def _greeting(self, kind: FrameKind, state: State) -> Frames:
        self._enter(state)
        limits = self.limits.max_outstanding, self.limits.max_arenas, self.limits.max_payload
        return encode(kind, GREETING.struct.pack(MAGIC, VERSION, *limits) + self.container.encode())

    def _greeted(self, header: Header, body: bytes, _: Sequence[int]) -> Greeted:
        if len(body) < GREETING.size:
            raise ProtocolError(f"a greeting has {GREETING.size} bytes or more, not {len(body)}")
        magic, version, max_outstanding, max_arenas, max_payload = GREETING.struct.unpack_from(body)
        if magic != MAGIC:
            raise ProtocolError("the other side does not speak this protocol")
        if version != VERSION:
            raise ProtocolError(f"the other side speaks version {version} of the protocol, this one {VERSION}")
        container = _name(body[GREETING.size :], "container") if len(body) > GREETING.size else ""
        self.peer = Limits(max_outstanding, max_arenas, max_payload)
        self._enter(State.READY if header[0] == FrameKind.WELCOME else State.GREETING)
        return Greeted(container, self.peer)

    def _peer_failed(self, header: Header, body: bytes, _: Sequence[int]) -> PeerFailed:
        self._enter(_CLOSED)
        return PeerFailed(_error(header[3], body))

    def _check_size(self, size: int, metadata_size: int) -> None:
        limit = max(self.peer.max_payload, _INLINE)
        if size > min(limit, Limit.MAX_PAYLOAD):
            raise MessageTooLong(f"{size} bytes are more than the {limit} that the other side takes inline")
        if metadata_size > _MAX_METADATA:
            raise MessageTooLong(f"{metadata_size} bytes of metadata, {_MAX_METADATA} are allowed")


class ConsumerConnection(_Connection[ConsumerEvent]):
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
        self._max_outstanding = 0
        self._next_id = 1
        self._next_arena = 1

    def hello(self) -> Frames:
        """Begin the connection."""
        return self._greeting(FrameKind.HELLO, State.GREETING)

    def open(self, device: str, chain: Iterable[str] = (), context: Any = None) -> tuple[int, Frames]:
        """Open a device; `chain` are the devices, as `container/device`, that a request will have passed.

        Raises `QueueFull`, `InvalidRequest` or `NameTooLong` for the name, `DeviceLoop` for a chain that is too long,
        `NotServed` or `ProviderDied` where there is no connection yet, or no more.
        """
        check_name(device)
        names = tuple(chain)
        if len(names) > Limit.MAX_CHAIN:
            raise DeviceLoop(f"a chain of {len(names)} devices is longer than {Limit.MAX_CHAIN}")
        self._check_ready()
        self._check_room()
        if len(self._open) + len(self._outstanding) + len(self._cancelled) >= Limit.MAX_CONSUMERS:
            raise QueueFull(f"{Limit.MAX_CONSUMERS} consumers over one connection are as many as may be")
        metadata = "\0".join(names).encode()
        id = self._enter_id(FrameKind.OPEN, 0, context)
        return id, encode(FrameKind.OPEN, device.encode(), id=id, metadata=metadata)

    def request(
        self, consumer_id: int, type: int, data: Buffer = b"", metadata: bytes = b"", *, offset: int = 0,
        length: int = 0, arena: int = 0, block: int = 0, blocks: int = 0, context: Any = None,
    ) -> tuple[int, Frames]:  # fmt: skip
        """Send a request: inline, or with `blocks` in parameter block `block`, which was filled, of `arena`.

        Raises `QueueFull`, `HandleClosed` or `ProviderDied` for the consumer id, `MessageTooLong`, `InvalidRequest`.
        """
        if consumer_id not in self._open or self.state is _CLOSED:
            raise self._not_open(consumer_id)
        if len(self._outstanding) + len(self._cancelled) >= self._max_outstanding:
            self._check_room()
        if not isinstance(data, bytes):
            data = as_bytes(data)
        if blocks:
            self._check_location(arena, block + blocks, len(data) + len(metadata))
        data_size, metadata_size, id = len(data), len(metadata), self._next_id
        long = data_size + metadata_size > _INLINE
        if long or metadata_size:
            self._check_size(data_size + metadata_size, metadata_size)
        try:
            header = pack(_REQUEST, type, _IN_BLOCK if blocks else 0, 0, id, consumer_id, offset, length, data_size,
                          metadata_size, arena, block, blocks)  # fmt: skip
        except struct.error as error:
            raise InvalidRequest(f"a number of the request is out of range: {error}") from None
        if (offset | length) < 0 or type not in TYPES:
            raise InvalidRequest(f"there is no request of type {type} with offset {offset} and length {length}")
        self._next_id = id + 1
        self._outstanding[id] = (_REQUEST, consumer_id, blocks, context)
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
        id = self._enter_id(FrameKind.CLOSE, consumer_id, context)
        return id, encode(FrameKind.CLOSE, id=id, consumer_id=consumer_id)

    def cancel(self, id: int) -> Frames:
        """End an open or a request here and now, and ask the provider to stop; no frames where it has ended already.

        Raises `ValueError` for the id of a close, which cannot be cancelled.
        """
        pending = self._outstanding.get(id)
        if pending is None:
            return ()
        if pending[0] == _CLOSE:
            raise ValueError("a close cannot be cancelled")
        self._cancelled[id] = self._outstanding.pop(id)
        return () if self.state is _CLOSED else encode(FrameKind.CANCEL, id=id)

    def arena(self, size: int, blocks: int) -> tuple[int, Frames]:
        """Make an arena known; the frame is sent with its descriptor.  Raises `QueueFull` for one too many."""
        self._check_ready()
        check_sizes(size, blocks)
        if len(self._arenas) >= min(self.peer.max_arenas, self.limits.max_arenas):
            raise QueueFull(f"{len(self._arenas)} arenas over one connection are as many as may be")
        arena, self._next_arena = self._next_arena, self._next_arena + 1
        self._arenas[arena] = blocks
        return arena, encode(FrameKind.ARENA, arena=arena, length=size, blocks=blocks)

    def arena_gone(self, arena: int) -> Frames:
        """Withdraw an arena: no request will come in it any more."""
        del self._arenas[arena]
        return () if self.state is _CLOSED else encode(FrameKind.ARENA_GONE, arena=arena)

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
        if self.state not in (State.READY, State.PIECES):
            raise NotServed("the provider has not answered the greeting yet")

    def _check_room(self) -> None:
        if len(self._outstanding) + len(self._cancelled) >= self._max_outstanding:
            raise QueueFull(f"{self._max_outstanding} requests are outstanding, as many as may be")

    def _check_location(self, arena: int, end: int, inline: int) -> None:
        if inline or self._arenas.get(arena, 0) < end:
            raise ValueError("a request in a block has no inline data, and its blocks are in an arena that is known")

    def _not_open(self, consumer_id: int) -> LdmError:
        if self.state is _CLOSED:
            return ProviderDied("the connection is closed")
        return HandleClosed(f"consumer {consumer_id} is closed, or was never opened here")

    def _welcome(self, header: Header, body: bytes, descriptors: Sequence[int]) -> Greeted:
        greeted = self._greeted(header, body, descriptors)
        self._max_outstanding = min(self.limits.max_outstanding, self.peer.max_outstanding)
        return greeted

    def _pending(self, id: int, kind: int) -> tuple[tuple[int, int, int, Any], bool]:
        """Return what awaits the answer `kind`, and whether it was cancelled."""
        pending = self._outstanding.get(id) or self._cancelled.get(id)
        if pending is None:
            raise ProtocolError(f"{_kind(kind)} for {id}, which is not outstanding")
        return pending, id in self._cancelled

    def _opened(self, header: Header, body: bytes, _: Sequence[int]) -> Opened:
        id, consumer_id = header[4:6]
        pending, late = self._pending(id, header[0])
        if pending[0] != _OPEN or consumer_id in self._open or not consumer_id:
            raise ProtocolError(f"OPENED for {id} as consumer {consumer_id} answers no open, or that id is in use")
        device = _device(body)
        del (self._cancelled if late else self._outstanding)[id]
        self._open.add(consumer_id)
        return Opened(id, consumer_id, *device, late, pending[3])

    def _replied(self, header: Header, body: bytes, _: Sequence[int]) -> Replied | Failed | Released:
        _k, _t, flags, status, id, _c, _o, _l, data_size, metadata_size, _a, _b, _n = header
        pending = self._outstanding.get(id)
        if pending is None or status:
            return self._failed(id, status, body)
        if pending[0] != _REQUEST or (flags and (flags != _IN_BLOCK or not pending[2] or body)):
            raise ProtocolError(f"REPLY to {id} does not fit what was asked")
        del self._outstanding[id]
        reply = Reply(body[:data_size], body[data_size:]) if metadata_size else Reply(body)
        return Replied(id, reply, flags == _IN_BLOCK, pending[3])

    def _failed(self, id: int, status: int, body: bytes) -> Failed | Released:
        pending, late = self._pending(id, _REPLY)
        if pending[0] == _CLOSE or (late and pending[0] == _OPEN and not status):
            raise ProtocolError(f"REPLY to {id} does not fit what was asked")
        if late:
            del self._cancelled[id]
            return Released(id, pending[3])
        error = _error(status, body)
        del self._outstanding[id]
        return Failed(id, error, pending[3])

    def _closed(self, header: Header, _body: bytes, _: Sequence[int]) -> Closed:
        id, consumer_id = header[4:6]
        pending, _late = self._pending(id, header[0])
        if pending[:2] != (_CLOSE, consumer_id):
            raise ProtocolError(f"CLOSED for {id}, which does not close consumer {consumer_id}")
        for each in (*self._outstanding.values(), *self._cancelled.values()):
            if each[0] == _REQUEST and each[1] == consumer_id:
                raise ProtocolError(f"CLOSED for consumer {consumer_id}, which has requests outstanding")
        del self._outstanding[id]
        return Closed(id, consumer_id, pending[3])

    def _arena_gone(self, header: Header, _body: bytes, _: Sequence[int]) -> ArenaGone | None:
        arena = header[10]
        if not 0 < arena < self._next_arena:
            raise ProtocolError(f"ARENA_GONE for {arena}, which never was")
        return ArenaGone(arena) if arena in self._arenas else None

    _TAKES = {
        State.NEW: {},
        State.GREETING: {FrameKind.WELCOME: _welcome, FrameKind.ERROR: _Connection._peer_failed},
        State.READY: {
            FrameKind.OPENED: _opened,
            FrameKind.REPLY: _replied,
            FrameKind.CLOSED: _closed,
            FrameKind.ARENA_GONE: _arena_gone,
            FrameKind.ERROR: _Connection._peer_failed,
        },
        State.PIECES: {FrameKind.CONTINUE: _Connection._continue},
        State.CLOSED: {},
    }


class Lost(NamedTuple):
    """What the provider's edge has to do after a connection's end, in this order."""

    requests: list[int]
    """Opens and requests to be cancelled; their answers are not sent, but may still be given."""
    consumers: list[int]
    """Consumer ids to be closed."""


class ProviderConnection(_Connection[ProviderEvent]):
    """The provider's side of a connection.

    The calls that answer raise `ValueError` for an id that is not outstanding, which is the edge's mistake, and return
    no frames when the connection has ended.
    """

    def __init__(self, container: str, limits: Limits = LIMITS) -> None:
        super().__init__(container, limits)
        self._open: set[int] = set()
        self._outstanding: dict[int, tuple[int, int]] = {}
        """By id: consumer id, or 0 for an open, and number of blocks."""
        self._closing: dict[int, int] = {}
        """Consumer id by the id of its close."""
        self._last_id = 0

    def welcome(self) -> Frames:
        """Accept the consumer that was `Greeted`."""
        return self._greeting(FrameKind.WELCOME, State.READY)

    def opened(
        self,
        id: int,
        consumer_id: int,
        *,
        kind: Kind,
        size: int,
        accepts: Iterable[RequestType],
        execution: Execution,
    ) -> Frames:
        """Answer an open.  Where no frames are returned the consumer is gone, and the edge closes `consumer_id`."""
        if not self._ends(id, consumer=False):
            return ()
        if consumer_id in self._open or not consumer_id:
            raise ValueError(f"consumer {consumer_id} is open already, or no consumer id")
        mask = sum(1 << type for type in frozenset(accepts))
        about = OPENED.struct.pack(size, mask, _KINDS.index(kind) + 1, _EXECUTIONS.index(execution) + 1)
        del self._outstanding[id]
        self._open.add(consumer_id)
        return encode(FrameKind.OPENED, about, id=id, consumer_id=consumer_id)

    def replied(self, id: int, data: Buffer = b"", metadata: bytes = b"") -> Frames:
        """Answer a request inline.  Raises `MessageTooLong`; the request is then still to be answered, by `failed`."""
        pending = self._outstanding.get(id)
        if (pending is None or not pending[0] or self.state is _CLOSED) and not self._ends(id):
            return ()
        if not isinstance(data, bytes):
            data = as_bytes(data)
        data_size, metadata_size = len(data), len(metadata)
        long = data_size + metadata_size > _INLINE
        if long or metadata_size:
            self._check_size(data_size + metadata_size, metadata_size)
        header = pack(_REPLY, 0, 0, 0, id, 0, 0, 0, data_size, metadata_size, 0, 0, 0)
        del self._outstanding[id]
        if long:
            return cut(header, id, data, metadata)
        return ((header + data + metadata) if metadata_size else header + data,)

    def replied_in_block(self, id: int) -> Frames:
        """Answer a request whose block has the reply: `Block.answer` was called."""
        if not self._ends(id):
            return ()
        if not self._outstanding[id][1]:
            raise ValueError(f"request {id} came inline")
        del self._outstanding[id]
        return (pack(_REPLY, 0, _IN_BLOCK, 0, id, 0, 0, 0, 0, 0, 0, 0, 0),)

    def failed(self, id: int, error: LdmError) -> Frames:
        """Answer an open or a request with an error."""
        if not self._ends(id, consumer=None):
            return ()
        del self._outstanding[id]
        return encode(FrameKind.REPLY, as_text(str(error)), id=id, status=_status(error))

    def closed(self, id: int) -> Frames:
        """Answer a close, once the handler has run and each request of the consumer is answered."""
        if self.state is _CLOSED:
            self._closing.pop(id, None)
            return ()
        consumer_id = self._closing.get(id)
        if consumer_id is None or any(pending[0] == consumer_id for pending in self._outstanding.values()):
            raise ValueError(f"{id} is no close, or its consumer has requests that are not answered")
        del self._closing[id]
        return encode(FrameKind.CLOSED, id=id, consumer_id=consumer_id)

    def arena_gone(self, arena: int) -> Frames:
        """Tell the consumer that an arena cannot be used; requests in it are failed until it has taken note."""
        return () if self.state is _CLOSED else encode(FrameKind.ARENA_GONE, arena=arena)

    def lost(self) -> Lost:
        """End the connection; return what is to be cancelled and closed.  A close under way goes on, not in it."""
        lost = Lost(list(self._outstanding), list(self._open))
        self._outstanding.clear()
        self._open.clear()
        self._enter(_CLOSED)
        return lost

    def _ends(self, id: int, *, consumer: bool | None = True) -> bool:
        """Tell whether an answer to `id` is to be sent; raise `ValueError` where none is due.

        `consumer` tells whether it has to be a consumer's request, an open, or may be either.
        """
        pending = self._outstanding.get(id)
        if self.state is _CLOSED:
            self._outstanding.pop(id, None)
            return False
        if pending is None or (consumer is not None and bool(pending[0]) is not consumer):
            raise ValueError(f"{id} was answered already, or is something else")
        return True

    def _take_id(self, header: Header) -> int:
        id = header[4]
        if id <= self._last_id:
            raise ProtocolError(f"{_kind(header[0])} has the id {id}, which is not above {self._last_id}")
        return id

    def _check_room(self) -> None:
        if len(self._outstanding) >= self.limits.max_outstanding:
            raise ProtocolError(f"more than {self.limits.max_outstanding} requests are outstanding")

    def _open_requested(self, header: Header, body: bytes, _: Sequence[int]) -> OpenRequested:
        id = self._take_id(header)
        self._check_room()
        if len(self._open) + len(self._outstanding) >= Limit.MAX_CONSUMERS:
            raise ProtocolError(f"more than {Limit.MAX_CONSUMERS} consumers over one connection")
        device = _name(body[: header[8]], "device")
        chain = _chain(body[header[8] :])
        self._last_id = id
        self._outstanding[id] = (0, 0)
        return OpenRequested(id, device, chain)

    def _requested(self, header: Header, body: bytes, _: Sequence[int]) -> RequestReceived:
        _k, type, flags, _s, id, consumer_id, offset, length, data_size, metadata_size, arena, block, blocks = header
        known = TYPES.get(type)
        if known is None or consumer_id not in self._open or (offset | length) < 0 or id <= self._last_id:
            raise self._bad_request(header)
        if len(self._outstanding) >= self.limits.max_outstanding:
            self._check_room()
        if flags or blocks:
            self._check_location(header, body)
        self._last_id = id
        self._outstanding[id] = (consumer_id, blocks)
        if metadata_size:
            request = Request(known, body[:data_size], offset, length, body[data_size:])
        else:
            request = Request(known, body, offset, length)
        return RequestReceived(id, consumer_id, request, arena, block, blocks)

    def _bad_request(self, header: Header) -> ProtocolError:
        self._take_id(header)
        if header[1] not in TYPES:
            return ProtocolError(f"there is no request type {header[1]}")
        if header[5] not in self._open:
            return ProtocolError(f"REQUEST of consumer {header[5]}, which is not open")
        return ProtocolError(f"REQUEST with offset {header[6]} and length {header[7]}")

    def _check_location(self, header: Header, body: bytes) -> None:
        flags, (arena, block, blocks) = header[2], header[10:]
        if flags != _IN_BLOCK or not blocks or body or self._arenas.get(arena, 0) < block + blocks:
            raise ProtocolError(f"REQUEST in {blocks} blocks from {block} on of arena {arena}, which cannot be")

    def _cancel_requested(self, header: Header, _body: bytes, _: Sequence[int]) -> CancelRequested | None:
        id = header[4]
        if not 0 < id <= self._last_id:
            raise ProtocolError(f"CANCEL for {id}, which never was")
        return CancelRequested(id) if id in self._outstanding else None

    def _close_requested(self, header: Header, _body: bytes, _: Sequence[int]) -> CloseRequested:
        id, consumer_id = self._take_id(header), header[5]
        if consumer_id not in self._open:
            raise ProtocolError(f"CLOSE of consumer {consumer_id}, which is not open")
        self._last_id = id
        self._open.remove(consumer_id)
        self._closing[id] = consumer_id
        return CloseRequested(id, consumer_id)

    def _arena_received(self, header: Header, _body: bytes, descriptors: Sequence[int]) -> ArenaReceived:
        size, arena, blocks = header[7], header[10], header[12]
        if len(descriptors) != 1:
            raise ProtocolError(f"ARENA comes with one descriptor, not {len(descriptors)}")
        if not arena or arena in self._arenas or len(self._arenas) >= self.limits.max_arenas:
            raise ProtocolError(f"ARENA {arena} is known already, or one too many")
        check_sizes(size, blocks)
        self._arenas[arena] = blocks
        return ArenaReceived(arena, size, blocks, descriptors[0])

    def _arena_gone(self, header: Header, _body: bytes, _: Sequence[int]) -> ArenaGone:
        if self._arenas.pop(header[10], None) is None:
            raise ProtocolError(f"ARENA_GONE for {header[10]}, which is not known")
        return ArenaGone(header[10])

    _TAKES = {
        State.NEW: {FrameKind.HELLO: _Connection._greeted},
        State.GREETING: {FrameKind.ERROR: _Connection._peer_failed},
        State.READY: {
            FrameKind.OPEN: _open_requested,
            FrameKind.REQUEST: _requested,
            FrameKind.CANCEL: _cancel_requested,
            FrameKind.CLOSE: _close_requested,
            FrameKind.ARENA: _arena_received,
            FrameKind.ARENA_GONE: _arena_gone,
            FrameKind.ERROR: _Connection._peer_failed,
        },
        State.PIECES: {FrameKind.CONTINUE: _Connection._continue},
        State.CLOSED: {},
    }


def refuse_cycle(container: str, device: str, chain: Sequence[str]) -> None:
    """Raise `DeviceLoop` where a request to the device would come back to it."""
    if f"{container}/{device}" in chain:
        raise DeviceLoop(f"{' -> '.join(chain)} -> {container}/{device} is a cycle")


def _kind(kind: int) -> str:
    try:
        return FrameKind(kind).name
    except ValueError:
        return f"a frame of kind {kind}"


def _status(error: LdmError) -> int:
    return error.errno if 0 < error.errno <= Limit.MAX_ERRNO else LdmError.errno


def _error(status: int, text: bytes) -> LdmError:
    if not 0 < status <= Limit.MAX_ERRNO or len(text) > Limit.MAX_TEXT:
        raise ProtocolError(f"an error with status {status} and a message of {len(text)} bytes")
    return from_errno(status, text.decode(errors="replace"))


def _name(name: bytes, what: str) -> str:
    try:
        text = name.decode()
        check_name(text, what)
    except (UnicodeDecodeError, LdmError) as error:
        raise ProtocolError(f"the name of a {what}: {error}") from None
    return text


def _chain(names: bytes) -> tuple[str, ...]:
    parts = names.split(b"\0") if names else []
    if len(parts) > Limit.MAX_CHAIN:
        raise ProtocolError(f"a chain of {len(parts)} devices is longer than {Limit.MAX_CHAIN}")
    return tuple(
        f"{_name(container, 'container')}/{_name(device, 'device')}"
        for container, _, device in (part.partition(b"/") for part in parts)
    )


def _device(about: bytes) -> tuple[Kind, int, frozenset[RequestType], Execution]:
    """Return kind, size, types and execution of an OPENED frame."""
    try:
        size, mask, kind, execution = OPENED.struct.unpack(about)
    except struct.error:
        raise ProtocolError(f"OPENED has {OPENED.size} bytes of data, not {len(about)}") from None
    types = frozenset(type for number, type in TYPES.items() if mask >> number & 1)
    known = 1 <= kind <= len(_KINDS) and 1 <= execution <= len(_EXECUTIONS)
    if not known or mask != sum(1 << type for type in types):
        raise ProtocolError(f"OPENED with kind {kind}, execution {execution}, types {mask:#x}")
    return _KINDS[kind - 1], size, types, _EXECUTIONS[execution - 1]
