"""The paths to a device: plain calls, a channel, ioctl, its file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import trio

from ..channel import server
from ..channel.address import listen
from ..consumer import aio
from ..consumer.file import File
from ..consumer.local import Here
from ..consumer.name import DeviceName, parse
from ..consumer.tree import channel_socket
from ..container.host import Container
from ..core.device import Consumer
from ..core.errors import HandleClosed
from ..core.request import Reply, Request
from ..kernel import sysfs
from .subject import Handle, Way


def ways_to_tree(at: DeviceName, paths: tuple[str, ...] | None) -> dict[str, Way]:
    """Return the ways to a device of a mounted tree."""
    in_kernel = at.container == "kernel"

    def consumers() -> int | None:
        try:
            return sysfs.consumers(at.device) if in_kernel else int(os.getxattr(at.file, "user.ldm.consumers"))
        except OSError:
            return None

    def by_channel(name: str) -> Awaitable[Handle]:
        assert at.socket.exists(), f"container {at.container} has no channel"
        return aio.open_device(name, root=at.root)

    def by_ioctl(name: str) -> Awaitable[Handle]:
        assert in_kernel, f"container {at.container} is not the kernel's"
        return aio.open_device(name, root=at.root)

    def by_file(name: str) -> Awaitable[Handle]:
        return _FileHandle.open(parse(name, at.root))

    known = {"channel": by_channel, "ioctl": by_ioctl, "file": by_file}
    default = ("ioctl", "file") if in_kernel else ("channel", "file")
    return {path: Way(str(at), known[path], consumers, at) for path in paths or default}


@contextlib.asynccontextmanager
async def ways_to_container(name: str, container: Container, paths: tuple[str, ...]) -> AsyncIterator[dict[str, Way]]:
    """Give the ways to a device in this process; for that over the channel the container is served meanwhile."""
    here = Here(container.root, container.registry, container.dispatch)

    def consumers() -> int | None:
        return len(container.registry.find(name).consumers)

    def by_call(device: str) -> Awaitable[Handle]:
        return _LocalHandle.open(here, device)

    with tempfile.TemporaryDirectory(prefix="ldmfs-testing-") as directory:
        root = Path(directory)

        def by_channel(device: str) -> Awaitable[Handle]:
            return aio.open_device(f"{container.name}/{device}", root=root)

        known = {"local": by_call, "channel": by_channel}
        socket = channel_socket(root, container.name)
        socket.parent.mkdir(parents=True)
        with listen(socket) as listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.serve, listener, container.registry, container.dispatch)
                yield {path: Way(name, known[path], consumers, None) for path in paths}
                nursery.cancel_scope.cancel()


class _LocalHandle:
    """A device of a container in this process, opened as a consumer in the same container does."""

    def __init__(self, here: Here, consumer: Consumer) -> None:
        device = consumer.device
        self.consumer_id, self.kind, self.size, self.accepts = consumer.id, device.kind, device.size, device.accepts
        self._here = here
        self._consumer: Consumer | None = consumer

    @classmethod
    async def open(cls, here: Here, device: str) -> _LocalHandle:
        return cls(here, await here.open(device, ()))

    async def send(self, request: Request) -> Reply:
        await trio.lowlevel.checkpoint()
        if self._consumer is None:
            raise HandleClosed("the device is closed")
        return await self._here.request(self._consumer, request)

    async def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await self._here.close(consumer)


class _FileHandle:
    """A device through its file."""

    def __init__(self, file: File) -> None:
        self.consumer_id, self.kind, self.size, self.accepts = file.consumer_id, file.kind, file.size, file.accepts
        self._file = file

    @classmethod
    async def open(cls, name: DeviceName) -> _FileHandle:
        return cls(await trio.to_thread.run_sync(File, name))

    async def send(self, request: Request) -> Reply:
        return await trio.to_thread.run_sync(self._file.request, request, abandon_on_cancel=True)

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._file.close)
