"""Devices and their consumers: what a container's registry holds.

`Device` is what the author of a provider writes, `LogicalDevice` the registry's record of one that was created, and
`Consumer` one `open_device` that was not closed yet.
"""

from __future__ import annotations

import enum
import functools
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

from .errors import InvalidRequest, NameTooLong, NoSpace
from .request import Request, RequestType

MAX_NAME = 255
"""The longest name of a container or a device, in bytes of UTF-8: what the kernel allows for a file."""

MESSAGE_TYPES = frozenset({RequestType.READ, RequestType.CALL, RequestType.FLUSH, RequestType.NON_STANDARD})
BLOCK_TYPES = frozenset({RequestType.READ, RequestType.WRITE, RequestType.FLUSH, RequestType.TRIM})

OpenHandler: TypeAlias = Callable[[str, int], Awaitable[None] | None]
CloseHandler: TypeAlias = Callable[[str, int], Awaitable[None] | None]
RequestHandler: TypeAlias = Callable[[str, int, Request], Any]


class Kind(enum.StrEnum):
    """What the file of a device is like: a place to exchange messages, or a range of bytes."""

    MESSAGE = "message"
    BLOCK = "block"


class Device:
    """The class form of a device: subclass it, write `request`, and pass an instance to `create_device`.

    Each handler is a plain function or `async`.  A plain one runs on the container's loop and must not block; one that
    does block is run in a worker thread when the class says `thread = True`.
    """

    kind: Kind = Kind.MESSAGE
    mode: int = 0o666
    """Permission bits of the device's file, which count on every path."""
    uid: int | None = None
    """The owner; None is the user of the container's process."""
    gid: int | None = None
    description: str = ""
    """One line for `ls`, `getfattr` and the graph."""
    takes: str = ""
    """What a request holds, in a few words."""
    gives: str = ""
    """What a reply holds, in a few words."""
    accepts: frozenset[RequestType] | None = None
    """Request types that reach the handler; the others are refused with `EOPNOTSUPP`.  None is all of the kind's."""
    size: int = 0
    """Bytes of a block device."""
    thread: bool = False
    """The handlers block: run them in a worker thread."""

    marshal: Callable[[Any], bytes] | None = None
    """Makes bytes of the object that a NON_STANDARD request is answered with, for a consumer in another container."""
    unmarshal: Callable[[bytes], Any] | None = None
    """Makes the object of a NON_STANDARD request of the bytes that came from another container."""

    def open(self, consumer_id: int) -> Awaitable[None] | None:
        """Take note of a new consumer.  An `LdmError` refuses it."""

    def adopt(self, consumer_id: int) -> Awaitable[None] | None:
        """Take over a consumer that an earlier instance of the container had, and whose file is still open.

        For devices that keep something about their consumers: what `open` did is done again, or found in
        `Provider.state`.  A device that has an `open` and no `adopt` refuses, and the consumer gets `StaleHandle`; one
        that has neither knows nothing of its consumers, and adopts all.  An `LdmError` refuses one.
        """

    def close(self, consumer_id: int) -> Awaitable[None] | None:
        """Forget a consumer: run once for each `open` that succeeded, also when the consumer was killed.

        After a crash of the container it is also run for an `open` that was cut short, and once more for a `close` that
        was: so the consumer may be unknown.
        """

    def request(self, consumer_id: int, request: Request) -> Any:
        """Answer one request with bytes, a `Reply` or None; an `LdmError` is the consumer's error."""
        raise NotImplementedError(f"{type(self).__name__} has no request handler")


class Execution(enum.Enum):
    """How a handler is run."""

    INLINE = "inline"
    ASYNC = "async"
    THREAD = "thread"


NO_SESSION = -1
"""The login session of whoever the kernel cannot tell of: it is gone, or there is none."""


class Peer(msgspec.Struct, frozen=True):
    """Who opened a device, as the kernel tells it.

    `pid` is the process, 0 where the kernel cannot say, `session` its login session (`getsid`); `path` is how the
    consumer came: `file`, `channel`, `local` or `kernel`.
    """

    pid: int = 0
    uid: int = 0
    gid: int = 0
    session: int = NO_SESSION
    path: str = "file"
    container: str | None = None
    chain: tuple[str, ...] = ()
    """The devices, as `container/device`, on whose behalf it was opened."""
    tid: int = 0
    """The thread that opened a file, 0 where the kernel cannot say."""


class Consumer:
    """One open of a device: from `open_device` to `close_device`, or to the consumer's death."""

    __slots__ = (
        "cancels", "closing", "device", "drained", "errors", "flags", "id", "peer", "requests", "since", "stale",
    )  # fmt: skip

    def __init__(self, id: int, device: LogicalDevice, peer: Peer, flags: int = 0) -> None:
        self.id = id
        self.device = device
        self.peer = peer
        self.flags = flags
        """Those of open(2), where it came by the device's file."""
        self.stale = False
        """It was opened under an earlier instance of the container, and the device could not adopt it."""
        self.since = time.time()
        self.requests = 0
        self.errors = 0
        self.cancels: dict[int, Callable[[], None]] = {}
        """The requests that are running off the loop's fast path, each with what cancels it."""
        self.closing = False
        self.drained: Callable[[], None] | None = None

    def describe(self) -> dict[str, Any]:
        """Return what the graph tells of this consumer, as plain data."""
        return {
            "id": self.id,
            "pid": self.peer.pid,
            "uid": self.peer.uid,
            "container": self.peer.container,
            "chain": self.peer.chain,
            "path": self.peer.path,
            "since": self.since,
            "requests": self.requests,
            "errors": self.errors,
            "outstanding": len(self.cancels),
        }


