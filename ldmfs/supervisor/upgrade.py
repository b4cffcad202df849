"""An upgrade: an instance with the code as it is now takes the place of the one that serves.

    prepare       a process imports the plug-ins and checks their settings; if that fails, nothing has happened
    hand over     the one that serves drains, and leaves what its open files hold
    take over     the prepared one starts its providers and serves

From the second step on there is no way back but a standby, which has the code from before: where the new instance does
not become ready, that is a crash of the container.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from ..consumer import tree
from ..container.control import Prepare
from .configuration import ContainerConfiguration, SystemOptions
from .instance import Instance, any_of
from .log import Log
from .templates import Templates
from .tree import Tree

log = logging.getLogger("ldmfs.supervisor")

GIVE_UP_SECONDS = 3.0
"""How long an instance may take, behind `drain_timeout`, to end what has not ended by itself."""


class Upgrade:
    """One upgrade of one container; `run` is its life."""

    def __init__(
        self, configuration: ContainerConfiguration, system: SystemOptions, at: Tree, templates: Templates
    ) -> None:
        self.error = ""
        """Why it did not come to its end, or what consumers have noticed."""
        self.done = trio.Event()
        self.successor: Instance | None = None
        """The instance that is to take over, once it is prepared and until `take`."""
        self._taken = trio.Event()
        self._configuration = configuration
        self._system = system
        self._tree = at
        self._templates = templates

    @property
    def active(self) -> bool:
        """Whether it is under way."""
        return not self.done.is_set()

    def take(self) -> Instance | None:
        """Return the instance that is to take over, which is the caller's from here on; None where there is none."""
        successor, self.successor = self.successor, None
        if successor is None or successor.process.ends():
            return None
        self._taken.set()
        return successor

    async def run(self, nursery: trio.Nursery, serving: Callable[[], Instance | None]) -> None:
        """Upgrade; `serving` gives the instance that serves, or that is starting, at any time."""
        error = "it was stopped meanwhile"
        try:
            error = await self._run(nursery, serving)
        finally:
            self.error = error
            if error:
                log.warning("container %s: upgrade: %s", self._configuration.name, error)
            self.done.set()

    async def _run(self, nursery: trio.Nursery, serving: Callable[[], Instance | None]) -> str:
        name = self._configuration.name
        self._templates.renew()
        try:
            successor = await Instance.spawn(self._templates, Log(self._tree.root, name).path)
        except OSError as error:
            return f"no process can be started: {error.strerror}"
        nursery.start_soon(successor.run)
        outcome = remark = ""
        try:
            successor.note = self._tree.note(tree.successor_file(self._tree.root, name), successor.pid)
            await successor.prepare(Prepare(name, self._configuration.plug_ins), self._system.start_timeout)
            if not successor.ended.is_set():
                self.successor = successor
                remark = await self._make_room(successor, serving)
                await any_of(self._taken, successor.ended)
        finally:
            self.successor = None
            if not self._taken.is_set():
                outcome = await successor.discard()
        if not self._taken.is_set():
            return f"the new instance has ended: {outcome}"
        await any_of(successor.ready, successor.ended)
        return remark if successor.ready.is_set() else f"the new instance did not start: {successor.outcome()}"

    async def _make_room(self, successor: Instance, serving: Callable[[], Instance | None]) -> str:
        """Let what serves hand over; return what is to be said of that."""
        remark = ""
        while self.successor is successor and (instance := serving()) is not None:
            await any_of(instance.ready, instance.ended)
            if instance.ended.is_set():  # what follows it is about to begin
                await trio.lowlevel.checkpoint()
                continue
            grace = GIVE_UP_SECONDS + self._system.stop_timeout
            await instance.hand_over(float(self._configuration.options.drain_timeout), grace)
            if not instance.handed_over.is_set():
                remark = "the instance before it ended without handing over, which was as a crash"
        return remark
