"""Waits that a signal ends, on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from support import on_virtual_clock

from ldmfs.core.errors import Interrupted
from ldmfs.fuse.signals import Pending
from ldmfs.fuse.waiting import OLD_SECONDS, SLOW_SECONDS, KilledInWait, Watch


class Looks:
    """What is pending, by turns; the last one stays."""

    def __init__(self, *answers: Pending) -> None:
        self.answers = list(answers)
        self.count = 0

    def __call__(self) -> Pending:
        self.count += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


NOTHING = (Pending.NONE,)


@pytest.fixture(autouse=True)
def _looks_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look in the task itself: the virtual clock does not wait for a thread that a busy machine is slow to run."""

    async def run_sync(call: Callable[..., Any], *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return call(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@on_virtual_clock
async def test_a_wait_ends_when_its_event_happens() -> None:
    async with trio.open_nursery() as nursery:
        event = trio.Event()
        nursery.start_soon(Watch(nursery).wait, event, Looks(*NOTHING))
        await trio.testing.wait_all_tasks_blocked()
        event.set()


@on_virtual_clock
async def test_a_short_wait_is_not_looked_at() -> None:
    looks = Looks(Pending.FATAL)
    async with trio.open_nursery() as nursery:
        event = trio.Event()
        nursery.start_soon(Watch(nursery).wait, event, looks)
        await trio.sleep(OLD_SECONDS * 0.9)
        event.set()
    assert looks.count == 0


@pytest.mark.parametrize(("pending", "error"), [(Pending.SIGNAL, Interrupted), (Pending.FATAL, KilledInWait)])
@on_virtual_clock
async def test_a_pending_signal_ends_an_old_wait(pending: Pending, error: type[Interrupted]) -> None:
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        with pytest.raises(Interrupted) as caught:
            await Watch(nursery).wait(trio.Event(), Looks(pending))
        assert type(caught.value) is error
        assert trio.current_time() - began <= 2 * OLD_SECONDS


@on_virtual_clock
async def test_a_signal_that_comes_late_ends_the_wait() -> None:
    async with trio.open_nursery() as nursery:
        looks = Looks(*[Pending.NONE] * 10, Pending.SIGNAL)
        with pytest.raises(Interrupted):
            await Watch(nursery).wait(trio.Event(), looks)
    assert looks.count == 11


@on_virtual_clock
async def test_a_long_wait_is_looked_at_rarely_but_still() -> None:
    looks = Looks(*NOTHING)
    async with trio.open_nursery() as nursery:
        event = trio.Event()
        nursery.start_soon(Watch(nursery).wait, event, looks)
        await trio.sleep(10)
        before = looks.count
        await trio.sleep(10)
        event.set()
        often = (looks.count - before) / 10
    assert 1 / (SLOW_SECONDS + 2 * OLD_SECONDS) <= often <= 1 / SLOW_SECONDS


@on_virtual_clock
async def test_a_signal_ends_only_the_wait_that_it_is_for() -> None:
    ended = []
    async with trio.open_nursery() as nursery:
        watch, event = Watch(nursery), trio.Event()

        async def wait(name: str, looks: Looks) -> None:
            try:
                await watch.wait(event, looks)
                ended.append(f"{name} went on")
            except Interrupted:
                ended.append(f"{name} interrupted")

        nursery.start_soon(wait, "a", Looks(Pending.SIGNAL))
        nursery.start_soon(wait, "b", Looks(*NOTHING))
        await trio.sleep(1)
        event.set()
    assert ended == ["a interrupted", "b went on"]


@on_virtual_clock
async def test_one_task_looks_after_all_waits() -> None:
    async with trio.open_nursery() as nursery:
        watch, event = Watch(nursery), trio.Event()
        before = len(nursery.child_tasks)
        for _ in range(10):
            nursery.start_soon(watch.wait, event, Looks(*NOTHING))
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) - before == 10 + 1
        event.set()


@on_virtual_clock
async def test_the_watch_ends_with_the_last_wait() -> None:
    async with trio.open_nursery() as nursery:
        event = trio.Event()
        event.set()
        await Watch(nursery).wait(event, Looks(*NOTHING))
        await trio.sleep(2 * OLD_SECONDS)
        assert len(nursery.child_tasks) == 0


@on_virtual_clock
async def test_a_wait_after_the_watch_ended_is_watched_again() -> None:
    async with trio.open_nursery() as nursery:
        watch, event = Watch(nursery), trio.Event()
        event.set()
        await watch.wait(event, Looks(*NOTHING))
        await trio.sleep(2 * OLD_SECONDS)
        with pytest.raises(Interrupted):
            await watch.wait(trio.Event(), Looks(Pending.SIGNAL))


@on_virtual_clock
async def test_a_cancellation_passes_and_ends_the_watch() -> None:
    async with trio.open_nursery() as nursery:
        watch = Watch(nursery)
        with trio.move_on_after(0.01) as scope:
            await watch.wait(trio.Event(), Looks(*NOTHING))
        assert scope.cancelled_caught
        await trio.sleep(2 * OLD_SECONDS)
        assert len(nursery.child_tasks) == 0
