"""NON_STANDARD requests: any object, made bytes and an object again where it leaves a container, and only there."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from ldmfs import Device, InvalidRequest, LdmError, NoSpace, NotSupported, ProviderFailed, Reply, Request, RequestType
from ldmfs.consumer.local import Here

from .served import MIB, Completions, Served, Side, error_of, opened, served


class Doubles(Device):
    """Doubles the numbers of a list, which it gets as a list."""

    def __init__(self, count: Counter[str]) -> None:
        self.count = count
        self.seen: list[Any] = []
        self.marshal = self._marshal
        self.unmarshal = self._unmarshal

    def _marshal(self, value: Any) -> bytes:
        self.count["provider marshal"] += 1
        return json.dumps(value).encode()

    def _unmarshal(self, data: bytes) -> Any:
        self.count["provider unmarshal"] += 1
        return json.loads(data)

    def request(self, consumer_id: int, request: Request) -> Reply:
        self.seen.append(request.object)
        return Reply(b"", request.metadata, [2 * number for number in request.object or []])


class Both:
    """The consumer's callbacks."""

    def __init__(self, count: Counter[str]) -> None:
        self.count = count

    def marshal(self, value: Any) -> bytes:
        self.count["consumer marshal"] += 1
        return json.dumps(value).encode()

    def unmarshal(self, data: bytes) -> Any:
        self.count["consumer unmarshal"] += 1
        return json.loads(data)


ONCE_EACH = Counter(["consumer marshal", "provider unmarshal", "provider marshal", "consumer unmarshal"])


def of(value: Any) -> Request:
    return Request(RequestType.NON_STANDARD, object=value, metadata=b"m")


@pytest.fixture
def count() -> Counter[str]:
    return Counter()


@contextlib.asynccontextmanager
async def doubling(side: Side, count: Counter[str], **callbacks: Any) -> AsyncIterator[tuple[Any, Doubles]]:
    device, both = Doubles(count), Both(count)
    callbacks = {"marshal": both.marshal, "unmarshal": both.unmarshal, **callbacks}
    async with served(side.root, d=device), opened(side, **callbacks) as open_device:
        yield open_device, device


async def test_an_object_comes_as_an_object_and_so_does_the_reply(side: Side, count: Counter[str]) -> None:
    async with doubling(side, count) as (device, provider):
        reply = await side.send(device, of([1, 2, 3]))
        assert reply.object == [2, 4, 6]
        assert provider.seen == [[1, 2, 3]]


async def test_each_of_the_four_callbacks_is_called_once(side: Side, count: Counter[str]) -> None:
    async with doubling(side, count) as (device, _):
        await side.send(device, of([1]))
    assert count == ONCE_EACH


async def test_metadata_goes_along(side: Side, count: Counter[str]) -> None:
    async with doubling(side, count) as (device, _):
        assert (await side.send(device, of([1]))).metadata == b"m"


async def test_a_large_object_comes_whole(side: Side, count: Counter[str], blocks: int) -> None:
    async with doubling(side, count, blocks=blocks) as (device, _):
        assert (await side.send(device, of([1] * MIB))).object == [2] * MIB


async def test_other_requests_call_none_of_them(side: Side, count: Counter[str]) -> None:
    async with doubling(side, count) as (device, _):
        await side.send(device, Request(RequestType.READ))
    assert not count


async def test_a_completion_handler_gets_the_object(side: Side, count: Counter[str]) -> None:
    done = Completions()
    async with doubling(side, count) as (device, _):
        await side.soon(device, of([1]), done)
        assert (await done.only()).object == [2]
    assert count == ONCE_EACH


# -- within one container


@contextlib.contextmanager
def here(box: Served) -> Iterator[None]:
    """Make the test's process that of the container."""
    Here.current = Here(box.root, box.container.registry, box.container.dispatch)
    try:
        yield
    finally:
        Here.current = None


async def test_within_one_container_the_object_is_passed_as_it_is(side: Side, count: Counter[str]) -> None:
    provider, both, value = Doubles(count), Both(count), [1, 2]
    async with served(side.root, d=provider) as box:
        with here(box):
            async with opened(side, marshal=both.marshal, unmarshal=both.unmarshal) as device:
                assert (await side.send(device, of(value))).object == [2, 4]
    assert provider.seen[0] is value
    assert not count


async def test_within_one_container_no_callback_is_needed(side: Side, count: Counter[str]) -> None:
    async with served(side.root, d=Doubles(count)) as box:
        with here(box):
            async with opened(side) as device:
                assert (await side.send(device, of([1]))).object == [2]


