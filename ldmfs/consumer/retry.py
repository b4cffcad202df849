"""When a request is sent again after its provider has ended, and when that is given up: for both consumer APIs.

A container's crash is over in a moment: the supervisor keeps its socket, so that connecting waits for the next
instance.  What cannot wait there, as a connection that breaks again and again, is paused between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from ..core.errors import HandleClosed, LdmError, NotServed, ProviderDied, StaleHandle
from ..core.request import Reply, Request
from .device import About

RETRY_SECONDS = 30.0
"""How long a device that is opened with `retry` waits for its provider to be there again."""

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
"""Seconds before the third attempt, which double with each further one, up to the longest; the second is at once."""

GONE = NotServed, ProviderDied
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
