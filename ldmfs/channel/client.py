"""What both clients have in common: a connection's requests on their way out, and what comes back, without waiting.

The blocking and the trio client differ in how they wait.  Both read the socket in the task or thread that waits for an
answer; whoever reads takes what belongs to others, too.
"""

from __future__ import annotations

import array
import contextlib
import socket
import weakref
from collections.abc import Callable
from typing import Any

from ..core.blocks import ArenaExhausted, Block, Chain
from ..core.consumer_connection import ConsumerConnection
from ..core.errors import LdmError, ProtocolError, ProviderDied, QueueFull
from ..core.events import ArenaGone, Closed, Failed, Greeted, Limits, Opened, PeerFailed, Released, Replied
from ..core.request import Reply, Request
from ..core.wire import Frames, Limit
from .memory import LARGE, Place, Pool, ReplyPlace, SharedArena

CHAIN_BLOCKS = 8
"""Parameter blocks that a request's chain gets where its consumer says nothing else."""

Outcome = Reply | Opened | Closed | LdmError


class Waiter:
    """Who waits for an answer: `done` is called once, with the outcome set."""

    __slots__ = ("block", "chain", "done", "outcome", "shared")

    def __init__(self, done: Callable[[Waiter], None]) -> None:
        self.done = done
        self.outcome: Outcome | None = None
        self.shared: SharedArena | None = None
        self.chain: Chain | None = None
        self.block: Block | None = None

    def end(self, outcome: Outcome) -> None:
        """Set the outcome, once."""
        if self.outcome is None:
            self.outcome = outcome
            self.done(self)


