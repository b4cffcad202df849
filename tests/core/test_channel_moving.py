"""A connection whose provider moves: what it takes still, and what is for the next one; without I/O."""

from __future__ import annotations

from typing import Any

import pytest

from ldmfs.core.consumer_connection import ConsumerConnection
from ldmfs.core.device import Execution, Kind
from ldmfs.core.errors import NotServed, ProtocolError
from ldmfs.core.events import (
    CancelRequested,
    Closed,
    CloseRequested,
    Greeted,
    Moving,
    Opened,
    OpenRequested,
    Replied,
    RequestReceived,
)
from ldmfs.core.provider_connection import ProviderConnection
from ldmfs.core.request import RequestType
from ldmfs.core.wire import INNER, MAX_INLINE, FrameKind, Frames, encode

CALL = RequestType.CALL
LONG = bytes(2 * MAX_INLINE + 5)
INNER_CHAIN = ("back/top", "side/x")
ABOUT: Any = {"kind": Kind.MESSAGE, "size": 0, "accepts": {CALL}, "execution": Execution.ASYNC}


class Pair:
    """Both sides of a connection to the container `back`."""

    def __init__(self, *, greeted: bool = True) -> None:
        self.consumer = ConsumerConnection()
        self.provider = ProviderConnection("back")
        self.to_provider(self.consumer.hello())
        if greeted:
            self.to_consumer(self.provider.welcome())

    def to_provider(self, frames: Frames, *fds: int) -> Any:
        """Carry frames; return the last event."""
        events = [self.provider.receive(frame) for frame in frames[:-1]]
        return [*events, self.provider.receive(frames[-1], fds)][-1]

    def to_consumer(self, frames: Frames) -> Any:
        return [self.consumer.receive(frame) for frame in frames][-1]

    def open(self, consumer_id: int, chain: tuple[str, ...] = ()) -> int:
        id, frames = self.consumer.open("d", chain)
        self.to_provider(frames)
        assert isinstance(self.to_consumer(self.provider.opened(id, consumer_id, **ABOUT)), Opened)
        return consumer_id

    def move(self, *, inner: bool = False) -> Moving:
        """Announce it, and have it read."""
        event = self.to_consumer(self.provider.moving(inner=inner))
        assert isinstance(event, Moving)
        return event


def test_what_was_taken_is_answered_over_the_connection() -> None:
    pair = Pair()
    pair.open(5)
    id, frames = pair.consumer.request(5, CALL, b"hello", context="its")
    assert isinstance(pair.to_provider(frames), RequestReceived)
    assert pair.move() == Moving([], [])
    assert not pair.provider.idle
    event = pair.to_consumer(pair.provider.replied(id, b"HELLO"))
    assert isinstance(event, Replied)
    assert pair.provider.idle
    assert pair.consumer.moved() == ([], [], [])


def test_what_crosses_with_the_notice_was_never_taken() -> None:
    pair = Pair()
    pair.open(5)
    sent = [pair.consumer.request(5, CALL, b"hello", context=number) for number in range(3)]
    pair.to_provider(sent[0][1])
    notice = pair.provider.moving(inner=False)
    assert [pair.to_provider(frames) for _, frames in sent[1:]] == [None, None]
    assert pair.to_consumer(notice) == Moving([1, 2], [])
    assert pair.consumer.moved() == ([0], [], [])


def test_an_open_that_crosses_was_never_taken() -> None:
    pair = Pair()
    _, frames = pair.consumer.open("d", context="its")
    notice = pair.provider.moving(inner=False)
    assert pair.to_provider(frames) is None
    assert pair.to_consumer(notice) == Moving(["its"], [])


def test_a_long_message_that_crosses_is_dropped_to_its_last_piece() -> None:
    pair = Pair()
    pair.open(5)
    _, frames = pair.consumer.request(5, CALL, LONG, context="its")
    assert len(frames) == 3
    pair.provider.receive(frames[0])
    notice = pair.provider.moving(inner=False)
    assert [pair.provider.receive(frame) for frame in frames[1:]] == [None, None]
    _, late = pair.consumer.request(5, CALL, LONG, context="late")
    assert [pair.provider.receive(frame) for frame in late] == [None] * 3
    assert pair.to_consumer(notice) == Moving(["its", "late"], [])
    assert pair.provider.idle


def test_what_was_cancelled_and_not_taken_is_released() -> None:
    pair = Pair()
    pair.open(5)
    id, frames = pair.consumer.request(5, CALL, context="its")
    cancel = pair.consumer.cancel(id)
    notice = pair.provider.moving(inner=False)
    assert pair.to_provider(frames) is None
    assert pair.to_provider(cancel) is None
    assert pair.to_consumer(notice) == Moving([], ["its"])


