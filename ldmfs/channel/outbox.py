"""What is sent to a consumer's process: now, or when its socket has room."""

from __future__ import annotations

import socket
from collections import deque

import trio

from ..core.wire import Frames


class Outbox:
    """The frames that a socket had no room for; a task sends them as soon as it has."""

    def __init__(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        self._socket = sock
        self._send_frame = sock.send
        self._nursery = nursery
        self.frames: deque[bytes] = deque()
        self.flushed = trio.Event()
        """Set when there are no frames any more; a new one whenever there are some again."""

    def send(self, frames: Frames) -> None:
        """Send now what the socket has room for, and the rest later."""
        if not self.frames:
            try:
                while frames:
                    self._send_frame(frames[0])
                    frames = frames[1:]
                return
            except BlockingIOError:
                self.flushed = trio.Event()
                self._nursery.start_soon(self._flush)
            except OSError:  # the consumer is gone, as the next receive will tell
                return
        self.frames.extend(frames)

    async def _flush(self) -> None:
        """Send what there is, as the one task that does."""
        while self.frames:
            try:
                self._socket.send(self.frames[0])
                self.frames.popleft()
            except BlockingIOError:
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                except trio.ClosedResourceError:
                    self.frames.clear()
            except OSError:
                self.frames.clear()
        self.flushed.set()
