"""Open files: what read, write, flush, poll and release mean for a message device and for a block device.

An open file is one consumer.  It ends with `release`, which the kernel sends once, when the last descriptor is closed
or its owner died, and some time after `close` returned; what must be visible when `close` returns is done in `flush`,
which comes at each `close` of each duplicate.
"""

from __future__ import annotations

import functools
import logging
import os
import select
from collections.abc import Callable
from typing import Protocol

import pyfuse3
import trio

from ..core.device import Consumer, Execution, Peer
from ..core.dispatch import Dispatch, cancelled_error
from ..core.errors import InvalidRequest, LdmError, MessageTooLong, NoSpace, ProviderDied, StaleHandle, WouldBlock
from ..core.exchange import Exchange, State
from ..core.kept import KeptReplies
from ..core.request import MAX_MESSAGE, Reply, Request, RequestType
from ..core.store import Store
from ..core.tables import Stage
from . import signals
from .records import Asked, Given, Record, Refused, decode, encode, outcome_of
from .waiting import KilledInWait, Watch

log = logging.getLogger("ldmfs.fuse")

_CALL = RequestType.CALL
_IDLE, _RUNNING, _READY = State  # globals of the fast path
_OPEN, _ASKED, _READING, _READ = map(int, (Stage.OPEN, Stage.ASKED, Stage.READING, Stage.READ))
_NOWHERE = memoryview(bytearray(1)), 0
"""Where stages go that no other instance will ask for."""

Data = bytes | bytearray | memoryview


class Surroundings(Protocol):
    """What a file needs of the mount that it is in."""

    files: Store | None
    """What open files leave for the next instance of the container."""
    reissue: bool
    """What was written and not answered to the end is kept there at once, to be done again after a crash."""
    ending: LdmError | None
    """What requests end with that the container gives up, as its time is over."""
    dispatch: Dispatch
    kept: KeptReplies
    watch: Watch
    nursery: trio.Nursery


