"""A provider that moves to another process: what waits for that, and the devices that are opened anew there.

What the process that goes does not take any more is held: what it was asked and had not taken, and what its consumers
ask meanwhile.  When the connection has ended, and whoever reads has connected to the next process, each device is
opened anew, by its name, and when it is, what is held for it is asked in the order in which it was.  One device does
not wait for another: its open handler may lead through this connection to an open of that one.  Consumers know a
device by the consumer id that it had first.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from ..core.errors import LdmError, ProviderDied, QueueFull, RequestCancelled
from ..core.events import Moving, Opened, State
from ..core.wire import Frames
from .waiter import NOTHING, Waiter

if TYPE_CHECKING:
    from .client import Client

_TAKING = frozenset({State.READY, State.MOVING, State.PIECES})


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


class Move:
    """A client's part in a move, from the notice until nothing waits any more; the next process may move as well."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.held: deque[Waiter] = deque()
        self._to_open: deque[tuple[int, Device]] = deque()
        self._opening = 0

    # -- what is held

    def takes_open(self, chain: tuple[str, ...]) -> bool:
        """Tell whether the connection is there and takes an open."""
        machine = self._client.machine
        return machine.state in _TAKING and machine.takes_open(chain)

    def takes(self, consumer_id: int) -> bool:
        """Tell whether the connection is there and takes a device's requests, with none before that is held."""
        machine, device = self._client.machine, self._client.devices.get(consumer_id)
        if device is None or (device.refused is not None and device.ready):
            return True  # and refuses them
        if not device.ready or machine.state not in _TAKING or not machine.takes(device.opened.consumer_id):
            return False
        return not self._held_of(consumer_id)

    def _held_of(self, consumer_id: int) -> list[Waiter]:
        return [each for each in self.held if each.requests is not None and each.requests[0] == consumer_id]

    def hold(self, waiter: Waiter) -> Frames:
        """Let a waiter wait; there is nothing to be sent.  Raises `QueueFull`."""
        if len(self.held) >= self._client.machine.limits.max_outstanding:
            raise QueueFull(f"{len(self.held)} requests wait for the provider's next process, as many as may be")
        if waiter.done is not None and waiter.requests is not None:
            waiter.own(bytes(waiter.requests[-1].data))
        self.held.append(waiter)
        return ()

    def take_back(self, event: Moving) -> None:
        """Hold what the provider has not taken, before what was held already."""
        again: list[Waiter] = [each for each in event.again if each.requests is not None or each.opens is not None]
        for waiter in (*again, *event.released):
            if waiter.block is not None and waiter.done is not None:
                waiter.own(waiter.block.input())
            self._client.arenas.free(waiter)
        self.held.extendleft(reversed(again))
        for waiter in event.released:
            waiter.end(RequestCancelled("it was cancelled"))

    def cancel(self, waiter: Waiter) -> None:
        """End what is held."""
        self.held.remove(waiter)
        waiter.end(RequestCancelled("it was cancelled"))

    # -- the next process

    def go_away(self) -> None:
        """Take note that the connection has ended, and with it what was to be answered over it."""
        client = self._client
        unanswered, closed, released = client.machine.moved()
        # It was killed, or gave up, where it has not answered, and may still write into the blocks.
        client.arenas.move(used=any(waiter.block is not None for waiter in (*unanswered, *released)))
        self._to_open.clear()
        self._opening = 0
        for device in client.devices.values():
            device.opening, device.ready = None, False
        for waiter in unanswered:
            if waiter.requests is not None or waiter.opens is not None:
                waiter.end(ProviderDied("the container's process ended"))
        for waiter in closed:
            waiter.end(NOTHING)
        for waiter in released:
            waiter.end(RequestCancelled("it was cancelled"))
        for consumer_id, device in tuple(client.devices.items()):
            if device.closing is not None:  # it was being opened anew, by a process that has ended
                del client.devices[consumer_id]
                device.closing.end(NOTHING)

    def greeted(self) -> None:
        """Take note that the next process is there."""
        self._to_open.extend(each for each in self._client.devices.items() if not each[1].ready)

    def go_on(self) -> None:
        """Open devices anew, and ask what was held back, as far as the next connection takes it."""
        client = self._client
        if client.away or client.machine.is_moving or client.machine.state not in _TAKING:
            return
        with contextlib.suppress(QueueFull):  # the rest when there is room again
            while self._to_open:
                self._open_anew(*self._to_open[0])
                self._to_open.popleft()
            self._ask_held()
            if not self.held and not self._opening:
                client.move = None

    def _open_anew(self, consumer_id: int, device: Device) -> None:
        waiter = Waiter(functools.partial(self._opened_anew, consumer_id, device))
        waiter.id, frames = self._client.machine.open(device.name, device.chain, waiter, again=True)
        device.opening = waiter
        self._opening += 1
        self._client.send(frames)

    def _opened_anew(self, consumer_id: int, device: Device, waiter: Waiter) -> None:
        if device.opening is not waiter:  # the connection was lost
            return
        self._opening -= 1
        self._client.moved[consumer_id] = device
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
            self._client.send(self._client.close(consumer_id, closing))

    def _ask_held(self) -> None:
        """Ask what was held back, in its order, but for what is of a device that is not open yet."""
        for waiter in tuple(self.held):
            if waiter.requests is not None:
                device = self._client.devices.get(waiter.requests[0])
                if device is not None and not device.ready:
                    continue
            refused = self._ask(waiter)
            if waiter in self.held:
                self.held.remove(waiter)
            if refused is not None:
                waiter.end(refused)

    def _ask(self, waiter: Waiter) -> LdmError | None:
        """Ask what a waiter was held with; return what it is refused with.  Raises `QueueFull`."""
        client = self._client
        move, client.move = client.move, None  # so that it is not held again
        try:
            if waiter.requests is not None:
                client.send(client.request(*waiter.requests, waiter))
            elif waiter.opens is not None:
                client.send(client.open(*waiter.opens, waiter))
        except QueueFull:
            raise
        except LdmError as error:
            return error
        finally:
            client.move = move
        return None

    def close(self, consumer_id: int, device: Device, waiter: Waiter) -> Frames:
        """Return the frames that close a device, which is none of the client's any more."""
        client = self._client
        for held in self._held_of(consumer_id):
            client.cancel(held)
        if device.opening is not None:
            device.closing = waiter
            client.devices[consumer_id] = device  # until it is closed there
            return ()
        if not device.ready or device.refused is not None:
            if (consumer_id, device) in self._to_open:
                self._to_open.remove((consumer_id, device))
            waiter.end(NOTHING)
            return ()
        try:
            waiter.id, frames = client.machine.close(device.opened.consumer_id, waiter)
        except LdmError:  # it is not open over this connection
            waiter.end(NOTHING)
            return ()
        return frames
