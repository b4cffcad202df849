"""What a provider sees of its container's state: keys and values of its own, and transactions over them.

Concurrency is optimistic (Kung and Robinson, 1981): a transaction holds no lock, so that a handler which waits, or
never comes back, holds up nobody; what it has read is checked when it commits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeVar

from .errors import InvalidRequest, NoSpace, StateConflict
from .journal import Changes, Entries, Entry, Journal, head_of, merged

MAX_KEY = 255
"""The longest key, in bytes of UTF-8."""

T = TypeVar("T")


class Store:
    """What one provider keeps, which the next instance of its container finds: keys that are str, values bytes.

    Reading gives what was committed last.  Each `put` and `delete` is a transaction of its own; several changes, or one
    that depends on what was read, belong into one: `transaction` or `update`.  Any thread may use it, and nothing here
    waits for another's transaction.  Everything may raise `StateDamaged`.
    """

    def __init__(self, journal: Journal, owner: str) -> None:
        self._journal = journal
        self.owner = owner

    def get(self, key: str) -> bytes | None:
        """Return the value of a key, None where there is none."""
        entry = self._journal.entries(self.owner).get(key)
        return entry and entry.value

    def put(self, key: str, value: bytes | bytearray | memoryview) -> None:
        """Set a key, at once.  Raises `NoSpace`, and `InvalidRequest` for a key that is too long."""
        with self.transaction() as transaction:
            transaction.put(key, value)

    def delete(self, key: str) -> None:
        """Delete a key, at once; one that is not there is none to delete."""
        with self.transaction() as transaction:
            transaction.delete(key)

    def __iter__(self) -> Iterator[str]:
        """Yield the keys, in their order."""
        return iter(sorted(self._journal.entries(self.owner)))

    def __len__(self) -> int:
        return len(self._journal.entries(self.owner))

    def __contains__(self, key: object) -> bool:
        return key in self._journal.entries(self.owner)

    def transaction(self) -> Transaction:
        """Begin a transaction."""
        return Transaction(self._journal, self.owner)

    def update(self, change: Callable[[Transaction], T]) -> T:
        """Commit what `change(transaction)` does, and return what it returns; call it again after a `StateConflict`."""
        while True:
            try:
                with self.transaction() as transaction:
                    return change(transaction)
            except StateConflict:
                continue


class Transaction:
    """Changes that are made together: by `commit`, or by the end of a `with` block; an exception in it drops them.

    It reads its own changes, and under them what was committed last.  If anything that it read was changed by another
    transaction meanwhile, `commit` raises `StateConflict` and changes nothing.  It belongs to one thread, and may be
    used again after `commit` or `rollback`.
    """

    def __init__(self, journal: Journal, owner: str) -> None:
        self._journal = journal
        self._owner = owner
        self._changes: Changes = {}
        self._read: dict[str, Entry | None] = {}
        self._listed: frozenset[str] | None = None

    def get(self, key: str) -> bytes | None:
        """Return the value of a key, None where there is none."""
        entry = self._changes[key] if key in self._changes else self._committed(key)
        return entry and entry.value

    def put(self, key: str, value: bytes | bytearray | memoryview) -> None:
        """Set a key.  Raises `InvalidRequest` for one that is too long."""
        check_key(key)
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise TypeError(f"a value of the state is bytes, not {type(value).__name__}")
        data = bytes(value)
        if len(data) > self._journal.capacity:
            raise NoSpace(f"a value of {len(data):,} bytes has no room in a state of {self._journal.capacity:,}")
        self._changes[key] = Entry(head_of(self._owner, key, len(data)), data)

    def delete(self, key: str) -> None:
        """Delete a key; one that is not there is none to delete."""
        check_key(key)
        self._changes[key] = None

    def __iter__(self) -> Iterator[str]:
        """Yield the keys, in their order."""
        committed = self._journal.entries(self._owner).copy()
        if self._listed is None:
            self._listed = frozenset(committed)
        return iter(sorted(merged(committed, self._changes)))

    def commit(self) -> None:
        """Make the changes permanent; when it returns they are.

        Raises `StateConflict` and `NoSpace`; nothing is changed then, and the transaction's changes are dropped.
        """
        try:
            self._journal.commit(self._owner, self._changes, self._is_current)
        finally:
            self.rollback()

    def rollback(self) -> None:
        """Drop the changes, and begin again."""
        self._changes, self._read, self._listed = {}, {}, None

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.rollback()

    def _committed(self, key: str) -> Entry | None:
        entry = self._journal.entries(self._owner).get(key)
        return self._read.setdefault(key, entry)

    def _is_current(self, entries: Entries) -> bool:
        """Tell whether what was read is still so: the entries themselves are compared, a commit makes new ones."""
        return (self._listed is None or self._listed == entries.keys()) and all(
            entries.get(key) is entry for key, entry in self._read.items()
        )


def check_key(key: str) -> None:
    """Raise `InvalidRequest` for what cannot be a key."""
    if not isinstance(key, str):
        raise TypeError(f"a key of the state is a str, not {type(key).__name__}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"{key!r} is no key: it is not valid Unicode") from None
    if size > MAX_KEY:
        raise InvalidRequest(f"a key has at most {MAX_KEY} bytes, not {size}: {key[:40]!r}…")
