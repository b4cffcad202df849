"""The plug-in relay: lines, trees and cycles of devices within one container; across containers see tests/stacks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import ldmfs
from ldmfs.consumer.local import Here
from ldmfs.container.host import Container
from ldmfs.container.plug_ins import PlugIn
from ldmfs.container.process import hosting
from ldmfs.container.provider import configure, load
from ldmfs.container.settings import ConfigurationError


class Upper(ldmfs.Device):
    """Answers with the text in capital letters, and notes who opens and closes."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def open(self, consumer_id: int) -> None:
        self.seen.append("open")

    def close(self, consumer_id: int) -> None:
        self.seen.append("close")

    def request(self, consumer_id: int, request: ldmfs.Request) -> bytes:
        return bytes(request.data).upper()


@asynccontextmanager
async def relays(tmp_path: Path, **lowers: Any) -> AsyncIterator[Container]:
    """Run a container `c` with the device `upper` and a relay for each keyword."""
    container = Container("c", root=tmp_path)
    container.create_device("upper", Upper())
    tables = {name: {"lower": lower} for name, lower in lowers.items()}
    relay = configure(load("ldmfs_providers.relay:Relay"), container, PlugIn("relay", "", "test.toml: c.relay", tables))
    try:
        async with hosting(container, [relay]):
            yield container
    finally:
        Container.current = Here.current = None


async def ask(container: Container, device: str, data: bytes) -> bytes:
    async with await ldmfs.aio.open_device(f"c/{device}", root=container.root) as opened:
        return await ldmfs.aio.send_request(opened, data)


async def test_a_request_is_passed_on(tmp_path: Path) -> None:
    async with relays(tmp_path, x="c/upper") as container:
        assert await ask(container, "x", b"hello") == b"HELLO"


async def test_a_line_of_three(tmp_path: Path) -> None:
    async with relays(tmp_path, x="c/y", y="c/z", z="c/upper") as container:
        assert await ask(container, "x", b"hello") == b"HELLO"


async def test_a_tree_joins_the_replies_in_order(tmp_path: Path) -> None:
    async with relays(tmp_path, x=["c/upper", "c/y"], y="c/upper") as container:
        assert await ask(container, "x", b"ab") == b"ABAB"


async def test_each_open_of_the_upper_device_is_one_of_the_lower(tmp_path: Path) -> None:
    async with relays(tmp_path, x="c/upper") as container:
        await ask(container, "x", b"a")
        await ask(container, "x", b"b")
        handler: Any = container.registry.find("upper").request_handler
        assert handler.__self__.seen == ["open", "close"] * 2


async def test_a_cycle_is_refused_at_open(tmp_path: Path) -> None:
    async with relays(tmp_path, x="c/y", y="c/z", z="c/x") as container:
        with pytest.raises(ldmfs.DeviceLoop, match=r"c/x -> c/y -> c/z -> c/x"):
            await ask(container, "x", b"hello")
        assert not container.registry.consumers


async def test_a_device_that_consumes_itself_is_refused(tmp_path: Path) -> None:
    async with relays(tmp_path, x="c/x") as container:
        with pytest.raises(ldmfs.DeviceLoop):
            await ask(container, "x", b"hello")


async def test_a_lower_device_that_is_not_there(tmp_path: Path) -> None:
    async with relays(tmp_path, x="c/nothing") as container:
        with pytest.raises(ldmfs.NoSuchDevice, match="nothing"):
            await ask(container, "x", b"hello")


async def test_when_one_of_a_tree_refuses_none_stays_open(tmp_path: Path) -> None:
    async with relays(tmp_path, x=["c/upper", "c/nothing"]) as container:
        with pytest.raises(ldmfs.NoSuchDevice):
            await ask(container, "x", b"hello")
        assert not container.registry.consumers


async def test_the_consumer_of_the_lower_device_is_known_by_the_chain(tmp_path: Path) -> None:
    async with (
        relays(tmp_path, x="c/y", y="c/upper") as container,
        await ldmfs.aio.open_device("c/x", root=container.root),
    ):
        (consumer,) = container.registry.find("upper").consumers.values()
        assert consumer.peer.chain == ("c/x", "c/y")
        assert consumer.peer.pid == os.getpid()


def test_a_table_without_lower_is_an_error_that_names_it(tmp_path: Path) -> None:
    plug_in = PlugIn("relay", "", "test.toml: c.relay", {"x": {}})
    with pytest.raises(ConfigurationError, match=r"test.toml: c.relay.x.lower: this key is required"):
        configure(load("ldmfs_providers.relay:Relay"), Container("c", root=tmp_path), plug_in)
