"""Who waits for an answer over the channel, and what comes of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from ..core.blocks import Block, Chain
from ..core.errors import LdmError
from ..core.events import Closed, Greeted, Opened
from ..core.request import Reply, Request
from .memory import SharedArena

Outcome: TypeAlias = Reply | Opened | Closed | Greeted | LdmError

NOTHING = Closed(0, 0, None)
"""The outcome where nothing had to be asked.  No `Reply`, after which the leader looks at nothing."""


class Waiter(msgspec.Struct, eq=False):
    """Who waits for an answer: `done`, if there is one, is called once, with the outcome set."""

    done: Callable[[Waiter], None] | None = None
    outcome: Outcome | None = None
    shared: SharedArena | None = None
    chain: Chain | None = None
    block: Block | None = None
    id: int = 0
    """Of the frame that asks, over the connection that there is now."""
    opens: tuple[str, tuple[str, ...]] | None = None
    """What `Client.open` was asked, which may have to be asked again over another connection."""
    requests: tuple[int, str, int, Request] | None = None
    """The same of `Client.request`."""

    def end(self, outcome: Outcome) -> None:
        """Set the outcome, once."""
        if self.outcome is None:
            self.outcome = outcome
            if self.done is not None:
                self.done(self)

    def own(self, data: bytes) -> None:
        """Let a request that nobody waits for, and that may be asked again, have data of its own.

        A buffer is its sender's own again as soon as it is sent.
        """
        assert self.requests is not None
        consumer_id, device, blocks, request = self.requests
        self.requests = consumer_id, device, blocks, request.forward(data=data)


def raise_error(outcome: Outcome) -> Any:
    """Return an outcome, or raise the error that it is.

    No frame that the error passes may know it afterwards: its traceback would make a cycle of them, which keeps the
    request's memory mapped until it is collected.  The callers delete it, too.
    """
    if type(outcome) is not Reply and isinstance(outcome, LdmError):
        try:
            raise outcome
        finally:
            del outcome
    return outcome
