"""The state area as a whole: its header, its parts, and any sequence of changes and kills against a small model."""

from __future__ import annotations

import random
from typing import Any, TypeAlias

import pytest
from crashes import Memory, torn
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support import PEER

from ldmfs.core.device import Consumer, Device, LogicalDevice
from ldmfs.core.errors import InvalidRequest, NameTooLong, NoSpace, QueueFull, StateDamaged
from ldmfs.core.state import MAX_CAPACITY, SIZES, Left, Sizes, StateArea
from ldmfs.core.tables import Stage

SMALL = Sizes(consumers=4, capacity=400, files=400)

DEVICE = LogicalDevice("d", 77, Device(), "", (0, 0))


def fresh(sizes: Sizes = SMALL) -> Memory:
    """Return memory with an empty state area in it, and garbage in all that is not used."""
    memory = Memory(b"\xff" * sizes.total)
    StateArea.format(memory.view, sizes)
    return memory


def test_a_new_area_has_nothing() -> None:
    area = StateArea(fresh().view)
    assert area.recover() == Left((), 0, "")
    assert len(area.store("text")) == 0


def test_the_next_instance_is_told_what_its_predecessor_left_and_not_what_it_does_itself() -> None:
    memory = fresh()
    first = StateArea(memory.view)
    first.consumers.add(Consumer(1, DEVICE, PEER))
    first.store("text").put("a", b"one")
    second = StateArea(memory.view)
    left = second.recover()
    second.consumers.add(Consumer(2, DEVICE, PEER))
    second.consumers.remove(1)
    assert second.recover() is left
    assert [each.id for each in left.consumers] == [1]
    assert second.store("text").get("a") == b"one"


def test_a_damaged_store_leaves_the_tables_to_be_used() -> None:
    memory = fresh()
    StateArea(memory.view).consumers.add(Consumer(1, DEVICE, PEER))
    memory.image[SMALL.journal : SMALL.total] = bytes(SMALL.total - SMALL.journal)
    area = StateArea(memory.view)
    assert [each.id for each in area.recover().consumers] == [1]
    assert area.recover().store_damage
    with pytest.raises(StateDamaged):
        area.store("text").get("a")


@pytest.mark.parametrize("at", [0, 4, 12, 16, 20, 28, 35])
def test_a_header_that_was_written_over_is_recognised(at: int) -> None:
    memory = fresh()
    memory.image[at] ^= 1
    with pytest.raises(StateDamaged):
        StateArea(memory.view)


@pytest.mark.parametrize("size", [0, 20, SMALL.total - 1])
def test_memory_that_is_too_short_is_recognised(size: int) -> None:
    with pytest.raises(StateDamaged):
        StateArea(Memory(bytes(fresh().image[:size])).view)


def test_the_state_of_another_version_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fresh()
    monkeypatch.setattr("ldmfs.core.state.VERSION", 3)
    with pytest.raises(StateDamaged, match="is of version 2, and this ldmfs has 3"):
        StateArea(memory.view)


@pytest.mark.parametrize("capacity", [0, MAX_CAPACITY + 1])
def test_a_store_has_a_size_within_bounds(capacity: int) -> None:
    with pytest.raises(ValueError, match="at most"):
        StateArea.format(Memory(b"").view, Sizes(capacity=capacity))


def test_an_area_has_room_for_as_much_as_a_container_may_have() -> None:
    assert (SIZES.consumers, SIZES.capacity) == (1 << 20, 4 << 20)


@pytest.mark.parametrize(("name", "error"), [("", InvalidRequest), ("x" * 256, NameTooLong)])
def test_a_store_belongs_to_a_name(name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        StateArea(fresh().view).store(name)


# -- any sequence, any kill

Model: TypeAlias = tuple[dict[int, Stage], dict[str, dict[str, bytes]]]

IDS = st.integers(1, 6)
OWNERS = st.sampled_from(["p", "q"])
CHANGES = st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(0, 150), min_size=1)

STEPS = st.one_of(
    st.tuples(st.just("add"), IDS),
    st.tuples(st.just("opened"), IDS),
    st.tuples(st.just("answered"), IDS),
    st.tuples(st.just("closing"), IDS),
    st.tuples(st.just("remove"), IDS),
    st.tuples(st.just("commit"), OWNERS, CHANGES, st.integers()),
)
"""What an instance may do, as the name of a method of `Machine` and its arguments."""


