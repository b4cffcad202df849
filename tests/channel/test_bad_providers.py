"""Providers that send what they must not, or nothing: their consumers get an error at once, and keep nothing of it."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support import Plain

from ldmfs import LdmError, NotServed, ProviderDied, QueueFull, RequestType
from ldmfs.consumer import blocking
from ldmfs.core.blocks import BlockHeader
from ldmfs.core.errors import ProtocolError
from ldmfs.core.events import RequestReceived
from ldmfs.core.extents import Extent
from ldmfs.core.wire import BLOCK, GREETING, HEADER, MAGIC, MAX_INLINE, OPENED, VERSION, FrameKind, Limit, encode, pack

from .raw import RawContainer, RawProvider, closing, raw_container
from .served import MIB, SECONDS, Completions, Side, Trio, descriptors, opened, served, until

CALL = RequestType.CALL


class Outcome:
    """A call that was started in a task of its own, and what it has come to."""

    def __init__(self, nursery: trio.Nursery, call: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self._ended = trio.Event()
        self._outcome: Any = None
        nursery.start_soon(self._run, call, *args)

    async def _run(self, call: Callable[..., Awaitable[Any]], *args: Any) -> None:
        try:
            self._outcome = await call(*args)
        except LdmError as error:
            self._outcome = error
        self._ended.set()

    async def get(self) -> Any:
        """Return the value or the error."""
        await self._ended.wait()
        return self._outcome


class Asked:
    """A device of a raw provider that was opened, and a request that waits for its reply."""

    def __init__(self, peer: RawProvider, device: Any, reply: Outcome, event: RequestReceived) -> None:
        self.peer = peer
        self.device = device
        self.reply = reply
        self.id = event.id
        self.block = event.block


@contextlib.asynccontextmanager
async def nothing_kept(root: Path) -> AsyncIterator[RawContainer]:
    """Give a raw container; afterwards this process has no more descriptors and arenas than before."""
    before = descriptors(), arenas()
    with raw_container(root) as container, trio.fail_after(SECONDS):
        yield container
    blocking._connections.close()
    gc.collect()  # what was not closed warns now, and a warning is an error
    await until(lambda: (descriptors(), arenas()) == before, f"{before}, not {(descriptors(), arenas())}")


def arenas() -> int:
    """Return how many arenas this process has mapped."""
    return Path("/proc/self/maps").read_text().count("ldmfs-arena")


@contextlib.asynccontextmanager
async def device_of(side: Side, container: RawContainer, nursery: trio.Nursery, **more: Any) -> AsyncIterator[Any]:
    """Give the provider's end of a connection, and a device opened over it; the provider goes before it is closed."""
    opening = Outcome(nursery, open_with(side, more))
    peer = await (await container.accept()).greet()
    await peer.send(*peer.opened(await peer.opens()))
    device = await opening.get()
    try:
        yield peer, device
    finally:
        peer.close()
        await side.close(device)


def open_with(side: Side, more: dict[str, Any]) -> Callable[[], Awaitable[Any]]:
    return lambda: side.open(**more)


@contextlib.asynccontextmanager
async def asked(side: Side, data: bytes = b"x", **more: Any) -> AsyncIterator[Asked]:
    """Give a request that waits for its reply."""
    async with (
        nothing_kept(side.root) as container, trio.open_nursery() as nursery,
        device_of(side, container, nursery, **more) as (peer, device),
    ):  # fmt: skip
        reply = Outcome(nursery, side.send, device, data)
        event = await peer.receive()
        assert isinstance(event, RequestReceived)
        yield Asked(peer, device, reply, event)


def reply_to(
    id: int, data: bytes = b"", *, status: int = 0, flags: int = 0, size: int = -1, metadata: int = 0
) -> bytes:
    """Return a REPLY, of whatever is said."""
    size = len(data) if size < 0 else size
    return pack(FrameKind.REPLY, 0, flags, status, id, 0, 0, 0, size, metadata, 0, 0, 0) + data


# -- the greeting


def welcome(magic: int = MAGIC, version: int = VERSION, name: bytes = b"box") -> bytes:
    return encode(FrameKind.WELCOME, GREETING.struct.pack(magic, version, 1, 1, 1) + name)[0]


