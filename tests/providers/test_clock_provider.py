"""The plug-in clock."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from ldmfs import NotSupported, RequestType
from ldmfs.container.settings import ConfigurationError

READ = RequestType.READ


async def test_utc_is_iso_8601_with_microseconds_and_z(host: Any, ask: Any) -> None:
    reply = await ask(await host("clock"), "utc", type=READ)
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\n", reply)


async def test_utc_is_the_time_of_the_request(host: Any, ask: Any) -> None:
    container = await host("clock")
    before = datetime.now(UTC)
    told = datetime.fromisoformat((await ask(container, "utc", type=READ)).decode().strip())
    assert before <= told <= datetime.now(UTC)


async def test_utc_of_a_whole_second_has_its_zeros(monkeypatch: pytest.MonkeyPatch, host: Any, ask: Any) -> None:
    from ldmfs_providers import clock

    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    monkeypatch.setattr(clock, "datetime", type("Noon", (), {"now": staticmethod(lambda zone: noon)}))
    assert await ask(await host("clock"), "utc", type=READ) == b"2026-01-31T12:00:00.000000Z\n"


@pytest.mark.parametrize(("device", "clock"), [("monotonic", time.CLOCK_MONOTONIC), ("uptime", time.CLOCK_BOOTTIME)])
async def test_seconds_have_nanoseconds(host: Any, ask: Any, device: str, clock: int) -> None:
    container = await host("clock")
    before = time.clock_gettime_ns(clock)
    reply = await ask(container, device, type=READ)
    assert re.fullmatch(rb"\d+\.\d{9}\n", reply)
    assert before <= int(reply.replace(b".", b"")) <= time.clock_gettime_ns(clock)


@pytest.mark.parametrize(
    ("nanoseconds", "text"), [(0, "0.000000000"), (5, "0.000000005"), (12_000_000_034, "12.000000034")]
)
def test_nanoseconds_become_seconds_with_all_their_digits(nanoseconds: int, text: str) -> None:
    from ldmfs_providers.clock import seconds

    assert seconds(nanoseconds) == text


async def test_the_devices_are_for_reading_only(host: Any) -> None:
    assert {(device.mode, device.accepts) for device in (await host("clock")).registry} == {(0o444, frozenset({READ}))}


async def test_a_call_is_refused(host: Any, ask: Any) -> None:
    with pytest.raises(NotSupported, match=r"'utc' takes no CALL"):
        await ask(await host("clock"), "utc", b"now")


def test_a_key_is_refused_by_its_place(configured: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"test\.toml: box\.clock\.zone: there is no such key"):
        configured("clock", zone="CET")
