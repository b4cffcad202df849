"""One instance of a container: a process and what is said to it, from its start or its adoption to its end."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from ..container.control import (
    Describe,
    Description,
    Failed,
    HandedOver,
    HandOver,
    Message,
    Prepare,
    Prepared,
    Ready,
    Stop,
)
from ..container.link import Link
from .orphan import Adopted
from .process import Process, TemplateDied

if TYPE_CHECKING:
    from .templates import Templates

DESCRIBE_SECONDS = 2.0
"""How long a container may take to describe itself for the graph."""

GONE = trio.BrokenResourceError, trio.ClosedResourceError
"""The process has died: that may be known here, or not yet."""


class Instance:
    """An instance, whose `run` has to be started by whoever makes it.

    event       is set
    prepared    when a standby has imported its plug-ins
    ready       when the instance serves
    handed_over when it has left to the next one what its open files hold
    ended       when the process has, and what it said last was read
    """

    def __init__(self, process: Process, link: Link, *, by_hand: bool = False) -> None:
        self.process = process
        self.by_hand = by_hand
        self.pid = process.pid
        self.prepared = trio.Event()
        self.ready = trio.Event()
        self.handed_over = trio.Event()
        self.ended = trio.Event()
        self.since = 0.0
        """When it was ready."""
        self.failure = ""
        """What it said, or what is to be said of it, about why it did not start."""
        self.usage = False
        self.note: Path | None = None
        """The file that has its number, while it waits."""
        self._link = link
        self._numbers = itertools.count(1)
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}

    @classmethod
    async def spawn(cls, templates: Templates, log: Path) -> Instance:
        """Start a process, which waits to be told what it is to be; `log` takes its output.  Raises `OSError`."""
        while True:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    return cls(await templates.fork(theirs, log), Link(ours))
                except TemplateDied:  # it may have begun a process, which will find its link closed
                    ours.close()
                except BaseException:
                    ours.close()
                    raise

    @classmethod
    def adopted(cls, adopted: Adopted) -> Instance:
        """Return an instance that another supervisor has started."""
        instance = cls(Process(adopted.kept.pid), adopted.link, by_hand=adopted.kept.start.by_hand)
        if adopted.kept.ready:
            instance.since = adopted.kept.since
            instance.ready.set()
        return instance

    async def run(self) -> None:
        """Listen to the process until it has ended; one that is run by hand has when it hangs up.

        This is not cancelled: `end` is what ends it.
        """
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    async for message in self._link:
                        self._take(message)
                    if self.by_hand:
                        nursery.cancel_scope.cancel()

                nursery.start_soon(listen)
                await self.process.wait()
                nursery.cancel_scope.cancel()
            for message in self._link.rest():
                self._take(message)
            for answer in self._answers.values():
                answer.close()
            await self._link.aclose()
            self.ended.set()

    def _take(self, message: Message) -> None:
        if isinstance(message, Prepared):
            self.prepared.set()
        elif isinstance(message, Ready):
            self.since = message.since
            self.ready.set()
        elif isinstance(message, HandedOver):
            self.handed_over.set()
        elif isinstance(message, Failed):
            self.failure, self.usage = message.reason, message.usage
        elif isinstance(message, Description) and message.number in self._answers:
            self._answers[message.number].send_nowait(message.data)

    async def prepare(self, prepare: Prepare, timeout: float, *events: trio.Event) -> None:
        """Make it a standby; return when it is prepared or has ended, or at an event.

        It is killed when it is not prepared after `timeout` seconds.
        """
        await self.tell(prepare)
        with trio.move_on_after(timeout) as limit:
            await any_of(self.prepared, self.ended, *events)
        if limit.cancelled_caught:
            self.failure = f"not ready after {timeout:g} s"
            self.process.kill()
            await any_of(self.ended, *events)

    async def hand_over(self, seconds: float, grace: float) -> None:
        """Let it hand over, its requests ending within `seconds`, and kill it when it has not ended `grace` later."""
        with trio.move_on_after(seconds + grace):
            await self.tell(HandOver(seconds))
            await self.ended.wait()
            return
        self.process.kill()
        await self.ended.wait()

    async def discard(self) -> str:
        """End it at once, which has not begun to serve; return why it has ended.  This is not cancelled."""
        self.process.kill()
        with trio.CancelScope(shield=True):
            await self.ended.wait()
        self.forget_note()
        outcome = self.outcome()
        self.close()
        return outcome

    def forget_note(self) -> None:
        """Take away the file that has its number: it waits no more."""
        if self.note is not None:
            self.note.unlink(missing_ok=True)
            self.note = None

    async def tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Say something to the process, which may be gone already."""
        with contextlib.suppress(*GONE):
            await self._link.send(message, fds)

    async def describe(self) -> dict[str, Any] | None:
        """Return `Registry.describe` of the instance, None when it does not answer in `DESCRIBE_SECONDS`."""
        if not self.ready.is_set():
            return None
        number = next(self._numbers)
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._answers[number] = send
        try:
            with trio.move_on_after(DESCRIBE_SECONDS), contextlib.suppress(*GONE, trio.EndOfChannel):
                await self._link.send(Describe(number))
                return await receive.receive()
        finally:
            del self._answers[number]
        return None

    async def end(self, timeout: float) -> None:
        """Ask the process to stop, kill it when it has not after `timeout` seconds, and return when it has ended."""
        if not self.ended.is_set():
            with trio.move_on_after(timeout):
                await self.tell(Stop())
                await self.ended.wait()
                return
            self.process.kill()
            if self.by_hand:  # its process may be out of reach
                await self._link.aclose()
            await self.ended.wait()

    def outcome(self) -> str:
        """Return why it has ended: what it said, else how the process did."""
        return self.failure or self.process.outcome()

    def close(self) -> None:
        """Let go of the process, which has ended."""
        self.process.close()


async def any_of(*events: trio.Event) -> None:
    """Wait until one of some events is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