class Machine(RuleBasedStateMachine):
    """One area, its instance that lives, and what must be in it."""

    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.consumers: dict[int, Stage] = {}
        self.stores: dict[str, dict[str, bytes]] = {"p": {}, "q": {}}
        self.start(bytes(fresh().image))

    def start(self, image: bytes) -> None:
        """Let the next instance find an image."""
        self.memory = Memory(image)
        self.area = StateArea(self.memory.view)

    @rule(step=STEPS)
    def go_on(self, step: Any) -> None:
        """Do a step, and nobody is killed."""
        self.do(step)

    @rule()
    def restart(self) -> None:
        """End an instance between two steps."""
        self.start(bytes(self.memory.image))

    @rule(step=STEPS)
    def kill(self, step: Any) -> None:
        """Kill an instance in a step: what is there is what was there before it, or after it."""
        image, before = bytes(self.memory.image), self.expected()
        self.memory.stores.clear()
        self.do(step)
        after = self.expected()
        self.start(torn(image, self.memory.stores, self.random))
        assert found(self.area) in (before, after)
        self.consumers, self.stores = found(self.area)

    @invariant()
    def the_next_instance_finds_what_must_be_there(self) -> None:
        assert found(StateArea(self.memory.view)) == self.expected()

    @invariant()
    def opening_an_area_that_is_whole_writes_nothing(self) -> None:
        memory = Memory(bytes(self.memory.image))
        StateArea(memory.view)
        assert memory.stores == []

    def expected(self) -> Model:
        stores = {owner: dict(keys) for owner, keys in self.stores.items()}
        return dict(self.consumers), stores

    def do(self, step: Any) -> None:
        name, *args = step
        getattr(self, f"do_{name}")(*args)

    def do_add(self, id: int) -> None:
        consumer = Consumer(id, DEVICE, PEER)
        if id in self.consumers:
            with pytest.raises(ValueError, match="already"):
                self.area.consumers.add(consumer)
        elif len(self.consumers) == SMALL.consumers:
            with pytest.raises(QueueFull):
                self.area.consumers.add(consumer)
        else:
            self.area.consumers.add(consumer)
            self.consumers[id] = Stage.OPENING

    def do_opened(self, id: int) -> None:
        if id in self.consumers:
            self.area.consumers.opened(id)
            self.consumers[id] = Stage.OPENED

    def do_answered(self, id: int) -> None:
        self.area.consumers.answered(id)
        if self.consumers.get(id) is Stage.OPENED:
            self.consumers[id] = Stage.OPEN

    def do_closing(self, id: int) -> None:
        if id in self.consumers:
            self.area.consumers.closing(id)
            self.consumers[id] = Stage.CLOSING

    def do_remove(self, id: int) -> None:
        self.area.consumers.remove(id)
        self.consumers.pop(id, None)

    def do_commit(self, owner: str, changes: dict[str, int | None], seed: int) -> None:
        values = {
            key: None if size is None else random.Random(seed + size).randbytes(size) for key, size in changes.items()
        }
        transaction = self.area.store(owner).transaction()
        for key, value in values.items():
            if value is None:
                transaction.delete(key)
            else:
                transaction.put(key, value)
        try:
            transaction.commit()
        except NoSpace:
            assert self.size_with(owner, values) > SMALL.capacity
        else:
            assert self.size_with(owner, values) <= SMALL.capacity
            merged = {**self.stores[owner], **values}
            self.stores[owner] = {key: value for key, value in merged.items() if value is not None}

    def size_with(self, owner: str, values: dict[str, bytes | None]) -> int:
        """Return what a log takes that begins with the store as it would be: record, entries, names, keys, values."""
        stores = {**self.stores, owner: {**self.stores[owner], **values}}
        return 20 + sum(10 + len(value) for keys in stores.values() for value in keys.values() if value is not None)


def found(area: StateArea) -> Model:
    """Return what an instance finds, having checked what is the same in all of it."""
    left = area.recover()
    assert (left.damaged, left.store_damage) == (0, "")
    assert all((each.device_id, each.peer) == (DEVICE.id, PEER) for each in left.consumers)
    stores: dict[str, dict[str, bytes]] = {}
    for owner in ("p", "q"):
        store = area.store(owner)
        stores[owner] = {key: store.get(key) or b"" for key in store}
    consumers = {each.id: each.stage for each in left.consumers}
    return consumers, stores


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
