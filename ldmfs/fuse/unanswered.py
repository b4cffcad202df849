"""What an instance had read and not answered when it ended: who knows of it is the kernel, which hands it out again.

The descriptor of an instance that has ended is kept open by the supervisor, so that the kernel keeps these requests.
`take_back` makes it send them once more (FUSE_NOTIFY_RESEND, Linux 6.9) and looks at each.  An OPEN that nobody
answered means a consumer of whom the state area tells and that does not exist; a RELEASE, a consumer of whom no one
else will ever hear again.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import Protocol

import msgspec

HEADER = struct.Struct("<IIQQIIIHH")
"""`struct fuse_in_header`: length, opcode, unique, node, uid, gid, pid and two lengths."""

HANDLE = struct.Struct("<Q")
"""What the bodies of all requests to an open file begin with."""

ANSWER = struct.Struct("<IiQ")
"""`struct fuse_out_header`."""

RESENT = 1 << 63
"""FUSE_UNIQUE_RESEND: in the number of a request that is handed out once more."""

FORGET, OPEN, READ, WRITE, RELEASE, RELEASEDIR, CREATE, INTERRUPT, BATCH_FORGET = 2, 14, 15, 16, 18, 29, 35, 36, 42
"""Opcodes, of `include/uapi/linux/fuse.h`."""

ROOM = (1 << 20) + (1 << 16)
"""Bytes for the longest request: the kernel ends one for which there is no room."""


class Unanswered(msgspec.Struct, frozen=True):
    """What the next instance has to know of an earlier one's last requests."""

    number: int = 0
    """When it was, in ns of the machine's clock, so that none is taken for news that an instance was told before."""
    opening: tuple[int, ...] = ()
    """Threads that wait in an open, or were told that it failed: so it was not answered, whatever the state area says.
    """
    released: tuple[int, ...] = ()
    """Consumers that are gone, of which the kernel will not tell again."""
    told: tuple[int, ...] = ()
    """Consumers that got an error for the read or write that was under way."""


NOTHING = Unanswered()


class Connection(Protocol):
    """The FUSE connection: a descriptor of it that does not block, and what makes the kernel send again."""

    fd: int

    def resend(self) -> None: ...


def take_back(connection: Connection, *, fail: bool) -> Unanswered:
    """Look at the requests of an instance that has ended, before its descriptor is closed and another one reads.

    With `fail` they end here, with `ECONNABORTED`, and what tells of a consumer's end is answered in its place.  Else
    the next instance gets them.
    """
    opening: list[int] = []
    released: list[int] = []
    told: list[int] = []
    again = False
    buffer = bytearray(ROOM)
    connection.resend()
    while (length := _read(connection.fd, buffer)) > 0:
        _, opcode, unique, _, _, _, thread, *_ = HEADER.unpack_from(buffer)
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):  # which want no answer, and of which an instance makes nothing
            continue
        if not unique & RESENT:  # behind them comes what nobody had read
            again = True
            break
        handle = HANDLE.unpack_from(buffer, HEADER.size)[0] if length >= HEADER.size + HANDLE.size else 0
        if opcode in (OPEN, CREATE) and thread:
            opening.append(thread)
        if not fail:
            again = True
            continue
        if opcode == RELEASE:
            released.append(handle)
        elif opcode in (READ, WRITE):
            told.append(handle)
        _answer(connection.fd, unique, 0 if opcode in (RELEASE, RELEASEDIR) else errno.ECONNABORTED)
    if again:
        connection.resend()
    return Unanswered(time.monotonic_ns(), tuple(opening), tuple(released), tuple(told))


def _read(fd: int, buffer: bytearray) -> int:
    """Read the next request; return its length, 0 when there is none."""
    while True:
        try:
            return os.readv(fd, [buffer])
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.ENOENT:  # it ended while it was read
                continue
            if error.errno in (errno.ENODEV, errno.ECONNABORTED):  # so did the connection
                return 0
            raise


def _answer(fd: int, unique: int, error: int) -> None:
    try:
        os.write(fd, ANSWER.pack(ANSWER.size, -error, unique))
    except OSError as failure:
        if failure.errno not in (errno.ENOENT, errno.ENODEV):  # it, or the connection, ended meanwhile
            raise
