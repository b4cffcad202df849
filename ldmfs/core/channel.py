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
    READY      MOVING -> MOVING                      moving() -> MOVING
    MOVING     as READY, with what it may send and take restricted
    READY                                            ARENA -> MEMORY
    MEMORY                                           MEMORY -> READY                    MEMORY, with its descriptor
    any         fail(), lost() or ERROR -> CLOSED
    CLOSED                                                                              nothing
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from .device import Execution, Kind, check_name
from .errors import (
    DeviceLoop,
    LdmError,
    MessageTooLong,
    ProtocolError,
    from_errno,
)
from .events import Greeted, Limits, PeerFailed, State
from .request import RequestType
from .wire import (
    EXECUTIONS,
    GREETING,
    HEADER_SIZE,
    KINDS,
    MAGIC,
    MAX_INLINE,
    MAX_METADATA,
    OPENED,
    REPLY,
    REQUEST,
    TYPES,
    VERSION,
    Buffer,
    FrameKind,
    Frames,
    Limit,
    as_text,
    encode,
    unpack,
)

Header: TypeAlias = tuple[int, ...]


_CLOSED = State.CLOSED

Event = TypeVar("Event")
Handler: TypeAlias = Callable[[Any, Header, bytes, Sequence[int]], Any]


class Connection(Generic[Event]):
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
        self._ready = State.READY
        """The state between messages: MOVING from when that was announced."""
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
            raise ProtocolError(f"{kind_name(header[0])} is not allowed in state {self.state.value}")
        body = bytes(frame[HEADER_SIZE:])
        size = header[8] + header[9]
        if len(body) != size or size > MAX_INLINE or header[9] > MAX_METADATA or descriptors:
            return self._unusual(handler, header, body, descriptors)
        return handler(self, header, body, ())  # type: ignore[no-any-return]

    def fail(self, error: LdmError) -> Frames:
        """Give up the connection; return what tells the other side why."""
        if self.state is _CLOSED:
            return ()
        self._enter(_CLOSED)
        return encode(FrameKind.ERROR, as_text(str(error)), status=status_of(error))

    def _enter(self, state: State) -> None:
        self.state = state
        self._takes = self._TAKES[state]

    def _unusual(self, handler: Handler, header: Header, body: bytes, descriptors: Sequence[int]) -> Event | None:
        """Take a frame with a descriptor, or the first of a long message; whatever else brings it here is refused."""
        kind, size = header[0], header[8] + header[9]
        if descriptors and kind != FrameKind.MEMORY:
            raise ProtocolError(f"descriptors came with {kind_name(kind)}")
        if len(body) != min(size, MAX_INLINE):
            raise ProtocolError(f"{kind_name(kind)} has {len(body)} bytes of {size} behind its header")
        if header[9] > MAX_METADATA:
            raise ProtocolError(f"{kind_name(kind)} has {header[9]} bytes of metadata, {MAX_METADATA} are allowed")
        if size <= MAX_INLINE:
            return handler(self, header, body, descriptors)  # type: ignore[no-any-return]
        if kind not in (REQUEST, REPLY) or size > self.limits.max_payload:
            raise ProtocolError(f"{kind_name(kind)} of {size} bytes is too long")
        self._long = header, [body], size - len(body)
        self._enter(State.PIECES)
        return None

    def _continue(self, header: Header, body: bytes, _: Sequence[int]) -> Event | None:
        assert self._long is not None
        first, pieces, missing = self._long
        if header[4] != first[4] or len(body) != min(missing, MAX_INLINE):
            raise ProtocolError(
                f"CONTINUE with {len(body)} bytes of {header[4]}, where {missing} of {first[4]} are due"
            )
        pieces.append(body)
        self._long = first, pieces, missing - len(body)
        if missing > len(body):
            return None
        self._enter(self._ready)
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
        container = name_of(body[GREETING.size :], "container") if len(body) > GREETING.size else ""
        self.peer = Limits(max_outstanding, max_arenas, max_payload)
        self._enter(self._ready if header[0] == FrameKind.WELCOME else State.GREETING)
        return Greeted(container, self.peer)

    def _peer_failed(self, header: Header, body: bytes, _: Sequence[int]) -> PeerFailed:
        self._enter(_CLOSED)
        return PeerFailed(error_of(header[3], body))

    def _check_size(self, size: int, metadata_size: int) -> None:
        limit = max(self.peer.max_payload, MAX_INLINE)
        if size > min(limit, Limit.MAX_PAYLOAD):
            raise MessageTooLong(f"{size} bytes are more than the {limit} that the other side takes inline")
        if metadata_size > MAX_METADATA:
            raise MessageTooLong(f"{metadata_size} bytes of metadata, {MAX_METADATA} are allowed")


def is_inner(container: str, chain: Sequence[str]) -> bool:
    """Tell whether what is sent with that call chain is on behalf of a device of `container` itself."""
    return any(device.startswith(f"{container}/") for device in chain)


def refuse_cycle(container: str, device: str, chain: Sequence[str]) -> None:
    """Raise `DeviceLoop` where a request to the device would come back to it."""
    if f"{container}/{device}" in chain:
        raise DeviceLoop(f"{' -> '.join(chain)} -> {container}/{device} is a cycle")


def kind_name(kind: int) -> str:
    """Return how an error calls a frame of this kind."""
    try:
        return FrameKind(kind).name
    except ValueError:
        return f"a frame of kind {kind}"


def status_of(error: LdmError) -> int:
    """Return the status that an error travels as."""
    return error.errno if 0 < error.errno <= Limit.MAX_ERRNO else LdmError.errno


def error_of(status: int, text: bytes) -> LdmError:
    """Return the error that a status and its message stand for; raise `ProtocolError` for what cannot be one."""
    if not 0 < status <= Limit.MAX_ERRNO or len(text) > Limit.MAX_TEXT:
        raise ProtocolError(f"an error with status {status} and a message of {len(text)} bytes")
    return from_errno(status, text.decode(errors="replace"))


def name_of(name: bytes, what: str) -> str:
    """Return a name that came over the wire; raise `ProtocolError` for what cannot be one."""
    try:
        text = name.decode()
        check_name(text, what)
    except (UnicodeDecodeError, LdmError) as error:
        raise ProtocolError(f"the name of a {what}: {error}") from None
    return text


def chain_of(names: bytes) -> tuple[str, ...]:
    """Return the call chain of an OPEN frame; raise `ProtocolError` for what cannot be one."""
    parts = names.split(b"\0") if names else []
    if len(parts) > Limit.MAX_CHAIN:
        raise ProtocolError(f"a chain of {len(parts)} devices is longer than {Limit.MAX_CHAIN}")
    return tuple(
        f"{name_of(container, 'container')}/{name_of(device, 'device')}"
        for container, _, device in (part.partition(b"/") for part in parts)
    )


def device_of(about: bytes) -> tuple[Kind, int, frozenset[RequestType], Execution]:
    """Return kind, size, types and execution of an OPENED frame."""
    try:
        size, mask, kind, execution = OPENED.struct.unpack(about)
    except struct.error:
        raise ProtocolError(f"OPENED has {OPENED.size} bytes of data, not {len(about)}") from None
    types = frozenset(type for number, type in TYPES.items() if mask >> number & 1)
    known = 1 <= kind <= len(KINDS) and 1 <= execution <= len(EXECUTIONS)
    if not known or mask != sum(1 << type for type in types):
        raise ProtocolError(f"OPENED with kind {kind}, execution {execution}, types {mask:#x}")
    return KINDS[kind - 1], size, types, EXECUTIONS[execution - 1]
