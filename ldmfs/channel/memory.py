"""Arenas as shared memory: making them, taking them from a peer, and which data lies where.

An arena is a memfd that is sealed against being resized, so that no peer can make a mapping fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import threading
import weakref
from collections import deque
from typing import Protocol

import msgspec

from ..core.arena import Arena, OwnArena
from ..core.blocks import Block, Chain
from ..core.errors import ProtocolError
from ..core.extents import ArenaExhausted, Extent
from ..core.wire import BLOCK, Limit

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

LEAST_ARENA = 64 << 20
"""Bytes of address space of an arena.  Memory is taken only for what is written."""

ARENA_BLOCKS = 256
"""Parameter blocks of an arena."""

LARGE = 64 << 10
"""From this many bytes on, of input or expected output, a request travels in shared memory: below, a copy is faster."""


class Borrower(Protocol):
    """A connection that has passed on an arena which another one had brought."""

    def withdraw(self, shared: SharedArena) -> None:
        """Take note that the arena is gone."""


class SharedArena:
    """One arena, mapped into this process, with the descriptor by which the next hop can map it."""

    def __init__(self, fd: int, size: int, blocks: int, *, own: bool) -> None:
        self.fd = fd
        self.size = size
        self.blocks = blocks
        self.borrowers: weakref.WeakSet[Borrower] = weakref.WeakSet()
        """Those that are told when it is closed.  Not kept: they know requests, and so the memory."""
        self.mapping = mmap.mmap(fd, size)
        self.arena: Arena = (OwnArena if own else Arena)(memoryview(self.mapping), blocks)

    @classmethod
    def create(cls, size: int, blocks: int) -> SharedArena:
        """Make an arena.  Raises `OSError` where there is no memory for it."""
        fd = os.memfd_create("ldmfs-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            return cls(fd, size, blocks, own=True)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, size: int, blocks: int) -> SharedArena:
        """Map a peer's arena; `fd` is taken over.  Raises `ProtocolError` for what is no sealed memory of that size."""
        try:
            if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK or os.fstat(fd).st_size < size:
                raise ProtocolError("an arena is a memfd of its size that is sealed against shrinking")
            return cls(fd, size, blocks, own=False)
        except (OSError, ProtocolError) as error:
            os.close(fd)
            raise ProtocolError(f"the arena cannot be mapped: {error}") from None

    def close(self) -> None:
        """Let go of the memory, as soon as nobody holds a view of it any more."""
        borrowers = tuple(self.borrowers)
        self.borrowers.clear()
        for borrower in borrowers:
            borrower.withdraw(self)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        with contextlib.suppress(BufferError):  # a view is held still; the mapping goes with the last one
            self.arena.release()
            self.mapping.close()


class Place:
    """Where a request's data is, which blocks its provider may use, and where its output may go."""

    __slots__ = ("block", "buffer", "chain", "data", "input", "shared")

    def __init__(
        self, shared: SharedArena, block: Block, chain: Chain, data: Extent | None, input: object = None
    ) -> None:
        self.shared = shared
        self.block = block
        self.chain = chain
        self.data = data
        self.input = input
        """The request's data, a view of `data`."""
        self.buffer: memoryview | None = None

    def without_data(self) -> Place:
        """Return the place for a request with other data in the same chain."""
        return Place(self.shared, self.block, self.chain, None)

    def output(self, size: int) -> memoryview | None:
        """Return the first `size` bytes of the block's output area, None where it is smaller."""
        area = self.block.output_area
        if size > area.size:
            return None
        self.buffer = self.shared.arena.part(area)
        return self.buffer[:size]

    def extent_of(self, data: object) -> Extent | None:
        """Return where `data` is if it is the request's, or begins at the output area that `output` lent, else None."""
        if data is self.input and self.data is not None:
            return self.data
        if (
            self.buffer is None
            or not isinstance(data, memoryview)
            or data.obj is not self.buffer.obj
            or not data.nbytes
        ):
            return None
        begin = self.block.output_area.location
        return Extent(begin, data.nbytes) if _starts_at(data, self.buffer) else None


class ReplyPlace(msgspec.Struct, frozen=True):
    """Where a reply's data is."""

    shared: SharedArena
    data: Extent


def _starts_at(data: memoryview, buffer: memoryview) -> bool:
    return ctypes.addressof(ctypes.c_char.from_buffer(data)) == ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Pool:
    """The arenas that a process makes for the chains that begin on one connection.

    Not shared between connections: whoever has an arena mapped reads all of it.
    """

    def __init__(self) -> None:
        self.arenas: list[SharedArena] = []
        self._closed = False
        self._lock = threading.Lock()
        self._freed: deque[tuple[SharedArena, Chain]] = deque()

    def allocate(self, blocks: int, input_size: int, output_size: int) -> tuple[SharedArena, Chain]:
        """Allocate a chain, in a new arena where the others have no room.  Raises `ArenaExhausted`."""
        with self._lock:
            self._take_back()
            for shared in self.arenas:
                with contextlib.suppress(ArenaExhausted):
                    return shared, self._own(shared).allocate(blocks, input_size, output_size)
            needed = blocks * (input_size + output_size + 256) + ARENA_BLOCKS * BLOCK.size
            size = max(LEAST_ARENA, -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE)
            if self._closed or size > Limit.MAX_ARENA or len(self.arenas) >= Limit.MAX_ARENAS or blocks > ARENA_BLOCKS:
                raise ArenaExhausted(f"no arena can be had for {needed} bytes")
            try:
                shared = SharedArena.create(size, ARENA_BLOCKS)
            except OSError as error:
                raise ArenaExhausted(f"no arena can be had: {error.strerror}") from None
            self.arenas.append(shared)
            return shared, self._own(shared).allocate(blocks, input_size, output_size)

    def give_back(self, shared: SharedArena, chain: Chain, block: Block) -> None:
        """Take back a block of a chain, and the chain if it begins here; by a finalizer, so at any time."""
        chain.give_back(block)
        if shared in self.arenas:
            self._freed.append((shared, chain))

    def _take_back(self) -> None:
        while self._freed:
            shared, chain = self._freed.popleft()
            if shared in self.arenas:
                self._own(shared).free(chain)

    @staticmethod
    def _own(shared: SharedArena) -> OwnArena:
        assert isinstance(shared.arena, OwnArena)
        return shared.arena

    def close(self) -> None:
        """Let go of all arenas, and make no more: a peer that is lost may still write into them."""
        with self._lock:
            arenas, self.arenas, self._closed = self.arenas, [], True
            self._freed.clear()
        for shared in arenas:
            shared.close()
