"""Completion handlers: how one is run, and the thread that runs those of a connection that threads use."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ..core.errors import LdmError
from ..core.request import Reply
from ..core.wire import Frames
from .waiter import NOTHING, Outcome, Waiter

log = logging.getLogger("ldmfs.consumer")

Completion = Callable[[Any, Reply | LdmError], object]


def run_handler(handler: Completion, context: Any, outcome: Any) -> None:
    """Run a completion handler; what it raises is logged, since nobody is left to be told."""
    try:
        handler(context, outcome)
    except Exception:
        log.exception("a completion handler raised")


class CompletionThread:
    """The thread of one connection that runs completion handlers, and reads where nobody else does.

    It is there as long as there is something to do, and lingers for more.  `lock` is the connection's, and is held by
    whoever calls anything but `run_apart` and `join`.
    """

    def __init__(
        self,
        lock: threading.Lock,
        call: Callable[[Callable[[Waiter], Frames]], object],
        linger: Callable[[], None],
        has_unsent: Callable[[], bool],
    ) -> None:
        """Begin without a thread.

        `call` asks something of the connection and waits for the answer; `linger` waits, with the lock, for a while;
        `has_unsent` tells whether there are frames that wait for room in the socket, which takes somebody who reads.
        """
        self._lock, self._call, self._linger, self._has_unsent = lock, call, linger, has_unsent
        self.expected: set[Waiter] = set()
        """Requests that are outstanding."""
        self.completed: deque[tuple[Completion, Any, Outcome]] = deque()
        """Handlers that are to be run."""
        self._due: Waiter | None = None
        self._thread: threading.Thread | None = None

    def waiter(self, handler: Completion, context: Any) -> Waiter:
        """Return who waits for a request's outcome in place of its handler; `expected` has it when it is asked."""

        def completed(waiter: Waiter) -> None:
            assert waiter.outcome is not None
            self.expected.discard(waiter)
            self.completed.append((handler, context, waiter.outcome))
            self.wake()

        return Waiter(completed)

    def start(self) -> None:
        """See that the thread is there."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ldmfs-completions", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Let the thread look at what there is to do, where it reads."""
        if self._due is not None:
            self._due.end(NOTHING)

    def run_apart(self) -> None:
        """Run what has ended in a thread of its own: this one may be reading."""
        threading.Thread(target=self._run_completed, name="ldmfs-completions", daemon=True).start()

    def join(self) -> None:
        """Return when the thread has ended, as it does when the connection has and nothing is left to be done."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._has_work():
                    self._linger()
                if not self._has_work():
                    self._thread = None
                    return
            self._complete_some()

    def _complete_some(self) -> None:
        """Wait for an end, where nothing has ended, and run the handlers of what has."""
        with self._lock:
            waits = not self.completed
        if waits:
            with contextlib.suppress(LdmError):
                self._call(self.wait_for_any)
            self._due = None
        self._run_completed()

    def _run_completed(self) -> None:
        """Run the handlers of what has ended; its variables, and so replies, are gone behind it."""
        with self._lock:
            completed, self.completed = self.completed, deque()
        while completed:
            run_handler(*completed.popleft())

    def _has_work(self) -> bool:
        return bool(self.completed or self.expected) or self._has_unsent()

    def wait_for_any(self, waiter: Waiter) -> Frames:
        """Ask nothing: the waiter's outcome is that of the next request with a completion handler."""
        self._due = waiter
        if self.completed or not self._has_work():
            waiter.end(NOTHING)
        return ()
