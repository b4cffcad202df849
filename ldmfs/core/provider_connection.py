"""The provider's machine of the direct channel: see `channel` for the theory of operation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .blocks import check_sizes
from .channel import Connection, Handler, Header, chain_of, is_inner, kind_name, name_of, status_of
from .device import Execution, Kind
from .errors import LdmError, ProtocolError
from .events import (
    LIMITS,
    ArenaGone,
    ArenaReceived,
    CancelRequested,
    CloseRequested,
    Limits,
    OpenRequested,
    ProviderEvent,
    RequestReceived,
    State,
)
from .request import Request, RequestType
from .wire import (
    AGAIN,
    EXECUTIONS,
    IN_BLOCK,
    INNER,
    KINDS,
    MAX_INLINE,
    OPENED,
    REPLY,
    TYPES,
    Buffer,
    FrameKind,
    Frames,
    Limit,
    as_bytes,
    as_text,
    cut,
    encode,
    pack,
)

_CLOSED = State.CLOSED


class Lost(NamedTuple):
    """What the provider's edge has to do after a connection's end, in this order."""

    requests: list[int]
    """Opens and requests to be cancelled; their answers are not sent, but may still be given."""
    consumers: list[int]
    """Consumer ids to be closed."""


class ProviderConnection(Connection[ProviderEvent]):
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
        self._announced = (0, 0, 0)
        """Number, bytes and blocks of the arena whose memory comes next."""
        self._inner_opens: set[int] = set()
        self._inner: set[int] = set()
        """Consumers on behalf of this container."""
        self._takes_inner = False

    @property
    def awaits_memory(self) -> bool:
        """Whether the next packet brings a descriptor, for which the edge makes room."""
        return self.state is State.MEMORY

    @property
    def idle(self) -> bool:
        """Whether every id that was taken has its answer."""
        return not self._outstanding and not self._closing

    def welcome(self) -> Frames:
        """Accept the consumer that was `Greeted`."""
        return self._greeting(FrameKind.WELCOME, self._ready)

    def moving(self, *, inner: bool) -> Frames:
        """Take no more opens and requests, or with `inner` only those on behalf of this container; tell the consumer.

        What is outstanding is answered as ever; the connection ends when it is `idle`, and with it the consumers.
        """
        if self.state is _CLOSED:
            return ()
        self._takes_inner, self._ready = inner, State.MOVING
        if self.state is State.READY or (self.state is State.PIECES and not self._takes_long(inner=inner)):
            self._long = None
            self._enter(State.MOVING)
        return encode(FrameKind.MOVING, id=self._last_id, flags=INNER if inner else 0)

    def _takes_long(self, *, inner: bool) -> bool:
        """Tell whether the message that has come in part is still taken."""
        assert self._long is not None
        return inner and self._long[0][5] in self._inner

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
        about = OPENED.struct.pack(size, mask, KINDS.index(kind) + 1, EXECUTIONS.index(execution) + 1)
        del self._outstanding[id]
        self._open.add(consumer_id)
        if id in self._inner_opens:
            self._inner_opens.remove(id)
            self._inner.add(consumer_id)
        return encode(FrameKind.OPENED, about, id=id, consumer_id=consumer_id)

    def replied(self, id: int, data: Buffer = b"", metadata: bytes = b"") -> Frames:
        """Answer a request inline.  Raises `MessageTooLong`; the request is then still to be answered, by `failed`."""
        pending = self._outstanding.get(id)
        if (pending is None or not pending[0] or self.state is _CLOSED) and not self._ends(id):
            return ()
        if not isinstance(data, bytes):
            data = as_bytes(data)
        data_size, metadata_size = len(data), len(metadata)
        long = data_size + metadata_size > MAX_INLINE
        if long or metadata_size:
            self._check_size(data_size + metadata_size, metadata_size)
        header = pack(REPLY, 0, 0, 0, id, 0, 0, 0, data_size, metadata_size, 0, 0, 0)
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
        return (pack(REPLY, 0, IN_BLOCK, 0, id, 0, 0, 0, 0, 0, 0, 0, 0),)

    def failed(self, id: int, error: LdmError) -> Frames:
        """Answer an open or a request with an error."""
        if not self._ends(id, consumer=None):
            return ()
        del self._outstanding[id]
        self._inner_opens.discard(id)
        return encode(FrameKind.REPLY, as_text(str(error)), id=id, status=status_of(error))

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
            raise ProtocolError(f"{kind_name(header[0])} has the id {id}, which is not above {self._last_id}")
        return id

    def _check_room(self) -> None:
        if len(self._outstanding) >= self.limits.max_outstanding:
            raise ProtocolError(f"more than {self.limits.max_outstanding} requests are outstanding")

    def _open_requested(self, header: Header, body: bytes, _: Sequence[int]) -> OpenRequested:
        id = self._take_id(header)
        self._check_room()
        if len(self._open) + len(self._outstanding) >= Limit.MAX_CONSUMERS:
            raise ProtocolError(f"more than {Limit.MAX_CONSUMERS} consumers over one connection")
        device = name_of(body[: header[8]], "device")
        chain = chain_of(body[header[8] :])
        self._last_id = id
        self._outstanding[id] = (0, 0)
        if is_inner(self.container, chain):
            self._inner_opens.add(id)
        return OpenRequested(id, device, chain, bool(header[2] & AGAIN))

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
        if flags != IN_BLOCK or not blocks or body or self._arenas.get(arena, 0) < block + blocks:
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
        self._inner.discard(consumer_id)
        self._closing[id] = consumer_id
        return CloseRequested(id, consumer_id)

    def _arena_announced(self, header: Header, _body: bytes, _: Sequence[int]) -> None:
        size, arena, blocks = header[7], header[10], header[12]
        if not arena or arena in self._arenas or len(self._arenas) >= self.limits.max_arenas:
            raise ProtocolError(f"ARENA {arena} is known already, or one too many")
        check_sizes(size, blocks)
        self._announced = arena, size, blocks
        self._enter(State.MEMORY)

    def _memory_received(self, header: Header, _body: bytes, descriptors: Sequence[int]) -> ArenaReceived:
        arena, size, blocks = self._announced
        if len(descriptors) != 1 or header[10] != arena:
            raise ProtocolError(f"MEMORY of arena {header[10]} with {len(descriptors)} descriptors, not {arena} with 1")
        self._arenas[arena] = blocks
        self._enter(self._ready)
        return ArenaReceived(arena, size, blocks, descriptors[0])

    def _arena_gone(self, header: Header, _body: bytes, _: Sequence[int]) -> ArenaGone:
        if self._arenas.pop(header[10], None) is None:
            raise ProtocolError(f"ARENA_GONE for {header[10]}, which is not known")
        return ArenaGone(header[10])

    # -- what comes when it was announced that the container moves

    def _unusual(
        self, handler: Handler, header: Header, body: bytes, descriptors: Sequence[int]
    ) -> ProviderEvent | None:
        if handler is ProviderConnection._requested_moving and not self._takes_request(header):
            return None
        return super()._unusual(handler, header, body, descriptors)

    def _takes_request(self, header: Header) -> bool:
        return self._takes_inner and header[5] in self._inner

    def _requested_moving(self, header: Header, body: bytes, _: Sequence[int]) -> RequestReceived | None:
        return self._requested(header, body, ()) if self._takes_request(header) else None

    def _open_requested_moving(self, header: Header, body: bytes, _: Sequence[int]) -> OpenRequested | None:
        if self._takes_inner and is_inner(self.container, chain_of(body[header[8] :])):
            return self._open_requested(header, body, ())
        return None

    def _cancel_requested_moving(self, header: Header, _body: bytes, _: Sequence[int]) -> CancelRequested | None:
        return CancelRequested(header[4]) if header[4] in self._outstanding else None

    def _ignored(self, _header: Header, _body: bytes, _: Sequence[int]) -> None:
        """Drop the rest of a message whose begin was not taken."""

    _TAKES = {
        State.NEW: {FrameKind.HELLO: Connection._greeted},
        State.GREETING: {FrameKind.ERROR: Connection._peer_failed},
        State.READY: {
            FrameKind.OPEN: _open_requested,
            FrameKind.REQUEST: _requested,
            FrameKind.CANCEL: _cancel_requested,
            FrameKind.CLOSE: _close_requested,
            FrameKind.ARENA: _arena_announced,
            FrameKind.ARENA_GONE: _arena_gone,
            FrameKind.ERROR: Connection._peer_failed,
        },
        State.MOVING: {
            FrameKind.OPEN: _open_requested_moving,
            FrameKind.REQUEST: _requested_moving,
            FrameKind.CONTINUE: _ignored,
            FrameKind.CANCEL: _cancel_requested_moving,
            FrameKind.CLOSE: _close_requested,
            FrameKind.ARENA: _arena_announced,
            FrameKind.ARENA_GONE: _arena_gone,
            FrameKind.ERROR: Connection._peer_failed,
        },
        State.PIECES: {FrameKind.CONTINUE: Connection._continue},
        State.MEMORY: {FrameKind.MEMORY: _memory_received},
        State.CLOSED: {},
    }
