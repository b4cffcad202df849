"""What providers keep: transactions, the room for them, what kills and garbage leave, and what a commit costs."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable

import pytest
from crashes import Memory, images
from hypothesis import given
from hypothesis import strategies as st

from ldmfs.core.errors import InvalidRequest, NoSpace, StateConflict, StateDamaged
from ldmfs.core.journal import LEAST_LOG, OVERHEAD, Journal, head_of, size_for
from ldmfs.core.store import MAX_KEY, Store, Transaction

BEGIN = 40
"""Where the journal begins in its memory: at no round number."""


def memory(capacity: int = 1000) -> Memory:
    """Return memory with an empty journal, all else being garbage."""
    memory = Memory(b"\xa5" * (BEGIN + size_for(capacity)))
    Journal.format(memory.view, BEGIN, capacity)
    memory.stores.clear()
    return memory


def store(memory: Memory, capacity: int = 1000, owner: str = "text") -> Store:
    """Return a store as the next instance gets it."""
    return Store(Journal(memory.view, BEGIN, capacity), owner)


def contents(store: Store | Transaction) -> dict[str, bytes | None]:
    return {key: store.get(key) for key in store}


# -- keys and values


def test_an_empty_store_has_nothing() -> None:
    keep = store(memory())
    assert (list(keep), len(keep), keep.get("a"), "a" in keep) == ([], 0, None, False)


def test_the_next_instance_finds_what_was_put() -> None:
    area = memory()
    keep = store(area)
    keep.put("b", b"two")
    keep.put("a", bytearray(b"one"))
    keep.put("c", memoryview(b"three")[1:3])
    for each in (keep, store(area)):
        assert contents(each) == {"a": b"one", "b": b"two", "c": b"hr"}
        assert (list(each), len(each), "a" in each) == (["a", "b", "c"], 3, True)


def test_the_last_value_counts() -> None:
    area = memory()
    for value in (b"one", b"", b"three"):
        store(area).put("a", value)
        assert store(area).get("a") == value


def test_what_was_deleted_is_gone() -> None:
    area = memory()
    keep = store(area)
    keep.put("a", b"one")
    keep.put("b", b"two")
    keep.delete("a")
    keep.delete("never there")
    assert contents(keep) == contents(store(area)) == {"b": b"two"}


def test_each_provider_has_keys_of_its_own() -> None:
    area = memory()
    journal = Journal(area.view, BEGIN, 1000)
    for owner in ("text", "hash", "ünï"):
        Store(journal, owner).put("a", owner.encode())
    Store(journal, "hash").delete("a")
    assert [store(area, owner=owner).get("a") for owner in ("text", "hash", "ünï")] == [b"text", None, "ünï".encode()]


@pytest.mark.parametrize("key", ["", "\0", "ä" * (MAX_KEY // 2), "a" * MAX_KEY])
def test_a_key_is_any_text_of_a_bounded_length(key: str) -> None:
    area = memory()
    store(area).put(key, b"value")
    assert contents(store(area)) == {key: b"value"}


@pytest.mark.parametrize("key", ["a" * (MAX_KEY + 1), "ä" * (MAX_KEY // 2 + 1), "\udc80"])
def test_what_is_no_key_is_refused(key: str) -> None:
    keep = store(memory())
    for use in (lambda: keep.put(key, b""), lambda: keep.delete(key)):
        with pytest.raises(InvalidRequest):
            use()


@pytest.mark.parametrize(("key", "value"), [(1, b""), (b"a", b""), ("a", "text"), ("a", 5), ("a", None)])
def test_other_types_are_the_provider_s_mistake(key: object, value: object) -> None:
    keep = store(memory())
    with pytest.raises(TypeError):
        keep.put(key, value)  # type: ignore[arg-type]
    assert len(keep) == 0


# -- transactions


def test_a_transaction_is_seen_by_itself_until_it_is_committed() -> None:
    area = memory()
    keep = store(area)
    keep.put("a", b"one")
    keep.put("b", b"two")
    with keep.transaction() as transaction:
        transaction.put("a", b"new")
        transaction.delete("b")
        transaction.put("c", b"three")
        assert contents(transaction) == {"a": b"new", "c": b"three"}
        assert transaction.get("b") is None
        assert contents(keep) == contents(store(area)) == {"a": b"one", "b": b"two"}
    assert contents(keep) == contents(store(area)) == {"a": b"new", "c": b"three"}


def test_an_exception_drops_the_changes() -> None:
    area = memory()
    keep = store(area)
    keep.put("a", b"one")

    def fail() -> None:
        with keep.transaction() as transaction:
            transaction.put("a", b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert contents(keep) == contents(store(area)) == {"a": b"one"}


def test_a_transaction_without_changes_writes_nothing() -> None:
    area = memory()
    with store(area).transaction() as transaction:
        transaction.get("a")
    assert area.stores == []


def test_a_transaction_may_be_used_again() -> None:
    keep = store(memory())
    transaction = keep.transaction()
    for value in (b"one", b"two"):
        transaction.get("a")
        transaction.put("a", value)
        transaction.commit()
    transaction.put("a", b"three")
    transaction.rollback()
    transaction.commit()
    assert contents(keep) == {"a": b"two"}


READS: dict[str, Callable[[Transaction], object]] = {
    "a key": lambda transaction: transaction.get("a"),
    "a key that is not there": lambda transaction: transaction.get("missing"),
    "the keys": list,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_was_read_and_then_changed_by_another_is_a_conflict(read: Callable[[Transaction], object]) -> None:
    area = memory()
    keep = store(area)
    keep.put("a", b"one")
    transaction = keep.transaction()
    read(transaction)
    with keep.transaction() as other:
        other.delete("a")
        other.put("missing", b"two")
    transaction.put("c", b"three")
    with pytest.raises(StateConflict):
        transaction.commit()
    assert contents(keep) == contents(store(area)) == {"missing": b"two"}
    read(transaction)
    transaction.put("c", b"three")
    transaction.commit()
    assert keep.get("c") == b"three"


def test_what_was_changed_and_not_read_is_no_conflict() -> None:
    keep = store(memory())
    transaction = keep.transaction()
    transaction.get("other")
    transaction.put("a", b"one")
    transaction.get("a")
    keep.put("a", b"two")
    transaction.commit()
    assert keep.get("a") == b"one"


def test_a_key_that_is_read_twice_in_a_transaction_has_one_value() -> None:
    keep = store(memory())
    keep.put("a", b"one")
    transaction = keep.transaction()
    transaction.get("a")
    keep.put("a", b"two")
    assert transaction.get("a") == b"one"


def test_threads_that_update_one_key_lose_nothing() -> None:
    area = memory(1000)
    keep = store(area)

    def count(transaction: Transaction) -> int:
        number = int(transaction.get("count") or 0) + 1
        begun.wait() if number == 1 else None
        transaction.put("count", b"%d" % number)
        return number

    begun = threading.Barrier(4)  # each has read before any has committed
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.extend(keep.update(count) for _ in range(50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 201))
    assert store(area).get("count") == b"200"


def test_an_update_that_fails_is_not_tried_again() -> None:
    calls = []

    def fail(transaction: Transaction) -> None:
        calls.append(transaction)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store(memory()).update(fail)
    assert len(calls) == 1


# -- room


def full(capacity: int) -> tuple[str, bytes]:
    """Return the key and the value that fill a store."""
    return "a", bytes(capacity - OVERHEAD - len(head_of("text", "a", 0)))


def test_a_store_can_be_filled_to_the_last_byte_and_then_changed() -> None:
    area = memory()
    keep = store(area)
    key, value = full(1000)
    for _ in range(3):
        keep.put(key, value)
        keep.put(key, value[::-1])
        keep.put(key, b"less")
    keep.put(key, value)
    keep.delete(key)
    keep.put("b", b"two")
    assert contents(store(area)) == {"b": b"two"}


@pytest.mark.parametrize("more", [1, 1000])
def test_what_has_no_room_is_refused_and_all_else_is_kept(more: int) -> None:
    area = memory()
    keep = store(area)
    keep.put("a", b"one")
    stores = len(area.stores)
    key, value = full(1000)
    with pytest.raises(NoSpace, match=r"1,000"):
        change(keep, {"b": b"two", key: value + bytes(more)})
    assert len(area.stores) == stores
    assert contents(keep) == contents(store(area)) == {"a": b"one"}


def test_a_full_store_says_what_to_do() -> None:
    keep = store(memory())
    key, value = full(1000)
    keep.put(key, value)
    with pytest.raises(NoSpace, match=r"delete keys, or .* larger state_size"):
        keep.put("b", b"")


def test_a_store_of_little_takes_little_memory_however_often_it_changes() -> None:
    capacity = 16 * LEAST_LOG
    area = memory(capacity)
    keep = store(area, capacity)
    for number in range(5000):
        keep.put("a", b"%d" % number * 10)
    touched = sum(end - begin for begin, end in extents(area))
    assert touched < 2 * LEAST_LOG + 200
    assert store(area, capacity).get("a") == b"4999" * 10


def extents(area: Memory) -> list[tuple[int, int]]:
    """Return which parts of the memory were written, joined."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted((stored.begin, stored.begin + len(stored.data)) for stored in area.stores):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    return joined


