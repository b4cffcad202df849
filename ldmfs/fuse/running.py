"""A handler that may have to wait: it runs in a task of its own, so that who asked may leave before it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from ..core.errors import LdmError

T = TypeVar("T")


class Running:
    """One run of a handler.  `scope` cancels it, `done` is set when it has ended, or is given up."""

    __slots__ = ("done", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.done = trio.Event()

    async def run(
        self, ended: Callable[[T | LdmError | None], object], call: Callable[..., Awaitable[T]], *args: object
    ) -> None:
        """Run the handler, and tell `ended` what it has come to, which is None where it was cancelled.

        That is told before anyone goes on who waits for `done`, and is not kept here: it may be large.
        """
        outcome: T | LdmError | None = None
        try:
            with self.scope:
                try:
                    outcome = await call(*args)
                except LdmError as error:
                    outcome = error
            ended(outcome)
        finally:
            self.done.set()
