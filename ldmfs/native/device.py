"""A device that a provider in C made: its handlers run in worker threads, what it completes later is awaited."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from ..container.host import MAX_THREADS
from ..core.device import Device, Kind
from ..core.errors import InvalidRequest, MessageTooLong, NotSupported, from_errno
from ..core.request import Reply, Request, RequestType
from ..core.wire import KINDS
from .blocks import Marshalled, Pointer
from .call import Call
from .layout import LATER, MAX_DATA, Address, DeviceSpec

if TYPE_CHECKING:
    from .instance import Instance

log = logging.getLogger("ldmfs.native")


class Incoming(Call):
    """One request that the provider has."""

    def __init__(self, address: Address, request: Request, room: memoryview | None) -> None:
        super().__init__()
        self.address = address
        self.request = request
        self.room = room
        self.completed = trio.Event()
        self.completion = 0

    def complete(self, status: int) -> None:
        """Note how the request ended, from any thread."""
        self.completion = status
        self._token.run_sync_soon(self.completed.set)


class NativeDevice(Device):
    """One `struct ldm_device`."""

    def __init__(self, instance: Instance, address: Address, spec: DeviceSpec) -> None:
        self._instance = instance
        self._runtime = instance.library.runtime
        self._address = address
        self.name = instance.name_of((spec.name or b"").decode())
        self.description = (spec.description or b"").decode()
        self.takes = (spec.takes or b"").decode()
        self.gives = (spec.gives or b"").decode()
        self.kind = _kind(spec.kind)
        self.size = spec.size
        self.accepts = frozenset(type for type in RequestType if spec.accepts >> type & 1) or None
        if spec.mode:
            self.mode = spec.mode & 0o777
            self.uid = spec.uid or None
            self.gid = spec.gid or None
        if spec.unmarshal:
            self.unmarshal, self.marshal = Marshalled, _bytes_of
        self._consumers: dict[int, Address] = {}
        self._adopted: dict[int, trio.Lock] = {}
        """Consumers of an earlier instance, with what is held while the open handler runs once more for one."""
        # Of its own, so that devices of one container which consume each other do not wait for each other's threads.
        self._threads = trio.CapacityLimiter(MAX_THREADS)
        self._cancels = trio.CapacityLimiter(MAX_THREADS)

    async def open(self, consumer_id: int) -> None:
        """Run the open handler."""
        consumer: Address = self._runtime.new_consumer(self._address, consumer_id)
        if not consumer:
            raise from_errno(errno.ENOMEM)
        call = Call()
        try:
            with self._instance.opening(consumer, consumer_id, self.name, call):
                _check(await call.run(self._threads, self._runtime.open, consumer))
        except BaseException:
            if call.status == 0:  # it has succeeded while it was cancelled
                with trio.CancelScope(shield=True):
                    await self._in_thread(self._runtime.close, consumer)
            self._free(consumer)
            raise
        self._consumers[consumer_id] = consumer

    def adopt(self, consumer_id: int) -> None:
        """Leave the open handler to be run with the consumer's next request: what it opens may not be there yet."""
        self._adopted[consumer_id] = trio.Lock()

    async def close(self, consumer_id: int) -> None:
        """Run the close handler, unless the consumer was opened under an earlier instance and not used since."""
        self._adopted.pop(consumer_id, None)
        consumer = self._consumers.pop(consumer_id, None)
        if consumer is not None:
            await self._in_thread(self._runtime.close, consumer)
            self._free(consumer)

    def _free(self, consumer: Address) -> None:
        self._instance.forget(consumer)
        self._runtime.free_consumer(consumer)

    async def _consumer(self, consumer_id: int) -> Address:
        lock = self._adopted.get(consumer_id)
        if lock is not None:
            async with lock:
                if consumer_id not in self._consumers:
                    await self.open(consumer_id)
        return self._consumers[consumer_id]

    async def request(self, consumer_id: int, request: Request) -> Reply:
        """Run the request handler, and wait until the request has been completed."""
        self._check(request)
        consumer, marshalled = await self._consumer(consumer_id), isinstance(request.object, Marshalled)
        with self._instance.receiving(consumer_id, request) as call:
            try:
                status = await call.run(self._threads, self._runtime.request, consumer, call.address, marshalled)
                if status == LATER:
                    await call.completed.wait()
                    status = call.completion
            except trio.Cancelled:
                with trio.CancelScope(shield=True):
                    await self._cancel(consumer, call)
                raise
            if marshalled and not status:
                status = await self._in_thread(self._runtime.marshal, consumer, call.address)
            _check(status)
            reply = self._instance.blocks.reply(call.address, call.room)
        if marshalled:
            reply.object = Marshalled(bytes(reply.data))
        return reply

    def _check(self, request: Request) -> None:
        if self.kind is Kind.BLOCK and request.type is RequestType.READ and request.length > MAX_DATA:
            raise MessageTooLong(f"{request.length} bytes are more than the {MAX_DATA} that a part may have")
        if request.object is not None and not isinstance(request.object, (Marshalled, Pointer)):
            raise NotSupported(f"device {self.name!r} is in C, and knows no objects of Python")

    async def _cancel(self, consumer: Address, call: Incoming) -> None:
        """End a request early, where its handler has not ended it."""
        call.cancel()
        if call.status != LATER:
            return
        if not call.completed.is_set():
            await trio.to_thread.run_sync(self._runtime.cancel, consumer, call.address, limiter=self._cancels)
        await call.completed.wait()

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await trio.to_thread.run_sync(function, *args, limiter=self._threads)


def _check(status: int) -> None:
    """Raise the error that a status stands for."""
    if status > 0:
        log.error("a handler ended with status %d, which is none", status)
        status = -errno.EIO
    if status:
        raise from_errno(-status, os.strerror(-status))


def _kind(number: int) -> Kind:
    if not 0 <= number <= len(KINDS):
        raise InvalidRequest(f"there is no kind {number}")
    return KINDS[number - 1] if number else Kind.MESSAGE


def _bytes_of(marshalled: Marshalled) -> bytes:
    return marshalled.data
