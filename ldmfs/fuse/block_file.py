"""Open files of block devices: what read, write, sync and release mean for one."""

from __future__ import annotations

import functools
import select

import pyfuse3
import trio

from ..core.device import Consumer, Execution
from ..core.dispatch import cancelled_error
from ..core.errors import InvalidRequest, LdmError, NoSpace, StaleHandle
from ..core.request import Reply, Request, RequestType
from ..core.wire import Buffer
from . import signals
from .running import Running
from .surroundings import Surroundings


class BlockFile:
    """One open file of a block device: reads and writes at an offset, answered by READ and WRITE requests."""

    __slots__ = ("_around", "consumer", "flags")

    def __init__(self, around: Surroundings, consumer: Consumer, flags: int) -> None:
        self._around = around
        self.consumer = consumer
        self.flags = flags

    async def read(self, offset: int, size: int) -> Buffer:
        """Return the bytes at `offset`, fewer than `size` at the device's end."""
        size = min(size, self.consumer.device.size - offset)
        if size <= 0:
            return b""
        reply = await self._request(Request(RequestType.READ, offset=offset, length=size))
        if len(reply.data) != size:
            raise InvalidRequest(f"device {self.consumer.device.name!r} gave {len(reply.data)} bytes for {size}")
        return reply.data

    async def write(self, offset: int, data: bytes) -> int:
        """Write `data` at `offset`; what would lie behind the device's end is not written."""
        room = self.consumer.device.size - offset
        if room <= 0:
            raise NoSpace(f"offset {offset} lies behind the end of the device")
        part = data[:room]
        await self._request(Request(RequestType.WRITE, part, offset=offset, length=len(part)))
        return len(part)

    async def sync(self) -> None:
        """Make durable what was written before."""
        await self._request(Request(RequestType.FLUSH))

    async def flush(self) -> None:
        """Nothing is outstanding when `close` is called."""

    async def release(self) -> None:
        """Close the device for this consumer."""
        with trio.CancelScope(shield=True):
            await self._around.dispatch.close(self.consumer)

    def give_up(self) -> None:
        """End the requests that are running, with the error of `Surroundings.ending`."""
        for cancel in tuple(self.consumer.cancels.values()):
            cancel()

    def poll(self, handle: pyfuse3.PollHandle | None) -> int:
        """A block device is always ready."""
        return select.POLLIN | select.POLLOUT

    async def _request(self, request: Request) -> Reply:
        dispatch, consumer = self._around.dispatch, self.consumer
        if consumer.device.request_execution is Execution.INLINE:
            return dispatch.request_inline(consumer, request)
        outcome: list[Reply | LdmError | None] = []
        running = Running()
        ticket = dispatch.admit(consumer, running.scope.cancel)
        self._around.nursery.start_soon(running.run, outcome.append, dispatch.request, consumer, request, ticket)
        try:
            await self._around.watch.wait(running.done, functools.partial(signals.reader_pending, consumer))
        except LdmError:
            running.scope.cancel()
            raise
        result = outcome[0] or self._around.ending or cancelled_error(consumer)
        if isinstance(result, LdmError):
            raise result
        return result


class StaleFile(BlockFile):
    """An open file of a device that has lost its consumers with the container's earlier instance."""

    __slots__ = ()

    async def read(self, offset: int, size: int) -> Buffer:
        """Refuse."""
        raise self._error()

    async def write(self, offset: int, data: bytes) -> int:
        """Refuse."""
        raise self._error()

    async def sync(self) -> None:
        """Refuse."""
        raise self._error()

    def _error(self) -> LdmError:
        name = self.consumer.device.name
        return StaleHandle(f"device {name!r} was opened under an instance of the container that is gone; open it anew")
