"""The consumer API for trio: `open_device`, `send_request`, `close_device`, as in `blocking`.

    async with await ldmfs.aio.open_device("text/upper") as device:
        reply = await ldmfs.aio.send_request(device, b"hello")

Safe on a container's loop, where a blocking call could wait for itself.  Cancelling a request cancels its handler.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, overload

import trio

from ..channel.arenas import CHAIN_BLOCKS
from ..channel.completion_handlers import run_handler
from ..channel.trio_client import TrioClient, connect
from ..core.device import Consumer
from ..core.errors import NotServed, RequestCancelled
from ..core.request import Reply, Request
from ..kernel.device import Call, KernelDevice
from .blocking import CompletionHandler, Data
from .device import About, OpenDeviceBase, OverChannel
from .file import File, open_file
from .local import Here
from .name import (
    DeviceName,
    Marshal,
    Outcome,
    Unmarshal,
    as_error,
    as_request,
    missing,
    parse,
)
from .retry import RETRY_SECONDS
from .retry_trio import Retrying


class Way(About, Protocol):
    """An open device, by whatever path."""

    async def request(self, request: Request) -> Reply: ...
    async def close(self) -> None: ...


class OpenDevice(OpenDeviceBase[Way]):
    """A device that was opened; an asynchronous context manager that closes it."""

    async def send(self, request: Request) -> Reply:
        """Send a request and wait for its reply."""
        way = self._checked()
        if isinstance(way, _Local):
            return await way.request(request)
        return self._incoming(request, await way.request(self._outgoing(request)))

    @property
    def lost(self) -> bool:
        """Whether the provider's process ended, so that the device has to be opened anew."""
        return self._way is not None and isinstance(self._way, _Channel) and self._way.lost

    def send_soon(self, request: Request, done: Callable[[Outcome], None]) -> None:
        """Send a request; `done` is called once, by another task, with the reply or the error."""
        way = self._checked()
        if isinstance(way, (_Channel, Retrying)):
            way.request_soon(self._outgoing(request), self._to(request, done))
        else:
            trio.lowlevel.spawn_system_task(self._run, request, done)

    async def close(self) -> None:
        """Close the device; done once, later calls return.  Not to be cancelled."""
        way, self._way = self._way, None
        if way is not None:
            await way.close()

    async def __aenter__(self) -> OpenDevice:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, request: Request, done: Callable[[Outcome], None]) -> None:
        outcome: Outcome = RequestCancelled("the trio run ended")
        try:
            outcome = await self.send(request)
        except Exception as error:
            outcome = as_error(error)
        finally:
            done(outcome)


class _Channel(OverChannel):
    _client: TrioClient

    def __init__(self, client: TrioClient, name: DeviceName, blocks: int) -> None:
        self._client, self._device, self._blocks = client, name.device, blocks

    async def open(self, chain: tuple[str, ...]) -> _Channel:
        self._opened = await self._client.open(self._device, chain)
        self._id = self._opened.consumer_id
        return self

    async def request(self, request: Request) -> Reply:
        return await self._client.request(self._id, self._device, request, self._blocks)

    def request_soon(self, request: Request, handler: CompletionHandler) -> None:
        self._client.request_soon(self._id, self._device, request, self._blocks, handler, None)

    async def close(self) -> None:
        await self._client.close(self._id)


class _Local:
    def __init__(self, here: Here, consumer: Consumer) -> None:
        self._here, self._consumer = here, consumer
        logical = consumer.device
        self.consumer_id, self.kind, self.size = consumer.id, logical.kind, logical.size
        self.accepts = logical.accepts

    async def request(self, request: Request) -> Reply:
        return await self._here.request(self._consumer, request)

    async def close(self) -> None:
        await self._here.close(self._consumer)


class _File:
    """A file, whose calls block: each runs in a worker thread."""

    def __init__(self, file: File | KernelDevice) -> None:
        self._file = file
        self.consumer_id, self.kind, self.size, self.accepts = file.consumer_id, file.kind, file.size, file.accepts

    async def request(self, request: Request) -> Reply:
        if isinstance(self._file, KernelDevice):
            return await self._call(self._file, request)
        return await trio.to_thread.run_sync(self._file.request, request, abandon_on_cancel=True)

    async def _call(self, device: KernelDevice, request: Request) -> Reply:
        """Send a request to the kernel; a task that is cancelled does not wait for its thread, which ends soon."""
        call = Call()
        try:
            return await trio.to_thread.run_sync(device.request, request, call, abandon_on_cancel=True)
        except trio.Cancelled:
            device.cancel_soon(call)
            raise

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._file.close)


