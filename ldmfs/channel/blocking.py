"""The client for threads: it waits in the system call that receives.

One thread at a time reads the socket, the leader: whichever waits for an answer and finds nobody reading.  What it
reads for others it hands over.  Completion handlers run in a thread of their own, which leads when nobody else does.
"""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.errors import LdmError, NotServed, ProviderDied
from ..core.events import Limits, Opened
from ..core.request import Reply, Request
from ..core.wire import Frames
from .address import connect
from .client import Client
from .completion_handlers import Completion, CompletionThread
from .waiter import Outcome, Waiter, raise_error

LINGER_SECONDS = 1.0
"""How long the thread of the completion handlers waits for a next one before it ends."""


class BlockingClient:
    """A connection to one container, for any number of threads.

    `_lock` guards all state, the client's too; it is never held in a system call that waits.  `_leader` is the waiter
    whose thread reads the socket.  Each thread that leaves frames in the outbox pushes them out while it waits for its
    answer; who leaves without one (an interrupt, `request_soon`) leaves that to the thread of the completion handlers.
    """

    def __init__(
        self, sock: socket.socket, own_container: str = "", limits: Limits | None = None, path: Path | None = None
    ) -> None:
        """Begin with a connection; `path` is where another one can be made, to a provider that has moved."""
        self._client = Client(sock, own_container, limits)
        self._path = path
        self._before: list[socket.socket] = []
        """Sockets of connections that have moved, in which a thread may wait still."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._leader: Waiter | None = None
        self._followers = 0
        self._pushing = 0
        self._taking = False
        self._completions = CompletionThread(self._lock, self._call, self._linger, self._has_unsent)
        self._client.drained = self._drained
        self._client.lock = self._lock
        try:
            self._call(self._client.greet)
        except BaseException as error:
            self.aclose()
            if isinstance(error, LdmError):
                raise NotServed(f"the container went away while it was greeted: {error}") from None
            raise

    @property
    def lost(self) -> bool:
        """Whether the connection is at its end, and a new one is to be made."""
        return self._client.lost

    def is_refused(self, consumer_id: int) -> bool:
        """Tell whether a device was refused by a provider that has moved, so that it has to be opened anew."""
        return self._client.is_refused(consumer_id)

    def alive(self) -> bool:
        """Tell whether the provider's process is there, by looking, which `lost` does not."""
        with self._lock:
            alive = self._client.alive()
            if not alive:
                self._changed.notify_all()
                self._close_if_lost()
            return alive

    def open(self, device: str, chain: tuple[str, ...]) -> Opened:
        """Open a device; raises what the provider refuses it with."""
        opened: Opened = self._call(self._client.open, device, chain)
        return opened

    def close(self, consumer_id: int) -> None:
        """Close a device; returns when its close handler has run, or the provider is gone."""
        with contextlib.suppress(LdmError):
            self._call(self._client.close, consumer_id)
        with self._lock:
            if self._completions.completed and self._client.move is not None:  # of what was held back
                self._completions.run_apart()

    def request(self, consumer_id: int, device: str, request: Request, blocks: int) -> Reply:
        """Send a request and wait for the reply; raises its error.  KeyboardInterrupt cancels it."""
        reply: Reply = self._call(self._client.request, consumer_id, device, blocks, request)
        return reply

    def requests(self, consumer_id: int, device: str, blocks: int) -> Callable[[Request], Reply]:
        """Return what sends requests to one device, as `request` does."""
        return functools.partial(self._call, self._client.request, consumer_id, device, blocks)

    def request_soon(
        self, consumer_id: int, device: str, request: Request, blocks: int, handler: Completion, context: Any
    ) -> None:
        """Send a request; `handler(context, reply or error)` is run once, in a thread of the connection.

        Raises, and does not run the handler, when the request is refused at the entrance.
        """
        with self._lock:
            waiter = self._completions.waiter(handler, context)
            frames = self._client.request(consumer_id, device, blocks, request, waiter)
            self._completions.expected.add(waiter)
            self._client.send(frames)
            self._need_thread()

    def aclose(self) -> None:
        """End the connection: whatever is outstanding ends with an error."""
        with self._lock:
            self._client.lose(NotServed("the connection was closed"))
            self._changed.notify_all()
            self._close_if_lost()

    def join(self) -> None:
        """Return when the completion handlers of a connection that was ended have run."""
        self._completions.join()

    def detach(self) -> None:
        """Forget the connection, in a process that was forked."""
        self._client.socket.close()

    # -- waiting

    def _call(self, prepare: Callable[..., Frames], *args: Any) -> Any:
        """Ask, wait for the answer, and return it or raise the error that it is.

        The usual case, in which nobody else waits, is kept in this one function, since a call costs as much as a lock.
        """
        waiter, client, lock = Waiter(), self._client, self._lock
        try:
            with lock:
                frames = prepare(*args, waiter)
                client.send(frames)
                leader = self._leader
                if leader is None:
                    self._leader = waiter
            if leader is not None:
                self._follow(waiter)
            outcome, buffer = waiter.outcome, client.buffer
            while outcome is None:
                if client.outbox:
                    outcome = self._exchange(waiter)
                    continue
                if client.away:
                    outcome = self._reconnect(waiter)
                    continue
                try:
                    size = client.receive_into(buffer)
                except ConnectionResetError:
                    size = client.receive()
                except OSError:
                    size = 0
                with lock:
                    self._taking = True
                    client.take(size)
                    buffer[0] = 0
                    self._taking = False
                    outcome = waiter.outcome
                    if type(outcome) is Reply and not (self._followers or self._pushing or client.outbox):
                        self._leader = None
                        return outcome
                    if outcome is not None or not (size or client.away):
                        self._resign()
                        break
        except BaseException:
            self._interrupted(waiter)
            raise
        finally:
            if self._leader is waiter:
                with lock:
                    self._resign()
        try:
            return raise_error(outcome or ProviderDied("the connection is lost"))
        finally:
            del waiter, outcome

    def _wake(self, _waiter: Waiter) -> None:
        if self._followers:
            self._changed.notify_all()

    def _interrupted(self, waiter: Waiter) -> None:
        """Cancel what `_call` was interrupted in; make good a packet that was received and not taken, or by half.

        The first byte of the buffer, the frame's kind, is 0 whenever there is no packet to be taken.
        """
        client = self._client
        with self._lock:
            if self._leader is waiter:
                taking, self._taking = self._taking, False
                if taking and (self._followers or self._completions.expected):  # the packet may have been theirs
                    client.lose(ProviderDied("the connection was given up, interrupted while a reply was taken"))
                elif client.buffer[0] and not taking:
                    client.take(client.size_received())
                client.buffer[0] = 0
            with contextlib.suppress(ValueError):
                client.cancel(waiter)
            if client.outbox:
                self._need_thread()

    def _exchange(self, waiter: Waiter) -> Outcome | None:
        """Push frames out, and take what comes while the socket is full: the other side may wait for that.

        Return the waiter's outcome, if it has one by then.
        """
        client = self._client
        poller = select.poll()
        poller.register(client.socket, select.POLLIN | select.POLLOUT)
        while client.outbox:
            ((_, ready),) = poller.poll()
            size = client.receive(socket.MSG_DONTWAIT) if ready & ~select.POLLOUT else -1
            with self._lock:
                if size >= 0:
                    self._taking = True
                    client.take(size)
                    client.buffer[0] = 0
                    self._taking = False
                client.flush()
        return waiter.outcome

    def _reconnect(self, waiter: Waiter) -> Outcome | None:
        """Go on with the process that has taken the provider's place, or end the connection where there is none.

        Return the waiter's outcome, if it has one by then.
        """
        client = self._client
        sock: socket.socket | None = None
        error: LdmError = NotServed("the provider has moved")
        try:
            if self._path is not None:
                sock = connect(self._path)
        except LdmError as refused:
            error = refused
        except OSError as failed:
            error = NotServed(f"the provider has moved: {failed.strerror}")
        with self._lock:
            if not client.away:  # it was closed meanwhile
                if sock is not None:
                    sock.close()
            elif sock is None:
                client.lose(error)
                self._changed.notify_all()
            else:
                self._before.append(client.resume(sock))
                self._close_before()
        return waiter.outcome

    def _close_before(self) -> None:
        if not self._pushing:
            while self._before:
                self._before.pop().close()

    def _follow(self, waiter: Waiter) -> None:
        """Return when the waiter has its outcome or has become the leader; push frames out meanwhile."""
        while True:
            with self._lock:
                if waiter.outcome is not None:
                    return
                if self._leader is None:
                    self._leader = waiter
                    return
                waiter.done = self._wake
                if not self._client.outbox:
                    self._wait()
                    continue
                self._pushing += 1
            self._push()

    def _push(self) -> None:
        """Wait for room in the socket, which another thread reads, and send."""
        try:
            poller = select.poll()
            poller.register(self._client.socket, select.POLLOUT)
            poller.poll()
        finally:
            with self._lock:
                self._pushing -= 1
                self._client.flush()
                self._drained()
                self._close_before()
                self._close_if_lost()

    def _drained(self) -> None:
        """Let the thread of the completion handlers go where it only had to read while others push."""
        if not self._completions.expected and not self._has_unsent():
            self._completions.wake()

    def _wait(self, seconds: float | None = None) -> None:
        self._followers += 1
        try:
            self._changed.wait(seconds)
        finally:
            self._followers -= 1

    def _resign(self) -> None:
        """Leave the reading to another: one of the followers, or the next who asks."""
        self._leader = None
        if self._followers:
            self._changed.notify_all()
        if self._has_unsent():  # which waits for room, which the other side may make only if one reads
            self._need_thread()
        if self._client.lost:
            self._close_if_lost()

    def _close_if_lost(self) -> None:
        if self._client.lost and self._leader is None and not self._pushing:
            self._client.socket.close()

    def _has_unsent(self) -> bool:
        return bool(self._client.outbox or self._pushing)

    def _linger(self) -> None:
        """Wait for more to do, in the thread of the completion handlers."""
        if not self._client.lost:
            self._wait(LINGER_SECONDS)

    def _need_thread(self) -> None:
        self._completions.start()
        if self._client.outbox and self._leader is not None and not self._pushing:  # it may read for long
            self._pushing += 1
            threading.Thread(target=self._push_all, name="ldmfs-push", daemon=True).start()
        self._changed.notify_all()

    def _push_all(self) -> None:
        while True:
            self._push()
            with self._lock:
                if not self._client.outbox or self._client.lost:
                    return
                self._pushing += 1
