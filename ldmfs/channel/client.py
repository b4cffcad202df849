"""What both clients have in common: a connection's requests on their way out, and what comes back, without waiting.

The blocking and the trio client differ in how they wait.  Both read the socket in the task or thread that waits for an
answer; whoever reads takes what belongs to others, too.
"""

from __future__ import annotations

import array
import contextlib
import copy
import functools
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
from ..core.events import (
    LIMITS,
    ArenaGone,
    Closed,
    Failed,
    Greeted,
    Limits,
    Moving,
    Opened,
    PeerFailed,
    Released,
    Replied,
    State,
)
from ..core.request import Reply, Request
from ..core.wire import HEADER, MAX_INLINE, Frames, Limit, unpack
from .memory import LARGE, Place, Pool, ReplyPlace, SharedArena

CHAIN_BLOCKS = 8
"""Parameter blocks that a request's chain gets where its consumer says nothing else."""

Outcome: TypeAlias = Reply | Opened | Closed | Greeted | LdmError
Prepared: TypeAlias = tuple[int, Frames, tuple[SharedArena, ...]]
"""The id of what is asked, the frames that ask it, and the arena that the first two of them share, if any."""

_CLOSED = State.CLOSED
_TAKING = frozenset({State.READY, State.MOVING, State.PIECES})
_NOW = socket.MSG_DONTWAIT


class Waiter(msgspec.Struct, eq=False):
    """Who waits for an answer: `done`, if there is one, is called once, with the outcome set."""

    done: Callable[[Waiter], None] | None = None
    outcome: Outcome | None = None
    shared: SharedArena | None = None
    chain: Chain | None = None
    block: Block | None = None
    id: int = 0
    """Of the frame that asks, over the connection that there is now."""
    asked: tuple[Any, ...] = ()
    """What `Client.ask` takes, for what may have to be asked again over another connection."""

    def end(self, outcome: Outcome) -> None:
        """Set the outcome, once."""
        if self.outcome is None:
            self.outcome = outcome
            if self.done is not None:
                self.done(self)


class Device(msgspec.Struct, eq=False):
    """A device that is open, as it has to be opened anew when its provider moves."""

    name: str
    chain: tuple[str, ...]
    opened: Opened
    """With the consumer id of now."""
    ready: bool = True
    """Whether it is open over the connection that there is now, or `refused`."""
    opening: Waiter | None = None
    """Waits for the answer to its being opened anew."""
    closing: Waiter | None = None
    """Who has closed it meanwhile."""
    refused: LdmError | None = None
    """Why it could not be opened anew."""


