"""Parameter blocks: what one party writes another reads, and what it does with nonsense."""

from __future__ import annotations

import contextlib
import itertools
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldmfs.core.arena import ALIGNMENT, Arena, OwnArena
from ldmfs.core.blocks import Block, Chain
from ldmfs.core.errors import InvalidRequest, ProtocolError
from ldmfs.core.extents import ArenaExhausted, Extent
from ldmfs.core.request import Reply, Request, RequestType
from ldmfs.core.wire import BLOCK, Limit

SIZE, BLOCKS = 64 << 10, 8
CALL, WRITE = RequestType.CALL, RequestType.WRITE
HUGE = (1 << 64) - 1
DATA_FIELDS = [field.name for field in BLOCK.fields if field.format == "Q" and field.name not in ("reserved",)]


class Shared:
    """One memory, and a view of it for each of X (the first consumer), Y and A."""

    def __init__(self, size: int = SIZE, blocks: int = BLOCKS) -> None:
        self.memory = bytearray(size)
        self.x = OwnArena(self.memory, blocks)
        self.y = Arena(self.memory, blocks)
        self.a = Arena(self.memory, blocks)

    def poke(self, index: int, field: str, value: int) -> None:
        """Write into the header of a block, as a peer that means ill."""
        format = next(each.format for each in BLOCK.fields if each.name == field)
        struct.pack_into("<" + format, self.memory, index * BLOCK.size + BLOCK.offsets[field], value)

    def peek(self, index: int, field: str) -> Any:
        format = next(each.format for each in BLOCK.fields if each.name == field)
        return struct.unpack_from("<" + format, self.memory, index * BLOCK.size + BLOCK.offsets[field])[0]


@pytest.fixture
def shared() -> Shared:
    return Shared()


def sent(shared: Shared, data: bytes = b"hello", metadata: bytes = b"", blocks: int = 3) -> tuple[Chain, Block, Block]:
    """Send a request from X to Y; return X's chain, its block, and the block as Y took it."""
    chain = shared.x.allocate(blocks, 1024, 1024)
    block = chain.next()
    block.fill(5, "text", Request(CALL, data, metadata=metadata))
    return chain, block, shared.y.take(block.index, block.blocks, 5, CALL)


# -- what is written is read


def test_a_provider_reads_what_the_consumer_wrote(shared: Shared) -> None:
    _, _, taken = sent(shared, b"hello", b"about")
    assert taken.request(CALL, 7, 9) == Request(CALL, memoryview(b"hello"), 7, 9, b"about")


def test_a_consumer_reads_what_the_provider_wrote(shared: Shared) -> None:
    _, block, taken = sent(shared)
    taken.answer(Reply(b"HELLO", b"about"))
    assert block.reply() == Reply(memoryview(b"HELLO"), b"about")


@given(st.binary(max_size=600), st.binary(max_size=400), st.binary(max_size=600), st.binary(max_size=400))
def test_whatever_is_written_comes_back(data: bytes, metadata: bytes, answer: bytes, answer_metadata: bytes) -> None:
    _, block, taken = sent(Shared(), data, metadata)
    request = taken.request(CALL, 0, 0)
    taken.answer(Reply(answer, answer_metadata))
    reply = block.reply()
    assert (request.data, request.metadata) == (data, metadata)
    assert (reply.data, reply.metadata) == (answer, answer_metadata)


def test_the_header_tells_of_the_request(shared: Shared) -> None:
    block = shared.x.allocate(1, 64, 64).next()
    block.fill(5, "text", Request(WRITE, b"", 11, 12))
    names = ("type", "consumer_id", "offset", "length")
    assert [shared.peek(0, name) for name in names] == [WRITE, 5, 11, 12]
    assert shared.peek(0, "device").rstrip(b"\0") == b"text"


def test_input_is_seen_where_it_was_put(shared: Shared) -> None:
    _, block, taken = sent(shared)
    data = taken.request(CALL, 0, 0).data
    shared.memory[block.area.location] = ord("J")
    assert data == b"Jello"


