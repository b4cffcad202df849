"""The one dispatch: how an open, a close or a request becomes a call of a device's handler, on every path.

Who owns what: an edge (file, channel, local) owns its tasks and decides when a consumer is gone; the dispatch owns the
order of calls.  For each consumer id

    open handler        once; when it raises, nothing else follows
    request handler     any number of times, any number at a time
    close handler       once, after the last request handler has ended

A handler that needs no waiting (`Execution.INLINE`) is answered by `request_inline`, without a task.  The others go
through `request`, which registers what cancels them; `close` cancels whatever is outstanding and waits for it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from .device import Consumer, Execution, LogicalDevice, Peer
from .errors import HandleClosed, LdmError, NotSupported, ProviderFailed, QueueFull, RequestCancelled, StaleHandle
from .registry import Registry
from .request import Reply, Request, as_reply
from .tables import LeftConsumer

if TYPE_CHECKING:
    from .state import StateArea

log = logging.getLogger("ldmfs.handler")

MAX_OUTSTANDING = 4096
"""Requests of one container that may wait for their handlers at one time; one more is refused with `EAGAIN`."""


class Event(Protocol):
    """What one task sets and another waits for: `trio.Event`."""

    def set(self) -> Any: ...
    def is_set(self) -> bool: ...
    async def wait(self) -> None: ...


class Runtime(Protocol):
    """What the dispatch needs of the loop that it runs under; the edges bring trio's."""

    cancelled: type[BaseException]
    """The exception by which the loop cancels a task: it is no handler's fault and passes."""

    def event(self) -> Event: ...
    async def in_thread(self, call: Callable[..., Any], *args: Any) -> Any: ...


