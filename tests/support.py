"""What the tests of several levels share: devices to try, and the surroundings of an open file without a mount."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from unittest import mock

import trio
import trio.testing

from ldmfs.container.host import Container, TrioRuntime
from ldmfs.container.state import SharedState
from ldmfs.core.device import Consumer, Device, Peer
from ldmfs.core.dispatch import Dispatch, cancelled_error
from ldmfs.core.errors import LdmError
from ldmfs.core.kept import KeptReplies
from ldmfs.core.registry import Registry
from ldmfs.core.request import Reply, Request, RequestType
from ldmfs.core.store import Store
from ldmfs.fuse.block_file import BlockFile
from ldmfs.fuse.files import File, open_file
from ldmfs.fuse.message_file import MessageFile
from ldmfs.fuse.waiting import Watch

SESSION = 77
"""The login session of `PEER`."""

PEER = Peer(pid=os.getpid(), uid=1000, gid=1000, session=SESSION)

Answer = Callable[[Request], Any]


def shout(request: Request) -> Any:
    """Answer a CALL with its data in upper case and anything else with the name of its type."""
    return bytes(request.data).upper() if request.type is RequestType.CALL else request.type.name.encode()


class Plain(Device):
    """A device whose handlers are plain functions and keep a list of their calls."""

    def __init__(self, answer: Answer = shout, **attributes: Any) -> None:
        self.answer = answer
        self.calls: list[Any] = []
        for name, value in attributes.items():
            assert hasattr(Device, name), name
            setattr(self, name, value)

    def open(self, consumer_id: int) -> None:
        self.calls.append(("open", consumer_id))

    def close(self, consumer_id: int) -> None:
        self.calls.append(("close", consumer_id))

    def request(self, consumer_id: int, request: Request) -> Any:
        self.calls.append(("request", consumer_id))
        return self.answer(request)


class Gated(Device):
    """A device whose `async` handler answers when `gate` is set, and notes when it is cancelled."""

    def __init__(self, answer: Answer = shout, **attributes: Any) -> None:
        self.answer = answer
        self.gate = trio.Event()
        self.started = 0
        self.busy: list[int] = []
        self.cancelled = 0
        self.closed: list[int] = []
        for name, value in attributes.items():
            assert hasattr(Device, name), name
            setattr(self, name, value)

    def close(self, consumer_id: int) -> None:
        assert consumer_id not in self.busy, "the close handler runs after the last request handler"
        self.closed.append(consumer_id)

    @property
    def running(self) -> int:
        return len(self.busy)

    async def request(self, consumer_id: int, request: Request) -> Any:
        self.started += 1
        self.busy.append(consumer_id)
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.busy.remove(consumer_id)
        return self.answer(request)


def fail_with(error: BaseException) -> Answer:
    """Return what raises `error` for every request."""

    def answer(_request: Request) -> Any:
        raise error

    return answer


def call(data: bytes = b"hello") -> Request:
    """Return a CALL."""
    return Request(RequestType.CALL, data)


def dispatch_for(device: Device, name: str = "d") -> Dispatch:
    """Return the dispatch of a registry with one device."""
    registry = Registry("test", owner=(0, 0))
    registry.create_device(name, device)
    return Dispatch(registry, TrioRuntime())


async def send(dispatch: Dispatch, consumer: Consumer, request: Request) -> Reply:
    """Send a request as an edge does: admitted with what cancels it."""
    scope = trio.CancelScope()
    number = dispatch.admit(consumer, scope.cancel)
    with scope:
        return await dispatch.request(consumer, request, number)
    raise cancelled_error(consumer)


class Around:
    """The surroundings of open files, and what the kernel does with these, without a mount."""

    def __init__(self, nursery: trio.Nursery, shared: SharedState | None = None) -> None:
        self.nursery = nursery
        self.container = Container("test", shared=shared)
        self.registry = self.container.registry
        self.dispatch = self.container.dispatch
        self.kept = KeptReplies(trio.current_time)
        self.watch = Watch(nursery)
        self.files: Store | None = self.container.area.files
        self.reissue = False
        self.ending: LdmError | None = None

    async def open(self, device: Device, flags: int = os.O_RDWR, peer: Peer = PEER, name: str = "d") -> File:
        """Open `device`, creating it at its first open."""
        if name not in self.registry.devices:
            self.registry.create_device(name, device)
        consumer = await self.dispatch.open(self.registry.find(name), peer)
        return open_file(self, consumer, flags)

    async def message(self, device: Device, flags: int = os.O_RDWR, peer: Peer = PEER, name: str = "d") -> MessageFile:
        """Open a message device."""
        file = await self.open(device, flags, peer, name)
        assert isinstance(file, MessageFile)
        return file

    async def block(self, device: Device) -> BlockFile:
        """Open a block device."""
        file = await self.open(device)
        assert isinstance(file, BlockFile)
        return file

    async def close(self, file: File) -> None:
        """Do what the kernel does at the `close` of the last descriptor."""
        try:
            await file.flush()
        finally:
            await file.release()


@contextlib.asynccontextmanager
async def unmounted() -> AsyncIterator[Around]:
    """Give the surroundings of open files; what still runs at the end is cancelled."""
    async with trio.open_nursery() as nursery:
        yield Around(nursery)
        nursery.cancel_scope.cancel()


async def read(file: MessageFile, size: int = 4096) -> bytes:
    """Read once, as `Operations.read` does: at once, or else waiting."""
    data = file.read_now(size)
    return bytes(await file.read(0, size) if data is None else data)


def on_virtual_clock(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an `async` test under a clock that jumps to the next deadline when every task waits.

    A call for a worker thread is made in place: the clock would go on while the thread runs.
    """

    async def in_place(function: Callable[..., Any], *args: Any, **_options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        with mock.patch.object(trio.to_thread, "run_sync", in_place):
            trio.run(functools.partial(test, **fixtures), clock=trio.testing.MockClock(autojump_threshold=0))

    return run
