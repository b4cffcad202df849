"""The buffers for requests: what a task allocates for its first read is there, and nothing else is."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from ldmfs.fuse import buffers
from ldmfs.fuse.buffers import MAX_FILLED, Buffers

PAGES = 300
SIZE = PAGES * mmap.PAGESIZE

libc = ctypes.CDLL(None, use_errno=True)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]


@pytest.fixture(autouse=True)
def _afterwards() -> Iterator[None]:
    """Allocate by mmap, whose pages are new, and as ever afterwards."""
    libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD, which else grows with what is freed
    libc.mallopt(buffers.M_PERTURB, 0)
    yield
    libc.mallopt(buffers.M_PERTURB, 0)


def resident() -> int:
    """Return how many pages of a block that is allocated now are there."""
    block = libc.malloc(SIZE)
    begin = block & ~(mmap.PAGESIZE - 1)
    states = (ctypes.c_ubyte * PAGES)()
    assert libc.mincore(ctypes.c_void_p(begin), ctypes.c_size_t(SIZE), states) == 0
    libc.free(block)
    return sum(state & 1 for state in states)


async def read(buffers: Buffers) -> int:
    """Do as a task does that reads; return how much of its buffer is there."""
    if buffers.pending:
        buffers.before_read()
    return resident()


async def test_the_buffer_of_a_new_task_is_there() -> None:
    buffers = Buffers()
    assert await read(buffers) < PAGES // 2
    buffers.begin()
    assert await read(buffers) >= PAGES - 1


async def test_what_is_allocated_later_is_not() -> None:
    buffers = Buffers()
    buffers.begin()
    await read(buffers)
    assert await read(buffers) < PAGES // 2
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
            assert await read(buffers) < PAGES // 2  # an older task's turn comes in between
            events[0].set()
            await events[-1].wait()
    assert [there >= PAGES - 1 for there in found] == [True] * 3
    assert await read(buffers) < PAGES // 2


async def test_a_task_that_ends_without_reading_leaves_nothing() -> None:
    buffers = Buffers()
    buffers.begin()
    buffers.end()
    assert await read(buffers) < PAGES // 2
    assert not buffers.pending


async def test_more_tasks_than_that_do_without() -> None:
    buffers = Buffers()
    for _ in range(MAX_FILLED):
        buffers.begin()
        await read(buffers)
    await read(buffers)
    buffers.begin()
    assert not buffers.pending
    assert await read(buffers) < PAGES // 2