class Dispatch:
    """Calls the handlers of one registry's devices."""

    def __init__(self, registry: Registry, runtime: Runtime, area: StateArea | None = None) -> None:
        self.registry = registry
        self.runtime = runtime
        self.area = area
        """Where the next instance of the container finds who is open."""
        self.outstanding = 0
        self._numbers = itertools.count(1)

    async def open(self, device: LogicalDevice, peer: Peer, flags: int = 0) -> Consumer:
        """Run the open handler for a new consumer and return it.

        Raises what the handler raises as an `LdmError`; then, and when cancelled, the consumer never was.
        """
        consumer = self.registry.add_consumer(device, peer, flags)
        try:
            if self.area is not None:
                self.area.consumers.add(consumer, flags)
            if device.open_execution is Execution.INLINE:
                device.open_handler(consumer.id)
            else:
                await self._run(device.open_execution, device.open_handler, consumer.id)
            if self.area is not None:
                self.area.consumers.opened(consumer.id)
        except BaseException as error:
            self._forget(consumer)
            raise self._error(error, device, "open") from None
        return consumer

    async def adopt(self, left: LeftConsumer) -> Consumer | None:
        """Take over a consumer that an earlier instance of the container has left in the state area.

        Its file may still be open.  For one that is gone the close handler is run that is owed, and None is returned,
        as for one whose device is no more.
        """
        assert self.area is not None
        device = self.registry.by_id.get(left.device_id)
        if device is None:
            self.area.consumers.remove(left.id)
            return None
        consumer = self.registry.add_consumer(device, left.peer, left.flags, left.id)
        consumer.since = left.since
        if left.is_gone:
            await self.close(consumer)
            return None
        self.area.consumers.answered(consumer.id)
        try:
            if device.adopt_handler is None:
                raise StaleHandle(f"device {device.name!r} keeps no consumers over a crash")
            await self._run(device.adopt_execution, device.adopt_handler, consumer.id)
        except LdmError as error:
            log.info("device %s: consumer %d was not adopted: %s", device.name, consumer.id, error)
            consumer.stale = True
        except BaseException as error:
            if not isinstance(self._error(error, device, "adopt"), LdmError):
                raise
            consumer.stale = True
        return consumer

    async def close(self, consumer: Consumer) -> None:
        """Cancel what the consumer has outstanding, wait for it, and run the close handler; once, later calls return.

        An error of the handler is logged, since nobody is left to be told.  The caller shields this from cancellation.
        """
        if consumer.closing:
            return
        consumer.closing = True
        if consumer.cancels:
            drained = self.runtime.event()
            consumer.drained = drained.set
            for cancel in tuple(consumer.cancels.values()):
                cancel()
            await drained.wait()
        device = consumer.device
        if self.area is not None:
            self.area.consumers.closing(consumer.id)
        try:
            if device.close_execution is Execution.INLINE:
                device.close_handler(consumer.id)
            else:
                await self._run(device.close_execution, device.close_handler, consumer.id)
        except LdmError as error:
            log.warning("device %s: the close handler of consumer %d failed: %s", device.name, consumer.id, error)
        except BaseException as error:
            if not isinstance(self._error(error, device, "close"), LdmError):
                raise
        finally:
            self._forget(consumer)

    def _forget(self, consumer: Consumer) -> None:
        self.registry.remove_consumer(consumer)
        if self.area is not None:
            self.area.consumers.remove(consumer.id)

    def request_inline(self, consumer: Consumer, request: Request) -> Reply:
        """Answer a request of a device whose request handler is `Execution.INLINE`.

        Raises the handler's error as an `LdmError`.
        """
        device = consumer.device
        consumer.requests += 1
        try:
            if consumer.closing or request.type not in device.accepts:
                raise self._refusal(consumer, request)
            return as_reply(device.request_handler(consumer.id, request))
        except GeneratorExit as error:  # the handler's own: there is no coroutine here that could be closed
            consumer.errors += 1
            raise self._error(RuntimeError(repr(error)), device, "request") from error
        except BaseException as error:
            consumer.errors += 1
            raise self._error(error, device, "request") from None

    def admit(self, consumer: Consumer, cancel: Callable[[], None]) -> int:
        """Enter a request that `request` will run and `cancel` cancels; return its number.

        Raises `QueueFull` when too many are outstanding, `HandleClosed` when the consumer is closing.
        """
        if consumer.closing:
            raise HandleClosed(f"consumer {consumer.id} is closed")
        if self.outstanding >= MAX_OUTSTANDING:
            raise QueueFull(f"{MAX_OUTSTANDING} requests are outstanding, as many as may be")
        self.outstanding += 1
        number = next(self._numbers)
        consumer.cancels[number] = cancel
        return number

    async def request(self, consumer: Consumer, request: Request, number: int) -> Reply:
        """Answer a request that was admitted as `number`, however the device's handler wants to be run.

        Raises the handler's error as an `LdmError`; a cancellation passes through, after the handler has ended.
        """
        device = consumer.device
        consumer.requests += 1
        try:
            if request.type not in device.accepts:
                raise self._refusal(consumer, request)
            return as_reply(await self._run(device.request_execution, device.request_handler, consumer.id, request))
        except BaseException as error:
            consumer.errors += 1
            raise self._error(error, device, "request") from None
        finally:
            self.outstanding -= 1
            del consumer.cancels[number]
            if consumer.drained and not consumer.cancels:
                consumer.drained()

    async def _run(self, execution: Execution, handler: Callable[..., Any], *args: Any) -> Any:
        if execution is Execution.ASYNC:
            return await handler(*args)
        if execution is Execution.THREAD:
            return await self.runtime.in_thread(handler, *args)
        value = handler(*args)
        return await value if isinstance(value, Awaitable) else value

    @staticmethod
    def _refusal(consumer: Consumer, request: Request) -> LdmError:
        if consumer.closing:
            return HandleClosed(f"consumer {consumer.id} is closed")
        return NotSupported(f"device {consumer.device.name!r} takes no {request.type.name} requests")

    def _error(self, error: BaseException, device: LogicalDevice, handler: str) -> BaseException:
        """Return what is to be raised for `error`: itself where it is the model's or the loop's, else `ProviderFailed`.

        Whatever else a handler raises, SystemExit and KeyboardInterrupt included, is its bug and not the loop's end.
        """
        if isinstance(error, (LdmError, GeneratorExit, self.runtime.cancelled)):
            return error
        cancelled = None
        if isinstance(error, BaseExceptionGroup):
            cancelled, rest = error.split(self.runtime.cancelled)
            if rest is None:
                return error
            error = error if cancelled is None else rest
        log.error("device %s: its %s handler raised", device.name, handler, exc_info=error)
        if cancelled is not None:
            return cancelled  # without the rest, which would go on through the cancelled scope and end the session
        return ProviderFailed(f"the {handler} handler of device {device.name!r} raised {type(error).__name__}")


def cancelled_error(consumer: Consumer) -> LdmError:
    """Return the error that a request ends with whose consumer cancelled it or went away."""
    return RequestCancelled(f"consumer {consumer.id} of {consumer.device.name!r} cancelled the request")
