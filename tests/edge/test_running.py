"""A handler in a task of its own: what is told of its end, and when."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ldmfs.core.errors import InvalidRequest, LdmError
from ldmfs.fuse.running import Running

Told = list[int | LdmError | None]


async def answer(value: int) -> int:
    await trio.lowlevel.checkpoint()
    return value


async def refuse(error: Exception) -> int:
    raise error


async def test_what_it_has_come_to_is_told_before_who_waits_goes_on() -> None:
    told: Told = []
    running = Running()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run, told.append, answer, 5)
        await running.done.wait()
        assert told == [5]


async def test_an_error_of_the_model_is_what_it_has_come_to() -> None:
    told: Told = []
    error = InvalidRequest("no")
    await Running().run(told.append, refuse, error)
    assert told == [error]


async def test_of_one_that_was_cancelled_there_is_nothing() -> None:
    told: Told = []
    running = Running()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run, told.append, trio.sleep_forever)
        await trio.testing.wait_all_tasks_blocked()
        running.scope.cancel()
        await running.done.wait()
        assert told == [None]


async def test_who_waits_in_a_shield_goes_on_when_everything_is_cancelled() -> None:
    told: Told = []
    running = Running()

    async def wait_to_the_end() -> None:
        with trio.CancelScope(shield=True):
            await running.done.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run, told.append, trio.sleep_forever)
        nursery.start_soon(wait_to_the_end)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert told == []


async def test_another_error_is_not_held_back() -> None:
    running = Running()
    with pytest.raises(ZeroDivisionError):
        await running.run(lambda outcome: None, refuse, ZeroDivisionError())
    assert running.done.is_set()
