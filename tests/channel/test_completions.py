"""Completion handlers: each is called exactly once, whatever happens, by both APIs and on each path."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from support import Gated, Plain, fail_with

import ldmfs
import ldmfs.aio
from ldmfs import (
    Device,
    HandleClosed,
    InvalidRequest,
    LdmError,
    NotSupported,
    ProviderDied,
    ProviderFailed,
    QueueFull,
    Reply,
    Request,
    RequestCancelled,
    RequestType,
)
from ldmfs.consumer.local import Here
from ldmfs.core.wire import Limit

from .served import MIB, Completions, Side, Trio, error_of, opened, served, until

CALL, READ = RequestType.CALL, RequestType.READ

MANY = 1000


@contextlib.contextmanager
def in_this_container(box: Any) -> Iterator[None]:
    """Make the container that of this process, so that its devices are local."""
    Here.current = Here(box.root, box.container.registry, box.container.dispatch)
    try:
        yield
    finally:
        Here.current = None


@pytest.fixture(params=["channel", "local"])
def local(request: pytest.FixtureRequest) -> bool:
    """Tell whether the consumer is in the device's own container."""
    return bool(request.param == "local")


@contextlib.asynccontextmanager
async def device_of(side: Side, local: bool, device: Device, **more: Any) -> AsyncIterator[tuple[Any, Any]]:
    """Give a container with a device, and the device as it was opened."""
    async with served(side.root, d=device) as box:
        with in_this_container(box) if local else contextlib.nullcontext():
            async with opened(side, **more) as it:
                yield box, it


# -- what it is called with


async def test_it_gets_its_context_and_the_reply(side: Side, local: bool) -> None:
    done = Completions()
    async with device_of(side, local, Plain()) as (_, device):
        await side.soon(device, b"hello", done, "context")
        assert await done.wait() == [("context", b"HELLO")]


async def test_it_gets_a_reply_for_a_request(side: Side, local: bool) -> None:
    done = Completions()
    async with device_of(side, local, Plain()) as (_, device):
        await side.soon(device, Request(CALL, b"hello"), done)
        reply = await done.only()
    assert type(reply) is Reply
    assert bytes(reply.data) == b"HELLO"


@pytest.mark.parametrize("size", [100_000, 4 * MIB])
async def test_it_gets_large_data_whole(side: Side, local: bool, blocks: int, size: int) -> None:
    done = Completions()
    async with device_of(side, local, Plain(), blocks=blocks) as (_, device):
        await side.soon(device, b"a" * size, done)
        assert await done.only() == b"A" * size


async def test_it_gets_the_handlers_error(side: Side, local: bool) -> None:
    done = Completions()
    async with device_of(side, local, Plain(fail_with(InvalidRequest("bad")))) as (_, device):
        await side.soon(device, b"x", done)
        error = await done.only()
    assert (type(error), str(error)) == (InvalidRequest, "bad")


@pytest.mark.logs
async def test_it_gets_an_error_for_a_bug_of_the_handler(side: Side, local: bool) -> None:
    done = Completions()
    async with device_of(side, local, Plain(fail_with(ZeroDivisionError()))) as (_, device):
        await side.soon(device, b"x", done)
        assert isinstance(await done.only(), ProviderFailed)


async def test_it_gets_an_error_for_a_type_that_is_not_taken(side: Side, local: bool) -> None:
    done = Completions()
    async with device_of(side, local, Plain(accepts=frozenset({CALL}))) as (_, device):
        await side.soon(device, Request(READ), done)
        assert isinstance(await done.only(), NotSupported)


# -- that it is called once


@pytest.mark.parametrize("thread", [None, False, True], ids=["async", "inline", "thread"])
async def test_each_of_many_is_called_once(side: Side, local: bool, thread: bool | None) -> None:
    done = Completions()
    device = Gated() if thread is None else Plain(thread=thread)
    if isinstance(device, Gated):
        device.gate.set()
    async with device_of(side, local, device) as (_, it):
        for number in range(300):
            await side.soon(it, b"%d" % number, done, number)
        seen = await done.wait(300)
    assert sorted(seen) == [(number, b"%d" % number) for number in range(300)]


