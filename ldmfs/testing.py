"""The conformance suite: what every device does, whoever wrote it, in whatever world it runs and by whatever path.

    async def test_upper_is_a_device():
        container = ldmfs.Container("box")
        container.create_device("upper", Upper())
        await ldmfs.testing.check_device("upper", container=container, request=b"hello", reply=b"HELLO")

    def test_upper_is_a_device_in_a_tree():
        ldmfs.testing.check_device_blocking("text/upper", request=b"hello", reply=b"HELLO")

A device of a container in this process is used by plain calls (`local`) and over a channel of its own (`channel`), a
device of a mounted tree over its channel and through its file (`file`), one of the kernel by calls of the module
(`ioctl`) and through its file.  Each rule is a function below; the one that is broken is named by the `AssertionError`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import trio
import trio.testing

from . import aio
from .channel import server
from .channel.address import listen
from .consumer.file import File
from .consumer.local import Here
from .consumer.name import DeviceName, parse
from .consumer.tree import channel_socket
from .container.host import Container
from .core.device import Consumer, Kind
from .core.errors import (
    HandleClosed,
    LdmError,
    NoSpace,
    NoSuchDevice,
    NotSupported,
    ProtocolError,
    ProviderDied,
    ProviderFailed,
)
from .core.request import MAX_MESSAGE, Reply, Request, RequestType
from .kernel import sysfs

__all__ = ["check_device", "check_device_blocking"]

SECONDS = 30.0
"""After which a rule is taken to hang."""

OPENS = 20
"""How many consumers use a device at one time."""

REQUESTS = 50
"""How many requests of one consumer are outstanding at one time."""

LARGE = 4 << 20
"""Bytes of a large request where the path allows it."""

Expected = bytes | Callable[[bytes], bool] | None
Sample = Request | bytes | None


class Handle(Protocol):
    """A device that was opened."""

    @property
    def consumer_id(self) -> int: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def size(self) -> int: ...
    @property
    def accepts(self) -> frozenset[RequestType]: ...
    async def send(self, request: Request) -> Reply: ...
    async def close(self) -> None: ...


Open = Callable[[str], Awaitable[Handle]]


class Subject(NamedTuple):
    """A device, one path to it, and what is known of it."""

    name: str
    path: str
    open_named: Open
    consumers: Callable[[], int | None]
    """How many consumers it has now; None where nobody tells."""
    others: int | None
    """How many it had before."""
    at: DeviceName | None
    """Where another process finds it."""
    kind: Kind
    size: int
    accepts: frozenset[RequestType]
    request: Request | None
    reply: Expected
    slow: Request | None
    writable: bool

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Handle]:
        """Open the device, and close it."""
        handle = await self.open_named(self.name)
        try:
            yield handle
        finally:
            await handle.close()

    async def ask(self, handle: Handle) -> bytes:
        """Send the sample request, check its reply and return it."""
        if self.request is None:
            return b""
        data = bytes((await handle.send(self.request)).data)
        if callable(self.reply):
            assert self.reply(data), f"the reply to the sample request is not what was expected: {data[:200]!r}"
        elif self.reply is not None:
            assert data == self.reply, f"the reply is {data[:200]!r}, not {self.reply[:200]!r}"
        return data


Rule = Callable[[Subject], Awaitable[None]]


async def check_device(
    name: str,
    *,
    container: Container | None = None,
    root: str | os.PathLike[str] | None = None,
    paths: tuple[str, ...] | None = None,
    request: Sample = None,
    reply: Expected = None,
    slow: Sample = None,
    writable: bool = True,
) -> None:
    """Run a device through every rule by each path; raise `AssertionError` for the first that it breaks.

    `name` is that of a device in `container`, which this trio run hosts, or `container/device` in the tree at `root`.
    `paths` are those to try: `local` and `channel`, or `channel` and `file`, or `ioctl` and `file`.  `request` is a
    sample, bytes being a CALL, that can be repeated and is answered with `reply`, or with what `reply` returns True
    for.  `slow` is one whose handler waits for long, to be cancelled and killed.  A block device that is `writable` is
    written, and gets back what was there.
    """
    broken: list[AssertionError] = []
    async with contextlib.AsyncExitStack() as stack:
        if container is None:
            ways = _ways_to_tree(parse(name, root), paths)
        else:
            ways = await stack.enter_async_context(_ways_to_container(name, container, paths or ("local", "channel")))
        try:
            await _check(ways, _as_request(request), reply, _as_request(slow), writable=writable)
        except AssertionError as error:
            broken.append(error)  # to be raised outside of the nursery that is in the stack, which would wrap it
    if broken:
        raise broken[0]


async def _check(
    ways: dict[str, _Way], request: Request | None, reply: Expected, slow: Request | None, *, writable: bool
) -> None:
    subjects = [await _subject(path, way, request, reply, slow, writable) for path, way in ways.items()]
    for subject in subjects:
        for rule in RULES:
            await _apply(rule, subject)
    for other in subjects[1:]:
        await _apply(functools.partial(_the_paths_give_the_same, subjects[0]), other)


def check_device_blocking(name: str, **arguments: Any) -> None:
    """Run `check_device` in a trio run of its own."""
    trio.run(functools.partial(check_device, name, **arguments))


# -- rules of every device


async def each_open_is_a_consumer_of_its_own(subject: Subject) -> None:
    """Two opens have different consumer ids, and one goes on when the other is closed."""
    async with subject.opened() as one:
        async with subject.opened() as two:
            if subject.path != "file":
                assert one.consumer_id, "a consumer id is not 0"
                assert one.consumer_id != two.consumer_id, f"two opens have the same consumer id {one.consumer_id}"
            await subject.ask(two)
        await subject.ask(one)


async def requests_are_answered_in_order(subject: Subject) -> None:
    """Requests one after another on one open get the reply that is due."""
    async with subject.opened() as handle:
        for _ in range(5):
            await subject.ask(handle)


async def a_device_is_opened_again_after_its_close(subject: Subject) -> None:
    """Open, send and close can be repeated."""
    for _ in range(5):
        async with subject.opened() as handle:
            await subject.ask(handle)


async def a_close_without_a_request_is_fine(subject: Subject) -> None:
    """Nothing needs to be sent."""
    async with subject.opened():
        pass


async def a_request_after_the_close_is_refused(subject: Subject) -> None:
    """A closed handle raises `HandleClosed`."""
    async with subject.opened() as handle:
        await handle.close()
        await _raises(HandleClosed, handle.send(subject.request or Request(RequestType.READ)))


async def a_second_close_does_nothing(subject: Subject) -> None:
    """Closing twice is no error."""
    async with subject.opened() as handle:
        await handle.close()
        await handle.close()


async def many_consumers_at_once_are_answered(subject: Subject) -> None:
    """Consumers do not disturb each other."""

    async def consume() -> None:
        async with subject.opened() as handle:
            await subject.ask(handle)

    async with trio.open_nursery() as nursery:
        for _ in range(OPENS):
            nursery.start_soon(consume)


async def many_requests_at_once_are_answered(subject: Subject) -> None:
    """The requests of one consumer do not disturb each other."""
    async with subject.opened() as handle, trio.open_nursery() as nursery:
        for _ in range(REQUESTS):
            nursery.start_soon(subject.ask, handle)


async def types_that_it_does_not_take_are_refused(subject: Subject) -> None:
    """A request of any other type raises `NotSupported`, and the device goes on."""
    async with subject.opened() as handle:
        for type in RequestType:
            if type not in subject.accepts:
                request = Request(type, b"x" if type in (RequestType.CALL, RequestType.WRITE) else b"")
                await _raises(NotSupported, handle.send(request), what=type.name)
        await subject.ask(handle)


async def an_unusual_size_is_answered_or_refused(subject: Subject) -> None:
    """An empty and a large request are answered or refused; none is the handler's bug, or the end of the device."""
    large = MAX_MESSAGE if subject.path == "file" else LARGE
    requests = [Request(RequestType.READ, length=length) for length in (0, 1, LARGE)]
    if subject.kind is Kind.MESSAGE:
        requests += [Request(RequestType.CALL, bytes(size)) for size in (0, 1, large)]
    async with subject.opened() as handle:
        for request in requests:
            if request.type in subject.accepts:
                await _ends_well(handle, request)
        await subject.ask(handle)


