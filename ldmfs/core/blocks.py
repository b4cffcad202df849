"""Parameter blocks: the memory in which the requests of one call chain lie.

An arena is one piece of shared memory, mapped by every process that takes part in the chain:

    headers of all blocks, `BLOCK.size` bytes each      0 … blocks * BLOCK.size
    input and output areas of the blocks                … the end

Who owns what.  The first consumer made the arena and is the only one that allocates in it (`OwnArena`), from books in
its own memory.  For each request that starts a chain it allocates a `Chain` of n blocks.  Each request of the chain
takes one block and is lent further ones behind it, from which its provider takes the blocks of its own requests, and so
on.  What was lent comes back with the reply.  So no block is ever handed out twice and there is no shared counter: one
could not be raised atomically from Python, and a peer could set it back.

Whoever has an arena mapped reads and writes all of it, at any time.  A reader therefore fetches a block's header once,
into its own memory, checks that copy and uses only the copy.  Input and output data are handed on as views into the
arena, not copied: a hostile peer may change the bytes while they are looked at, so a handler copies what it decides on.
What is wrong in a header raises `ProtocolError`; the edge ends that one request with it, since any member of the chain
may have written it.  An arena's memory must not shrink while it is mapped (`F_SEAL_SHRINK`), which the edge checks.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import NamedTuple

from .errors import InvalidRequest, ProtocolError
from .extents import NOTHING, ArenaExhausted, Extent, Space
from .request import Reply, Request, RequestType
from .wire import BLOCK, Buffer, Limit, as_bytes


class Area(NamedTuple):
    """Where a block's input area is, in bytes from the arena's begin; its output area follows."""

    location: int
    input_capacity: int
    output_capacity: int

    @property
    def output(self) -> Extent:
        """Where the output goes."""
        return Extent(self.location + self.input_capacity, self.output_capacity)


class BlockHeader(NamedTuple):
    """A private copy of a block's header, in the order of `BLOCK`."""

    type: int = 0
    flags: int = 0
    status: int = 0
    consumer_id: int = 0
    offset: int = 0
    length: int = 0
    area: Area = Area(0, 0, 0)
    input: Extent = NOTHING
    input_metadata: Extent = NOTHING
    output: Extent = NOTHING
    output_metadata: Extent = NOTHING
    device: bytes = b""


class View:
    """An arena of `blocks` blocks as one process sees it; `buffer` is writable and as long as was agreed.

    Raises `ProtocolError` for sizes that no arena can have.
    """

    def __init__(self, buffer: Buffer, blocks: int) -> None:
        self.view = memoryview(buffer).cast("B")
        self.size = len(self.view)
        self.blocks = blocks
        check_sizes(self.size, blocks)
        self.begin = blocks * BLOCK.size

    def check(self, part: Extent, what: str) -> None:
        """Raise `ProtocolError` unless the part lies in the arena, behind the headers."""
        if part.size and not (self.begin <= part.location and part.location + part.size <= self.size):
            raise ProtocolError(f"the {what} lies outside the arena: {part.size} bytes at {part.location}")

    def part(self, part: Extent) -> memoryview:
        """Return a writable view of a part that was checked."""
        return self.view[part.location : part.location + part.size]

    def release(self) -> None:
        """Let go of the memory; the mapping can be closed when nobody holds a view of data any more."""
        self.view.release()

    def area(self, index: int) -> Area:
        """Return where the areas of a block are."""
        return self.fetch_checked(index).area

    def fetch(self, index: int) -> BlockHeader:
        """Copy the header of a block, each field read once; nothing of it is checked."""
        type, flags, status, consumer_id, offset, length, a, b, c, d, e, f, g, h, i, j, k, _, device = (
            BLOCK.struct.unpack_from(self.view, self._at(index))
        )
        parts = Area(a, b, c), Extent(d, e), Extent(f, g), Extent(h, i), Extent(j, k)
        return BlockHeader(type, flags, status, consumer_id, offset, length, *parts, device)

    def store(self, index: int, header: BlockHeader) -> None:
        """Write the header of a block."""
        places = (*header.area, *header.input, *header.input_metadata, *header.output, *header.output_metadata)
        BLOCK.struct.pack_into(self.view, self._at(index), *header[:6], *places, 0, header.device)

    def _at(self, index: int) -> int:
        if not 0 <= index < self.blocks:
            raise ProtocolError(f"the arena has {self.blocks} blocks, there is none with the number {index}")
        return index * BLOCK.size

    def fetch_checked(self, index: int) -> BlockHeader:
        """Copy the header of a block, whose areas lie in the arena."""
        header = self.fetch(index)
        area = header.area
        self.check(Extent(area.location, area.input_capacity + area.output_capacity), f"area of block {index}")
        return header


