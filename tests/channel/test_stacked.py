"""Devices that consume others: what is open below when the lower provider ends, and when an open is cancelled."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio
from support import Plain

import ldmfs
from ldmfs import Device, ProviderDied, Reply, Request

from .served import SECONDS, Served, Trio, error_of, served, until


class Passing(ldmfs.StackedDevice, Device):
    """Passes requests on to the first of its lower devices."""

    def __init__(self, box: Served, *lowers: str) -> None:
        self.lowers = tuple(ldmfs.Lower(box.container, "d", lower) for lower in lowers)

    async def request(self, consumer_id: int, request: Request) -> Reply:
        return await self.lowers[0].send(consumer_id, request.forward())


@contextlib.asynccontextmanager
async def upper(root: Path, *lowers: str) -> AsyncIterator[Served]:
    """Serve `top/d`, which consumes the lower devices."""
    async with served(root, "top") as top:
        top.create("d", Passing(top, *lowers))
        yield top


async def test_requests_that_find_the_lower_provider_gone_open_the_device_anew_once(tmp_path: Path) -> None:
    side, second, replies = Trio(tmp_path), Plain(), []

    async def send(device: Any, number: int) -> None:
        replies.append(await side.send(device, b"%d" % number))

    async with upper(tmp_path, "low/d"):
        async with served(tmp_path, "low", d=Plain()) as low:
            device = await side.open("top/d")
            assert await side.send(device, b"x") == b"X"
            low.end()
            assert isinstance(await error_of(side.send(device, b"x")), ProviderDied)
        async with served(tmp_path, "low", d=second) as low:
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(send, device, number)
            assert low.consumers == 1
            await side.close(device)
            await low.without_consumers()
    assert sorted(replies) == [b"%d" % number for number in range(10)]
    assert [what for what, _ in second.calls].count("open") == 1


async def test_the_open_of_one_consumer_holds_up_no_other(tmp_path: Path) -> None:
    class Slow(Plain):
        opening = 0

        async def open(self, consumer_id: int) -> None:  # type: ignore[override]
            self.opening += 1
            if self.opening == 1:
                await trio.sleep_forever()

    side, slow = Trio(tmp_path), Slow()
    async with upper(tmp_path, "low/d"), served(tmp_path, "low", d=slow), trio.open_nursery() as nursery:
        nursery.start_soon(side.open, "top/d")
        await until(lambda: slow.opening)
        with trio.fail_after(SECONDS):
            device = await side.open("top/d")
            assert await side.send(device, b"x") == b"X"
            await side.close(device)
        nursery.cancel_scope.cancel()


async def test_a_cancelled_open_leaves_no_lower_device_open(tmp_path: Path) -> None:
    class Opening(Plain):
        opening = False

        async def open(self, consumer_id: int) -> None:  # type: ignore[override]
            self.opening = True
            await trio.sleep_forever()

    side, plain, slow = Trio(tmp_path), Plain(), Opening()
    async with upper(tmp_path, "low/d", "low/slow"), served(tmp_path, "low", d=plain, slow=slow) as low:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.open, "top/d")
            await until(lambda: slow.opening)
            nursery.cancel_scope.cancel()
        await low.without_consumers()
    assert [what for what, _ in plain.calls] == ["open", "close"]
