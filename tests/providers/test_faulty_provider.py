"""The plug-in faulty."""

from __future__ import annotations

import errno
import inspect
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faulty_samples
import pytest
import trio
import trio.testing

from ldmfs import Container, DeviceExists, Kind, LdmError, NotSupported, ProviderFailed, RequestType
from ldmfs.container.settings import ConfigurationError
from ldmfs.core.device import BLOCK_TYPES, Execution

SAMPLE = "faulty_samples:Sample"
DEVICES = ["inline", "async", "thread"]


@pytest.fixture(autouse=True)
def calls() -> Iterator[list[Any]]:
    """Return what the sample's handlers note."""
    faulty_samples.calls.clear()
    yield faulty_samples.calls
    faulty_samples.calls.clear()


def on_a_mock_clock(function: Any) -> Any:
    """Run an async function on a clock that jumps whenever nothing else is to be done."""
    return trio.run(function, clock=trio.testing.MockClock(autojump_threshold=0))


async def outcomes(ask: Any, container: Container, device: str, count: int) -> list[Any]:
    """Send so many requests; return each one's reply or its error's class."""
    found: list[Any] = []
    for _ in range(count):
        try:
            found.append(await ask(container, device, b"x"))
        except LdmError as error:
            found.append(type(error))
    return found


# -- what stays as it is


async def test_without_faults_the_wrapped_plug_in_answers(host: Any, ask: Any) -> None:
    assert await ask(await host("faulty", provider="text"), "upper", b"hello\n") == b"HELLO\n"


@pytest.mark.parametrize("device", DEVICES)
async def test_every_form_of_handler_is_called_as_ever(host: Any, ask: Any, device: str) -> None:
    assert await ask(await host("faulty", provider=SAMPLE), device) == device.encode()


async def test_the_settings_of_the_wrapped_plug_in_are_its_own(host: Any, ask: Any) -> None:
    container = await host("faulty", provider=SAMPLE, settings={"word": "bonjour"})
    assert await ask(container, "word") == b"bonjour"


async def test_open_and_close_are_called_once_for_each_consumer(host: Any, ask: Any, calls: list[Any]) -> None:
    container = await host("faulty", provider=SAMPLE)
    for device in ("inline", "async"):
        calls.clear()
        await ask(container, device)
        assert calls == ["open", "request", "close"]


async def test_a_device_keeps_its_attributes(host: Any) -> None:
    device = (await host("faulty", provider=SAMPLE, delay="1 s")).registry.find("inline")
    assert (device.mode, device.uid, device.gid) == (0o640, 7, 8)
    assert (device.description, device.takes, device.gives) == ("a description", "what it takes", "what it gives")


async def test_a_block_device_stays_one(host: Any) -> None:
    device = (await host("faulty", provider=SAMPLE)).registry.find("block")
    assert (device.kind, device.size, device.accepts) == (Kind.BLOCK, 4096, BLOCK_TYPES)


@pytest.mark.parametrize("device", DEVICES)
async def test_without_a_pause_the_request_handler_is_run_as_ever(host: Any, device: str) -> None:
    container = await host("faulty", provider=SAMPLE, fail_every=3)
    assert container.registry.find(device).request_execution is Execution(device)


async def test_the_default_open_of_a_thread_device_needs_no_thread(host: Any) -> None:
    device = (await host("faulty", provider=SAMPLE, delay="1 s")).registry.find("thread")
    assert (device.open_execution, device.close_execution) == (Execution.INLINE, Execution.INLINE)


async def test_a_request_of_a_type_that_is_not_taken_is_refused_and_has_no_turn(host: Any, ask: Any) -> None:
    container = await host("faulty", provider="text", fail_every=2)
    assert await ask(container, "upper", b"a") == b"A"
    with pytest.raises(NotSupported):
        await ask(container, "upper", type=RequestType.READ)
    with pytest.raises(LdmError, match="faulty fails"):
        await ask(container, "upper", b"b")


async def test_start_and_stop_reach_the_wrapped_plug_in(configured: Any, calls: list[Any]) -> None:
    provider = configured("faulty", provider=SAMPLE)
    await provider.start()
    await provider.stop()
    assert calls == ["start", "stop"]