class LogicalDevice:
    """The registry's record of a device that exists."""

    __slots__ = (
        "accepts",
        "adopt_execution",
        "adopt_handler",
        "close_execution",
        "close_handler",
        "consumers",
        "created",
        "description",
        "gid",
        "gives",
        "id",
        "kind",
        "marshal",
        "mode",
        "name",
        "open_execution",
        "open_handler",
        "provider",
        "request_execution",
        "request_handler",
        "size",
        "takes",
        "uid",
        "unmarshal",
    )  # fmt: skip

    def __init__(self, name: str, id: int, device: Device, provider: str, owner: tuple[int, int]) -> None:
        self.name = name
        self.id = id
        self.provider = provider
        try:
            self.kind = Kind(device.kind)
        except ValueError as error:
            raise InvalidRequest(f"device {name!r}: {error}") from None
        self.mode = device.mode & 0o7777
        self.uid = owner[0] if device.uid is None else device.uid
        self.gid = owner[1] if device.gid is None else device.gid
        self.description = device.description
        self.takes = device.takes
        self.gives = device.gives
        kinds = BLOCK_TYPES if self.kind is Kind.BLOCK else MESSAGE_TYPES
        self.accepts = kinds if device.accepts is None else device.accepts
        self.size = device.size
        self.created = time.time()
        self.consumers: dict[int, Consumer] = {}
        self.marshal = device.marshal
        self.unmarshal = device.unmarshal
        self.open_handler = device.open
        self.close_handler = device.close
        self.request_handler = device.request
        keeps_nothing = is_default(device, "open") and is_default(device, "adopt")
        self.adopt_handler = device.adopt if keeps_nothing or not is_default(device, "adopt") else None
        self.adopt_execution = execution(device.adopt, thread=device.thread and not keeps_nothing)
        self.open_execution = execution(device.open, thread=device.thread and not is_default(device, "open"))
        self.close_execution = execution(device.close, thread=device.thread and not is_default(device, "close"))
        self.request_execution = execution(device.request, thread=device.thread)

    def bounded(self, request: Request) -> Request:
        """Return the request as the handler of a block device gets it: within the device, `length` bytes.

        What is read or trimmed ends at the device's end.  Raises `NoSpace` for a WRITE that would go beyond it.
        """
        if request.type is RequestType.WRITE:
            size = len(request.data)
            if request.offset + size > self.size:
                raise NoSpace(f"{size} bytes at {request.offset} lie behind the end of the device")
            return request if request.length == size else request.forward(length=size)
        room = max(0, self.size - request.offset)
        return request if request.length <= room else request.forward(length=room)

    def describe(self) -> dict[str, Any]:
        """Return what the graph tells of this device, as plain data."""
        return {
            "name": self.name,
            "kind": self.kind.value,
            "mode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
            "size": self.size,
            "provider": self.provider,
            "description": self.description,
            "takes": self.takes,
            "gives": self.gives,
            "consumers": [consumer.describe() for consumer in tuple(self.consumers.values())],
        }


def is_default(device: Device, handler: str) -> bool:
    """Tell whether `handler` is the one that does nothing, which needs no thread."""
    return getattr(type(device), handler) is getattr(Device, handler) and handler not in device.__dict__


def execution(handler: Callable[..., Any], *, thread: bool) -> Execution:
    """Tell how `handler` has to be run: `async` wins over `thread`, since awaiting needs the loop."""
    plain = handler
    while isinstance(plain, functools.partial):
        plain = plain.func
    if inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(getattr(plain, "__call__", None)):  # noqa: B004
        return Execution.ASYNC
    return Execution.THREAD if thread else Execution.INLINE


def from_handlers(
    name: str,
    open_handler: OpenHandler | None,
    close_handler: CloseHandler | None,
    request_handler: RequestHandler | None,
    attributes: dict[str, Any],
) -> Device:
    """Return the `Device` that three handler functions and some attributes make: the form of `create_device`."""
    if request_handler is None:
        raise InvalidRequest(f"device {name!r} has no request handler; pass request_handler")
    device = Device()
    for key, value in attributes.items():
        if key.startswith("_") or not hasattr(Device, key) or key in ("open", "adopt", "close", "request"):
            raise InvalidRequest(f"device {name!r}: there is no attribute {key!r}")
        setattr(device, key, value)
    if open_handler is not None:
        device.open = functools.partial(open_handler, name)  # type: ignore[method-assign]
    if close_handler is not None:
        device.close = functools.partial(close_handler, name)  # type: ignore[method-assign]
    device.request = functools.partial(request_handler, name)  # type: ignore[method-assign]
    return device


def check_name(name: str, what: str = "device") -> None:
    """Raise `InvalidRequest` or `NameTooLong` unless `name` can be the name of a file."""
    if not isinstance(name, str):
        raise InvalidRequest(f"the name of a {what} is a str, not {type(name).__name__}")
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InvalidRequest(f"{name!r} cannot be the name of a {what}: it is empty, '.', '..', or has a slash or NUL")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name!r} cannot be the name of a {what}: it is not valid Unicode") from None
    if len(encoded) > MAX_NAME:
        raise NameTooLong(f"the name of a {what} has {len(encoded)} bytes, {MAX_NAME} are allowed: {name[:40]!r}…")
