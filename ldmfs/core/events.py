"""What the direct channel's machines tell their edges, and the limits that the two sides tell each other."""

from __future__ import annotations

import enum
from typing import Any, TypeAlias

import msgspec

from .device import Execution, Kind
from .errors import LdmError
from .request import Reply, Request, RequestType
from .wire import Limit


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


class Moving(msgspec.Struct):
    """The provider's process is going to end: the edge connects anew when the connection has ended.

    What `again` are the contexts of was not taken, and is to be sent over the next connection; it is in the order in
    which it was sent.  `released` are those of what had been cancelled before.
    """

    again: list[Any]
    released: list[Any]


class OpenRequested(msgspec.Struct):
    """A consumer opens `device`; `chain` are the devices, as `container/device`, on whose behalf it does so.

    With `again` it had the device open, over a connection to an earlier instance of the container.
    """

    id: int
    device: str
    chain: tuple[str, ...]
    again: bool = False


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


ConsumerEvent: TypeAlias = Greeted | PeerFailed | ArenaGone | Opened | Replied | Failed | Closed | Released | Moving
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
    MOVING = "moving"
    PIECES = "pieces"
    MEMORY = "memory"
    CLOSED = "closed"