def test_a_plug_in_with_a_plain_start_is_not_awaited(configured: Any) -> None:
    assert not inspect.isawaitable(configured("faulty", provider="text").start())


async def test_the_wrapped_plug_in_can_run_tasks_beside_the_requests(configured: Any) -> None:
    container, ran = Container("box"), trio.Event()
    provider = configured("faulty", container, provider=SAMPLE)

    async def task() -> None:
        ran.set()

    async with trio.open_nursery() as container.nursery:
        provider.wrapped.start_soon(task)
    assert ran.is_set()


async def test_the_wrapped_plug_in_can_destroy_its_devices(configured: Any) -> None:
    container = Container("box")
    provider = configured("faulty", container, provider="null")
    provider.start()
    provider.wrapped.destroy_device("zero")
    assert set(container.registry.devices) == {"null", "echo"}


def test_a_name_that_is_taken_is_refused(configured: Any) -> None:
    container = Container("box")
    configured("text", container).start()
    with pytest.raises(DeviceExists):
        configured("faulty", container, provider="text").start()


async def test_it_can_wrap_itself_and_the_faults_of_both_happen(host: Any, ask: Any) -> None:
    inner = {"provider": "text", "fail_every": 2, "errno": "ENOSPC"}
    container = await host("faulty", provider="faulty", settings=inner, fail_every=3)
    errors = set()
    for _ in range(6):
        try:
            await ask(container, "upper", b"x")
        except LdmError as error:
            errors.add(error.errno)
    assert errors == {errno.ENOSPC, errno.EIO}


# -- faults of requests


@pytest.mark.parametrize("device", DEVICES)
async def test_every_nth_request_fails(host: Any, ask: Any, device: str) -> None:
    container = await host("faulty", provider=SAMPLE, fail_every=3)
    reply = device.encode()
    assert await outcomes(ask, container, device, 7) == [reply, reply, LdmError, reply, reply, LdmError, reply]


async def test_a_request_that_fails_does_not_reach_the_wrapped_handler(host: Any, ask: Any, calls: list[Any]) -> None:
    container = await host("faulty", provider=SAMPLE, fail_every=1)
    calls.clear()
    assert await outcomes(ask, container, "inline", 1) == [LdmError]
    assert calls == ["open", "close"]


@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "ETIMEDOUT", "EOPNOTSUPP", "EWOULDBLOCK"])
async def test_what_fails_has_the_configured_error(host: Any, ask: Any, name: str) -> None:
    with pytest.raises(LdmError) as raised:
        await ask(await host("faulty", provider="text", fail_every=1, errno=name), "upper", b"x")
    assert raised.value.errno == getattr(errno, name)


async def test_turns_are_counted_for_each_device_by_itself(host: Any, ask: Any) -> None:
    container = await host("faulty", provider="text", fail_every=2)
    assert await outcomes(ask, container, "upper", 1) == [b"X"]
    assert await outcomes(ask, container, "lower", 2) == [b"x", LdmError]


