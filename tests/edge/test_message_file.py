"""Open files of message devices, without a mount: what write, read, flush, poll and release do, and when."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from support import PEER, Around, Gated, Plain, fail_with, on_virtual_clock, read, unmounted

from ldmfs.core import dispatch as dispatch_module
from ldmfs.core.device import Device
from ldmfs.core.errors import (
    DeviceBusy,
    HandleClosed,
    Interrupted,
    InvalidRequest,
    LdmError,
    MessageTooLong,
    NotSupported,
    ProviderFailed,
    QueueFull,
    RequestCancelled,
    WouldBlock,
)
from ldmfs.core.request import MAX_MESSAGE, Request, RequestType
from ldmfs.fuse import signals
from ldmfs.fuse.message_file import MessageFile
from ldmfs.fuse.signals import Pending

IN, OUT = select.POLLIN, select.POLLOUT
OTHER_PROCESS = msgspec.structs.replace(PEER, pid=PEER.pid + 1)
OTHER_SESSION = msgspec.structs.replace(PEER, session=PEER.session + 1)


class Signals:
    """What /proc would say of whoever waits."""

    def __init__(self) -> None:
        self.pending = Pending.NONE
        self.exiting = False
        self.looks = 0

    def look(self, _tid: int) -> Pending:
        self.looks += 1
        return self.pending


@pytest.fixture(autouse=True)
def proc(monkeypatch: pytest.MonkeyPatch) -> Signals:
    proc = Signals()
    monkeypatch.setattr(signals, "pending", proc.look)
    monkeypatch.setattr(signals, "waiting_on", lambda _inode, opener, _openers: iter([opener]))
    monkeypatch.setattr(signals, "exiting_with", lambda _opener: proc.exiting)
    return proc


class PollHandle:
    """What pyfuse3 hands over at a poll."""

    def __init__(self, error: OSError | None = None) -> None:
        self.notified = 0
        self.error = error

    def notify(self) -> None:
        self.notified += 1
        if self.error is not None:
            raise self.error


async def outcome_of(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return await function(*args)
    except LdmError as error:
        return error


async def start_reading(around: Around, file: MessageFile) -> list[Any]:
    """Start a read that has to wait; return the list that its outcome goes into."""
    outcomes: list[Any] = []

    async def run() -> None:
        outcomes.append(await outcome_of(read, file))

    around.nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    return outcomes


# -- a plain handler


async def test_a_reply_is_read_and_then_one_end_of_file() -> None:
    async with unmounted() as around:
        file = await around.message(Plain())
        file.write(b"hello")
        assert [await read(file), await read(file)] == [b"HELLO", b""]


async def test_a_write_returns_how_much_was_written() -> None:
    async with unmounted() as around:
        file = await around.message(Plain())
        assert file.write(b"hello") == 5


async def test_a_plain_handler_runs_in_the_write() -> None:
    async with unmounted() as around:
        device = Plain()
        file = await around.message(device)
        file.write(b"hello")
        assert device.calls[-1] == ("request", file.consumer.id)


async def test_the_error_of_a_plain_handler_is_that_of_the_write() -> None:
    async with unmounted() as around:
        file = await around.message(Plain(fail_with(InvalidRequest("no"))))
        with pytest.raises(InvalidRequest, match="no"):
            file.write(b"hello")


async def test_after_the_error_of_a_write_nothing_is_unread() -> None:
    async with unmounted() as around:
        device = Plain(fail_with(InvalidRequest()))
        file = await around.message(device)
        with pytest.raises(InvalidRequest):
            file.write(b"hello")
        await file.flush()
        device.answer = lambda request: request.type.name.encode()
        assert await read(file) == b"READ"


async def test_the_error_of_a_write_drops_the_reply_before() -> None:
    async with unmounted() as around:
        device = Plain()
        file = await around.message(device)
        file.write(b"first")
        device.answer = fail_with(InvalidRequest())
        with pytest.raises(InvalidRequest):
            file.write(b"second")
        with pytest.raises(InvalidRequest):
            await read(file)  # sends a READ, and the handler fails again


async def test_a_second_write_replaces_an_unread_reply() -> None:
    async with unmounted() as around:
        file = await around.message(Plain())
        file.write(b"first")
        file.write(b"second")
        assert [await read(file), await read(file)] == [b"SECOND", b""]


async def test_a_second_write_replaces_a_half_read_reply() -> None:
    async with unmounted() as around:
        file = await around.message(Plain())
        file.write(b"first")
        await read(file, 2)
        file.write(b"second")
        assert await read(file) == b"SECOND"


async def test_a_reply_is_read_in_pieces() -> None:
    async with unmounted() as around:
        file = await around.message(Plain())
        file.write(b"hello")
        assert [await read(file, 2) for _ in range(4)] == [b"HE", b"LL", b"O", b""]


async def test_an_empty_reply_is_an_end_of_file() -> None:
    async with unmounted() as around:
        file = await around.message(Plain(lambda _request: None))
        file.write(b"hello")
        assert await read(file) == b""


async def test_reading_with_nothing_written_sends_a_read() -> None:
    async with unmounted() as around:
        file = await around.message(Plain())
        assert [await read(file), await read(file)] == [b"READ", b""]


async def test_a_read_request_says_how_much_is_wanted() -> None:
    async with unmounted() as around:
        file = await around.message(Plain(lambda request: str(request.length).encode()))
        assert await read(file, 512) == b"512"


async def test_reading_on_after_the_end_sends_another_read() -> None:
    async with unmounted() as around:
        device = Plain()
        file = await around.message(device)
        for _ in range(4):
            await read(file)
        assert device.calls.count(("request", file.consumer.id)) == 2


async def test_reading_the_end_of_a_written_request_sends_no_read() -> None:
    async with unmounted() as around:
        device = Plain()
        file = await around.message(device)
        file.write(b"hello")
        await read(file)
        await read(file)
        assert device.calls.count(("request", file.consumer.id)) == 1


async def test_the_error_of_a_read_request_is_that_of_the_read() -> None:
    async with unmounted() as around:
        file = await around.message(Plain(accepts=frozenset({RequestType.CALL})))
        with pytest.raises(NotSupported):
            await read(file)


async def test_files_of_one_device_have_replies_of_their_own() -> None:
    async with unmounted() as around:
        device = Plain()
        first, second = await around.message(device), await around.message(device)
        first.write(b"first")
        second.write(b"second")
        assert [await read(first), await read(second)] == [b"FIRST", b"SECOND"]


async def test_the_longest_message_passes() -> None:
    async with unmounted() as around:
        file = await around.message(Plain(lambda request: str(len(request.data)).encode()))
        file.write(bytes(MAX_MESSAGE))
        assert await read(file) == str(MAX_MESSAGE).encode()


async def test_a_longer_message_is_refused() -> None:
    async with unmounted() as around:
        device = Plain()
        file = await around.message(device)
        with pytest.raises(MessageTooLong):
            file.write(bytes(MAX_MESSAGE + 1))
        assert ("request", file.consumer.id) not in device.calls


async def test_a_message_that_is_refused_leaves_the_reply_before() -> None:
    async with unmounted() as around:
        file = await around.message(Plain())
        file.write(b"hello")
        with pytest.raises(MessageTooLong):
            file.write(bytes(MAX_MESSAGE + 1))
        assert await read(file) == b"HELLO"


@pytest.mark.logs
async def test_a_bug_in_a_plain_handler_is_the_error_of_the_write(caplog: pytest.LogCaptureFixture) -> None:
    async with unmounted() as around:
        file = await around.message(Plain(fail_with(SystemExit(1))))
        with pytest.raises(ProviderFailed):
            file.write(b"hello")
    assert "SystemExit" in caplog.text


# -- an async handler, or one in a thread


async def test_a_write_does_not_wait_for_an_async_handler() -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        assert file.write(b"hello") == 5
        assert device.started == 0


async def test_a_read_waits_for_an_async_handler() -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        file.write(b"hello")
        outcomes = await start_reading(around, file)
        assert outcomes == []
        device.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == [b"HELLO"]


async def test_a_read_carries_the_error_of_an_async_handler_once() -> None:
    async with unmounted() as around:
        device = Gated(fail_with(InvalidRequest("no")))
        device.gate.set()
        file = await around.message(device)
        file.write(b"hello")
        with pytest.raises(InvalidRequest, match="no"):
            await read(file)
        await file.flush()


@pytest.mark.logs
async def test_a_read_carries_a_bug_of_an_async_handler(caplog: pytest.LogCaptureFixture) -> None:
    async with unmounted() as around:
        device = Gated(fail_with(KeyboardInterrupt()))
        device.gate.set()
        file = await around.message(device)
        file.write(b"hello")
        with pytest.raises(ProviderFailed):
            await read(file)
    assert "KeyboardInterrupt" in caplog.text


async def test_a_read_with_nothing_written_waits_for_the_answer_to_its_read_request() -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        outcomes = await start_reading(around, file)
        device.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (outcomes, device.started) == ([b"READ"], 1)


async def test_a_write_while_a_request_runs_is_busy() -> None:
    async with unmounted() as around:
        file = await around.message(Gated())
        file.write(b"first")
        with pytest.raises(DeviceBusy):
            file.write(b"second")


async def test_a_busy_write_leaves_what_runs_alone() -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        file.write(b"first")
        with pytest.raises(DeviceBusy):
            file.write(b"second")
        device.gate.set()
        assert await read(file) == b"FIRST"
        assert device.started == 1


async def test_a_write_after_the_reply_arrived_replaces_it() -> None:
    async with unmounted() as around:
        device = Gated()
        device.gate.set()
        file = await around.message(device)
        file.write(b"first")
        await trio.testing.wait_all_tasks_blocked()
        file.write(b"second")
        assert await read(file) == b"SECOND"


async def test_a_slow_handler_holds_up_no_other_file() -> None:
    async with unmounted() as around:
        device = Gated(lambda request: bytes(request.data))
        slow = await around.message(device)
        slow.write(b"slow")
        await trio.testing.wait_all_tasks_blocked()
        device.gate = trio.Event()
        device.gate.set()
        quick = await around.message(device)
        quick.write(b"quick")
        assert await read(quick) == b"quick"


async def test_a_handler_in_a_thread_is_read_like_an_async_one() -> None:
    async with unmounted() as around:
        file = await around.message(Plain(thread=True))
        file.write(b"hello")
        assert await read(file) == b"HELLO"


async def test_two_readers_of_one_file_get_the_reply_and_its_end() -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        file.write(b"hello")
        first, second = await start_reading(around, file), await start_reading(around, file)
        device.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(first + second) == [b"", b"HELLO"]


async def test_one_request_too_many_is_refused_at_the_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch_module, "MAX_OUTSTANDING", 1)
    async with unmounted() as around:
        device = Gated()
        first, second = await around.message(device), await around.message(device)
        first.write(b"first")
        with pytest.raises(QueueFull):
            second.write(b"second")


async def test_a_file_that_was_refused_can_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch_module, "MAX_OUTSTANDING", 1)
    async with unmounted() as around:
        device = Gated()
        first, second = await around.message(device), await around.message(device)
        first.write(b"first")
        with pytest.raises(QueueFull):
            second.write(b"second")
        device.gate.set()
        await read(first)
        second.write(b"second")
        assert await read(second) == b"SECOND"


async def test_data_is_valid_until_the_handler_ends() -> None:
    async with unmounted() as around:
        device = Gated(lambda request: bytes(request.data))
        file = await around.message(device)
        file.write(b"hello")
        await trio.testing.wait_all_tasks_blocked()
        device.gate.set()
        assert await read(file) == b"hello"


# -- O_NONBLOCK and poll


async def test_a_read_that_would_wait_is_refused_in_non_blocking_mode() -> None:
    async with unmounted() as around:
        file = await around.message(Gated(), os.O_RDWR | os.O_NONBLOCK)
        file.write(b"hello")
        with pytest.raises(WouldBlock):
            await read(file)


async def test_a_read_with_nothing_written_sends_a_read_in_non_blocking_mode() -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device, os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(WouldBlock):
            await read(file)
        device.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await read(file) == b"READ"


async def test_reading_again_and_again_sends_one_read() -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device, os.O_RDONLY | os.O_NONBLOCK)
        for _ in range(3):
            assert isinstance(await outcome_of(read, file), WouldBlock)
        await trio.testing.wait_all_tasks_blocked()
        assert device.started == 1


async def test_a_reply_that_is_there_is_read_in_non_blocking_mode() -> None:
    async with unmounted() as around:
        file = await around.message(Plain(), os.O_RDWR | os.O_NONBLOCK)
        file.write(b"hello")
        assert await read(file) == b"HELLO"


async def test_close_does_not_wait_in_non_blocking_mode() -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device, os.O_RDWR | os.O_NONBLOCK)
        file.write(b"hello")
        await trio.testing.wait_all_tasks_blocked()
        await around.close(file)
        assert (device.cancelled, device.closed) == (1, [file.consumer.id])


@pytest.mark.parametrize(
    ("flags", "mask"), [(os.O_RDWR, OUT), (os.O_WRONLY, OUT), (os.O_RDONLY, IN | OUT)], ids=["rw", "w", "r"]
)
async def test_poll_of_an_idle_file(flags: int, mask: int) -> None:
    async with unmounted() as around:
        file = await around.message(Gated(), flags)
        assert file.poll(None) == mask


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY, os.O_RDONLY], ids=["rw", "w", "r"])
async def test_poll_of_a_running_file_tells_nothing(flags: int) -> None:
    async with unmounted() as around:
        file = await around.message(Gated(), flags)
        file.write(b"hello")
        assert file.poll(None) == 0


async def test_poll_of_a_file_with_a_reply_tells_both() -> None:
    async with unmounted() as around:
        file = await around.message(Plain())
        file.write(b"hello")
        assert file.poll(None) == IN | OUT


async def test_poll_of_a_file_with_an_error_tells_both() -> None:
    async with unmounted() as around:
        device = Gated(fail_with(InvalidRequest()))
        device.gate.set()
        file = await around.message(device)
        file.write(b"hello")
        await trio.testing.wait_all_tasks_blocked()
        assert file.poll(None) == IN | OUT


async def test_a_poll_is_told_once_when_the_reply_arrives() -> None:
    async with unmounted() as around:
        device, handle = Gated(), PollHandle()
        file = await around.message(device)
        file.write(b"hello")
        file.poll(handle)  # type: ignore[arg-type]
        await trio.testing.wait_all_tasks_blocked()
        assert handle.notified == 0
        device.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        await read(file)
        file.write(b"again")
        await read(file)
        assert handle.notified == 1


async def test_what_a_poll_is_told_is_there_when_it_is_told() -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        masks = []

        class Looking(PollHandle):
            def notify(self) -> None:
                masks.append(file.poll(None))

        file.write(b"hello")
        file.poll(Looking())  # type: ignore[arg-type]
        device.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert masks == [IN | OUT]


async def test_a_poll_is_told_when_a_plain_handler_answers_another_thread() -> None:
    async with unmounted() as around:
        handle = PollHandle()
        file = await around.message(Plain())
        assert file.poll(handle) == OUT  # type: ignore[arg-type]
        file.write(b"hello")
        assert handle.notified == 1


async def test_a_poll_is_told_when_the_request_fails() -> None:
    async with unmounted() as around:
        device, handle = Gated(fail_with(InvalidRequest())), PollHandle()
        file = await around.message(device)
        file.write(b"hello")
        file.poll(handle)  # type: ignore[arg-type]
        device.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert handle.notified == 1


async def test_a_poll_that_is_gone_is_no_error() -> None:
    async with unmounted() as around:
        device, handle = Gated(), PollHandle(OSError(2, "gone"))
        file = await around.message(device)
        file.write(b"hello")
        file.poll(handle)  # type: ignore[arg-type]
        device.gate.set()
        assert await read(file) == b"HELLO"
        assert handle.notified == 1


# -- flush: what is visible when `close` returns


async def test_close_waits_for_the_handler() -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        file.write(b"hello")
        closed = trio.Event()

        async def close() -> None:
            await file.flush()
            closed.set()

        around.nursery.start_soon(close)
        await trio.testing.wait_all_tasks_blocked()
        assert not closed.is_set()
        device.gate.set()
        await closed.wait()


async def test_close_carries_the_error_that_nobody_read() -> None:
    async with unmounted() as around:
        device = Gated(fail_with(InvalidRequest("no")))
        device.gate.set()
        file = await around.message(device)
        file.write(b"hello")
        with pytest.raises(InvalidRequest, match="no"):
            await file.flush()


async def test_close_of_an_idle_file_does_nothing() -> None:
    async with unmounted() as around:
        device = Plain()
        file = await around.message(device)
        await file.flush()
        assert device.calls == [("open", file.consumer.id)]


@on_virtual_clock
async def test_close_does_not_wait_for_a_process_that_is_exiting(proc: Signals) -> None:
    proc.exiting = True
    async with unmounted() as around:
        file = await around.message(Gated())
        file.write(b"hello")
        with trio.fail_after(1):
            await file.flush()


@on_virtual_clock
async def test_close_by_an_exiting_process_leaves_the_handler_to_release(proc: Signals) -> None:
    proc.exiting = True
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        file.write(b"hello")
        await file.flush()
        assert device.running == 1
        await file.release()
        assert (device.cancelled, device.closed) == (1, [file.consumer.id])


@on_virtual_clock
async def test_close_can_be_interrupted(proc: Signals) -> None:
    proc.pending = Pending.SIGNAL
    async with unmounted() as around:
        file = await around.message(Gated())
        file.write(b"hello")
        with pytest.raises(Interrupted):
            await file.flush()


@on_virtual_clock
async def test_close_does_not_wait_after_an_interrupted_read(proc: Signals) -> None:
    proc.pending = Pending.SIGNAL
    async with unmounted() as around:
        file = await around.message(Gated())
        file.write(b"hello")
        with pytest.raises(Interrupted):
            await read(file)
        proc.pending = Pending.NONE
        with trio.fail_after(1):
            await file.flush()


# -- interrupted reads


@on_virtual_clock
async def test_a_read_is_interrupted_by_a_signal(proc: Signals) -> None:
    proc.pending = Pending.SIGNAL
    async with unmounted() as around:
        file = await around.message(Gated())
        file.write(b"hello")
        with pytest.raises(Interrupted):
            await read(file)


@on_virtual_clock
async def test_an_interrupted_read_leaves_the_handler_running(proc: Signals) -> None:
    proc.pending = Pending.SIGNAL
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        file.write(b"hello")
        with pytest.raises(Interrupted):
            await read(file)
        await trio.testing.wait_all_tasks_blocked()
        assert (device.running, device.cancelled) == (1, 0)


@on_virtual_clock
async def test_a_read_after_an_interrupted_one_gets_the_reply(proc: Signals) -> None:
    proc.pending = Pending.SIGNAL
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        file.write(b"hello")
        with pytest.raises(Interrupted):
            await read(file)
        proc.pending = Pending.NONE
        device.gate.set()
        assert await read(file) == b"HELLO"


@on_virtual_clock
async def test_a_killed_reader_cancels_the_handler(proc: Signals) -> None:
    proc.pending = Pending.FATAL
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        file.write(b"hello")
        with pytest.raises(Interrupted):
            await read(file)
        await trio.testing.wait_all_tasks_blocked()
        assert (device.running, device.cancelled) == (0, 1)


@on_virtual_clock
async def test_what_a_killed_reader_waited_for_is_not_kept(proc: Signals) -> None:
    proc.pending = Pending.FATAL
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        file.write(b"hello")
        with pytest.raises(Interrupted):
            await read(file)
        await trio.testing.wait_all_tasks_blocked()
        await outcome_of(file.flush)
        assert len(around.kept) == 0


@on_virtual_clock
async def test_nobody_is_looked_at_before_a_request_is_old(proc: Signals) -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        file.write(b"hello")
        await start_reading(around, file)
        await trio.sleep(0.04)
        assert proc.looks == 0
        await trio.sleep(0.04)
        assert proc.looks == 1


# -- the reply that is kept for the next reader of the session


async def test_echo_and_cat() -> None:
    async with unmounted() as around:
        device = Plain()
        echo = await around.message(device, os.O_WRONLY)
        echo.write(b"hello")
        await around.close(echo)
        cat = await around.message(device, os.O_RDONLY, OTHER_PROCESS)
        assert [await read(cat), await read(cat)] == [b"HELLO", b""]


async def test_echo_and_cat_with_an_async_handler() -> None:
    async with unmounted() as around:
        device = Gated()
        device.gate.set()
        echo = await around.message(device, os.O_WRONLY)
        echo.write(b"hello")
        await around.close(echo)
        cat = await around.message(device, os.O_RDONLY, OTHER_PROCESS)
        assert await read(cat) == b"HELLO"


async def test_an_error_is_kept_as_well_as_told_at_the_close() -> None:
    async with unmounted() as around:
        device = Gated(fail_with(InvalidRequest("no")))
        device.gate.set()
        echo = await around.message(device, os.O_WRONLY)
        echo.write(b"hello")
        with pytest.raises(InvalidRequest):
            await around.close(echo)
        cat = await around.message(device, os.O_RDONLY, OTHER_PROCESS)
        with pytest.raises(InvalidRequest, match="no"):
            await read(cat)


async def test_a_kept_reply_is_read_in_pieces() -> None:
    async with unmounted() as around:
        device = Plain()
        echo = await around.message(device)
        echo.write(b"hello")
        await around.close(echo)
        cat = await around.message(device, os.O_RDONLY, OTHER_PROCESS)
        assert [await read(cat, 3) for _ in range(3)] == [b"HEL", b"LO", b""]


async def test_after_a_kept_reply_a_read_is_sent() -> None:
    async with unmounted() as around:
        device = Plain()
        echo = await around.message(device)
        echo.write(b"hello")
        await around.close(echo)
        cat = await around.message(device, os.O_RDONLY, OTHER_PROCESS)
        assert [await read(cat) for _ in range(3)] == [b"HELLO", b"", b"READ"]


async def test_a_kept_reply_is_not_for_another_session() -> None:
    async with unmounted() as around:
        device = Plain()
        echo = await around.message(device)
        echo.write(b"hello")
        await around.close(echo)
        cat = await around.message(device, os.O_RDONLY, OTHER_SESSION)
        assert await read(cat) == b"READ"


async def test_a_reader_that_writes_first_leaves_the_kept_reply() -> None:
    async with unmounted() as around:
        device = Plain()
        echo = await around.message(device)
        echo.write(b"hello")
        await around.close(echo)
        other = await around.message(device, peer=OTHER_PROCESS)
        other.write(b"mine")
        assert await read(other) == b"MINE"
        assert len(around.kept) == 1


@pytest.mark.parametrize("size", [2, 4096])
async def test_a_reply_that_was_read_is_not_kept(size: int) -> None:
    async with unmounted() as around:
        file = await around.message(Plain())
        file.write(b"hello")
        await read(file, size)
        await around.close(file)
        assert len(around.kept) == 0


async def test_an_empty_reply_is_not_kept() -> None:
    async with unmounted() as around:
        file = await around.message(Plain(lambda _request: b""))
        file.write(b"hello")
        await around.close(file)
        assert len(around.kept) == 0


async def test_a_kept_reply_does_not_change_with_the_buffer_of_the_handler() -> None:
    buffer = bytearray(b"HELLO")
    async with unmounted() as around:
        device = Plain(lambda _request: buffer)
        echo = await around.message(device)
        echo.write(b"hello")
        await around.close(echo)
        buffer[:] = b"xxxxx"
        cat = await around.message(device, os.O_RDONLY, OTHER_PROCESS)
        assert await read(cat) == b"HELLO"


async def test_a_handle_that_goes_on_reads_its_own_reply() -> None:
    async with unmounted() as around:
        file = await around.message(Plain())
        file.write(b"hello")
        await file.flush()  # a duplicate was closed, as a shell does after `echo >&3`
        assert await read(file) == b"HELLO"


@pytest.mark.parametrize(
    "go_on", [lambda file: file.read_now(10), lambda file: file.write(b"x")], ids=["read", "write"]
)
async def test_a_handle_that_goes_on_withdraws_its_kept_reply(go_on: Callable[[MessageFile], Any]) -> None:
    async with unmounted() as around:
        file = await around.message(Plain())
        file.write(b"hello")
        await file.flush()
        assert len(around.kept) == 1
        go_on(file)
        assert len(around.kept) == 0


async def test_a_handle_that_goes_on_does_not_withdraw_the_reply_of_another() -> None:
    async with unmounted() as around:
        device = Plain()
        first, second = await around.message(device), await around.message(device)
        first.write(b"first")
        await first.flush()
        second.write(b"second")
        await second.flush()
        first.write(b"again")
        cat = await around.message(device, os.O_RDONLY, OTHER_PROCESS)
        assert await read(cat) == b"SECOND"


async def test_a_reply_is_kept_at_the_first_close_of_a_duplicate_only() -> None:
    async with unmounted() as around:
        device = Plain()
        file = await around.message(device)
        file.write(b"hello")
        await file.flush()
        cat = await around.message(device, os.O_RDONLY, OTHER_PROCESS)
        assert await read(cat) == b"HELLO"
        await file.flush()
        assert len(around.kept) == 0


async def test_closing_a_duplicate_does_not_replace_a_later_reply() -> None:
    async with unmounted() as around:
        device = Plain()
        inherited, echo = await around.message(device), await around.message(device)
        inherited.write(b"first")
        await inherited.flush()
        echo.write(b"second")
        await around.close(echo)
        await inherited.flush()  # any process that inherited the descriptor ends
        cat = await around.message(device, os.O_RDONLY, OTHER_PROCESS)
        assert await read(cat) == b"SECOND"


# -- release


async def test_release_runs_the_close_handler_once() -> None:
    async with unmounted() as around:
        device = Plain()
        file = await around.message(device)
        await file.release()
        await file.release()
        assert device.calls.count(("close", file.consumer.id)) == 1


async def test_release_cancels_what_runs() -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        file.write(b"hello")
        await trio.testing.wait_all_tasks_blocked()
        await file.release()
        assert (device.cancelled, device.closed) == (1, [file.consumer.id])


async def test_release_cancels_a_request_whose_task_has_not_begun() -> None:
    async with unmounted() as around:
        device = Gated()
        file = await around.message(device)
        file.write(b"hello")
        await file.release()
        assert (device.running, device.closed, around.dispatch.outstanding) == (0, [file.consumer.id], 0)


async def test_release_runs_the_close_handler_though_it_is_cancelled() -> None:
    class SlowToClose(Gated):
        async def close(self, consumer_id: int) -> None:  # type: ignore[override]
            await trio.lowlevel.checkpoint()
            self.closed.append(consumer_id)

    async with unmounted() as around:
        device = SlowToClose()
        file = await around.message(device)
        with trio.CancelScope() as scope:
            scope.cancel()
            await file.release()
        assert device.closed == [file.consumer.id]


async def test_a_write_to_a_released_file_is_refused() -> None:
    async with unmounted() as around:
        file = await around.message(Plain())
        await file.release()
        with pytest.raises(HandleClosed):
            file.write(b"hello")


@pytest.mark.logs
async def test_a_handler_that_fails_while_it_is_cancelled_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Clumsy(Device):
        async def child(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("while cleaning up")

        async def request(self, consumer_id: int, request: Request) -> bytes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.child)
                await trio.sleep_forever()
            return b""

    async with unmounted() as around:
        clumsy = await around.message(Clumsy(), name="clumsy")
        clumsy.write(b"hello")
        await trio.testing.wait_all_tasks_blocked()
        await clumsy.release()
        other = await around.message(Plain())
        other.write(b"hello")
        assert await read(other) == b"HELLO"
    assert "while cleaning up" in caplog.text


async def test_a_handler_that_says_cancelled_is_an_error_like_another() -> None:
    async with unmounted() as around:
        device = Gated(fail_with(RequestCancelled("of my own")))
        device.gate.set()
        file = await around.message(device)
        file.write(b"hello")
        with pytest.raises(RequestCancelled, match="of my own"):
            await read(file)


# -- many


async def test_thousands_of_files_have_replies_of_their_own() -> None:
    async with unmounted() as around:
        device = Gated()
        files = [await around.message(device) for _ in range(4000)]
        for number, file in enumerate(files):
            file.write(str(number).encode())
        device.gate.set()
        assert [await read(file) for file in files] == [str(number).encode() for number in range(4000)]
        for file in files:
            await around.close(file)
        assert around.registry.consumers == {}
        assert len(device.closed) == 4000
