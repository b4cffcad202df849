"""Replies that their writer closed without reading."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from support import PEER

from ldmfs.core import kept as kept_module
from ldmfs.core.device import NO_SESSION
from ldmfs.core.errors import InvalidRequest
from ldmfs.core.kept import KEPT_SECONDS, KeptReplies

DEVICE, OTHER_DEVICE = 4711, 4712
WRITER = 1
OTHER_SESSION = msgspec.structs.replace(PEER, session=PEER.session + 1)
OTHER_USER = msgspec.structs.replace(PEER, uid=PEER.uid + 1)
OTHER_PROCESS = msgspec.structs.replace(PEER, pid=PEER.pid + 1)
NOBODY = msgspec.structs.replace(PEER, session=NO_SESSION)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(clock: Clock) -> Iterator[KeptReplies]:
    kept = KeptReplies(clock)
    yield kept
    assert kept.bytes == sum(len(reply.data) for reply in kept._kept.values()), "the bytes are accounted for"


def test_a_reply_is_for_the_next_reader_of_the_session(kept: KeptReplies) -> None:
    kept.keep(DEVICE, PEER, WRITER, b"HELLO", None)
    found = kept.take(DEVICE, OTHER_PROCESS)
    assert found is not None
    assert (found.data, found.error) == (b"HELLO", None)


def test_an_error_is_for_the_next_reader_of_the_session(kept: KeptReplies) -> None:
    error = InvalidRequest()
    kept.keep(DEVICE, PEER, WRITER, b"", error)
    found = kept.take(DEVICE, OTHER_PROCESS)
    assert found is not None
    assert found.error is error


def test_a_reply_is_given_once(kept: KeptReplies) -> None:
    kept.keep(DEVICE, PEER, WRITER, b"HELLO", None)
    kept.take(DEVICE, PEER)
    assert kept.take(DEVICE, PEER) is None


@pytest.mark.parametrize("peer", [OTHER_SESSION, OTHER_USER, NOBODY], ids=["session", "user", "no session"])
def test_a_reply_is_for_nobody_else(kept: KeptReplies, peer: type(PEER)) -> None:  # type: ignore[valid-type]
    kept.keep(DEVICE, PEER, WRITER, b"HELLO", None)
    assert kept.take(DEVICE, peer) is None


def test_a_reply_is_of_one_device(kept: KeptReplies) -> None:
    kept.keep(DEVICE, PEER, WRITER, b"HELLO", None)
    assert kept.take(OTHER_DEVICE, PEER) is None


def test_who_has_no_session_leaves_nothing(kept: KeptReplies) -> None:
    kept.keep(DEVICE, NOBODY, WRITER, b"HELLO", None)
    assert len(kept) == 0


def test_the_session_of_a_leader_outside_the_name_space_is_one_like_others(kept: KeptReplies) -> None:
    peer = msgspec.structs.replace(PEER, session=0)
    kept.keep(DEVICE, peer, WRITER, b"HELLO", None)
    assert kept.take(DEVICE, peer) is not None


def test_a_reply_replaces_an_earlier_one(kept: KeptReplies) -> None:
    kept.keep(DEVICE, PEER, WRITER, b"first", None)
    kept.keep(DEVICE, PEER, WRITER + 1, b"second", None)
    found = kept.take(DEVICE, PEER)
    assert found is not None
    assert found.data == b"second"
    assert len(kept) == 0


def test_sessions_have_a_reply_each(kept: KeptReplies) -> None:
    kept.keep(DEVICE, PEER, WRITER, b"mine", None)
    kept.keep(DEVICE, OTHER_SESSION, WRITER, b"theirs", None)
    assert len(kept) == 2


# -- time


def test_a_reply_is_there_until_it_expires(kept: KeptReplies, clock: Clock) -> None:
    kept.keep(DEVICE, PEER, WRITER, b"HELLO", None)
    clock.now += KEPT_SECONDS - 0.1
    assert kept.take(DEVICE, PEER) is not None


def test_a_reply_expires(kept: KeptReplies, clock: Clock) -> None:
    kept.keep(DEVICE, PEER, WRITER, b"HELLO", None)
    clock.now += KEPT_SECONDS
    assert kept.take(DEVICE, PEER) is None


def test_expired_replies_of_others_are_forgotten_too(kept: KeptReplies, clock: Clock) -> None:
    kept.keep(DEVICE, PEER, WRITER, b"HELLO", None)
    clock.now += KEPT_SECONDS
    kept.keep(OTHER_DEVICE, PEER, WRITER, b"x", None)
    assert (len(kept), kept.bytes) == (1, 1)


def test_a_reply_that_was_replaced_expires_by_its_own_age(kept: KeptReplies, clock: Clock) -> None:
    kept.keep(DEVICE, PEER, WRITER, b"first", None)
    kept.keep(OTHER_DEVICE, PEER, WRITER, b"other", None)
    clock.now += KEPT_SECONDS / 2
    kept.keep(DEVICE, PEER, WRITER, b"second", None)
    clock.now += KEPT_SECONDS / 2
    assert kept.take(DEVICE, PEER) is not None
    assert len(kept) == 0


# -- bounds


def test_the_oldest_makes_room_for_one_too_many(kept: KeptReplies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "MAX_KEPT", 3)
    for device in range(4):
        kept.keep(device, PEER, WRITER, b"x", None)
    assert [kept.take(device, PEER) is not None for device in range(4)] == [False, True, True, True]


def test_the_oldest_make_room_for_many_bytes(kept: KeptReplies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "MAX_KEPT_BYTES", 10)
    for device, size in enumerate((4, 4, 8)):
        kept.keep(device, PEER, WRITER, bytes(size), None)
    assert [kept.take(device, PEER) is not None for device in range(3)] == [False, False, True]


def test_exactly_as_many_bytes_as_there_may_be_are_kept(kept: KeptReplies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "MAX_KEPT_BYTES", 10)
    kept.keep(1, PEER, WRITER, bytes(4), None)
    kept.keep(2, PEER, WRITER, bytes(6), None)
    assert len(kept) == 2


def test_a_reply_larger_than_all_may_be_is_not_kept(kept: KeptReplies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "MAX_KEPT_BYTES", 10)
    kept.keep(DEVICE, PEER, WRITER, bytes(11), None)
    assert (len(kept), kept.bytes) == (0, 0)


def test_a_replaced_reply_does_not_count(kept: KeptReplies) -> None:
    for _ in range(5):
        kept.keep(DEVICE, PEER, WRITER, b"12345", None)
    assert kept.bytes == 5


# -- withdraw and forget


def test_a_writer_withdraws_its_reply(kept: KeptReplies) -> None:
    kept.keep(DEVICE, PEER, WRITER, b"HELLO", None)
    kept.withdraw(DEVICE, PEER, WRITER)
    assert kept.take(DEVICE, PEER) is None


def test_a_writer_does_not_withdraw_the_reply_of_another(kept: KeptReplies) -> None:
    kept.keep(DEVICE, PEER, WRITER, b"HELLO", None)
    kept.withdraw(DEVICE, PEER, WRITER + 1)
    assert kept.take(DEVICE, PEER) is not None


def test_withdrawing_what_was_taken_is_harmless(kept: KeptReplies) -> None:
    kept.withdraw(DEVICE, PEER, WRITER)
    assert len(kept) == 0


def test_the_replies_of_a_destroyed_device_are_forgotten(kept: KeptReplies) -> None:
    for peer in (PEER, OTHER_SESSION, OTHER_USER):
        kept.keep(DEVICE, peer, WRITER, b"HELLO", None)
    kept.forget_device(DEVICE)
    assert (len(kept), kept.bytes) == (0, 0)


def test_the_replies_of_other_devices_are_not_forgotten(kept: KeptReplies) -> None:
    kept.keep(OTHER_DEVICE, PEER, WRITER, b"HELLO", None)
    kept.forget_device(DEVICE)
    assert kept.take(OTHER_DEVICE, PEER) is not None
