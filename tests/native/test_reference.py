"""Large data on its way through providers in C: where it is in shared memory, it stays there."""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from channel.served import Served

import ldmfs
from ldmfs import Reply, Request, RequestType
from ldmfs.native.blocks import Blocks

from .hosted import Built, ask, native

MIB = 1 << 20
DATA = bytes(range(256)) * (MIB // 256)


class Locating(ldmfs.Device):
    """Answers with what it was sent, in memory of the arena; notes where both were, in bytes from the arena's begin."""

    def __init__(self) -> None:
        self.input: list[int] = []
        self.output: list[int] = []
        self.own: list[bool] = []

    def request(self, consumer_id: int, request: Request) -> memoryview:
        place = request.place
        self.input.append(place.data.location)
        self.own.append(place.data.location == place.block.input_area.location)
        self.output.append(place.block.output_area.location)
        buffer = request.buffer(len(request.data))
        buffer[:] = request.data
        return buffer


@asynccontextmanager
async def locating(tmp_path: Path, built: Built, **tables: Any) -> AsyncIterator[tuple[Served, Locating]]:
    lower = Locating()
    tables = tables or {"caller": {"source": built("caller"), "parameters": {"lower": "box/lower"}}}
    async with native(tmp_path, tables, lower=lower) as it:
        yield it, lower


async def sent(tmp_path: Path, name: str, data: bytes = DATA) -> tuple[bytes, int]:
    """Send a message, with room for a reply of twice its size; return the reply and where in the arena it is."""
    async with await ldmfs.aio.open_device(name, root=tmp_path) as device:
        reply = await ldmfs.aio.send_request(device, Request(RequestType.CALL, data, length=2 * len(data)))
        return bytes(reply.data), reply.place.data.location


RELAY = {"x": {"source": "relay", "parameters": {"lower": "box/lower"}}}
LINE = {"r": {"source": "relay", "parameters": {"lower": "x=box/y,y=box/z,z=box/lower"}}}


@pytest.mark.parametrize("tables", [RELAY, LINE], ids=["one", "three"])
async def test_a_relay_copies_neither_request_nor_reply(tmp_path: Path, built: Built, tables: dict[str, Any]) -> None:
    async with locating(tmp_path, built, **tables) as (_, lower):
        data, location = await sent(tmp_path, "box/x")
        assert data == DATA
        assert lower.own == [False]
        assert location == lower.output[0]


async def test_input_that_a_provider_changes_is_its_own(tmp_path: Path, built: Built) -> None:
    async with locating(tmp_path, built) as (_, lower):
        data, location = await sent(tmp_path, "box/changed")
        assert data == DATA[::-1]
        assert lower.own == [True]
        assert location == lower.output[0]


async def test_two_requests_at_a_time_have_their_replies_in_different_places(tmp_path: Path, built: Built) -> None:
    async with locating(tmp_path, built) as (_, lower):
        data, location = await sent(tmp_path, "box/pair", DATA[: MIB // 2])
        assert data == DATA[: MIB // 2] * 2
        assert lower.input[0] == lower.input[1]
        assert len({*lower.output, location}) == 3


async def test_a_reply_is_written_where_its_consumer_reads_it(
    tmp_path: Path, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[Reply] = []

    def noting(blocks: Blocks, address: int, room: memoryview | None) -> Reply:
        replies.append(reply(blocks, address, room))
        return replies[-1]

    reply = Blocks.reply
    monkeypatch.setattr(Blocks, "reply", noting)
    async with native(tmp_path, {"gate": {"source": built("gate")}}):
        data, _ = await sent(tmp_path, "box/plain")
        assert data == DATA
        (only,) = replies
        assert isinstance(only.data, memoryview)
        assert isinstance(only.data.obj, mmap.mmap)
        replies.clear()


async def test_memory_that_is_lent_is_given_back(tmp_path: Path, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    all_blocks: list[Blocks] = []
    init = Blocks.__init__

    def noting(blocks: Blocks, runtime: Any) -> None:
        init(blocks, runtime)
        all_blocks.append(blocks)

    monkeypatch.setattr(Blocks, "__init__", noting)
    async with locating(tmp_path, built, **LINE), await ldmfs.aio.open_device("box/x", root=tmp_path) as device:
        for _ in range(300):
            reply = await ldmfs.aio.send_request(device, Request(RequestType.CALL, DATA))
            assert len(reply.data) == MIB
            del reply
        assert [blocks._lent for blocks in all_blocks] == [{}]


async def test_a_block_device_gives_and_takes_large_data(tmp_path: Path, built: Built) -> None:
    tables = {"disk": {"source": "ramdisk"}, "x": {"source": "relay", "parameters": {"lower": "box/disk"}}}
    async with native(tmp_path, tables):
        async with await ldmfs.aio.open_device("box/disk", root=tmp_path) as disk:
            await ldmfs.aio.send_request(disk, Request(RequestType.WRITE, DATA, offset=100))
        for name in ("box/disk", "box/x"):
            reply = await ask(tmp_path, name, Request(RequestType.READ, offset=100, length=MIB))
            assert bytes(reply.data) == DATA
