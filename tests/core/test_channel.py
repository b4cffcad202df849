"""The two ends of a direct channel, joined without a socket."""

from __future__ import annotations

import contextlib
import errno
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ldmfs.core.channel import refuse_cycle
from ldmfs.core.consumer_connection import ConsumerConnection
from ldmfs.core.device import Execution, Kind
from ldmfs.core.errors import (
    DeviceBusy,
    DeviceLoop,
    HandleClosed,
    InvalidRequest,
    LdmError,
    MessageTooLong,
    NotServed,
    ProtocolError,
    ProviderDied,
    QueueFull,
)
from ldmfs.core.events import (
    ArenaGone,
    ArenaReceived,
    CancelRequested,
    Closed,
    CloseRequested,
    Failed,
    Greeted,
    Limits,
    Opened,
    OpenRequested,
    PeerFailed,
    Released,
    Replied,
    RequestReceived,
    State,
)
from ldmfs.core.provider_connection import Lost, ProviderConnection
from ldmfs.core.request import Reply, Request, RequestType
from ldmfs.core.wire import GREETING, MAGIC, MAX_INLINE, VERSION, FrameKind, Frames, Limit, encode, pack

CALL = RequestType.CALL
ABOUT: dict[str, Any] = {
    "kind": Kind.BLOCK,
    "size": 4096,
    "accepts": {CALL, RequestType.TRIM},
    "execution": Execution.ASYNC,
}
LONG = bytes(range(256)) * (MAX_INLINE // 100)
ARENA = 1 << 20
AT_CONSUMER = [FrameKind.OPENED, FrameKind.REPLY, FrameKind.CLOSED, FrameKind.ARENA_GONE, FrameKind.MOVING]
AT_PROVIDER = [
    FrameKind.OPEN, FrameKind.REQUEST, FrameKind.CANCEL, FrameKind.CLOSE, FrameKind.ARENA, FrameKind.ARENA_GONE,
]  # fmt: skip


class Pair:
    """A consumer's and a provider's connection; `carry` brings frames to the other side and returns the last event."""

    def __init__(self, of_consumer: Limits | None = None, of_provider: Limits | None = None) -> None:
        self.consumer = ConsumerConnection("front", of_consumer or Limits())
        self.provider = ProviderConnection("back", of_provider or Limits())

    def greet(self) -> Pair:
        self.to_provider(self.consumer.hello())
        self.to_consumer(self.provider.welcome())
        return self

    def to_provider(self, frames: Frames, *descriptors: int) -> Any:
        for frame in frames[:-1]:
            self.provider.receive(frame)
        return self.provider.receive(frames[-1], descriptors)

    def to_consumer(self, frames: Frames) -> Any:
        return [self.consumer.receive(frame) for frame in frames][-1]

    def open(self, consumer_id: int = 5, context: Any = None) -> Opened:
        id, frames = self.consumer.open("text", context=context)
        self.to_provider(frames)
        opened = self.to_consumer(self.provider.opened(id, consumer_id, **ABOUT))
        assert isinstance(opened, Opened)
        return opened

    def request(self, data: bytes = b"hello", **rest: Any) -> tuple[int, RequestReceived]:
        id, frames = self.consumer.request(5, CALL, data, **rest)
        received = self.to_provider(frames)
        assert isinstance(received, RequestReceived)
        return id, received

    def share(self, blocks: int = 4) -> int:
        arena, frames = self.consumer.arena(ARENA, blocks)
        self.to_provider(frames, 9)
        return arena


@pytest.fixture
def pair() -> Pair:
    """Two ends that have greeted each other, and consumer 5."""
    pair = Pair().greet()
    pair.open()
    return pair


# -- greeting


def test_the_provider_is_told_who_connects() -> None:
    pair = Pair()
    assert pair.to_provider(pair.consumer.hello()) == Greeted("front", Limits())


def test_the_consumer_is_told_whom_it_reached() -> None:
    pair = Pair()
    pair.to_provider(pair.consumer.hello())
    assert pair.to_consumer(pair.provider.welcome()) == Greeted("back", Limits())


def test_a_program_that_is_no_container_has_no_name() -> None:
    greeted = ProviderConnection("back").receive(ConsumerConnection().hello()[0])
    assert isinstance(greeted, Greeted)
    assert greeted.container == ""


def hello(magic: int = MAGIC, version: int = VERSION, name: bytes = b"front") -> bytes:
    return encode(FrameKind.HELLO, GREETING.struct.pack(magic, version, 1, 1, 1) + name)[0]


def test_another_version_is_refused_with_both_numbers() -> None:
    with pytest.raises(ProtocolError, match="version 2 of the protocol, this one 1"):
        ProviderConnection("back").receive(hello(version=2))


def test_a_refused_consumer_is_told_why() -> None:
    pair = Pair()
    pair.consumer.hello()
    event = pair.to_consumer(pair.provider.fail(ProtocolError("version 2")))
    assert (str(event.error), event.error.errno) == ("version 2", errno.EPROTO)


def test_another_protocol_is_refused() -> None:
    with pytest.raises(ProtocolError, match="does not speak"):
        ProviderConnection("back").receive(hello(magic=0))


@pytest.mark.parametrize("name", [b"a/b", b"\xff", b"..", b"a" * 256])
def test_a_container_without_a_proper_name_is_refused(name: bytes) -> None:
    with pytest.raises(ProtocolError, match="name of a container"):
        ProviderConnection("back").receive(hello(name=name))


def test_nothing_is_opened_before_the_welcome() -> None:
    consumer = ConsumerConnection()
    consumer.hello()
    with pytest.raises(NotServed):
        consumer.open("text")


def test_the_smaller_limit_of_outstanding_requests_counts() -> None:
    pair = Pair(Limits(max_outstanding=9), Limits(max_outstanding=1)).greet()
    pair.consumer.open("text")
    with pytest.raises(QueueFull):
        pair.consumer.open("text")


# -- open


def test_an_open_names_the_device_and_the_chain(pair: Pair) -> None:
    id, frames = pair.consumer.open("text", ["x/one", "y/two"])
    assert pair.to_provider(frames) == OpenRequested(id, "text", ("x/one", "y/two"))


@given(st.lists(st.tuples(st.text("äbc", min_size=1, max_size=9), st.text("d. ", min_size=3, max_size=9)), max_size=64))
def test_any_chain_arrives_as_it_was_sent(names: list[tuple[str, str]]) -> None:
    chain = [f"{container}/x{device}" for container, device in names]
    pair = Pair().greet()
    assert pair.to_provider(pair.consumer.open("text", chain)[1]).chain == tuple(chain)


def test_an_open_is_answered_with_what_the_device_is(pair: Pair) -> None:
    assert pair.open(6, "mine") == Opened(2, 6, **ABOUT | {"accepts": frozenset(ABOUT["accepts"])}, late=False,
                                          context="mine")  # fmt: skip


def test_an_open_is_refused_with_an_error(pair: Pair) -> None:
    id, frames = pair.consumer.open("text", context="mine")
    pair.to_provider(frames)
    event = pair.to_consumer(pair.provider.failed(id, DeviceBusy("not now")))
    assert isinstance(event, Failed)
    assert (event.id, type(event.error), str(event.error), event.context) == (id, DeviceBusy, "not now", "mine")


def test_a_chain_that_is_too_long_is_a_loop(pair: Pair) -> None:
    with pytest.raises(DeviceLoop):
        pair.consumer.open("text", ["x/one"] * (Limit.MAX_CHAIN + 1))


def test_a_cycle_is_refused() -> None:
    with pytest.raises(DeviceLoop, match="x/one -> y/two -> x/one is a cycle"):
        refuse_cycle("x", "one", ["x/one", "y/two"])


def test_a_line_is_no_cycle() -> None:
    refuse_cycle("x", "two", ["x/one", "y/two"])


@pytest.mark.parametrize("name", ["", "a/b", "a\0b"])
def test_a_bad_name_is_the_callers_mistake(pair: Pair, name: str) -> None:
    with pytest.raises(InvalidRequest):
        pair.consumer.open(name)


# -- request and reply


def test_a_request_arrives_as_it_was_sent(pair: Pair) -> None:
    id, received = pair.request(b"hello", metadata=b"about", offset=7, length=8)
    assert received == RequestReceived(id, 5, Request(CALL, b"hello", 7, 8, b"about"), 0, 0, 0)


def test_a_reply_arrives_as_it_was_sent(pair: Pair) -> None:
    id, _ = pair.request(context="mine")
    event = pair.to_consumer(pair.provider.replied(id, b"HELLO", b"about"))
    assert event == Replied(id, Reply(b"HELLO", b"about"), False, "mine")


@given(
    st.sampled_from(RequestType), st.binary(max_size=300), st.binary(max_size=300), st.integers(0, (1 << 63) - 1),
    st.integers(0, (1 << 63) - 1),
)  # fmt: skip
def test_any_request_and_reply_come_through(
    type: RequestType, data: bytes, metadata: bytes, offset: int, length: int
) -> None:
    pair = Pair().greet()
    pair.open()
    id, frames = pair.consumer.request(5, type, data, metadata, offset=offset, length=length)
    assert pair.to_provider(frames).request == Request(type, data, offset, length, metadata)
    assert pair.to_consumer(pair.provider.replied(id, metadata, data)).reply == Reply(metadata, data)


@pytest.mark.parametrize("wrap", [bytearray, memoryview], ids=["bytearray", "memoryview"])
def test_data_may_be_any_bytes(pair: Pair, wrap: Any) -> None:
    id, frames = pair.consumer.request(5, CALL, wrap(b"hello"))
    assert pair.to_provider(frames).request.data == b"hello"
    assert pair.to_consumer(pair.provider.replied(id, wrap(b"HELLO"))).reply.data == b"HELLO"


def test_the_buffer_of_a_packet_may_be_used_again(pair: Pair) -> None:
    packet = bytearray(pair.consumer.request(5, CALL, b"hello", b"about")[1][0])
    received = pair.provider.receive(memoryview(packet))
    packet[:] = bytes(len(packet))
    assert isinstance(received, RequestReceived)
    assert (received.request.data, received.request.metadata) == (b"hello", b"about")


def test_replies_come_in_any_order(pair: Pair) -> None:
    ids = [pair.request()[0] for _ in range(3)]
    assert [pair.to_consumer(pair.provider.replied(id)).id for id in reversed(ids)] == ids[::-1]


@pytest.mark.parametrize("number", [0, -1, 4096, 1 << 40])
def test_an_errno_that_is_none_becomes_eio(pair: Pair, number: int) -> None:
    id, _ = pair.request()
    assert pair.to_consumer(pair.provider.failed(id, LdmError("odd", errno=number))).error.errno == errno.EIO


def test_a_long_message_of_an_error_is_cut(pair: Pair) -> None:
    id, _ = pair.request()
    assert len(str(pair.to_consumer(pair.provider.failed(id, LdmError("x" * 5000))).error)) == Limit.MAX_TEXT


def test_a_request_beyond_the_limit_is_refused_at_the_entrance(pair: Pair) -> None:
    for _ in range(Limit.MAX_OUTSTANDING):
        pair.consumer.request(5, CALL)
    with pytest.raises(QueueFull):
        pair.consumer.request(5, CALL)


def test_cancelled_requests_count_until_they_are_answered(pair: Pair) -> None:
    for _ in range(Limit.MAX_OUTSTANDING):
        pair.consumer.cancel(pair.consumer.request(5, CALL)[0])
    with pytest.raises(QueueFull):
        pair.consumer.request(5, CALL)


def test_a_reply_makes_room_for_a_request() -> None:
    pair = Pair(Limits(max_outstanding=1)).greet()
    pair.open()
    for _ in range(3):
        pair.to_consumer(pair.provider.replied(pair.request()[0]))


@pytest.mark.parametrize("numbers", [{"offset": -1}, {"length": -1}, {"offset": 1 << 63}, {"length": 1 << 63}])
def test_a_number_out_of_range_is_the_callers_mistake(pair: Pair, numbers: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        pair.consumer.request(5, CALL, **numbers)


@pytest.mark.parametrize("type", [0, 7, -1])
def test_a_type_that_there_is_not_is_the_callers_mistake(pair: Pair, type: int) -> None:
    with pytest.raises(InvalidRequest):
        pair.consumer.request(5, type)


def test_a_request_that_was_refused_is_not_outstanding(pair: Pair) -> None:
    with pytest.raises(InvalidRequest):
        pair.consumer.request(5, CALL, offset=-1)
    assert pair.consumer.lost() == {}


def test_a_request_of_an_unknown_consumer_is_refused(pair: Pair) -> None:
    with pytest.raises(HandleClosed):
        pair.consumer.request(6, CALL)


@pytest.mark.parametrize("answer", ["replied", "replied_in_block", "closed"])
def test_an_answer_that_is_not_due_is_the_edges_mistake(pair: Pair, answer: str) -> None:
    with pytest.raises(ValueError, match="77"):
        getattr(pair.provider, answer)(77)


def test_a_request_is_answered_once(pair: Pair) -> None:
    id, _ = pair.request()
    pair.provider.replied(id)
    with pytest.raises(ValueError, match="answered already"):
        pair.provider.replied(id)


def test_an_open_is_not_answered_with_a_reply(pair: Pair) -> None:
    id, frames = pair.consumer.open("text")
    pair.to_provider(frames)
    with pytest.raises(ValueError, match="something else"):
        pair.provider.replied(id)


# -- long messages


@pytest.mark.parametrize("size", [MAX_INLINE, MAX_INLINE + 1, 2 * MAX_INLINE, len(LONG)])
@pytest.mark.parametrize("metadata", [b"", b"about"], ids=["plain", "metadata"])
def test_a_message_of_any_length_comes_through(pair: Pair, size: int, metadata: bytes) -> None:
    id, received = pair.request(LONG[:size], metadata=metadata)
    assert (received.request.data == LONG[:size], received.request.metadata) == (True, metadata)
    reply = pair.to_consumer(pair.provider.replied(id, LONG[:size], metadata)).reply
    assert (reply.data == LONG[:size], reply.metadata) == (True, metadata)


def test_the_pieces_of_a_message_are_not_parted(pair: Pair) -> None:
    first, *_ = pair.consumer.request(5, CALL, LONG)[1]
    pair.provider.receive(first)
    with pytest.raises(ProtocolError, match="REQUEST is not allowed in state pieces"):
        pair.to_provider(pair.consumer.request(5, CALL)[1])


def test_a_piece_without_a_beginning_is_refused(pair: Pair) -> None:
    with pytest.raises(ProtocolError, match="CONTINUE is not allowed in state ready"):
        pair.to_provider(pair.consumer.request(5, CALL, LONG)[1][1:])


def test_a_piece_of_another_message_is_refused(pair: Pair) -> None:
    first, *_ = pair.consumer.request(5, CALL, LONG)[1]
    pair.provider.receive(first)
    with pytest.raises(ProtocolError, match="are due"):
        pair.provider.receive(pair.consumer.request(5, CALL, LONG)[1][1])


def test_a_piece_that_is_not_filled_is_refused(pair: Pair) -> None:
    id, (first, *_) = pair.consumer.request(5, CALL, LONG)
    pair.provider.receive(first)
    with pytest.raises(ProtocolError, match="are due"):
        pair.provider.receive(pack(FrameKind.CONTINUE, 0, 0, 0, id, 0, 0, 0, 1, 0, 0, 0, 0) + b"x")


def test_a_message_longer_than_the_peer_takes_is_refused_at_the_entrance() -> None:
    pair = Pair(of_provider=Limits(max_payload=MAX_INLINE + 1)).greet()
    pair.open()
    with pytest.raises(MessageTooLong):
        pair.consumer.request(5, CALL, bytes(MAX_INLINE + 2))


def test_a_message_longer_than_this_side_takes_is_refused() -> None:
    pair = Pair(of_provider=Limits(max_payload=MAX_INLINE + 1)).greet()
    pair.open()
    first = pack(FrameKind.REQUEST, CALL, 0, 0, 2, 5, 0, 0, MAX_INLINE + 2, 0, 0, 0, 0) + bytes(MAX_INLINE)
    with pytest.raises(ProtocolError, match="too long"):
        pair.provider.receive(first)


def test_a_reply_that_is_too_long_is_still_to_be_answered() -> None:
    pair = Pair(of_consumer=Limits(max_payload=0)).greet()
    pair.open()
    id, _ = pair.request()
    with pytest.raises(MessageTooLong):
        pair.provider.replied(id, LONG)
    assert isinstance(pair.to_consumer(pair.provider.failed(id, MessageTooLong())).error, MessageTooLong)


def test_metadata_has_a_limit_of_its_own(pair: Pair) -> None:
    with pytest.raises(MessageTooLong):
        pair.consumer.request(5, CALL, b"", bytes(Limit.MAX_METADATA + 1))


def test_metadata_beyond_its_limit_is_refused(pair: Pair) -> None:
    size = Limit.MAX_METADATA + 1
    with pytest.raises(ProtocolError, match="bytes of metadata"):
        pair.provider.receive(pack(FrameKind.REQUEST, CALL, 0, 0, 2, 5, 0, 0, 0, size, 0, 0, 0) + bytes(size))


# -- cancel


def test_a_cancelled_request_has_ended_at_once(pair: Pair) -> None:
    id, _ = pair.request()
    pair.consumer.cancel(id)
    assert pair.consumer.lost() == {}


def test_the_provider_is_asked_to_stop(pair: Pair) -> None:
    id, _ = pair.request()
    assert pair.to_provider(pair.consumer.cancel(id)) == CancelRequested(id)


@pytest.mark.parametrize("error", [None, DeviceBusy("late")])
def test_the_late_answer_is_dropped_and_releases_the_request(pair: Pair, error: LdmError | None) -> None:
    id, _ = pair.request(context="mine")
    pair.consumer.cancel(id)
    frames = pair.provider.failed(id, error) if error else pair.provider.replied(id, b"late")
    assert pair.to_consumer(frames) == Released(id, "mine")


def test_the_late_answer_makes_room_for_a_request() -> None:
    pair = Pair(Limits(max_outstanding=1)).greet()
    pair.open()
    for _ in range(3):
        id, _received = pair.request()
        pair.consumer.cancel(id)
        pair.to_consumer(pair.provider.replied(id))


def test_a_long_late_answer_is_dropped(pair: Pair) -> None:
    id, _ = pair.request()
    frames = pair.provider.replied(id, LONG)
    pair.consumer.receive(frames[0])
    pair.consumer.cancel(id)
    assert pair.to_consumer(frames[1:]) == Released(id, None)


def test_a_cancel_that_crosses_the_reply_is_ignored(pair: Pair) -> None:
    id, _ = pair.request()
    pair.provider.replied(id)
    assert pair.to_provider(pair.consumer.cancel(id)) is None


def test_a_request_that_has_ended_is_not_cancelled(pair: Pair) -> None:
    id, _ = pair.request()
    pair.to_consumer(pair.provider.replied(id))
    assert pair.consumer.cancel(id) == ()


def test_a_late_open_is_told_so_that_it_is_closed(pair: Pair) -> None:
    id, frames = pair.consumer.open("text")
    pair.to_provider(frames)
    pair.consumer.cancel(id)
    opened = pair.to_consumer(pair.provider.opened(id, 6, **ABOUT))
    assert (opened.late, opened.consumer_id) == (True, 6)
    pair.consumer.close(6)


def test_a_close_is_not_cancelled(pair: Pair) -> None:
    id, _ = pair.consumer.close(5)
    with pytest.raises(ValueError, match="cannot be cancelled"):
        pair.consumer.cancel(id)


# -- close


def test_a_close_is_asked_for_and_confirmed(pair: Pair) -> None:
    id, frames = pair.consumer.close(5, "mine")
    assert pair.to_provider(frames) == CloseRequested(id, 5)
    assert pair.to_consumer(pair.provider.closed(id)) == Closed(id, 5, "mine")


def test_a_closed_consumer_sends_no_request(pair: Pair) -> None:
    pair.consumer.close(5)
    with pytest.raises(HandleClosed):
        pair.consumer.request(5, CALL)


def test_a_consumer_is_closed_once(pair: Pair) -> None:
    pair.consumer.close(5)
    with pytest.raises(HandleClosed):
        pair.consumer.close(5)


def test_a_full_queue_does_not_keep_from_closing(pair: Pair) -> None:
    for _ in range(Limit.MAX_OUTSTANDING):
        pair.request()
    assert isinstance(pair.to_provider(pair.consumer.close(5)[1]), CloseRequested)


def test_requests_are_answered_before_their_consumer_is_closed(pair: Pair) -> None:
    pair.request()
    id, frames = pair.consumer.close(5)
    pair.to_provider(frames)
    with pytest.raises(ValueError, match="not answered"):
        pair.provider.closed(id)


def test_a_consumer_closed_with_requests_outstanding_is_refused(pair: Pair) -> None:
    pair.request()
    id, _ = pair.consumer.close(5)
    with pytest.raises(ProtocolError, match="requests outstanding"):
        pair.to_consumer(encode(FrameKind.CLOSED, id=id, consumer_id=5))


# -- arenas


def test_an_arena_comes_with_its_descriptor(pair: Pair) -> None:
    arena, frames = pair.consumer.arena(ARENA, 4)
    assert pair.to_provider(frames, 9) == ArenaReceived(arena, ARENA, 4, 9)


@pytest.mark.parametrize("descriptors", [(), (8, 9)], ids=["none", "two"])
def test_an_arena_without_its_one_descriptor_is_refused(pair: Pair, descriptors: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match=f"with {len(descriptors)} descriptors"):
        pair.to_provider(pair.consumer.arena(ARENA, 4)[1], *descriptors)


def test_a_descriptor_that_nobody_asked_for_is_refused(pair: Pair) -> None:
    with pytest.raises(ProtocolError, match="descriptors came with REQUEST"):
        pair.to_provider(pair.consumer.request(5, CALL)[1], 9)


def test_a_request_in_a_block_tells_where_it_is(pair: Pair) -> None:
    arena = pair.share()
    id, received = pair.request(b"", arena=arena, block=1, blocks=3, offset=7)
    assert received == RequestReceived(id, 5, Request(CALL, b"", 7), arena, 1, 3)


def test_a_reply_in_a_block_says_so(pair: Pair) -> None:
    id, _ = pair.request(b"", arena=pair.share(), block=0, blocks=1)
    assert pair.to_consumer(pair.provider.replied_in_block(id)) == Replied(id, Reply(), True, None)


def test_a_request_in_a_block_may_be_answered_inline(pair: Pair) -> None:
    id, _ = pair.request(b"", arena=pair.share(), block=0, blocks=1)
    assert not pair.to_consumer(pair.provider.replied(id, b"large")).in_block


def test_a_request_that_came_inline_is_not_answered_in_a_block(pair: Pair) -> None:
    id, _ = pair.request()
    with pytest.raises(ValueError, match="came inline"):
        pair.provider.replied_in_block(id)


def test_a_consumer_refuses_a_reply_in_a_block_that_it_did_not_give(pair: Pair) -> None:
    id, _ = pair.request()
    with pytest.raises(ProtocolError, match="does not fit"):
        pair.consumer.receive(pack(FrameKind.REPLY, 0, 1, 0, id, 0, 0, 0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("place", [{"arena": 2, "blocks": 1}, {"arena": 1, "blocks": 5}, {"block": 4, "blocks": 1}])
def test_a_consumer_sends_only_blocks_that_are(pair: Pair, place: dict[str, Any]) -> None:
    pair.share()
    with pytest.raises(ValueError, match="arena that is known"):
        pair.consumer.request(5, CALL, **{"arena": 1, **place})


@pytest.mark.parametrize("place", [(2, 0, 1), (1, 0, 5), (1, 4, 1), (1, 65535, 65535), (1, 0, 0), (0, 0, 0)])
@pytest.mark.parametrize("flags", [0, 1, 2, 65535])
def test_a_provider_takes_only_blocks_that_are(pair: Pair, flags: int, place: tuple[int, int, int]) -> None:
    pair.share()
    if (flags, place[2]) == (0, 0):
        return
    with pytest.raises(ProtocolError, match="which cannot be"):
        pair.provider.receive(pack(FrameKind.REQUEST, CALL, flags, 0, 2, 5, 0, 0, 0, 0, *place))


def test_a_request_is_inline_or_in_a_block(pair: Pair) -> None:
    pair.share()
    with pytest.raises(ProtocolError, match="which cannot be"):
        pair.provider.receive(pack(FrameKind.REQUEST, CALL, 1, 0, 2, 5, 0, 0, 1, 0, 1, 0, 1) + b"x")


@pytest.mark.parametrize(
    "sizes", [(0, 1), (ARENA, 0), (Limit.MAX_ARENA + 1, 1), (ARENA, Limit.MAX_BLOCKS + 1), (383, 1)]
)
def test_an_arena_of_impossible_sizes_is_refused(pair: Pair, sizes: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match="cannot be"):
        pair.to_provider(encode(FrameKind.ARENA, arena=1, length=sizes[0], blocks=sizes[1]))


def test_a_provider_that_takes_no_arenas_gets_none() -> None:
    pair = Pair(of_provider=Limits(max_arenas=0)).greet()
    with pytest.raises(QueueFull):
        pair.consumer.arena(ARENA, 1)


def test_an_arena_is_withdrawn(pair: Pair) -> None:
    arena = pair.share()
    assert pair.to_provider(pair.consumer.arena_gone(arena)) == ArenaGone(arena)


def test_a_withdrawn_arena_makes_room_for_another(pair: Pair) -> None:
    for _ in range(2 * Limit.MAX_ARENAS):
        pair.to_provider(pair.consumer.arena_gone(pair.share()))


def test_an_arena_that_cannot_be_used_is_told(pair: Pair) -> None:
    arena = pair.share()
    assert pair.to_consumer(pair.provider.arena_gone(arena)) == ArenaGone(arena)


def test_notices_about_an_arena_may_cross(pair: Pair) -> None:
    arena = pair.share()
    frames = pair.provider.arena_gone(arena)
    pair.to_provider(pair.consumer.arena_gone(arena))
    assert pair.to_consumer(frames) is None


# -- the end


def test_what_is_outstanding_ends_with_the_connection(pair: Pair) -> None:
    request, _ = pair.consumer.request(5, CALL, context="one")
    opening, _ = pair.consumer.open("text", context="two")
    closing, _ = pair.consumer.close(5, context="three")
    assert pair.consumer.lost() == {request: "one", opening: "two", closing: "three"}


def test_a_connection_is_lost_once(pair: Pair) -> None:
    pair.request()
    pair.consumer.lost()
    assert pair.consumer.lost() == {}


def test_a_provider_that_lost_its_consumer_cancels_and_closes(pair: Pair) -> None:
    id, _ = pair.request()
    assert pair.provider.lost() == Lost([id], [5])


def test_a_provider_loses_a_connection_once(pair: Pair) -> None:
    pair.provider.lost()
    assert pair.provider.lost() == Lost([], [])


def test_a_consumer_that_is_being_closed_is_not_closed_again(pair: Pair) -> None:
    id, frames = pair.consumer.close(5)
    pair.to_provider(frames)
    assert pair.provider.lost() == Lost([], [])
    assert pair.provider.closed(id) == ()


def test_an_answer_after_the_end_is_dropped(pair: Pair) -> None:
    id, _ = pair.request()
    pair.provider.lost()
    assert pair.provider.replied(id, b"late") == ()


def test_an_answer_after_this_side_gave_up_is_dropped(pair: Pair) -> None:
    id, _ = pair.request()
    pair.provider.fail(ProtocolError())
    assert pair.provider.replied(id, b"late") == ()


def test_what_was_answered_after_this_side_gave_up_is_not_cancelled(pair: Pair) -> None:
    id, _ = pair.request()
    pair.provider.fail(ProtocolError())
    pair.provider.failed(id, DeviceBusy())
    assert pair.provider.lost().requests == []


@pytest.mark.parametrize("end", ["fail", "lost"])
def test_an_open_after_the_end_is_left_to_the_edge(pair: Pair, end: str) -> None:
    id, frames = pair.consumer.open("text")
    pair.to_provider(frames)
    pair.provider.fail(ProtocolError()) if end == "fail" else pair.provider.lost()
    assert pair.provider.opened(id, 6, **ABOUT) == ()
    assert 6 not in pair.provider.lost().consumers


def test_a_request_after_the_end_tells_that_the_provider_is_gone(pair: Pair) -> None:
    pair.consumer.lost()
    with pytest.raises(ProviderDied):
        pair.consumer.request(5, CALL)


def test_an_open_after_the_end_tells_that_the_provider_is_gone(pair: Pair) -> None:
    pair.consumer.lost()
    with pytest.raises(ProviderDied):
        pair.consumer.open("text")


@pytest.mark.parametrize("side", ["consumer", "provider"])
def test_a_side_that_gives_up_tells_the_other_why(pair: Pair, side: str) -> None:
    frames = getattr(pair, side).fail(ProtocolError("nonsense"))
    event = pair.to_provider(frames) if side == "consumer" else pair.to_consumer(frames)
    assert isinstance(event, PeerFailed)
    assert str(event.error) == "nonsense"


def test_a_side_gives_up_once(pair: Pair) -> None:
    pair.consumer.fail(ProtocolError())
    assert pair.consumer.fail(ProtocolError()) == ()


def test_nothing_is_received_after_the_end(pair: Pair) -> None:
    _, frames = pair.consumer.request(5, CALL)
    pair.provider.lost()
    with pytest.raises(ProtocolError, match="not allowed in state closed"):
        pair.to_provider(frames)


# -- frames that are not allowed


def sample(pair: Pair) -> tuple[dict[FrameKind, bytes], dict[FrameKind, bytes]]:
    """Return a good frame of each kind that the consumer, and that the provider, takes next."""
    id, _ = pair.request(b"hello", metadata=b"about")
    opening = pair.consumer.open("text", ["a/b"])
    pair.to_provider(opening[1])
    reply = pack(FrameKind.REPLY, 0, 0, 0, id, 0, 0, 0, 5, 5, 0, 0, 0) + b"HELLOabout"
    opened = ProviderConnection("other")
    opened._outstanding[opening[0]] = (0, 0)
    at_consumer = {
        FrameKind.REPLY: reply,
        FrameKind.OPENED: opened.opened(opening[0], 6, **ABOUT)[0],
        FrameKind.ERROR: encode(FrameKind.ERROR, b"why", status=5)[0],
    }
    at_provider = {
        FrameKind.REQUEST: pack(FrameKind.REQUEST, CALL, 0, 0, 99, 5, 0, 0, 5, 5, 0, 0, 0) + b"HELLOabout",
        FrameKind.OPEN: encode(FrameKind.OPEN, b"text", id=99, metadata=b"a/b\0c/d")[0],
        FrameKind.CLOSE: encode(FrameKind.CLOSE, id=99, consumer_id=5)[0],
        FrameKind.CANCEL: encode(FrameKind.CANCEL, id=id)[0],
        FrameKind.ERROR: encode(FrameKind.ERROR, b"why", status=5)[0],
    }
    return at_consumer, at_provider


@pytest.mark.parametrize("side", [0, 1], ids=["consumer", "provider"])
def test_a_good_sample_is_taken(side: int) -> None:
    for kind in sample(opened_pair())[side]:
        pair = opened_pair()
        frame = sample(pair)[side][kind]
        assert (pair.consumer, pair.provider)[side].receive(frame) is not None


def opened_pair() -> Pair:
    pair = Pair().greet()
    pair.open()
    return pair


@pytest.mark.parametrize("side", [0, 1], ids=["consumer", "provider"])
def test_a_frame_cut_short_anywhere_is_refused(side: int) -> None:
    pair = opened_pair()
    for frame in sample(pair)[side].values():
        for length in range(len(frame)):
            with pytest.raises(ProtocolError):
                (pair.consumer, pair.provider)[side].receive(frame[:length])


@pytest.mark.parametrize("side", [0, 1], ids=["consumer", "provider"])
@pytest.mark.parametrize("more", [1, 1000, 1 << 20])
def test_a_frame_with_bytes_left_over_is_refused(side: int, more: int) -> None:
    pair = opened_pair()
    for frame in sample(pair)[side].values():
        with pytest.raises(ProtocolError):
            (pair.consumer, pair.provider)[side].receive(frame + bytes(more))


def test_a_frame_longer_than_a_packet_is_refused_though_its_sizes_agree(pair: Pair) -> None:
    size = MAX_INLINE + 1
    with pytest.raises(ProtocolError):
        pair.provider.receive(pack(FrameKind.REQUEST, CALL, 0, 0, 2, 5, 0, 0, size, 0, 0, 0, 0) + bytes(size))


@pytest.mark.parametrize("kind", [0, 16, 255])
def test_an_unknown_kind_is_refused_by_its_number(pair: Pair, kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"kind {kind}"):
        pair.to_provider(encode(kind))


@pytest.mark.parametrize("kind", FrameKind)
def test_a_kind_is_taken_only_from_the_side_that_sends_it(pair: Pair, kind: FrameKind) -> None:
    for side, kinds in (pair.consumer, AT_CONSUMER), (pair.provider, AT_PROVIDER):
        if kind not in (*kinds, FrameKind.ERROR):
            with pytest.raises(ProtocolError, match=f"{kind.name} is not allowed"):
                side.receive(encode(kind)[0])


@pytest.mark.parametrize("kind", FrameKind)
def test_only_a_hello_begins_a_connection(kind: FrameKind) -> None:
    if kind is not FrameKind.HELLO:
        with pytest.raises(ProtocolError, match="not allowed in state new"):
            ProviderConnection("back").receive(encode(kind)[0])


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (encode(FrameKind.OPEN, b"text", id=1), "not above 1"),
        (encode(FrameKind.OPEN, b"text", id=0), "not above 1"),
        (encode(FrameKind.OPEN, b"a/b", id=2), "name of a device"),
        (encode(FrameKind.OPEN, b"\xff", id=2), "name of a device"),
        (encode(FrameKind.OPEN, b"text", id=2, metadata=b"nodevice"), "name of a device"),
        (encode(FrameKind.OPEN, b"text", id=2, metadata=b"a/b\0"), "name of a container"),
        (encode(FrameKind.OPEN, b"text", id=2, metadata=b"\0".join([b"a/b"] * 65)), "longer than"),
        (encode(FrameKind.CLOSE, id=2, consumer_id=6), "not open"),
        (encode(FrameKind.CANCEL, id=2), "never was"),
        (encode(FrameKind.CANCEL, id=0), "never was"),
        (encode(FrameKind.ARENA_GONE, arena=1), "not known"),
        (encode(FrameKind.ERROR, b"why", status=0), "an error with status 0"),
        ((pack(FrameKind.REQUEST, CALL, 0, 0, 2, 6, 0, 0, 0, 0, 0, 0, 0),), "consumer 6, which is not open"),
        ((pack(FrameKind.REQUEST, CALL, 0, 0, 1, 5, 0, 0, 0, 0, 0, 0, 0),), "not above 1"),
        ((pack(FrameKind.REQUEST, 0, 0, 0, 2, 5, 0, 0, 0, 0, 0, 0, 0),), "no request type 0"),
        ((pack(FrameKind.REQUEST, 7, 0, 0, 2, 5, 0, 0, 0, 0, 0, 0, 0),), "no request type 7"),
        ((pack(FrameKind.REQUEST, CALL, 0, 0, 2, 5, -1, 0, 0, 0, 0, 0, 0),), "offset -1"),
        ((pack(FrameKind.REQUEST, CALL, 0, 0, 2, 5, 0, -1, 0, 0, 0, 0, 0),), "length -1"),
    ],
)
def test_a_provider_refuses_nonsense_with_a_reason(pair: Pair, frames: Frames, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        pair.to_provider(frames)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (encode(FrameKind.REPLY, id=9), "not outstanding"),
        (encode(FrameKind.REPLY, id=1), "not outstanding"),
        (encode(FrameKind.REPLY, id=2, status=4096), "an error with status 4096"),
        (encode(FrameKind.REPLY, bytes(Limit.MAX_TEXT + 1), id=2, status=5), "message of 2049 bytes"),
        (encode(FrameKind.REPLY, id=3), "does not fit"),
        (encode(FrameKind.OPENED, bytes(16), id=2, consumer_id=6), "answers no open"),
        (encode(FrameKind.OPENED, bytes(16), id=3, consumer_id=5), "in use"),
        (encode(FrameKind.OPENED, bytes(16), id=3, consumer_id=0), "in use"),
        (encode(FrameKind.OPENED, bytes(16), id=3, consumer_id=6), "kind 0"),
        (encode(FrameKind.OPENED, bytes(15), id=3, consumer_id=6), "16 bytes of data, not 15"),
        (encode(FrameKind.CLOSED, id=2, consumer_id=5), "does not close"),
        (encode(FrameKind.ARENA_GONE, arena=1), "never was"),
    ],
)
def test_a_consumer_refuses_nonsense_with_a_reason(pair: Pair, frames: Frames, reason: str) -> None:
    assert (pair.consumer.request(5, CALL)[0], pair.consumer.open("text")[0]) == (2, 3)
    with pytest.raises(ProtocolError, match=reason):
        pair.to_consumer(frames)
    assert set(pair.consumer.lost()) == {2, 3}


@pytest.mark.parametrize("first", [FrameKind.OPEN, FrameKind.REQUEST, FrameKind.CLOSE])
def test_an_id_is_used_once_whatever_for(first: FrameKind) -> None:
    pair = opened_pair()
    good = sample(pair)[1]
    pair.provider.receive(good[first])
    with pytest.raises(ProtocolError, match="not above 99"):
        pair.provider.receive(good[FrameKind.OPEN])


@pytest.mark.parametrize("answer", [encode(FrameKind.REPLY, id=2), encode(FrameKind.REPLY, id=2, status=5)])
def test_a_close_is_answered_by_nothing_but_closed(pair: Pair, answer: Frames) -> None:
    pair.consumer.close(5)
    with pytest.raises(ProtocolError, match="does not fit"):
        pair.to_consumer(answer)


def test_a_provider_refuses_more_than_it_said() -> None:
    pair = Pair(of_provider=Limits(max_outstanding=1)).greet()
    pair.open()
    pair.request()
    with pytest.raises(ProtocolError, match="more than 1"):
        pair.provider.receive(pack(FrameKind.REQUEST, CALL, 0, 0, 9, 5, 0, 0, 0, 0, 0, 0, 0))


SMALL = st.integers(0, 4)
HEADERS = st.builds(
    pack, st.integers(0, 16), SMALL, st.sampled_from([0, 0, 0, 1, 2]), SMALL, SMALL, st.sampled_from([0, 5, 6]),
    st.integers(-1, 1), st.sampled_from([-1, 0, ARENA]), st.integers(0, 30), st.sampled_from([0, 0, 1, 1 << 17]), SMALL,
    SMALL, SMALL,
)  # fmt: skip
PACKETS = st.one_of(
    st.binary(max_size=120), st.builds(lambda header, body: header + body, HEADERS, st.binary(max_size=30))
)


@given(st.lists(st.tuples(PACKETS, st.lists(st.integers(3, 9), max_size=2)), max_size=8), st.booleans())
@settings(max_examples=300)
def test_random_packets_raise_nothing_but_protocol_errors(
    packets: list[tuple[bytes, list[int]]], greeted: bool
) -> None:
    for side in (Pair, opened_pair)[greeted]().__dict__.values():
        for packet, descriptors in packets:
            with contextlib.suppress(ProtocolError):
                side.receive(packet, descriptors)
        side.lost()


@given(st.data())
@settings(max_examples=300)
def test_a_good_frame_with_a_changed_byte_raises_nothing_but_protocol_errors(data: st.DataObject) -> None:
    side = data.draw(st.sampled_from([0, 1]))
    pair = opened_pair()
    frame = bytearray(data.draw(st.sampled_from(list(sample(pair)[side].values()))))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        (pair.consumer, pair.provider)[side].receive(frame)


# -- everything at once


class Channel(RuleBasedStateMachine):
    """Both ends, two queues of packets between them, and edges that answer when and how they like.

    `ended` counts how often each id ended at the consumer, `closes` how often each consumer id was closed at the
    provider's edge.
    """

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(max_outstanding=4, max_arenas=1)
        self.consumer = ConsumerConnection("front", limits)
        self.provider = ProviderConnection("back", limits)
        self.down: deque[bytes] = deque(self.consumer.hello())
        self.up: deque[bytes] = deque()
        self.begun: set[int] = set()
        self.ended: dict[int, int] = {}
        self.opened: set[int] = set()
        self.running: dict[int, int] = {}
        self.closing: dict[int, int] = {}
        self.closes: dict[int, int] = {}
        self.alive: set[int] = set()
        self.next_consumer = 100

    def end(self, id: int, context: Any) -> None:
        assert context == "context"
        self.ended[id] = self.ended.get(id, 0) + 1

    def close_handler(self, consumer_id: int) -> None:
        self.closes[consumer_id] = self.closes.get(consumer_id, 0) + 1
        self.alive.discard(consumer_id)

    def send(self, sent: tuple[int, Frames]) -> None:
        self.begun.add(sent[0])
        self.down += sent[1]

    @property
    def ready(self) -> bool:
        return self.consumer.state in (State.READY, State.PIECES)

    @property
    def joined(self) -> bool:
        return State.CLOSED not in (self.consumer.state, self.provider.state)

    @rule()
    def open(self) -> None:
        try:
            self.send(self.consumer.open("text", context="context"))
        except (NotServed, ProviderDied, QueueFull):
            return

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), size=st.sampled_from([0, 32, MAX_INLINE + 1]))
    def request(self, data: st.DataObject, size: int) -> None:
        consumer_id = data.draw(st.sampled_from(sorted(self.opened)))
        try:
            self.send(self.consumer.request(consumer_id, CALL, bytes(size), context="context"))
        except (QueueFull, ProviderDied):
            return

    @precondition(lambda self: self.opened)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        consumer_id = data.draw(st.sampled_from(sorted(self.opened)))
        self.opened.remove(consumer_id)
        try:
            self.send(self.consumer.close(consumer_id, context="context"))
        except ProviderDied:
            return

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.begun)))
        try:
            frames = self.consumer.cancel(id)
        except ValueError:
            return
        if frames:
            self.end(id, "context")
        self.down += frames

    @precondition(lambda self: self.down and self.joined)
    @rule()
    def provider_receives(self) -> None:
        match self.provider.receive(self.down.popleft()):
            case Greeted():
                self.up += self.provider.welcome()
            case OpenRequested(id):
                self.running[id] = 0
            case RequestReceived(id, consumer_id):
                assert consumer_id in self.alive
                self.running[id] = consumer_id
            case CancelRequested(id):
                assert id in self.running
            case CloseRequested(id, consumer_id):
                self.closing[id] = consumer_id

    @precondition(lambda self: self.running)
    @rule(data=st.data(), how=st.sampled_from(["success", "long", "error"]))
    def provider_answers(self, data: st.DataObject, how: str) -> None:
        id = data.draw(st.sampled_from(sorted(self.running)))
        consumer_id = self.running.pop(id)
        if how == "error":
            self.up += self.provider.failed(id, DeviceBusy())
        elif consumer_id:
            self.up += self.provider.replied(id, bytes(MAX_INLINE + 1 if how == "long" else 5))
        else:
            self.next_consumer += 1
            self.alive.add(self.next_consumer)
            frames = self.provider.opened(id, self.next_consumer, **ABOUT)
            self.up += frames
            if not frames:
                self.close_handler(self.next_consumer)

    @precondition(lambda self: bool(set(self.closing.values()) - set(self.running.values())))
    @rule(data=st.data())
    def provider_closes(self, data: st.DataObject) -> None:
        free = sorted(id for id, consumer_id in self.closing.items() if consumer_id not in self.running.values())
        id = data.draw(st.sampled_from(free))
        self.close_handler(self.closing.pop(id))
        self.up += self.provider.closed(id)

    @precondition(lambda self: self.up and self.joined)
    @rule()
    def consumer_receives(self) -> None:
        match self.consumer.receive(self.up.popleft()):
            case Opened(id=id, consumer_id=consumer_id, late=late, context=context):
                if late:
                    self.send(self.consumer.close(consumer_id, context="context"))
                else:
                    self.end(id, context)
                    self.opened.add(consumer_id)
            case Replied(id=id, context=context) | Failed(id=id, context=context) | Closed(id=id, context=context):
                self.end(id, context)
            case Released(id=id):
                assert self.ended[id] == 1

    def consumer_loses(self) -> None:
        for id, context in self.consumer.lost().items():
            self.end(id, context)

    def provider_loses(self) -> None:
        lost = self.provider.lost()
        assert set(lost.requests) <= set(self.running)
        for consumer_id in lost.consumers:
            self.close_handler(consumer_id)

    @rule(first=st.booleans(), reason=st.none() | st.just(ProtocolError("nonsense")), patience=st.integers(0, 7))
    def connection_ends(self, first: bool, reason: LdmError | None, patience: int) -> None:
        if patience:
            return
        if reason:
            (self.consumer if first else self.provider).fail(reason)
        (self.consumer_loses if first else self.provider_loses)()

    @invariant()
    def nothing_ends_twice(self) -> None:
        assert set(self.ended.values()) <= {1}
        assert set(self.ended) <= self.begun

    @invariant()
    def nothing_is_closed_twice(self) -> None:
        assert set(self.closes.values()) <= {1}

    def teardown(self) -> None:
        """Both ends see the loss; the handlers that still run end, in whatever way; then all is accounted for."""
        self.consumer_loses()
        self.provider_loses()
        for id, consumer_id in self.running.items():
            if consumer_id:
                assert self.provider.replied(id) == ()
            else:
                assert self.provider.failed(id, DeviceBusy()) == ()
        for id, consumer_id in self.closing.items():
            self.close_handler(consumer_id)
            assert self.provider.closed(id) == ()
        assert set(self.ended) == self.begun
        assert self.alive == set()
        assert set(self.closes) == set(range(101, self.next_consumer + 1))


TestChannel = Channel.TestCase
TestChannel.settings = settings(max_examples=200, stateful_step_count=60)
