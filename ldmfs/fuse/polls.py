"""Waking those who wait in poll(2), also when the process is gone that they had asked.

The kernel wakes the waiters of an open file when it is told the number that it has given this file for that purpose.
Who waited for an instance of the container that was killed would wait for ever: nobody knows that number any more.  So
it is kept in the state area, and the next instance wakes them all, who then ask it.

pyfuse3 does not tell the number, but its handle writes it, in a notification, to the session's descriptor.  `number_of`
puts a pipe in that place for a moment.
"""

from __future__ import annotations

import logging
import os
import struct
from typing import Protocol

log = logging.getLogger("ldmfs.fuse")

NOTIFICATION = struct.Struct("<IiQQ")
"""`struct fuse_out_header`, which names the notification in the place of an error, and the number."""

POLL = 1
"""FUSE_NOTIFY_POLL (`include/uapi/linux/fuse.h`)."""


class Handle(Protocol):
    """pyfuse3's handle."""

    def notify(self) -> None: ...


class Polls:
    """The notifications of the session on descriptor `fd`, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._kernel = os.dup(fd)
        self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def number_of(self, handle: Handle) -> int:
        """Return the number of an open file.  No other thread may write to the session's descriptor meanwhile."""
        os.dup2(self._pipe[1], self._fd, inheritable=False)
        try:
            handle.notify()
        finally:
            os.dup2(self._kernel, self._fd, inheritable=False)
        _, _, _, number = NOTIFICATION.unpack(os.read(self._pipe[0], NOTIFICATION.size))
        return int(number)

    def wake(self, number: int) -> None:
        """Wake those who wait for an open file.  Nothing is done where it is closed by now."""
        try:
            os.write(self._kernel, NOTIFICATION.pack(NOTIFICATION.size, POLL, 0, number))
        except OSError as error:
            log.debug("poll %d could not be woken: %s", number, error)

    def close(self) -> None:
        """Let go of the descriptors."""
        for fd in (self._kernel, *self._pipe):
            os.close(fd)