async def a_cancelled_request_leaves_the_device_usable(subject: Subject) -> None:
    """A request is cancelled while its handler runs: the next one is answered, and the close returns."""
    request = subject.slow or subject.request
    if request is None or (subject.path == "file" and subject.slow):
        return  # a thread in a system call cannot be cancelled; `a_killed_consumer_is_forgotten` ends it by a signal
    async with subject.opened() as handle:
        with trio.move_on_after(0.02) as scope:
            await handle.send(request)
        assert scope.cancelled_caught or not subject.slow, "the slow request was answered before it was cancelled"
        await subject.ask(handle)


async def a_close_ends_what_is_outstanding(subject: Subject) -> None:
    """A request that is outstanding when its consumer closes ends with an error."""
    if subject.slow is None or subject.path == "file":
        return
    ended: list[object] = []
    async with subject.opened() as handle, trio.open_nursery() as nursery:

        async def send() -> None:
            try:
                ended.append(await handle.send(subject.slow))  # type: ignore[arg-type]
            except LdmError as error:
                ended.append(error)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await handle.close()
    assert isinstance(ended[0], LdmError), f"the request that was outstanding at the close ended with {ended[0]!r}"


async def a_device_that_is_not_there_is_refused(subject: Subject) -> None:
    """Opening a device of another name raises `NoSuchDevice`."""
    name = f"{subject.name}-that-is-not-there"
    await _raises(NoSuchDevice, subject.open_named(name))


