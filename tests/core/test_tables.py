"""The tables of consumers and requests: what one instance enters, the next one finds."""

from __future__ import annotations

import os
import random

import msgspec
import pytest
from crashes import Memory, images
from hypothesis import given
from hypothesis import strategies as st
from support import PEER

from ldmfs.core.device import NO_SESSION, Consumer, Device, LogicalDevice, Peer
from ldmfs.core.errors import HandleClosed, QueueFull
from ldmfs.core.tables import (
    CHUNK,
    CONSUMER,
    PATHS,
    ConsumerTable,
    LeftConsumer,
    Stage,
    Table,
)

DEVICE = LogicalDevice("d", (1 << 53) - 1, Device(), "", (0, 0))

GARBAGE = bytes(range(1, 256))

SLOT = Table.size_for(2, CONSUMER) - Table.size_for(1, CONSUMER)


def consumer(id: int = 1, peer: Peer = PEER) -> Consumer:
    return Consumer(id, DEVICE, peer)


def memory(slots: int, layout: object = CONSUMER, begin: int = 64) -> Memory:
    """Return memory with an empty table, and garbage in all that `format` leaves as it was."""
    size = begin + Table.size_for(slots, layout)  # type: ignore[arg-type]
    memory = Memory((GARBAGE * (size // len(GARBAGE) + 1))[:size])
    Table.format(memory.view, begin, slots)
    memory.stores.clear()
    return memory


def consumers(memory: Memory, slots: int = 5) -> ConsumerTable:
    return ConsumerTable(memory.view, 64, slots)


def found(memory: Memory, slots: int = 5) -> dict[int, Stage]:
    """Return what the next instance finds."""
    return {left.id: left.stage for left in consumers(memory, slots).left}


def test_an_empty_table_has_nothing() -> None:
    table = consumers(memory(5))
    assert (table.left, len(table), table.damaged) == ((), 0, 0)


@pytest.mark.parametrize("path", PATHS)
def test_the_next_instance_finds_all_that_is_told_of_a_consumer(path: str) -> None:
    area = memory(5)
    peer = Peer(pid=4_194_304, uid=(1 << 32) - 2, gid=0, session=NO_SESSION, path=path, tid=4_194_303)
    opened = consumer((1 << 64) - 1, peer)
    consumers(area).add(opened, os.O_RDWR | os.O_NONBLOCK)
    assert consumers(area).left == (
        LeftConsumer(opened.id, DEVICE.id, peer, opened.since, os.O_RDWR | os.O_NONBLOCK, Stage.OPENING),
    )


def test_a_consumer_goes_through_its_stages() -> None:
    area = memory(5)
    table = consumers(area)
    table.add(consumer())
    seen = [found(area)]
    for step in (table.opened, table.answered, table.closing, table.remove):
        step(1)
        seen.append(found(area))
    assert seen == [{1: Stage.OPENING}, {1: Stage.OPENED}, {1: Stage.OPEN}, {1: Stage.CLOSING}, {}]


def test_what_is_known_of_an_open_file_is_not_forgotten_when_its_opener_was_told() -> None:
    area = memory(5)
    table = consumers(area)
    table.add(consumer())
    table.opened(1)
    stages, at = table.stage_byte(1)
    stages[at] = Stage.ASKED
    table.answered(1)
    assert found(area) == {1: Stage.ASKED}
    table.idle(1)
    assert found(area) == {1: Stage.OPEN}


def test_who_is_gone_before_it_was_told_is_none_to_be_told() -> None:
    area = memory(5)
    consumers(area).answered(1)
    assert area.stores == []


def test_the_next_instance_goes_on_with_a_consumer() -> None:
    area = memory(5)
    consumers(area).add(consumer(7))
    table = consumers(area)
    table.closing(7)
    assert found(area) == {7: Stage.CLOSING}
    table.remove(7)
    assert found(area) == {}


def test_what_wakes_those_who_wait_is_found() -> None:
    area = memory(5)
    table = consumers(area)
    table.add(consumer(1))
    table.add(consumer(2))
    table.opened(2)
    table.waited_for(2, (1 << 64) - 1)
    table.closing(2)
    assert [(left.id, left.waker) for left in consumers(area).left] == [(1, 0), (2, (1 << 64) - 1)]


def test_who_gets_a_slot_has_nothing_of_whom_had_it() -> None:
    area = memory(1)
    table = consumers(area, 1)
    table.add(consumer(1))
    table.waited_for(1, 7)
    table.remove(1)
    table.add(consumer(2))
    assert [(left.id, left.waker) for left in consumers(area, 1).left] == [(2, 0)]


def test_a_kill_leaves_the_whole_waker_or_none() -> None:
    area = memory(5)
    table = consumers(area)
    table.add(consumer(1))
    before = bytes(area.image)
    area.stores.clear()
    table.waited_for(1, 0x0102030405060708)
    for image in images(before, area.stores, random.Random(1)):
        (left,) = ConsumerTable(Memory(image).view, 64, 5).left
        assert left.waker in (0, 0x0102030405060708)


def test_consumers_are_found_in_the_order_of_their_ids() -> None:
    area = memory(5)
    table = consumers(area)
    for id in (3, 1, 2):
        table.add(consumer(id))
    assert [left.id for left in consumers(area).left] == [1, 2, 3]


def test_a_consumer_is_entered_once() -> None:
    area = memory(5)
    consumers(area).add(consumer())
    table = consumers(area)
    with pytest.raises(ValueError, match="already"):
        table.add(consumer())
    assert found(area) == {1: Stage.OPENING}


def test_a_consumer_that_is_not_there_cannot_be_opened() -> None:
    with pytest.raises(HandleClosed):
        consumers(memory(5)).opened(1)


def test_a_consumer_that_is_not_there_is_none_to_remove() -> None:
    area = memory(5)
    consumers(area).remove(1)
    assert area.stores == []


def test_a_way_that_nobody_comes_is_refused_and_nothing_is_entered() -> None:
    area = memory(5)
    table = consumers(area)
    with pytest.raises(KeyError):
        table.add(consumer(peer=Peer(path="pigeon")))
    table.add(consumer())
    assert found(area) == {1: Stage.OPENING}


@pytest.mark.parametrize("slots", [1, 5, CHUNK, CHUNK + 1, 2 * CHUNK - 1])
def test_as_many_consumers_have_room_as_there_are_slots(slots: int) -> None:
    area = memory(slots)
    table = consumers(area, slots)
    for id in range(slots):
        table.add(consumer(id))
    with pytest.raises(QueueFull):
        table.add(consumer(slots))
    assert set(found(area, slots)) == set(range(slots))


def test_there_is_room_again_for_what_was_removed_also_by_the_next_instance() -> None:
    area = memory(2)
    table = consumers(area, 2)
    table.add(consumer(1))
    table.add(consumer(2))
    table.remove(1)
    table.add(consumer(3))
    table = consumers(area, 2)
    with pytest.raises(QueueFull):
        table.add(consumer(4))
    table.remove(2)
    table.add(consumer(4))
    assert set(found(area, 2)) == {3, 4}


def test_memory_is_taken_only_for_the_slots_that_there_have_been() -> None:
    slots = 100 * CHUNK
    area = memory(slots)
    table = consumers(area, slots)
    for id in range(CHUNK + 1):
        table.add(consumer(id))
    table.remove(CHUNK)
    for id in range(1000, 2000):
        table.add(consumer(id))
        table.remove(id)
    begin = 64 + Table.size_for(slots, CONSUMER) - slots * SLOT
    assert max(stored.begin + len(stored.data) for stored in area.stores) == begin + 2 * CHUNK * SLOT


# -- kills


def test_a_kill_at_any_moment_leaves_each_consumer_as_it_was_or_as_it_becomes() -> None:
    area = memory(3)
    table = consumers(area, 3)
    model: dict[int, Stage] = {}
    for id in range(1, 6):
        steps = [
            (lambda id=id: table.add(consumer(id), id), Stage.OPENING),
            (lambda id=id: table.opened(id), Stage.OPENED),
            (lambda id=id: table.answered(id), Stage.OPEN),
            (lambda id=id: table.closing(id), Stage.CLOSING),
        ]
        if id > 2:
            model = check_kills(area, lambda id=id: table.remove(id - 2), model, {**model, id - 2: None})
        for step, stage in steps:
            model = check_kills(area, step, model, {**model, id: stage})
    assert model == {4: Stage.CLOSING, 5: Stage.CLOSING}


def check_kills(area: Memory, step: object, model: dict[int, Stage], new: dict[int, Stage | None]) -> dict[int, Stage]:
    """Do a step; look at what each kill in it leaves, and whether that can be gone on with.  Return the new model."""
    before = bytes(area.image)
    after = {id: stage for id, stage in new.items() if stage is not None}
    area.stores.clear()
    step()  # type: ignore[operator]
    for image in images(before, area.stores, random.Random(0)):
        killed = Memory(image)
        table = consumers(killed, 3)
        there = {left.id: left.stage for left in table.left}
        assert there in (model, after)
        assert table.damaged == 0
        assert all((left.flags, left.device_id, left.peer) == (left.id, DEVICE.id, PEER) for left in table.left)
        for id in there:
            table.remove(id)
        for id in (101, 102, 103):
            table.add(consumer(id))
        assert set(found(killed, 3)) == {101, 102, 103}
    assert found(area, 3) == after
    return after


# -- garbage


@given(at=st.integers(0, 5 * SLOT + 63), garbage=st.binary(min_size=1, max_size=100))
def test_what_was_written_over_is_never_taken_for_another_consumer(at: int, garbage: bytes) -> None:
    area = memory(5)
    table = consumers(area)
    for id in range(1, 6):
        table.add(consumer(id), id)
    whole = {left.id: left for left in consumers(area).left}
    area.image[64 + at :] = (garbage + bytes(area.image[64 + at + len(garbage) :]))[: len(area.image) - 64 - at]
    table = consumers(area)
    for left in table.left:
        assert msgspec.structs.replace(left, stage=Stage.OPENING, waker=0) == whole[left.id]
    assert len(table) == len(table.left)


def test_what_is_no_entry_is_counted_once_and_its_slot_is_free_again() -> None:
    area = memory(2)
    table = consumers(area, 2)
    table.add(consumer(1))
    table.add(consumer(2))
    _, slot, _ = (stored.begin for stored in area.stores if len(stored.data) == 1)  # the chunk's mark comes first
    area.image[slot + 8] ^= 0x40
    table = consumers(area, 2)
    assert (table.damaged, [left.id for left in table.left]) == (1, [2])
    assert consumers(area, 2).damaged == 0
    table.add(consumer(3))
    assert set(found(area, 2)) == {2, 3}


def test_a_consumer_that_is_there_twice_is_found_once() -> None:
    area = memory(2)
    consumers(area, 2).add(consumer(1))
    slot = area.stores[-1].begin
    area.image[slot + SLOT : slot + 2 * SLOT] = area.image[slot : slot + SLOT]
    table = consumers(area, 2)
    assert (len(table.left), table.damaged) == (1, 1)
