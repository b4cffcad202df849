"""A provider in C that a container hosts: its life, and what its shared object calls."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import trio

from ..container.host import Container
from ..core.device import LogicalDevice
from ..core.errors import DeviceBusy, DeviceLoop, Interrupted, LdmError, RequestCancelled, from_errno
from ..core.request import Request
from .blocks import Blocks
from .call import Call
from .device import Incoming, NativeDevice
from .handle import Handle, Sending
from .layout import MAX_CHAIN, Address, DeviceSpec, HostTable, RequestBlock
from .library import Library

log = logging.getLogger("ldmfs.native")

T = TypeVar("T")

_LEVELS = logging.ERROR, logging.WARNING, logging.INFO
"""By `enum ldm_level`."""


class Instance:
    """One provider in C.  `name` is that of the device which the provider gives its own name."""

    def __init__(self, library: Library, container: Container, name: str, provider: str = "native") -> None:
        self.library = library
        self.name = name
        self.blocks = Blocks(library.runtime)
        self.sendings: dict[Address, Sending] = {}
        """What was sent and has not ended, by block."""
        self._container = container
        self._provider = provider
        self._token = trio.lowlevel.current_trio_token()
        self._devices: dict[Address, LogicalDevice] = {}
        self._consumers: dict[Address, tuple[int, str]] = {}
        """The id and the device of each consumer."""
        self._openings: dict[Address, Call] = {}
        """The open handlers that run, by consumer."""
        self._requests: dict[Address, Incoming] = {}
        """What the provider has not completed, by block."""
        self._handles: dict[Address, Handle] = {}

    # -- its life

    async def start(self) -> None:
        """Start the provider.  Raises the error that its `start` returns."""
        self.library.init(self._table())
        status = await trio.to_thread.run_sync(self.library.runtime.start)
        if status:
            self._destroy_devices()
            reason = os.strerror(-status) if status < 0 else f"status {status}"
            raise from_errno(max(-status, errno.EPERM), f"the start of provider {self.name} failed: {reason}")

    async def stop(self) -> None:
        """Stop the provider; what it leaves is destroyed behind it."""
        await trio.to_thread.run_sync(self.library.runtime.stop)
        self._destroy_devices()
        for handle in tuple(self._handles.values()):
            await handle.close()

    def _destroy_devices(self) -> None:
        for address, device in tuple(self._devices.items()):
            try:
                self._destroy_device(address)
            except DeviceBusy:
                log.warning("provider %s leaves its device %s, which has a consumer", self.name, device.name)

    # -- what its devices need

    def name_of(self, device: str) -> str:
        """Return the name that a device gets in the container."""
        return self.name if device == self.library.provider else device

    @contextlib.contextmanager
    def opening(self, consumer: Address, consumer_id: int, device: str, call: Call) -> Iterator[None]:
        """Know of a consumer whose open handler runs meanwhile; until `forget` it is a consumer."""
        self._consumers[consumer] = consumer_id, device
        self._openings[consumer] = call
        try:
            yield
        finally:
            del self._openings[consumer]

    def forget(self, consumer: Address) -> None:
        """Forget a consumer."""
        self._consumers.pop(consumer, None)

    @contextlib.contextmanager
    def receiving(self, consumer_id: int, request: Request) -> Iterator[Incoming]:
        """Have a block with a request meanwhile, which the provider may complete."""
        address, room = self.blocks.receive(request)
        RequestBlock.from_address(address).consumer_id = consumer_id
        call = self._requests[address] = Incoming(address, request, room)
        try:
            yield call
        finally:
            self._requests.pop(address, None)
            self.blocks.free(address)

    # -- what its shared object calls, from any thread

    def _table(self) -> HostTable:
        calls: tuple[Callable[..., Any], ...] = (
            self._log,
            self._create_device,
            self._destroy_device,
            self._complete_request,
            self._open_device,
            self._close_device,
            self._send_request,
            self._send_soon,
            self._cancel_request,
            self.blocks.release,
        )
        fields = zip(HostTable._fields_, calls, strict=True)
        return HostTable(*(make(_with_status(call)) for (_, make), call in fields))

    def _log(self, level: int, line: bytes) -> None:
        log.log(_LEVELS[level], "provider %s: %s", self.name, line.decode(errors="replace"))

    def _create_device(self, address: Address, spec: Any) -> None:
        about: DeviceSpec = spec[0]
        device = NativeDevice(self, address, about)
        self._devices[address] = self._container.create_device(device.name, device, provider=self._provider)

    def _destroy_device(self, address: Address) -> None:
        device = self._devices[address]
        if self._container.registry.devices.get(device.name) is device:  # else `rm` has destroyed it
            self._container.destroy_device(device.name)
        del self._devices[address]

    def _complete_request(self, address: Address, status: int) -> None:
        call = self._requests.pop(address, None)
        if call is None:
            log.error("provider %s has completed a request that it had not, or had completed", self.name)
        else:
            call.complete(status)

    def _open_device(self, name: bytes, upper: Address | None, address: Address, about: Any) -> None:
        handle = Handle(name.decode(), self._container.root, self._chain(upper))
        call = self._openings.get(upper) if upper else None
        self._wait_for(handle.open, call)
        handle.tell(about[0])
        self._handles[address] = handle

    def _chain(self, upper: Address | None) -> tuple[str, ...]:
        if not upper:
            return ()
        consumer_id, device = self._consumers[upper]
        peer = self._container.registry.consumer(consumer_id).peer
        chain = (*peer.chain, f"{self._container.name}/{device}")
        if len(chain) >= MAX_CHAIN:
            raise DeviceLoop(f"{len(chain)} devices in a row are as many as may be")
        return chain

    def _close_device(self, address: Address) -> None:
        self._wait_for(self._handles.pop(address).close)

    def _send_request(self, handle: Address, address: Address) -> int:
        sending = self._sending(handle, address)
        try:
            return trio.from_thread.run(sending.wait, trio_token=self._token)
        except trio.RunFinishedError:
            sending.forget()
            raise

    def _send_soon(self, handle: Address, address: Address) -> None:
        sending = self._sending(handle, address)
        try:
            self._token.run_sync_soon(trio.lowlevel.spawn_system_task, sending.complete)
        except trio.RunFinishedError:
            sending.forget()
            raise

    def _sending(self, handle: Address, address: Address) -> Sending:
        parent = self.blocks.parent(address)
        call = self._requests.get(parent) if parent else None
        if parent and call is None:
            raise RequestCancelled("the request that it was forwarded from has ended")
        request = self.blocks.request(address, call.request if call else None)
        return Sending(self, self._handles[handle], address, request, call)

    def _cancel_request(self, address: Address) -> None:
        sending = self.sendings.get(address)
        if sending is not None:
            self._token.run_sync_soon(sending.scope.cancel)

    def _wait_for(self, function: Callable[[], Awaitable[T]], call: Call | None = None) -> T:
        """Run a function on the loop, cancelled together with the call on whose behalf it is run."""
        scope = trio.CancelScope()
        scopes = call.scopes if call is not None else set()
        scopes.add(scope)
        try:
            return trio.from_thread.run(_within, scope, call, function, trio_token=self._token)
        finally:
            scopes.discard(scope)


async def _within(scope: trio.CancelScope, call: Call | None, function: Callable[[], Awaitable[T]]) -> T:
    if call is None or not call.cancelled:
        with scope:
            return await function()
    raise Interrupted("its consumer is gone")


def _with_status(function: Callable[..., int | None]) -> Callable[..., int]:
    """Return a function that returns a status: what it returns, or what the error is that it raises."""

    @functools.wraps(function)
    def call(*args: Any) -> int:
        try:
            return function(*args) or 0
        except LdmError as error:
            return -error.errno
        except (trio.Cancelled, trio.RunFinishedError):
            return -errno.ECANCELED
        except BaseException:
            log.exception("%s for a provider in C", function.__name__.strip("_"))
            return -errno.EIO

    return call
