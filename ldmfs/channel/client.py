"""What both clients have in common: a connection's requests on their way out, and what comes back, without waiting.

The blocking and the trio client differ in how they wait.  Both read the socket in the task or thread that waits for an
answer; whoever reads takes what belongs to others, too.
"""

from __future__ import annotations

import array
import contextlib
import copy
import socket
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from ..core.blocks import ArenaExhausted, Block, Chain
from ..core.channel import Header
from ..core.consumer_connection import ConsumerConnection
from ..core.errors import LdmError, ProtocolError, ProviderDied, QueueFull, RequestCancelled
from ..core.events import ArenaGone, Closed, Failed, Greeted, Limits, Opened, PeerFailed, Released, Replied, State
from ..core.request import Reply, Request
from ..core.wire import HEADER, MAX_INLINE, Frames, Limit, unpack
from .memory import LARGE, Place, Pool, ReplyPlace, SharedArena

CHAIN_BLOCKS = 8
"""Parameter blocks that a request's chain gets where its consumer says nothing else."""

Outcome: TypeAlias = Reply | Opened | Closed | Greeted | LdmError
Prepared: TypeAlias = tuple[int, Frames, tuple[SharedArena, ...]]
"""The id of what is asked, the frames that ask it, and the arena that the first two of them share, if any."""

_CLOSED = State.CLOSED
_NOW = socket.MSG_DONTWAIT


class Waiter(msgspec.Struct, eq=False):
    """Who waits for an answer: `done`, if there is one, is called once, with the outcome set."""

    done: Callable[[Waiter], None] | None = None
    outcome: Outcome | None = None
    shared: SharedArena | None = None
    chain: Chain | None = None
    block: Block | None = None

    def end(self, outcome: Outcome) -> None:
        """Set the outcome, once."""
        if self.outcome is None:
            self.outcome = outcome
            if self.done is not None:
                self.done(self)


