"""The supervisor's templates, from which the processes of its containers are forked: see `container.template`.

There is one that forks, and perhaps older ones, which were replaced and live until the last process that they have
begun has ended: what a process ended with is told to its parent only.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

import trio

from ..container.template import BEGUN, ENDED, FORK, REPORT
from .backoff import Backoff
from .configuration import ContainerOptions
from .instance import any_of
from .process import TEMPLATE_MODULE, Process, TemplateDied

log = logging.getLogger("ldmfs.supervisor")

ANSWER_SECONDS = 60.0
"""How long a template may take to begin a process, its own imports included, before it is given up."""


class Ending:
    """How a process has ended, which its parent alone is told."""

    def __init__(self) -> None:
        self.known = trio.Event()
        """Set once that is known, or known to remain unknown."""
        self.status: int | None = None


class Answer:
    """What a template says to the question for a process."""

    def __init__(self) -> None:
        self.there = trio.Event()
        self.process: Process | None = None
        self.error: OSError = TemplateDied("the template of the containers' processes has ended")
        self.awaited = True


class Template:
    """One template, whose `run` has to be started by whoever makes it."""

    def __init__(self, output: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(output, "ab") as stream:
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", TEMPLATE_MODULE, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        self.ended = trio.Event()
        """Set when it begins no more processes: it was retired, or has died."""
        self._process = Process(self._child.pid)
        self._end = trio.socket.from_stdlib_socket(ours)
        self._asked: deque[Answer] = deque()
        self._asking = trio.Lock()
        self._endings: dict[int, Ending] = {}

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    async def run(self) -> None:
        """Listen to the template until it has ended.  Cancelled, it ends at once; its processes do not."""
        try:
            with contextlib.suppress(OSError):
                while await self._hear():
                    pass
        except trio.Cancelled:
            self._process.kill()
            raise
        finally:
            self.ended.set()
            self._end.close()
            for answer in self._asked:
                answer.there.set()
            for ending in self._endings.values():
                ending.known.set()
            with trio.CancelScope(shield=True):
                await self._process.wait()
            self._child.wait()
            self._process.close()

    async def _hear(self) -> bool:
        room = socket.CMSG_SPACE(array.array("i").itemsize)
        packet, ancillary, _, _ = await self._end.recvmsg(REPORT.size, room, socket.MSG_CMSG_CLOEXEC)
        if len(packet) != REPORT.size:
            return False
        what, number, status = REPORT.unpack(packet)
        if what == ENDED:
            ending = self._endings.pop(number)
            ending.status = os.waitstatus_to_exitcode(status)
            ending.known.set()
            return True
        answer = self._asked.popleft()
        if what == BEGUN:
            ((_, _, fd),) = ancillary
            ending = self._endings[number] = Ending()
            answer.process = Process(number, ending, int.from_bytes(fd, sys.byteorder))
            if not answer.awaited:
                answer.process.close()
        else:
            answer.error = OSError(number, os.strerror(number))
        answer.there.set()
        return True

    async def fork(self, link: socket.socket, output: Path) -> Process:
        """Begin a process on its end of a control link, which stays the caller's; `output` takes what it prints.

        Raises `OSError`: `TemplateDied` where another template may do better.  Cancelled, the process is begun all the
        same, and ends when the other end of its link is closed.
        """
        answer = Answer()
        fd = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            rights = socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [link.fileno(), fd])
            async with self._asking:  # answers come in the order of the questions
                self._asked.append(answer)
                try:
                    await self._end.sendmsg([FORK], [rights])
                except BaseException:
                    self._asked.remove(answer)
                    raise
        except (OSError, trio.ClosedResourceError):
            raise answer.error from None
        finally:
            os.close(fd)
        try:
            with trio.move_on_after(ANSWER_SECONDS) as limit:
                await answer.there.wait()
            if limit.cancelled_caught:
                self._process.kill()
                await answer.there.wait()
        except trio.Cancelled:
            answer.awaited = False
            if answer.process is not None:
                answer.process.close()
            raise
        if answer.process is None:
            raise answer.error
        return answer.process

    def retire(self) -> None:
        """Let it end with the last of its processes, and begin no more."""
        self.ended.set()
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_WR)


class Templates:
    """Keeps a template that forks, while `run` is under way."""

    def __init__(self, output: Path, notes: Path) -> None:
        self._output = output
        """What a template prints is added to this file."""
        self._notes = notes
        """In this directory their process numbers are noted, for whoever comes when this process was killed."""
        self._current: Template | None = None
        self._there = trio.Event()
        self._renewed = trio.Event()
        self._backoff = Backoff(ContainerOptions())

    @property
    def pid(self) -> int | None:
        """The process of the template that forks."""
        return self._current.pid if self._current is not None else None

    async def run(self) -> None:
        """Keep a template until cancelled; then no process of theirs is to be left."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    template = self._current = Template(self._output)
                except OSError as error:
                    log.warning("the template of the containers' processes cannot be started: %s", error.strerror)
                else:
                    nursery.start_soon(self._live, template)
                    self._renewed = trio.Event()
                    self._there.set()
                    await any_of(template.ended, self._renewed)
                    if self._renewed.is_set():
                        template.retire()
                        continue
                    self._wait_for_another()
                    log.warning("the template of the containers' processes has ended; another one is started")
                self._backoff.count()
                await self._backoff.pause()

    async def _live(self, template: Template) -> None:
        note = self._notes / str(template.pid)
        note.write_text(f"{template.pid}\n")
        try:
            await template.run()
        finally:
            note.unlink(missing_ok=True)

    def renew(self) -> None:
        """Let what is begun from here on come from a new template, which imports the code as it is now."""
        self._renewed.set()
        self._wait_for_another()

    def _wait_for_another(self) -> None:
        if self._current is not None:
            self._current, self._there = None, trio.Event()

    async def fork(self, link: socket.socket, output: Path) -> Process:
        """Begin a process on its end of a control link, which stays the caller's; `output` takes what it prints.

        Waits while there is no template.  Raises `OSError`: `TemplateDied` where it may be tried again, with a new
        link, since a process may have begun on this one.
        """
        while self._current is None:
            await self._there.wait()
        return await self._current.fork(link, output)
