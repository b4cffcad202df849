"""A container: its registry and dispatch under trio, and the provider API on top of them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, overload

import msgspec
import trio

from ..consumer.tree import default_root
from ..core.device import CloseHandler, Device, LogicalDevice, OpenHandler, RequestHandler, from_handlers
from ..core.dispatch import Dispatch
from ..core.errors import LdmError
from ..core.registry import Registry
from ..core.tables import LeftConsumer, Stage
from ..fuse.unanswered import Unanswered
from .state import SharedState

log = logging.getLogger("ldmfs.container")

OWN = "ldmfs"
"""Under which name the state area keeps what is the container's own; no plug-in has it."""

MAX_THREADS = 64
"""Handlers of one container that run in worker threads at one time; more wait for a thread."""


class TrioRuntime:
    """What the dispatch needs of a loop, as trio has it."""

    cancelled: type[BaseException] = trio.Cancelled
    event = trio.Event

    def __init__(self) -> None:
        self._limiter: trio.CapacityLimiter | None = None

    async def in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        """Run a blocking call; it cannot be cut short, so a cancellation takes effect when it has returned."""
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(MAX_THREADS)
        return await trio.to_thread.run_sync(call, *args, limiter=self._limiter)


class Container:
    """One fault domain and name space: what providers create their devices in.

    `current` is the container of this process, which `create_device` and `destroy_device` of the package act on.
    """

    current: Container | None = None

    def __init__(
        self,
        name: str,
        first_consumer_id: int = 1,
        root: Path | None = None,
        shared: SharedState | None = None,
        *,
        reissue: bool = False,
    ) -> None:
        self.name = name
        self.root = root or default_root()
        self.reissue = reissue
        """Requests that were under way at a crash are answered by the next instance."""
        self.shared = shared or SharedState()
        self.area = self.shared.area
        self.registry = Registry(name, first_consumer_id=first_consumer_id)
        self.dispatch = Dispatch(self.registry, TrioRuntime(), self.area)
        self.nursery: trio.Nursery | None = None
        self.handed_over = False
        """The next instance has the open files: their consumers live on."""

    @overload
    def create_device(self, name: str, device: Device, /, *, provider: str = ...) -> LogicalDevice: ...
    @overload
    def create_device(
        self,
        name: str,
        open_handler: OpenHandler | None = None,
        close_handler: CloseHandler | None = None,
        request_handler: RequestHandler | None = None,
        *,
        provider: str = ...,
        **attributes: Any,
    ) -> LogicalDevice: ...

    def create_device(
        self,
        name: str,
        open_handler: Device | OpenHandler | None = None,
        close_handler: CloseHandler | None = None,
        request_handler: RequestHandler | None = None,
        *,
        provider: str = "",
        **attributes: Any,
    ) -> LogicalDevice:
        """Create a logical device and make it available: at once, to every consumer, from any thread.

        Either `create_device(name, device)` with an instance of a `Device` subclass, or the three handlers,
        `open_handler(name, consumer_id)`, `close_handler(name, consumer_id)` and `request_handler(name, consumer_id,
        request)`, of which only the last is needed, with any attributes of `Device` as keywords.

        Raises `DeviceExists`, and `InvalidRequest` or `NameTooLong` for a bad name or attribute.
        """
        if isinstance(open_handler, Device):
            device = open_handler
        else:
            device = from_handlers(name, open_handler, close_handler, request_handler, attributes)
        return self.registry.create_device(name, device, provider)

    def destroy_device(self, name: str) -> None:
        """Make a device unavailable: at once, from any thread.

        Raises `NoSuchDevice`, and `DeviceBusy` while the device has a consumer.
        """
        self.registry.destroy_device(name)

    async def adopt(self, unanswered: Iterable[Unanswered] = ()) -> None:
        """Take over what the instance before this one has left: its consumers, and the close handlers that it owes.

        `unanswered` is what the kernel tells of their last requests.  Once, when the devices are there and before
        anything is served.  The close handlers run on while it is served: one that takes its time holds nobody up.
        """
        assert self.nursery is not None
        left = self.area.recover()
        if left.damaged or left.store_damage:
            log.error("the state area was written over: %d entries are lost. %s", left.damaged, left.store_damage)
        own = self.area.store(OWN)
        known = int(own.get("known") or 0)
        news = [each for each in unanswered if each.number > known]
        kept: list[LeftConsumer] = []
        for consumer in left.consumers:
            if consumer.is_gone or any(_is_gone(consumer, each) for each in news):
                self.area.consumers.closing(consumer.id)
                self.nursery.start_soon(self._close_owed, msgspec.structs.replace(consumer, stage=Stage.CLOSING))
                continue
            if any(consumer.id in each.told for each in news):
                self.area.consumers.idle(consumer.id)
            kept.append(consumer)
        if news:
            own.put("known", b"%d" % news[-1].number)  # from here on it would be wrong to do this once more
        async with trio.open_nursery() as nursery:
            for consumer in kept:
                nursery.start_soon(self.dispatch.adopt, consumer)

    async def _close_owed(self, consumer: LeftConsumer) -> None:
        with trio.CancelScope(shield=True):
            await self.dispatch.adopt(consumer)

    async def close_consumers(self) -> None:
        """Run the close handler for whoever has a device open: the container is about to end.

        Where it has handed over, those who have a file open live on, and are none of this instance's any more.
        """
        async with trio.open_nursery() as nursery:
            for consumer in tuple(self.registry.consumers.values()):
                if self.handed_over and consumer.peer.path in ("file", "kernel"):
                    self.registry.remove_consumer(consumer)
                else:
                    nursery.start_soon(self.dispatch.close, consumer)


def _is_gone(consumer: LeftConsumer, unanswered: Unanswered) -> bool:
    """Tell whether nobody has the consumer open: its end was not told, or its open was not answered.

    A thread waits for one open at a time, and the next one is not read before the one before it is `Stage.OPEN`.
    """
    if consumer.stage is Stage.OPENED:
        return consumer.peer.tid in unanswered.opening
    return consumer.id in unanswered.released


def create_device(*args: Any, **kwargs: Any) -> LogicalDevice:
    """`Container.create_device` of this process's container."""
    return _current().create_device(*args, **kwargs)


def destroy_device(name: str) -> None:
    """`Container.destroy_device` of this process's container."""
    _current().destroy_device(name)


def _current() -> Container:
    if Container.current is None:
        program = sys.argv[0] or "this program"
        raise LdmError(f"{program} is no container: start its provider with 'ldmfs run', ldmfs.run or a configuration")
    return Container.current
