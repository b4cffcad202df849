"""A container that goes on without a supervisor, at whose door the next one is."""

from __future__ import annotations

import socket
from typing import NamedTuple

from ..container.control import Kept, KeptFds
from ..container.link import Link


class Adopted(NamedTuple):
    """What a container that goes on has kept for its new supervisor."""

    link: Link
    kept: Kept
    fds: KeptFds


class Orphan:
    """A container that runs without a supervisor; we are at its door."""

    def __init__(self, end: socket.socket) -> None:
        self._link = Link(end)

    async def adopt(self) -> Adopted | None:
        """Take over the container once it has time for it; None when it has ended."""
        kept = await self._link.receive()
        if isinstance(kept, Kept):
            return Adopted(self._link, kept, KeptFds(*self._link.take_fds()))
        await self._link.aclose()
        return None

    async def aclose(self) -> None:
        """Go away from its door."""
        await self._link.aclose()