def test_input_is_read_only(shared: Shared) -> None:
    data = sent(shared)[2].request(CALL, 0, 0).data
    assert isinstance(data, memoryview)
    assert data.readonly


def test_output_is_read_only(shared: Shared) -> None:
    _, block, taken = sent(shared)
    taken.answer(Reply(b"HELLO"))
    data = block.reply().data
    assert isinstance(data, memoryview)
    assert data.readonly


def test_output_does_not_touch_the_input(shared: Shared) -> None:
    _, _, taken = sent(shared)
    taken.answer(Reply(b"x" * 1024))
    assert taken.request(CALL, 0, 0).data == b"hello"


def test_a_consumer_may_put_its_data_itself(shared: Shared) -> None:
    block = shared.x.allocate(1, 64, 64).next()
    place = Extent(block.input_area.location, 4)
    shared.x.part(place)[:] = b"here"
    block.fill(5, "text", Request(CALL, metadata=b"about"), data=place)
    request = shared.y.take(block.index, 1, 5, CALL).request(CALL, 0, 0)
    assert (request.data, request.metadata) == (b"here", b"about")


def test_a_provider_may_put_its_data_itself(shared: Shared) -> None:
    _, block, taken = sent(shared)
    place = Extent(taken.output_area.location, 4)
    shared.y.part(place)[:] = b"here"
    taken.answer(Reply(metadata=b"about"), data=place)
    assert block.reply() == Reply(memoryview(b"here"), b"about")


# -- a chain of three


def test_input_is_passed_on_along_the_chain_where_it_is(shared: Shared) -> None:
    _, block, taken = sent(shared)
    onward = shared.y.chain(taken).next()
    assert taken.header is not None
    onward.fill(6, "a", Request(CALL), data=taken.header.input)
    last = shared.a.take(onward.index, onward.blocks, 6, CALL)
    shared.memory[block.area.location] = ord("J")
    assert last.request(CALL, 0, 0).data == b"Jello"


def test_output_is_passed_back_along_the_chain_where_it_is(shared: Shared) -> None:
    _, block, taken = sent(shared)
    onward = shared.y.chain(taken).next()
    onward.fill(6, "a", Request(CALL, b"more"))
    last = shared.a.take(onward.index, onward.blocks, 6, CALL)
    last.answer(Reply(b"MORE"))
    onward.reply()
    assert onward.header is not None
    taken.answer(Reply(), data=onward.header.output)
    shared.memory[last.output_area.location] = ord("B")
    assert block.reply().data == b"BORE"


def test_each_hop_takes_the_next_block(shared: Shared) -> None:
    _, block, taken = sent(shared)
    assert (block.index, shared.y.chain(taken).next().index) == (0, 1)


def test_a_tree_takes_a_block_for_each_request_at_a_time(shared: Shared) -> None:
    chain = shared.y.chain(sent(shared, blocks=3)[2])
    assert [chain.next(lend=0).index for _ in range(2)] == [1, 2]


def test_a_block_that_was_answered_is_used_again(shared: Shared) -> None:
    chain = shared.y.chain(sent(shared, blocks=2)[2])
    for _ in range(3):
        block = chain.next()
        assert block.index == 1
        chain.done(block)


def test_what_was_lent_is_not_handed_out(shared: Shared) -> None:
    chain = shared.x.allocate(3, 64, 64)
    chain.next()
    with pytest.raises(ArenaExhausted):
        chain.next()


def test_the_last_of_a_chain_has_nothing_to_lend(shared: Shared) -> None:
    chain = shared.y.chain(sent(shared, blocks=1)[2])
    with pytest.raises(ArenaExhausted):
        chain.next()


def test_a_block_is_given_back_once(shared: Shared) -> None:
    chain = shared.x.allocate(1, 64, 64)
    block = chain.next()
    chain.done(block)
    with pytest.raises(ValueError, match="not handed out"):
        chain.done(block)


# -- exhaustion, free and reuse


