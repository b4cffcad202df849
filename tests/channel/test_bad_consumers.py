"""Consumers that send what they must not: their request or their connection ends, and nothing else."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support import Gated, Plain

from ldmfs.channel.memory import SEALS
from ldmfs.core.blocks import Area, BlockHeader
from ldmfs.core.events import ArenaGone, Failed, Replied
from ldmfs.core.extents import Extent
from ldmfs.core.wire import BLOCK, HEADER, FrameKind, Limit, encode, pack

from .raw import CALL, RawPeer, call, closing, raw, user
from .served import MIB, Served, Trio, descriptors, opened, served, until


async def serves_on(box: Served) -> None:
    """Assert that somebody else is served."""
    async with user(box) as other:
        assert await other.works()


# -- packets


@pytest.mark.parametrize(
    "packet",
    [b"x", b"GET / HTTP/1.1\r\n\r\n" + bytes(100), bytes(HEADER.size), b"\xff" * 1000, bytes(Limit.MAX_FRAME)],
    ids=["short", "text", "zeros", "ones", "long"],
)
@pytest.mark.parametrize("greeted", [False, True], ids=["first", "later"])
async def test_garbage_ends_the_connection(tmp_path: Path, packet: bytes, greeted: bool) -> None:
    async with served(tmp_path, d=Plain()) as box:
        async with raw(box) as peer:
            if greeted:
                await peer.greet()
            await peer.send(packet)
            assert (await peer.ended())[0] == FrameKind.ERROR
        await serves_on(box)


async def test_garbage_closes_the_consumers_of_its_connection_and_no_others(tmp_path: Path) -> None:
    plain = Plain()
    async with served(tmp_path, d=plain) as box, user(box) as good:
        async with user(box) as bad:
            await bad.send(b"garbage")
            await bad.ended()
            await until(lambda: ("close", bad.consumer_id) in plain.calls)
        assert ("close", good.consumer_id) not in plain.calls
        assert await good.works()


async def test_garbage_cancels_what_is_outstanding(tmp_path: Path) -> None:
    gated = Gated()
    async with served(tmp_path, d=gated) as box, user(box) as bad:
        await bad.send(*bad.machine.request(bad.consumer_id, CALL, b"x")[1])
        await until(lambda: gated.started)
        await bad.send(b"garbage")
        await bad.ended()
        await box.without_consumers()
    assert (gated.cancelled, gated.closed) == (1, [bad.consumer_id])


@pytest.mark.parametrize("seed", range(8))
async def test_random_frames_end_their_connection_at_most(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    numbers = [0, 1, 2, 3, 77, 65535, (1 << 32) - 1, (1 << 63) - 1]

    def frame(consumer_id: int) -> bytes:
        data, metadata = bytes(chance.choice([0, 5, 300])), bytes(chance.choice([0, 0, 7]))
        small = [number for number in numbers if number < 1 << 16]
        return pack(
            chance.randrange(15), chance.randrange(8), chance.choice([0, 0, 1, 2]), chance.choice([0, 5]),
            chance.choice(numbers), chance.choice([consumer_id, chance.choice(numbers)]), chance.choice(numbers),
            chance.choice(numbers), len(data) if chance.random() < 0.9 else 9, len(metadata),
            chance.choice([0, 1, 2]), chance.choice(small), chance.choice(small),
        ) + data + metadata  # fmt: skip

    async with served(tmp_path, d=Plain()) as box:
        for _ in range(30):
            async with user(box) as bad:
                try:
                    for _ in range(20):
                        await bad.send(frame(bad.consumer_id))
                except (BrokenPipeError, ConnectionResetError):
                    pass
        await box.without_consumers()
        await serves_on(box)


async def test_a_packet_without_a_byte_ends_the_connection(tmp_path: Path) -> None:
    async with served(tmp_path, d=Plain()) as box, user(box) as bad:
        await bad.send(b"")
        await bad.ended()
        await serves_on(box)


async def test_a_packet_that_is_longer_than_a_frame_ends_the_connection(tmp_path: Path) -> None:
    async with served(tmp_path, d=Plain()) as box, user(box) as bad:
        await bad.send(bytes(Limit.MAX_FRAME + 1))
        assert (await bad.ended())[0] == FrameKind.ERROR
        await serves_on(box)


async def test_another_consumers_id_ends_the_connection(tmp_path: Path) -> None:
    plain = Plain()
    async with served(tmp_path, d=plain) as box, user(box) as good:
        async with user(box) as bad:
            await bad.send(pack(FrameKind.REQUEST, CALL, 0, 0, 99, good.consumer_id, 0, 0, 0, 0, 0, 0, 0))
            assert b"not open" in await bad.ended()
        assert await good.works()


async def test_a_consumer_that_leaves_in_the_middle_of_a_message_is_forgotten(tmp_path: Path) -> None:
    plain = Plain()
    async with served(tmp_path, d=plain) as box:
        async with user(box) as bad:
            frames = bad.machine.request(bad.consumer_id, CALL, bytes(MIB))[1]
            await bad.send(*frames[:3])
        await box.without_consumers()
        await serves_on(box)
    assert ("close", bad.consumer_id) in plain.calls


async def test_more_than_as_many_as_may_be_end_the_connection(tmp_path: Path) -> None:
    gated = Gated()
    async with served(tmp_path, d=gated) as box, user(box) as bad:
        for id in range(100, 101 + Limit.MAX_OUTSTANDING):
            await bad.send(pack(FrameKind.REQUEST, CALL, 0, 0, id, bad.consumer_id, 0, 0, 0, 0, 0, 0, 0))
        assert b"outstanding" in await bad.ended()
        await box.without_consumers()
    assert gated.started == gated.cancelled


# -- a consumer that never reads


async def fill(peer: RawPeer) -> None:
    """Send requests until the socket has no room for another."""
    with trio.move_on_after(0.2):
        while True:
            await peer.send(*peer.machine.request(peer.consumer_id, CALL, b"x")[1])


@pytest.mark.parametrize("thread", [False, True], ids=["inline", "thread"])
async def test_a_consumer_that_never_reads_does_not_hold_up_others(tmp_path: Path, thread: bool) -> None:
    plain = Plain(lambda request: bytes(100_000), thread=thread)
    async with served(tmp_path, d=plain, other=Plain()) as box, user(box) as bad, user(box, "other") as good:
        await fill(bad)
        assert await good.works()


async def test_a_consumer_that_never_reads_costs_no_time(tmp_path: Path) -> None:
    async with served(tmp_path, d=Plain(lambda request: bytes(100_000))) as box, user(box) as bad:
        await fill(bad)
        with trio.fail_after(5):
            await trio.testing.wait_all_tasks_blocked(0.02)


async def test_a_consumer_that_never_reads_is_not_read_either(tmp_path: Path) -> None:
    plain = Plain(lambda request: bytes(100_000))
    async with served(tmp_path, d=plain) as box, user(box) as bad:
        await fill(bad)
        assert len(plain.calls) < 20  # replies of 100 kB are in the socket, and one waits for room


async def test_a_consumer_that_reads_late_gets_all_replies(tmp_path: Path) -> None:
    async with served(tmp_path, d=Plain(lambda request: bytes(100_000))) as box, user(box) as late:
        for _ in range(50):
            await late.send(*late.machine.request(late.consumer_id, CALL, b"x")[1])
        for _ in range(50):
            event = await late.receive()
            assert isinstance(event, Replied)
            assert len(event.reply.data) == 100_000


async def test_a_consumer_that_never_read_is_closed_when_it_leaves(tmp_path: Path) -> None:
    async with served(tmp_path, d=Plain(lambda request: bytes(100_000))) as box:
        async with user(box) as bad:
            await fill(bad)
        await box.without_consumers()


# -- descriptors


@pytest.fixture
def null() -> Iterator[int]:
    """Give a descriptor of /dev/null."""
    with closing(os.open("/dev/null", os.O_RDWR)) as fd:
        yield fd


@pytest.mark.parametrize("count", [1, 8, 9, 200])
async def test_descriptors_that_nobody_asked_for_are_not_even_received(tmp_path: Path, null: int, count: int) -> None:
    async with served(tmp_path, d=Plain()) as box, user(box) as bad:
        before = descriptors()
        frame = bad.machine.request(bad.consumer_id, CALL, b"x")[1]
        await bad.send(*frame, descriptors=(null,) * count)
        assert (await bad.receive()).reply.data == b"X"
        assert descriptors() == before


@pytest.mark.parametrize("count", [0, 2, 8, 9])
async def test_an_arena_with_another_number_of_descriptors_ends_the_connection(
    tmp_path: Path, null: int, count: int
) -> None:
    async with served(tmp_path, d=Plain()) as box, user(box) as bad:
        await bad.send(*bad.machine.arena(MIB, 4)[1], descriptors=(null,) * count)
        assert (await bad.ended())[0] == FrameKind.ERROR
        await serves_on(box)


def unsealed() -> int:
    fd = os.memfd_create("bad", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    return fd


def too_small() -> int:
    fd = os.memfd_create("bad", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB // 2)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


def not_writable() -> int:
    fd = os.memfd_create("bad", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS | fcntl.F_SEAL_WRITE)
    return fd


def no_memory() -> int:
    return os.open("/dev/null", os.O_RDWR)


@pytest.mark.parametrize("make", [unsealed, too_small, not_writable, no_memory], ids=lambda make: make.__name__)
async def test_an_arena_that_cannot_be_used_is_refused_and_the_connection_goes_on(tmp_path: Path, make: Any) -> None:
    async with served(tmp_path, d=Plain()) as box, user(box) as bad:
        with closing(make()) as fd:
            before = descriptors()
            arena, frames = bad.machine.arena(MIB, 4)
            await bad.send(*frames, descriptors=(fd,))
            assert await bad.receive() == ArenaGone(arena)
            assert descriptors() == before
        assert await bad.works()


async def test_descriptors_with_a_packet_of_no_bytes_are_closed(tmp_path: Path) -> None:
    async with served(tmp_path, d=Plain()) as box, user(box) as bad:
        with closing(no_memory()) as fd:
            before = descriptors()
            about, memory = bad.machine.arena(MIB, 4)[1]
            await bad.send(about)
            await bad.send(b"", descriptors=(fd,) * 3)
            await bad.send(memory)
            assert (await bad.ended())[0] == FrameKind.ERROR
            await until(lambda: descriptors() == before - 1)  # the provider's end of the connection


async def test_a_request_in_an_arena_that_was_refused_fails_alone(tmp_path: Path) -> None:
    async with served(tmp_path, d=Plain()) as box, user(box) as bad:
        with closing(no_memory()) as fd:
            arena, frames = bad.machine.arena(MIB, 4)
            await bad.send(*frames, *bad.in_block(arena), descriptors=(fd,))
        assert await bad.receive() == ArenaGone(arena)
        assert await bad.fails() == errno.EPROTO
        assert await bad.works()


@pytest.mark.parametrize(("size", "blocks"), [(0, 1), (MIB, 0), (BLOCK.size, 2), (1 << 40, 4), (MIB, 65535)])
async def test_sizes_that_no_arena_can_have_end_the_connection(tmp_path: Path, size: int, blocks: int) -> None:
    async with served(tmp_path, d=Plain()) as box, user(box) as bad:
        with closing(unsealed()) as fd:
            await bad.send(*encode(FrameKind.ARENA, arena=1, length=size, blocks=blocks), descriptors=(fd,))
        assert (await bad.ended())[0] == FrameKind.ERROR
        await serves_on(box)


async def test_a_block_outside_of_the_arena_ends_the_connection(tmp_path: Path) -> None:
    async with served(tmp_path, d=Plain()) as box, user(box) as bad:
        shared, arena = await bad.share()
        await bad.send(pack(FrameKind.REQUEST, CALL, 1, 0, 99, bad.consumer_id, 0, 0, 0, 0, arena, 3, 2))
        assert (await bad.ended())[0] == FrameKind.ERROR
        await serves_on(box)
        shared.close()


async def test_the_memory_of_an_arena_is_given_back_at_the_end(tmp_path: Path) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("ldmfs-arena")

    async with served(tmp_path, d=Plain()) as box:
        before, open_before = mapped(), descriptors()
        async with user(box) as peer:
            shared, _ = await peer.share()
            assert await peer.works()
            assert mapped() == before + 2  # the provider's and the consumer's
        shared.close()
        await until(lambda: mapped() == before)
        await until(lambda: descriptors() == open_before)


# -- headers in shared memory

BEGIN = 4 * BLOCK.size
GOOD_AREA = Area(BEGIN, 4096, 4096)
HUGE = (1 << 64) - 8

BAD_HEADERS = {
    "input behind the end": {"input": Extent(MIB - 10, 100)},
    "input far away": {"input": Extent(HUGE, 5)},
    "input of all memory": {"input": Extent(BEGIN, HUGE)},
    "input in the headers": {"input": Extent(0, 100)},
    "metadata behind the end": {"input_metadata": Extent(MIB, 1)},
    "metadata too long": {"input_metadata": Extent(BEGIN, Limit.MAX_METADATA + 1)},
    "area behind the end": {"area": Area(MIB - 10, 4096, 4096)},
    "area far away": {"area": Area(HUGE, 4096, 4096)},
    "area of all memory": {"area": Area(BEGIN, HUGE, HUGE)},
    "area in the headers": {"area": Area(0, 4096, 4096)},
    "input in the output area": {"input": Extent(BEGIN + 4096, 5)},
    "another type": {"type": 1},
    "another consumer": {"consumer_id": 12345},
}


@pytest.mark.parametrize("change", BAD_HEADERS.values(), ids=BAD_HEADERS)
async def test_a_header_that_makes_no_sense_fails_its_request_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    plain = Plain()
    async with served(tmp_path, d=plain) as box, user(box) as bad:
        shared, arena = await bad.share()
        good = BlockHeader(type=CALL, consumer_id=bad.consumer_id, area=GOOD_AREA, input=Extent(BEGIN, 5))
        shared.arena.store(0, good._replace(**change))
        await bad.send(*bad.in_block(arena))
        assert await bad.fails() == errno.EPROTO
        assert await bad.works()
        shared.close()
    assert plain.calls.count(("request", bad.consumer_id)) == 1


async def test_an_output_area_without_room_makes_the_reply_go_inline(tmp_path: Path) -> None:
    async with served(tmp_path, d=Plain()) as box, user(box) as peer:
        shared, arena = await peer.share()
        shared.arena.part(Extent(BEGIN, 5))[:] = b"hello"
        header = BlockHeader(type=CALL, consumer_id=peer.consumer_id, area=Area(0, 0, 0), input=Extent(BEGIN, 5))
        shared.arena.store(0, header)
        await peer.send(*peer.in_block(arena))
        event = await peer.receive()
        assert isinstance(event, Replied)
        assert (event.in_block, event.reply.data) == (False, b"HELLO")
        shared.close()


async def test_a_header_that_changes_under_the_handler_does_not_move_the_reply(tmp_path: Path) -> None:
    gated = Gated()
    async with served(tmp_path, d=gated) as box, user(box) as bad:
        shared, arena = await bad.share()
        shared.arena.part(Extent(BEGIN, 5))[:] = b"hello"
        good = BlockHeader(type=CALL, consumer_id=bad.consumer_id, area=GOOD_AREA, input=Extent(BEGIN, 5))
        shared.arena.store(0, good)
        await bad.send(*bad.in_block(arena))
        await until(lambda: gated.started)
        shared.arena.store(0, BlockHeader(area=Area(HUGE, HUGE, HUGE), input=Extent(HUGE, HUGE)))
        gated.gate.set()
        assert isinstance(await bad.receive(), Replied)
        assert bytes(shared.arena.part(Extent(BEGIN + 4096, 5))) == b"HELLO"
        assert await bad.works()
        shared.close()


async def test_headers_that_change_all_the_time_harm_nobody(tmp_path: Path) -> None:
    stop, chance = threading.Event(), random.Random(1)
    words = [0, 1, 3, 64, BEGIN, MIB - 1, MIB, 1 << 32, HUGE]

    def scribble(memory: Any) -> None:
        while not stop.is_set():
            struct.pack_into("<Q", memory, chance.randrange(0, BLOCK.size - 8), chance.choice(words))

    async with served(tmp_path, d=Plain()) as box, user(box) as bad:
        shared, arena = await bad.share()
        good = BlockHeader(type=CALL, consumer_id=bad.consumer_id, area=GOOD_AREA, input=Extent(BEGIN, 5))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, scribble, shared.mapping)
            for _ in range(300):
                shared.arena.store(0, good)
                await bad.send(*bad.in_block(arena))
                event = await bad.receive()
                assert isinstance(event, Replied) or (isinstance(event, Failed) and event.error.errno == errno.EPROTO)
            stop.set()
        assert await bad.works()
        await serves_on(box)
        shared.close()


async def test_a_good_consumer_is_served_while_a_bad_one_tries_everything(tmp_path: Path) -> None:
    async with served(tmp_path, d=Plain()) as box, opened(Trio(tmp_path)) as device, trio.open_nursery() as nursery:

        async def try_everything() -> None:
            for packet in (b"x", b"\xff" * 500, bytes(Limit.MAX_FRAME), b""):
                async with user(box) as bad:
                    await bad.send(packet)
                    await bad.ended()

        for _ in range(5):
            nursery.start_soon(try_everything)
        for _ in range(100):
            assert (await device.send(call(bytes(MIB // 4)))).data == bytes(MIB // 4)
