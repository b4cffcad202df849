"""What a connection has, and lets go of at its end: descriptors, shared memory, itself."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import trio
from support import Gated, Plain

import ldmfs
from ldmfs import LdmError, ProviderDied, Request, RequestType
from ldmfs.channel.address import connect
from ldmfs.channel.blocking import BlockingClient
from ldmfs.consumer import aio, blocking
from ldmfs.consumer.tree import channel_socket

from .raw import raw_container
from .served import Completions, Side, Trio, descriptors, error_of, opened, served, until

LARGE = 300_000
"""Bytes of a request that travels in shared memory."""


def clients(side: Side) -> list[Any]:
    """Return the connections that there are."""
    of = blocking._connections if side.name == "blocking" else aio._Connections.of_run()
    return list(of._clients.values())


async def end(side: Side) -> None:
    """End the connections, and wait for their threads."""
    for client in clients(side):
        client.aclose()
    await until(lambda: not [each for each in threading.enumerate() if each.name.startswith("ldmfs-")], "their end")


async def has(count: int) -> None:
    """Wait until this process, which is the provider's too, has so many descriptors."""
    await until(lambda: gc.collect() >= 0 and descriptors() == count, f"{count} descriptors of {descriptors()}")


async def test_a_large_request_over_a_lost_connection_makes_no_arena(tmp_path: Path, side: Side) -> None:
    async with served(tmp_path, d=Plain()) as box, opened(side) as device:
        before = descriptors()
        box.end()
        (client,) = clients(side)
        await until(lambda: not client.alive())
        assert isinstance(await error_of(side.send(device, bytes(LARGE))), ProviderDied)
        await has(before - 2)  # both ends of the connection


async def test_a_completed_request_keeps_no_memory(tmp_path: Path, side: Side) -> None:
    async with served(tmp_path, d=Plain()), opened(side) as device:
        before, done = descriptors(), Completions()
        await side.soon(device, bytes(LARGE), done)
        await done.wait()
        (client,) = map(weakref.ref, clients(side))
        await end(side)
        await has(before - 2)
        del device
    if side.name == "blocking":  # for trio the run knows its connections to its end
        await until(lambda: gc.collect() >= 0 and client() is None, "the end of the connection")


async def test_a_reply_keeps_its_memory_and_not_the_connection(tmp_path: Path, side: Side) -> None:
    data = b"a" * LARGE
    async with served(tmp_path, d=Plain()):
        async with opened(side) as device:
            reply = await side.send(device, Request(RequestType.CALL, data))
        (client,) = (weakref.ref(each._client) for each in clients(side))
        await end(side)
        if side.name == "blocking":
            blocking._connections.close()
        else:
            aio._Connections.of_run()._clients.clear()
        del device
        before = descriptors()
        await until(lambda: gc.collect() >= 0 and client() is None, "the end of the connection")
        assert bytes(reply.data) == data.upper()
        del reply
        await has(before - 1)


async def test_an_error_that_is_kept_keeps_no_connection(tmp_path: Path, side: Side) -> None:
    gated, errors = Gated(), []

    async def send(device: Any) -> None:
        try:
            await side.send(device, bytes(LARGE))
        except LdmError as error:
            errors.append(error.with_traceback(None))

    async with served(tmp_path, d=gated) as box, opened(side) as device:
        before = descriptors()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send, device)
            await until(lambda: gated.started == 3)
            box.end()
        assert [type(error) for error in errors] == [ProviderDied] * 3
        await has(before - 2)


async def test_a_reader_that_need_not_read_any_more_closes_what_has_ended(tmp_path: Path) -> None:
    with raw_container(tmp_path) as container:
        made: list[BlockingClient] = []

        def read() -> None:
            client = BlockingClient(connect(channel_socket(tmp_path, "box")))
            client._pushing = 1  # as if a thread waited for room in the socket
            made.append(client)
            client._call(client._completions.wait_for_any)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, read)
            peer = await container.accept()
            await peer.greet()
            await until(lambda: made and made[0]._leader)
            client = made[0]
            with client._lock:
                client._pushing = 0
                client._drained()
            peer.close()
        assert client.lost
        assert client._client.socket.fileno() < 0


@pytest.mark.parametrize("greeted", [False, True], ids=["greeting", "opening"])
async def test_a_cancelled_open_leaves_nothing(tmp_path: Path, greeted: bool) -> None:
    with raw_container(tmp_path) as container:
        before = descriptors()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Trio(tmp_path).open)
            peer = await container.accept()
            if greeted:
                await peer.greet()
                await peer.opens()
            else:
                await peer.receive()
            nursery.cancel_scope.cancel()
        await has(before + (2 if greeted else 1))  # the peer's end; a connection that works is kept
        peer.close()
        for client in clients(Trio(tmp_path)):
            await until(lambda: not client.alive())  # noqa: B023
        assert descriptors() == before


def test_no_descriptor_is_left_where_nobody_serves(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    with raw_container(tmp_path):
        pass
    before = descriptors()
    with pytest.raises(ldmfs.NotServed):
        ldmfs.open_device("box/d", root=tmp_path)
    assert descriptors() == before
