"""What an open device is to its consumer, whichever API it was opened by."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from ..core.device import Kind
from ..core.errors import HandleClosed
from ..core.request import Reply, Request, RequestType
from .name import DeviceName, Marshal, Outcome, Unmarshal, marshalled, outcome_of, unmarshalled


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


class OpenDeviceBase(Generic[Way]):
    """A device that was opened, and the way to it until it is closed."""

    def __init__(self, name: DeviceName, way: Way, marshal: Marshal | None, unmarshal: Unmarshal | None) -> None:
        self.name = str(name)
        self._learn(way)
        self._way: Way | None = way
        self._marshal = marshal
        self._unmarshal = unmarshal

    def _learn(self, way: About) -> None:
        self.consumer_id = way.consumer_id
        self.kind = way.kind
        self.size = way.size
        self.accepts = way.accepts

    def _learner(self) -> Callable[[About], None]:
        """Return what tells the device of a way that was opened anew, and does not keep it from being given up."""
        learn = weakref.WeakMethod(self._learn)

        def tell(way: About) -> None:
            if (alive := learn()) is not None:
                alive(way)

        return tell

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
