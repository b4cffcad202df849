"""What both clients have in common: a connection's requests on their way out, and what comes back, without waiting.

The blocking and the trio client differ in how they wait.  Both read the socket in the task or thread that waits for an
answer; whoever reads takes what belongs to others, too.
"""

from __future__ import annotations

import array
import contextlib
import copy
import socket
from collections import deque
from collections.abc import Callable

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
from ..core.extents import ArenaExhausted
from ..core.request import Request
from ..core.wire import HEADER, MAX_INLINE, Frames, Limit, unpack
from .arenas import Arenas
from .memory import LARGE, SharedArena
from .move import Device, Move
from .waiter import NOTHING, Outcome, Waiter

_CLOSED = State.CLOSED
_NOW = socket.MSG_DONTWAIT


class Client:
    """The connection to a container, and when that moves to another process, the next one.

    Not locked: one party at a time.  A provider that moves has announced it, and `move` is there from then on, until
    nothing waits for that any more.  When the connection has ended, `away` is true, and whoever reads connects and
    calls `resume`.
    """

    def __init__(self, sock: socket.socket, own_container: str = "", limits: Limits | None = None) -> None:
        self._use(sock)
        self._own_container, self._limits = own_container, limits or LIMITS
        self.machine = ConsumerConnection(own_container, self._limits)
        self.move: Move | None = None
        self.away = False
        self.devices: dict[int, Device] = {}
        """Those that are open, by the consumer id that their consumer knows."""
        self.moved: dict[int, Device] = {}
        """Those of them whose consumer id of now is another one."""
        self.arenas = Arenas(self)
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

    def _use(self, sock: socket.socket) -> None:
        self.socket = sock
        self.receive_into = sock.recv_into
        self._send_frame = sock.send

    @property
    def lost(self) -> bool:
        """Whether the connection is at its end, and there will be no other."""
        return self.machine.state is _CLOSED and self.move is None

    def alive(self) -> bool:
        """Tell whether the other end is there still; where it is not, the connection ends."""
        if self.move is not None:
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

    def greet(self, waiter: Waiter) -> Frames:
        """Return the frames that begin the connection."""
        self._greeting = waiter
        return self.machine.hello()

    def open(self, device: str, chain: tuple[str, ...], waiter: Waiter) -> Frames:
        """Return the frames that open a device."""
        waiter.opens = device, chain
        if self.move is not None and not self.move.takes_open(chain):
            return self.move.hold(waiter)
        waiter.id, frames = self.machine.open(device, chain, waiter)
        return frames

    def close(self, consumer_id: int, waiter: Waiter) -> Frames:
        """Return the frames that close a device."""
        device = self.devices.pop(consumer_id, None)
        self.moved.pop(consumer_id, None)
        if device is not None:
            if self.move is not None:
                return self.move.close(consumer_id, device, waiter)
            if device.refused is not None:
                waiter.end(NOTHING)
                return ()
            consumer_id = device.opened.consumer_id
        waiter.id, frames = self.machine.close(consumer_id, waiter)
        return frames

    def request(self, consumer_id: int, device: str, blocks: int, request: Request, waiter: Waiter) -> Frames:
        """Return the frames that send a request; `blocks` 0 lets it travel inline.

        Large data goes through shared memory, and inline where there is none to be had.
        """
        data = request.data
        waiter.requests = consumer_id, device, blocks, request
        if self.move is not None and not self.move.takes(consumer_id):
            return self.move.hold(waiter)
        if self.moved:
            consumer_id = self.id_now(consumer_id)
        if blocks and (len(data) >= LARGE or request.length >= LARGE or request.place is not None):
            with contextlib.suppress(ArenaExhausted, QueueFull):
                return self.arenas.request(consumer_id, device, blocks, request, waiter)
        if self._unsent > Limit.MAX_PAYLOAD:
            raise QueueFull(f"{self._unsent} bytes wait for a provider that does not read them")
        if type(data) is not bytes and waiter.done is not None:
            waiter.own(bytes(data))
        waiter.id, frames = self.machine.request(
            consumer_id, request.type, data, request.metadata, request.offset, request.length, waiter
        )
        return frames

    def cancel(self, waiter: Waiter) -> None:
        """End what a waiter has asked, here and now.  Raises `ValueError` for a close."""
        if self.move is not None and waiter in self.move.held:
            self.move.cancel(waiter)
        else:
            self.send(self.machine.cancel(waiter.id))

    def send(self, frames: Frames, shared: SharedArena | None = None) -> None:
        """Send frames as far as the socket has room; the others wait in the outbox for `flush`.

        `shared` is an arena that they make known: its descriptor goes with the last of them.
        """
        if len(frames) == 1 and not self.outbox:
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
            if shared is not None:
                self.outbox[-1] = frames[-1], shared
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
            self._drop_unsent()
            if self.drained is not None:
                self.drained()

    def _drop_unsent(self) -> None:
        self.outbox.clear()
        self._unsent = 0

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
            if self.move is None:
                self.lose(ProviderDied("the container's process ended"))
            elif not self.away:
                self._go_away(self.move)
            return
        try:
            event = self.machine.receive(self._view[:size])
        except ProtocolError as error:
            self._refuse(error)
            return
        if type(event) is Replied:
            waiter: Waiter = event.context
            if event.in_block:
                waiter.end(self.arenas.reply(waiter))
            elif waiter.done is None:
                waiter.outcome = event.reply
            else:
                waiter.end(event.reply)
        elif event is not None:
            self._take(event)
        if self.move is not None:
            self.move.go_on()

    def _take(self, event: object) -> None:
        match event:
            case Failed():
                self.arenas.free(event.context)
                event.context.end(event.error)
            case Opened() if event.late:
                self.send(self.machine.close(event.consumer_id, Waiter())[1])
                event.context.end(event)
            case Opened():
                if event.context.opens is not None:
                    name, chain = event.context.opens
                    self.devices[event.consumer_id] = Device(name, chain, event)
                event.context.end(event)
            case Closed():
                event.context.end(event)
            case Released():
                self.arenas.free(event.context)
                event.context.end(RequestCancelled("it was cancelled"))
            case Greeted():
                self._end_greeting(event)
                if self.move is not None:
                    self.move.greeted()
            case Moving():
                if self.move is None:
                    self.move = Move(self)
                self.move.take_back(event)
            case ArenaGone():
                self.arenas.refused(event.arena)
            case PeerFailed():
                self.lose(event.error)

    def _end_greeting(self, outcome: Outcome) -> None:
        if self._greeting is not None:
            self._greeting.end(outcome)
            self._greeting = None

    # -- a provider that moves

    def id_now(self, consumer_id: int) -> int:
        """Return the consumer id that a device has now.  Raises why there is none, where it was not opened anew."""
        device = self.moved.get(consumer_id)
        if device is None:
            return consumer_id
        if device.refused is not None:
            raise copy.copy(device.refused)
        return device.opened.consumer_id

    def is_refused(self, consumer_id: int) -> bool:
        """Tell whether a device could not be opened anew."""
        device = self.moved.get(consumer_id)
        return device is not None and device.refused is not None

    def _go_away(self, move: Move) -> None:
        """Take note that the connection has ended, and another one is to be made."""
        self._drop_unsent()
        self.away = True
        move.go_away()

    def resume(self, sock: socket.socket) -> socket.socket:
        """Go on over a connection to the next instance; return the socket of the one before, which is the caller's."""
        before = self.socket
        self._use(sock)
        self.machine = ConsumerConnection(self._own_container, self._limits)
        self.away = False
        self.send(self.machine.hello())
        return before

    # -- the end

    def _refuse(self, error: ProtocolError) -> None:
        with contextlib.suppress(OSError):
            for frame in self.machine.fail(error):
                self.socket.send(frame, socket.MSG_DONTWAIT)
        self.lose(error)

    def lose(self, error: LdmError) -> None:
        """End the connection: every waiter gets an error, once."""
        ended = self.machine.lost()
        move, self.move, self.away = self.move, None, False
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self._end_greeting(error)
        for waiter in (*ended.values(), *(move.held if move is not None else ())):
            waiter.end(copy.copy(error))  # each is raised on its own
        for device in self.devices.values():
            if device.closing is not None:
                device.closing.end(copy.copy(error))
        self._drop_unsent()
        self.arenas.close()
