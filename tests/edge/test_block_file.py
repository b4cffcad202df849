"""Open files of block devices, without a mount."""

from __future__ import annotations

import select
from typing import Any

import pytest
import trio
import trio.testing
from support import Around, Gated, Plain, fail_with, on_virtual_clock, unmounted

from ldmfs.core.device import Device, Kind
from ldmfs.core.errors import Interrupted, InvalidRequest, LdmError, NoSpace
from ldmfs.core.request import Request, RequestType
from ldmfs.fuse import signals
from ldmfs.fuse.signals import Pending

SIZE = 100


class Disk:
    """Answers the requests of a block device from memory, and keeps their list."""

    def __init__(self) -> None:
        self.data = bytearray(range(SIZE))
        self.requests: list[tuple[RequestType, int, int]] = []

    def __call__(self, request: Request) -> bytes:
        self.requests.append((request.type, request.offset, request.length))
        if request.type is RequestType.WRITE:
            self.data[request.offset : request.offset + request.length] = request.data
            return b""
        return bytes(self.data[request.offset : request.offset + request.length])


def plain(answer: Any) -> Device:
    return Plain(answer, kind=Kind.BLOCK, size=SIZE)


def waiting(answer: Any) -> Device:
    device = Gated(answer, kind=Kind.BLOCK, size=SIZE)
    device.gate.set()
    return device


def threaded(answer: Any) -> Device:
    return Plain(answer, kind=Kind.BLOCK, size=SIZE, thread=True)


styles = pytest.mark.parametrize("make", [plain, waiting, threaded])


@styles
@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 10), (10, 5), (0, SIZE), (SIZE - 1, 1), (0, 0)],
    ids=["begin", "middle", "all", "last", "none"],
)
async def test_bytes_are_read_at_an_offset(make: Any, offset: int, size: int) -> None:
    async with unmounted() as around:
        file = await around.block(make(Disk()))
        assert await file.read(offset, size) == bytes(range(SIZE))[offset : offset + size]


@styles
@pytest.mark.parametrize("offset", [0, 90, 99])
async def test_a_read_ends_at_the_end_of_the_device(make: Any, offset: int) -> None:
    async with unmounted() as around:
        file = await around.block(make(Disk()))
        assert await file.read(offset, 4096) == bytes(range(SIZE))[offset:]


@pytest.mark.parametrize("offset", [SIZE, SIZE + 1, 1 << 40])
async def test_a_read_behind_the_end_gives_nothing_and_asks_nobody(offset: int) -> None:
    async with unmounted() as around:
        disk = Disk()
        file = await around.block(plain(disk))
        assert await file.read(offset, 10) == b""
        assert disk.requests == []


@styles
async def test_bytes_are_written_at_an_offset(make: Any) -> None:
    async with unmounted() as around:
        disk = Disk()
        file = await around.block(make(disk))
        assert await file.write(10, b"hello") == 5
        assert disk.data[8:17] == b"\x08\x09hello\x0f\x10"


async def test_a_write_request_says_where_and_how_much() -> None:
    async with unmounted() as around:
        disk = Disk()
        file = await around.block(plain(disk))
        await file.write(10, b"hello")
        assert disk.requests == [(RequestType.WRITE, 10, 5)]


async def test_a_write_ends_at_the_end_of_the_device() -> None:
    async with unmounted() as around:
        disk = Disk()
        file = await around.block(plain(disk))
        assert await file.write(SIZE - 3, b"hello") == 3
        assert (disk.data[-3:], len(disk.data)) == (b"hel", SIZE)


@pytest.mark.parametrize("offset", [SIZE, SIZE + 1, 1 << 40])
async def test_a_write_behind_the_end_has_no_space(offset: int) -> None:
    async with unmounted() as around:
        disk = Disk()
        file = await around.block(plain(disk))
        with pytest.raises(NoSpace):
            await file.write(offset, b"hello")
        assert disk.requests == []


@styles
@pytest.mark.parametrize("given", [b"", b"short", bytes(11)], ids=["nothing", "too little", "too much"])
async def test_a_reply_of_the_wrong_length_is_an_error(make: Any, given: bytes) -> None:
    async with unmounted() as around:
        file = await around.block(make(lambda _request: given))
        with pytest.raises(InvalidRequest, match=f"gave {len(given)} bytes for 10"):
            await file.read(0, 10)


@styles
async def test_sync_sends_a_flush(make: Any) -> None:
    async with unmounted() as around:
        disk = Disk()
        file = await around.block(make(disk))
        await file.sync()
        assert [request[0] for request in disk.requests] == [RequestType.FLUSH]


@styles
async def test_the_error_of_a_handler_is_that_of_the_read(make: Any) -> None:
    async with unmounted() as around:
        file = await around.block(make(fail_with(LdmError("bad sector", errno=74))))
        with pytest.raises(LdmError, match="bad sector") as caught:
            await file.read(0, 10)
        assert caught.value.errno == 74


async def test_a_block_device_is_always_ready() -> None:
    async with unmounted() as around:
        file = await around.block(plain(Disk()))
        assert file.poll(None) == select.POLLIN | select.POLLOUT


async def test_close_sends_no_request() -> None:
    async with unmounted() as around:
        disk = Disk()
        file = await around.block(plain(disk))
        await file.flush()
        assert disk.requests == []


async def test_release_runs_the_close_handler_once() -> None:
    async with unmounted() as around:
        device = waiting(Disk())
        assert isinstance(device, Gated)
        file = await around.block(device)
        await file.release()
        await file.release()
        assert device.closed == [file.consumer.id]


async def test_requests_of_one_file_run_side_by_side() -> None:
    async with unmounted() as around:
        device = Gated(Disk(), kind=Kind.BLOCK, size=SIZE)
        file = await around.block(device)
        async with trio.open_nursery() as nursery:
            for offset in range(5):
                nursery.start_soon(file.read, offset, 10)
            await trio.testing.wait_all_tasks_blocked()
            assert device.running == 5
            device.gate.set()


async def waits_and_is_told(around: Around, pending: Pending, monkeypatch: pytest.MonkeyPatch) -> Gated:
    """Read from a device that does not answer while `pending` is what waits for the reader."""
    monkeypatch.setattr(signals, "pending", lambda _tid: pending)
    monkeypatch.setattr(signals, "waiting_on", lambda _inode, opener, _openers: iter([opener]))
    device = Gated(Disk(), kind=Kind.BLOCK, size=SIZE)
    file = await around.block(device)
    with pytest.raises(Interrupted):
        await file.read(0, 10)
    await trio.testing.wait_all_tasks_blocked()
    return device


@pytest.mark.parametrize("pending", [Pending.SIGNAL, Pending.FATAL])
@on_virtual_clock
async def test_an_interrupted_read_cancels_its_handler(pending: Pending, monkeypatch: pytest.MonkeyPatch) -> None:
    async with unmounted() as around:
        device = await waits_and_is_told(around, pending, monkeypatch)
        assert (device.running, device.cancelled) == (0, 1)


async def test_release_cancels_what_runs() -> None:
    async with unmounted() as around:
        device = Gated(Disk(), kind=Kind.BLOCK, size=SIZE)
        file = await around.block(device)
        outcomes: list[LdmError] = []

        async def read() -> None:
            try:
                await file.read(0, 10)
            except LdmError as error:
                outcomes.append(error)

        around.nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await file.release()
        await trio.testing.wait_all_tasks_blocked()
        assert [type(error).__name__ for error in outcomes] == ["RequestCancelled"]
        assert device.closed == [file.consumer.id]