# -- what goes wrong


def raises(error: BaseException) -> Any:
    def callback(_: Any) -> Any:
        raise error

    return callback


async def test_without_marshal_the_consumer_is_refused(side: Side, count: Counter[str]) -> None:
    async with doubling(side, count, marshal=None) as (device, provider):
        assert isinstance(await error_of(side.send(device, of([1]))), NotSupported)
        assert provider.seen == []


async def test_without_unmarshal_the_provider_refuses(side: Side, count: Counter[str]) -> None:
    both = Both(count)
    provider = Doubles(count)
    provider.unmarshal = None  # type: ignore[assignment]
    async with served(side.root, d=provider), opened(side, marshal=both.marshal) as device:
        assert isinstance(await error_of(side.send(device, of([1]))), NotSupported)


async def test_without_unmarshal_the_consumer_gets_the_bytes(side: Side, count: Counter[str]) -> None:
    async with doubling(side, count, unmarshal=None) as (device, _):
        assert bytes((await side.send(device, of([1]))).data) == b"[2]"


async def test_what_the_consumers_marshal_raises_is_the_callers(side: Side, count: Counter[str]) -> None:
    async with doubling(side, count, marshal=raises(ZeroDivisionError("mine"))) as (device, provider):
        with pytest.raises(ZeroDivisionError, match="mine"):
            await side.send(device, of([1]))
        assert provider.seen == []


async def test_what_the_consumers_unmarshal_raises_is_the_callers(side: Side, count: Counter[str]) -> None:
    async with doubling(side, count, unmarshal=raises(ZeroDivisionError("mine"))) as (device, _):
        with pytest.raises(ZeroDivisionError, match="mine"):
            await side.send(device, of([1]))


async def test_what_the_consumers_unmarshal_raises_is_told_to_the_completion_handler(
    side: Side, count: Counter[str]
) -> None:
    done = Completions()
    async with doubling(side, count, unmarshal=raises(ZeroDivisionError("mine"))) as (device, _):
        await side.soon(device, of([1]), done)
        error = await done.only()
    assert isinstance(error, InvalidRequest)
    assert "mine" in str(error)


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(1), KeyboardInterrupt()], ids=repr)
async def test_what_the_providers_unmarshal_raises_is_the_callers_error(
    side: Side, count: Counter[str], error: BaseException
) -> None:
    provider = Doubles(count)
    provider.unmarshal = raises(error)
    async with served(side.root, d=provider), opened(side, marshal=Both(count).marshal) as device:
        assert isinstance(await error_of(side.send(device, of([1]))), InvalidRequest)
        assert isinstance(await error_of(side.send(device, of([1]))), InvalidRequest)


@pytest.mark.logs
@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(1), KeyboardInterrupt()], ids=repr)
async def test_what_the_providers_marshal_raises_is_a_failure_of_the_provider(
    side: Side, count: Counter[str], error: BaseException
) -> None:
    provider = Doubles(count)
    provider.marshal = raises(error)
    async with served(side.root, d=provider), opened(side, marshal=Both(count).marshal) as device:
        assert isinstance(await error_of(side.send(device, of([1]))), ProviderFailed)
        assert isinstance(await error_of(side.send(device, of([1]))), ProviderFailed)


@pytest.mark.parametrize("callback", ["marshal", "unmarshal"])
async def test_an_error_of_the_model_goes_through_as_it_is(side: Side, count: Counter[str], callback: str) -> None:
    provider = Doubles(count)
    setattr(provider, callback, raises(NoSpace("full")))
    async with served(side.root, d=provider), opened(side, marshal=Both(count).marshal) as device:
        assert isinstance(await error_of(side.send(device, of([1]))), NoSpace)


async def test_what_marshal_gives_that_is_no_bytes_is_refused(side: Side, count: Counter[str]) -> None:
    async with doubling(side, count, marshal=lambda value: "text") as (device, _):
        assert isinstance(await error_of(side.send(device, of([1]))), InvalidRequest)


async def test_what_the_providers_marshal_gives_that_is_no_bytes_is_an_error(tmp_path: Path, side: Side) -> None:
    provider, counted = Doubles(Counter()), Both(Counter())
    provider.marshal = lambda value: 42  # type: ignore[assignment, return-value]
    async with served(side.root, d=provider), opened(side, marshal=counted.marshal) as device:
        assert isinstance(await error_of(side.send(device, of([1]))), LdmError)
        await trio.lowlevel.checkpoint()