GREETINGS = {
    "another version": (welcome(version=VERSION + 1), f"version {VERSION + 1}"),
    "another protocol": (welcome(magic=1), "does not speak this protocol"),
    "a short greeting": (encode(FrameKind.WELCOME, b"short")[0], "a greeting has"),
    "a name that is none": (welcome(name=b"a/b"), "name of a container"),
    "text": (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100), "is not allowed"),
    "a byte": (b"x", "shorter than its header"),
    "the consumer's greeting": (encode(FrameKind.HELLO)[0], "HELLO is not allowed"),
    "a reply": (reply_to(1), "REPLY is not allowed"),
    "an error": (encode(FrameKind.ERROR, b"not today", status=errno.EAGAIN)[0], "not today"),
    "the end": (b"", "ended"),
}


@pytest.mark.parametrize(("packet", "reason"), GREETINGS.values(), ids=GREETINGS)
async def test_a_greeting_that_makes_no_sense_is_told_with_its_reason(side: Side, packet: bytes, reason: str) -> None:
    async with nothing_kept(side.root) as container, trio.open_nursery() as nursery:
        opening = Outcome(nursery, side.open)
        peer = await container.accept()
        await peer.receive()
        if packet:
            await peer.send(packet)
        else:
            peer.close()
        error = await opening.get()
    assert isinstance(error, NotServed | ProtocolError)
    assert reason in str(error)


async def test_after_a_bad_greeting_the_next_open_connects_anew(side: Side) -> None:
    async with nothing_kept(side.root) as container, trio.open_nursery() as nursery:
        opening = Outcome(nursery, side.open)
        await (await container.accept()).send(b"garbage")
        assert isinstance(await opening.get(), LdmError)
        async with device_of(side, container, nursery):
            pass


# -- the answer to an open


def about(kind: int = 1, execution: int = 1, accepts: int = 1 << CALL) -> bytes:
    return OPENED.struct.pack(0, accepts, kind, execution)


OPENS = {
    "consumer 0": lambda id: encode(FrameKind.OPENED, about(), id=id)[0],
    "no such kind": lambda id: encode(FrameKind.OPENED, about(kind=9), id=id, consumer_id=1)[0],
    "kind 0": lambda id: encode(FrameKind.OPENED, about(kind=0), id=id, consumer_id=1)[0],
    "no such execution": lambda id: encode(FrameKind.OPENED, about(execution=9), id=id, consumer_id=1)[0],
    "no such types": lambda id: encode(FrameKind.OPENED, about(accepts=1 << 31), id=id, consumer_id=1)[0],
    "nothing told": lambda id: encode(FrameKind.OPENED, id=id, consumer_id=1)[0],
    "another open": lambda id: encode(FrameKind.OPENED, about(), id=id + 1, consumer_id=1)[0],
    "a reply": reply_to,
    "closed": lambda id: encode(FrameKind.CLOSED, id=id, consumer_id=1)[0],
    "a status out of range": lambda id: reply_to(id, b"no", status=Limit.MAX_ERRNO + 1),
}


@pytest.mark.parametrize("frame", OPENS.values(), ids=OPENS)
async def test_an_open_that_is_answered_with_nonsense_is_a_protocol_error(
    side: Side, frame: Callable[[int], bytes]
) -> None:
    async with nothing_kept(side.root) as container, trio.open_nursery() as nursery:
        opening = Outcome(nursery, side.open)
        peer = await (await container.accept()).greet()
        await peer.send(frame(await peer.opens()))
        assert isinstance(await opening.get(), ProtocolError)
        assert (await peer.ended())[0] == FrameKind.ERROR


async def test_a_consumer_id_that_is_given_twice_is_a_protocol_error(side: Side) -> None:
    async with asked(side) as it, trio.open_nursery() as nursery:
        second = Outcome(nursery, side.open)
        await it.peer.send(encode(FrameKind.OPENED, about(), id=await it.peer.opens(), consumer_id=1)[0])
        assert isinstance(await second.get(), ProtocolError)
        assert isinstance(await it.reply.get(), ProtocolError)


# -- the answer to a request

