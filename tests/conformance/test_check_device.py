"""The suite itself: it lets pass what keeps the rules, and names the rule that a device breaks."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import trio

import ldmfs
import ldmfs.testing
from ldmfs import Container, Device, LdmError, Request, RequestType

from .devices import Memory, Slow, Upper


async def check(device: Device, **arguments: Any) -> None:
    container = Container("box")
    container.create_device("d", device)
    await ldmfs.testing.check_device("d", container=container, **arguments)


async def test_a_device_with_a_plain_handler_passes() -> None:
    await check(Upper(), request=b"hello", reply=b"HELLO")


async def test_a_device_with_an_async_handler_passes() -> None:
    await check(Slow(), request=b"hello", reply=b"HELLO", slow=b"wait")


async def test_a_device_with_a_handler_in_a_thread_passes() -> None:
    device = Upper()
    device.thread = True
    await check(device, request=b"hello", reply=b"HELLO")


async def test_a_block_device_passes() -> None:
    await check(Memory())


async def test_a_block_device_has_what_it_had_before() -> None:
    device = Memory()
    device.memory[:] = before = bytes(range(250)) * 40
    await check(device)
    assert device.memory == before


async def test_a_block_device_that_is_not_to_be_written_is_not() -> None:
    device = Memory(accepts=frozenset({RequestType.READ, RequestType.WRITE, RequestType.FLUSH}))
    written: list[Request] = []

    def request(consumer_id: int, request: Request) -> bytes:
        if request.type is RequestType.WRITE:
            written.append(request)
        return bytes(request.length)

    device.request = request  # type: ignore[method-assign]
    await check(device, writable=False)
    assert written == []


async def test_a_device_without_a_sample_request_is_checked_for_what_holds_without() -> None:
    await check(Upper())


async def test_the_sample_may_be_judged_by_a_function() -> None:
    await check(Upper(), request=b"hello", reply=bytes.isupper)


async def test_it_can_be_called_where_no_loop_runs() -> None:
    def call() -> None:
        container = Container("box")
        container.create_device("d", Upper())
        ldmfs.testing.check_device_blocking("d", container=container, request=b"hello", reply=b"HELLO")

    await trio.to_thread.run_sync(call)


# -- devices that break a rule


class Broken(Upper):
    """Each test breaks it in its own way."""

    def __init__(self, **handlers: Any) -> None:
        self.__dict__.update(handlers)


async def breaks(device: Device, rule: str, **arguments: Any) -> str:
    samples = {"request": b"hello", "reply": b"HELLO"} if device.kind == "message" else {}
    with pytest.raises(AssertionError, match=re.escape(f"breaks the rule {rule}: ")) as raised:
        await check(device, **{**samples, **arguments})
    return str(raised.value)


async def test_a_wrong_reply_is_found() -> None:
    message = await breaks(Broken(), "each_open_is_a_consumer_of_its_own", reply=b"hello")
    assert "the reply is b'HELLO', not b'hello'" in message


async def test_the_message_names_device_and_path() -> None:
    message = await breaks(Broken(), "each_open_is_a_consumer_of_its_own", reply=b"hello")
    assert message.startswith("d by local breaks")


async def test_a_reply_that_the_function_does_not_take_is_found() -> None:
    await breaks(Broken(), "each_open_is_a_consumer_of_its_own", reply=bytes.islower)


async def test_a_device_that_answers_only_once_is_found() -> None:
    left = [b"HELLO"] * 4

    await breaks(Broken(request=lambda id, request: left.pop() if left else b""), "requests_are_answered_in_order")


async def test_a_device_for_one_consumer_only_is_found() -> None:
    opened: list[int] = []

    def open(consumer_id: int) -> None:
        if opened:
            raise LdmError("it is taken")
        opened.append(consumer_id)

    await breaks(Broken(open=open, close=opened.remove), "each_open_is_a_consumer_of_its_own")


async def test_a_device_that_mixes_up_requests_is_found() -> None:
    busy: list[int] = []

    async def request(consumer_id: int, request: Request) -> bytes:
        busy.append(consumer_id)
        try:
            await trio.lowlevel.checkpoint()
            return b"HELLO" if len(busy) == 1 else b"something else"
        finally:
            busy.remove(consumer_id)

    await breaks(Broken(request=request), "many_consumers_at_once_are_answered")


@pytest.mark.logs
async def test_a_handler_that_fails_with_an_empty_request_is_found() -> None:
    def request(consumer_id: int, request: Request) -> bytes:
        return bytes([request.data[0] - 32]) + bytes(request.data[1:]).upper()

    message = await breaks(Broken(request=request), "an_unusual_size_is_answered_or_refused")
    assert "CALL with 0 bytes" in message


async def test_a_device_that_does_not_answer_after_a_cancellation_is_found() -> None:
    async def request(consumer_id: int, request: Request, broken: list[bool] = []) -> bytes:  # noqa: B006
        if bytes(request.data) == b"wait":
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                broken.append(True)
                raise
        return b"" if broken else bytes(request.data).upper()

    await breaks(Broken(request=request), "a_cancelled_request_leaves_the_device_usable", slow=b"wait")


async def test_a_slow_request_that_is_not_slow_is_found() -> None:
    await breaks(Broken(), "a_cancelled_request_leaves_the_device_usable", slow=b"wait")


async def test_a_hanging_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def request(consumer_id: int, request: Request) -> bytes:
        await trio.sleep_forever()
        return b""

    monkeypatch.setattr(ldmfs.testing, "SECONDS", 0.05)
    assert (await breaks(Broken(request=request), "each_open_is_a_consumer_of_its_own")).endswith("it hangs")


async def test_a_block_device_that_forgets_is_found() -> None:
    await breaks(Memory(request=lambda id, request: bytes(request.length)), "what_was_written_is_read")


async def test_a_block_device_that_gives_too_little_is_found() -> None:
    device = Memory()
    device.request = lambda id, request: b""  # type: ignore[method-assign]
    await breaks(device, "a_read_ends_at_the_end", writable=False)


@pytest.mark.parametrize("rule", ldmfs.testing.RULES, ids=lambda rule: rule.__name__)
def test_each_rule_says_what_it_is(rule: Any) -> None:
    assert inspect.getdoc(rule)
