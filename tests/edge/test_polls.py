"""Waking those who wait in poll(2): what is written to the session's descriptor, and what is learnt from a handle."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ldmfs.fuse.polls import Polls

WOKEN_7 = bytes.fromhex("18000000 01000000 0000000000000000 0700000000000000")


class Session:
    """A pipe in the place of the kernel, and a handle as pyfuse3 makes it."""

    def __init__(self) -> None:
        self.kernel, self.fd = os.pipe2(os.O_NONBLOCK)
        self.polls = Polls(self.fd)

    def notify(self) -> None:
        os.write(self.fd, WOKEN_7)

    def got(self) -> bytes:
        try:
            return os.read(self.kernel, 100)
        except BlockingIOError:
            return b""


@pytest.fixture
def session() -> Iterator[Session]:
    before = len(os.listdir("/proc/self/fd"))
    session = Session()
    yield session
    session.polls.close()
    os.close(session.kernel)
    os.close(session.fd)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_number_is_what_the_handle_would_tell_the_kernel(session: Session) -> None:
    assert session.polls.number_of(session) == 7
    assert session.got() == b""


def test_the_kernel_is_in_its_place_again_behind_that(session: Session) -> None:
    session.polls.number_of(session)
    session.notify()
    assert session.got() == WOKEN_7
    assert not os.get_inheritable(session.fd)


def test_a_handle_that_fails_leaves_the_kernel_in_its_place(session: Session) -> None:
    class Failing:
        def notify(self) -> None:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        session.polls.number_of(Failing())
    session.notify()
    assert session.got() == WOKEN_7


def test_waking_tells_the_kernel_the_number(session: Session) -> None:
    session.polls.wake(7)
    assert session.got() == WOKEN_7


def test_waking_where_the_connection_has_ended_is_no_error(session: Session) -> None:
    read_only = os.open("/dev/null", os.O_RDONLY)
    polls = Polls(read_only)
    polls.wake(7)
    polls.close()
    os.close(read_only)
