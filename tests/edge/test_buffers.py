"""The buffers for requests: what a task allocates for its first read is there, and nothing else is."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from ldmfs.fuse import buffers
from ldmfs.fuse.buffers import MAX_FILLED, Buffers

SIZE = 1 << 20
FILLED = bytes([0xFE]) * SIZE
"""What glibc fills memory with when it is told the number 1."""

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]


@pytest.fixture(autouse=True)
def _as_ever() -> Iterator[None]:
    """Allocate as ever before and afterwards."""
    libc.mallopt(buffers.M_PERTURB, 0)
    yield
    libc.mallopt(buffers.M_PERTURB, 0)


def is_filled() -> bool:
    """Tell whether memory that is allocated now is filled, and so is there."""
    block = libc.malloc(SIZE)
    filled = ctypes.string_at(block, SIZE) == FILLED
    ctypes.memset(block, 0, SIZE)
    libc.free(block)
    return filled


async def read(buffers: Buffers) -> bool:
    """Do as a task does that reads; return whether its buffer is there."""
    if buffers.pending:
        buffers.before_read()
    return is_filled()


async def test_the_buffer_of_a_new_task_is_there() -> None:
    buffers = Buffers()
    assert not await read(buffers)
    buffers.begin()
    assert await read(buffers)


async def test_what_is_allocated_later_is_not() -> None:
    buffers = Buffers()
    buffers.begin()
    await read(buffers)
    assert not await read(buffers)
    assert not buffers.pending


async def test_of_several_tasks_each_has_its_own() -> None:
    buffers, found = Buffers(), []

    async def task(turn: trio.Event, after: trio.Event) -> None:
        buffers.begin()
        await turn.wait()
        found.append(await read(buffers))
        after.set()

    events = [trio.Event() for _ in range(4)]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for turn, after in itertools.pairwise(events):
                nursery.start_soon(task, turn, after)
            await trio.testing.wait_all_tasks_blocked()
            assert not await read(buffers)  # an older task's turn comes in between
            events[0].set()
            await events[-1].wait()
    assert found == [True] * 3
    assert not await read(buffers)


async def test_a_task_that_ends_without_reading_leaves_nothing() -> None:
    buffers = Buffers()
    buffers.begin()
    buffers.end()
    assert not await read(buffers)
    assert not buffers.pending


async def test_more_tasks_than_that_do_without() -> None:
    buffers = Buffers()
    for _ in range(MAX_FILLED):
        buffers.begin()
        await read(buffers)
    await read(buffers)
    buffers.begin()
    assert not buffers.pending
    assert not await read(buffers)
