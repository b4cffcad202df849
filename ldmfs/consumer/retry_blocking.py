"""A way to a device that outlives its provider's process, for threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..core.device import Kind
from ..core.errors import HandleClosed, LdmError, QueueFull
from ..core.request import Reply, Request, RequestType
from .device import About
from .name import as_error
from .retry import GONE, Outstanding, Patience, Pipelined, gone, open_anew


class Way(About, Protocol):
    """An open device, by whatever path."""

    def request(self, request: Request) -> Reply: ...
    def close(self) -> None: ...


class Retrying:
    """The ways to one device, each opened when the provider of the one before has ended.

    `_opening` is held by the thread that opens anew; the others wait for it, and find the new way.  `_lock` guards the
    rest, and is never held while anything waits.
    """

    def __init__(self, open: Callable[[float], Way], seconds: float) -> None:
        """Open the device; `open` gets the time of `time.monotonic` at which waiting for a provider is to end."""
        self._open = open
        self._seconds = seconds
        self._closed = threading.Event()
        self._opening = threading.Lock()
        self._lock = threading.Lock()
        self._ended: list[tuple[Way, Outstanding, LdmError]] = []
        self._resending = False
        self._way = self._opened(Patience(seconds))

    @property
    def consumer_id(self) -> int:
        return self._way.consumer_id

    @property
    def kind(self) -> Kind:
        return self._way.kind

    @property
    def size(self) -> int:
        return self._way.size

    @property
    def accepts(self) -> frozenset[RequestType]:
        return self._way.accepts

    def request(self, request: Request) -> Reply:
        """Send a request, again and again while its provider ends.  Raises the last end when `seconds` are over."""
        patience: Patience | None = None
        while True:
            way, sent = self._way, time.monotonic()
            try:
                return way.request(request)
            except LdmError as error:
                if not self._is_gone(way, error):
                    raise
                patience = self._patience(patience, sent)
                if (pause := patience.pause()) is None:
                    raise
                self._pause(pause)
                self._renew(way, patience)

    def request_soon(self, request: Request, handler: Callable[[Any, Any], object]) -> None:
        """Send a request; `handler(None, reply or error)` is run once, in another thread.

        Raises, and does not run the handler, when the request is refused at the entrance.
        """
        self._start(Outstanding(request, handler))

    def close(self) -> None:
        """Close the device, and give up what is being tried again."""
        self._closed.set()
        with self._lock:
            way = self._way
        way.close()

    # -- the way

    def _is_gone(self, way: Way, error: LdmError) -> bool:
        return not self._closed.is_set() and gone(way, error, replaced=way is not self._way)

    def _patience(self, patience: Patience | None, sent: float) -> Patience:
        """Return a new patience for the first failure, and for one of a request that was served for long."""
        return patience if patience and time.monotonic() - sent < self._seconds else Patience(self._seconds)

    def _pause(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise HandleClosed("the device was closed while its provider was away")

    def _renew(self, way: Way, patience: Patience) -> None:
        """Open the device anew, where `way` is at its end and no other thread has done so."""
        with self._opening:
            if self._way is not way or not open_anew(way):
                return
            new = self._opened(patience)
            with self._lock:
                self._way = new
                closed = self._closed.is_set()
            with contextlib.suppress(LdmError):  # what a file has to tell of a provider that is gone
                way.close()
        if closed:
            new.close()
            raise HandleClosed("the device was closed while it was opened anew")

    def _opened(self, patience: Patience) -> Way:
        while True:
            try:
                return self._open(patience.deadline)
            except GONE:
                if (pause := patience.pause()) is None:
                    raise
                self._pause(pause)

    # -- completion handlers

    def _start(self, each: Outstanding) -> None:
        """Send a request, over a connection if there is one; raise what it is refused with at the entrance."""
        way, each.sent = self._way, time.monotonic()
        if not isinstance(way, Pipelined):
            threading.Thread(target=self._wait_for, args=(each,), name="ldmfs-request", daemon=True).start()
            return
        try:
            way.request_soon(each.request, lambda _, outcome: self._take(way, each, outcome))
        except LdmError as error:
            if not self._is_gone(way, error):
                raise
            self._put_off(way, each, error)

    def _wait_for(self, each: Outstanding) -> None:
        try:
            outcome: Reply | LdmError = self.request(each.request)
        except Exception as error:
            outcome = as_error(error)
        each.handler(None, outcome)

    def _take(self, way: Way, each: Outstanding, outcome: Reply | LdmError) -> None:
        if isinstance(outcome, LdmError) and self._is_gone(way, outcome):
            self._put_off(way, each, outcome)
        else:
            each.handler(None, outcome)

    def _put_off(self, way: Way, each: Outstanding, error: LdmError) -> None:
        """Leave a request to the thread that sends again: who comes here has others to serve."""
        with self._lock:
            self._ended.append((way, each, error))
            start, self._resending = not self._resending, True
        if start:
            threading.Thread(target=self._resend, name="ldmfs-retry", daemon=True).start()

    def _resend(self) -> None:
        """Send again what was put off, all that there is at a time, until there is nothing more."""
        while True:
            with self._lock:
                ended, self._ended = self._ended, []
                if not ended:
                    self._resending = False
                    return
            again: list[tuple[Way, Outstanding, Patience]] = []
            longest = 0.0
            for way, each, error in ended:
                each.patience = self._patience(each.patience, each.sent)
                if (pause := each.patience.pause()) is None:
                    each.handler(None, error)
                else:
                    longest = max(longest, pause)
                    again.append((way, each, each.patience))
            self._closed.wait(longest)
            for way, each, patience in again:
                self._again(way, each, patience)

    def _again(self, way: Way, each: Outstanding, patience: Patience) -> None:
        try:
            self._pause(0)
            self._renew(way, patience)
            self._start(each)
        except QueueFull as error:  # as many as were outstanding may be again, if others let them
            self._put_off(self._way, each, error)
        except Exception as error:
            each.handler(None, as_error(error))
