"""What an open file leaves in the state area for the next instance of its container."""

from __future__ import annotations

import msgspec

from ..core.errors import LdmError, NoSpace, from_errno
from ..core.request import Reply, Request, RequestType
from ..core.store import Store


class Asked(msgspec.Struct, tag=0, array_like=True, frozen=True):
    """A request that can be done again: its reply was not read to the end."""

    begin: int
    """Where the reply begins by the kernel's count, which goes on behind what was written."""
    request_type: int
    length: int
    data: bytes

    def request(self) -> Request:
        """Return the request."""
        return Request(RequestType(self.request_type), self.data, length=self.length)


class Given(msgspec.Struct, tag=1, array_like=True, frozen=True):
    """A reply that an instance had when it handed over, and that was read up to `offset`."""

    begin: int
    offset: int
    is_kept: bool
    """It waits for the next reader of the session, too."""
    data: bytes


class Refused(msgspec.Struct, tag=2, array_like=True, frozen=True):
    """An error that nobody was told yet."""

    begin: int
    is_kept: bool
    errno: int
    message: str


class Kept(msgspec.Struct, tag=3, array_like=True, frozen=True):
    """A reply, or an error, that is kept for the next reader of a session: see `core.kept`."""

    device: int
    uid: int
    session: int
    writer: int
    expires: float
    """In seconds since the epoch."""
    errno: int
    """Not 0 where it is an error, which `data` tells in words."""
    data: bytes


Record = Asked | Given | Refused | Kept

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder[Record](Record).decode


def outcome_of(record: Given | Refused) -> Reply | LdmError:
    """Return what the file's request has come to."""
    return Reply(record.data) if isinstance(record, Given) else from_errno(record.errno, record.message)


class Left:
    """What one open file has left in the store: its last record, or nothing."""

    __slots__ = ("_is_there", "_key", "_store")

    def __init__(self, store: Store, consumer_id: int) -> None:
        self._store = store
        self._key = str(consumer_id)
        self._is_there = False

    def find(self) -> Record | None:
        """Return what an earlier instance has left."""
        left = self._store.get(self._key)
        self._is_there = left is not None
        return None if left is None else decode(left)

    def put(self, record: Record) -> None:
        """Leave a record.  Where there is no room it will be lost with this process, as where nothing is reissued."""
        try:
            self._store.put(self._key, encode(record))
            self._is_there = True
        except NoSpace:
            self.forget()

    def forget(self) -> None:
        """Leave nothing."""
        if self._is_there:
            self._store.delete(self._key)
            self._is_there = False