async def test_sending_returns_before_the_reply_is_there(side: Side, local: bool) -> None:
    done, gated = Completions(), Gated()
    async with device_of(side, local, gated) as (_, device):
        await side.soon(device, b"hello", done)
        await until(lambda: gated.started)
        assert not done.seen
        gated.gate.set()
        assert await done.only() == b"HELLO"


async def test_requests_that_fill_the_socket_reach_the_provider(side: Side, blocks: int) -> None:
    done, gated = Completions(), Gated()
    async with device_of(side, False, gated, blocks=blocks) as (_, device):
        for number in range(100):
            await side.soon(device, bytes(100_000), done, number)
        await until(lambda: gated.started == 100, "the start of each")
        gated.gate.set()
        await done.wait(100)


async def test_each_of_a_thousand_gets_its_error_when_the_provider_goes(side: Side, blocks: int) -> None:
    done, gated = Completions(), Gated()
    async with device_of(side, False, gated, blocks=blocks) as (box, device):
        for number in range(MANY):
            await side.soon(device, bytes(100_000 if number < 20 else 10), done, number)
        await until(lambda: gated.started == MANY)
        box.end()
        seen = await done.wait(MANY)
    assert sorted(context for context, _ in seen) == list(range(MANY))
    assert {type(outcome) for _, outcome in seen} == {ProviderDied}


async def test_each_gets_its_error_when_the_device_is_closed(side: Side, local: bool) -> None:
    done, gated = Completions(), Gated()
    async with device_of(side, local, gated) as (_, device):
        for number in range(50):
            await side.soon(device, b"x", done, number)
        await until(lambda: gated.started == 50)
        await side.close(device)
        seen = await done.wait(50)
    assert sorted(context for context, _ in seen) == list(range(50))
    assert {type(outcome) for _, outcome in seen} == {RequestCancelled}
    assert (gated.cancelled, len(gated.closed)) == (50, 1)


async def test_closing_right_behind_the_request_ends_it_once(side: Side, local: bool) -> None:
    done = Completions()
    async with device_of(side, local, Gated()):
        for number in range(20):
            device = await side.open()
            await side.soon(device, b"x", done, number)
            await side.close(device)
        seen = await done.wait(20)
    assert sorted(context for context, _ in seen) == list(range(20))
    assert {type(outcome) for _, outcome in seen} <= {RequestCancelled, HandleClosed}


async def test_a_request_that_is_refused_at_the_entrance_is_an_error_and_no_call(side: Side) -> None:
    done, gated = Completions(), Gated()
    async with device_of(side, False, gated) as (_, device):
        refused: list[LdmError] = []
        for number in range(Limit.MAX_OUTSTANDING + 10):
            try:
                await side.soon(device, b"x", done, number)
            except QueueFull as error:
                refused.append(error)
        assert len(refused) == 10
        gated.gate.set()
        await done.wait(Limit.MAX_OUTSTANDING)


async def test_the_arena_of_a_request_that_is_refused_is_there_for_the_next_one(side: Side) -> None:
    done, gated = Completions(), Gated()
    async with device_of(side, False, gated) as (_, device):
        for number in range(Limit.MAX_OUTSTANDING):
            await side.soon(device, b"x", done, number)
        assert isinstance(await error_of(side.soon(device, bytes(MIB), done)), QueueFull)
        gated.gate.set()
        await done.wait(Limit.MAX_OUTSTANDING)
        assert await side.send(device, bytes(MIB)) == bytes(MIB)


async def test_a_closed_device_refuses_and_calls_nobody(side: Side, local: bool) -> None:
    done = Completions()
    async with device_of(side, local, Plain()) as (_, device):
        await side.close(device)
        assert isinstance(await error_of(side.soon(device, b"x", done)), HandleClosed)
        await done.wait(0)


