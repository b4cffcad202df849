"""An arena as those see it who take requests from it (`Arena`), and as the one who made it (`OwnArena`)."""

from __future__ import annotations

from .blocks import Area, Block, BlockHeader, Chain, View, check_metadata
from .errors import ProtocolError
from .extents import ArenaExhausted, Extent, Space
from .request import RequestType
from .wire import Buffer

ALIGNMENT = 64
"""Areas begin at multiples of this: a cache line."""


class Arena(View):
    """An arena that may be another process's: requests come in its blocks."""

    def take(self, index: int, blocks: int, consumer_id: int, type: RequestType) -> Block:
        """Return the block in which a request came, as its frame says; its `header` is checked.

        Raises `ProtocolError` for a block that makes no sense, or that was not filled for this request.
        """
        if blocks < 1 or index + blocks > self.blocks:
            raise ProtocolError(f"the arena has {self.blocks} blocks, not {blocks} from {index} on")
        header = self.fetch_checked(index)
        if header.type != type or header.consumer_id != consumer_id:
            raise ProtocolError(f"block {index} holds no {type.name} request of consumer {consumer_id}")
        check_metadata(header.input_metadata)
        for part in (header.input, header.input_metadata):
            self.check(part, f"input of block {index}")
            if _overlap(part, header.area.output):
                raise ProtocolError(f"the input of block {index} overlaps its output area")
        return Block(self, index, blocks, header.area, header)

    def chain(self, block: Block) -> Chain:
        """Return the blocks that `block`, which was taken, lends to its provider's own requests."""
        return Chain(self, Extent(block.index + 1, block.blocks - 1))


class OwnArena(Arena):
    """The first consumer's view: it allocates the chains, and keeps the books of it in its own memory."""

    def __init__(self, buffer: Buffer, blocks: int) -> None:
        super().__init__(buffer, blocks)
        self._blocks = Space(0, blocks)
        begin = _aligned(self.begin)
        self._space = Space(begin, max(self.size - begin, 0))
        self._areas: dict[int, Area] = {}
        self._chains: dict[int, tuple[Extent, Extent]] = {}

    def allocate(self, count: int, input_size: int, output_size: int) -> Chain:
        """Allocate the blocks of a chain of `count` requests.

        Each can hold `input_size` and `output_size` bytes, data and metadata together.  Raises `ArenaExhausted`.
        """
        if count < 1 or input_size < 0 or output_size < 0:
            raise ValueError("a chain has blocks, and their sizes are not negative")
        step = _aligned(input_size) + _aligned(output_size)
        blocks = self._blocks.take(count)
        try:
            space = self._space.take(step * count) if step else Extent(self.begin, 0)
        except ArenaExhausted:
            self._blocks.give(blocks)
            raise
        for number in range(count):
            area = Area(space.location + number * step, _aligned(input_size), _aligned(output_size))
            self._areas[blocks.location + number] = area
            self.store(blocks.location + number, BlockHeader(area=area))
        self._chains[blocks.location] = blocks, space
        return Chain(self, blocks)

    def free(self, chain: Chain) -> None:
        """Take back the memory of a chain: when each of its requests has been answered, also those that were cancelled.

        Raises `ValueError` for a chain that is not allocated.
        """
        if chain.arena is not self or self._chains.get(chain.run.location, (None,))[0] is not chain.run:
            raise ValueError("the chain was freed already, or is no chain of this arena")
        blocks, space = self._chains.pop(chain.run.location)
        for index in range(blocks.location, blocks.location + blocks.size):
            del self._areas[index]
        self._blocks.give(blocks)
        self._space.give(space)

    def area(self, index: int) -> Area:
        """Return where the areas of a block are: from the books, whatever its header says."""
        return self._areas[index]


def _overlap(one: Extent, other: Extent) -> bool:
    return max(one.location, other.location) < min(one.location + one.size, other.location + other.size)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
