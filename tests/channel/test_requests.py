"""Opens, requests and closes over the channel: the same by both APIs, in the arena and inline."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from support import Gated, Plain, fail_with

import ldmfs.aio
from ldmfs import (
    AccessDenied,
    DeviceBusy,
    DeviceLoop,
    HandleClosed,
    InvalidRequest,
    LdmError,
    NoSuchDevice,
    NotServed,
    NotSupported,
    ProviderFailed,
    Reply,
    Request,
    RequestCancelled,
    RequestType,
)
from ldmfs.channel.address import listen
from ldmfs.consumer.tree import channel_socket
from ldmfs.core.wire import Limit

from .served import MIB, Facts, Side, Trio, error_of, opened, served, until

CALL, READ = RequestType.CALL, RequestType.READ


async def test_bytes_are_answered_with_bytes(side: Side, blocks: int) -> None:
    async with served(side.root, d=Plain()), opened(side, blocks=blocks) as device:
        assert await side.send(device, b"hello") == b"HELLO"


async def test_a_request_is_answered_with_a_reply(side: Side, blocks: int) -> None:
    async with served(side.root, d=Plain()), opened(side, blocks=blocks) as device:
        reply = await side.send(device, Request(CALL, b"hello"))
        assert type(reply) is Reply
        assert bytes(reply.data) == b"HELLO"


@pytest.mark.parametrize("size", [0, 1, 100_000, MIB, 16 * MIB], ids=["0", "1", "100 kB", "1 MiB", "16 MiB"])
async def test_data_comes_and_goes_whole(side: Side, blocks: int, size: int) -> None:
    data = bytes(range(251)) * (size // 251) + bytes(size % 251)
    async with served(side.root, d=Facts()), opened(side, blocks=blocks) as device:
        assert await side.send(device, data) == data


async def test_large_data_is_in_the_arena_unless_it_has_to_be_inline(side: Side, blocks: int) -> None:
    facts = Facts()
    async with served(side.root, d=facts), opened(side, blocks=blocks) as device:
        await side.send(device, bytes(MIB))
    assert facts.in_arena == [blocks > 0]


@pytest.mark.parametrize("size", [3, MIB])
async def test_metadata_comes_and_goes(side: Side, blocks: int, size: int) -> None:
    async with served(side.root, d=Facts()), opened(side, blocks=blocks) as device:
        reply = await side.send(device, Request(CALL, bytes(size), metadata=b"about it"))
        assert (len(reply.data), reply.metadata) == (size, b"about it")


async def test_the_longest_metadata_comes_and_goes(side: Side, blocks: int) -> None:
    longest = bytes(Limit.MAX_METADATA)
    async with served(side.root, d=Facts()), opened(side, blocks=blocks) as device:
        assert (await side.send(device, Request(CALL, bytes(MIB), metadata=longest))).metadata == longest


@pytest.mark.parametrize("length", [0, 10, 4 * MIB])
async def test_a_read_gives_the_length_that_it_asks_for(side: Side, blocks: int, length: int) -> None:
    async with served(side.root, d=Facts()), opened(side, blocks=blocks) as device:
        assert len((await side.send(device, Request(READ, length=length))).data) == length


@pytest.mark.parametrize("data", [b"", bytes(MIB)], ids=["small", "large"])
async def test_type_offset_and_length_arrive(side: Side, blocks: int, data: bytes) -> None:
    facts = Facts()
    async with served(side.root, d=facts), opened(side, blocks=blocks) as device:
        await side.send(device, Request(CALL, data, offset=1 << 40, length=77))
    assert (facts.asked[0].type, facts.asked[0].offset, facts.asked[0].length) == (CALL, 1 << 40, 77)


async def test_a_reply_that_is_larger_than_its_block_comes_inline(side: Side) -> None:
    async with served(side.root, d=Plain(lambda request: bytes(request.data) * 30)), opened(side) as device:
        assert await side.send(device, b"0123456789" * 100_000) == b"0123456789" * 100_000 * 30


async def test_a_handler_fills_the_memory_that_the_consumer_reads(side: Side, blocks: int) -> None:
    def answer(request: Request) -> memoryview:
        buffer = request.buffer(len(request.data))
        buffer[:] = request.data
        return buffer[: MIB // 2]

    async with served(side.root, d=Plain(answer)), opened(side, blocks=blocks) as device:
        assert await side.send(device, b"ab" * (MIB // 2)) == b"ab" * (MIB // 4)


async def test_a_handler_gives_back_what_it_got(side: Side, blocks: int) -> None:
    async with served(side.root, d=Plain(lambda request: request.data)), opened(side, blocks=blocks) as device:
        assert await side.send(device, b"ab" * MIB) == b"ab" * MIB


async def test_blocks_are_used_again(side: Side) -> None:
    facts = Facts()
    async with served(side.root, d=facts), opened(side) as device:
        for _ in range(300):
            assert len(await side.send(device, bytes(MIB))) == MIB
    assert all(facts.in_arena)


async def test_a_reply_stays_as_it_is_while_it_is_held(side: Side, blocks: int) -> None:
    async with served(side.root, d=Facts()), opened(side, blocks=blocks) as device:
        first = await side.send(device, Request(CALL, b"1" * MIB))
        await side.send(device, b"2" * MIB)
        assert bytes(first.data) == b"1" * MIB


# -- how handlers are run


@pytest.mark.parametrize("thread", [False, True], ids=["inline", "thread"])
async def test_a_plain_handler_answers(side: Side, blocks: int, thread: bool) -> None:
    async with served(side.root, d=Plain(thread=thread)), opened(side, blocks=blocks) as device:
        assert await side.send(device, b"ab" * MIB) == b"AB" * MIB


async def test_an_async_handler_answers(side: Side, blocks: int) -> None:
    gated = Gated()
    gated.gate.set()
    async with served(side.root, d=gated), opened(side, blocks=blocks) as device:
        assert await side.send(device, b"ab" * MIB) == b"AB" * MIB


async def test_a_slow_handler_does_not_hold_up_another_consumer(side: Side, blocks: int) -> None:
    gated = Gated()
    async with (
        served(side.root, slow=gated, fast=Plain()), trio.open_nursery() as nursery,
        opened(side, "box/slow", blocks=blocks) as slow, opened(side, "box/fast", blocks=blocks) as fast,
    ):  # fmt: skip
        nursery.start_soon(side.send, slow, b"wait")
        await _started(gated)
        assert await side.send(fast, b"hello") == b"HELLO"
        gated.gate.set()


async def test_a_slow_handler_does_not_hold_up_the_same_consumer(side: Side) -> None:
    class Half(Gated):
        async def request(self, consumer_id: int, request: Request) -> bytes:
            return await super().request(consumer_id, request) if bytes(request.data) == b"wait" else b"at once"

    half = Half()
    async with served(side.root, d=half), trio.open_nursery() as nursery, opened(side) as device:
        nursery.start_soon(side.send, device, b"wait")
        await _started(half)
        assert await side.send(device, b"now") == b"at once"
        half.gate.set()


async def test_replies_come_in_any_order(side: Side) -> None:
    gates = {b"1": trio.Event(), b"2": trio.Event()}
    ended: list[bytes] = []

    class Each(Gated):
        async def request(self, consumer_id: int, request: Request) -> bytes:
            self.started += 1
            await gates[bytes(request.data)].wait()
            return bytes(request.data)

    each = Each()

    async def send(device: object, data: bytes) -> None:
        ended.append(await side.send(device, data))

    async with served(side.root, d=each), opened(side) as device, trio.open_nursery() as nursery:
        nursery.start_soon(send, device, b"1")
        nursery.start_soon(send, device, b"2")
        await _started(each, 2)
        gates[b"2"].set()
        while not ended:
            await trio.sleep(0.001)
        gates[b"1"].set()
    assert ended == [b"2", b"1"]


# -- errors


@pytest.mark.parametrize("error", [LdmError("no", errno=5), InvalidRequest("bad"), DeviceBusy("later")])
async def test_the_handlers_error_is_the_requests(side: Side, error: LdmError) -> None:
    async with served(side.root, d=Plain(fail_with(error))), opened(side) as device:
        raised = await error_of(side.send(device, b"x"))
        assert (raised.errno, str(raised)) == (error.errno, str(error))
        assert error.errno == 5 or type(raised) is type(error)


@pytest.mark.logs
@pytest.mark.parametrize("error", [ZeroDivisionError(), SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_a_bug_of_the_handler_is_a_failure_of_the_provider(side: Side, error: BaseException) -> None:
    async with served(side.root, d=Plain(fail_with(error)), other=Plain()), opened(side) as device:
        assert isinstance(await error_of(side.send(device, b"x")), ProviderFailed)
        async with opened(side, "box/other") as other:
            assert await side.send(other, b"hello") == b"HELLO"


@pytest.mark.logs
@pytest.mark.parametrize("reply", [42, "text", Reply("text"), Reply(b"", "text"), Reply(b"", None)], ids=repr)  # type: ignore[arg-type]
async def test_a_reply_that_is_none_is_a_failure_of_the_provider(side: Side, reply: object) -> None:
    async with served(side.root, d=Plain(lambda _: reply)), opened(side) as device:
        assert isinstance(await error_of(side.send(device, b"x")), ProviderFailed)
        assert isinstance(await error_of(side.send(device, bytes(MIB))), ProviderFailed)


async def test_a_type_that_the_device_does_not_take_is_refused(side: Side) -> None:
    async with served(side.root, d=Plain(accepts=frozenset({CALL}))), opened(side) as device:
        assert isinstance(await error_of(side.send(device, Request(READ))), NotSupported)
        assert await side.send(device, b"hello") == b"HELLO"


async def test_what_is_no_request_is_refused(side: Side) -> None:
    async with served(side.root, d=Plain()), opened(side) as device:
        assert isinstance(await error_of(side.send(device, "text")), InvalidRequest)


@pytest.mark.parametrize(
    "request_", [Request(READ, offset=-1), Request(READ, length=-1), Request(READ, offset=1 << 63)]
)
async def test_numbers_out_of_range_are_refused(side: Side, request_: Request) -> None:
    async with served(side.root, d=Plain()), opened(side) as device:
        assert isinstance(await error_of(side.send(device, request_)), InvalidRequest)
        assert await side.send(device, b"hello") == b"HELLO"


# -- opening and closing


async def test_an_open_runs_the_open_handler_and_tells_of_the_device(side: Side) -> None:
    plain = Plain(accepts=frozenset({CALL}))
    async with served(side.root, d=plain), opened(side) as device:
        assert plain.calls == [("open", device.consumer_id)]
        assert (device.name, device.kind, device.size) == ("box/d", "message", 0)
        assert device.accepts == frozenset({CALL})


async def test_a_close_returns_when_the_close_handler_has_run(side: Side) -> None:
    plain = Plain()
    async with served(side.root, d=plain):
        device = await side.open()
        await side.close(device)
        assert plain.calls == [("open", device.consumer_id), ("close", device.consumer_id)]


async def test_a_second_close_does_nothing(side: Side) -> None:
    plain = Plain()
    async with served(side.root, d=plain):
        device = await side.open()
        await side.close(device)
        await side.close(device)
        assert len(plain.calls) == 2


async def test_a_closed_device_takes_no_request(side: Side) -> None:
    async with served(side.root, d=Plain()):
        device = await side.open()
        await side.close(device)
        assert isinstance(await error_of(side.send(device, b"x")), HandleClosed)


async def test_two_opens_are_two_consumers(side: Side) -> None:
    async with served(side.root, d=Plain()), opened(side) as one, opened(side) as two:
        assert one.consumer_id != two.consumer_id


async def test_a_close_ends_what_is_outstanding(side: Side) -> None:
    gated, ended = Gated(), []
    async with served(side.root, d=gated), trio.open_nursery() as nursery:
        device = await side.open()

        async def send() -> None:
            ended.append(await error_of(side.send(device, b"x")))

        nursery.start_soon(send)
        await _started(gated)
        await side.close(device)
        assert gated.closed == [device.consumer_id]
    assert isinstance(ended[0], RequestCancelled)


async def test_an_open_that_the_handler_refuses_is_no_consumer(side: Side) -> None:
    plain = Plain()
    plain.open = fail_with(AccessDenied("not you"))  # type: ignore[assignment]
    async with served(side.root, d=plain) as box:
        assert str(await error_of(side.open())) == "not you"
        assert not box.consumers
    assert plain.calls == []


async def test_a_device_that_is_not_there_is_refused(side: Side) -> None:
    async with served(side.root, d=Plain()):
        error = await error_of(side.open("box/other"))
    assert isinstance(error, NoSuchDevice)
    assert "no device 'other'" in str(error)


async def test_a_container_that_is_not_there_is_refused(side: Side) -> None:
    async with served(side.root, d=Plain()):
        error = await error_of(side.open("nobox/d"))
    assert isinstance(error, NoSuchDevice)
    assert "no container 'nobox'" in str(error)


async def test_a_tree_that_is_not_there_is_named(side: Side) -> None:
    error = await error_of(side.open(root=side.root / "nowhere"))
    assert isinstance(error, NoSuchDevice)
    assert "no tree is mounted" in str(error)


async def test_a_socket_that_nobody_serves_is_told_from_a_container_that_is_not_there(side: Side) -> None:
    socket = channel_socket(side.root, "box")
    socket.parent.mkdir(parents=True)
    listen(socket).close()
    assert isinstance(await error_of(side.open()), NotServed)


@pytest.mark.parametrize("name", ["box", "box/", "/d", "box/d/e", "box/..", "box/\0"])
async def test_a_name_that_is_none_is_refused(side: Side, name: str) -> None:
    assert isinstance(await error_of(side.open(name)), InvalidRequest)


async def test_the_path_of_the_file_names_the_device(side: Side) -> None:
    async with served(side.root, d=Plain()), opened(side, str(side.root / "box/d")) as device:
        assert device.name == "box/d"


async def test_a_cycle_is_refused(side: Side) -> None:
    async with served(side.root, d=Plain()):
        assert isinstance(await error_of(side.open(chain=("a/a", "box/d", "b/b"))), DeviceLoop)


async def test_the_provider_is_told_on_whose_behalf(side: Side) -> None:
    async with served(side.root, d=Plain()) as box, opened(side, chain=("a/a", "b/b")) as device:
        peer = box.container.registry.consumers[device.consumer_id].peer
        assert (peer.path, peer.chain) == ("channel", ("a/a", "b/b"))


async def test_a_device_with_a_consumer_cannot_be_destroyed(side: Side) -> None:
    async with served(side.root, d=Plain()) as box:
        async with opened(side):
            with pytest.raises(DeviceBusy):
                box.container.destroy_device("d")
        box.container.destroy_device("d")


@pytest.mark.parametrize("depth", [1, 20])
async def test_the_root_may_have_a_long_path(tmp_path: Path, side: Side, depth: int) -> None:
    side.root = tmp_path.joinpath(*["a-directory-with-a-long-name"] * depth)
    async with served(side.root, d=Plain()), opened(side) as device:
        assert await side.send(device, b"hello") == b"HELLO"


async def test_a_container_may_have_a_long_name(side: Side) -> None:
    async with served(side.root, "n" * 255, d=Plain()), opened(side, "n" * 255 + "/d") as device:
        assert await side.send(device, b"hello") == b"HELLO"


# -- cancelling


@pytest.mark.parametrize("data", [b"x", bytes(MIB)], ids=["small", "large"])
async def test_cancelling_the_caller_cancels_the_handler(tmp_path: Path, blocks: int, data: bytes) -> None:
    gated, side = Gated(), Trio(tmp_path)
    async with served(tmp_path, d=gated), opened(side, blocks=blocks) as device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.send, device, data)
            await _started(gated)
            nursery.cancel_scope.cancel()
        await until(lambda: gated.cancelled)
        gated.gate.set()
        assert await side.send(device, b"hello") == b"HELLO"
    assert gated.cancelled == 1


async def test_cancelling_one_request_leaves_the_others(tmp_path: Path) -> None:
    gated, side, replies = Gated(), Trio(tmp_path), []
    async with served(tmp_path, d=gated), opened(side) as device, trio.open_nursery() as nursery:

        async def send() -> None:
            replies.append(await side.send(device, b"other"))

        nursery.start_soon(send)
        with trio.move_on_after(0.05):
            await side.send(device, b"x")
        await until(lambda: gated.cancelled)
        gated.gate.set()
    assert (replies, gated.cancelled) == ([b"OTHER"], 1)


async def test_a_cancelled_open_is_as_if_never_opened(tmp_path: Path) -> None:
    class SlowOpen(Plain):
        async def open(self, consumer_id: int) -> None:  # type: ignore[override]
            await trio.sleep_forever()

    plain = SlowOpen()
    async with served(tmp_path, d=plain) as box:
        with trio.move_on_after(0.05):
            await ldmfs.aio.open_device("box/d", root=tmp_path)
        await box.without_consumers()
    assert plain.calls == []


async def test_an_open_that_was_cancelled_too_late_is_closed(tmp_path: Path) -> None:
    plain, scope = Plain(), trio.CancelScope()

    def open(consumer_id: int) -> None:
        plain.calls.append(("open", consumer_id))
        scope.cancel()

    plain.open = open  # type: ignore[method-assign]
    async with served(tmp_path, d=plain) as box:
        with scope:
            await Trio(tmp_path).open()
        assert scope.cancelled_caught
        await box.without_consumers()
    assert plain.calls == [("open", 1), ("close", 1)]


async def test_a_close_is_not_cancelled(tmp_path: Path) -> None:
    class SlowClose(Plain):
        async def close(self, consumer_id: int) -> None:  # type: ignore[override]
            await trio.sleep(0.01)
            super().close(consumer_id)

    plain, side = SlowClose(), Trio(tmp_path)
    async with served(tmp_path, d=plain):
        device = await side.open()
        with trio.CancelScope() as scope:
            scope.cancel()
            await side.close(device)
        assert plain.calls[-1] == ("close", device.consumer_id)


async def _started(gated: Gated, times: int = 1) -> None:
    while gated.started < times:
        await trio.sleep(0.001)
