"""Replies that their writer closed without reading, for the next reader of the same user and login session.

`echo hello > device; cat device` are two opens, so two consumers: the reply of the first is kept here until the second
asks.  One for each device and login session, bounded in number and bytes, and only for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from .device import NO_SESSION, Peer
from .errors import LdmError

MAX_KEPT = 256
"""Replies kept by one container; the oldest makes room."""

MAX_KEPT_BYTES = 64 << 20
"""Their bytes altogether; the oldest make room."""

KEPT_SECONDS = 60.0
"""How long a reply is kept."""

Key = tuple[int, int, int]


class KeptReply(msgspec.Struct, frozen=True):
    """The reply of consumer `writer`, or the error it would have got."""

    writer: int
    data: bytes | bytearray | memoryview
    error: LdmError | None
    expires: float


class KeptReplies:
    """The kept replies of one container; `clock` tells seconds that only grow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.bytes = 0
        self.added: Callable[[Key, KeptReply], object] = lambda key, kept: None
        """Called with each reply that is kept from now on, and for whom."""
        self.dropped: Callable[[KeptReply], object] = lambda kept: None
        """Called with each that is kept no longer."""
        self._kept: dict[Key, KeptReply] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(
        self, device: int, peer: Peer, writer: int, data: bytes | bytearray | memoryview, error: LdmError | None
    ) -> None:
        """Keep a reply for the next reader of `device` in the session of `peer`; it replaces an earlier one."""
        if peer.session == NO_SESSION:
            return
        self._drop((device, peer.uid, peer.session))
        reply = KeptReply(writer, data, error, self.clock() + KEPT_SECONDS)
        self._kept[device, peer.uid, peer.session] = reply
        self.bytes += len(data)
        self.added((device, peer.uid, peer.session), reply)
        self.expire()
        while len(self._kept) > MAX_KEPT or self.bytes > MAX_KEPT_BYTES:
            self._drop(next(iter(self._kept)))

    def left(self) -> Iterator[tuple[Key, KeptReply]]:
        """Yield what is kept, and for whom."""
        self.expire()
        yield from self._kept.items()

    def go_on_with(self, key: Key, kept: KeptReply) -> None:
        """Keep what another instance of the container has kept."""
        self._drop(key)
        self._kept[key] = kept
        self.bytes += len(kept.data)

    def find(self, device: int, peer: Peer) -> KeptReply | None:
        """Return the reply that waits for a reader like `peer`, or None."""
        if not self._kept or peer.session == NO_SESSION:
            return None
        self.expire()
        return self._kept.get((device, peer.uid, peer.session))

    def take(self, device: int, peer: Peer) -> KeptReply | None:
        """Return the reply that waits for a reader like `peer`, which is thereby no longer kept, or None."""
        return self._drop((device, peer.uid, peer.session)) if self.find(device, peer) else None

    def withdraw(self, device: int, peer: Peer, writer: int) -> None:
        """Forget what consumer `writer` left: it goes on with the file itself, through another descriptor."""
        kept = self._kept.get((device, peer.uid, peer.session))
        if kept is not None and kept.writer == writer:
            self._drop((device, peer.uid, peer.session))

    def forget_device(self, device: int) -> None:
        """Forget the replies of a device that was destroyed."""
        for key in [key for key in self._kept if key[0] == device]:
            self._drop(key)

    def expire(self) -> None:
        """Forget what was kept long enough.  In order of age, so that only what has expired is looked at."""
        now = self.clock()
        while self._kept:
            key, kept = next(iter(self._kept.items()))
            if kept.expires > now:
                return
            self._drop(key)

    def _drop(self, key: Key) -> KeptReply | None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.bytes -= len(kept.data)
            self.dropped(kept)
        return kept
