"""The way to a device of the consumer's own container: a plain call, no copy, nothing serialised."""

from __future__ import annotations

import os
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.channel import refuse_cycle
from ..core.device import Consumer, Execution, Kind, Peer
from ..core.errors import LdmError, NotSupported
from ..core.request import Reply, Request

if TYPE_CHECKING:
    from ..core.dispatch import Dispatch
    from ..core.registry import Registry

T = TypeVar("T")


class Here:
    """The container of this process, for consumers in it.

    What serves one is imported where it is used: scripts are no containers, and need not wait for it.
    """

    current: Here | None = None

    def __init__(self, root: Path, registry: Registry, dispatch: Dispatch) -> None:
        import trio

        self.root = root
        self.registry = registry
        self.dispatch = dispatch
        self.token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        self._must_not_wait = False
        """A blocking caller on the loop's own thread is being served."""

    @property
    def on_loop(self) -> bool:
        """Whether the caller is on the container's loop, where it must not block."""
        return threading.get_ident() == self._thread

    async def open(self, device: str, chain: tuple[str, ...]) -> Consumer:
        """Open a device for a consumer in this process."""
        refuse_cycle(self.registry.container, device, chain)
        logical = self.registry.find(device)
        self._check_wait(logical.open_execution)
        peer = Peer(os.getpid(), os.geteuid(), os.getegid(), 0, "local", self.registry.container, chain)
        return await self.dispatch.open(logical, peer)

    async def request(self, consumer: Consumer, request: Request) -> Reply:
        """Send a request; cancelling cancels the handler."""
        if consumer.device.kind is Kind.BLOCK:
            request = consumer.device.bounded(request)
        if consumer.device.request_execution is Execution.INLINE:
            return self.dispatch.request_inline(consumer, request)
        import trio

        from ..core.dispatch import cancelled_error

        self._check_wait(consumer.device.request_execution)
        outcome: Reply | LdmError = cancelled_error(consumer)
        with trio.CancelScope() as scope:
            outcome = await self.dispatch.request(consumer, request, self.dispatch.admit(consumer, scope.cancel))
        if isinstance(outcome, LdmError):
            raise outcome
        return outcome

    async def close(self, consumer: Consumer) -> None:
        """Close a device; for a blocking caller on the loop's thread it goes on behind its back if it has to wait."""
        import trio

        if self._must_not_wait and (consumer.cancels or consumer.device.close_execution is not Execution.INLINE):
            trio.lowlevel.spawn_system_task(self.dispatch.close, consumer)
            return
        with trio.CancelScope(shield=True):
            await self.dispatch.close(consumer)

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of this class for a blocking caller: in another thread, or where nothing has to wait.

        Raises `NotSupported` on the loop's own thread when the handler has to wait, since nobody could run it.
        """
        if not self.on_loop:
            import trio

            return trio.from_thread.run(_awaiting, coroutine, trio_token=self.token)
        before, self._must_not_wait = self._must_not_wait, True
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            self._must_not_wait = before
        raise AssertionError("what has to wait was refused before")

    def _check_wait(self, execution: Execution) -> None:
        """Raise before a handler has begun that would be left in the middle."""
        if self._must_not_wait and execution is not Execution.INLINE:
            raise NotSupported("this call would wait on the container's own loop; use ldmfs.aio there")


async def _awaiting(coroutine: Coroutine[Any, Any, T]) -> T:
    return await coroutine