class Client:
    """The connection to a container, and when that moves to another process, the next one.

    Not locked: one party at a time.  A provider that moves has announced it, and `held` is a list from then on.  What
    it does not take any more waits in there: what it was asked and had not taken, and what its consumers ask meanwhile.
    When the connection has ended, `away` is true, and whoever reads connects and calls `resume`.  Each device is opened
    anew, by its name, and when it is, what is held for it is asked in the order in which it was.  One device does not
    wait for another: its open handler may lead through this connection to an open of that one.  Consumers know a device
    by the consumer id that it had first.
    """

    def __init__(self, sock: socket.socket, own_container: str = "", limits: Limits | None = None) -> None:
        self._use(sock)
        self._own_container, self._limits = own_container, limits or LIMITS
        self.machine = ConsumerConnection(own_container, self._limits)
        self.held: deque[Waiter] | None = None
        self.away = False
        self._devices: dict[int, Device] = {}
        self._moved: dict[int, Device] = {}
        """Those whose consumer id of now is another one than their consumer knows."""
        self._to_open: deque[tuple[int, Device]] = deque()
        self._opening = 0
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

    def _use(self, sock: socket.socket) -> None:
        self.socket = sock
        self.receive_into = sock.recv_into
        self._send_frame = sock.send

    @property
    def lost(self) -> bool:
        """Whether the connection is at its end, and there will be no other."""
        return self.machine.state is _CLOSED and self.held is None

    def alive(self) -> bool:
        """Tell whether the other end is there still; where it is not, the connection ends."""
        if self.held is not None:
            return True
        if not self.lost:
            try:
                if self._peek():
                    return True
                error = "the container's process ended"
            except BlockingIOError:
                return True
            except OSError as failed:
                error = f"the connection is lost: {failed.strerror}"
            self.lose(ProviderDied(error))
        return False

    def _peek(self) -> bytes:
        try:
            return self.socket.recv(1, socket.MSG_PEEK | _NOW)
        except ConnectionResetError:  # told once; what the other end has sent before comes behind it
            return self.socket.recv(1, socket.MSG_PEEK | _NOW)

    # -- out

    def greet(self, waiter: Waiter) -> Prepared:
        """Return the frames that begin the connection."""
        self._greeting = waiter
        return 0, self.machine.hello(), ()

    def open(self, device: str, chain: tuple[str, ...], waiter: Waiter) -> Prepared:
        """Return the frames that open a device."""
        waiter.asked = Client.open, device, chain
        if self.held is not None and not self._takes_open(chain):
            return self._hold(waiter)
        waiter.id, frames = self.machine.open(device, chain, waiter)
        return waiter.id, frames, ()

    def close(self, consumer_id: int, waiter: Waiter) -> Prepared:
        """Return the frames that close a device."""
        device = self._devices.pop(consumer_id, None)
        self._moved.pop(consumer_id, None)
        if device is None or (self.held is None and device.refused is None):
            now = consumer_id if device is None else device.opened.consumer_id
            waiter.id, frames = self.machine.close(now, waiter)
            return waiter.id, frames, ()
        return self._close_moved(consumer_id, device, waiter)

    def request(self, consumer_id: int, device: str, blocks: int, request: Request, waiter: Waiter) -> Prepared:
        """Return the frames that send a request, and the arenas that go with them; `blocks` 0 lets it travel inline.

        Large data goes through shared memory, and inline where there is none to be had.
        """
        data = request.data
        waiter.asked = Client.request, consumer_id, device, blocks, request
        if self.held is not None and not self._takes(consumer_id):
            return self._hold(waiter)
        if self._moved:
            consumer_id = self.id_now(consumer_id)
        if blocks and (len(data) >= LARGE or request.length >= LARGE or request.place is not None):
            with contextlib.suppress(ArenaExhausted, QueueFull):
                return self._in_block(consumer_id, device, request, waiter, blocks)
        if self._unsent > Limit.MAX_PAYLOAD:
            raise QueueFull(f"{self._unsent} bytes wait for a provider that does not read them")
        if type(data) is not bytes and waiter.done is not None:
            _own(waiter, bytes(data))
        waiter.id, frames = self.machine.request(
            consumer_id, request.type, data, request.metadata, request.offset, request.length, waiter
        )
        return waiter.id, frames, ()

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
            waiter.id, frames = self.machine.request(
                consumer_id, request.type, b"", b"", request.offset, request.length, waiter,
                arena=arena, block=block.index, blocks=block.blocks,
            )  # fmt: skip
        except BaseException:
            self._free(waiter)
            raise
        return waiter.id, (*first, *frames), (shared,) if first else ()

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
            except OSError:  # it has ended; whoever reads finds out how
                return
        if self.machine.state is not _CLOSED:
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
        except OSError:
            outbox.clear()
            self._unsent = 0
            if self.drained is not None:
                self.drained()

    def leave(self, frames: Frames) -> None:
        """Send frames that nobody waits to see sent."""
        self.send(frames)

    # -- in

    def receive(self, flags: int = 0) -> int:
        """Receive one packet into the buffer, for `take`; return its bytes, -1 where a non-blocking socket has none."""
        for _ in range(2):
            try:
                return self.socket.recv_into(self.buffer, 0, flags)
            except BlockingIOError:
                return -1
            except ConnectionResetError:  # told once; what the other end has sent before comes behind it
                continue
            except OSError:
                return 0
        return 0

    def size_received(self) -> int:
        """Return the bytes of the packet in the buffer, as its header tells."""
        header: Header = unpack(self.buffer)
        return HEADER.size + min(header[8] + header[9], MAX_INLINE)

    def take(self, size: int) -> None:
        """Take the packet that `receive` got; 0 bytes are the end of the connection."""
        if not size:
            if self.held is None:
                self.lose(ProviderDied("the container's process ended"))
            elif not self.away:
                self._go_away()
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
        if self.held is not None:
            self._go_on()

    def _take(self, event: object) -> None:
        match event:
            case Failed():
                self._free(event.context)
                event.context.end(event.error)
            case Opened() if event.late:
                self.leave(self.machine.close(event.consumer_id, Waiter())[1])
                event.context.end(event)
            case Opened():
                if event.context.asked:
                    _, name, chain = event.context.asked
                    self._devices[event.consumer_id] = Device(name, chain, event)
                event.context.end(event)
            case Closed():
                event.context.end(event)
            case Released():
                self._free(event.context)
                event.context.end(RequestCancelled("it was cancelled"))
            case Greeted():
                if self._greeting is not None:
                    self._greeting.end(event)
                    self._greeting = None
                self._to_open.extend(each for each in self._devices.items() if not each[1].ready)
            case Moving():
                self._take_back(event)
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

    # -- a provider that moves

    def id_now(self, consumer_id: int) -> int:
        """Return the consumer id that a device has now.  Raises why there is none, where it was not opened anew."""
        device = self._moved.get(consumer_id)
        if device is None:
            return consumer_id
        if device.refused is not None:
            raise copy.copy(device.refused)
        return device.opened.consumer_id

    def is_refused(self, consumer_id: int) -> bool:
        """Tell whether a device could not be opened anew."""
        device = self._moved.get(consumer_id)
        return device is not None and device.refused is not None

    def cancel(self, waiter: Waiter) -> None:
        """End what a waiter has asked, here and now.  Raises `ValueError` for a close."""
        if self.held is not None and waiter in self.held:
            self.held.remove(waiter)
            waiter.end(RequestCancelled("it was cancelled"))
        else:
            self.leave(self.machine.cancel(waiter.id))

    def resume(self, sock: socket.socket) -> socket.socket:
        """Go on over a connection to the next instance; return the socket of the one before, which is the caller's."""
        before = self.socket
        self._use(sock)
        self.machine = ConsumerConnection(self._own_container, self._limits)
        self.away = False
        self.send(self.machine.hello())
        return before

    def _takes_open(self, chain: tuple[str, ...]) -> bool:
        """Tell whether the connection is there and takes an open."""
        return self.machine.state in _TAKING and self.machine.takes_open(chain)

    def _takes(self, consumer_id: int) -> bool:
        """Tell whether the connection is there and takes a device's requests, with none before that is held."""
        device = self._devices.get(consumer_id)
        if device is None or (device.refused is not None and device.ready):
            return True  # and refuses them
        if not device.ready or self.machine.state not in _TAKING or not self.machine.takes(device.opened.consumer_id):
            return False
        return not any(held.asked[:2] == (Client.request, consumer_id) for held in self.held or ())

    def _hold(self, waiter: Waiter) -> Prepared:
        assert self.held is not None
        if len(self.held) >= self.machine.limits.max_outstanding:
            raise QueueFull(f"{len(self.held)} requests wait for the provider's next process, as many as may be")
        if waiter.done is not None and waiter.asked[0] is Client.request:
            _own(waiter, bytes(waiter.asked[-1].data))
        self.held.append(waiter)
        return 0, (), ()

    def _take_back(self, event: Moving) -> None:
        """Keep what the provider has not taken, before what was held already."""
        if self.held is None:
            self.held = deque()
        again: list[Waiter] = [waiter for waiter in event.again if waiter.asked]
        for waiter in (*again, *event.released):
            if waiter.block is not None and waiter.done is not None:
                _own(waiter, waiter.block.input())
            self._free(waiter)
        self.held.extendleft(reversed(again))
        for waiter in event.released:
            waiter.end(RequestCancelled("it was cancelled"))

    def _go_away(self) -> None:
        """Take note that the connection has ended, and with it what was to be answered over it."""
        unanswered, closed, released = self.machine.moved()
        self.outbox.clear()
        self._unsent = 0
        self._arenas.clear()
        self._to_open.clear()
        self._opening = 0
        if any(waiter.block is not None for waiter in (*unanswered, *released)):
            self.pool.close()  # it was killed, or gave up, and may still write into them
            self.pool = Pool()
        self.away = True
        for device in self._devices.values():
            device.opening, device.ready = None, False
        for waiter in unanswered:
            if waiter.asked:
                waiter.end(ProviderDied("the container's process ended"))
        for waiter in closed:
            waiter.end(Closed(0, 0, None))
        for waiter in released:
            waiter.end(RequestCancelled("it was cancelled"))
        for consumer_id, device in tuple(self._devices.items()):
            if device.closing is not None:  # it was being opened anew, by a process that has ended
                del self._devices[consumer_id]
                device.closing.end(Closed(0, 0, None))

    def _go_on(self) -> None:
        """Open devices anew, and ask what was held back, as far as the next connection takes it."""
        if self.away or self.machine.is_moving or self.machine.state not in _TAKING:
            return
        with contextlib.suppress(QueueFull):  # the rest when there is room again
            while self._to_open:
                self._open_anew(*self._to_open[0])
                self._to_open.popleft()
            self._ask_held()
            if not self.held and not self._opening:
                self.held = None

    def _open_anew(self, consumer_id: int, device: Device) -> None:
        waiter = Waiter(functools.partial(self._opened_anew, consumer_id, device))
        waiter.id, frames = self.machine.open(device.name, device.chain, waiter, again=True)
        device.opening = waiter
        self._opening += 1
        self.leave(frames)

    def _opened_anew(self, consumer_id: int, device: Device, waiter: Waiter) -> None:
        if device.opening is not waiter:  # the connection was lost
            return
        self._opening -= 1
        self._moved[consumer_id] = device
        closing, outcome = device.closing, waiter.outcome
        device.opening, device.refused, device.ready = None, None, True
        if isinstance(outcome, Opened):
            now = device.opened
            now.consumer_id, now.kind, now.size = outcome.consumer_id, outcome.kind, outcome.size
            now.accepts, now.execution = outcome.accepts, outcome.execution
        else:
            assert isinstance(outcome, LdmError)
            device.refused = outcome
        if closing is not None:
            device.closing = None
            _, frames, _ = self.close(consumer_id, closing)
            self.leave(frames)

    def _ask_held(self) -> None:
        """Ask what was held back, in its order, but for what is of a device that is not open yet."""
        for waiter in tuple(self.held or ()):
            ask, *arguments = waiter.asked
            if ask is Client.request:
                device = self._devices.get(arguments[0])
                if device is not None and not device.ready:
                    continue
            refused: LdmError | None = None
            held, self.held = self.held, None  # so that it is not held again
            try:
                _, frames, arenas = ask(self, *arguments, waiter)
                self.send(frames, arenas)
            except QueueFull:
                raise
            except LdmError as error:
                refused = error
            finally:
                self.held = held
            if self.held is not None and waiter in self.held:
                self.held.remove(waiter)
            if refused is not None:
                waiter.end(refused)

    def _close_moved(self, consumer_id: int, device: Device, waiter: Waiter) -> Prepared:
        """Close a device whose provider moves, or has, and refuses it since."""
        for held in [held for held in self.held or () if held.asked[0] is Client.request]:
            if held.asked[1] == consumer_id:
                self.cancel(held)
        if device.opening is not None:
            device.closing = waiter
            self._devices[consumer_id] = device  # until it is closed there
            return 0, (), ()
        if not device.ready or device.refused is not None:
            if (consumer_id, device) in self._to_open:
                self._to_open.remove((consumer_id, device))
            waiter.end(Closed(0, 0, None))
            return 0, (), ()
        try:
            waiter.id, frames = self.machine.close(device.opened.consumer_id, waiter)
        except LdmError:  # it is not open over this connection
            waiter.end(Closed(0, 0, None))
            return 0, (), ()
        return waiter.id, frames, ()

    # -- the end

    def _refuse(self, error: ProtocolError) -> None:
        with contextlib.suppress(OSError):
            for frame in self.machine.fail(error):
                self.socket.send(frame, socket.MSG_DONTWAIT)
        self.lose(error)

    def lose(self, error: LdmError) -> None:
        """End the connection: every waiter gets an error, once."""
        ended = self.machine.lost()
        held, self.held, self.away = self.held or (), None, False
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        if self._greeting is not None:
            self._greeting.end(error)
            self._greeting = None
        for waiter in (*ended.values(), *held):
            waiter.end(copy.copy(error))  # each is raised on its own
        for device in self._devices.values():
            if device.closing is not None:
                device.closing.end(copy.copy(error))
        self.outbox.clear()
        self._unsent = 0
        self._arenas.clear()
        self.pool.close()

    def detach(self) -> None:
        """Forget the connection without a word: it belongs to the process that forked this one."""
        self.socket.close()


def _own(waiter: Waiter, data: bytes) -> None:
    """Let a request that nobody waits for, and that may be asked again, have data of its own.

    A buffer is its sender's own again as soon as it is sent.
    """
    *asked, request = waiter.asked
    waiter.asked = *asked, request.forward(data=data)


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
