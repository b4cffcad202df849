"""The lean loop: its lock, `inline`, the wait that polls first, and readers that a lying poll does not end."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing
from support import on_virtual_clock

from ldmfs.fuse import lean
from ldmfs.fuse.buffers import Buffers
from ldmfs.fuse.lean import FAIR_TURNS, NOW, BargingLock, _Reader, _ReaderNursery, inline


@pytest.fixture(autouse=True)
def _no_lock_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BargingLock, "current", None)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def wakes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count how often a reader is woken."""
    calls: list[str] = []

    class Counting:
        def wake(self) -> None:
            calls.append("wake")

    monkeypatch.setattr(BargingLock, "current", Counting())
    return calls


async def park(nursery: trio.Nursery, lock: BargingLock, log: list[str], name: str) -> trio.CancelScope:
    """Start a task that waits for `lock` and notes when it has it."""
    scope = trio.CancelScope()

    async def wait() -> None:
        with scope:
            async with lock:
                log.append(name)

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    return scope


# -- the lock


async def test_a_free_lock_is_taken_without_giving_way() -> None:
    lock = BargingLock()
    with trio.testing.assert_no_checkpoints():
        async with lock:
            assert lock.held


async def test_a_released_lock_can_be_taken_again_at_once() -> None:
    lock, log = BargingLock(), []
    async with trio.open_nursery() as nursery:
        async with lock:
            await park(nursery, lock, log, "other")
        with trio.testing.assert_no_checkpoints():
            async with lock:
                assert log == []
        lock.wake()


async def test_a_release_wakes_nobody() -> None:
    lock: BargingLock = BargingLock()
    log: list[str] = []
    async with trio.open_nursery() as nursery:
        async with lock:
            await park(nursery, lock, log, "other")
        await trio.testing.wait_all_tasks_blocked()
        assert log == []
        lock.wake()


async def test_wake_lets_one_parked_task_take_the_lock() -> None:
    lock: BargingLock = BargingLock()
    log: list[str] = []
    async with trio.open_nursery() as nursery:
        async with lock:
            for name in ("a", "b"):
                await park(nursery, lock, log, name)
        lock.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert len(log) == 1
        lock.wake()
    assert sorted(log) == ["a", "b"]


async def test_wake_does_nothing_while_the_lock_is_held() -> None:
    lock: BargingLock = BargingLock()
    log: list[str] = []
    async with trio.open_nursery() as nursery:
        async with lock:
            await park(nursery, lock, log, "other")
            lock.wake()
            assert len(lock.parked) == 1
        lock.wake()
    assert log == ["other"]


async def test_wake_with_nobody_parked_does_nothing() -> None:
    lock = BargingLock()
    lock.wake()
    assert not lock.held


async def test_a_woken_task_that_comes_too_late_parks_again_and_is_woken_again() -> None:
    lock: BargingLock = BargingLock()
    log: list[str] = []
    async with trio.open_nursery() as nursery:
        async with lock:
            await park(nursery, lock, log, "late")
        lock.wake()
        async with lock:  # barges in before the woken task has run
            await trio.testing.wait_all_tasks_blocked()
            assert (log, len(lock.parked)) == ([], 1)
        lock.wake()
    assert log == ["late"]


async def test_a_cancelled_task_is_no_longer_parked() -> None:
    lock: BargingLock = BargingLock()
    log: list[str] = []
    async with trio.open_nursery() as nursery, lock:
        scope = await park(nursery, lock, log, "cancelled")
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert len(lock.parked) == 0
    assert log == []


async def test_a_wake_after_a_cancellation_reaches_the_next() -> None:
    lock: BargingLock = BargingLock()
    log: list[str] = []
    async with trio.open_nursery() as nursery:
        async with lock:
            scope = await park(nursery, lock, log, "cancelled")
            await park(nursery, lock, log, "next")
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
        lock.wake()
    assert log == ["next"]


async def test_a_task_that_is_cancelled_after_it_was_woken_leaves_the_lock_free() -> None:
    lock: BargingLock = BargingLock()
    log: list[str] = []
    async with trio.open_nursery() as nursery:
        async with lock:
            scope = await park(nursery, lock, log, "woken")
        lock.wake()
        scope.cancel()
    assert (lock.held, len(lock.parked)) == (False, 0)


async def test_an_exception_releases_the_lock() -> None:
    lock = BargingLock()
    with pytest.raises(ValueError, match="inside"):
        async with lock:
            raise ValueError("inside")
    assert not lock.held


# -- inline


async def test_inline_returns_the_value_of_what_does_not_suspend(wakes: list[str]) -> None:
    async def quick() -> int:
        return 3

    with trio.testing.assert_no_checkpoints():
        assert await inline(quick()) == 3


async def test_inline_wakes_nobody_for_what_does_not_suspend(wakes: list[str]) -> None:
    async def quick() -> None:
        pass

    await inline(quick())
    assert wakes == []


