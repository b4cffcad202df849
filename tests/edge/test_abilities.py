"""What the kernel's INIT request tells, and that the kernel does what it told."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldmfs.fuse.abilities import Abilities, abilities, can_clone
from ldmfs.fuse.mount import Connection

RESEND = 1 << 39 - 32
"""In the second word of flags."""

NOTIFY_RESEND = 7


def init(minor: int, *flags: int) -> bytes:
    """Return an INIT request as kernels send it: the longer ones since 5.17, with a second word of flags."""
    body = struct.pack("=III", 7, minor, 131072) + struct.pack(f"={len(flags)}I", *flags)
    body += bytes(44) if len(flags) == 2 else b""
    return struct.pack("=IIQQIIII", 40 + len(body), 26, 2, 0, 0, 0, 0, 0) + body


@pytest.mark.parametrize(
    ("request_", "resend"),
    [
        (init(31, 0x03FFFFFB), False),
        (init(36, 1 << 30 | 0xFB, 0), False),
        (init(40, 1 << 30 | 0xFB, RESEND), True),
        (init(40, 1 << 30 | 0xFB, 0xFFFFFFFF & ~RESEND), False),
        (init(40, 0xFB, RESEND), False),
    ],
    ids=["short", "long", "with it", "all but it", "without the mark of a second word"],
)
def test_the_flags_of_init_tell_of_resending(request_: bytes, resend: bool) -> None:
    assert abilities(request_).resend is resend


def test_the_protocol_is_that_of_the_request() -> None:
    assert abilities(init(31, 0)) == Abilities((7, 31), resend=False)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    """Give a mount of which INIT was read and not answered."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing on this machine, or not for this user")
    connection = Connection.mount(tmp_path)
    yield connection
    connection.unmount()


def test_the_kernel_takes_a_resend_if_its_init_says_so(connection: Connection) -> None:
    try:
        taken = os.write(connection.fd, struct.pack("=IiQ", 16, NOTIFY_RESEND, 0)) == 16
    except OSError:
        taken = False
    assert abilities(connection.init).resend is taken


def test_a_connection_can_be_cloned(connection: Connection) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert can_clone(connection.fd)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_connection_cannot_be_cloned() -> None:
    ours, theirs = os.pipe()
    try:
        assert not can_clone(ours)
    finally:
        os.close(ours)
        os.close(theirs)
