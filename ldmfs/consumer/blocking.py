"""The consumer API for scripts and threads: `open_device`, `send_request`, `close_device`.

The path is chosen by where the two parties are: a plain call within the container, the direct channel to another one,
the file for the kernel's and where there is no channel.
"""

from __future__ import annotations

import atexit
import functools
import os
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, overload

from ..channel.address import connect
from ..channel.arenas import CHAIN_BLOCKS
from ..channel.blocking import BlockingClient
from ..channel.completion_handlers import run_handler
from ..core.device import Consumer
from ..core.errors import NotServed, NotSupported
from ..core.request import Reply, Request, RequestType
from .completions import Completions
from .device import About, OpenDeviceBase, OverChannel
from .file import open_file
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
from .retry_blocking import Retrying

Data = bytes | bytearray | memoryview
CompletionHandler = Callable[[Any, Any], object]

_CALL, _NON_STANDARD = RequestType.CALL, RequestType.NON_STANDARD


class Way(About, Protocol):
    """An open device, by whatever path."""

    def request(self, request: Request) -> Reply: ...
    def close(self) -> None: ...


class OpenDevice(OpenDeviceBase[Way]):
    """A device that was opened; a context manager that closes it.

    `consumer_id` identifies this open to the provider; `kind`, `size` in bytes and `accepts` are the device's.
    """

    def send(self, request: Request) -> Reply:
        """Send a request and wait for its reply."""
        way = self._checked() if self._way is None else self._way
        if request.type is not _NON_STANDARD or isinstance(way, _Local):
            return way.request(request)
        return self._incoming(request, way.request(self._outgoing(request)))

    def send_soon(self, request: Request, done: Callable[[Outcome], None]) -> None:
        """Send a request; `done` is called once, in another thread, with the reply or the error."""
        way = self._checked()
        if isinstance(way, (_Channel, Retrying)):
            way.request_soon(self._outgoing(request), self._to(request, done))
            return
        threading.Thread(target=lambda: done(self._outcome(request)), name="ldmfs-request", daemon=True).start()

    def close(self) -> None:
        """Close the device; done once, later calls return."""
        way, self._way = self._way, None
        if way is not None:
            way.close()

    def __enter__(self) -> OpenDevice:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_way", None) is not None:
            warnings.warn(f"device {self.name} was not closed", ResourceWarning, source=self, stacklevel=1)

    def _outcome(self, request: Request) -> Outcome:
        try:
            return self.send(request)
        except Exception as error:
            return as_error(error)


class _Channel(OverChannel):
    _client: BlockingClient

    def __init__(self, client: BlockingClient, name: DeviceName, chain: tuple[str, ...], blocks: int) -> None:
        self._opened = client.open(name.device, chain)
        self._id = self._opened.consumer_id
        self._client, self._device, self._blocks = client, name.device, blocks
        self.request = client.requests(self._id, name.device, blocks)

    def request_soon(self, request: Request, handler: CompletionHandler) -> None:
        self._client.request_soon(self._id, self._device, request, self._blocks, handler, None)

    def close(self) -> None:
        self._client.close(self._id)


class _Local:
    def __init__(self, here: Here, device: str, chain: tuple[str, ...]) -> None:
        self._here = here
        self._consumer: Consumer = here.wait_for(here.open(device, chain))
        logical = self._consumer.device
        self.consumer_id, self.kind, self.size = self._consumer.id, logical.kind, logical.size
        self.accepts = logical.accepts

    def request(self, request: Request) -> Reply:
        return self._here.wait_for(self._here.request(self._consumer, request))

    def close(self) -> None:
        self._here.wait_for(self._here.close(self._consumer))


class _Connections:
    """The connections of this process, one for each container; a forked process begins without."""

    def __init__(self) -> None:
        self._clients: dict[tuple[Path, str], BlockingClient] = {}
        self._connecting: dict[tuple[Path, str], threading.Lock] = {}
        """Held while a container is being connected to and greeted, which takes as long as it likes."""
        self._lock = threading.Lock()
        self._ended = False
        os.register_at_fork(after_in_child=self._forked)

    def to(self, name: DeviceName, deadline: float | None = None) -> BlockingClient:
        """Return a connection, which is waited for until `deadline` where there is one.

        Raises `FileNotFoundError` where the container has no channel, `NotServed`.
        """
        if self._ended:
            raise NotServed(f"{name}: the program ends")
        key = name.root, name.container
        with self._lock:
            connecting = self._connecting.setdefault(key, threading.Lock())
        if not connecting.acquire(timeout=-1 if deadline is None else _remaining(deadline)):
            raise _silent(name)
        try:
            client = self._clients.get(key)
            if client is None or not client.alive():
                client = _greeted(name, deadline)
                with self._lock:
                    self._clients[key] = client
            return client
        finally:
            connecting.release()

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            for client in self._clients.values():
                client.aclose()
            self._clients.clear()

    def end(self) -> None:
        """End all connections for good; return when the completion handlers of what was outstanding have run."""
        self._ended = True
        clients = tuple(self._clients.values())
        self.close()
        for client in clients:
            client.join()

    def _forked(self) -> None:
        self._lock = threading.Lock()
        for client in self._clients.values():
            client.detach()
        self._clients.clear()
        self._connecting.clear()