def test_a_commit_costs_in_proportion_to_what_it_changes() -> None:
    capacity = 1 << 20
    area = memory(capacity)
    keep = store(area, capacity)
    with keep.transaction() as transaction:
        for number in range(1000):
            transaction.put(f"{number}", bytes(100))
    area.stores.clear()
    for number in range(20_000):
        keep.put(f"{number % 1000}", bytes(100))
    record = OVERHEAD + len(head_of("text", "100", 100)) + 100
    written = sum(len(stored.data) for stored in area.stores)
    assert len([stored for stored in area.stores if len(stored.data) > 10_000]) > 5, "the log was begun anew"
    assert written < 20_000 * record * 2


# -- kills and interrupts

STEPS: list[dict[str, bytes | None]] = [
    {"a": b"one", "b": b"x" * 150},
    {"a": b"two"},
    {"b": None},
    {"b": b"y" * 300, "c": b""},
    {"a": None, "b": None, "c": None},
    {"a": b"z" * 700},
    {"a": b"y" * 650, "d": b"four"},
    {"a": b"x" * 700},
    {"a": b"w" * 5, "e": b"five"},
]


def change(keep: Store, step: dict[str, bytes | None]) -> None:
    with keep.transaction() as transaction:
        for key, value in step.items():
            if value is None:
                transaction.delete(key)
            else:
                transaction.put(key, value)


