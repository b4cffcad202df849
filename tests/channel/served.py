"""Containers that are served over their channel by the test's trio run, and the two consumer APIs with one face."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import trio
import trio.testing

import ldmfs
import ldmfs.aio
from ldmfs import Container, Device, LdmError, Reply, Request, RequestType
from ldmfs.channel import server
from ldmfs.channel.address import listen
from ldmfs.consumer import blocking
from ldmfs.consumer.tree import channel_socket

SECONDS = 50.0
"""After which something is taken to hang."""

MIB = 1 << 20


class Served:
    """A container below a root that has nothing but its channel."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.container = Container(name, root=root)
        self.create = self.container.create_device
        self.socket = channel_socket(root, name)
        self.scope = trio.CancelScope()

    @property
    def consumers(self) -> int:
        return len(self.container.registry.consumers)

    async def serve(self, listener: socket.socket) -> None:
        with self.scope:
            await server.serve(listener, self.container.registry, self.container.dispatch)

    def end(self) -> None:
        """Let the provider go: its connections end."""
        self.scope.cancel()

    async def without_consumers(self) -> None:
        """Wait until every consumer is closed."""
        await until(lambda: not self.consumers, "the close of every consumer")


@contextlib.asynccontextmanager
async def served(root: Path, name: str = "box", **devices: Device) -> AsyncIterator[Served]:
    """Serve a container with some devices; at the end nobody consumes them, and nothing is outstanding."""
    it = Served(root, name)
    for device, instance in devices.items():
        it.create(device, instance)
    it.socket.parent.mkdir(parents=True, exist_ok=True)
    with listen(it.socket) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.serve, listener)
            try:
                with trio.fail_after(SECONDS):
                    yield it
            finally:
                blocking._connections.close()
                it.end()
    assert not it.consumers
    assert not it.container.dispatch.outstanding


async def until(condition: Callable[[], object], what: str = "what was waited for") -> None:
    """Wait for what another thread or process does."""
    with trio.move_on_after(SECONDS):
        while not condition():
            await trio.sleep(0.002)
        return
    raise AssertionError(f"{what} is not there after {SECONDS:g} s")


class Blocking:
    """The API for threads, each call in one."""

    name = "blocking"

    def __init__(self, root: Path) -> None:
        self.root = root

    async def open(self, name: str = "box/d", **more: Any) -> Any:
        return await trio.to_thread.run_sync(
            functools.partial(ldmfs.open_device, name, **{"root": self.root, **more}), abandon_on_cancel=True
        )

    async def send(self, device: Any, request: Any) -> Any:
        return await trio.to_thread.run_sync(ldmfs.send_request, device, request, abandon_on_cancel=True)

    def send_soon(self, device: Any, request: Any, handler: Any, context: Any = None) -> None:
        assert ldmfs.send_request(device, request, handler, context) is None

    async def soon(self, device: Any, request: Any, handler: Any, context: Any = None) -> None:
        self.send_soon(device, request, handler, context)

    async def close(self, device: Any) -> None:
        await trio.to_thread.run_sync(ldmfs.close_device, device)


class Trio:
    """The API for tasks."""

    name = "trio"

    def __init__(self, root: Path) -> None:
        self.root = root

    async def open(self, name: str = "box/d", **more: Any) -> Any:
        return await ldmfs.aio.open_device(name, **{"root": self.root, **more})

    async def send(self, device: Any, request: Any) -> Any:
        return await ldmfs.aio.send_request(device, request)

    async def soon(self, device: Any, request: Any, handler: Any, context: Any = None) -> None:
        assert await ldmfs.aio.send_request(device, request, handler, context) is None

    async def close(self, device: Any) -> None:
        await ldmfs.aio.close_device(device)


Side = Blocking | Trio


@contextlib.asynccontextmanager
async def opened(side: Side, name: str = "box/d", **more: Any) -> AsyncIterator[Any]:
    """Open a device, and close it."""
    device = await side.open(name, **more)
    try:
        yield device
    finally:
        await side.close(device)


class Completions:
    """A completion handler that keeps what it is called with."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, Any]] = []

    def __call__(self, context: Any, outcome: Any) -> None:
        self.seen.append((context, outcome))

    async def wait(self, times: int = 1) -> list[tuple[Any, Any]]:
        """Wait for so many calls, and see that there is none more."""
        await until(lambda: len(self.seen) >= times, f"{times} completions")
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert len(self.seen) == times
        return self.seen

    async def only(self) -> Any:
        """Return the outcome of the one call."""
        return (await self.wait())[0][1]


class Facts(Device):
    """Tells what it was asked, in `asked`; answers with the data and the metadata that came, or `length` bytes."""

    def __init__(self, **attributes: Any) -> None:
        self.asked: list[Request] = []
        self.in_arena: list[bool] = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def request(self, consumer_id: int, request: Request) -> Reply:
        self.asked.append(Request(request.type, b"", request.offset, request.length, request.metadata))
        self.in_arena.append(request.place is not None)
        data = bytes(request.length) if request.type is RequestType.READ else bytes(request.data)
        return Reply(data, request.metadata)


async def error_of(call: Any) -> LdmError:
    """Return the error that a call ends with."""
    try:
        value = await call
    except LdmError as error:
        return error
    raise AssertionError(f"there is no error, but {value!r}")


OBEYS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""What a shell starts in the background is born deaf to Ctrl-C, and so would be what the tests start there."""


async def program(source: str, *arguments: object, **options: Any) -> trio.Process:
    """Start a program in Python with its output to be read."""
    return await trio.lowlevel.open_process(
        [sys.executable, "-c", OBEYS + source, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **options,
    )


async def output(process: trio.Process) -> str:
    """Return what a program writes up to its end, which is a good one."""
    assert process.stdout is not None
    assert process.stdin is not None
    async with process.stdout, process.stdin:
        text = b"".join([part async for part in process.stdout])
    assert await process.wait() == 0
    return text.decode()


async def line_of(process: trio.Process) -> str:
    """Return the next line that a program writes."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        part = await process.stdout.receive_some(1)
        assert part, f"the program ended after {line!r}"
        line += part
    return line.decode().rstrip("\n")


async def kill(process: trio.Process) -> None:
    """Kill a program, and wait for its end."""
    process.kill()
    with trio.CancelScope(shield=True):
        await process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            await stream.aclose()


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))
