"""Stacks: a device that consumes other devices, in its own container or in others.

    line    x -> y -> a          x's provider has a `Lower` for y/y, y's one for a/a
    tree    x -> y, x -> a       x's provider has a `Lower` for each

A lower device is opened once for each consumer of the upper one, when that opens it, with the chain of devices on whose
behalf it is opened.  So the container that closes a cycle sees its own device in the chain, and refuses with ELOOP.
"""

from __future__ import annotations

import trio

from ..consumer import aio
from ..core.request import Reply, Request
from .host import Container


class Lower:
    """A device `name`, as `container/device`, that the device `upper` of `container` consumes.

    With `retry`, for requests that may be repeated, they outlive the lower provider's end: see `ldmfs.open_device`.
    """

    def __init__(self, container: Container, upper: str, name: str, *, retry: bool = False) -> None:
        self.name = name
        self.retry = retry
        self._container = container
        self._upper = upper
        self._open: dict[int, aio.OpenDevice] = {}
        self._opening: dict[int, trio.Lock] = {}
        """By consumer: held by the request that opens the device anew; the others find it open."""

    async def open(self, consumer_id: int) -> None:
        """Open the lower device for a consumer of the upper one.

        Raises what that is refused with, `DeviceLoop` where it would close a cycle; cancelled, nothing is open.
        """
        peer = self._container.registry.consumer(consumer_id).peer
        chain = (*peer.chain, f"{self._container.name}/{self._upper}")
        self._open[consumer_id] = await aio.open_device(
            self.name, root=self._container.root, chain=chain, retry=self.retry
        )

    async def send(self, consumer_id: int, request: Request) -> Reply:
        """Send a request on behalf of a consumer of the upper device: `request.forward()` of what came from it.

        Raises `ProviderDied` when the lower provider ends meanwhile, without `retry`; the next request opens the
        device anew.
        """
        device = self._open.get(consumer_id)
        if device is None or device.lost:  # an earlier instance of this container had it open, or the provider ended
            device = await self._opened_anew(consumer_id)
        return await device.send(request)

    async def _opened_anew(self, consumer_id: int) -> aio.OpenDevice:
        async with self._opening.setdefault(consumer_id, trio.Lock()):
            device = self._open.get(consumer_id)
            if device is None or device.lost:
                await self._close(consumer_id)
                await self.open(consumer_id)
            return self._open[consumer_id]

    async def close(self, consumer_id: int) -> None:
        """Close the lower device for a consumer of the upper one; nothing is done where it is not open."""
        self._opening.pop(consumer_id, None)
        await self._close(consumer_id)

    async def _close(self, consumer_id: int) -> None:
        device = self._open.pop(consumer_id, None)
        if device is not None:
            await device.close()


class StackedDevice:
    """The open and close handlers of a device with lower ones: mix it in before `Device`, and set `lowers`."""

    lowers: tuple[Lower, ...] = ()

    async def open(self, consumer_id: int) -> None:
        """Open each lower device; when one refuses, or it is cancelled, none stays open."""
        try:
            for lower in self.lowers:
                await lower.open(consumer_id)
        except BaseException:
            await self.close(consumer_id)
            raise

    def adopt(self, consumer_id: int) -> None:
        """Leave the lower devices to be opened with the consumer's next request."""

    async def close(self, consumer_id: int) -> None:
        """Close each lower device."""
        for lower in self.lowers:
            await lower.close(consumer_id)
