"""One container as the supervisor sees it: its endpoint, its instances one after the other, why the last one ended.

    state        until
    starting     the instance says that it is ready
    running      its process ends, or it is told to stop
    waiting      the pause before the next attempt is over
    failed       `restart NAME`; there is no mount meanwhile, so that nobody waits in vain
    stopped      `start NAME`, `restart NAME`

The mount belongs to the supervisor, so consumers wait, and do not fail, while a new instance starts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ..consumer import tree
from ..container.control import Start
from ..core.errors import DeviceBusy, LdmError
from ..fuse.mount import MountError
from ..fuse.unanswered import Unanswered
from .backoff import Backoff
from .configuration import ContainerConfiguration, SystemOptions, is_changed
from .endpoint import Endpoint
from .instance import Instance, any_of
from .log import Log
from .orphan import Adopted
from .standby import Standby
from .templates import Templates
from .tree import Tree
from .upgrade import Upgrade

log = logging.getLogger("ldmfs.supervisor")

CONSUMER_IDS = 1 << 32
"""Consumer ids that one instance may use up; each begins where no earlier one can have come to."""


class Child:
    """A container of the configuration."""

    def __init__(
        self, configuration: ContainerConfiguration, system: SystemOptions, at: Tree, templates: Templates
    ) -> None:
        self.configuration = configuration
        self.name = configuration.name
        self.state = "starting"
        self.pid: int | None = None
        self.since = time.time()
        self.restarts = 0
        self.reason = ""
        self.configured = True
        """Whether the configuration has it."""
        self.usage = False
        self.settled = trio.Event()
        """Set when the first start has come to an end, good or bad."""
        self._system = system
        self._tree = at
        self._templates = templates
        self._log = Log(at.root, configuration.name)
        self._endpoint: Endpoint | None = None
        self._standby: Standby | None = None
        self._instance: Instance | None = None
        self._last: Start | None = None
        """What the instance was started with, or the one before it."""
        self._has_run = False
        self._handed_over = False
        self._is_new = False
        """The instance is that of an upgrade."""
        self._changed = False
        """The instance was started with another configuration."""
        self._upgrade: Upgrade | None = None
        self._nursery: trio.Nursery | None = None
        self._unanswered: tuple[Unanswered, ...] = ()
        """Of instances before the one that was ready last, and of that one."""
        self._backoff = Backoff(configuration.options)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    def reopen(self) -> None:
        """Make `run` possible once more, after it has ended."""
        self.settled, self._ended, self._scope = trio.Event(), trio.Event(), trio.CancelScope()
        self._backoff = Backoff(self.configuration.options)
        self._last, self._has_run, self._unanswered = None, False, ()
        self.reason, self.usage, self._upgrade = "", False, None
        self._set("starting")

    def postpone(self, reason: str) -> None:
        """Let this container not be started, until `reopen`."""
        self._fail(reason)
        self.settled.set()
        self._ended.set()

    def compare(self, start: Start) -> None:
        """Note whether an instance that was started with `start` is what the configuration asks for."""
        self._changed = is_changed(self.configuration, start)
        if self._changed:
            log.warning("container %s goes on as it is: %s", self.name, self._remark())

    async def run(self, adopted: Adopted | None = None) -> None:
        """Mount, and keep an instance running until `stop`, or until the container is failed.

        With `adopted` there is an instance and a mount already.
        """
        try:
            with self._scope:
                try:
                    self._endpoint = await self._open(adopted)
                except (MountError, OSError, ValueError) as error:
                    self._fail(str(error))
                else:
                    async with trio.open_nursery() as nursery:
                        self._nursery = nursery
                        await self._keep_running(self._endpoint, nursery, adopted)
                        nursery.cancel_scope.cancel()
            if self._scope.cancelled_caught:
                self.reason = ""  # it ended since it was told to
                self._set("stopped")
        finally:
            if self._endpoint is not None:
                endpoint, self._endpoint = self._endpoint, None
                await endpoint.close()
            self.settled.set()
            self._ended.set()

    async def stop(self) -> None:
        """End the instance in order and take the mount away; return when that is done."""
        self._scope.cancel()
        await self._ended.wait()

    async def upgrade(self) -> None:
        """Let an instance with the code as it is now take the place of the one that serves; return when it has.

        Raises `LdmError` when it has not, or not without errors for consumers.  Cancelled, the upgrade goes on.
        """
        if self.state != "running" or self._nursery is None:
            raise LdmError(f"container {self.name!r} is {self.state}, and cannot be upgraded")
        if self._upgrade is not None and self._upgrade.active:
            raise DeviceBusy(f"container {self.name!r} is being upgraded already")
        self._upgrade = Upgrade(self.configuration, self._system, self._tree, self._templates)
        self._nursery.start_soon(self._upgrade.run, self._nursery, lambda: self._instance)
        await self._upgrade.done.wait()
        if self._upgrade.error:
            raise LdmError(f"container {self.name!r}: {self._upgrade.error}")

    @property
    def active(self) -> bool:
        """Whether `run` is under way."""
        return not self._ended.is_set()

    async def describe(self) -> dict[str, Any] | None:
        """Return `Registry.describe` of the instance, None when it does not answer."""
        return await self._instance.describe() if self._instance else None

    def status(self) -> dict[str, Any]:
        """Return what `containers` and the graph tell of the container itself."""
        return {
            "name": self.name,
            "state": self.state,
            "pid": self.pid,
            "standby": self._standby.pid if self._standby else None,
            "since": self.since,
            "restarts": self.restarts,
            "reason": self.reason if self.state != "running" else self._remark(),
            "on_crash": self.configuration.options.on_crash,
            "providers": [plug_in.name for plug_in in self.configuration.plug_ins],
        }

    def _remark(self) -> str:
        """Return what is to be said of the container while it runs."""
        takes_effect = f"'ldmfs upgrade {self.name}' or 'ldmfs restart {self.name}' lets it take effect"
        remarks = (
            "" if self.configured else "not in the configuration",
            f"its configuration has changed; {takes_effect}" if self._changed else "",
            f"standby: {self._standby.reason}" if self._standby and self._standby.reason else "",
            f"upgrade: {self._upgrade.error}" if self._upgrade and self._upgrade.error else "",
        )
        return "; ".join(filter(None, remarks))

    # -- instances

    async def _open(self, adopted: Adopted | None) -> Endpoint:
        if adopted is None:
            return await Endpoint.open(self._tree, self.name, self.configuration.options.state_size)
        self._last = adopted.kept.start
        self.restarts = self._last.restarts
        self._unanswered = () if adopted.kept.ready else self._last.unanswered
        self._has_run = adopted.kept.ready or self._last.first_consumer_id > CONSUMER_IDS
        return Endpoint.adopted(self._tree, self._last, adopted.fds)

    async def _keep_running(self, endpoint: Endpoint, nursery: trio.Nursery, adopted: Adopted | None) -> None:
        if self.configuration.options.standby:
            self._standby = Standby(
                self.configuration, self._system.start_timeout, self._tree, self._templates, nursery
            )
            nursery.start_soon(self._standby.run)
        try:
            if adopted is not None:
                instance = Instance.adopted(adopted)
                nursery.start_soon(instance.run)
                await self._attend(instance, endpoint)
            else:
                await self._run_instance(endpoint, nursery)
            while (upgraded := self._is_upgraded()) or not self._is_to_fail():
                if not upgraded:
                    self._set("waiting")
                    await self._backoff.pause()
                    self.restarts += 1
                await self._run_instance(endpoint, nursery)
        finally:
            self._standby = self._nursery = None

    def _is_upgraded(self) -> bool:
        """Tell whether the instance has ended to make room for the next one, or that is there anyhow."""
        return self._handed_over or (self._upgrade is not None and self._upgrade.successor is not None)

    def _is_to_fail(self) -> bool:
        """Note that the instance has ended, and tell whether the container is failed with it."""
        options = self.configuration.options
        if self._is_new and self._standby is not None:
            self.usage = False  # the standby is of the code before the upgrade
        if self.usage or not options.restart or not self._has_run:
            self._fail(self.reason)
        elif (crashes := self._backoff.count()) >= options.max_crashes:
            self._fail(f"{crashes} crashes in {options.crash_window:g} s; {self.reason}")
        return self.state == "failed"

    async def _run_instance(self, endpoint: Endpoint, nursery: trio.Nursery) -> None:
        """Run one instance, the standby if there is one, to its end; leave in `reason` why it ended."""
        self._set("starting")
        try:
            instance = self._upgrade.take() if self._upgrade else None
            self._is_new = instance is not None
            if instance is None and self._standby is not None:
                instance = self._standby.take()
            if instance is None:
                instance = await Instance.spawn(self._templates, self._log.path)
                nursery.start_soon(instance.run)
        except OSError as error:
            self.reason, self.usage = f"no process can be started: {error.strerror}", False
            return
        await self._attend(instance, endpoint, self._start)

    async def _attend(
        self,
        instance: Instance,
        endpoint: Endpoint,
        start: Callable[[Instance, Endpoint], Awaitable[None]] | None = None,
    ) -> None:
        """See an instance to its end; without `start` it was started before."""
        self._instance, self.pid = instance, instance.pid
        try:
            if start is not None:
                await start(instance, endpoint)
            with trio.move_on_after(self._system.start_timeout) as limit:
                await any_of(instance.ready, instance.ended)
            if limit.cancelled_caught:
                instance.failure = f"not ready after {self._system.start_timeout:g} s"
                instance.process.kill()
            elif instance.ready.is_set():
                self._now_running(instance.since)
            await instance.ended.wait()
        except OSError as error:
            instance.failure = f"cannot be started: {error.strerror}"
        finally:
            with trio.CancelScope(shield=True):
                await instance.end(self._system.stop_timeout)
            if self._has_run and self._last is not None:
                self._unanswered = (*self._unanswered, endpoint.take_back(fail=not self._last.reissue))
            endpoint.let_go()
            self._instance, self.pid = None, None
            self.usage, self._handed_over = instance.usage, instance.handed_over.is_set()
            lines = "" if instance.failure or self._last is None else self._log.last_lines(self._last.log_begin)
            self.reason = f"{instance.outcome()}{lines}"
            instance.close()

    async def _start(self, instance: Instance, endpoint: Endpoint) -> None:
        """Make a process the instance that serves: consumers wait for it."""
        reissue, last = self._reissues(endpoint), self._last
        start = self._last = Start(
            self.name,
            str(self._tree.root),
            self.configuration.plug_ins,
            init=endpoint.connection.init,
            first_consumer_id=1 if last is None else last.first_consumer_id + CONSUMER_IDS,
            reissue=reissue,
            unanswered=self._unanswered,
            restarts=self.restarts,
            options=self.configuration.plain_options(),
            log_begin=self._log.begin(),
        )
        self._tree.note(tree.pid_file(self._tree.root, self.name), instance.pid)
        instance.forget_note()
        self._changed = False
        with endpoint.given(reissue=reissue) as fds:
            await instance.tell(start, fds)

    def _reissues(self, endpoint: Endpoint) -> bool:
        if self.configuration.options.on_crash == "fail":
            return False
        if not endpoint.connection.can_resend:
            log.warning("container %s: this kernel cannot reissue requests (Linux 6.9 can); they fail", self.name)
        return endpoint.connection.can_resend

    def _now_running(self, since: float) -> None:
        self._has_run = True
        self._unanswered = ()
        self.state, self.since = "running", since
        self.settled.set()
        if self._standby is not None:
            if self._is_new:
                self._standby.renew()
            self._standby.want()

    def _set(self, state: str) -> None:
        self.state, self.since = state, time.time()

    def _fail(self, reason: str) -> None:
        self.reason = reason
        self._set("failed")