async def test_inline_wakes_nobody_for_what_fails_without_suspending(wakes: list[str]) -> None:
    async def failing() -> None:
        raise ValueError("quick")

    with pytest.raises(ValueError, match="quick"):
        await inline(failing())
    assert wakes == []


async def test_inline_wakes_a_reader_once_for_what_suspends_often(wakes: list[str]) -> None:
    async def slow() -> int:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        return 3

    assert await inline(slow()) == 3
    assert wakes == ["wake"]


async def test_the_reader_is_woken_before_the_handler_waits() -> None:
    lock, log = BargingLock(), []
    async with trio.open_nursery() as nursery:
        async with lock:
            await park(nursery, lock, log, "reader")
        event = trio.Event()

        async def handle() -> None:
            await inline(event.wait())

        nursery.start_soon(handle)
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["reader"]
        event.set()


async def test_inline_passes_an_exception_after_a_wait(wakes: list[str]) -> None:
    async def failing() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("slow")

    with pytest.raises(ValueError, match="slow"):
        await inline(failing())


async def test_inline_passes_a_cancellation_in_and_out() -> None:
    seen = []

    async def slow() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            seen.append("cancelled")
            raise

    with trio.CancelScope() as scope:
        scope.cancel()
        await inline(slow())
    assert (seen, scope.cancelled_caught) == (["cancelled"], True)


async def test_inline_goes_on_with_what_swallows_a_cancellation() -> None:
    async def stubborn() -> str:
        with trio.CancelScope() as inner:
            inner.cancel()
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return "done"

    assert await inline(stubborn()) == "done"


async def test_inline_passes_the_values_that_the_loop_sends() -> None:
    async def in_thread() -> int:
        return await trio.to_thread.run_sync(lambda: 7)

    assert await inline(in_thread()) == 7


async def test_inline_within_inline() -> None:
    async def inner() -> int:
        await trio.lowlevel.checkpoint()
        return 7

    async def outer() -> int:
        return await inline(inner()) + 1

    assert await inline(outer()) == 8


