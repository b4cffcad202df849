"""Providers in C as consumers: waiting or with a completion handler, on behalf of their consumers or by themselves."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from channel.served import Served, error_of, served, until

import ldmfs
from ldmfs import Container, Reply, Request, RequestType
from ldmfs.consumer.local import Here
from ldmfs.container.process import hosting

from .hosted import Built, ask, configured, native

MIB = 1 << 20


class Lower(ldmfs.Device):
    """Answers a CALL with its text in capital letters and its metadata; waits when it is told so, or to be opened."""

    def __init__(self, **attributes: Any) -> None:
        self.waits = 0
        self.cancelled = 0
        self.chains: list[tuple[str, ...]] = []
        self.held = trio.Event()
        self.container: Container | None = None
        self.__dict__.update(attributes)

    async def open(self, consumer_id: int) -> None:
        if self.container is not None:
            self.chains.append(self.container.registry.consumer(consumer_id).peer.chain)

    async def request(self, consumer_id: int, request: Request) -> Reply:
        if bytes(request.data) == b"wait":
            await self._wait()
        if bytes(request.data) == b"full":
            raise ldmfs.NoSpace("it is full")
        return Reply(bytes(request.data).upper(), request.metadata)

    async def _wait(self) -> None:
        self.waits += 1
        try:
            await self.held.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise


class Shut(Lower):
    """Lets nobody in before it is told so."""

    async def open(self, consumer_id: int) -> None:
        await self._wait()


@contextlib.asynccontextmanager
async def stack(tmp_path: Path, built: Built, lower: ldmfs.Device | None = None) -> AsyncIterator[Served]:
    """Serve the devices of caller.c over a device in Python, and over one another by the channel."""
    tables = {"caller": {"source": built("caller"), "parameters": {"lower": "box/lower"}}}
    async with native(tmp_path, tables, lower=lower or Lower()) as it:
        yield it


@pytest.mark.parametrize(
    ("device", "reply"),
    [("sync", b"HELLO"), ("changed", b"OLLEH"), ("pair", b"HELLOHELLO"), ("own", b"OWN")],
)
@pytest.mark.parametrize("size", [5, MIB], ids=["small", "large"])
async def test_a_request_is_passed_on(tmp_path: Path, built: Built, device: str, reply: bytes, size: int) -> None:
    async with stack(tmp_path, built):
        data = b"hello" if size == 5 else b"hello" * (size // 5)
        expected = reply if size == 5 or device == "own" else reply * (size // 5)
        assert await ask(tmp_path, f"box/{device}", data) == expected


async def test_metadata_is_passed_on_in_both_directions(tmp_path: Path, built: Built) -> None:
    async with stack(tmp_path, built):
        reply = await ask(tmp_path, "box/sync", Request(RequestType.CALL, b"a", metadata=b"about"))
        assert reply.metadata == b"about"
        assert (await ask(tmp_path, "box/own", Request(RequestType.CALL, b"a"))).metadata == b"about"


@pytest.mark.parametrize("device", ["sync", "changed", "pair"])
async def test_the_error_of_the_lower_device_is_passed_on(tmp_path: Path, built: Built, device: str) -> None:
    async with stack(tmp_path, built):
        data = b"lluf" if device == "changed" else b"full"
        assert isinstance(await error_of(ask(tmp_path, f"box/{device}", data)), ldmfs.NoSpace)


async def test_a_request_that_is_cancelled_by_who_sent_it(tmp_path: Path, built: Built) -> None:
    lower = Lower()
    async with stack(tmp_path, built, lower):
        error = await error_of(ask(tmp_path, "box/cancelling", b"wait"))
        assert isinstance(error, ldmfs.RequestCancelled)
        await until(lambda: lower.cancelled == lower.waits)


async def test_closing_a_device_ends_what_is_outstanding_before_it_returns(tmp_path: Path, built: Built) -> None:
    async with stack(tmp_path, built):
        assert await ask(tmp_path, "box/leaving", b"wait") == b"1"


@pytest.mark.parametrize("device", ["sync", "pair"])
async def test_cancelling_a_request_cancels_what_was_forwarded_of_it(tmp_path: Path, built: Built, device: str) -> None:
    lower = Lower()
    async with stack(tmp_path, built, lower) as it:
        async with await ldmfs.aio.open_device(f"box/{device}", root=tmp_path) as opened:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ldmfs.aio.send_request, opened, b"wait")
                await until(lambda: lower.waits == (2 if device == "pair" else 1))
                nursery.cancel_scope.cancel()
            assert await ldmfs.aio.send_request(opened, b"a") in (b"A", b"AA")
        await until(lambda: lower.cancelled == lower.waits)
        await it.without_consumers()


async def test_a_consumer_that_goes_away_while_its_device_opens_a_lower_one(tmp_path: Path, built: Built) -> None:
    lower = Shut()
    async with stack(tmp_path, built, lower) as it:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(ldmfs.aio.open_device, "box/sync", root=tmp_path))
            await until(lambda: lower.waits == 1)
            nursery.cancel_scope.cancel()
        await until(lambda: lower.cancelled == 1)
        await it.without_consumers()
        lower.held.set()
        assert await ask(tmp_path, "box/sync", b"a") == b"A"


async def test_an_open_that_the_lower_device_refuses_is_refused(tmp_path: Path, built: Built) -> None:
    tables = {"caller": {"source": built("caller"), "parameters": {"lower": "box/nothing"}}}
    async with native(tmp_path, tables) as it:
        assert isinstance(await error_of(ldmfs.aio.open_device("box/sync", root=tmp_path)), ldmfs.NoSuchDevice)
        await it.without_consumers()


@pytest.mark.parametrize("lower", ["nothing", "a/b/c", "/x", "nowhere/x"])
async def test_what_cannot_be_a_name_is_refused(tmp_path: Path, built: Built, lower: str) -> None:
    tables = {"caller": {"source": built("caller"), "parameters": {"lower": lower}}}
    async with native(tmp_path, tables):
        error = await error_of(ldmfs.aio.open_device("box/sync", root=tmp_path))
        assert isinstance(error, (ldmfs.InvalidRequest, ldmfs.NoSuchDevice))


async def test_a_device_that_would_consume_itself_is_refused(tmp_path: Path, built: Built) -> None:
    tables = {"x": {"source": "relay", "parameters": {"lower": "box/y"}}}
    tables["y"] = {"source": "relay", "parameters": {"lower": "box/x"}}
    async with native(tmp_path, tables) as it:
        assert isinstance(await error_of(ldmfs.aio.open_device("box/x", root=tmp_path)), ldmfs.DeviceLoop)
        await it.without_consumers()


@pytest.mark.parametrize(("length", "opens"), [(15, True), (16, False)])
async def test_a_row_has_at_most_sixteen_devices(tmp_path: Path, built: Built, length: int, opens: bool) -> None:
    names = [*(f"r{number}" for number in range(length)), "lower"]
    pairs = ",".join(f"{name}=box/{below}" for name, below in itertools.pairwise(names))
    async with native(tmp_path, {"r": {"source": "relay", "parameters": {"lower": pairs}}}, lower=Lower()):
        if opens:
            assert await ask(tmp_path, "box/r0", b"a") == b"A"
        else:
            assert isinstance(await error_of(ldmfs.aio.open_device("box/r0", root=tmp_path)), ldmfs.DeviceLoop)


async def test_the_lower_device_is_opened_with_the_chain(tmp_path: Path, built: Built) -> None:
    lower = Lower()
    async with stack(tmp_path, built, lower) as it:
        lower.container = it.container
        await (await ldmfs.aio.open_device("box/sync", root=tmp_path, chain=("a/b",))).close()
        assert lower.chains == [("a/b", "box/sync")]


async def test_what_was_opened_is_told(tmp_path: Path, built: Built) -> None:
    async with stack(tmp_path, built):
        reply = await ask(tmp_path, "box/about", Request(RequestType.READ, length=100))
        assert bytes(reply.data) == b"consumer 1 kind 1 size 0 accepts 5a execution 3"


async def test_a_handle_stays_good_while_its_provider_is_restarted(tmp_path: Path, built: Built) -> None:
    tables = {"x": {"source": "relay", "parameters": {"lower": "low/lower"}}}
    async with native(tmp_path, tables):
        async with served(tmp_path, "low", lower=Lower()) as low:
            device = await ldmfs.aio.open_device("box/x", root=tmp_path)
            assert await ldmfs.aio.send_request(device, b"a") == b"A"
            low.end()
            await low.without_consumers()
        errors = [type(await error_of(ldmfs.aio.send_request(device, b"a"))) for _ in range(3)]
        assert set(errors[1:]) == {ldmfs.NotServed}
        async with served(tmp_path, "low", lower=Lower()):
            assert await ldmfs.aio.send_request(device, b"b") == b"B"
            await device.close()


async def test_what_is_under_way_when_the_lower_provider_dies_ends_with_its_death(tmp_path: Path, built: Built) -> None:
    tables = {"x": {"source": "relay", "parameters": {"lower": "low/lower"}}}
    lower = Lower()
    async with native(tmp_path, tables), trio.open_nursery() as nursery:
        errors: list[object] = []

        async def call() -> None:
            errors.append(await error_of(ask(tmp_path, "box/x", b"wait")))

        async with served(tmp_path, "low", lower=lower) as low:
            nursery.start_soon(call)
            await until(lambda: lower.waits)
            low.end()
            await until(lambda: errors)
        assert isinstance(errors[0], ldmfs.ProviderDied)


# -- in their own container, by plain calls


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    """Give a container whose devices are consumed by plain calls."""
    yield Container("box", root=tmp_path)
    Container.current = Here.current = None


@pytest.mark.parametrize("device", ["sync", "changed", "pair"])
async def test_a_device_of_the_own_container_is_consumed(container: Container, built: Built, device: str) -> None:
    container.create_device("lower", Lower())
    tables = {"caller": {"source": built("caller"), "parameters": {"lower": "box/lower"}}}
    async with hosting(container, [configured(container, tables)]):
        replies = {"sync": b"AB", "changed": b"BA", "pair": b"ABAB"}
        assert await ask(container.root, f"box/{device}", b"ab") == replies[device]


async def test_an_object_is_passed_as_it_is_within_a_container(container: Container, built: Built) -> None:
    tables = {"caller": {"source": built("caller"), "parameters": {"lower": "box/object"}}}
    async with hosting(container, [configured(container, tables)]):
        assert await ask(container.root, "box/number", b"") == b"42"


async def test_an_object_does_not_leave_the_container(tmp_path: Path, built: Built) -> None:
    tables = {"caller": {"source": built("caller"), "parameters": {"lower": "box/object"}}}
    async with native(tmp_path, tables):
        assert isinstance(await error_of(ask(tmp_path, "box/number", b"")), ldmfs.NotSupported)


async def test_an_object_of_python_is_none_for_a_provider_in_c(container: Container, built: Built) -> None:
    async with hosting(container, [configured(container, {"caller": {"source": built("caller")}})]):
        error = await error_of(ask(container.root, "box/object", Request(RequestType.NON_STANDARD, object=21)))
        assert isinstance(error, ldmfs.NotSupported)


async def test_more_consumers_open_a_stack_at_once_than_there_are_threads(container: Container, built: Built) -> None:
    """Each open of `x` waits in a thread for the open of `y`."""
    container.create_device("lower", Lower())
    tables = {"r": {"source": "relay", "parameters": {"lower": "x=box/y,y=box/z,z=box/lower"}}}
    async with hosting(container, [configured(container, tables)]), trio.open_nursery() as nursery:
        replies: list[bytes] = []

        async def consume() -> None:
            replies.append(await ask(container.root, "box/x", b"a"))

        with trio.fail_after(30):
            for _ in range(200):
                nursery.start_soon(consume)
            await until(lambda: len(replies) == 200)
        assert set(replies) == {b"A"}
