"""A way to a device that outlives its provider's process, for threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Protocol

from ..core.errors import HandleClosed, LdmError, QueueFull
from ..core.request import Reply, Request
from .device import About
from .name import as_error
from .retry import GONE, Outstanding, Patience, RetryingBase, open_anew


class Way(About, Protocol):
    """An open device, by whatever path."""

    def request(self, request: Request) -> Reply: ...
    def close(self) -> None: ...


class Retrying(RetryingBase[Way]):
    """The ways to one device, each opened when the provider of the one before has ended.

    `_opening` is held by the thread that opens anew; the others wait for it, and find the new way.  `_lock` guards the
    rest, and is never held while anything waits.
    """

    _closed: threading.Event

    def __init__(self, open: Callable[[float], Way], seconds: float) -> None:
        """Open the device; `open` gets the time of `time.monotonic` at which waiting for a provider is to end."""
        super().__init__(seconds, time.monotonic)
        self._open = open
        self._closed = threading.Event()
        self._opening = threading.Lock()
        self._lock = threading.Lock()
        self._ended: list[tuple[Way, Outstanding, LdmError]] = []
        self._resending = False
        self._way = self._opened(Patience(seconds))

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

    def close(self) -> None:
        """Close the device, and give up what is being tried again."""
        self._closed.set()
        with self._lock:
            way = self._way
        way.close()

    # -- the way

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

    def _wait_for(self, each: Outstanding) -> None:
        threading.Thread(target=self._finish, args=(each,), name="ldmfs-request", daemon=True).start()

    def _finish(self, each: Outstanding) -> None:
        try:
            outcome: Reply | LdmError = self.request(each.request)
        except Exception as error:
            outcome = as_error(error)
        each.handler(None, outcome)

    def _put_off(self, way: Way, each: Outstanding, error: LdmError) -> None:
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