def after(model: dict[str, bytes], step: dict[str, bytes | None]) -> dict[str, bytes]:
    return {key: value for key, value in {**model, **step}.items() if value is not None}


def test_a_kill_at_any_moment_leaves_the_commit_before_or_the_one_in_flight() -> None:
    area = memory(1000)
    keep = store(area, 1000)
    model: dict[str, bytes] = {}
    logs = set()
    for step in STEPS:
        before, new = bytes(area.image), after(model, step)
        area.stores.clear()
        change(keep, step)
        logs.add(area.stores[0].begin)
        seen = []
        for image in images(before, area.stores, random.Random(0)):
            killed = Memory(image)
            found = store(killed)
            seen.append(contents(found))
            assert seen[-1] in (model, new)
            found.put("next", b"and the next instance goes on")
            assert contents(store(killed)) == {**seen[-1], "next": b"and the next instance goes on"}
        assert (seen[0], seen[-1]) == (model, new)
        model = new
    assert len(logs) > 3, "both logs are used"


def test_an_exception_out_of_a_signal_handler_leaves_one_truth() -> None:
    class Stop(BaseException):
        pass

    for step in range(1, len(STEPS)):
        for last in (1, 2, 3, 4):
            area = memory()
            keep = store(area)
            model: dict[str, bytes] = {}
            for done in STEPS[:step]:
                change(keep, done)
                model = after(model, done)
            area.stores.clear()

            def stored(stores: int, last: int = last) -> None:
                if stores == last:
                    raise Stop

            area.stored = stored  # type: ignore[method-assign]
            with pytest.raises(Stop):
                change(keep, STEPS[step])
            area.stored = lambda stores: None  # type: ignore[method-assign]
            assert contents(keep) == contents(store(area)) == (after(model, STEPS[step]) if last == 4 else model)
            change(keep, STEPS[step])
            assert contents(keep) == contents(store(area)) == after(model, STEPS[step])