class MessageFile:
    """One open file of a message device: see `core.exchange` for what it answers when."""

    __slots__ = (
        "_around",
        "_begin_of_reply",
        "_dispatch",
        "_done",
        "_exchange",
        "_inline",
        "_interrupted",
        "_is_kept",
        "_poll",
        "_recorded",
        "_reissue",
        "_resumed",
        "_scope",
        "_slot",
        "_stages",
        "_store",
        "consumer",
        "flags",
    )

    def __init__(self, around: Surroundings, consumer: Consumer, flags: int) -> None:
        self._around = around
        self._dispatch = around.dispatch
        self.consumer = consumer
        self.flags = flags
        self._exchange = Exchange()
        self._inline = consumer.device.request_execution is Execution.INLINE
        self._scope: trio.CancelScope | None = None
        self._done: trio.Event | None = None
        self._poll: pyfuse3.PollHandle | None = None
        self._interrupted = False
        self._is_kept = False
        area = around.dispatch.area
        self._stages, self._slot = _NOWHERE if area is None else area.consumers.stage_byte(consumer.id)
        self._store = around.files
        self._reissue = around.reissue and around.files is not None
        self._recorded = False
        """Whether the store has something of this file."""
        self._resumed: Request | Reply | LdmError | None = None
        """What was asked under an earlier instance of the container, and can be done again, or what came of it."""
        self._begin_of_reply = 0
        """Where the reply begins by the kernel's count, which goes on behind what was written."""

    def resume(self) -> None:
        """Go on where an earlier instance of the container ended, as far as the state area tells.

        One that handed over has left the reply.  Of one that was killed, where requests are reissued, what was asked is
        done again, unless its reply was read to the end.  Which part of the reply a read is for, one that the kernel
        sends once more or the next one, its offset tells.  Else a reply that was not read to its end is lost, and the
        next read says so, once.
        """
        stage = self._stages[self._slot]
        left = self._store.get(str(self.consumer.id)) if self._store is not None else None
        self._recorded = left is not None
        if stage not in (_ASKED, _READING, _READ):
            return
        if left is not None:
            self._go_on(decode(left), stage)
        elif stage == _READ:
            self._exchange.answer(Reply())
        else:
            lost = ProviderDied("the container's process ended before the reply was read")
            self._exchange.finish(self._exchange.start(), lost)

    def _go_on(self, record: Record, stage: int) -> None:
        if isinstance(record, Asked):
            self._begin_of_reply = record.begin
            self._resumed = record.request()
            if stage == _ASKED:
                self._begin_again()
        elif isinstance(record, (Given, Refused)):
            self._begin_of_reply, self._is_kept = record.begin, record.is_kept
            self._resumed = outcome_of(record)
            self._begin_again()
            self._exchange.offset = record.offset if isinstance(record, Given) else 0

    def record(self) -> Record | None:
        """Note where the file stands, and return what has to be left of it; None where nothing has, or has been."""
        exchange, begin, kept = self._exchange, self._begin_of_reply, self._is_kept
        if exchange.state is _READY:
            at_end = exchange.error is None and exchange.offset >= len(exchange.data)
            self._stages[self._slot] = _READ if at_end else _READING if exchange.offset else _ASKED
            if exchange.error is not None:
                return Refused(begin, kept, exchange.error.errno, str(exchange.error))
            return Given(begin, exchange.offset, kept, bytes(exchange.data))
        if exchange.state is _IDLE and self._resumed is None:
            self._stages[self._slot] = _OPEN
        return None

    @property
    def done(self) -> trio.Event | None:
        """What is set when the request that is running has ended; None where none is."""
        return self._done if self._exchange.state is _RUNNING else None

    def give_up(self, error: LdmError) -> None:
        """End the request that is running with an error, whatever its handler does."""
        if self._exchange.finish(self._exchange.number, error):
            assert self._done is not None
            self._abandon()
            self._done.set()

    # -- requests

    def write(self, data: bytes, offset: int = 0) -> int:
        """Send a CALL.  Never waits: the kernel holds up every other write to the device meanwhile.

        Raises the error of a handler that runs inline; what another ends with is for the read, or the flush.
        """
        if len(data) > MAX_MESSAGE:
            raise MessageTooLong(f"a message has at most {MAX_MESSAGE} bytes")
        if self._resumed is not None and self._is_resent(data, offset):
            return len(data)
        request = Request(_CALL, data)
        self._begin(request)
        if self._reissue or self._recorded:
            self._remember(request, offset + len(data))
        else:
            self._begin_of_reply = offset + len(data)
        self._stages[self._slot] = _ASKED
        return len(data)

    def read_now(self, size: int, offset: int = 0) -> Data | None:
        """Return what a read gives without waiting, None if it has to wait; raise the error that is the reply."""
        exchange = self._exchange
        if exchange.state is not _READY:
            if exchange.state is _IDLE:
                if self._resumed is None:
                    self._begin_read(size, offset)
                else:
                    self._begin_again()
            if exchange.state is _RUNNING:
                return None
        if self._is_kept:
            self._withdraw()
        if self._resumed is not None:  # of this reply the earlier instance may have given a part
            exchange.offset = max(0, offset - self._begin_of_reply)
        try:
            data = exchange.take(size)
        except LdmError:
            self._nothing_left()
            raise
        if data:
            self._stages[self._slot] = _READ if exchange.offset >= len(exchange.data) else _READING
            return data
        if self._reissue:  # that there is no more may have to be said again
            self._resumed = None
        else:
            self._nothing_left()
        return data

    async def read(self, offset: int, size: int) -> Data:
        """Wait for the reply, then return its next bytes.

        Raises `Interrupted` when the reader has a signal pending.  The handler is cancelled with it if the signal ends
        the reader; else it goes on for the reader to try again, and is cancelled when the file is closed.
        """
        if self.flags & os.O_NONBLOCK:
            raise WouldBlock("the reply is not there yet")
        while (data := self.read_now(size, offset)) is None:
            try:
                await self._wait(self._reader_pending)
            except KilledInWait:
                self._abandon()
                raise
            except LdmError:
                self._interrupted = True
                raise
        return data

    async def flush(self) -> None:
        """Do what is to be done when `close` returns: wait for a running handler, report its error, keep its reply.

        Does not wait for a file in non-blocking mode, for a process that is exiting, or after an interrupted read.
        """
        running = self._exchange.state is _RUNNING
        if running and not self._interrupted and not self.flags & os.O_NONBLOCK:
            try:
                await self._wait(self._closer_pending)
            except KilledInWait:
                return
        abandoned = self._scope is not None and self._scope.cancel_called
        if self._exchange.unread and not self._is_kept and not abandoned:
            self._keep()
        if self._exchange.state is _READY and self._exchange.error is not None:
            raise self._exchange.error.with_traceback(None)

    async def release(self) -> None:
        """Close the device for this consumer: cancel what is running, run the close handler."""
        self._exchange.reset()
        self._forget()
        with trio.CancelScope(shield=True):
            await self._around.dispatch.close(self.consumer)

    def poll(self, handle: pyfuse3.PollHandle | None) -> int:
        """Return the events that are there; `handle` is told when that changes.

        A file opened to read and write is readable when there is a reply, and one opened only to read always is when no
        request is running, since a read then sends one.
        """
        self._poll = handle
        state = self._exchange.state
        if state is _RUNNING:
            return 0
        readable = state is _READY or self.flags & os.O_ACCMODE == os.O_RDONLY
        return select.POLLOUT | (select.POLLIN if readable else 0)

    # -- the request that is running

    def _begin(self, request: Request) -> None:
        if self._is_kept:
            self._withdraw()
        if not self._inline:
            self._start(request)
            return
        try:
            self._exchange.answer(self._dispatch.request_inline(self.consumer, request))
        except LdmError:
            self._exchange.reset()
            self._nothing_left()
            raise
        if self._poll is not None:
            self._notify()

    def _begin_read(self, size: int, offset: int) -> None:
        """Take the reply that an earlier consumer of the same session left, or else send a READ."""
        device, peer = self.consumer.device, self.consumer.peer
        kept = self._around.kept.find(device.id, peer)
        if kept is None:
            request = Request(RequestType.READ, length=size)
            self._begin(request)
            self._remember(request, offset)
        else:
            self._remember(None, offset)
            self._exchange.finish(self._exchange.start(), kept.error or Reply(kept.data))
            if self._reissue and (record := self.record()) is not None:  # a kill in between does not lose it
                self._store_record(record)
            self._around.kept.take(device.id, peer)

    def _start(self, request: Request) -> None:
        number = self._exchange.start()
        scope = trio.CancelScope()
        try:
            ticket = self._dispatch.admit(self.consumer, scope.cancel)
        except LdmError:
            self._exchange.reset()
            raise
        self._scope, self._done, self._interrupted = scope, trio.Event(), False
        self._around.nursery.start_soon(self._run, number, request, ticket, scope, self._done)

    async def _run(self, number: int, request: Request, ticket: int, scope: trio.CancelScope, done: trio.Event) -> None:
        outcome: Reply | LdmError = cancelled_error(self.consumer)
        with scope:
            try:
                outcome = await self._around.dispatch.request(self.consumer, request, ticket)
            except LdmError as error:
                outcome = error
        self._exchange.finish(number, outcome)
        done.set()
        self._notify()

    async def _wait(self, pending: Callable[[], signals.Pending]) -> None:
        assert self._done is not None
        await self._around.watch.wait(self._done, pending)

    def _abandon(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def _notify(self) -> None:
        handle, self._poll = self._poll, None
        if handle is not None:
            try:
                handle.notify()
            except OSError as error:
                log.debug("poll of consumer %d could not be woken: %s", self.consumer.id, error)

    # -- for the next instance of the container

    def _remember(self, request: Request | None, begin_of_reply: int) -> None:
        """Take note of a new request: in the store too, where it is to be done again; what was there is out of date."""
        self._begin_of_reply, self._resumed = begin_of_reply, None
        if not self._reissue or request is None:
            if self._recorded:
                self._forget()
            return
        self._store_record(Asked(begin_of_reply, request.type, request.length, request.data))  # type: ignore[arg-type]

    def _store_record(self, record: Record) -> None:
        assert self._store is not None
        try:
            self._store.put(str(self.consumer.id), encode(record))
            self._recorded = True
        except NoSpace:  # it will be lost with this process, as where nothing is reissued
            self._forget()

    def _nothing_left(self) -> None:
        """Take note that no reply is to be read."""
        self._stages[self._slot], self._resumed = _OPEN, None
        if self._recorded:
            self._forget()

    def _forget(self) -> None:
        if self._recorded:
            assert self._store is not None
            self._store.delete(str(self.consumer.id))
            self._recorded = False

    def _begin_again(self) -> None:
        resumed = self._resumed
        assert resumed is not None
        if not isinstance(resumed, Request):
            self._exchange.finish(self._exchange.start(), resumed)
            return
        try:
            self._begin(resumed)
        except LdmError as error:
            self._exchange.finish(self._exchange.start(), error)

    def _is_resent(self, data: bytes, offset: int) -> bool:
        """Tell whether a write is the one that is done again already: the kernel had got no answer to it."""
        resumed = self._resumed
        return isinstance(resumed, Request) and data == resumed.data and offset + len(data) == self._begin_of_reply

    # -- replies that outlive their writer

    def _keep(self) -> None:
        data = self._exchange.data
        self._around.kept.keep(
            self.consumer.device.id, self.consumer.peer, self.consumer.id, bytes(data), self._exchange.error
        )
        self._is_kept = True

    def _withdraw(self) -> None:
        self._around.kept.withdraw(self.consumer.device.id, self.consumer.peer, self.consumer.id)
        self._is_kept = False

    # -- what /proc says of who waits; called in a worker thread

    def _reader_pending(self) -> signals.Pending:
        return reader_pending(self.consumer)

    def _closer_pending(self) -> signals.Pending:
        peer = self.consumer.peer
        if signals.exiting_with(peer.pid):
            return signals.Pending.FATAL
        return signals.pending(peer.pid)


class BlockFile:
    """One open file of a block device: reads and writes at an offset, answered by READ and WRITE requests."""

    __slots__ = ("_around", "consumer", "flags")

    def __init__(self, around: Surroundings, consumer: Consumer, flags: int) -> None:
        self._around = around
        self.consumer = consumer
        self.flags = flags

    async def read(self, offset: int, size: int) -> Data:
        """Return the bytes at `offset`, fewer than `size` at the device's end."""
        size = min(size, self.consumer.device.size - offset)
        if size <= 0:
            return b""
        reply = await self._request(Request(RequestType.READ, offset=offset, length=size))
        if len(reply.data) != size:
            raise InvalidRequest(f"device {self.consumer.device.name!r} gave {len(reply.data)} bytes for {size}")
        return reply.data

    async def write(self, offset: int, data: bytes) -> int:
        """Write `data` at `offset`; what would lie behind the device's end is not written."""
        room = self.consumer.device.size - offset
        if room <= 0:
            raise NoSpace(f"offset {offset} lies behind the end of the device")
        part = data[:room]
        await self._request(Request(RequestType.WRITE, part, offset=offset, length=len(part)))
        return len(part)

    async def sync(self) -> None:
        """Make durable what was written before."""
        await self._request(Request(RequestType.FLUSH))

    async def flush(self) -> None:
        """Nothing is outstanding when `close` is called."""

    async def release(self) -> None:
        """Close the device for this consumer."""
        with trio.CancelScope(shield=True):
            await self._around.dispatch.close(self.consumer)

    def give_up(self) -> None:
        """End the requests that are running, with the error of `Surroundings.ending`."""
        for cancel in tuple(self.consumer.cancels.values()):
            cancel()

    def poll(self, handle: pyfuse3.PollHandle | None) -> int:
        """A block device is always ready."""
        return select.POLLIN | select.POLLOUT

    async def _request(self, request: Request) -> Reply:
        dispatch, consumer = self._around.dispatch, self.consumer
        if consumer.device.request_execution is Execution.INLINE:
            return dispatch.request_inline(consumer, request)
        outcome: list[Reply | LdmError] = []
        done, scope = trio.Event(), trio.CancelScope()
        ticket = dispatch.admit(consumer, scope.cancel)

        async def run() -> None:
            with scope:
                try:
                    outcome.append(await dispatch.request(consumer, request, ticket))
                except LdmError as error:
                    outcome.append(error)
            done.set()

        self._around.nursery.start_soon(run)
        try:
            await self._around.watch.wait(done, functools.partial(reader_pending, consumer))
        except LdmError:
            scope.cancel()
            raise
        result = outcome[0] if outcome else self._around.ending or cancelled_error(consumer)
        if isinstance(result, LdmError):
            raise result
        return result


class StaleFile(BlockFile):
    """An open file of a device that has lost its consumers with the container's earlier instance."""

    __slots__ = ()

    async def read(self, offset: int, size: int) -> Data:
        """Refuse."""
        raise self._error()

    async def write(self, offset: int, data: bytes) -> int:
        """Refuse."""
        raise self._error()

    async def sync(self) -> None:
        """Refuse."""
        raise self._error()

    def _error(self) -> LdmError:
        name = self.consumer.device.name
        return StaleHandle(f"device {name!r} was opened under an instance of the container that is gone; open it anew")


def reader_pending(consumer: Consumer) -> signals.Pending:
    """Tell what is pending for the thread that waits in a read or write of `consumer`'s file."""
    device, opener = consumer.device, consumer.peer.pid
    openers = {other.peer.pid for other in tuple(device.consumers.values())}
    for tid in signals.waiting_on(device.id, opener, openers):
        found = signals.pending(tid)
        if found is not signals.Pending.NONE:
            return found
    return signals.Pending.NONE


def open_file(around: Surroundings, consumer: Consumer, flags: int) -> MessageFile | BlockFile:
    """Return the open file for a consumer that `open` has just made."""
    kind = MessageFile if consumer.device.kind == "message" else BlockFile
    return kind(around, consumer, flags)


def adopted_file(around: Surroundings, consumer: Consumer) -> MessageFile | BlockFile:
    """Return the open file of a consumer that was adopted from an earlier instance of the container."""
    if consumer.stale:
        return StaleFile(around, consumer, consumer.flags)
    file = open_file(around, consumer, consumer.flags)
    if isinstance(file, MessageFile):
        file.resume()
    return file


def peer_of(context: pyfuse3.RequestContext) -> Peer:
    """Return who sends a FUSE request."""
    tid = context.pid
    session = signals.session_of(tid)
    if not session and signals.is_kernel_thread(tid):
        return Peer(0, context.uid, context.gid, path="kernel", container="kernel", tid=tid)
    return Peer(signals.process_of(tid), context.uid, context.gid, session, tid=tid)