def test_an_arena_without_blocks_left_is_exhausted(shared: Shared) -> None:
    shared.x.allocate(BLOCKS, 0, 0)
    with pytest.raises(ArenaExhausted):
        shared.x.allocate(1, 0, 0)


def test_an_arena_without_room_left_is_exhausted(shared: Shared) -> None:
    with pytest.raises(ArenaExhausted):
        shared.x.allocate(1, SIZE, 0)


def test_a_chain_that_was_refused_took_no_blocks(shared: Shared) -> None:
    with pytest.raises(ArenaExhausted):
        shared.x.allocate(1, SIZE, 0)
    assert shared.x.allocate(BLOCKS, 0, 0)


def test_what_was_freed_is_allocated_again(shared: Shared) -> None:
    for _ in range(100):
        shared.x.free(shared.x.allocate(BLOCKS, 2048, 2048))


def test_a_chain_is_freed_once(shared: Shared) -> None:
    chain = shared.x.allocate(1, 64, 64)
    shared.x.free(chain)
    shared.x.allocate(1, 64, 64)
    with pytest.raises(ValueError, match="freed already"):
        shared.x.free(chain)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_a_chain_that_makes_no_sense_is_not_allocated(shared: Shared, sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="a chain has blocks"):
        shared.x.allocate(*sizes)


def test_a_request_that_does_not_fit_is_refused(shared: Shared) -> None:
    block = shared.x.allocate(1, 64, 64).next()
    with pytest.raises(ArenaExhausted):
        block.fill(5, "text", Request(CALL, bytes(60), metadata=bytes(5)))


def test_a_reply_that_does_not_fit_is_refused(shared: Shared) -> None:
    with pytest.raises(ArenaExhausted):
        sent(shared)[2].answer(Reply(bytes(1025)))


def test_a_number_that_does_not_fit_is_refused(shared: Shared) -> None:
    with pytest.raises(InvalidRequest):
        shared.x.allocate(1, 64, 64).next().fill(5, "text", Request(CALL, b"", 1 << 63))


def test_the_view_can_be_let_go(shared: Shared) -> None:
    for arena in (shared.x, shared.y, shared.a):
        arena.release()
    shared.memory.append(0)


@pytest.mark.parametrize(("size", "blocks"), [(0, 0), (SIZE, 0), (383, 1), (SIZE, Limit.MAX_BLOCKS + 1), (SIZE, -1)])
def test_an_arena_of_impossible_sizes_is_refused(size: int, blocks: int) -> None:
    with pytest.raises(ProtocolError):
        Arena(bytearray(size), blocks)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5000), st.integers(0, 5000)), max_size=8))
def test_areas_of_blocks_never_overlap(wishes: list[tuple[int, int, int]]) -> None:
    shared, areas = Shared(), []
    for count, *sizes in wishes:
        try:
            chain = shared.x.allocate(count, *sizes)
        except ArenaExhausted:
            continue
        areas += [shared.x.area(index) for index in range(chain.run.location, sum(chain.run))]
    ends = sorted((area.location, area.location + area.input_capacity + area.output_capacity) for area in areas)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(ends) if one[0] < one[1])
    assert all(location % ALIGNMENT == 0 and end <= SIZE for location, end in ends)


# -- a hostile peer


@pytest.mark.parametrize("index", [-1, BLOCKS, 65535])
def test_a_block_outside_the_table_is_refused(shared: Shared, index: int) -> None:
    with pytest.raises(ProtocolError):
        shared.y.take(index, 1, 5, CALL)


@pytest.mark.parametrize("blocks", [0, BLOCKS + 1])
def test_lent_blocks_outside_the_table_are_refused(shared: Shared, blocks: int) -> None:
    sent(shared)
    with pytest.raises(ProtocolError):
        shared.y.take(0, blocks, 5, CALL)


def test_a_block_of_another_consumer_is_refused(shared: Shared) -> None:
    sent(shared)
    with pytest.raises(ProtocolError, match="holds no CALL request of consumer 6"):
        shared.y.take(0, 1, 6, CALL)