_connections = _Connections()
_completions = Completions()
atexit.register(_completions.end)  # behind the next one, since the last is called first: what was answered is told
atexit.register(_connections.end)


def _greeted(name: DeviceName, deadline: float | None) -> BlockingClient:
    here = Here.current
    own = here.registry.container if here is not None and here.root == name.root else ""
    sock = connect(name.socket)
    if deadline is None:
        return BlockingClient(sock, own, path=name.socket)
    _limit(sock, _remaining(deadline))
    try:
        client = BlockingClient(sock, own, path=name.socket)
    except NotServed:
        if time.monotonic() < deadline:
            raise
        raise _silent(name) from None
    _limit(sock, 0)
    return client


def _limit(sock: socket.socket, seconds: float) -> None:
    """Let a receive end after some seconds, after which it is as if the other end were gone; 0 lets it wait."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))


def _remaining(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _silent(name: DeviceName) -> NotServed:
    return NotServed(f"container {name.container!r} has not answered in time")


def open_device(
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
    """Open the device `container/device`; returns when its open handler has run.

    `blocks` is the number of parameter blocks for each chain of large requests, 0 to let all data travel inline.
    `marshal` and `unmarshal` are for NON_STANDARD requests to another container.  `chain` names the devices on whose
    behalf it is opened.  Raises `NoSuchDevice`, `AccessDenied`, `NotServed`, `DeviceLoop`, or what the handler raises.

    With `retry`, for requests that may be repeated, a provider's end is no error: the device is opened anew, with
    another consumer id, and what was outstanding is sent again.  A request whose provider has not come back
    `retry_seconds` after its end raises `NotServed` or `ProviderDied`, as this function does then.
    """
    at = parse(name, root)
    here = Here.current
    if not retry or (here is not None and (here.root, here.registry.container) == (at.root, at.container)):
        return OpenDevice(at, _way(at, chain, blocks), marshal, unmarshal)
    way = Retrying(lambda deadline: _way(at, chain, blocks, deadline), retry_seconds)
    return OpenDevice(at, way, marshal, unmarshal)


def _way(name: DeviceName, chain: tuple[str, ...], blocks: int, deadline: float | None = None) -> Way:
    here = Here.current
    if here is not None and here.root == name.root and here.registry.container == name.container:
        return _Local(here, name.device, chain)
    if here is not None and here.on_loop:
        raise NotSupported("this call would wait on the container's own loop; use ldmfs.aio there")
    if name.container != "kernel":
        try:
            return _Channel(_connections.to(name, deadline), name, chain, blocks)
        except (FileNotFoundError, NotADirectoryError):
            if not name.file.parent.is_dir():
                raise missing(name) from None
        except OSError as error:
            raise NotServed(f"{name}: {error.strerror}") from None
    return open_file(name)


def close_device(device: OpenDevice) -> None:
    """Close a device; returns when its close handler has run."""
    device.close()


@overload
def send_request(device: OpenDevice, request: Request) -> Reply: ...
@overload
def send_request(device: OpenDevice, request: Data) -> bytes: ...
@overload
def send_request(
    device: OpenDevice,
    request: Request | Data,
    completion_handler: CompletionHandler,
    completion_context: Any = None,
) -> None: ...


def send_request(
    device: OpenDevice,
    request: Request | Data,
    completion_handler: CompletionHandler | None = None,
    completion_context: Any = None,
) -> Reply | bytes | None:
    """Send a request: bytes, which are a CALL and answered with bytes, or a `Request`, answered with a `Reply`.

    Without a completion handler it waits for the reply and raises the error.  With one it returns at once, and
    `completion_handler(completion_context, reply_or_error)` is called exactly once, whatever happens, in another
    thread.  A request that is refused at the entrance, as by `QueueFull`, raises here in both cases.

    The data of a large `Reply` is a view of shared memory, which is used again when `reply.data` itself is given up.
    """
    if completion_handler is None and type(request) is bytes:  # the usual case, without detours
        data = (device._way or device._checked()).request(Request(_CALL, request)).data
        return data if type(data) is bytes else bytes(data)
    plain = not isinstance(request, Request)
    whole = as_request(request)
    if completion_handler is None:
        reply = device.send(whole)
        return bytes(reply.data) if plain else reply
    handler = completion_handler

    def done(outcome: Outcome) -> None:
        value = bytes(outcome.data) if plain and isinstance(outcome, Reply) else outcome
        run_handler(handler, completion_context, value)

    _completions.send(functools.partial(device.send_soon, whole), done)
    return None