@pytest.mark.logs
@pytest.mark.parametrize("device", DEVICES)
async def test_every_nth_request_raises_what_is_logged_and_becomes_eio(
    host: Any, ask: Any, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    container = await host("faulty", provider=SAMPLE, raise_every=2)
    reply = device.encode()
    assert await outcomes(ask, container, device, 4) == [reply, ProviderFailed, reply, ProviderFailed]
    assert [record.getMessage() for record in caplog.records] == [f"device {device}: its request handler raised"] * 2
    assert "RuntimeError: faulty raises this as it is configured to" in caplog.text


@pytest.mark.logs
async def test_raise_goes_before_fail(host: Any, ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    container = await host("faulty", provider="text", raise_every=2, fail_every=1)
    assert await outcomes(ask, container, "upper", 2) == [LdmError, ProviderFailed]
    assert len(caplog.records) == 1


def in_a_process(device: str, requests: int, table: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Host the sample in a process of its own, send requests, and print a line before each and at the end."""
    script = f"""
import trio
from conftest import asked, hosted

async def main():
    container = await hosted("faulty", **{table!r})
    for number in range({requests}):
        print(number, flush=True)
        await asked(container, {device!r}, b"x")
    print("end", flush=True)

trio.run(main)
"""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_every_nth_request_ends_the_process_with_the_configured_status(device: str) -> None:
    ended = in_a_process(device, 5, {"provider": SAMPLE, "exit_every": 3, "exit_status": 42})
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (42, ["0", "1", "2"], "")


def test_exit_goes_before_raise_and_fail() -> None:
    ended = in_a_process("upper", 1, {"provider": "text", "exit_every": 1, "raise_every": 1, "fail_every": 1})
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize("key", ["on_open", "on_close"])
@pytest.mark.parametrize("device", DEVICES)
def test_an_open_or_close_ends_the_process(device: str, key: str) -> None:
    ended = in_a_process(device, 2, {"provider": SAMPLE, key: "exit", "exit_status": 7})
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (7, ["0"], "")


# -- faults of opens and closes


@pytest.mark.parametrize("device", DEVICES)
async def test_an_open_fails_and_nothing_else_follows(host: Any, ask: Any, device: str, calls: list[Any]) -> None:
    container = await host("faulty", provider=SAMPLE, on_open="fail", errno="EACCES")
    calls.clear()
    with pytest.raises(LdmError) as raised:
        await ask(container, device)
    assert raised.value.errno == errno.EACCES
    assert calls == []
    assert not container.registry.consumers


@pytest.mark.logs
async def test_an_open_raises(host: Any, ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    container = await host("faulty", provider=SAMPLE, on_open="raise")
    with pytest.raises(ProviderFailed):
        await ask(container, "inline")
    assert [record.getMessage() for record in caplog.records] == ["device inline: its open handler raised"]


@pytest.mark.logs
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fault", ["fail", "raise"])
async def test_a_close_that_goes_wrong_is_logged_and_the_consumer_is_gone(
    host: Any, ask: Any, caplog: pytest.LogCaptureFixture, device: str, fault: str, calls: list[Any]
) -> None:
    container = await host("faulty", provider=SAMPLE, on_close=fault)
    assert await ask(container, device) == device.encode()
    assert len(caplog.records) == 1
    assert f"device {device}: " in caplog.text
    assert "close" not in calls
    assert not container.registry.consumers


# -- delays


@pytest.mark.parametrize("device", ["inline", "async"])
def test_a_delay_goes_before_each_request(host: Any, ask: Any, device: str) -> None:
    async def main() -> tuple[float, list[Any]]:
        container = await host("faulty", provider=SAMPLE, delay="2 min")
        replies = await outcomes(ask, container, device, 3)
        return trio.current_time(), replies

    start = on_a_mock_clock(trio_now)
    end, replies = on_a_mock_clock(main)
    assert end - start == pytest.approx(360)
    assert replies == [device.encode()] * 3


async def trio_now() -> float:
    return trio.current_time()


async def test_a_thread_handler_runs_in_a_thread_after_its_delay(host: Any, ask: Any, calls: list[Any]) -> None:
    container = await host("faulty", provider=SAMPLE, delay="1 ms")
    calls.clear()
    assert await ask(container, "thread") == b"thread"
    assert calls == [True]


@pytest.mark.parametrize("key", ["delay", "jitter"])
@pytest.mark.parametrize("device", DEVICES)
async def test_a_pause_makes_the_request_handler_async(host: Any, device: str, key: str) -> None:
    container = await host("faulty", provider=SAMPLE, **{key: "1 ms"})
    assert container.registry.find(device).request_execution is Execution.ASYNC


async def test_a_pause_leaves_open_and_close_as_they_are(host: Any) -> None:
    device = (await host("faulty", provider=SAMPLE, delay="1 ms")).registry.find("inline")
    assert (device.open_execution, device.close_execution) == (Execution.INLINE, Execution.INLINE)


def pauses_of(host: Any, ask: Any, device: str = "upper", **table: Any) -> list[float]:
    async def main() -> list[float]:
        container = await host("faulty", provider="text", **table)
        times = [trio.current_time()]
        for _ in range(20):
            await ask(container, device, b"x")
            times.append(trio.current_time())
        return [round(after - before, 6) for before, after in itertools.pairwise(times)]

    pauses: list[float] = on_a_mock_clock(main)
    return pauses


def test_jitter_is_between_nothing_and_its_setting(host: Any, ask: Any) -> None:
    pauses = pauses_of(host, ask, delay="5 s", jitter="2 s")
    assert 5 <= min(pauses) < max(pauses) <= 7


def test_jitter_is_the_same_with_the_same_seed(host: Any, ask: Any) -> None:
    assert pauses_of(host, ask, jitter="2 s", seed=7) == pauses_of(host, ask, jitter="2 s", seed=7)


def test_jitter_is_another_with_another_seed(host: Any, ask: Any) -> None:
    assert pauses_of(host, ask, jitter="2 s", seed=7) != pauses_of(host, ask, jitter="2 s", seed=8)


def test_jitter_of_one_device_is_not_that_of_another(host: Any, ask: Any) -> None:
    assert pauses_of(host, ask, "upper", jitter="2 s") != pauses_of(host, ask, "lower", jitter="2 s")


def test_the_fault_comes_after_the_delay(host: Any, ask: Any) -> None:
    async def main() -> float:
        container = await host("faulty", provider="text", delay="3 s", fail_every=1)
        start = trio.current_time()
        assert await outcomes(ask, container, "upper", 1) == [LdmError]
        return trio.current_time() - start

    assert on_a_mock_clock(main) == pytest.approx(3)


def test_delayed_requests_wait_side_by_side(host: Any, ask: Any) -> None:
    async def main() -> float:
        container = await host("faulty", provider="text", delay="3 s")
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask, container, "upper", b"x")
        return trio.current_time() - start

    assert on_a_mock_clock(main) == pytest.approx(3)


def test_a_delayed_request_can_be_cancelled(host: Any, ask: Any, calls: list[Any]) -> None:
    async def main() -> Container:
        container: Container = await host("faulty", provider=SAMPLE, delay="1 h")
        calls.clear()
        with trio.move_on_after(1):
            await ask(container, "inline")
        return container

    container = on_a_mock_clock(main)
    assert calls == ["open", "close"]
    assert container.dispatch.outstanding == 0


# -- mistakes in a configuration


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, r"box\.faulty\.provider: this key is required"),
        ({"provider": "txt"}, r"box\.faulty: provider: there is no plug-in 'txt'; installed are: .*text"),
        ({"provider": "nowhere.at_all:Text"}, r"box\.faulty: provider: nowhere\.at_all:Text cannot be imported"),
        ({"provider": "os:path"}, r"box\.faulty: provider: os:path is no subclass of ldmfs\.Provider"),
        ({"provider": "codec", "settings": {"limit": "x"}}, r"box\.faulty: settings\.limit: expected a size"),
        ({"provider": "text", "settings": {"loud": True}}, r"box\.faulty: settings\.loud: there is no such key"),
        ({"provider": "text", "settings": 3}, r"box\.faulty\.settings: expected object, got int"),
        ({"provider": "text", "delay": "1 parsec"}, r"box\.faulty\.delay: expected a duration"),
        ({"provider": "text", "jitter": -1}, r"box\.faulty\.jitter: expected a duration"),
        ({"provider": "text", "seed": "x"}, r"box\.faulty\.seed: expected int"),
        ({"provider": "text", "fail_every": -1}, r"box\.faulty: fail_every: expected 0 or more, got -1"),
        ({"provider": "text", "raise_every": -2}, r"box\.faulty: raise_every: expected 0 or more, got -2"),
        ({"provider": "text", "exit_every": -3}, r"box\.faulty: exit_every: expected 0 or more, got -3"),
        ({"provider": "text", "exit_status": 256}, r"box\.faulty: exit_status: expected 0 to 255, got 256"),
        ({"provider": "text", "errno": "EFOO"}, r"box\.faulty: errno: expected a name such as \"EIO\", got 'EFOO'"),
        ({"provider": "text", "errno": "errorcode"}, r"box\.faulty: errno: expected a name"),
        ({"provider": "text", "on_open": "boom"}, r"box\.faulty\.on_open: expected one of .*got 'boom'"),
        ({"provider": "text", "on_close": True}, r"box\.faulty\.on_close: expected"),
        ({"provider": "text", "fail_evry": 1}, r"box\.faulty\.fail_evry: there is no such key; known are: provider"),
    ],
)
def test_a_bad_setting_is_refused_by_its_key(configured: Any, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=r"test\.toml: " + message):
        configured("faulty", **table)