def test_a_block_of_another_type_is_refused(shared: Shared) -> None:
    sent(shared)
    with pytest.raises(ProtocolError, match="holds no READ request"):
        shared.y.take(0, 1, 5, RequestType.READ)


@pytest.mark.parametrize("field", ["input_location", "input_metadata_location", "input_size", "input_metadata_size"])
def test_input_outside_the_arena_is_refused(shared: Shared, field: str) -> None:
    sent(shared, b"data", b"metadata")
    shared.poke(0, field, HUGE)
    with pytest.raises(ProtocolError):
        shared.y.take(0, 1, 5, CALL)


def test_input_among_the_headers_is_refused(shared: Shared) -> None:
    sent(shared)
    shared.poke(0, "input_location", BLOCKS * BLOCK.size - 1)
    with pytest.raises(ProtocolError, match="outside the arena"):
        shared.y.take(0, 1, 5, CALL)


def test_input_that_ends_behind_the_arena_is_refused(shared: Shared) -> None:
    sent(shared)
    shared.poke(0, "input_location", SIZE - 4)
    with pytest.raises(ProtocolError, match="outside the arena"):
        shared.y.take(0, 1, 5, CALL)


def test_input_that_overlaps_the_output_is_refused(shared: Shared) -> None:
    taken = sent(shared)[2]
    shared.poke(0, "input_location", taken.output_area.location)
    with pytest.raises(ProtocolError, match="overlaps"):
        shared.y.take(0, 1, 5, CALL)


def test_metadata_beyond_its_limit_is_refused() -> None:
    shared = Shared(1 << 20)
    sent(shared)
    shared.poke(0, "input_metadata_size", Limit.MAX_METADATA + 1)
    with pytest.raises(ProtocolError, match="metadata"):
        shared.y.take(0, 1, 5, CALL)


@pytest.mark.parametrize("field", ["area", "input_capacity", "output_capacity"])
def test_an_area_outside_the_arena_is_refused(shared: Shared, field: str) -> None:
    sent(shared)
    shared.poke(0, field, HUGE)
    with pytest.raises(ProtocolError, match="area of block 0"):
        shared.y.take(0, 1, 5, CALL)


def test_the_damaged_header_of_a_lent_block_is_refused(shared: Shared) -> None:
    chain = shared.y.chain(sent(shared)[2])
    shared.poke(1, "area", HUGE)
    with pytest.raises(ProtocolError):
        chain.next()


def test_the_damaged_header_of_a_lent_block_takes_no_block(shared: Shared) -> None:
    chain = shared.y.chain(sent(shared)[2])
    right = shared.peek(1, "area")
    shared.poke(1, "area", HUGE)
    with pytest.raises(ProtocolError):
        chain.next()
    shared.poke(1, "area", right)
    assert chain.next().index == 1


@pytest.mark.parametrize("field", ["output_location", "output_size", "output_metadata_location"])
def test_output_outside_the_arena_is_refused(shared: Shared, field: str) -> None:
    _, block, taken = sent(shared)
    taken.answer(Reply(b"data", b"metadata"))
    shared.poke(0, field, HUGE)
    with pytest.raises(ProtocolError, match="output of block 0"):
        block.reply()


def test_output_metadata_beyond_its_limit_is_refused(shared: Shared) -> None:
    _, block, taken = sent(shared)
    taken.answer(Reply(b"data", b"metadata"))
    shared.poke(0, "output_metadata_size", HUGE)
    with pytest.raises(ProtocolError, match="bytes of metadata"):
        block.reply()


@pytest.mark.parametrize("field", DATA_FIELDS)
def test_a_header_that_changes_after_it_was_checked_changes_nothing(shared: Shared, field: str) -> None:
    _, _, taken = sent(shared, b"data", b"metadata")
    before = taken.request(CALL, 0, 0)
    shared.poke(0, field, HUGE)
    assert taken.request(CALL, 0, 0) == before
    taken.answer(Reply(b"done"))


