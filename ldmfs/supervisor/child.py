"""One container as the supervisor sees it: its mount, its instances one after the other, why the last one ended.

    state        until
    starting     the instance says that it is ready
    running      its process ends, or it is told to stop
    waiting      the pause before the next attempt is over
    failed       `restart NAME`; there is no mount meanwhile, so that nobody waits in vain
    stopped      `start NAME`, `restart NAME`

The mount belongs to the supervisor, so consumers wait, and do not fail, while a new instance starts.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import trio

from ..channel.address import listen
from ..consumer import tree
from ..container import state
from ..container.control import Link, Start
from ..core.state import Sizes
from ..fuse.mount import Connection, MountError
from ..fuse.session import relay_init
from ..fuse.unanswered import NOTHING, take_back
from .configuration import ContainerConfiguration, SystemOptions
from .conversation import Conversation
from .tree import CONTAINER_MODULE, Tree

log = logging.getLogger("ldmfs.supervisor")

FIRST_PAUSE = 0.1
"""Seconds before the second new start after crashes in a row, which double with each further one; the first is at once.
"""

LOG_LINES = 10
"""Lines of a container's output that tell why it ended."""

MAX_LOG = 1 << 20
"""Bytes of a container's log file, beyond which it is begun anew at the next start."""

CONSUMER_IDS = 1 << 32
"""Consumer ids that one instance may use up; each begins where no earlier one can have come to."""