class Chain:
    """The blocks that one party of a call chain may hand out, a run of the arena's; the books are in its own memory."""

    def __init__(self, arena: View, run: Extent) -> None:
        self.arena = arena
        self.run = run
        self._space = Space(*run)
        self._handed_out: dict[int, Extent] = {}
        self._returned: deque[Block] = deque()

    def next(self, lend: int | None = None) -> Block:
        """Return the next block, with at most `lend` further ones for its provider's own requests; None lends all.

        Raises `ArenaExhausted` where none is left: who sends several requests at one time lends fewer than all.
        Raises `ProtocolError` when a peer has damaged the block's header.
        """
        while self._returned:
            self.done(self._returned.popleft())
        if not self._space.free:
            raise ArenaExhausted("all blocks of the chain are in use")
        area = self.arena.area(self._space.free[0].location)
        run = self._space.take(1, limit=self.run.size if lend is None else lend + 1)
        self._handed_out[run.location] = run
        return Block(self.arena, run.location, run.size, area)

    def done(self, block: Block) -> None:
        """Take back a block and what was lent with it: its request was answered, its output is not needed any more.

        Raises `ValueError` for a block that is not handed out.
        """
        run = self._handed_out.pop(block.index, None)
        if run is None:
            raise ValueError(f"block {block.index} is not handed out")
        self._space.give(run)

    def give_back(self, block: Block) -> None:
        """Have a block taken back by the following `next`: a finalizer may call this in the middle of one."""
        self._returned.append(block)


class Block:
    """One parameter block, as one party sees it.

    `area` and `header` are its own copies; `header` is what the last `take` or `reply` has read and checked.
    """

    __slots__ = ("area", "arena", "blocks", "header", "index")

    def __init__(self, arena: View, index: int, blocks: int, area: Area, header: BlockHeader | None = None) -> None:
        self.arena = arena
        self.index = index
        self.blocks = blocks
        self.area = area
        self.header = header

    @property
    def input_area(self) -> Extent:
        """Where a consumer may put its data itself, to pass the extent to `fill`."""
        return Extent(self.area.location, self.area.input_capacity)

    @property
    def output_area(self) -> Extent:
        """Where a provider may put its data itself, to pass the extent to `answer`."""
        return self.area.output

    def fill(self, consumer_id: int, device: str, request: Request, data: Extent | None = None) -> None:
        """Write a request into the block, for its consumer.

        With `data`, an extent of this arena, the bytes are there already and stay where they are: a device that passes
        on what it got copies nothing.  Raises `ArenaExhausted` when the request does not fit.
        """
        parts = self._put(self.input_area, request.data if data is None else data, request.metadata)
        about = request.type, 0, 0, consumer_id, request.offset, request.length
        try:
            self.arena.store(self.index, BlockHeader(*about, self.area, *parts, device=device.encode()[:255]))
        except struct.error as error:
            raise InvalidRequest(f"a number of the request is out of range: {error}") from None

    def input(self) -> bytes:
        """Return a copy of the data that `fill` has written, or has found there.

        Raises `ProtocolError` when a peer has damaged the header.
        """
        where = self.arena.fetch(self.index).input
        self.arena.check(where, f"input of block {self.index}")
        return bytes(self.arena.part(where))

    def request(self, type: RequestType, offset: int, length: int) -> Request:
        """Return the request of a block that was taken, for the provider; the numbers are those of its frame.

        `data` is a read-only view into the arena, `metadata` a copy.
        """
        assert self.header is not None, "only a block that was taken has a request"
        data = self.arena.part(self.header.input).toreadonly()
        return Request(type, data, offset, length, bytes(self.arena.part(self.header.input_metadata)))

    def answer(self, reply: Reply, data: Extent | None = None) -> None:
        """Write the reply into a block that was taken, for its provider; `data` as in `fill`.

        Raises `ArenaExhausted` when it does not fit.
        """
        assert self.header is not None, "only a block that was taken is answered"
        output, metadata = self._put(self.output_area, reply.data if data is None else data, reply.metadata)
        self.arena.store(self.index, self.header._replace(status=0, output=output, output_metadata=metadata))

    def reply(self) -> Reply:
        """Return the reply that a provider wrote, for the consumer; `data` is a read-only view into the arena.

        Raises `ProtocolError` for one that makes no sense.
        """
        header = self.header = self.arena.fetch(self.index)
        check_metadata(header.output_metadata)
        for part in (header.output, header.output_metadata):
            self.arena.check(part, f"output of block {self.index}")
        data = self.arena.part(header.output).toreadonly()
        return Reply(data, bytes(self.arena.part(header.output_metadata)))

    def _put(self, area: Extent, data: Buffer | Extent, metadata: bytes) -> tuple[Extent, Extent]:
        """Write data and metadata into an area, behind each other; return where they are."""
        arena, begin, end = self.arena, area.location, area.location + area.size
        if isinstance(data, Extent):
            arena.check(data, "data that is passed on")
            where, source = data, None
            behind = data.location + data.size if begin <= data.location < end else begin
        else:
            source = as_bytes(data)
            where = Extent(begin, len(source))
            behind = begin + len(source)
        if behind + len(metadata) > end:
            raise ArenaExhausted(f"{behind + len(metadata) - begin} bytes do not fit into the {area.size} of the block")
        if source is not None:
            arena.part(where)[:] = source
        arena.part(Extent(behind, len(metadata)))[:] = metadata
        return where, Extent(behind, len(metadata))


def check_sizes(size: int, blocks: int) -> None:
    """Raise `ProtocolError` unless an arena of `size` bytes can have that many blocks, and is within the limits."""
    if not 1 <= blocks <= Limit.MAX_BLOCKS or not blocks * BLOCK.size <= size <= Limit.MAX_ARENA:
        raise ProtocolError(f"an arena of {size} bytes with {blocks} blocks cannot be")


def check_metadata(part: Extent) -> None:
    """Raise `ProtocolError` for more metadata than a request or a reply may have."""
    if part.size > Limit.MAX_METADATA:
        raise ProtocolError(f"{part.size} bytes of metadata are more than {Limit.MAX_METADATA}")
