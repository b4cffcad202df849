"""The supervisor's life: make the tree, serve `system`, run the containers, and undo it all in reverse."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from ..channel.address import file_name
from ..channel.address import listen as channel_listen
from ..consumer import tree
from ..container.host import Container
from ..container.process import hosting, serving
from ..container.settings import ConfigurationError
from ..fuse.mount import Connection
from ..kernel import modules
from .child import Child
from .configuration import Configuration, ContainerConfiguration, options_of
from .guest import Guest, host, listen
from .instance import Instance
from .orphan import Adopted, Orphan
from .system import create_devices
from .templates import Templates
from .tree import Tree

log = logging.getLogger("ldmfs.supervisor")

TEMPLATE_LOG = ".template"
"""The log of the template, among those of the containers, none of which has this name."""


class Supervisor:
    """The containers of one tree."""

    def __init__(self, configuration: Configuration, root: Path) -> None:
        self.configuration = configuration
        self.tree = Tree(root)
        self.children: dict[str, Child | Guest] = {}
        self.templates = Templates(tree.log_file(root, TEMPLATE_LOG), tree.private(root) / "template")
        self.system = Container("system", root=root)
        self._nursery: trio.Nursery | None = None
        self._ended = trio.Event()

    async def run(self, task_status: trio.TaskStatus[list[Child]] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the tree until `shut_down`, or until cancelled; the tree is gone when this returns.

        The task's status is the list of the containers, once each has started or failed.  Raises
        `ConfigurationError` and `MountError` when there can be no tree at all.
        """
        orphans = {name: Orphan(end) for name, end in self.tree.prepare().items()}
        try:
            await trio.to_thread.run_sync(self._load_kernel_modules)
            async with self._serving_system(), trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.templates.run)
                children = [self._child(each) for each in self.configuration.containers]
                async with trio.open_nursery() as starting:
                    for child in children:
                        starting.start_soon(self._begin, child, orphans.pop(file_name(child.name), None))
                    for key, orphan in orphans.items():
                        starting.start_soon(self._keep, key, orphan, children)
                    nursery.start_soon(listen, self, nursery)
                task_status.started(children)
                try:
                    await self._ended.wait()
                finally:
                    with trio.CancelScope(shield=True):
                        await self._stop_all()
                    nursery.cancel_scope.cancel()
        finally:
            if orphans and self._nursery is None:  # there can be no supervisor, but the containers can go on
                self.tree.release()
            else:
                self.tree.remove()

    def _load_kernel_modules(self) -> None:
        providers = self.configuration.system.kernel_modules
        if not providers:
            return
        try:
            modules.load(providers, self.tree.root)
        except modules.ModuleError as error:
            raise ConfigurationError(f"{self.configuration.file}: system.kernel_modules: {error}") from None

    def _child(self, configuration: ContainerConfiguration) -> Child:
        child = self.children[configuration.name] = Child(
            configuration, self.configuration.system, self.tree, self.templates
        )
        return child

    async def _begin(self, child: Child, orphan: Orphan | None) -> None:
        """Start a container of the configuration, or adopt it where it runs; return when it has settled."""
        assert self._nursery is not None
        adopted = await self._adopt(file_name(child.name), orphan) if orphan else None
        if adopted is not None and adopted.kept.start.by_hand:
            await self._invite(adopted, instead=child)
            return
        if adopted is not None:
            child.compare(adopted.kept.start)
        self._nursery.start_soon(child.run, adopted)
        await child.settled.wait()

    async def _keep(self, key: str, orphan: Orphan, children: list[Child]) -> None:
        """Adopt a container that is not in the configuration; return when it has settled."""
        assert self._nursery is not None
        adopted = await self._adopt(key, orphan)
        if adopted is None:
            return
        start = adopted.kept.start
        if start.by_hand:
            await self._invite(adopted)
            return
        child = self._child(ContainerConfiguration(start.name, options_of(start.options), start.plug_ins))
        children.append(child)
        child.configured = False
        log.warning("container %s is not in the configuration, and goes on until it is stopped", child.name)
        self._nursery.start_soon(child.run, adopted)
        await child.settled.wait()

    async def _invite(self, adopted: Adopted, instead: Child | None = None) -> None:
        """Adopt a container that is run by hand; one of the configuration that has its name starts at its end."""
        assert self._nursery is not None
        name = adopted.kept.start.name
        guest = Guest(name, Instance.adopted(adopted), self)

        async def live() -> None:
            await host(self, name, guest, adopted)
            if instead is not None and not self._ended.is_set():
                self.children[name] = instead
                instead.reopen()
                await instead.run()

        if instead is not None:
            instead.postpone(f"process {guest.pid}, which is run by hand, has this name; it starts at the end of that")
        self._nursery.start_soon(live)
        await guest.settled.wait()

    async def _adopt(self, key: str, orphan: Orphan) -> Adopted | None:
        """Take over what runs; what does not answer in time is ended."""
        with trio.move_on_after(self.configuration.system.start_timeout):
            if adopted := await orphan.adopt():
                return adopted
        log.warning("a container that a killed supervisor has left does not answer, and is ended: %s", key)
        await orphan.aclose()
        await trio.to_thread.run_sync(self.tree.drop, key)
        return None

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
        create_devices(self)
        listener = channel_listen(tree.channel_socket(self.tree.root, "system"))
        try:
            async with hosting(self.system, ()), serving(self.system, connection, connection.device(), listener):
                yield
        finally:
            listener.close()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(connection.unmount)


def describe_failures(children: list[Child]) -> list[str]:
    """Return a line for each container that did not start, with the reason."""
    return [f"container {child.name}: {child.reason}" for child in children if child.state != "running"]