class Client:
    """One connection to a container.  Not locked: one party at a time."""

    def __init__(self, sock: socket.socket, own_container: str = "", limits: Limits | None = None) -> None:
        self.socket = sock
        self.machine = ConsumerConnection(own_container, *([limits] if limits else []))
        self.pool = Pool()
        self.greeted = False
        self._buffer = bytearray(Limit.MAX_FRAME)
        self._view = memoryview(self._buffer)
        self._arenas: dict[SharedArena, int] = {}

    @property
    def lost(self) -> bool:
        """Whether the connection is at its end."""
        return self.machine.state.value == "closed"

    # -- out

    def open(self, device: str, chain: tuple[str, ...], waiter: Waiter) -> tuple[int, Frames]:
        """Return the frames that open a device."""
        return self.machine.open(device, chain, waiter)

    def close(self, consumer_id: int, waiter: Waiter) -> tuple[int, Frames]:
        """Return the frames that close a device."""
        return self.machine.close(consumer_id, waiter)

    def request(
        self, consumer_id: int, device: str, request: Request, waiter: Waiter, blocks: int
    ) -> tuple[int, Frames, list[SharedArena]]:
        """Return the frames that send a request, and the arenas that go with them; `blocks` 0 lets it travel inline.

        Large data goes through shared memory, and inline where there is none to be had.
        """
        size = len(request.data)
        place: Place | None = request.place
        if blocks and (place is not None or size >= LARGE or request.length >= LARGE):
            with contextlib.suppress(ArenaExhausted, QueueFull):
                return self._in_block(consumer_id, device, request, waiter, blocks)
        id, frames = self.machine.request(
            consumer_id, request.type, request.data, request.metadata, offset=request.offset, length=request.length,
            context=waiter,
        )  # fmt: skip
        return id, frames, []

    def _in_block(
        self, consumer_id: int, device: str, request: Request, waiter: Waiter, blocks: int
    ) -> tuple[int, Frames, list[SharedArena]]:
        place: Place | None = request.place
        if place is not None:
            shared, chain, extent, lend = place.shared, place.chain, place.data, (place.block.blocks - 1) // 2
        else:
            room = len(request.data) + len(request.metadata)
            shared, chain = self.pool.allocate(blocks, room, max(room, request.length) + Limit.MAX_METADATA)
            extent, lend = None, blocks - 1
        block = chain.next(lend)
        waiter.shared, waiter.chain, waiter.block = shared, chain, block
        try:
            block.fill(consumer_id, device, request, extent)
            arena, first = self._arena(shared)
            id, frames = self.machine.request(
                consumer_id, request.type, metadata=b"", offset=request.offset, length=request.length,
                arena=arena, block=block.index, blocks=block.blocks, context=waiter,
            )  # fmt: skip
        except BaseException:
            self._free(waiter)
            raise
        return id, (*first, *frames), [shared] if first else []

    def _arena(self, shared: SharedArena) -> tuple[int, Frames]:
        arena = self._arenas.get(shared)
        if arena is not None:
            return arena, ()
        self._arenas[shared], frames = self.machine.arena(shared.size, shared.blocks)
        return self._arenas[shared], frames

    def send_now(self, frames: Frames, arenas: list[SharedArena], flags: int = 0) -> int:
        """Send frames without waiting where the socket says so; return how many were sent."""
        sent = 0
        for frame in frames:
            try:
                if arenas:
                    fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [arenas[0].fd]))]
                    self.socket.sendmsg([frame], fds, flags)
                    arenas.pop()
                else:
                    self.socket.send(frame, flags)
            except BlockingIOError:
                return sent
            except OSError as error:
                self.lose(ProviderDied(f"the connection is lost: {error.strerror}"))
                return len(frames)
            sent += 1
        return sent

    def leave(self, frames: Frames) -> None:
        """Send frames that nobody waits to see sent; the clients say how."""
        raise NotImplementedError

    # -- in

    def receive(self, flags: int = 0) -> int:
        """Receive one packet into the buffer, for `take`; return its bytes, -1 where a non-blocking socket has none."""
        try:
            return self.socket.recv_into(self._buffer, 0, flags)
        except BlockingIOError:
            return -1
        except OSError:
            return 0

    def take(self, size: int) -> None:
        """Take the packet that `receive` got; 0 bytes are the end of the connection."""
        if not size:
            self.lose(ProviderDied("the container's process ended"))
            return
        try:
            event = self.machine.receive(self._view[:size])
        except ProtocolError as error:
            self._refuse(error)
            return
        if type(event) is Replied:
            event.context.end(self._reply(event) if event.in_block else event.reply)
        elif event is not None:
            self._take(event)

    def _take(self, event: object) -> None:
        match event:
            case Failed():
                self._free(event.context)
                event.context.end(event.error)
            case Opened() if event.late:
                self.leave(self.machine.close(event.consumer_id, Waiter(lambda _: None))[1])
            case Opened() | Closed():
                event.context.end(event)
            case Released():
                self._free(event.context)
            case Greeted():
                self.greeted = True
            case ArenaGone():
                for shared, arena in tuple(self._arenas.items()):
                    if arena == event.arena:
                        del self._arenas[shared]
                self.leave(self.machine.arena_gone(event.arena))
            case PeerFailed():
                self.lose(event.error)

    def _reply(self, event: Replied) -> Outcome:
        waiter: Waiter = event.context
        assert waiter.block is not None
        assert waiter.shared is not None
        try:
            reply = waiter.block.reply()
        except ProtocolError as error:
            self._free(waiter)
            return error
        assert waiter.block.header is not None
        reply.place = ReplyPlace(waiter.shared, waiter.block.header.output)
        weakref.finalize(reply.data, self._free, waiter)
        return reply

    def _free(self, waiter: Waiter) -> None:
        if waiter.block is None or waiter.chain is None or waiter.shared is None:
            return
        block, waiter.block = waiter.block, None
        waiter.chain.done(block)
        if waiter.shared in self.pool.arenas:
            self.pool.free(waiter.shared, waiter.chain)

    # -- the end

    def _refuse(self, error: ProtocolError) -> None:
        with contextlib.suppress(OSError):
            for frame in self.machine.fail(error):
                self.socket.send(frame, socket.MSG_DONTWAIT)
        self.lose(error)

    def lose(self, error: LdmError) -> None:
        """End the connection: every waiter gets an error, once."""
        ended = self.machine.lost()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        for waiter in ended.values():
            waiter.end(error)
        self._arenas.clear()
        self.pool.close()

    def detach(self) -> None:
        """Forget the connection without a word: it belongs to the process that forked this one."""
        self.socket.close()


def raise_error(outcome: Outcome) -> Any:
    """Return an outcome, or raise the error that it is."""
    if isinstance(outcome, LdmError):
        raise outcome
    return outcome
