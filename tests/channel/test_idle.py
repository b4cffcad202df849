"""Waiting without a turn of trio: only as long as nothing else is to be done."""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from ldmfs.channel import idle
from ldmfs.channel.idle import Idle, IdleWait

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ends[0], ends[1]:
        yield ends


async def test_trio_still_has_what_this_needs() -> None:
    assert Idle.of_run().epoll is not None


async def test_one_for_each_run() -> None:
    assert Idle.of_run() is Idle.of_run()


async def test_a_packet_is_waited_for_without_a_turn(pair: Pair) -> None:
    ours, theirs = pair
    wait = IdleWait(ours.fileno())
    turns = trio.lowlevel.current_task()._schedule_points
    theirs.send(b"x")
    assert wait.ready()
    assert ours.recv(10) == b"x"
    assert trio.lowlevel.current_task()._schedule_points == turns


async def test_what_another_thread_sends_is_waited_for(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair
    monkeypatch.setattr(idle, "_POLL_MS", 20_000)
    wait = IdleWait(ours.fileno())
    thread = threading.Thread(target=theirs.send, args=(b"x",))
    thread.start()
    assert wait.ready()
    thread.join()


async def test_nothing_comes_and_the_wait_ends(pair: Pair) -> None:
    assert not IdleWait(pair[0].fileno()).ready()


async def test_the_end_of_the_other_side_is_readable(pair: Pair) -> None:
    """It comes with POLLHUP, and is left to trio."""
    ours, theirs = pair
    wait = IdleWait(ours.fileno())
    theirs.close()
    if not wait.ready():
        await trio.lowlevel.wait_readable(ours)
    assert ours.recv(10) == b""


async def test_a_task_that_is_to_run_comes_first(pair: Pair) -> None:
    ours, theirs = pair
    wait = IdleWait(ours.fileno())
    theirs.send(b"x")
    ran: list[bool] = []

    async def other() -> None:
        ran.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert not wait.ready()
        await trio.lowlevel.wait_readable(ours)
    assert ran
    assert wait.ready()


async def test_a_task_that_was_woken_comes_first(pair: Pair) -> None:
    ours, theirs = pair
    wait = IdleWait(ours.fileno())
    theirs.send(b"x")
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(event.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert wait.ready()
        event.set()
        assert not wait.ready()


async def test_another_descriptor_that_a_task_waits_for_comes_first(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "_POLL_MS", 20_000)
    ours, theirs = pair
    wait = IdleWait(ours.fileno())
    reads, writes = os.pipe()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, reads)
            await trio.testing.wait_all_tasks_blocked()
            os.write(writes, b"x")
            assert not wait.ready()
            theirs.send(b"x")
            assert not wait.ready(), "both are to be done, and trio does both"
    finally:
        os.close(reads)
        os.close(writes)


async def test_a_thread_that_calls_into_the_run_comes_first(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "_POLL_MS", 20_000)
    wait = IdleWait(pair[0].fileno())
    called = trio.Event()
    await trio.testing.wait_all_tasks_blocked()
    token = trio.lowlevel.current_trio_token()
    thread = threading.Thread(target=token.run_sync_soon, args=(called.set,))
    thread.start()
    while wait.ready():
        pass
    await called.wait()
    thread.join()


async def test_the_run_has_its_turn_though_packets_are_there_all_the_time(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(idle, "monotonic", lambda: now[0])
    ours, theirs = pair
    wait = IdleWait(ours.fileno())
    theirs.send(b"x")
    assert wait.ready()
    now[0] += idle.LATE_SECONDS / 4
    assert wait.ready()
    now[0] += idle.LATE_SECONDS
    assert not wait.ready()
    assert not wait.ready()
    await trio.lowlevel.checkpoint()
    assert wait.ready()


def test_a_run_that_is_a_guest_leaves_the_waiting_to_its_host(pair: Pair) -> None:
    ours, theirs = pair
    calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
    found: list[object] = []

    async def main() -> None:
        theirs.send(b"x")
        found.append(IdleWait(ours.fileno()).ready())

    trio.lowlevel.start_guest_run(
        main, run_sync_soon_threadsafe=calls.put, done_callback=lambda outcome: calls.put(None)
    )
    while (call := calls.get()) is not None:
        call()
    assert found == [False]
