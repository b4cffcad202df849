"""The state area: what must outlive a container's process, in memory that its supervisor keeps.

    header       which layout this is, and how large its parts are
    consumers    a table of the opens that were not closed yet: `core.tables`
    journal      what the providers keep: `core.journal`, which they see as `core.store`
    files        another journal: what open files hold, requests to be done again and replies that are to be read

One process writes it at a time, all but the journal from one thread.  When it was killed, at any instruction, the next
one opens the same memory and finds every entry that was there, whole and once.
"""

from __future__ import annotations

import msgspec

from .device import check_name
from .errors import StateDamaged
from .journal import CHECK, Journal, checked, is_whole
from .journal import size_for as journal_size
from .registry import MAX_CONSUMERS
from .store import Store
from .tables import CONSUMER, ConsumerTable, LeftConsumer, Table, up
from .wire import Field, Layout

MAGIC = b"ldmstate"
VERSION = 2

CAPACITY = 4 << 20
"""Bytes of a store, where nothing else is said: keys, values, and 8 bytes and the provider's name for each."""

FILES_CAPACITY = 64 << 20
"""Bytes of what all open files hold that the next instance gets."""

MAX_CAPACITY = 1 << 30
"""The largest store."""

PAGE = 4096
"""The parts begin at multiples of this."""

HEADER = Layout(
    "state area",
    Field("magic", "8s", "MAGIC"),
    Field("version", "I", "VERSION; what a process of another one cannot use"),
    Field("consumers", "I", "slots for consumers"),
    Field("capacity", "Q", "bytes of each log of the store"),
    Field("files", "Q", "bytes of each log of the open files"),
)


class Sizes(msgspec.Struct, frozen=True):
    """How much a state area has room for: consumers, bytes of its store and of its files."""

    consumers: int = MAX_CONSUMERS
    capacity: int = CAPACITY
    files: int = FILES_CAPACITY

    @property
    def total(self) -> int:
        """Bytes of the whole area.  Memory is taken only for what is used."""
        return self.file_journal + journal_size(self.files)

    @property
    def file_journal(self) -> int:
        """Where the journal of the open files begins."""
        return self.journal + up(journal_size(self.capacity), PAGE)

    @property
    def journal(self) -> int:
        """Where the journal begins; the table of the consumers is at `PAGE`."""
        return PAGE + up(Table.size_for(self.consumers, CONSUMER), PAGE)


SIZES = Sizes()


class Left(msgspec.Struct, frozen=True):
    """What was in a state area when it was opened.

    The consumers are in the order of their ids.  `damaged` is how many entries of the table were no entries, which are
    free again now, and `store_damage` what is wrong with the store.
    """

    consumers: tuple[LeftConsumer, ...]
    damaged: int
    store_damage: str


class StateArea:
    """One container's state, in memory that was formatted once.

    Opening it writes nothing but that entries which are none are free again, and that damaged files are empty.  Raises
    `StateDamaged` for memory that holds no state area, or one of another version.
    """

    def __init__(self, view: memoryview) -> None:
        sizes = _sizes(view)
        self.consumers = ConsumerTable(view, PAGE, sizes.consumers)
        self.journal = Journal(view, sizes.journal, sizes.capacity)
        self._files = Journal(view, sizes.file_journal, sizes.files)
        self.files = Store(self._files, "files")
        """What open files hold, by consumer id."""
        self._left = Left(self.consumers.left, self.consumers.damaged, self.journal.damage)
        if self._files.damage:
            self._files.reset()  # what it had is lost, as with a process that is killed

    @staticmethod
    def format(view: memoryview, sizes: Sizes = SIZES) -> None:
        """Make an empty state area of `sizes.total` bytes of memory, whatever is in it."""
        if not 0 < sizes.capacity <= MAX_CAPACITY:
            raise ValueError(f"a store has at most {MAX_CAPACITY:,} bytes, not {sizes.capacity:,}")
        Table.format(view, PAGE, sizes.consumers)
        Journal.format(view, sizes.journal, sizes.capacity)
        Journal.format(view, sizes.file_journal, sizes.files)
        numbers = sizes.consumers, sizes.capacity, sizes.files
        header = checked(HEADER.struct.pack(MAGIC, VERSION, *numbers))
        view[: len(header)] = header

    def recover(self) -> Left:
        """Return what was there when the area was opened: what the instances before this one have left."""
        return self._left

    def store(self, owner: str) -> Store:
        """Return what the provider of that name keeps."""
        check_name(owner, "provider")
        return Store(self.journal, owner)


def _sizes(view: memoryview) -> Sizes:
    """Return what the header says, having checked it."""
    header = bytes(view[: CHECK + HEADER.size])
    if not header[CHECK:].startswith(MAGIC) or not is_whole(header):
        raise StateDamaged("this memory holds no state area, or its header was written over")
    _, version, consumers, capacity, files = HEADER.struct.unpack(header[CHECK:])
    sizes = Sizes(consumers, capacity, files)
    if version != VERSION:
        raise StateDamaged(f"the state area is of version {version}, and this ldmfs has {VERSION}")
    if len(view) < sizes.total:
        raise StateDamaged(f"the state area has {len(view):,} bytes, and its header says {sizes.total:,}")
    return sizes
