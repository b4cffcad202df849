"""The client for threads: it waits in the system call that receives.

One thread at a time reads the socket, the leader: whichever waits for an answer and finds nobody reading.  What it
reads for others it hands over.  Completion handlers run in a thread of their own, which leads when nobody else does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.errors import LdmError, NotServed
from ..core.events import Limits, Opened
from ..core.request import Reply, Request
from ..core.wire import Frames
from .address import address
from .client import Client, Outcome, Waiter, raise_error
from .memory import SharedArena

log = logging.getLogger("ldmfs.consumer")

LINGER_SECONDS = 1.0
"""How long the thread of the completion handlers waits for a next one before it ends."""

Prepare = Callable[[Waiter], tuple[int, Frames, list[SharedArena]]]
Completion = Callable[[Any, Reply | LdmError], object]


def connect(path: Path) -> socket.socket:
    """Connect to a container's socket, blocking.  Raises `NotServed` where nobody listens, `OSError` otherwise."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with address(path) as at:
            sock.connect(at)
    except ConnectionRefusedError:
        sock.close()
        raise NotServed(f"nobody serves {path.name}") from None
    except BaseException:
        sock.close()
        raise
    return sock


class _Client(Client):
    def leave(self, frames: Frames) -> None:
        """Send frames; their number is small against the socket's room, and the other side reads."""
        self.send_all(frames, [])

    def send_all(self, frames: Frames, arenas: list[SharedArena]) -> None:
        """Send frames, and take what comes while the socket is full: the other side may wait for that."""
        while sent := self.send_now(frames, arenas, socket.MSG_DONTWAIT):
            frames = frames[sent:]
            if not frames:
                return
        while frames and not self.lost:
            poller = select.poll()
            poller.register(self.socket, select.POLLIN | select.POLLOUT)
            (_, ready), *_ = poller.poll()
            if ready & select.POLLIN and (size := self.receive(socket.MSG_DONTWAIT)) >= 0:
                self.take(size)
            frames = frames[self.send_now(frames, arenas, socket.MSG_DONTWAIT) :]


class BlockingClient:
    """A connection to one container, for any number of threads."""

    def __init__(self, sock: socket.socket, own_container: str = "", limits: Limits | None = None) -> None:
        self._client = _Client(sock, own_container, limits)
        self._changed = threading.Condition(threading.Lock())
        self._leading = False
        self._completed: list[tuple[Completion, Any, Outcome]] = []
        self._expected = 0
        self._thread: threading.Thread | None = None
        self._client.send_all(self._client.machine.hello(), [])
        self._lead(lambda: self._client.greeted or self._client.lost)
        if self._client.lost:
            raise NotServed("the container went away while it was greeted")

    @property
    def lost(self) -> bool:
        """Whether the connection is at its end, and a new one is to be made."""
        return self._client.lost

    def open(self, device: str, chain: tuple[str, ...]) -> Opened:
        """Open a device; raises what the provider refuses it with."""
        opened: Opened = self._call(lambda waiter: (*self._client.open(device, chain, waiter), []))
        return opened

    def close(self, consumer_id: int) -> None:
        """Close a device; returns when its close handler has run, or the provider is gone."""
        with contextlib.suppress(LdmError):
            self._call(lambda waiter: (*self._client.close(consumer_id, waiter), []))

    def request(self, consumer_id: int, device: str, request: Request, blocks: int) -> Reply:
        """Send a request and wait for the reply; raises its error.  KeyboardInterrupt cancels it."""
        client = self._client
        reply: Reply = self._call(lambda waiter: client.request(consumer_id, device, request, waiter, blocks))
        return reply

    def request_soon(
        self, consumer_id: int, device: str, request: Request, blocks: int, handler: Completion, context: Any
    ) -> None:
        """Send a request; `handler(context, reply or error)` is run once, in a thread of the connection.

        Raises, and does not run the handler, when the request is refused at the entrance.
        """

        def completed(waiter: Waiter) -> None:
            assert waiter.outcome is not None
            self._expected -= 1
            self._completed.append((handler, context, waiter.outcome))
            self._changed.notify_all()

        with self._changed:
            waiter = Waiter(completed)
            _, frames, arenas = self._client.request(consumer_id, device, request, waiter, blocks)
            self._expected += 1
            self._client.send_all(frames, arenas)
            if self._thread is None:
                self._thread = threading.Thread(target=self._complete, name="ldmfs-completions", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def aclose(self) -> None:
        """End the connection: whatever is outstanding ends with an error."""
        with self._changed:
            self._client.lose(NotServed("the connection was closed"))
            self._changed.notify_all()
        if not self._leading:
            self._client.socket.close()

    def detach(self) -> None:
        """Forget the connection, in a process that was forked."""
        self._client.socket.close()

    def _call(self, prepare: Prepare) -> Any:
        waiter = Waiter(self._wake)
        with self._changed:
            id, frames, arenas = prepare(waiter)
            self._client.send_all(frames, arenas)
        try:
            self._lead(lambda: waiter.outcome is not None)
        except BaseException:
            with self._changed, contextlib.suppress(ValueError):
                self._client.send_all(self._client.machine.cancel(id), [])
            raise
        assert waiter.outcome is not None
        return raise_error(waiter.outcome)

    def _wake(self, _waiter: Waiter) -> None:
        self._changed.notify_all()

    def _lead(self, enough: Callable[[], bool]) -> None:
        """Return when `enough`, reading the socket meanwhile if nobody else does."""
        with self._changed:
            while self._leading and not enough():
                self._changed.wait()
            if enough():
                return
            self._leading = True
        try:
            while not enough():
                size = self._client.receive()
                with self._changed:
                    self._client.take(size)
        finally:
            with self._changed:
                self._leading = False
                self._changed.notify_all()

    def _complete(self) -> None:
        while True:
            with self._changed:
                if not self._expected and not self._completed:
                    self._changed.wait(LINGER_SECONDS)
                if not self._expected and not self._completed:
                    self._thread = None
                    return
            self._lead(lambda: bool(self._completed))
            with self._changed:
                completed, self._completed = self._completed, []
            for handler, context, outcome in completed:
                run_handler(handler, context, outcome)


def run_handler(handler: Completion, context: Any, outcome: Any) -> None:
    """Run a completion handler; what it raises is logged, since nobody is left to be told."""
    try:
        handler(context, outcome)
    except Exception:
        log.exception("a completion handler raised")


def process_changed(pid: int) -> bool:
    """Tell whether this process was forked from the one that made a connection."""
    return pid != os.getpid()
