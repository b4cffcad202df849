"""The requests of a client that travel in parameter blocks, and the arenas that its provider knows of."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from ..core.errors import ProtocolError
from ..core.request import Request
from ..core.wire import Frames, Limit
from .memory import Place, Pool, ReplyPlace, SharedArena
from .waiter import Outcome, Waiter

if TYPE_CHECKING:
    from .client import Client

CHAIN_BLOCKS = 8
"""Parameter blocks that a request's chain gets where its consumer says nothing else."""


class Arenas:
    """The arenas of one client: those that it makes, and those of others that it has passed on."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._pool = Pool()
        self._known: dict[SharedArena, int] = {}
        """By what number the provider knows each."""

    def request(self, consumer_id: int, device: str, blocks: int, request: Request, waiter: Waiter) -> Frames:
        """Return the frame that sends a request in a block: the next one of its chain, or the first of `blocks`.

        Raises `ArenaExhausted` and `QueueFull` where there is no memory to be had.
        """
        place: Place | None = request.place
        if place is not None:
            shared, chain, extent, lend = place.shared, place.chain, place.data, (place.block.blocks - 1) // 2
        else:
            room = len(request.data) + len(request.metadata)
            shared, chain = self._pool.allocate(blocks, room, max(room, request.length) + Limit.MAX_METADATA)
            extent, lend = None, blocks - 1
        block = chain.next(lend)
        waiter.shared, waiter.chain, waiter.block = shared, chain, block
        try:
            block.fill(consumer_id, device, request, extent)
            waiter.id, frames = self._client.machine.request(
                consumer_id, request.type, b"", b"", request.offset, request.length, waiter,
                arena=self._number(shared), block=block.index, blocks=block.blocks,
            )  # fmt: skip
        except BaseException:
            self.free(waiter)
            raise
        return frames

    def _number(self, shared: SharedArena) -> int:
        """Return by what number the provider knows an arena; tell it now, where it does not."""
        arena = self._known.get(shared)
        if arena is None:
            arena, frames = self._client.machine.arena(shared.size, shared.blocks)
            self._known[shared] = arena
            if shared not in self._pool.arenas:
                shared.borrowers.add(self)
            self._client.send(frames, shared)
        return arena

    def reply(self, waiter: Waiter) -> Outcome:
        """Return the reply that is in a request's block, which is given back when nobody holds its data any more."""
        assert waiter.block is not None
        assert waiter.shared is not None
        try:
            reply = waiter.block.reply()
        except ProtocolError as error:
            self.free(waiter)
            return error
        assert waiter.block.header is not None
        reply.place = ReplyPlace(waiter.shared, waiter.block.header.output)
        # Bound to nothing that may come to know the reply, as the client or the waiter: a finalizer's arguments live
        # until it is called, and so would the data that it waits for.
        assert waiter.chain is not None
        end = weakref.finalize(reply.data, self._pool.give_back, waiter.shared, waiter.chain, waiter.block)
        end.atexit = False
        waiter.block = None
        return reply

    def free(self, waiter: Waiter) -> None:
        """Give back the block of a request that gets no reply, if it has one."""
        block, waiter.block = waiter.block, None
        if block is not None:
            assert waiter.shared is not None
            assert waiter.chain is not None
            self._pool.give_back(waiter.shared, waiter.chain, block)

    def withdraw(self, shared: SharedArena) -> None:
        """Tell the provider that an arena is gone which another connection had brought."""
        with self._client.lock:
            arena = self._known.pop(shared, None)
            if arena is not None:
                self._client.send(self._client.machine.arena_gone(arena))

    def refused(self, arena: int) -> None:
        """Take note that the provider cannot use an arena."""
        for shared, known in tuple(self._known.items()):
            if known == arena:
                del self._known[shared]
        self._client.send(self._client.machine.arena_gone(arena))

    def move(self, *, used: bool) -> None:
        """Go on with a provider that knows none yet; those whose blocks the one before has `used` may be written to."""
        self._known.clear()
        if used:
            self._pool.close()
            self._pool = Pool()

    def close(self) -> None:
        """Let go of all arenas, and make no more."""
        self._known.clear()
        self._pool.close()
