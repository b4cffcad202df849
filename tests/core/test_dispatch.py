"""From an open, a close or a request to the call of a handler."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from support import PEER, Gated, Plain, call, dispatch_for, fail_with, send

from ldmfs.core import dispatch as dispatch_module
from ldmfs.core.device import Consumer, Device, Kind
from ldmfs.core.dispatch import Dispatch
from ldmfs.core.errors import (
    AccessDenied,
    DeviceBusy,
    HandleClosed,
    InvalidRequest,
    LdmError,
    NoSuchDevice,
    NotSupported,
    ProviderFailed,
    QueueFull,
    RequestCancelled,
)
from ldmfs.core.request import Reply, Request, RequestType

BUGS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("a bug"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "MemoryError": MemoryError,
    "OSError": lambda: OSError(28, "disk full"),
    "group": lambda: ExceptionGroup("several", [ValueError("a bug")]),
    "group of the model's": lambda: ExceptionGroup("several", [InvalidRequest("no")]),
    "group of KeyboardInterrupt": lambda: BaseExceptionGroup("several", [KeyboardInterrupt()]),
}


@pytest.fixture(params=BUGS)
def bug(request: pytest.FixtureRequest) -> BaseException:
    """Something that a handler raises and should not."""
    return BUGS[request.param]()


class AsyncPlain(Plain):
    """The same as `Plain`, `async`."""

    async def open(self, consumer_id: int) -> None:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        super().open(consumer_id)

    async def close(self, consumer_id: int) -> None:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        super().close(consumer_id)

    async def request(self, consumer_id: int, request: Request) -> Any:
        await trio.lowlevel.checkpoint()
        return super().request(consumer_id, request)


def threaded(*args: Any, **attributes: Any) -> Plain:
    return Plain(*args, thread=True, **attributes)


styles = pytest.mark.parametrize("make", [Plain, AsyncPlain, threaded], ids=["plain", "async", "thread"])
Make = Callable[..., Plain]


async def opened(device: Device) -> tuple[Dispatch, Consumer]:
    dispatch = dispatch_for(device)
    return dispatch, await dispatch.open(dispatch.registry.find("d"), PEER)


# -- the three handlers, in every style


@styles
async def test_the_open_handler_runs_once(make: Make) -> None:
    device = make()
    _, consumer = await opened(device)
    assert device.calls == [("open", consumer.id)]


@styles
async def test_a_request_is_answered(make: Make) -> None:
    dispatch, consumer = await opened(make())
    assert (await send(dispatch, consumer, call(b"hello"))).data == b"HELLO"


@styles
async def test_the_handlers_run_in_the_order_of_their_life(make: Make) -> None:
    device = make()
    dispatch, consumer = await opened(device)
    await send(dispatch, consumer, call())
    await dispatch.close(consumer)
    assert [what for what, _ in device.calls] == ["open", "request", "close"]


@styles
async def test_the_close_handler_runs_once(make: Make) -> None:
    device = make()
    dispatch, consumer = await opened(device)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(dispatch.close, consumer)
    await dispatch.close(consumer)
    assert [what for what, _ in device.calls].count("close") == 1


@styles
async def test_a_closed_consumer_is_forgotten(make: Make) -> None:
    dispatch, consumer = await opened(make())
    await dispatch.close(consumer)
    assert dispatch.registry.consumers == {}
    dispatch.registry.destroy_device("d")


@styles
async def test_an_open_handler_refuses_a_consumer(make: Make) -> None:
    class Closed(make if isinstance(make, type) else Plain):  # type: ignore[misc]
        thread = make is threaded

        def open(self, consumer_id: int) -> None:
            raise AccessDenied("members only")

    dispatch = dispatch_for(Closed())
    with pytest.raises(AccessDenied, match="members only"):
        await dispatch.open(dispatch.registry.find("d"), PEER)
    assert dispatch.registry.consumers == {}


async def test_the_close_handler_does_not_run_for_who_was_refused() -> None:
    class Closed(Plain):
        def open(self, consumer_id: int) -> None:
            raise AccessDenied

    device = Closed()
    dispatch = dispatch_for(device)
    with pytest.raises(AccessDenied):
        await dispatch.open(dispatch.registry.find("d"), PEER)
    dispatch.registry.destroy_device("d")
    assert device.calls == []


async def test_a_cancelled_open_leaves_no_consumer() -> None:
    class Slow(Plain):
        async def open(self, consumer_id: int) -> None:  # type: ignore[override]
            await trio.sleep_forever()

    dispatch = dispatch_for(Slow())
    with trio.CancelScope() as scope:
        scope.cancel()
        await dispatch.open(dispatch.registry.find("d"), PEER)
    assert scope.cancelled_caught
    assert dispatch.registry.consumers == {}


async def test_a_device_is_busy_while_its_open_handler_runs() -> None:
    class Slow(Plain):
        async def open(self, consumer_id: int) -> None:  # type: ignore[override]
            await trio.sleep_forever()

    dispatch = dispatch_for(Slow())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dispatch.open, dispatch.registry.find("d"), PEER)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(DeviceBusy):
            dispatch.registry.destroy_device("d")
        nursery.cancel_scope.cancel()


async def test_a_destroyed_device_cannot_be_opened() -> None:
    dispatch = dispatch_for(Plain())
    device = dispatch.registry.find("d")
    dispatch.registry.destroy_device("d")
    with pytest.raises(NoSuchDevice):
        await dispatch.open(device, PEER)


async def test_a_handler_that_asked_for_a_thread_gets_one() -> None:
    threads = []

    def answer(_request: Request) -> bytes:
        threads.append(threading.get_ident())
        return b""

    dispatch, consumer = await opened(threaded(answer))
    await send(dispatch, consumer, call())
    assert threads != [threading.get_ident()]


async def test_a_thread_handler_does_not_hold_up_the_loop() -> None:
    let_go = threading.Event()

    def answer(_request: Request) -> bytes:
        let_go.wait()
        return b"done"

    dispatch, consumer = await opened(threaded(answer))
    replies = []
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            replies.append((await send(dispatch, consumer, call())).data)

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        let_go.set()
    assert replies == [b"done"]


# -- inline requests


async def test_an_inline_request_is_answered_without_waiting() -> None:
    dispatch, consumer = await opened(Plain())
    assert dispatch.request_inline(consumer, call(b"hello")).data == b"HELLO"


async def test_an_inline_request_after_close_is_refused() -> None:
    dispatch, consumer = await opened(Plain())
    await dispatch.close(consumer)
    with pytest.raises(HandleClosed):
        dispatch.request_inline(consumer, call())


async def test_a_request_after_close_is_refused() -> None:
    dispatch, consumer = await opened(AsyncPlain())
    await dispatch.close(consumer)
    with pytest.raises(HandleClosed):
        await send(dispatch, consumer, call())


async def test_a_refused_request_does_not_reach_the_handler() -> None:
    device = Plain(accepts=frozenset({RequestType.READ}))
    dispatch, consumer = await opened(device)
    with pytest.raises(NotSupported, match="takes no CALL requests"):
        dispatch.request_inline(consumer, call())
    assert device.calls == [("open", consumer.id)]


@styles
async def test_a_type_that_the_device_does_not_accept_is_refused(make: Make) -> None:
    dispatch, consumer = await opened(make(accepts=frozenset({RequestType.READ})))
    with pytest.raises(NotSupported):
        await send(dispatch, consumer, call())


@styles
async def test_a_type_that_the_device_accepts_is_answered(make: Make) -> None:
    dispatch, consumer = await opened(make(accepts=frozenset({RequestType.READ})))
    assert (await send(dispatch, consumer, Request(RequestType.READ))).data == b"READ"


@pytest.mark.parametrize("type_", [RequestType.WRITE, RequestType.TRIM])
async def test_a_message_device_takes_no_requests_of_a_block_device(type_: RequestType) -> None:
    dispatch, consumer = await opened(Plain())
    with pytest.raises(NotSupported):
        dispatch.request_inline(consumer, Request(type_))


async def test_a_block_device_takes_no_messages() -> None:
    dispatch, consumer = await opened(Plain(kind=Kind.BLOCK))
    with pytest.raises(NotSupported):
        dispatch.request_inline(consumer, call())


async def test_requests_and_errors_are_counted() -> None:
    device = Plain()
    dispatch, consumer = await opened(device)
    dispatch.request_inline(consumer, call())
    device.answer = fail_with(InvalidRequest())
    with pytest.raises(InvalidRequest):
        await send(dispatch, consumer, call())
    assert (consumer.requests, consumer.errors) == (2, 1)


# -- what handlers raise


@styles
async def test_an_error_of_the_model_passes(make: Make) -> None:
    error = LdmError("quota", errno=122)
    dispatch, consumer = await opened(make(fail_with(error)))
    with pytest.raises(LdmError) as caught:
        await send(dispatch, consumer, call())
    assert caught.value is error


@styles
@pytest.mark.logs
async def test_a_bug_in_a_request_handler_is_a_failed_provider(
    make: Make, bug: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    dispatch, consumer = await opened(make(fail_with(bug)))
    with pytest.raises(ProviderFailed, match=f"request handler of device 'd' raised {type(bug).__name__}"):
        await send(dispatch, consumer, call())
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is bug


@pytest.mark.logs
async def test_a_bug_in_an_inline_handler_is_a_failed_provider(
    bug: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    dispatch, consumer = await opened(Plain(fail_with(bug)))
    with pytest.raises(ProviderFailed):
        dispatch.request_inline(consumer, call())
    assert "Traceback" in caplog.text


@styles
@pytest.mark.logs
async def test_stop_iteration_is_a_failed_provider(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    dispatch, consumer = await opened(make(fail_with(StopIteration("value"))))
    with pytest.raises(ProviderFailed):
        await send(dispatch, consumer, call())
    assert "StopIteration" in caplog.text


@styles
@pytest.mark.parametrize("value", ["text", 3, [b"x"], Reply("text")], ids=repr)  # type: ignore[arg-type]
@pytest.mark.logs
async def test_a_reply_of_the_wrong_type_is_a_failed_provider(
    make: Make, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    dispatch, consumer = await opened(make(lambda _request: value))
    with pytest.raises(ProviderFailed):
        await send(dispatch, consumer, call())
    assert "TypeError" in caplog.text


@pytest.mark.logs
async def test_a_bug_in_an_open_handler_is_a_failed_provider(
    bug: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Plain):
        def open(self, consumer_id: int) -> None:
            raise bug

    dispatch = dispatch_for(Broken())
    with pytest.raises(ProviderFailed):
        await dispatch.open(dispatch.registry.find("d"), PEER)
    assert "its open handler raised" in caplog.text
    assert dispatch.registry.consumers == {}


@pytest.mark.logs
async def test_a_bug_in_a_close_handler_is_logged_and_the_consumer_gone(
    bug: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Plain):
        def close(self, consumer_id: int) -> None:
            raise bug

    dispatch, consumer = await opened(Broken())
    await dispatch.close(consumer)
    assert "its close handler raised" in caplog.text
    assert dispatch.registry.consumers == {}


@pytest.mark.logs
async def test_an_error_of_a_close_handler_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Plain):
        def close(self, consumer_id: int) -> None:
            raise InvalidRequest("too early")

    dispatch, consumer = await opened(Broken())
    await dispatch.close(consumer)
    assert [(record.levelname, "too early" in record.getMessage()) for record in caplog.records] == [("WARNING", True)]


async def test_a_cancellation_passes() -> None:
    device = Gated()
    dispatch, consumer = await opened(device)
    with trio.CancelScope() as scope:
        scope.cancel()
        number = dispatch.admit(consumer, scope.cancel)
        await dispatch.request(consumer, call(), number)
    assert scope.cancelled_caught
    assert device.cancelled == 1


@pytest.mark.logs
async def test_a_bug_during_a_cancellation_does_not_pass_with_it(caplog: pytest.LogCaptureFixture) -> None:
    class Clumsy(Device):
        """Its handler has a child that raises while it is cancelled, so that both come out in a group."""

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

    dispatch, consumer = await opened(Clumsy())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_expect_cancelled, dispatch, consumer)
        await trio.testing.wait_all_tasks_blocked()
        await dispatch.close(consumer)
    assert "while cleaning up" in caplog.text
    assert "Cancelled" not in str(caplog.records[0].exc_info)


async def _expect_cancelled(dispatch: Dispatch, consumer: Consumer) -> None:
    with pytest.raises(RequestCancelled):
        await send(dispatch, consumer, call())


# -- close, with requests outstanding


async def test_close_cancels_what_is_outstanding() -> None:
    device = Gated()
    dispatch, consumer = await opened(device)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(_expect_cancelled, dispatch, consumer)
        await trio.testing.wait_all_tasks_blocked()
        await dispatch.close(consumer)
    assert (device.cancelled, device.closed) == (3, [consumer.id])


async def test_the_close_handler_waits_for_the_last_request_handler() -> None:
    ended = trio.Event()

    class Stubborn(Gated):
        async def request(self, consumer_id: int, request: Request) -> bytes:
            self.busy.append(consumer_id)
            with trio.CancelScope(shield=True):
                await ended.wait()
            self.busy.remove(consumer_id)
            return b""

    device = Stubborn()
    dispatch, consumer = await opened(device)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, dispatch, consumer, call())
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(dispatch.close, consumer)
        await trio.testing.wait_all_tasks_blocked()
        assert device.closed == []
        ended.set()
    assert device.closed == [consumer.id]


async def test_the_close_handler_waits_for_a_thread() -> None:
    let_go, running = threading.Event(), threading.Event()
    order = []

    class Blocking(Plain):
        def request(self, consumer_id: int, request: Request) -> bytes:
            running.set()
            let_go.wait()
            order.append("request")
            return b""

        def close(self, consumer_id: int) -> None:
            order.append("close")

    dispatch, consumer = await opened(Blocking(thread=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, dispatch, consumer, call())
        await trio.to_thread.run_sync(running.wait)
        nursery.start_soon(dispatch.close, consumer)
        await trio.testing.wait_all_tasks_blocked()
        let_go.set()
    assert order == ["request", "close"]


async def test_requests_are_refused_while_closing() -> None:
    ended = trio.Event()

    class SlowToClose(Gated):
        async def close(self, consumer_id: int) -> None:  # type: ignore[override]
            await ended.wait()

    dispatch, consumer = await opened(SlowToClose())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dispatch.close, consumer)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(HandleClosed):
            dispatch.admit(consumer, lambda: None)
        ended.set()


async def test_a_device_is_busy_until_its_close_handler_has_ended() -> None:
    ended = trio.Event()

    class SlowToClose(Gated):
        async def close(self, consumer_id: int) -> None:  # type: ignore[override]
            await ended.wait()

    dispatch, consumer = await opened(SlowToClose())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dispatch.close, consumer)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(DeviceBusy):
            dispatch.registry.destroy_device("d")
        ended.set()
    dispatch.registry.destroy_device("d")


async def test_close_leaves_the_requests_of_others_alone() -> None:
    device = Gated()
    dispatch, consumer = await opened(device)
    other = await dispatch.open(dispatch.registry.find("d"), PEER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, dispatch, other, call())
        await trio.testing.wait_all_tasks_blocked()
        await dispatch.close(consumer)
        assert device.running == 1
        device.gate.set()
    assert device.cancelled == 0


# -- bounds


async def test_one_request_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch_module, "MAX_OUTSTANDING", 3)
    device = Gated()
    dispatch, consumer = await opened(device)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(send, dispatch, consumer, call())
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(QueueFull):
            dispatch.admit(consumer, lambda: None)
        device.gate.set()


async def test_a_refused_request_is_not_outstanding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch_module, "MAX_OUTSTANDING", 0)
    dispatch, consumer = await opened(Gated())
    with pytest.raises(QueueFull):
        dispatch.admit(consumer, lambda: None)
    assert (dispatch.outstanding, consumer.cancels) == (0, {})


@pytest.mark.parametrize("answer", [lambda _request: b"x", fail_with(InvalidRequest())], ids=["reply", "error"])
async def test_a_request_that_ended_makes_room(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    monkeypatch.setattr(dispatch_module, "MAX_OUTSTANDING", 1)
    dispatch, consumer = await opened(AsyncPlain(answer))
    for _ in range(3):
        try:
            await send(dispatch, consumer, call())
        except InvalidRequest:
            continue
    assert (dispatch.outstanding, consumer.cancels) == (0, {})


async def test_a_cancelled_request_makes_room() -> None:
    dispatch, consumer = await opened(Gated())
    with trio.CancelScope() as scope:
        scope.cancel()
        await send(dispatch, consumer, call())
    assert (dispatch.outstanding, consumer.cancels) == (0, {})


async def test_the_graph_tells_of_outstanding_requests() -> None:
    device = Gated()
    dispatch, consumer = await opened(device)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, dispatch, consumer, call())
        await trio.testing.wait_all_tasks_blocked()
        assert consumer.describe()["outstanding"] == 1
        device.gate.set()


async def test_a_container_that_ends_closes_every_consumer() -> None:
    from ldmfs.container.host import Container

    container, device = Container("test"), Gated()
    logical = container.create_device("d", device)
    consumers = [await container.dispatch.open(logical, PEER) for _ in range(5)]
    await container.close_consumers()
    assert sorted(device.closed) == [consumer.id for consumer in consumers]
