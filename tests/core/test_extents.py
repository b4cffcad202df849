"""The books of what is free, against a plain list of what is in use."""

from __future__ import annotations

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ldmfs.core.extents import ArenaExhausted, Extent, Space


class Books(RuleBasedStateMachine):
    """A `Space` against a plain list of what is in use."""

    def __init__(self) -> None:
        super().__init__()
        self.space = Space(10, 100)
        self.taken: list[Extent] = []

    @rule(size=st.integers(1, 40), more=st.none() | st.integers(0, 40))
    def take(self, size: int, more: int | None) -> None:
        try:
            part = self.space.take(size, None if more is None else size + more)
        except ArenaExhausted:
            assert all(part.size < size for part in self.space.free)
        else:
            assert size <= part.size <= size + (more or 0)
            self.taken.append(part)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        self.space.give(self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1))))

    @invariant()
    def every_unit_is_free_or_taken_once(self) -> None:
        units = [unit for part in (*self.space.free, *self.taken) for unit in range(part.location, sum(part))]
        assert sorted(units) == list(range(10, 110))

    @invariant()
    def free_neighbours_are_joined(self) -> None:
        free = self.space.free
        assert all(sum(one) < other.location for one, other in itertools.pairwise(free))


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=50)