class Client:
    """One connection to a container.  Not locked: one party at a time."""

    def __init__(self, sock: socket.socket, own_container: str = "", limits: Limits | None = None) -> None:
        self.socket = sock
        self.receive_into = sock.recv_into
        self._send_frame = sock.send
        self.machine = ConsumerConnection(own_container, *([limits] if limits else []))
        self.pool = Pool()
        self.outbox: deque[tuple[bytes, SharedArena | None]] = deque()
        """Frames that the socket had no room for, each with the arena whose descriptor goes with it."""
        self.buffer = bytearray(Limit.MAX_FRAME + 1)  # a packet that fills it is too long, which the machine finds
        self._view = memoryview(self.buffer)
        self._unsent = 0
        """The bytes in the outbox."""
        self.lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        """Held by whoever calls this, where there are several; taken for what others cause."""
        self.drained: Callable[[], None] | None = None
        """Called when the outbox has become empty."""
        self._greeting: Waiter | None = None
        self._arenas: dict[SharedArena, int] = {}

    @property
    def lost(self) -> bool:
        """Whether the connection is at its end."""
        return self.machine.state is _CLOSED

    def alive(self) -> bool:
        """Tell whether the other end is there still; where it is not, the connection ends."""
        if not self.lost:
            try:
                if self.socket.recv(1, socket.MSG_PEEK | _NOW):
                    return True
                error = "the container's process ended"
            except BlockingIOError:
                return True
            except OSError as failed:
                error = f"the connection is lost: {failed.strerror}"
            self.lose(ProviderDied(error))
        return False

    # -- out

    def greet(self, waiter: Waiter) -> Prepared:
        """Return the frames that begin the connection."""
        self._greeting = waiter
        return 0, self.machine.hello(), ()

    def open(self, device: str, chain: tuple[str, ...], waiter: Waiter) -> Prepared:
        """Return the frames that open a device."""
        return *self.machine.open(device, chain, waiter), ()

    def close(self, consumer_id: int, waiter: Waiter) -> Prepared:
        """Return the frames that close a device."""
        return *self.machine.close(consumer_id, waiter), ()

    def request(self, consumer_id: int, device: str, blocks: int, request: Request, waiter: Waiter) -> Prepared:
        """Return the frames that send a request, and the arenas that go with them; `blocks` 0 lets it travel inline.

        Large data goes through shared memory, and inline where there is none to be had.
        """
        data = request.data
        if blocks and (len(data) >= LARGE or request.length >= LARGE or request.place is not None):
            with contextlib.suppress(ArenaExhausted, QueueFull):
                return self._in_block(consumer_id, device, request, waiter, blocks)
        if self._unsent > Limit.MAX_PAYLOAD:
            raise QueueFull(f"{self._unsent} bytes wait for a provider that does not read them")
        id, frames = self.machine.request(
            consumer_id, request.type, data, request.metadata, request.offset, request.length, waiter
        )
        return id, frames, ()

    def _in_block(self, consumer_id: int, device: str, request: Request, waiter: Waiter, blocks: int) -> Prepared:
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
                consumer_id, request.type, b"", b"", request.offset, request.length, waiter,
                arena=arena, block=block.index, blocks=block.blocks,
            )  # fmt: skip
        except BaseException:
            self._free(waiter)
            raise
        return id, (*first, *frames), (shared,) if first else ()

    def _arena(self, shared: SharedArena) -> tuple[int, Frames]:
        arena = self._arenas.get(shared)
        if arena is not None:
            return arena, ()
        self._arenas[shared], frames = self.machine.arena(shared.size, shared.blocks)
        if shared not in self.pool.arenas:
            shared.borrowers.add(self)
        return self._arenas[shared], frames

    def withdraw(self, shared: SharedArena) -> None:
        """Tell the provider that an arena is gone which another connection had brought."""
        with self.lock:
            arena = self._arenas.pop(shared, None)
            if arena is not None:
                self.leave(self.machine.arena_gone(arena))

    def send(self, frames: Frames, arenas: tuple[SharedArena, ...] = ()) -> None:
        """Send frames as far as the socket has room; the others wait in the outbox for `flush`."""
        if len(frames) == 1 and not arenas and not self.outbox:
            try:
                self._send_frame(frames[0], _NOW)
                return
            except BlockingIOError:
                pass
            except OSError as error:
                self.lose(ProviderDied(f"the connection is lost: {error.strerror}"))
                return
        if not self.lost:
            self.outbox.extend((frame, None) for frame in frames)
            self._unsent += sum(map(len, frames))
            if arenas:
                self.outbox[1 - len(frames)] = frames[1], arenas[0]
            self.flush()

    def flush(self) -> None:
        """Send what waits in the outbox, as far as the socket has room."""
        outbox = self.outbox
        try:
            while outbox:
                frame, shared = outbox[0]
                if shared is None:
                    self.socket.send(frame, _NOW)
                else:
                    fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [shared.fd]))]
                    self.socket.sendmsg([frame], fds, _NOW)
                outbox.popleft()
                self._unsent -= len(frame)
            if self.drained is not None:
                self.drained()
        except BlockingIOError:
            pass
        except OSError as error:
            self.lose(ProviderDied(f"the connection is lost: {error.strerror}"))

    def leave(self, frames: Frames) -> None:
        """Send frames that nobody waits to see sent."""
        self.send(frames)

    # -- in

    def receive(self, flags: int = 0) -> int:
        """Receive one packet into the buffer, for `take`; return its bytes, -1 where a non-blocking socket has none."""
        try:
            return self.socket.recv_into(self.buffer, 0, flags)
        except BlockingIOError:
            return -1
        except OSError:
            return 0

    def size_received(self) -> int:
        """Return the bytes of the packet in the buffer, as its header tells."""
        header: Header = unpack(self.buffer)
        return HEADER.size + min(header[8] + header[9], MAX_INLINE)

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
            waiter: Waiter = event.context
            if event.in_block:
                waiter.end(self._reply(event))
            elif waiter.done is None:
                waiter.outcome = event.reply
            else:
                waiter.end(event.reply)
        elif event is not None:
            self._take(event)

    def _take(self, event: object) -> None:
        match event:
            case Failed():
                self._free(event.context)
                event.context.end(event.error)
            case Opened() if event.late:
                self.leave(self.machine.close(event.consumer_id, Waiter())[1])
                event.context.end(event)
            case Opened() | Closed():
                event.context.end(event)
            case Released():
                self._free(event.context)
                event.context.end(RequestCancelled("it was cancelled"))
            case Greeted() if self._greeting is not None:
                self._greeting.end(event)
                self._greeting = None
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
        # Bound to nothing that may come to know the reply, as the client or the waiter: a finalizer's arguments live
        # until it is called, and so would the data that it waits for.
        assert waiter.chain is not None
        end = weakref.finalize(reply.data, self.pool.give_back, waiter.shared, waiter.chain, waiter.block)
        end.atexit = False
        waiter.block = None
        return reply

    def _free(self, waiter: Waiter) -> None:
        block, waiter.block = waiter.block, None
        if block is not None:
            assert waiter.shared is not None
            assert waiter.chain is not None
            self.pool.give_back(waiter.shared, waiter.chain, block)

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
        if self._greeting is not None:
            self._greeting.end(error)
            self._greeting = None
        for waiter in ended.values():
            waiter.end(copy.copy(error))  # each is raised on its own
        self.outbox.clear()
        self._unsent = 0
        self._arenas.clear()
        self.pool.close()

    def detach(self) -> None:
        """Forget the connection without a word: it belongs to the process that forked this one."""
        self.socket.close()


def raise_error(outcome: Outcome) -> Any:
    """Return an outcome, or raise the error that it is.

    No frame that the error passes may know it afterwards: its traceback would make a cycle of them, which keeps the
    request's memory mapped until it is collected.  The callers delete it, too.
    """
    if type(outcome) is not Reply and isinstance(outcome, LdmError):
        try:
            raise outcome
        finally:
            del outcome
    return outcome
