"""The rules of every device, and that by each path it is the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable
from typing import Any

import trio
import trio.testing

from ..core.device import Kind
from ..core.errors import (
    HandleClosed,
    LdmError,
    NoSuchDevice,
    NotSupported,
    ProtocolError,
    ProviderDied,
    ProviderFailed,
)
from ..core.request import MAX_MESSAGE, Request, RequestType
from .subject import Handle, Subject

OPENS = 20
"""How many consumers use a device at one time."""

REQUESTS = 50
"""How many requests of one consumer are outstanding at one time."""

LARGE = 4 << 20
"""Bytes of a large request where the path allows it."""


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
        await raises(HandleClosed, handle.send(subject.request or Request(RequestType.READ)))


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
                await raises(NotSupported, handle.send(request), what=type.name)
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
    await raises(NoSuchDevice, subject.open_named(name))


async def a_killed_consumer_is_forgotten(subject: Subject) -> None:
    """A process that is killed with the device open, and a request outstanding, is no consumer any more."""
    if subject.at is None:
        return
    await subject.only_others_are_left()
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
    await subject.only_others_are_left()
    async with subject.opened() as handle:
        await subject.ask(handle)


async def no_consumer_is_left(subject: Subject) -> None:
    """Each consumer that has closed is forgotten."""
    await subject.only_others_are_left()


async def the_paths_give_the_same(one: Subject, other: Subject) -> None:
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


async def raises(expected: type[LdmError], call: Awaitable[Any], what: str = "it") -> None:
    """Fail unless the call raises that error; `what` names it."""
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
