"""The supervisor's life: make the tree, serve `system`, run the containers, and undo it all in reverse."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from ..channel.address import listen as channel_listen
from ..consumer import tree
from ..container.host import Container
from ..container.process import hosting, serving
from ..container.settings import ConfigurationError
from ..fuse.mount import Connection
from ..fuse.session import relay_init
from ..kernel import modules
from .child import Child
from .configuration import Configuration
from .guest import Guest, listen
from .system import create_devices
from .tree import Tree

log = logging.getLogger("ldmfs.supervisor")


class Supervisor:
    """The containers of one tree."""

    def __init__(self, configuration: Configuration, root: Path) -> None:
        self.configuration = configuration
        self.tree = Tree(root)
        self.children: dict[str, Child | Guest] = {}
        self.system = Container("system", root=root)
        self._nursery: trio.Nursery | None = None
        self._ended = trio.Event()

    async def run(self, task_status: trio.TaskStatus[list[Child]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the tree until `shut_down`, or until cancelled; the tree is gone when this returns.

        The task's status is the list of the containers, once each has started or failed.  Raises
        `ConfigurationError` and `MountError` when there can be no tree at all.
        """
        self.tree.prepare()
        try:
            await trio.to_thread.run_sync(self._load_kernel_modules)
            async with self._serving_system(), trio.open_nursery() as nursery:
                self._nursery = nursery
                children = [Child(each, self.configuration.system, self.tree) for each in self.configuration.containers]
                for child in children:
                    self.children[child.name] = child
                    nursery.start_soon(child.run)
                nursery.start_soon(listen, self, nursery)
                for child in children:
                    await child.settled.wait()
                task_status.started(children)
                try:
                    await self._ended.wait()
                finally:
                    with trio.CancelScope(shield=True):
                        await self._stop_all()
                    nursery.cancel_scope.cancel()
        finally:
            self.tree.remove()

    def _load_kernel_modules(self) -> None:
        providers = self.configuration.system.kernel_modules
        if not providers:
            return
        try:
            modules.load(providers, self.tree.root)
        except modules.ModuleError as error:
            raise ConfigurationError(f"{self.configuration.file}: system.kernel_modules: {error}") from None

    def shut_down(self) -> None:
        """Let `run` come to its end."""
        self._ended.set()

    async def start(self, child: Child) -> None:
        """Start a container that is stopped or failed; return when it runs or has failed."""
        assert self._nursery is not None
        child.reopen()
        self._nursery.start_soon(child.run)
        await child.settled.wait()

    async def _stop_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for child in tuple(self.children.values()):
                if child.active:
                    nursery.start_soon(child.stop)

    @contextlib.asynccontextmanager
    async def _serving_system(self) -> AsyncIterator[None]:
        connection = await trio.to_thread.run_sync(Connection.mount, self.tree.mount_point("system"))
        ours, theirs, clone = connection.instance()
        create_devices(self)
        listener = channel_listen(tree.channel_socket(self.tree.root, "system"))
        try:
            async with (
                hosting(self.system, ()),
                serving(self.system, theirs.detach(), clone, listener),
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(relay_init, connection, ours)
                yield
                nursery.cancel_scope.cancel()
        finally:
            ours.close()
            listener.close()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(connection.unmount)


def describe_failures(children: list[Child]) -> list[str]:
    """Return a line for each container that did not start, with the reason."""
    return [f"container {child.name}: {child.reason}" for child in children if child.state != "running"]