class Child:
    """A container of the configuration."""

    def __init__(self, configuration: ContainerConfiguration, system: SystemOptions, at: Tree) -> None:
        self.configuration = configuration
        self.name = configuration.name
        self.state = "starting"
        self.pid: int | None = None
        self.since = time.time()
        self.restarts = 0
        self.reason = ""
        self.usage = False
        self.settled = trio.Event()
        """Set when the first start has come to an end, good or bad."""
        self._system = system
        self._tree = at
        self._connection: Connection | None = None
        self._listener: socket.socket | None = None
        self._state_fd = -1
        self._unanswered = NOTHING
        self._conversation: Conversation | None = None
        self._instances = itertools.count()
        self._crashes: deque[float] = deque()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    def reopen(self) -> None:
        """Make `run` possible once more, after it has ended."""
        self.settled, self._ended, self._scope = trio.Event(), trio.Event(), trio.CancelScope()
        self._crashes.clear()
        self.reason, self.usage = "", False
        self._set("starting")

    async def run(self) -> None:
        """Mount, and keep an instance running until `stop`, or until the container is failed."""
        try:
            with self._scope:
                try:
                    self._connection = await trio.to_thread.run_sync(
                        Connection.mount, self._tree.mount_point(self.name)
                    )
                    self._listener = listen(tree.channel_socket(self._tree.root, self.name))
                    self._state_fd = state.create(Sizes(capacity=self.configuration.options.state_size))
                    await self._keep_running(self._connection)
                except (MountError, OSError, ValueError) as error:
                    self._fail(str(error))
            if self._scope.cancelled_caught:
                self._set("stopped")
        finally:
            with trio.CancelScope(shield=True):
                await self._take_down()
            self.settled.set()
            self._ended.set()

    async def stop(self) -> None:
        """End the instance in order and take the mount away; return when that is done."""
        self._scope.cancel()
        await self._ended.wait()

    @property
    def active(self) -> bool:
        """Whether `run` is under way."""
        return not self._ended.is_set()

    async def describe(self) -> dict[str, Any] | None:
        """Return `Registry.describe` of the instance, None when it does not answer."""
        return await self._conversation.describe() if self._conversation else None

    def status(self) -> dict[str, Any]:
        """Return what `containers` and the graph tell of the container itself."""
        return {
            "name": self.name,
            "state": self.state,
            "pid": self.pid,
            "since": self.since,
            "restarts": self.restarts,
            "reason": self.reason if self.state != "running" else "",
            "providers": [plug_in.name for plug_in in self.configuration.plug_ins],
        }

    # -- instances

    async def _keep_running(self, connection: Connection) -> None:
        while True:
            await self._run_instance(connection)
            if self.usage or not self.configuration.options.restart or not self.settled.is_set():
                return self._fail(self.reason)
            now = trio.current_time()
            self._crashes.append(now)
            options = self.configuration.options
            while now - self._crashes[0] > options.crash_window:
                self._crashes.popleft()
            if len(self._crashes) >= options.max_crashes:
                return self._fail(f"{len(self._crashes)} crashes in {options.crash_window:g} s; {self.reason}")
            self._set("waiting")
            if len(self._crashes) > 1:
                await trio.sleep(min(FIRST_PAUSE * 2 ** min(len(self._crashes) - 2, 20), options.max_pause))
            self.restarts += 1

    async def _run_instance(self, connection: Connection) -> None:
        """Run one instance to its end, and leave in `reason` why it ended."""
        self._set("starting")
        ours, theirs = socket.socketpair()
        reissue = self._reissues(connection)
        init, instance_init, fuse_fd = connection.instance(reissue=reissue)
        assert self._listener is not None
        with theirs, instance_init:
            fds = theirs.fileno(), instance_init.fileno(), fuse_fd, self._listener.fileno(), self._state_fd
            process, log_begin = self._spawn(*fds)
        self.pid = process.pid
        self._note_pid(process.pid)
        conversation = self._conversation = Conversation(Link(ours), self._now_running)
        first_id = next(self._instances) * CONSUMER_IDS + 1
        start = Start(self.name, str(self._tree.root), self.configuration.plug_ins, first_id, reissue, self._unanswered)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay_init, connection, init)
                nursery.start_soon(conversation.run, start)
                nursery.start_soon(self._limit_start, conversation, process)
                await _exit_of(process)
                await trio.lowlevel.checkpoint()  # what it said last is read first
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._end(process, conversation)
                self._take_back(connection, reissue=reissue)
                os.close(fuse_fd)
                await conversation.aclose()
                self._conversation, self.pid = None, None
                init.close()
        self.usage = conversation.usage
        self.reason = conversation.failure or f"{_exit_reason(process.returncode)}{self._last_lines(log_begin)}"

    def _spawn(self, *fds: int) -> tuple[subprocess.Popen[bytes], int]:
        """Start the process with these descriptors; return it, and where in the log its lines begin."""
        with open(self._log(), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", CONTAINER_MODULE, *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            return process, log.tell()

    def _reissues(self, connection: Connection) -> bool:
        if self.configuration.options.on_crash == "fail":
            return False
        if not connection.can_resend:
            log.warning("container %s: this kernel cannot reissue requests (Linux 6.9 can); they fail", self.name)
        return connection.can_resend

    def _take_back(self, connection: Connection, *, reissue: bool) -> None:
        """Take what the instance has left unanswered: see `fuse.unanswered`.  Without that, the kernel ends it."""
        if connection.answered and connection.can_resend:
            self._unanswered = self._unanswered.and_then(take_back(connection, fail=not reissue))

    def _now_running(self) -> None:
        self._unanswered = NOTHING
        self._set("running")
        self.settled.set()

    async def _limit_start(self, conversation: Conversation, process: subprocess.Popen[bytes]) -> None:
        with trio.move_on_after(self._system.start_timeout):
            await conversation.ready.wait()
            return
        conversation.failure = f"not ready after {self._system.start_timeout:g} s"
        process.kill()

    async def _end(self, process: subprocess.Popen[bytes], conversation: Conversation) -> None:
        """Ask the instance to stop, and kill it at the deadline."""
        if process.poll() is None:
            with trio.move_on_after(self._system.stop_timeout):
                await conversation.stop()
                await _exit_of(process)
                return
            process.kill()
        await _exit_of(process)

    # -- the rest

    async def _take_down(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._state_fd >= 0:
            os.close(self._state_fd)
            self._state_fd = -1
        tree.channel_socket(self._tree.root, self.name).unlink(missing_ok=True)
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await trio.to_thread.run_sync(connection.unmount)
        with contextlib.suppress(OSError):
            (self._tree.root / self.name).rmdir()
        tree.pid_file(self._tree.root, self.name).unlink(missing_ok=True)

    def _note_pid(self, pid: int) -> None:
        new = tree.private(self._tree.root) / "pid"
        new.write_text(f"{pid}\n")
        new.replace(tree.pid_file(self._tree.root, self.name))  # whoever looks finds a number, the old or the new one

    def _set(self, state: str) -> None:
        self.state, self.since = state, time.time()

    def _fail(self, reason: str) -> None:
        self.reason = reason
        self._set("failed")

    def _log(self) -> Path:
        path = tree.log_file(self._tree.root, self.name)
        with contextlib.suppress(OSError):
            if path.stat().st_size > MAX_LOG:
                os.truncate(path, 0)
        return path

    def _last_lines(self, begin: int) -> str:
        try:
            with open(tree.log_file(self._tree.root, self.name), "rb") as file:
                file.seek(begin)
                lines = file.read()[-(1 << 16) :].decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "".join(f"\n    {line}" for line in lines[-LOG_LINES:])


async def _exit_of(process: subprocess.Popen[bytes]) -> None:
    """Wait until a child process has ended."""
    if process.poll() is None:
        fd = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)
        process.wait()


def _exit_reason(status: int | None) -> str:
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
    return f"exited with status {status}"
