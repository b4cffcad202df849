"""The exchange of one open file of a message device: a write, its reply, end of file.

    state     write         start         finish       read                         state after
    IDLE      a new CALL    RUNNING       -            sends READ: start            RUNNING
    RUNNING   EBUSY         -             READY        waits, or EAGAIN             RUNNING
    READY     replaces it   RUNNING       -            the reply from `offset`      READY
    READY     -             -             -            at the end: empty            IDLE

An error that a request ended with is the reply: the next read raises it, once.  `number` counts the exchanges, so that
the end of one that was replaced meanwhile is recognised and dropped.
"""

from __future__ import annotations

import enum

from .errors import DeviceBusy, LdmError
from .request import Reply


class State(enum.Enum):
    """Where an exchange stands."""

    IDLE = "idle"
    RUNNING = "running"
    READY = "ready"


_IDLE, _RUNNING, _READY = State


class Exchange:
    """The reply that one open file is waiting for or reading.

    Message devices keep their own offset: the kernel's has moved by what was written.
    """

    __slots__ = ("data", "error", "number", "offset", "state")

    def __init__(self) -> None:
        self.state = _IDLE
        self.number = 0
        self.offset = 0
        self.data: bytes | bytearray | memoryview = b""
        self.error: LdmError | None = None

    def start(self) -> int:
        """Begin a request, dropping a reply that was not read; return its number.

        Raises `DeviceBusy` while the one before is still running.
        """
        if self.state is _RUNNING:
            raise DeviceBusy("the last request of this open file is still running; read its reply first")
        self.number += 1
        self.state = _RUNNING
        self.data, self.error = b"", None
        return self.number

    def finish(self, number: int, reply: Reply | LdmError) -> bool:
        """Take the outcome of request `number`; return False when it is not the one that is awaited."""
        if number != self.number or self.state is not _RUNNING:
            return False
        self.state, self.offset = _READY, 0
        if isinstance(reply, LdmError):
            self.error = reply
        else:
            self.data = reply.data
        return True

    def answer(self, reply: Reply) -> None:
        """Begin and finish a request at once, for a handler that needs no waiting; not while one is running."""
        self.number += 1
        self.state, self.offset, self.data, self.error = _READY, 0, reply.data, None

    def reset(self) -> None:
        """Forget the request and its reply."""
        self.number += 1
        self.state = _IDLE
        self.data, self.error = b"", None

    def take(self, size: int) -> bytes | bytearray | memoryview:
        """Return the next at most `size` bytes of the reply, none at its end, and raise its error; READY only."""
        if self.error is not None:
            error = self.error
            self.reset()
            raise error
        data, begin = self.data, self.offset
        end = len(data)
        if begin >= end:
            self.reset()
            return b""
        self.offset = begin + size
        return data if begin == 0 and size >= end else memoryview(data)[begin : begin + size]

    @property
    def unread(self) -> bool:
        """Whether there is a reply with bytes, or an error, of which nothing was read."""
        return self.state is _READY and self.offset == 0 and (self.error is not None or len(self.data) > 0)
