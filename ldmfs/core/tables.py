"""The table of the state area: the consumers of a container, for the instance after it.

A table is slots of one size, whose first byte says what the entry is: 0 is a slot that is free.  An entry is written
into a free slot and then published by that byte, changed and removed by it, and never moved.  So no kill can cut it, as
`core.journal` explains.  Each entry has a checksum, for writes that are not ours.  Slots are cleared and taken into use
by chunks, each marked by one byte: so a table may have room for very many, and takes memory for those that there were.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import msgspec

from .device import Consumer, Peer
from .errors import HandleClosed, QueueFull
from .journal import CHECK, is_whole
from .wire import Field, Layout

CHUNK = 256
"""Slots that are taken into use at a time."""

PATHS = ("file", "channel", "local", "kernel")
"""How a consumer may have come, in the order of their numbers."""

_PATH_NUMBERS = {path: number for number, path in enumerate(PATHS)}


class Stage(enum.IntEnum):
    """What an entry is of: one byte, which is written last."""

    OPENING = 1
    """Its open handler has not returned: nobody was told that it is open."""
    OPENED = 2
    """Its open handler has returned; whether its opener was told so is not known."""
    OPEN = 3
    """It is open."""
    CLOSING = 4
    """Its close handler has begun."""
    ASKED = 5
    """An open file to which a message was written, whose reply was not read."""
    READING = 6
    """One whose reply was read in part."""
    READ = 7
    """One whose reply was read to its last byte."""


_STAGES = {int(stage): stage for stage in Stage}
_OPENING, _OPENED, _OPEN, _CLOSING = map(int, (Stage.OPENING, Stage.OPENED, Stage.OPEN, Stage.CLOSING))

CONSUMER = Layout(
    "consumer",
    Field("id", "Q", "the consumer id"),
    Field("device_id", "Q", "the device, by the id that its name has in every instance of the container"),
    Field("since", "d", "when it was opened, in seconds since the epoch"),
    Field("pid", "I", "the process that opened it"),
    Field("uid", "I", "its user"),
    Field("gid", "I", "its group"),
    Field("session", "i", "its login session"),
    Field("flags", "I", "those of open(2), where it is a file"),
    Field("path", "I", "place in PATHS"),
    Field("tid", "I", "the thread that opened it"),
)

WAKER = Layout(
    "waker",
    Field("waker", "Q", "what wakes those who wait in poll(2) for the open file; the same as long as it is open"),
)
"""It comes once, when the entry has long been published: so behind the entry, with a mark and without a checksum."""

HAS_WAKER = 1
"""Where that mark is in a slot: it is 1 when the waker has been written."""

_NO_MARKS = bytes(CHECK - 1)


class LeftConsumer(msgspec.Struct, frozen=True):
    """A consumer that an earlier instance had, and that is still in the table."""

    id: int
    device_id: int
    peer: Peer
    since: float
    flags: int
    stage: Stage
    waker: int = 0
    """What wakes those who wait for its file; 0 where nobody ever has."""

    @property
    def is_gone(self) -> bool:
        """Whether nobody can use it: it was closing, nobody was told of it, or its connection ended with that instance.

        One that was `OPENING` is owed its close handler too, for what its open handler may have done already.
        """
        return self.stage in (Stage.OPENING, Stage.CLOSING) or self.peer.path not in ("file", "kernel")


class Table:
    """Slots for entries of one layout, from `begin` on: first a byte for each chunk of them, then the slots."""

    def __init__(self, view: memoryview, begin: int, slots: int, layout: Layout) -> None:
        self._view = view
        self._pack = layout.struct.pack
        self._unpack = layout.struct.unpack
        self._end = 2 * CHECK + layout.size
        self._begin = begin
        self._slots = slots
        self._stride = _stride(layout)
        self._fresh: list[int] = []
        self._free: list[int] = []
        self.damaged = 0

    @staticmethod
    def size_for(slots: int, layout: Layout) -> int:
        """Return how many bytes a table takes."""
        return _marks(slots) + slots * _stride(layout)

    @staticmethod
    def format(view: memoryview, begin: int, slots: int) -> None:
        """Make a table empty, whatever was there."""
        view[begin : begin + _marks(slots)] = bytes(_marks(slots))

    def _put(self, stage: int, body: bytes) -> int:
        """Enter an entry and return its slot, which is where it is in the area.  Raises `QueueFull`."""
        if not self._free:
            self._take_chunk()
        slot = self._free.pop()
        self._view[slot + 1 : slot + self._end] = _NO_MARKS + crc32(body).to_bytes(CHECK, "little") + body
        self._view[slot] = stage
        return slot

    def _drop(self, slot: int) -> None:
        self._view[slot] = 0
        self._free.append(slot)

    def _damaged(self, slot: int) -> None:
        self.damaged += 1
        self._drop(slot)

    def _take_chunk(self) -> None:
        if not self._fresh:
            raise QueueFull(f"the state area has room for {self._slots:,} of these, and they are there")
        chunk = self._fresh.pop()
        slots = self._slots_of(chunk)
        self._view[slots.start : slots.stop] = bytes(slots.stop - slots.start)
        self._view[self._begin + chunk] = 1
        self._free.extend(reversed(slots))

    def _slots_of(self, chunk: int) -> range:
        first = self._begin + _marks(self._slots)
        all_of_them = range(first, first + self._slots * self._stride, self._stride)
        return all_of_them[chunk * CHUNK : (chunk + 1) * CHUNK]

    def _load(self) -> Iterator[tuple[int, Stage, tuple[Any, ...]]]:
        """Yield slot, stage and fields of each entry; what is no entry is counted and removed."""
        for chunk in reversed(range(_chunks(self._slots))):  # so that the lowest slots are the first to be used
            if not self._view[self._begin + chunk]:
                self._fresh.append(chunk)
                continue
            slots = self._slots_of(chunk)
            stages = bytes(self._view[slots.start : slots.stop : slots.step])
            self._free.extend(slot for slot, stage in zip(reversed(slots), reversed(stages), strict=True) if not stage)
            for slot, stage in zip(slots, stages, strict=True):
                if stage:
                    body = bytes(self._view[slot + CHECK : slot + self._end])
                    if stage in _STAGES and is_whole(body):
                        yield slot, _STAGES[stage], self._unpack(body[CHECK:])
                    else:
                        self._damaged(slot)


class ConsumerTable(Table):
    """The consumers of one container, each from before its open handler begins until its close handler has ended."""

    def __init__(self, view: memoryview, begin: int, slots: int) -> None:
        super().__init__(view, begin, slots, CONSUMER)
        self._at: dict[int, int] = {}
        self.left = tuple(sorted(self._recover(), key=lambda consumer: consumer.id))

    def __len__(self) -> int:
        return len(self._at)

    def add(self, consumer: Consumer, flags: int = 0) -> None:
        """Enter a consumer as `Stage.OPENING`; `flags` are those of open(2).

        Raises `QueueFull` when the table is full, `ValueError` for a consumer that is there.
        """
        if consumer.id in self._at:
            raise ValueError(f"consumer {consumer.id} is in the table already")
        peer = consumer.peer
        self._at[consumer.id] = self._put(
            _OPENING,
            self._pack(
                consumer.id, consumer.device.id, consumer.since,
                peer.pid, peer.uid, peer.gid, peer.session, flags, _PATH_NUMBERS[peer.path], peer.tid,
            ),
        )  # fmt: skip

    def opened(self, id: int) -> None:
        """Note that a consumer's open handler has returned.  Call it before anyone is told."""
        self._view[self._slot(id)] = _OPENED

    def answered(self, id: int) -> None:
        """Note that the opener of a consumer was told that it is open, unless more than that is known of it already."""
        slot = self._at.get(id)
        if slot is not None and self._view[slot] == _OPENED:
            self._view[slot] = _OPEN

    def idle(self, id: int) -> None:
        """Note that an open file has no request whose reply is to be read; not for one that is `Stage.CLOSING`."""
        self._view[self._slot(id)] = _OPEN

    def stage_byte(self, id: int) -> tuple[memoryview, int]:
        """Return where the stage of a consumer is, for who changes it with each request."""
        return self._view, self._slot(id)

    def waited_for(self, id: int, waker: int) -> None:
        """Note what wakes those who wait in poll(2).  Call it before the first of them is answered, and once."""
        slot = self._slot(id)
        self._view[slot + self._end : slot + self._end + WAKER.size] = WAKER.struct.pack(waker)
        self._view[slot + HAS_WAKER] = 1

    def closing(self, id: int) -> None:
        """Note that a consumer's close handler begins."""
        self._view[self._slot(id)] = _CLOSING

    def remove(self, id: int) -> None:
        """Forget a consumer, if it is there."""
        slot = self._at.pop(id, None)
        if slot is not None:
            self._drop(slot)

    def _slot(self, id: int) -> int:
        try:
            return self._at[id]
        except KeyError:
            raise HandleClosed(f"there is no consumer {id} in the state area") from None

    def _recover(self) -> Iterator[LeftConsumer]:
        for slot, stage, (id, device_id, since, pid, uid, gid, session, flags, path, tid) in self._load():
            if id in self._at or path >= len(PATHS):
                self._damaged(slot)
                continue
            self._at[id] = slot
            peer = Peer(pid, uid, gid, session, PATHS[path], tid=tid)
            yield LeftConsumer(id, device_id, peer, since, flags, stage, self._waker(slot))

    def _waker(self, slot: int) -> int:
        if not self._view[slot + HAS_WAKER]:
            return 0
        begin = slot + self._end
        return int.from_bytes(self._view[begin : begin + WAKER.size], "little")


def _chunks(slots: int) -> int:
    return -(-slots // CHUNK)


def _marks(slots: int) -> int:
    """Return how many bytes the marks of the chunks take."""
    return up(_chunks(slots), 64)


def _stride(layout: Layout) -> int:
    """Return how far apart slots are: stage, a mark, two bytes unused, checksum, fields, waker."""
    return up(2 * CHECK + layout.size + WAKER.size, 16)


def up(size: int, unit: int) -> int:
    """Return `size`, rounded up to a multiple of `unit`."""
    return -(-size // unit) * unit
