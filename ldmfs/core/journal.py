"""The transactional store of providers, in memory that outlives the process: the previous commit or the next, no third.

    superblock 0    the odd and the even commits take turns: each says how far which log goes
    superblock 1
    log 0           records, each one commit: the keys that it put and deleted
    log 1           where the log is begun anew, with all that is there, when it has grown too long

It is the log-structured file system with its two checkpoint regions (Rosenblum and Ousterhout, 1992) in small: a commit
appends to the log, behind its end, and then overwrites the older superblock.  What the newer superblock names is never
touched, so whoever comes next finds it whole.  A commit costs what it changes; to begin the log anew costs all that is
there, and is done when the log is `SLACK` times as long as that, so that it is a constant part of each commit.

What a kill may cut.  A kill ends the process between two instructions, and stores that follow each other in Python are
not reordered.  But one of them may take many instructions: `struct.pack_into` first clears all fields and then fills
each byte by byte, the assignment of a slice is a `memcpy`, which writes in any order.  Only that of a single byte is
whole on every machine and in every version of Python.  So a superblock is marked with one byte as being written before
it is, and with another one as valid after it was, and nothing else decides what a kill has left.  The checksums are
for what should not happen, as when C code of a provider runs wild: then the store is damaged and gives nothing.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias
from zlib import crc32

from .errors import NoSpace, StateConflict, StateDamaged
from .wire import Field, Layout

SLACK = 4
"""A log is begun anew when it has this many times the bytes of what is there."""

LEAST_LOG = 64 << 10
"""Bytes up to which a log may grow in any case."""

SUPERBLOCK = Layout(
    "superblock",
    Field("sequence", "Q", "the number of the last commit"),
    Field("log", "Q", "where the log begins, in bytes from the store's begin"),
    Field("end", "Q", "where it ends, likewise"),
)

RECORD = Layout(
    "record",
    Field("sequence", "Q", "the number of the commit; one more than that of the record before it"),
    Field("size", "Q", "bytes of the entries that follow"),
)

ENTRY = Layout(
    "entry",
    Field("deleted", "B", "1 where the key is deleted, 0 where it is put"),
    Field("owner_size", "B", "bytes of the provider's name, which follows"),
    Field("key_size", "H", "bytes of the key, which comes next"),
    Field("value_size", "I", "bytes of the value, which comes last"),
)

BEING_WRITTEN = 0x5A
VALID = 0xA5
CHECK = 4
"""Bytes of a checksum (CRC-32), which stands before what it is of; and where it stands, behind the mark."""

STRIDE = 64
"""Bytes from one superblock to the next."""

OVERHEAD = CHECK + RECORD.size
"""Bytes of a record beside its entries."""


class Entry(NamedTuple):
    """A key's value, with what stands before it in a record."""

    head: bytes
    value: bytes

    @property
    def size(self) -> int:
        """Bytes that it takes in a record."""
        return len(self.head) + len(self.value)


Entries: TypeAlias = dict[str, Entry]
Changes: TypeAlias = dict[str, Entry | None]


def checked(data: bytes) -> bytes:
    """Return `data` with its checksum before it."""
    return crc32(data).to_bytes(CHECK, "little") + data


def is_whole(data: bytes | memoryview) -> bool:
    """Tell whether `data` is as `checked` made it."""
    return crc32(data[CHECK:]) == int.from_bytes(data[:CHECK], "little")


def size_for(capacity: int) -> int:
    """Return how many bytes a store of that capacity takes."""
    return 2 * STRIDE + 2 * capacity