FRAMES: dict[str, Callable[[int], bytes]] = {
    "a byte": lambda id: b"x",
    "text": lambda id: b"GET / HTTP/1.1\r\n\r\n" + bytes(100),
    "zeros": lambda id: bytes(HEADER.size),
    "ones": lambda id: b"\xff" * 1000,
    "half a header": lambda id: reply_to(id)[: HEADER.size // 2],
    "a frame cut short": lambda id: reply_to(id, b"short", size=100),
    "a frame with bytes behind it": lambda id: reply_to(id, b"longer", size=3),
    "a packet longer than a frame": lambda id: reply_to(id, bytes(MAX_INLINE + 1), size=MAX_INLINE),
    "a reply of 4 GiB": lambda id: reply_to(id, bytes(MAX_INLINE), size=(1 << 32) - 1),
    "metadata of 4 GiB": lambda id: reply_to(id, bytes(MAX_INLINE), metadata=(1 << 32) - 1),
    "too much metadata": lambda id: reply_to(id, bytes(MAX_INLINE), size=0, metadata=MAX_INLINE),
    "a reply to what was never asked": lambda id: reply_to(id + 1000),
    "a reply to 0": lambda id: reply_to(0),
    "a status out of range": lambda id: reply_to(id, b"no", status=Limit.MAX_ERRNO + 1),
    "the highest status": lambda id: reply_to(id, b"no", status=(1 << 32) - 1),
    "a message too long": lambda id: reply_to(id, bytes(Limit.MAX_TEXT + 1), status=errno.EIO),
    "a block that was not asked for": lambda id: reply_to(id, flags=1),
    "unknown flags": lambda id: reply_to(id, flags=0x8000),
    "a continuation of nothing": lambda id: encode(FrameKind.CONTINUE, b"x", id=id)[0],
    "opened": lambda id: encode(FrameKind.OPENED, about(), id=id, consumer_id=7)[0],
    "closed": lambda id: encode(FrameKind.CLOSED, id=id, consumer_id=1)[0],
    "a second greeting": lambda id: welcome(),
    "an arena": lambda id: encode(FrameKind.ARENA, arena=1, length=MIB, blocks=1)[0],
    "an arena gone that never was": lambda id: encode(FrameKind.ARENA_GONE, arena=1)[0],
    "a request": lambda id: encode(FrameKind.REQUEST, id=id, consumer_id=1)[0],
    "an unknown kind": lambda id: encode(200, id=id)[0],
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
async def test_a_request_that_is_answered_with_nonsense_is_a_protocol_error(
    side: Side, frame: Callable[[int], bytes]
) -> None:
    async with asked(side) as it:
        await it.peer.send(frame(it.id))
        error = await it.reply.get()
        assert isinstance(error, ProtocolError)
        last = await it.peer.ended()
        assert last[0] == FrameKind.ERROR
        assert last[HEADER.size :].decode() == str(error)


async def test_an_error_without_a_status_is_a_protocol_error(side: Side) -> None:
    async with asked(side) as it:
        await it.peer.send(encode(FrameKind.ERROR, b"nothing is wrong")[0])
        assert isinstance(await it.reply.get(), ProtocolError)


async def test_a_packet_without_a_byte_is_the_end(side: Side) -> None:
    async with asked(side) as it:
        await it.peer.send(b"")
        assert isinstance(await it.reply.get(), ProviderDied)


async def test_a_piece_of_another_reply_in_the_middle_of_one_is_a_protocol_error(side: Side) -> None:
    async with asked(side) as it:
        await it.peer.send(*it.peer.machine.replied(it.id, bytes(MIB))[:2])
        await it.peer.send(encode(FrameKind.CONTINUE, bytes(MAX_INLINE), id=it.id + 1)[0])
        assert isinstance(await it.reply.get(), ProtocolError)


async def test_the_end_in_the_middle_of_a_reply_is_the_death_of_the_provider(side: Side) -> None:
    async with asked(side) as it:
        await it.peer.send(*it.peer.machine.replied(it.id, bytes(MIB))[:2])
        it.peer.close()
        assert isinstance(await it.reply.get(), ProviderDied)


async def test_a_reply_that_comes_twice_ends_the_connection_behind_the_first(side: Side) -> None:
    async with asked(side) as it, trio.open_nursery() as nursery:
        await it.peer.send(reply_to(it.id, b"once"), reply_to(it.id, b"twice"))
        assert await it.reply.get() == b"once"
        second = Outcome(nursery, side.send, it.device, b"y")
        assert isinstance(await second.get(), ProtocolError | ProviderDied)


async def test_the_providers_own_error_is_told(side: Side) -> None:
    async with asked(side) as it:
        await it.peer.send(*it.peer.machine.fail(LdmError("out of order", errno=errno.ENXIO)))
        error = await it.reply.get()
        assert (error.errno, str(error)) == (errno.ENXIO, "out of order")


async def test_nonsense_ends_every_request_of_its_connection_once(side: Side) -> None:
    done = Completions()
    async with asked(side) as it:
        for number in range(50):
            await side.soon(it.device, b"x", done, number)
        await it.peer.send(b"garbage")
        seen = await done.wait(50)
        assert isinstance(await it.reply.get(), ProtocolError)
    assert sorted(context for context, _ in seen) == list(range(50))
    assert {type(outcome) for _, outcome in seen} == {ProtocolError}


async def test_descriptors_that_nobody_wants_are_not_kept(side: Side) -> None:
    before = descriptors()
    with closing(os.open("/dev/null", os.O_RDWR)) as fd:
        async with asked(side) as it:
            during = descriptors()
            await it.peer.send(*it.peer.machine.replied(it.id, b"a present"), descriptors=(fd,) * 5)
            outcome = await it.reply.get()
            assert outcome == b"a present" or isinstance(outcome, ProtocolError)
            assert descriptors() <= during
    assert descriptors() == before


async def test_after_nonsense_the_next_open_connects_anew(side: Side) -> None:
    async with nothing_kept(side.root) as container, trio.open_nursery() as nursery:
        async with device_of(side, container, nursery) as (peer, device):
            sending = Outcome(nursery, side.send, device, b"x")
            await peer.receive()
            await peer.send(b"garbage")
            assert isinstance(await sending.get(), ProtocolError)
        async with device_of(side, container, nursery) as (peer, device):
            sending = Outcome(nursery, side.send, device, b"x")
            await peer.send(reply_to((await peer.receive()).id, b"well"))
            assert await sending.get() == b"well"


# -- the answer to a close

CLOSES: dict[str, Callable[[int], bytes]] = {
    "another consumer": lambda id: encode(FrameKind.CLOSED, id=id, consumer_id=2)[0],
    "another close": lambda id: encode(FrameKind.CLOSED, id=id + 1, consumer_id=1)[0],
    "a reply": reply_to,
    "an error": lambda id: reply_to(id, b"no", status=errno.EIO),
    "opened": lambda id: encode(FrameKind.OPENED, about(), id=id, consumer_id=7)[0],
    "garbage": lambda id: b"garbage",
    "the end": lambda id: b"",
}


@pytest.mark.parametrize("frame", CLOSES.values(), ids=CLOSES)
async def test_a_close_returns_whatever_it_is_answered_with(side: Side, frame: Callable[[int], bytes]) -> None:
    async with (
        nothing_kept(side.root) as container, trio.open_nursery() as nursery,
        device_of(side, container, nursery) as (peer, device),
    ):  # fmt: skip
        closing = Outcome(nursery, side.close, device)
        await peer.send(frame((await peer.receive()).id))
        assert await closing.get() is None
        await peer.ended()


async def test_a_close_that_is_answered_before_a_request_of_its_consumer_is_a_protocol_error(side: Side) -> None:
    async with asked(side) as it, trio.open_nursery() as nursery:
        closing = Outcome(nursery, side.close, it.device)
        await it.peer.send(encode(FrameKind.CLOSED, id=(await it.peer.receive()).id, consumer_id=1)[0])
        assert isinstance(await it.reply.get(), ProtocolError)
        assert await closing.get() is None


# -- blocks

HUGE = (1 << 64) - 8

HEADERS = {
    "output behind the end": {"output": Extent(1 << 40, 100)},
    "output far away": {"output": Extent(HUGE, 100)},
    "output of all memory": {"output": Extent(1 << 20, HUGE)},
    "output in the headers": {"output": Extent(0, 100)},
    "metadata behind the end": {"output_metadata": Extent(1 << 40, 1)},
    "metadata in the headers": {"output_metadata": Extent(BLOCK.size, 1)},
    "too much metadata": {"output_metadata": Extent(1 << 20, Limit.MAX_METADATA + 1)},
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
async def test_a_reply_in_a_block_that_makes_no_sense_fails_its_request_alone(
    side: Side, change: dict[str, Any]
) -> None:
    async with asked(side, bytes(MIB)) as it, trio.open_nursery() as nursery:
        (shared,) = it.peer.arenas
        shared.arena.store(it.block, BlockHeader(type=CALL, consumer_id=1)._replace(**change))
        await it.peer.send(*it.peer.machine.replied_in_block(it.id))
        assert isinstance(await it.reply.get(), ProtocolError)
        second = Outcome(nursery, side.send, it.device, b"y")
        await it.peer.send(reply_to((await it.peer.receive()).id, b"well"))
        assert await second.get() == b"well"


async def test_a_block_whose_header_was_damaged_is_used_again_all_the_same(side: Side) -> None:
    async with asked(side, bytes(MIB)) as it, trio.open_nursery() as nursery:
        (shared,) = it.peer.arenas
        sending = it.reply
        id, block = it.id, it.block
        for _ in range(200):  # more than an arena has room for
            shared.mapping[block * BLOCK.size : (block + 1) * BLOCK.size] = b"\xff" * BLOCK.size
            await it.peer.send(*it.peer.machine.replied_in_block(id))
            assert isinstance(await sending.get(), ProtocolError)
            sending = Outcome(nursery, side.send, it.device, bytes(MIB))
            event = await it.peer.receive()
            assert event.blocks, "the request came inline"
            id, block = event.id, event.block
        await it.peer.send(reply_to(id, b"well"))
        assert await sending.get() == b"well"


async def test_an_arena_that_the_provider_gives_up_is_made_good_inline_or_anew(side: Side) -> None:
    async with asked(side, bytes(MIB)) as it, trio.open_nursery() as nursery:
        await it.peer.send(encode(FrameKind.ARENA_GONE, arena=1)[0])
        await it.peer.send(reply_to(it.id, b"no memory", status=errno.EPROTO))
        assert isinstance(await it.reply.get(), ProtocolError)
        await it.peer.receive()  # the consumer's ARENA_GONE
        second = Outcome(nursery, side.send, it.device, bytes(MIB))
        event = await it.peer.receive()
        assert event.arena != 1
        await it.peer.send(reply_to(event.id, b"well"))
        assert await second.get() == b"well"


# -- silence


@contextlib.asynccontextmanager
async def silent(container: RawContainer, side: Side, stage: str) -> AsyncIterator[trio.Nursery]:
    """Give the nursery of a consumer that waits, since the provider says nothing from a stage on."""

    async def consume() -> None:
        with contextlib.suppress(LdmError):
            async with opened(side) as device:
                await side.send(device, b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        peer = await container.accept()
        await peer.receive()
        if stage != "greeting":
            await peer.send(*peer.machine.welcome())
            id = await peer.opens()
        if stage == "request":
            await peer.send(*peer.opened(id))
            await peer.receive()
        try:
            yield nursery
        finally:
            container.close()


SILENCES = pytest.mark.parametrize("stage", ["greeting", "open", "request"])


@SILENCES
async def test_a_silent_provider_holds_up_nobody_else(side: Side, stage: str) -> None:
    with raw_container(side.root) as container:
        async with (
            served(side.root, "other", d=Plain()), silent(container, side, stage), opened(side, "other/d") as device
        ):  # fmt: skip
            assert await side.send(device, b"hello") == b"HELLO"


@SILENCES
async def test_who_waits_for_a_silent_provider_can_be_cancelled_and_leaves_nothing(tmp_path: Path, stage: str) -> None:
    async with nothing_kept(tmp_path) as container, silent(container, Trio(tmp_path), stage) as nursery:
        nursery.cancel_scope.cancel()


async def test_a_provider_that_never_reads_is_sent_no_more_than_it_takes(side: Side) -> None:
    done, accepted = Completions(), 0
    async with asked(side) as it:
        with contextlib.suppress(QueueFull):
            while accepted <= Limit.MAX_OUTSTANDING:
                await side.soon(it.device, bytes(1000), done)
                accepted += 1
        assert accepted == Limit.MAX_OUTSTANDING - 1  # one waits already
        it.peer.close()
        seen = await done.wait(accepted)
        assert isinstance(await it.reply.get(), ProviderDied)
    assert {type(outcome) for _, outcome in seen} == {ProviderDied}


async def test_a_provider_that_never_reads_holds_up_nobody_else(side: Side) -> None:
    done = Completions()
    with raw_container(side.root) as container:
        async with (
            trio.open_nursery() as nursery,
            served(side.root, "other", d=Plain()), opened(side, "other/d") as other,
            device_of(side, container, nursery) as (_, device),
        ):  # fmt: skip
            for _ in range(500):
                await side.soon(device, bytes(1000), done)
            assert await side.send(other, b"hello") == b"HELLO"
            assert not done.seen
    await done.wait(500)
