"""The exchange of one open file: the table of its states, line by line, then any sequence against a model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ldmfs.core.errors import DeviceBusy, InvalidRequest, LdmError
from ldmfs.core.exchange import Exchange, State
from ldmfs.core.request import Reply


def running() -> Exchange:
    exchange = Exchange()
    exchange.start()
    return exchange


def ready(outcome: Reply | LdmError | None = None) -> Exchange:
    exchange = Exchange()
    exchange.finish(exchange.start(), Reply(b"reply") if outcome is None else outcome)
    return exchange


# -- IDLE


def test_a_new_file_is_idle() -> None:
    assert Exchange().state is State.IDLE


def test_a_write_to_an_idle_file_runs() -> None:
    assert running().state is State.RUNNING


def test_an_idle_file_takes_no_outcome() -> None:
    exchange = Exchange()
    assert not exchange.finish(exchange.number, Reply(b"late"))
    assert exchange.state is State.IDLE


# -- RUNNING


def test_a_write_to_a_running_file_is_busy() -> None:
    with pytest.raises(DeviceBusy):
        running().start()


def test_a_busy_file_still_takes_the_outcome_of_what_runs() -> None:
    exchange = Exchange()
    number = exchange.start()
    with pytest.raises(DeviceBusy):
        exchange.start()
    assert exchange.finish(number, Reply(b"reply"))


def test_an_outcome_makes_a_running_file_ready() -> None:
    assert ready().state is State.READY


def test_each_request_has_a_number_of_its_own() -> None:
    exchange = Exchange()
    first = exchange.start()
    exchange.finish(first, Reply())
    assert exchange.start() != first


# -- READY


def test_a_ready_file_gives_its_reply() -> None:
    assert ready().take(100) == b"reply"


def test_a_reply_that_was_read_is_followed_by_one_end_of_file() -> None:
    exchange = ready()
    exchange.take(100)
    assert (exchange.take(100), exchange.state) == (b"", State.IDLE)


def test_a_file_is_ready_until_its_end_was_read() -> None:
    exchange = ready()
    exchange.take(100)
    assert exchange.state is State.READY


def test_an_empty_reply_is_one_end_of_file() -> None:
    exchange = ready(Reply())
    assert (exchange.take(100), exchange.state) == (b"", State.IDLE)


def test_a_write_to_a_ready_file_replaces_the_reply() -> None:
    exchange = ready()
    exchange.finish(exchange.start(), Reply(b"second"))
    assert exchange.take(100) == b"second"


def test_a_reply_that_replaces_a_half_read_one_is_read_from_its_beginning() -> None:
    exchange = ready()
    exchange.take(3)
    exchange.finish(exchange.start(), Reply(b"second"))
    assert exchange.take(100) == b"second"


def test_an_answer_at_once_replaces_a_half_read_reply() -> None:
    exchange = ready()
    exchange.take(3)
    exchange.answer(Reply(b"second"))
    assert exchange.take(100) == b"second"


def test_an_answer_at_once_replaces_an_error() -> None:
    exchange = ready(InvalidRequest())
    exchange.answer(Reply(b"second"))
    assert exchange.take(100) == b"second"


def test_a_write_to_a_ready_file_replaces_an_error() -> None:
    exchange = ready(InvalidRequest())
    exchange.finish(exchange.start(), Reply(b"second"))
    assert exchange.take(100) == b"second"


def test_an_error_is_raised_by_the_read() -> None:
    error = InvalidRequest("no")
    with pytest.raises(InvalidRequest) as caught:
        ready(error).take(100)
    assert caught.value is error


def test_an_error_is_raised_once() -> None:
    exchange = ready(InvalidRequest())
    with pytest.raises(InvalidRequest):
        exchange.take(100)
    assert exchange.state is State.IDLE


# -- outcomes that come late


def test_the_outcome_of_a_replaced_request_is_dropped() -> None:
    exchange = Exchange()
    first = exchange.start()
    exchange.reset()
    exchange.start()
    assert not exchange.finish(first, Reply(b"late"))
    assert exchange.state is State.RUNNING


def test_an_outcome_after_a_reset_is_dropped() -> None:
    exchange = Exchange()
    number = exchange.start()
    exchange.reset()
    assert not exchange.finish(number, Reply(b"late"))
    assert exchange.state is State.IDLE


def test_a_second_outcome_is_dropped() -> None:
    exchange = Exchange()
    number = exchange.start()
    exchange.finish(number, Reply(b"first"))
    assert not exchange.finish(number, InvalidRequest())
    assert exchange.take(100) == b"first"


# -- unread


@pytest.mark.parametrize("outcome", [Reply(b"x"), InvalidRequest()], ids=["reply", "error"])
def test_an_outcome_is_unread_at_first(outcome: Reply | LdmError) -> None:
    assert ready(outcome).unread


def test_a_half_read_reply_is_not_unread() -> None:
    exchange = ready()
    exchange.take(1)
    assert not exchange.unread


def test_an_empty_reply_is_not_unread() -> None:
    assert not ready(Reply()).unread


@pytest.mark.parametrize("exchange", [Exchange(), running()], ids=["idle", "running"])
def test_a_file_without_a_reply_has_nothing_unread(exchange: Exchange) -> None:
    assert not exchange.unread


# -- reading in pieces


@given(st.binary(max_size=300), st.lists(st.integers(1, 100), min_size=1))
def test_reads_of_any_sizes_give_the_reply_and_then_one_end_of_file(data: bytes, sizes: list[int]) -> None:
    exchange = ready(Reply(data))
    pieces: list[bytes] = []
    while exchange.state is State.READY:
        pieces.append(bytes(exchange.take(sizes[len(pieces) % len(sizes)])))
    assert b"".join(pieces) == data
    assert [piece for piece in pieces if not piece] == [b""]
    assert pieces[-1] == b""


@given(st.binary(min_size=1, max_size=300), st.integers(1, 400))
def test_a_read_gives_at_most_what_was_asked_for(data: bytes, size: int) -> None:
    assert bytes(ready(Reply(data)).take(size)) == data[:size]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_can_be_read_in_pieces(kind: type) -> None:
    exchange = ready(Reply(kind(b"reply")))
    assert [bytes(exchange.take(2)) for _ in range(4)] == [b"re", b"pl", b"y", b""]


def test_a_whole_reply_is_not_copied() -> None:
    data = b"reply"
    assert ready(Reply(data)).take(5) is data


# -- any sequence


class ExchangeMachine(RuleBasedStateMachine):
    """`expected` is the reply that is left or its error, None when there is none; `awaited` the request that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.exchange = Exchange()
        self.awaited: int | None = None
        self.expected: bytes | LdmError | None = None
        self.numbers: list[int] = []

    outcomes = st.one_of(st.binary(max_size=20), st.builds(InvalidRequest))

    @rule()
    def start(self) -> None:
        if self.awaited is not None:
            with pytest.raises(DeviceBusy):
                self.exchange.start()
            return
        self.awaited = self.exchange.start()
        assert self.awaited not in self.numbers
        self.numbers.append(self.awaited)
        self.expected = None

    @precondition(lambda self: self.numbers)
    @rule(data=st.data(), outcome=outcomes)
    def finish(self, data: st.DataObject, outcome: bytes | LdmError) -> None:
        number = data.draw(st.sampled_from(self.numbers))
        taken = self.exchange.finish(number, Reply(outcome) if isinstance(outcome, bytes) else outcome)
        assert taken == (number == self.awaited)
        if taken:
            self.awaited, self.expected = None, outcome

    @precondition(lambda self: self.awaited is None)
    @rule(reply=st.binary(max_size=20))
    def answer(self, reply: bytes) -> None:
        self.exchange.answer(Reply(reply))
        self.expected = reply

    @rule()
    def reset(self) -> None:
        self.exchange.reset()
        self.awaited = self.expected = None

    @precondition(lambda self: self.expected is not None)
    @rule(size=st.integers(1, 30))
    def take(self, size: int) -> None:
        if isinstance(self.expected, LdmError):
            with pytest.raises(LdmError) as caught:
                self.exchange.take(size)
            assert caught.value is self.expected
            self.expected = None
            return
        assert self.expected is not None
        assert bytes(self.exchange.take(size)) == self.expected[:size]
        self.expected = self.expected[size:] or (b"" if self.expected else None)

    @invariant()
    def the_states_agree(self) -> None:
        state = State.RUNNING if self.awaited is not None else State.IDLE if self.expected is None else State.READY
        assert self.exchange.state is state


TestExchange = ExchangeMachine.TestCase
TestExchange.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
