"""That each completion handler is run exactly once: at the latest when the program ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from ..core.errors import RequestCancelled
from .name import Outcome

Done = Callable[[Outcome], None]


class Completions:
    """The requests of this process whose completion handlers have not been run; a forked process begins without.

    What comes first runs a handler, the reply or the end of the program, which waits for handlers that run by then.
    """

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._due: dict[Completion, Done] = {}
        self._running = 0

    def send(self, send: Callable[[Done], None], done: Done) -> None:
        """Call `send` with what runs `done` once; where that raises, nothing runs it any more."""
        completion = Completion(self)
        self._due[completion] = done
        try:
            send(completion)
        except BaseException:
            self._due.pop(completion, None)
            raise

    def run(self, completion: Completion, outcome: Outcome) -> None:
        """Run a handler that was not run yet."""
        with self._changed:
            done = self._due.pop(completion, None)
            if done is None:
                return
            self._running += 1
        try:
            done(outcome)
        finally:
            with self._changed:
                self._running -= 1
                if not self._running:
                    self._changed.notify_all()

    def end(self) -> None:
        """Run what is due with an error, in place of threads that the end of the program stops anywhere."""
        for completion in tuple(self._due):
            self.run(completion, RequestCancelled("the program ended"))
        with self._changed:
            while self._running:
                self._changed.wait()


class Completion:
    """What runs the completion handler of one request, the first time that it is called."""

    __slots__ = ("_completions",)

    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    def __call__(self, outcome: Outcome) -> None:
        self._completions.run(self, outcome)
