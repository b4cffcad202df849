"""One end of the control link between the supervisor and a container, a stream socket: see `container.control`."""

from __future__ import annotations

import array
import logging
import os
import socket
from collections.abc import Iterator, Sequence

import msgspec
import trio

from .control import Message, decode, encode

log = logging.getLogger("ldmfs.control")

MAX_LINE = 64 << 20
"""The longest message in bytes: a description of some hundred thousand consumers."""

MAX_FDS = 8
"""Room for descriptors that come with a message."""

PART = 1 << 16

_RIGHTS_ROOM = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


class Link:
    """One end of a control link."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
        self._lock = trio.Lock()
        self._buffer = bytearray()
        self._searched = 0
        self._fds: list[int] = []

    async def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message, with descriptors that stay the caller's.

        Raises `trio.BrokenResourceError` when the other end is gone.
        """
        data = memoryview(encode(message))
        async with self._lock:
            if fds:
                rights = socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)
                try:
                    data = data[await self._stream.socket.sendmsg([data], [rights]) :]
                except OSError as error:
                    raise trio.BrokenResourceError from error
            await self._stream.send_all(data)

    async def receive(self) -> Message | None:
        """Return what the other end sends next, None when it is gone.  Cancelled, nothing is lost."""
        try:
            while (message := self._taken()) is None and len(self._buffer) <= MAX_LINE:
                part = await self._stream.socket.recvmsg(PART, _RIGHTS_ROOM, socket.MSG_CMSG_CLOEXEC)
                if not self._arrived(part[0], part[1]):
                    return None
        except (OSError, trio.ClosedResourceError):
            return None
        return message

    def __aiter__(self) -> Link:
        return self

    async def __anext__(self) -> Message:
        if (message := await self.receive()) is None:
            raise StopAsyncIteration
        return message

    def rest(self) -> Iterator[Message]:
        """Yield what the other end, which is gone, had sent."""
        more = True
        while more:
            while message := self._taken():
                yield message
            try:
                part = self._end.recvmsg(PART, _RIGHTS_ROOM, socket.MSG_CMSG_CLOEXEC)
                more = self._arrived(part[0], part[1])
            except OSError:
                more = False

    def take_fds(self) -> list[int]:
        """Return the descriptors that came with the last message that had any; they are the caller's from here on."""
        fds, self._fds = self._fds, []
        return fds

    def _taken(self) -> Message | None:
        """Return the first message of the buffer, None where there is no whole one."""
        while (end := self._buffer.find(b"\n", self._searched)) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched = 0
            try:
                message: Message = decode(line)
                return message
            except msgspec.DecodeError as error:  # the other end may be of another version
                log.warning("a message of the control link is not understood, and is ignored: %s", error)
        self._searched = len(self._buffer)
        return None

    def _arrived(self, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> bool:
        """Note a part of a message; tell whether more may come."""
        for level, type, content in ancillary:
            if (level, type) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds.extend(fds)
        self._buffer += data
        return bool(data)

    async def aclose(self) -> None:
        """Close this end, and the descriptors that nobody has taken."""
        for fd in self.take_fds():
            os.close(fd)
        await self._stream.aclose()