@pytest.mark.parametrize("field", DATA_FIELDS)
def test_a_header_that_changes_right_after_the_fetch_changes_nothing(
    shared: Shared, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = Arena.fetch

    def fetch_and_be_changed(arena: Arena, index: int) -> Any:
        header = fetch(arena, index)
        shared.poke(index, field, HUGE)
        return header

    monkeypatch.setattr(Arena, "fetch", fetch_and_be_changed)
    assert sent(shared, b"data", b"metadata")[2].request(CALL, 0, 0).data == b"data"


def test_a_header_is_fetched_once_for_each_request(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, fetched = Arena.fetch, []

    def count(arena: Arena, index: int) -> Any:
        fetched.append(index)
        return fetch(arena, index)

    monkeypatch.setattr(Arena, "fetch", count)
    taken = sent(shared)[2]
    taken.request(CALL, 0, 0)
    taken.answer(Reply(b"done"))
    assert fetched == [0]


def test_a_provider_writes_only_into_the_area_that_it_checked(shared: Shared) -> None:
    _, block, taken = sent(shared)
    shared.poke(0, "area", 0)
    taken.answer(Reply(b"done"))
    assert shared.memory[block.output_area.location :][:4] == b"done"


def test_the_first_consumer_allocates_from_its_own_books(shared: Shared) -> None:
    shared.x.free(shared.x.allocate(1, 64, 64))
    shared.memory[:] = b"\xff" * SIZE
    block = shared.x.allocate(1, 64, 64).next()
    assert block.area.location == BLOCKS * BLOCK.size


def test_the_first_consumer_takes_areas_from_its_own_books(shared: Shared) -> None:
    chain = shared.x.allocate(1, 64, 64)
    shared.poke(0, "area", HUGE)
    assert chain.next().area.location == BLOCKS * BLOCK.size


def test_data_that_is_passed_on_from_outside_the_arena_is_refused(shared: Shared) -> None:
    with pytest.raises(ProtocolError):
        shared.x.allocate(1, 64, 64).next().fill(5, "text", Request(CALL), data=Extent(0, 10))


@given(st.binary(min_size=BLOCK.size, max_size=BLOCK.size), st.sampled_from(RequestType))
def test_random_headers_raise_nothing_but_protocol_errors(header: bytes, type: RequestType) -> None:
    shared = Shared()
    sent(shared)
    shared.memory[: BLOCK.size] = header
    shared.poke(0, "type", type)
    shared.poke(0, "consumer_id", 5)
    try:
        taken = shared.y.take(0, BLOCKS, 5, type)
    except ProtocolError:
        return
    assert len(taken.request(type, 0, 0).data) <= SIZE


NEAR = st.one_of(st.integers(0, SIZE), st.sampled_from([HUGE, HUGE // 2, SIZE, SIZE - 1, BLOCKS * BLOCK.size]))


@given(st.dictionaries(st.sampled_from(DATA_FIELDS), NEAR), st.binary(max_size=64))
def test_whatever_is_in_a_header_a_provider_stays_in_the_arena_behind_the_headers(
    fields: dict[str, int], answer: bytes
) -> None:
    shared = Shared()
    sent(shared)
    for field, value in fields.items():
        shared.poke(0, field, value)
    others = shared.memory[BLOCK.size : BLOCKS * BLOCK.size]
    with contextlib.suppress(ProtocolError, ArenaExhausted):
        shared.y.take(0, 1, 5, CALL).answer(Reply(answer))
    assert shared.memory[BLOCK.size : BLOCKS * BLOCK.size] == others
    assert len(shared.memory) == SIZE


@given(st.dictionaries(st.sampled_from([name for name in DATA_FIELDS if name.startswith("output")]), NEAR))
def test_whatever_is_in_a_reply_a_consumer_reads_only_what_is_behind_the_headers(fields: dict[str, int]) -> None:
    shared = Shared()
    _, block, taken = sent(shared)
    taken.answer(Reply(b"data", b"metadata"))
    for field, value in fields.items():
        shared.poke(0, field, value)
    try:
        reply = block.reply()
    except ProtocolError:
        return
    assert block.header is not None
    assert not len(reply.data) or block.header.output.location >= BLOCKS * BLOCK.size
