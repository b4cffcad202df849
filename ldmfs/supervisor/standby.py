"""A container's standby: a process with the plug-ins imported, which waits to be the next instance.

It has no device and serves nothing, and what becomes of it is never a crash of the container: it is replaced, with the
pauses of a container that crashes.  Its supervisor's end is its own.
"""

from __future__ import annotations

import logging

import trio

from ..consumer import tree
from ..container.control import Prepare
from .backoff import Backoff
from .configuration import ContainerConfiguration
from .instance import Instance, any_of
from .log import Log
from .templates import Templates
from .tree import Tree

log = logging.getLogger("ldmfs.supervisor")


class Standby:
    """Keeps a standby for one container, while `run` is under way and one is wanted."""

    def __init__(
        self,
        configuration: ContainerConfiguration,
        timeout: float,
        at: Tree,
        templates: Templates,
        nursery: trio.Nursery,
    ) -> None:
        self.reason = ""
        """Why the last one did not get as far as waiting."""
        self._name = configuration.name
        self._prepare = Prepare(configuration.name, configuration.plug_ins)
        self._timeout = timeout
        self._tree = at
        self._templates = templates
        self._nursery = nursery
        self._backoff = Backoff(configuration.options)
        self._instance: Instance | None = None
        self._wanted = trio.Event()
        self._taken = trio.Event()
        self._renewed = trio.Event()

    @property
    def pid(self) -> int | None:
        """The standby's process, once its plug-ins are imported."""
        return self._instance.pid if self._instance is not None and self._instance.prepared.is_set() else None

    def want(self) -> None:
        """Let there be a standby: the container runs."""
        self._wanted.set()

    def take(self) -> Instance | None:
        """Return the standby, which is the caller's from here on, and may be importing still; None where there is none.

        Another one is started when it is wanted again.
        """
        if self._wanted.is_set():  # else `run` may be waiting for this very event
            self._wanted = trio.Event()
        instance = self._instance
        if instance is None or instance.process.ends():
            return None
        self._instance = None
        self._taken.set()
        return instance

    def renew(self) -> None:
        """Replace the standby by one with the code as it is now."""
        self._renewed.set()

    async def run(self) -> None:
        """Keep a standby until cancelled."""
        while True:
            await self._wanted.wait()
            if not await self._keep_one():
                self._backoff.count()
                await self._backoff.pause()

    async def _keep_one(self) -> bool:
        """Start a standby and wait until it is taken, or to be renewed; tell whether it was."""
        try:
            instance = self._instance = await Instance.spawn(self._templates, Log(self._tree.root, self._name).path)
        except OSError as error:
            self._failed(f"cannot be started: {error.strerror}")
            return False
        taken, renewed = self._taken, self._renewed = trio.Event(), trio.Event()
        self._nursery.start_soon(instance.run)
        outcome = ""
        try:
            instance.note = self._tree.note(tree.standby_file(self._tree.root, self._name), instance.pid)
            await instance.prepare(self._prepare, self._timeout, taken, renewed)
            if instance.prepared.is_set():
                self.reason = ""
            await any_of(instance.ended, taken, renewed)
        finally:
            if self._instance is instance:
                self._instance = None
                outcome = await instance.discard()
        if taken.is_set() or renewed.is_set():
            return True
        self._failed(outcome)
        return False

    def _failed(self, reason: str) -> None:
        if reason != self.reason:
            log.warning("container %s: its standby: %s", self._name, reason)
        self.reason = reason