class _Connections:
    """The connections of one trio run, one for each container; they end with the run."""

    _of_run: trio.lowlevel.RunVar[_Connections] = trio.lowlevel.RunVar("ldmfs-connections")

    def __init__(self) -> None:
        self._clients: dict[tuple[Path, str], TrioClient] = {}
        self._connecting: dict[tuple[Path, str], trio.Lock] = {}
        """Held while a container is being connected to and greeted, which takes as long as it likes."""
        trio.lowlevel.spawn_system_task(self._close_at_end)

    @classmethod
    def of_run(cls) -> _Connections:
        """Return those of the current run."""
        try:
            return cls._of_run.get()
        except LookupError:
            connections = cls()
            cls._of_run.set(connections)
            return connections

    async def to(self, name: DeviceName, deadline: float) -> TrioClient:
        """Return a connection, which is waited for until `deadline`.

        Raises `FileNotFoundError` where the container has no channel, `NotServed`.
        """
        with trio.move_on_at(deadline):
            return await self._to(name)
        raise NotServed(f"container {name.container!r} has not answered in time")

    async def _to(self, name: DeviceName) -> TrioClient:
        key = name.root, name.container
        async with self._connecting.setdefault(key, trio.Lock()):
            client = self._clients.get(key)
            if client is None or not client.alive():
                here = Here.current
                own = here.registry.container if here is not None and here.root == name.root else ""
                client = TrioClient(await connect(name.socket), own, path=name.socket)
                try:
                    await client.greet()
                except BaseException:
                    client.aclose()
                    raise
                self._clients[key] = client
            return client

    async def _close_at_end(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            for client in self._clients.values():
                client.aclose()


async def open_device(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    blocks: int = CHAIN_BLOCKS,
    marshal: Marshal | None = None,
    unmarshal: Unmarshal | None = None,
    chain: tuple[str, ...] = (),
    retry: bool = False,
    retry_seconds: float = RETRY_SECONDS,
) -> OpenDevice:
    """Open the device `container/device`, as `ldmfs.open_device`.  Cancelled, it is as if never opened."""
    at = parse(name, root)
    here = Here.current
    if not retry or (here is not None and (here.root, here.registry.container) == (at.root, at.container)):
        return OpenDevice(at, await _way(at, chain, blocks), marshal, unmarshal)
    way = Retrying(lambda deadline: _way(at, chain, blocks, deadline), retry_seconds)
    return OpenDevice(at, await way.open(), marshal, unmarshal)


async def _way(name: DeviceName, chain: tuple[str, ...], blocks: int, deadline: float = math.inf) -> Way:
    here = Here.current
    if here is not None and here.root == name.root and here.registry.container == name.container:
        return _Local(here, await here.open(name.device, chain))
    if name.container != "kernel":
        try:
            return await _Channel(await _Connections.of_run().to(name, deadline), name, blocks).open(chain)
        except (FileNotFoundError, NotADirectoryError):
            if not await trio.to_thread.run_sync(name.file.parent.is_dir):
                raise missing(name) from None
        except OSError as error:
            raise NotServed(f"{name}: {error.strerror}") from None
    return _File(await trio.to_thread.run_sync(open_file, name))


async def close_device(device: OpenDevice) -> None:
    """Close a device; returns when its close handler has run.  Not to be cancelled."""
    await device.close()


@overload
async def send_request(device: OpenDevice, request: Request) -> Reply: ...
@overload
async def send_request(device: OpenDevice, request: Data) -> bytes: ...
@overload
async def send_request(
    device: OpenDevice,
    request: Request | Data,
    completion_handler: CompletionHandler,
    completion_context: Any = None,
) -> None: ...


async def send_request(
    device: OpenDevice,
    request: Request | Data,
    completion_handler: CompletionHandler | None = None,
    completion_context: Any = None,
) -> Reply | bytes | None:
    """Send a request, as `ldmfs.send_request`; a completion handler is run by a task of the same trio run."""
    whole = as_request(request)
    plain = not isinstance(request, Request)
    if completion_handler is None:
        reply = await device.send(whole)
        return bytes(reply.data) if plain else reply
    handler = completion_handler

    def done(outcome: Outcome) -> None:
        value = bytes(outcome.data) if plain and isinstance(outcome, Reply) else outcome
        run_handler(handler, completion_context, value)

    device.send_soon(whole, done)
    return None