async def a_killed_consumer_is_forgotten(subject: Subject) -> None:
    """A process that is killed with the device open, and a request outstanding, is no consumer any more."""
    if subject.at is None:
        return
    await _until(lambda: subject.consumers() == subject.others)
    request = subject.slow or subject.request
    type, data = (int(request.type), bytes(request.data).hex()) if request else (0, "")
    arguments = (str(subject.at.root), str(subject.at), subject.path, str(type), data, "1" if subject.slow else "")
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", _CONSUMER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        ready = await process.stdout.receive_some(100)
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    assert ready.startswith(b"ready"), f"a consumer in a process of its own ended before it was killed: {ready!r}"
    await _until(lambda: subject.consumers() == subject.others)
    async with subject.opened() as handle:
        await subject.ask(handle)


async def no_consumer_is_left(subject: Subject) -> None:
    """Each consumer that has closed is forgotten."""
    await _until(lambda: subject.consumers() == subject.others)


# -- rules of block devices


async def what_was_written_is_read(subject: Subject) -> None:
    """Bytes written at any offset are read there, by the same and by another consumer, before and after a FLUSH."""
    if not _is_writable_block(subject):
        return
    size = min(subject.size, 4096)
    async with _restored(subject) as handle, subject.opened() as other:
        for offset in sorted({0, 1, subject.size // 2, subject.size - size}):
            length = min(size, subject.size - offset)
            data = os.urandom(length)
            await handle.send(Request(RequestType.WRITE, data, offset=offset))
            await _reads(handle, offset, data)
            await handle.send(Request(RequestType.FLUSH))
            await _reads(other, offset, data)
        await handle.send(Request(RequestType.WRITE, b"", offset=0))


async def a_read_ends_at_the_end(subject: Subject) -> None:
    """A READ gives fewer bytes at the device's end, and none behind it."""
    if subject.kind is not Kind.BLOCK or RequestType.READ not in subject.accepts:
        return
    async with subject.opened() as handle:
        for offset, length in (
            (subject.size - 1, 1),
            (subject.size - 1, 100),
            (subject.size, 1),
            (subject.size + 9, 9),
        ):
            data = (await handle.send(Request(RequestType.READ, offset=offset, length=length))).data
            due = max(0, min(length, subject.size - offset))
            assert len(data) == due, f"READ of {length} bytes at {offset} of {subject.size} gave {len(data)}, not {due}"


async def a_write_ends_at_the_end(subject: Subject) -> None:
    """A WRITE that would go beyond the device's end raises `NoSpace`, and the device is not longer then."""
    if not _is_writable_block(subject):
        return
    async with _restored(subject) as handle:
        for offset, length in ((subject.size, 1), (subject.size - 1, 2), (subject.size + 4096, 4096)):
            request = Request(RequestType.WRITE, bytes(length), offset=offset)
            await _raises(NoSpace, handle.send(request), what=f"WRITE of {length} bytes at {offset} of {subject.size}")
    async with subject.opened() as handle:
        assert handle.size == subject.size, f"its size was {subject.size} and is {handle.size}"


# -- rules of several paths


async def _the_paths_give_the_same(one: Subject, other: Subject) -> None:
    """By each path a device is of the same kind and size and gives the same reply."""
    assert (one.kind, one.size) == (other.kind, other.size), f"by {one.path} it is {one.kind}, {one.size} bytes"
    replies = []
    for subject in (one, other):
        async with subject.opened() as handle:
            if subject.kind is Kind.BLOCK and RequestType.READ in subject.accepts:
                request = Request(RequestType.READ, offset=0, length=min(subject.size, 1 << 16))
                replies.append(bytes((await handle.send(request)).data))
            elif isinstance(subject.reply, bytes):
                replies.append(await subject.ask(handle))
    assert len(set(replies)) < 2, f"by {one.path} it gives something else: {replies[0][:100]!r}, {replies[1][:100]!r}"


RULES: tuple[Rule, ...] = (
    each_open_is_a_consumer_of_its_own,
    requests_are_answered_in_order,
    a_device_is_opened_again_after_its_close,
    a_close_without_a_request_is_fine,
    a_request_after_the_close_is_refused,
    a_second_close_does_nothing,
    many_consumers_at_once_are_answered,
    many_requests_at_once_are_answered,
    types_that_it_does_not_take_are_refused,
    an_unusual_size_is_answered_or_refused,
    a_cancelled_request_leaves_the_device_usable,
    a_close_ends_what_is_outstanding,
    a_device_that_is_not_there_is_refused,
    what_was_written_is_read,
    a_read_ends_at_the_end,
    a_write_ends_at_the_end,
    a_killed_consumer_is_forgotten,
    no_consumer_is_left,
)
"""In this order, by each path."""


# -- how the rules are applied


async def _apply(rule: Callable[[Subject], Awaitable[None]], subject: Subject) -> None:
    named: Any = rule.func if isinstance(rule, functools.partial) else rule
    broken = f"{subject.name} by {subject.path} breaks the rule {named.__name__.strip('_')}"
    try:
        with trio.fail_after(SECONDS):
            await rule(subject)
    except trio.TooSlowError:
        raise AssertionError(f"{broken}: it hangs") from None
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        if isinstance(cause, AssertionError):
            raise AssertionError(f"{broken}: {cause}") from error
        raise AssertionError(f"{broken}: {type(cause).__name__}: {cause}") from error


async def _raises(expected: type[LdmError], call: Awaitable[Any], what: str = "it") -> None:
    try:
        value = await call
    except expected:
        return
    except LdmError as error:
        raise AssertionError(f"{what} raised {type(error).__name__} ({error}), not {expected.__name__}") from error
    if hasattr(value, "close"):
        await value.close()
    raise AssertionError(f"{what} raised nothing, not {expected.__name__}")


async def _ends_well(handle: Handle, request: Request) -> None:
    what = f"{request.type.name} with {len(request.data)} bytes and length {request.length}"
    try:
        await handle.send(request)
    except (ProviderFailed, ProviderDied, ProtocolError) as error:
        raise AssertionError(f"{what} ended with {type(error).__name__}: {error}") from error
    except LdmError:
        pass


async def _reads(handle: Handle, offset: int, data: bytes) -> None:
    found = bytes((await handle.send(Request(RequestType.READ, offset=offset, length=len(data)))).data)
    assert found == data, f"{len(data)} bytes at {offset} are not what was written there"


def _is_writable_block(subject: Subject) -> bool:
    return subject.writable and subject.kind is Kind.BLOCK and RequestType.WRITE in subject.accepts


@contextlib.asynccontextmanager
async def _restored(subject: Subject) -> AsyncIterator[Handle]:
    """Open a block device; at the end the places that the rules write have what they had before."""
    size = min(subject.size, 4096)
    places = sorted({0, 1, subject.size // 2, subject.size - size})
    async with subject.opened() as handle:
        before = [(await handle.send(Request(RequestType.READ, offset=place, length=size))).data for place in places]
        kept = [(place, bytes(data)) for place, data in zip(places, before, strict=True)]
        try:
            yield handle
        finally:
            for place, data in reversed(kept):
                await handle.send(Request(RequestType.WRITE, data, offset=place))


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for what another process, or the kernel some time after the close of a file, does."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.005)


def _as_request(sample: Sample) -> Request | None:
    return Request(RequestType.CALL, sample) if isinstance(sample, bytes) else sample


# -- paths


class _Way(NamedTuple):
    name: str
    open_named: Open
    consumers: Callable[[], int | None]
    at: DeviceName | None


async def _subject(
    path: str, way: _Way, request: Request | None, reply: Expected, slow: Request | None, writable: bool
) -> Subject:
    others = way.consumers()
    handle = await way.open_named(way.name)
    await handle.close()
    await _until(lambda: way.consumers() == others)
    about = handle.kind, handle.size, handle.accepts
    return Subject(
        way.name, path, way.open_named, way.consumers, others, way.at, *about, request, reply, slow, writable
    )


def _ways_to_tree(at: DeviceName, paths: tuple[str, ...] | None) -> dict[str, _Way]:
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
    return {path: _Way(str(at), known[path], consumers, at) for path in paths or default}


@contextlib.asynccontextmanager
async def _ways_to_container(name: str, container: Container, paths: tuple[str, ...]) -> AsyncIterator[dict[str, _Way]]:
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
                yield {path: _Way(name, known[path], consumers, None) for path in paths}
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


_CONSUMER = """
import sys, threading
import ldmfs
from ldmfs.consumer.file import File
from ldmfs.consumer.name import parse
root, name, path, type, data, slow = sys.argv[1:]
if path == "file":
    send = File(parse(name, root)).request
else:
    device = ldmfs.open_device(name, root=root)
    send = device.send
if type != "0":
    thread = threading.Thread(target=send, args=(ldmfs.Request(ldmfs.RequestType(int(type)), bytes.fromhex(data)),))
    thread.daemon = True
    thread.start()
    thread.join(0.1 if slow else None)
print("ready", flush=True)
sys.stdin.read()
"""
"""A consumer to be killed."""