def test_what_was_taken_can_be_cancelled_still() -> None:
    pair = Pair()
    pair.open(5)
    id, frames = pair.consumer.request(5, CALL)
    pair.to_provider(frames)
    pair.move()
    assert pair.to_provider(pair.consumer.cancel(id)) == CancelRequested(id)


def test_a_close_is_taken_whenever_it_comes() -> None:
    pair = Pair()
    pair.open(5)
    pair.open(6)
    id, crossing = pair.consumer.close(5)
    notice = pair.provider.moving(inner=False)
    assert pair.to_provider(crossing) == CloseRequested(id, 5)
    pair.to_consumer(notice)
    assert pair.to_consumer(pair.provider.closed(id)) == Closed(id, 5, None)
    id, frames = pair.consumer.close(6, "last")
    pair.to_provider(frames)
    assert pair.consumer.moved() == ([], ["last"], [])


def test_nothing_is_asked_any_more_once_it_moves() -> None:
    pair = Pair()
    pair.open(5)
    pair.move()
    assert pair.consumer.is_moving
    assert not pair.consumer.takes(5)
    with pytest.raises(NotServed):
        pair.consumer.request(5, CALL)
    with pytest.raises(NotServed):
        pair.consumer.open("d")


def test_what_comes_on_behalf_of_the_container_itself_is_taken_till_the_second_notice() -> None:
    pair = Pair()
    pair.open(5)
    pair.open(6, INNER_CHAIN)
    outer, inner = pair.consumer.request(5, CALL, context="outer"), pair.consumer.request(6, CALL, context="inner")
    notice = pair.provider.moving(inner=True)
    assert pair.to_provider(outer[1]) is None
    assert isinstance(pair.to_provider(inner[1]), RequestReceived)
    assert pair.to_consumer(notice) == Moving(["outer"], [])
    assert (pair.consumer.takes(5), pair.consumer.takes(6)) == (False, True)
    assert pair.consumer.takes_open(INNER_CHAIN)
    assert not pair.consumer.takes_open(("side/x",))
    _, frames = pair.consumer.open("d", INNER_CHAIN)
    assert isinstance(pair.to_provider(frames), OpenRequested)
    _, crossing = pair.consumer.request(6, CALL, LONG, context="crossing")
    pair.provider.receive(crossing[0])
    notice = pair.provider.moving(inner=False)
    assert [pair.provider.receive(frame) for frame in crossing[1:]] == [None, None]
    assert pair.to_consumer(notice) == Moving(["crossing"], [])
    assert not pair.consumer.takes(6)


def test_a_long_message_that_is_taken_is_taken_whole_over_the_first_notice() -> None:
    pair = Pair()
    pair.open(6, INNER_CHAIN)
    _, frames = pair.consumer.request(6, CALL, LONG, context="inner")
    pair.provider.receive(frames[0])
    notice = pair.provider.moving(inner=True)
    assert isinstance(pair.to_provider(frames[1:]), RequestReceived)
    assert pair.to_consumer(notice) == Moving([], [])


def test_an_arena_may_come_before_and_behind_the_notice() -> None:
    pair = Pair()
    _, frames = pair.consumer.arena(1 << 20, 4)
    pair.provider.receive(frames[0])
    notice = pair.provider.moving(inner=True)
    pair.to_provider(frames[1:], 9)
    pair.to_consumer(notice)
    _, frames = pair.consumer.arena(1 << 20, 4)
    assert pair.to_provider(frames, 9).descriptor == 9
    pair.open(6, INNER_CHAIN)


def test_a_provider_may_move_before_the_greeting_is_answered() -> None:
    pair = Pair(greeted=False)
    assert pair.move() == Moving([], [])
    assert isinstance(pair.to_consumer(pair.provider.welcome()), Greeted)
    assert not pair.consumer.takes_open(())


def test_a_device_that_is_opened_anew_says_so() -> None:
    pair = Pair()
    _, frames = pair.consumer.open("d", again=True)
    event = pair.to_provider(frames)
    assert isinstance(event, OpenRequested)
    assert event.again


def test_a_notice_behind_what_never_was_is_refused() -> None:
    pair = Pair()
    with pytest.raises(ProtocolError, match="never was"):
        pair.to_consumer(encode(FrameKind.MOVING, id=1, flags=INNER))


def test_a_connection_that_has_ended_does_not_move() -> None:
    pair = Pair()
    pair.provider.lost()
    assert pair.provider.moving(inner=False) == ()