async def test_it_is_called_when_the_run_ends_first(tmp_path: Path) -> None:
    done, gated = Completions(), Gated()

    async def main() -> None:
        async with served(tmp_path, d=gated) as box, opened(Trio(tmp_path)) as device:
            await ldmfs.aio.send_request(device, b"x", done, "context")
            await until(lambda: gated.started)
            box.end()

    await trio.to_thread.run_sync(trio.run, main)
    ((context, error),) = done.seen
    assert context == "context"
    assert isinstance(error, LdmError)


# -- what it may do


@pytest.mark.logs
async def test_what_it_raises_is_logged_and_harms_nobody(
    side: Side, local: bool, caplog: pytest.LogCaptureFixture
) -> None:
    done = Completions()

    def bad(_context: object, _outcome: object) -> None:
        raise ZeroDivisionError("its own fault")

    async with device_of(side, local, Plain()) as (_, device):
        await side.soon(device, b"x", bad)
        await side.soon(device, b"hello", done)
        assert await done.only() == b"HELLO"
        assert await side.send(device, b"still") == b"STILL"
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["its own fault"]


async def test_in_a_thread_it_may_send_another_request_and_wait(tmp_path: Path, local: bool) -> None:
    from .served import Blocking

    side, done = Blocking(tmp_path), Completions()
    async with device_of(side, local, Plain(thread=True)) as (_, device):

        def again(context: object, outcome: bytes) -> None:
            done(context, ldmfs.send_request(device, outcome + b" again"))

        await side.soon(device, b"hello", again, 1)
        assert await done.wait() == [(1, b"HELLO AGAIN")]


async def test_it_may_send_another_request_with_a_completion_handler(side: Side, local: bool) -> None:
    done = Completions()
    rounds = 30
    async with device_of(side, local, Plain()) as (_, device), trio.open_nursery() as nursery:

        def again(number: int, outcome: bytes) -> None:
            done(number, outcome)
            if number < rounds:
                if side.name == "blocking":
                    ldmfs.send_request(device, b"%d" % number, again, number + 1)
                else:
                    nursery.start_soon(ldmfs.aio.send_request, device, b"%d" % number, again, number + 1)

        await side.soon(device, b"0", again, 1)
        seen = await done.wait(rounds)
    assert [number for number, _ in seen] == list(range(1, rounds + 1))


async def test_it_may_close_the_device(side: Side) -> None:
    closed = threading.Event()
    plain = Plain()
    async with device_of(side, False, plain) as (box, device), trio.open_nursery() as nursery:

        def close(_context: object, _outcome: object) -> None:
            if side.name == "blocking":
                ldmfs.close_device(device)
                closed.set()
            else:
                nursery.start_soon(side.close, device)
                closed.set()

        await side.soon(device, b"x", close)
        await until(closed.is_set)
        await box.without_consumers()
    assert [what for what, _ in plain.calls] == ["open", "request", "close"]


async def test_a_waiting_request_and_one_with_a_handler_do_not_hold_up_each_other(side: Side) -> None:
    class Half(Gated):
        async def request(self, consumer_id: int, request: Request) -> Any:
            return await super().request(consumer_id, request) if request.data == b"wait" else b"at once"

    half, done = Half(), Completions()
    async with device_of(side, False, half) as (_, device), trio.open_nursery() as nursery:
        nursery.start_soon(side.send, device, b"wait")
        await until(lambda: half.started == 1)
        await side.soon(device, b"now", done)
        assert await done.only() == b"at once"
        await side.soon(device, b"wait", done)
        await until(lambda: half.started == 2)
        assert await side.send(device, b"now") == b"at once"
        half.gate.set()
        await done.wait(2)


async def test_nothing_is_kept_of_what_was_completed(side: Side, blocks: int) -> None:
    class Context:
        alive = 0

        def __init__(self) -> None:
            Context.alive += 1

        def __del__(self) -> None:
            Context.alive -= 1

    called: list[int] = []
    async with device_of(side, False, Plain(), blocks=blocks) as (_, device):
        for _ in range(20):
            await side.soon(device, bytes(100_000), lambda _context, reply: called.append(len(reply)), Context())
        await until(lambda: len(called) == 20)
        await side.send(device, b"one more")
        await until(lambda: gc.collect() >= 0 and Context.alive == 0, "the end of each context")
