"""Open files of message devices: what write, read, flush, poll and release mean for one."""

from __future__ import annotations

import functools
import logging
import os
import select
from collections.abc import Callable

import pyfuse3
import trio

from ..core.device import Consumer, Execution
from ..core.dispatch import cancelled_error
from ..core.errors import LdmError, MessageTooLong, ProviderDied, WouldBlock
from ..core.exchange import Exchange, State
from ..core.request import MAX_MESSAGE, Reply, Request, RequestType
from ..core.tables import Stage
from ..core.wire import Buffer
from . import signals
from .records import Asked, Given, Left, Record, Refused, outcome_of
from .running import Running
from .surroundings import Surroundings
from .waiting import KilledInWait

log = logging.getLogger("ldmfs.fuse")

_CALL = RequestType.CALL
_IDLE, _RUNNING, _READY = State  # globals of the fast path
_OPEN, _ASKED, _READING, _READ = map(int, (Stage.OPEN, Stage.ASKED, Stage.READING, Stage.READ))
_NOWHERE = memoryview(bytearray(1)), 0
"""Where stages go that no other instance will ask for."""


class MessageFile:
    """One open file of a message device: see `core.exchange` for what it answers when."""

    __slots__ = (
        "_around",
        "_begin_of_reply",
        "_dispatch",
        "_exchange",
        "_inline",
        "_interrupted",
        "_is_kept",
        "_left",
        "_poll",
        "_reissue",
        "_resumed",
        "_running",
        "_slot",
        "_stages",
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
        self._running: Running | None = None
        """The last request that was no inline one."""
        self._poll: pyfuse3.PollHandle | None = None
        self._interrupted = False
        self._is_kept = False
        area = around.dispatch.area
        self._stages, self._slot = _NOWHERE if area is None else area.consumers.stage_byte(consumer.id)
        store = around.files if around.reissue else None
        self._reissue = store is not None
        self._left = None if store is None else Left(store, consumer.id)
        """None where nothing is to be left for the next instance, and nothing of an earlier one is there any more."""
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
        record = self._find_record()
        if stage not in (_ASKED, _READING, _READ):
            return
        if record is not None:
            self._go_on(record, stage)
        elif stage == _READ:
            self._exchange.answer(Reply())
        else:
            lost = ProviderDied("the container's process ended before the reply was read")
            self._exchange.finish(self._exchange.start(), lost)

    def _find_record(self) -> Record | None:
        if self._around.files is None:
            return None
        left = Left(self._around.files, self.consumer.id)
        record = left.find()
        if record is not None:
            self._left = left
        return record

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
        running = self._running
        return running.done if running is not None and self._exchange.state is _RUNNING else None

    def give_up(self) -> None:
        """End the request that is running with the error of `Surroundings.ending`, whatever its handler does."""
        error, running = self._around.ending, self._running
        assert error is not None
        if self._exchange.finish(self._exchange.number, error):
            assert running is not None
            running.scope.cancel()
            running.done.set()

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
        if self._left is not None:
            self._remember(request, offset + len(data))
        else:
            self._begin_of_reply = offset + len(data)
        self._stages[self._slot] = _ASKED
        return len(data)

    def read_now(self, size: int, offset: int = 0) -> Buffer | None:
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

    async def read(self, offset: int, size: int) -> Buffer:
        """Wait for the reply, then return its next bytes.

        Raises `Interrupted` when the reader has a signal pending.  The handler is cancelled with it if the signal ends
        the reader; else it goes on for the reader to try again, and is cancelled when the file is closed.
        """
        if self.flags & os.O_NONBLOCK:
            raise WouldBlock("the reply is not there yet")
        while (data := self.read_now(size, offset)) is None:
            try:
                await self._wait(signals.reader_pending)
            except KilledInWait:
                assert self._running is not None
                self._running.scope.cancel()
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
                await self._wait(signals.closer_pending)
            except KilledInWait:
                return
        abandoned = self._running is not None and self._running.scope.cancel_called
        if self._exchange.unread and not self._is_kept and not abandoned:
            self._keep()
        if self._exchange.state is _READY and self._exchange.error is not None:
            raise self._exchange.error.with_traceback(None)

    async def release(self) -> None:
        """Close the device for this consumer: cancel what is running, run the close handler."""
        self._exchange.reset()
        if self._left is not None:
            self._left.forget()
        with trio.CancelScope(shield=True):
            await self._dispatch.close(self.consumer)

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
            if self._left is not None and (record := self.record()) is not None:  # a kill in between does not lose it
                self._left.put(record)
            self._around.kept.take(device.id, peer)

    def _start(self, request: Request) -> None:
        number = self._exchange.start()
        running = Running()
        try:
            ticket = self._dispatch.admit(self.consumer, running.scope.cancel)
        except LdmError:
            self._exchange.reset()
            raise
        self._running, self._interrupted = running, False
        ended = functools.partial(self._ended, number)
        self._around.nursery.start_soon(running.run, ended, self._dispatch.request, self.consumer, request, ticket)

    def _ended(self, number: int, outcome: Reply | LdmError | None) -> None:
        self._exchange.finish(number, cancelled_error(self.consumer) if outcome is None else outcome)
        self._notify()

    async def _wait(self, pending: Callable[[Consumer], signals.Pending]) -> None:
        assert self._running is not None
        await self._around.watch.wait(self._running.done, functools.partial(pending, self.consumer))

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
        left = self._left
        if left is None:
            return
        if not self._reissue:
            left.forget()
            self._left = None
        elif request is None:
            left.forget()
        else:
            left.put(Asked(begin_of_reply, request.type, request.length, request.data))  # type: ignore[arg-type]

    def _nothing_left(self) -> None:
        """Take note that no reply is to be read."""
        self._stages[self._slot], self._resumed = _OPEN, None
        if self._left is not None:
            self._left.forget()

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
        consumer, data, error = self.consumer, bytes(self._exchange.data), self._exchange.error
        self._around.kept.keep(consumer.device.id, consumer.peer, consumer.id, data, error)
        self._is_kept = True

    def _withdraw(self) -> None:
        self._around.kept.withdraw(self.consumer.device.id, self.consumer.peer, self.consumer.id)
        self._is_kept = False
