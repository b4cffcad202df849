"""A way to a device that outlives its provider's process: what is the same for threads and for trio's tasks.

A container's crash is over in a moment: the supervisor keeps its socket, so that connecting waits for the next
instance.  What cannot wait there, as a connection that breaks again and again, is paused between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from ..core.errors import HandleClosed, LdmError, NotServed, ProviderDied, StaleHandle
from ..core.request import Reply, Request
from .device import About, Described

RETRY_SECONDS = 30.0
"""How long a device that is opened with `retry` waits for its provider to be there again."""

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
"""Seconds before the third attempt, which double with each further one, up to the longest; the second is at once."""

GONE = NotServed, ProviderDied
Way = TypeVar("Way", bound=About)

_FILE_GONE = *GONE, StaleHandle
_FILE_REPLACED = *_FILE_GONE, HandleClosed


@runtime_checkable
class Pipelined(Protocol):
    """A way by connection, which tells when that is lost, and takes requests without waiting."""

    @property
    def lost(self) -> bool: ...
    def request_soon(self, request: Request, handler: Callable[[Any, Any], object]) -> None: ...


def gone(way: About, error: BaseException, *, replaced: bool) -> bool:
    """Tell whether a request over `way` ended since its provider did, so that it is to be sent again.

    A file that was opened under an instance that is gone is stale; one that another thread has `replaced` is closed.
    """
    if isinstance(way, Pipelined):
        return isinstance(error, GONE) or (isinstance(error, StaleHandle) and way.lost)
    return isinstance(error, _FILE_REPLACED if replaced else _FILE_GONE)


def open_anew(way: About) -> bool:
    """Tell whether a provider's end was that of this way's own: else it lives, and has passed on another's."""
    return not isinstance(way, Pipelined) or way.lost


class Patience:
    """How long one request is tried again, from its first failure on: until `deadline`, in the time of `clock`."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.deadline = clock() + seconds
        self._clock = clock
        self._pause = 0.0

    def pause(self) -> float | None:
        """Return the seconds to wait before the next attempt, None where there is to be none."""
        remaining = self.deadline - self._clock()
        if remaining <= 0:
            return None
        pause, self._pause = self._pause, min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
        return min(pause, remaining)


class Outstanding:
    """A request with a completion handler, until that is called."""

    def __init__(self, request: Request, handler: Callable[[Any, Reply | LdmError], object]) -> None:
        # A buffer is the sender's own again when `send_request` has returned.
        self.request = request if type(request.data) is bytes else request.forward(data=bytes(request.data))
        self.handler = handler
        self.sent = 0.0
        self.patience: Patience | None = None


class Flag(Protocol):
    """An event, of threads or of trio."""

    def is_set(self) -> bool: ...


class RetryingBase(Described, Generic[Way]):
    """What does not wait of the ways to one device, each opened when the provider of the one before has ended."""

    _way: Way
    """The one of now."""
    _closed: Flag
    """Whether the consumer has closed the device."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock

    def _source(self) -> About:
        return self._way

    def request_soon(self, request: Request, handler: Callable[[Any, Any], object]) -> None:
        """Send a request; `handler(None, reply or error)` is run once, in another thread or task.

        Raises, and does not run the handler, when the request is refused at the entrance.
        """
        self._start(Outstanding(request, handler))

    def _start(self, each: Outstanding) -> None:
        """Send a request, over a connection if there is one; raise what it is refused with at the entrance."""
        way, each.sent = self._way, self._clock()
        connection: About = way
        if not isinstance(connection, Pipelined):
            self._wait_for(each)
            return
        try:
            connection.request_soon(each.request, lambda _, outcome: self._take(way, each, outcome))
        except LdmError as error:
            if not self._is_gone(way, error):
                raise
            self._put_off(way, each, error)

    def _take(self, way: Way, each: Outstanding, outcome: Reply | LdmError) -> None:
        if isinstance(outcome, LdmError) and self._is_gone(way, outcome):
            self._put_off(way, each, outcome)
        else:
            each.handler(None, outcome)

    def _wait_for(self, each: Outstanding) -> None:
        """Send a request over a way that makes its caller wait, in a thread or task that may."""
        raise NotImplementedError

    def _put_off(self, way: Way, each: Outstanding, error: LdmError) -> None:
        """Leave a request, ended by `error` over `way`, to who sends again: who comes here has others to serve."""
        raise NotImplementedError

    def _is_gone(self, way: Way, error: LdmError) -> bool:
        return not self._closed.is_set() and gone(way, error, replaced=way is not self._way)

    def _patience(self, patience: Patience | None, sent: float) -> Patience:
        """Return a new patience for the first failure, and for one of a request that was served for long."""
        return patience if patience and self._clock() - sent < self._seconds else Patience(self._seconds, self._clock)
