"""What an open file needs of the mount that it is in."""

from __future__ import annotations

from typing import Protocol

import trio

from ..core.dispatch import Dispatch
from ..core.errors import LdmError
from ..core.kept import KeptReplies
from ..core.store import Store
from .waiting import Watch


class Surroundings(Protocol):
    """What a file needs of the mount that it is in."""

    files: Store | None
    """What open files leave for the next instance of the container."""
    reissue: bool
    """What was written and not answered to the end is kept there at once, to be done again after a crash."""
    ending: LdmError | None
    """What requests end with that the container gives up, as its time is over."""
    dispatch: Dispatch
    kept: KeptReplies
    watch: Watch
    nursery: trio.Nursery
