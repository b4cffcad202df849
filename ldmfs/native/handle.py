"""Devices that a provider in C consumes: through the consumer library, on the container's loop."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from ..consumer import aio
from ..container.host import MAX_THREADS
from ..core.device import Execution
from ..core.errors import HandleClosed, LdmError, RequestCancelled
from ..core.request import Request
from ..core.wire import EXECUTIONS, KINDS
from .call import Call
from .layout import About, Address

if TYPE_CHECKING:
    from .instance import Instance

log = logging.getLogger("ldmfs.native")


class Handle:
    """One `struct ldm_handle`: a device that was opened, and is opened anew when its provider has been restarted."""

    def __init__(self, name: str, root: Path, chain: tuple[str, ...]) -> None:
        self.threads = trio.CapacityLimiter(MAX_THREADS)
        """For its completion handlers, which may wait for others of the same provider."""
        self._name, self._root, self._chain = name, root, chain
        self._device: aio.OpenDevice | None = None
        self._opening = trio.Lock()
        self._outstanding: set[Sending] = set()
        self._none_left = trio.Event()
        self._closed = False

    async def open(self) -> aio.OpenDevice:
        """Return the device, open.  Raises what the open is refused with; cancelled, nothing is open."""
        if self._device is not None and not self._device.lost:
            return self._device
        async with self._opening:
            if self._device is not None and self._device.lost:
                device, self._device = self._device, None
                await device.close()
            if self._device is None:
                self._device = await aio.open_device(self._name, root=self._root, chain=self._chain)
            return self._device

    def tell(self, about: About) -> None:
        """Fill in what `ldm_about_device` tells."""
        assert self._device is not None
        about.consumer_id, about.size = self._device.consumer_id, self._device.size
        about.accepts = sum(1 << type for type in self._device.accepts)
        about.kind = KINDS.index(self._device.kind) + 1
        about.execution = EXECUTIONS.index(Execution.THREAD) + 1  # never in the thread of its consumer

    def add(self, sending: Sending) -> None:
        """Take note of a request that will be sent, from any thread.  Raises `HandleClosed`."""
        if self._closed:
            raise HandleClosed(f"device {self._name} is closed")
        self._outstanding.add(sending)

    def remove(self, sending: Sending) -> None:
        """Take note that a request, its completion handler included, is done with."""
        self._outstanding.discard(sending)
        if not self._outstanding:
            self._none_left.set()

    async def close(self) -> None:
        """Cancel what is outstanding, wait for it, and close the device."""
        self._closed = True
        with trio.CancelScope(shield=True):
            while self._outstanding:
                self._none_left = trio.Event()
                for sending in tuple(self._outstanding):
                    sending.scope.cancel()
                await self._none_left.wait()
            device, self._device = self._device, None
            if device is not None:
                await device.close()


class Sending:
    """One request that the provider sends; `call` is the one on whose behalf it does, if any."""

    def __init__(self, instance: Instance, handle: Handle, address: Address, request: Request, call: Call | None):
        self.scope = trio.CancelScope()
        self._instance = instance
        self._handle = handle
        self._address = address
        self._request = request
        self._call = call
        handle.add(self)
        if call is not None:
            call.scopes.add(self.scope)
        instance.sendings[address] = self

    async def wait(self) -> int:
        """Send the request; return how it ended."""
        try:
            return await self._outcome()
        finally:
            self.forget()

    async def complete(self) -> None:
        """Send the request, and tell the completion handler how it ended, whatever happens."""
        status = -errno.ECANCELED
        try:
            status = await self._outcome()
        finally:
            self._detach()  # the handler may free the block, whose address may be another's then
            with trio.CancelScope(shield=True):
                end = self._instance.library.runtime.end
                await trio.to_thread.run_sync(end, self._address, status, limiter=self._handle.threads)
            self._handle.remove(self)

    def forget(self) -> None:
        """Forget the request: it has ended, or never will be sent."""
        self._detach()
        self._handle.remove(self)

    async def _outcome(self) -> int:
        status = -errno.ECANCELED
        with self.scope:
            try:
                await self._ask()
                status = 0
            except LdmError as error:
                status = -error.errno
            except Exception:
                log.exception("a request of provider %s", self._instance.name)
                status = -errno.EIO
        return status

    async def _ask(self) -> None:
        if self._call is not None and self._call.cancelled:
            raise RequestCancelled("the request on whose behalf it was sent is cancelled")
        device = await self._handle.open()
        reply = await device.send(self._request)
        self._instance.blocks.take(self._address, self._request, reply)

    def _detach(self) -> None:
        if self._call is not None:
            self._call.scopes.discard(self.scope)
        if self._instance.sendings.get(self._address) is self:
            del self._instance.sendings[self._address]
