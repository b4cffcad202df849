"""What an open device is to its consumer, whichever API it was opened by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from ..core.device import Kind
from ..core.errors import HandleClosed
from ..core.events import Opened
from ..core.request import Reply, Request, RequestType
from .name import DeviceName, Marshal, Outcome, Unmarshal, marshalled, outcome_of, unmarshalled


class Connection(Protocol):
    """A client of the direct channel."""

    @property
    def lost(self) -> bool: ...
    def is_refused(self, consumer_id: int) -> bool: ...


class About(Protocol):
    """What every way to a device knows of it."""

    @property
    def consumer_id(self) -> int: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def size(self) -> int: ...
    @property
    def accepts(self) -> frozenset[RequestType]: ...


Way = TypeVar("Way", bound=About)


class Described:
    """What tells of a device as something behind it does, which may be another one later."""

    def _source(self) -> About:
        """Return what is behind it now."""
        raise NotImplementedError

    @property
    def consumer_id(self) -> int:
        """What identifies this open to the provider: another one when the provider was replaced meanwhile."""
        return self._source().consumer_id

    @property
    def kind(self) -> Kind:
        """What the device is like."""
        return self._source().kind

    @property
    def size(self) -> int:
        """Bytes of a block device."""
        return self._source().size

    @property
    def accepts(self) -> frozenset[RequestType]:
        """The types of requests that the consumer may send."""
        return self._source().accepts


class OverChannel(Described):
    """What a way over the direct channel knows of its device, whose provider may move."""

    _opened: Opened
    """Of now: the client sees to that."""
    _id: int
    """The consumer id of the first open, by which the client knows the device."""
    _client: Connection

    def _source(self) -> About:
        return self._opened

    @property
    def lost(self) -> bool:
        """Whether the device has to be opened anew."""
        return self._client.lost or self._client.is_refused(self._id)


class OpenDeviceBase(Described, Generic[Way]):
    """A device that was opened, and the way to it until it is closed."""

    def __init__(self, name: DeviceName, way: Way, marshal: Marshal | None, unmarshal: Unmarshal | None) -> None:
        self.name = str(name)
        self._about: About = way
        self._way: Way | None = way
        self._marshal = marshal
        self._unmarshal = unmarshal

    def _source(self) -> About:
        return self._about

    def _checked(self) -> Way:
        if self._way is None:
            raise HandleClosed(f"device {self.name} is closed")
        return self._way

    def _outgoing(self, request: Request) -> Request:
        return marshalled(request, self._marshal)

    def _incoming(self, request: Request, reply: Reply) -> Reply:
        return unmarshalled(request, reply, self._unmarshal)

    def _to(self, request: Request, done: Callable[[Outcome], None]) -> Callable[[Any, Outcome], None]:
        """Return a completion handler that tells `done` what has come of a request that left the container."""
        return lambda _, outcome: done(outcome_of(request, outcome, self._unmarshal))