# -- the wait


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note each wait that goes through trio."""
    real, calls = trio.lowlevel.wait_readable, []

    async def wait_readable(fd: int) -> None:
        calls.append(fd)
        await real(fd)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_readable)
    return calls


async def test_a_readable_descriptor_is_not_waited_for(pipe: tuple[int, int], turns: list[int]) -> None:
    os.write(pipe[1], b"x")
    with trio.testing.assert_no_checkpoints():
        await _Reader(None).wait_readable(pipe[0])
    assert turns == []


async def test_a_descriptor_that_is_not_readable_is_waited_for(pipe: tuple[int, int], turns: list[int]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_Reader(None).wait_readable, pipe[0])
        await trio.testing.wait_all_tasks_blocked()
        assert turns == [pipe[0]]
        os.write(pipe[1], b"x")


async def test_every_fair_turn_goes_through_trio(pipe: tuple[int, int], turns: list[int]) -> None:
    os.write(pipe[1], b"x")
    reader = _Reader(None)
    for number in range(1, 3 * FAIR_TURNS + 1):
        await reader.wait_readable(pipe[0])
        assert len(turns) == number // FAIR_TURNS


async def test_a_closed_peer_is_not_waited_for(turns: list[int]) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        await _Reader(None).wait_readable(ours.fileno())
    assert turns == []


async def test_other_tasks_have_their_turn_under_load(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    reader, ran = _Reader(None), trio.Event()

    async def other() -> None:
        ran.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(2 * FAIR_TURNS):  # trio shuffles who is ready, so that the first turn may come right back
            await reader.wait_readable(pipe[0])
        assert ran.is_set()


# -- taking over


def same_file(a: int, b: int) -> bool:
    return os.path.samestat(os.fstat(a), os.fstat(b))


async def test_the_first_wait_is_for_the_replayed_init(pipe: tuple[int, int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"INIT")
        taken = os.dup(pipe[0])
        await _Reader(taken).wait_readable(ours.fileno())
        assert not same_file(ours.fileno(), pipe[0])
        os.close(taken)


async def test_the_second_wait_is_for_the_kernel(pipe: tuple[int, int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"INIT")
        taken = os.dup(pipe[0])
        os.set_blocking(pipe[0], True)
        reader = _Reader(taken)
        os.write(pipe[1], b"x")
        for _ in range(2):
            await reader.wait_readable(ours.fileno())
        assert same_file(ours.fileno(), pipe[0])
        assert not os.get_blocking(ours.fileno())
        assert not os.get_inheritable(ours.fileno())
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(taken)


# -- readers


async def run_readers(loop: Callable[..., Any], *args: Any) -> None:
    async with trio.open_nursery() as nursery:
        _ReaderNursery(nursery, Buffers()).start_soon(loop, None, *args, name="reader")


async def test_a_reader_goes_on_after_eagain() -> None:
    calls = []

    async def loop(nursery: object, *args: int) -> None:
        calls.append(args)
        if len(calls) < 3:
            raise OSError(errno.EAGAIN, "gone")

    await run_readers(loop, 1, 64)
    assert calls == [(1, 64)] * 3


async def test_a_reader_starts_others_that_go_on_as_well() -> None:
    calls = []

    async def loop(nursery: Any, depth: int) -> None:
        calls.append(depth)
        if calls.count(depth) < 2:
            raise OSError(errno.EAGAIN, "gone")
        if depth:
            nursery.start_soon(loop, nursery, depth - 1, name="another")

    await run_readers(loop, 2)
    assert calls == [2, 2, 1, 1, 0, 0]


async def test_any_other_error_ends_the_nursery() -> None:
    async def loop(nursery: object) -> None:
        raise OSError(errno.ENODEV, "unmounted")

    with pytest.raises(ExceptionGroup) as caught:
        await run_readers(loop)
    assert [error.errno for error in caught.value.exceptions if isinstance(error, OSError)] == [errno.ENODEV]


async def test_a_poll_that_lies_does_not_end_the_readers(pipe: tuple[int, int]) -> None:
    class LyingPoll:
        lies = 3

        def poll(self, _timeout: int) -> bool:
            self.lies -= 1
            if not self.lies:
                os.write(pipe[1], b"x")
            return True

    reader, got = _Reader(None), []
    reader.poller = LyingPoll()  # type: ignore[assignment]

    async def loop(nursery: object) -> None:
        await reader.wait_readable(pipe[0])
        got.append(os.read(pipe[0], 1))

    await run_readers(loop)
    assert got == [b"x"]


# -- all of it together, as pyfuse3's session loop does it


async def serve(fd: int, handler: Callable[[bytes], Any], readers: int, requests: int) -> None:
    """Read `requests` bytes from `fd` with some tasks and run `handler` for each."""
    lock, reader, left = BargingLock(), _Reader(None), requests

    async with trio.open_nursery() as nursery:

        async def loop() -> None:
            nonlocal left
            while True:
                async with lock:
                    if not left:
                        break
                    await reader.wait_readable(fd)
                data = os.read(fd, 1)
                left -= 1
                await inline(handler(data))
            lock.wake()  # the last requests are read: let the next task see it

        for _ in range(readers):
            nursery.start_soon(loop)


@on_virtual_clock
async def test_twenty_slow_handlers_take_as_long_as_one(pipe: tuple[int, int]) -> None:
    began = trio.current_time()
    os.write(pipe[1], bytes(20))

    async def slow(_data: bytes) -> None:
        await trio.sleep(0.5)

    await serve(pipe[0], slow, readers=21, requests=20)
    assert trio.current_time() - began == pytest.approx(0.5)


@on_virtual_clock
async def test_no_wake_up_is_lost_between_quick_and_slow_handlers(pipe: tuple[int, int]) -> None:
    data = bytes(index % 7 for index in range(1000))
    os.write(pipe[1], data)
    handled = []

    async def mixed(byte: bytes) -> None:
        if byte[0] == 0:
            await trio.sleep(0.01)
        elif byte[0] == 3:
            await trio.lowlevel.checkpoint()
        handled.append(byte)

    with trio.fail_after(60):
        await serve(pipe[0], mixed, readers=4, requests=len(data))
    assert sorted(handled) == sorted(bytes([byte]) for byte in data)


# -- the seam


@pytest.fixture
def _installed() -> Iterator[None]:
    lean.install()
    yield
    lean.uninstall()


@pytest.mark.usefixtures("_installed")
def test_pyfuse3_gets_the_lock() -> None:
    assert pyfuse3.trio.Lock is BargingLock  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_installed")
def test_pyfuse3_gets_the_wait() -> None:
    assert pyfuse3.trio.lowlevel.wait_readable.__func__ is _Reader.wait_readable  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("name", ["ClosedResourceError", "sleep", "run"])
def test_pyfuse3_finds_everything_else_in_trio(name: str) -> None:
    assert getattr(pyfuse3.trio, name) is getattr(trio, name)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_installed")
def test_what_trio_has_not_is_missing_in_the_seam_too() -> None:
    with pytest.raises(AttributeError):
        pyfuse3.trio.no_such_name  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.usefixtures("_installed")
async def test_pyfuse3_gets_a_nursery_of_readers() -> None:
    async with pyfuse3.trio.open_nursery() as nursery:  # type: ignore[attr-defined]
        assert isinstance(nursery, _ReaderNursery)


@pytest.mark.usefixtures("_installed")
def test_trio_itself_is_left_alone() -> None:
    assert trio.Lock is not BargingLock


def test_uninstall_gives_pyfuse3_its_trio_back() -> None:
    lean.install()
    lean.uninstall()
    assert pyfuse3.trio is trio  # type: ignore[attr-defined]


def test_waking_without_a_session_does_nothing() -> None:
    lean.wake_reader()
    assert BargingLock.current is None


async def test_now_needs_no_waiting() -> None:
    with trio.testing.assert_no_checkpoints():
        await NOW