class Journal:
    """The store of one container, on the `size_for(capacity)` bytes of `view` from `begin` on.

    Opening it reads what is there and writes nothing; `format` makes an empty one.  `damage` tells what is wrong with
    it, empty where nothing is.  Any thread may use it.
    """

    def __init__(self, view: memoryview, begin: int, capacity: int) -> None:
        self._view = view
        self._begin = begin
        self.capacity = capacity
        self.damage = ""
        self._lock = threading.Lock()
        self._superblock = 0, 0, 0
        self._owners: dict[str, Entries] = {}
        self._live = 0
        self._load()

    @classmethod
    def format(cls, view: memoryview, begin: int, capacity: int) -> None:
        """Make the store empty, whatever was there."""
        view[begin] = view[begin + STRIDE] = BEING_WRITTEN
        _publish(view, begin, 0, 2 * STRIDE, 2 * STRIDE)

    def reset(self) -> None:
        """Forget all keys of all providers: the way out of damage."""
        with self._lock:
            self.format(self._view, self._begin, self.capacity)
            self._load()

    def entries(self, owner: str) -> Entries:
        """Return what provider `owner` committed, not to be changed.  Raises `StateDamaged`."""
        if self.damage:
            raise StateDamaged(f"the container's state is damaged: {self.damage}")
        return self._owners.get(owner, {})

    def commit(self, owner: str, changes: Changes, is_current: Callable[[Entries], bool]) -> None:
        """Make `changes` of provider `owner` permanent, all or none; when it returns they are.

        Raises `StateConflict` unless `is_current` says that they still go with what is there, `NoSpace` when there is
        no room for them, and `StateDamaged`.
        """
        with self._lock:
            entries = self.entries(owner)
            if not is_current(entries):
                raise StateConflict("another transaction has changed what this one has read: begin it again")
            if not changes:
                return
            live = self._live + sum(_size(new) - _size(entries.get(key)) for key, new in changes.items())
            if OVERHEAD + live > self.capacity:
                raise NoSpace(
                    f"the container's state is full: {OVERHEAD + live:,} bytes of {self.capacity:,}; "
                    "delete keys, or give the container a larger state_size"
                )
            try:
                self._write(owner, changes, live)
                self._apply(owner, changes, live)
            except BaseException:
                self._load()  # a signal handler has raised: what was published counts
                raise

    def _write(self, owner: str, changes: Changes, live: int) -> None:
        sequence, log, end = self._superblock
        sequence += 1
        record = _record(sequence, (change or _deletion(owner, key) for key, change in changes.items()))
        room = min(self.capacity, max(LEAST_LOG, SLACK * (OVERHEAD + live)))
        if end + len(record) > log + room:
            log = end = 2 * STRIDE + self.capacity * (log == 2 * STRIDE)
            after = {**self._owners, owner: merged(self._owners.get(owner, {}), changes)}
            record = _record(sequence, itertools.chain.from_iterable(each.values() for each in after.values()))
        at = self._begin + end
        self._view[at : at + len(record)] = record
        self._superblock = _publish(self._view, self._begin, sequence, log, end + len(record))

    def _apply(self, owner: str, changes: Changes, live: int) -> None:
        entries = self._owners.setdefault(owner, {})
        for key, new in changes.items():
            if new is None:
                entries.pop(key, None)
            else:
                entries[key] = new
        self._live = live

    def _load(self) -> None:
        owners: dict[str, Entries] = {}
        damage = ""
        try:
            self._superblock = max(self._superblocks())
            for body in self._records(*self._superblock):
                _replay(owners, body)
        except (ValueError, struct.error) as error:
            damage = str(error)
        self._owners, self.damage = owners, damage  # only now: other threads read them meanwhile
        self._live = sum(entry.size for entries in owners.values() for entry in entries.values())

    def _superblocks(self) -> Iterator[tuple[int, int, int]]:
        marks = [self._view[self._begin + number * STRIDE] for number in (0, 1)]
        if VALID not in marks or not {VALID, BEING_WRITTEN}.issuperset(marks):
            raise ValueError("its superblocks are marked neither as valid nor as being written")
        for number, mark in enumerate(marks):
            if mark == VALID:
                at = self._begin + number * STRIDE + CHECK
                block = bytes(self._view[at : at + CHECK + SUPERBLOCK.size])
                if not is_whole(block):
                    raise ValueError(f"the checksum of superblock {number} is wrong")
                sequence, log, end = SUPERBLOCK.struct.unpack(block[CHECK:])
                yield sequence, log, end

    def _records(self, last: int, at: int, end: int) -> Iterator[bytes]:
        """Yield the entries of each record of a log, in order."""
        log = memoryview(bytes(self._view[self._begin + at : self._begin + end]))
        sequence, at = -1, 0
        while at < len(log):
            number, size = RECORD.struct.unpack_from(log, at + CHECK) if at + OVERHEAD <= len(log) else (0, 0)
            following = at + OVERHEAD + size
            if following > len(log) or not is_whole(log[at:following]) or sequence not in (-1, number - 1):
                raise ValueError(f"the record behind commit {sequence} is wrong")
            yield bytes(log[at + OVERHEAD : following])
            sequence, at = number, following
        if sequence != (last or -1):
            raise ValueError(f"its log ends with commit {sequence}, not with {last}")


def _publish(view: memoryview, begin: int, sequence: int, log: int, end: int) -> tuple[int, int, int]:
    """Write the superblock of a commit over that of the commit before the last one."""
    at = begin + STRIDE * (sequence % 2)
    view[at] = BEING_WRITTEN
    view[at + CHECK : at + 2 * CHECK + SUPERBLOCK.size] = checked(SUPERBLOCK.struct.pack(sequence, log, end))
    view[at] = VALID
    return sequence, log, end


def _record(sequence: int, entries: Iterable[Entry]) -> bytes:
    body = b"".join(itertools.chain.from_iterable(entries))
    return checked(RECORD.struct.pack(sequence, len(body)) + body)


def _replay(owners: dict[str, Entries], body: bytes) -> None:
    """Do again what a record's entries did."""
    at = 0
    while at < len(body):
        deleted, owner_size, key_size, value_size = ENTRY.struct.unpack_from(body, at)
        owner = at + ENTRY.size
        key = owner + owner_size
        value = key + key_size
        end = value + value_size
        entries = owners.setdefault(body[owner:key].decode(), {})
        if deleted:
            entries.pop(body[key:value].decode(), None)
        else:
            entries[body[key:value].decode()] = Entry(body[at:value], body[value:end])
        at = end


def head_of(owner: str, key: str, value_size: int, *, deleted: bool = False) -> bytes:
    """Return what stands before a key's value in a record."""
    names = owner.encode(), key.encode()
    return ENTRY.struct.pack(deleted, len(names[0]), len(names[1]), value_size) + b"".join(names)


def _deletion(owner: str, key: str) -> Entry:
    return Entry(head_of(owner, key, 0, deleted=True), b"")


def _size(entry: Entry | None) -> int:
    return entry.size if entry else 0


def merged(entries: Entries, changes: Changes) -> Entries:
    """Return the entries as the changes make them."""
    return {key: entry for key, entry in {**entries, **changes}.items() if entry is not None}