# -- garbage


@given(
    at=st.integers(0, size_for(1000) - 1),
    garbage=st.binary(min_size=1, max_size=60) | st.integers(1, 3000).map(bytes),
    steps=st.integers(1, len(STEPS)),
)
def test_what_was_written_over_gives_no_wrong_value(at: int, garbage: bytes, steps: int) -> None:
    area = memory()
    keep = store(area)
    models: list[dict[str, bytes]] = [{}]
    for step in STEPS[:steps]:
        change(keep, step)
        models.append(after(models[-1], step))
    end = min(at + len(garbage), size_for(1000))
    area.image[BEGIN + at : BEGIN + end] = garbage[: end - at]
    damaged = store(area)
    with contextlib.suppress(StateDamaged):
        assert contents(damaged) in models[-2:]


def written_over(at: int, data: bytes) -> Memory:
    """Return a store with three commits, written over."""
    area = memory()
    keep = store(area)
    for step in STEPS[:3]:
        change(keep, step)
    area.image[BEGIN + at : BEGIN + at + len(data)] = data
    return area


DAMAGES = {
    "no superblock": (0, bytes(128)),
    "a mark that is none": (64, b"\x01"),
    "a superblock": (64 + 8, b"\xff"),
    "the first record": (128 + 30, b"\xff"),
    "no record": (128, bytes(400)),
    "all of it": (0, bytes(size_for(1000))),
}


@pytest.mark.parametrize(("at", "data"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_store_says_so_whatever_it_is_asked(at: int, data: bytes) -> None:
    keep = store(written_over(at, data))
    uses: list[Callable[[], object]] = [
        lambda: keep.get("a"),
        lambda: keep.put("a", b""),
        lambda: keep.delete("a"),
        lambda: list(keep),
        lambda: len(keep),
        lambda: "a" in keep,
        lambda: keep.transaction().get("a"),
        lambda: list(keep.transaction()),
        lambda: keep.update(lambda transaction: transaction.put("a", b"")),
    ]
    for use in uses:
        with pytest.raises(StateDamaged, match="damaged: "):
            use()


@pytest.mark.parametrize(("at", "data"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_store_can_be_begun_anew(at: int, data: bytes) -> None:
    area = written_over(at, data)
    journal = Journal(area.view, BEGIN, 1000)
    journal.reset()
    keep = Store(journal, "text")
    assert contents(keep) == contents(store(area)) == {}
    keep.put("a", b"one")
    assert contents(store(area)) == {"a": b"one"}


def test_a_kill_while_a_store_is_begun_anew_never_brings_back_a_part() -> None:
    area = written_over(64 + 8, b"\xff")
    before = bytes(area.image)
    journal = Journal(area.view, BEGIN, 1000)
    area.stores.clear()
    journal.reset()
    seen = []
    for image in images(before, area.stores, random.Random(0)):
        damage = Journal(Memory(image).view, BEGIN, 1000).damage
        seen.append(damage or contents(store(Memory(image))))
    assert all(each == {} or isinstance(each, str) for each in seen)
    assert (isinstance(seen[0], str), seen[-1]) == (True, {})
