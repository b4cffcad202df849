"""Parts of an arena, and the books of those that are free."""

from __future__ import annotations

import errno
from typing import NamedTuple

from .errors import LdmError


class ArenaExhausted(LdmError):
    """The arena has no block or no room left: the request travels inline instead."""

    errno = errno.ENOMEM


class Extent(NamedTuple):
    """Bytes of an arena, or blocks of one."""

    location: int
    size: int


NOTHING = Extent(0, 0)


class Space:
    """The free parts of a range, in order: first fit, neighbours joined."""

    def __init__(self, location: int, size: int) -> None:
        self.free = [Extent(location, size)] if size else []

    def take(self, size: int, limit: int | None = None) -> Extent:
        """Take the first part that has `size`, and as much of it as `limit` allows; raise `ArenaExhausted`."""
        for place, part in enumerate(self.free):
            if part.size >= size:
                taken = Extent(part.location, size if limit is None else min(part.size, limit))
                rest = Extent(part.location + taken.size, part.size - taken.size)
                self.free[place : place + 1] = [rest] if rest.size else []
                return taken
        raise ArenaExhausted(f"no {size} in a row are left in the arena")

    def give(self, part: Extent) -> None:
        """Take back what `take` returned."""
        joined = [NOTHING]
        for each in sorted((*self.free, part)):
            last = joined[-1]
            if last.location + last.size == each.location:
                joined[-1] = Extent(last.location, last.size + each.size)
            else:
                joined.append(each)
        self.free = [each for each in joined if each.size]
