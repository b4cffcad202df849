"""The plug-in sensor."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

from ldmfs import NotSupported, RequestType
from ldmfs.container.provider import load
from ldmfs.container.settings import ConfigurationError
from ldmfs.core.device import Execution

READ = RequestType.READ


@pytest.mark.parametrize(
    ("device", "keys"),
    [
        ("cpu", {"percent", "cores"}),
        ("memory", {"total", "available", "used", "percent", "swap_total", "swap_used"}),
        ("load", {"1min", "5min", "15min"}),
        ("disk", {"/"}),
    ],
)
async def test_a_read_gives_one_line_of_json(host: Any, ask: Any, device: str, keys: set[str]) -> None:
    reply = await ask(await host("sensor"), device, type=READ)
    assert reply.count(b"\n") == 1
    assert reply.endswith(b"\n")
    assert json.loads(reply).keys() == keys


async def test_the_processors_are_sampled_at_the_start(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldmfs_providers import sensor

    samples = []
    monkeypatch.setattr(sensor.psutil, "cpu_percent", lambda *args, **options: samples.append(options))
    await host("sensor")
    assert samples == [{}, {"percpu": True}]


async def test_no_reading_of_the_processors_waits(host: Any, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldmfs_providers import sensor

    def no_sleep(seconds: float) -> None:
        raise AssertionError("the loop would stand still")

    container = await host("sensor")
    monkeypatch.setattr(sensor.psutil.time, "sleep", no_sleep)
    busy = json.loads(await ask(container, "cpu", type=READ))
    assert len(busy["cores"]) == sensor.psutil.cpu_count()


async def test_memory_that_is_available_is_part_of_the_total(host: Any, ask: Any) -> None:
    memory = json.loads(await ask(await host("sensor"), "memory", type=READ))
    assert 0 < memory["available"] <= memory["total"]


async def test_disk_tells_of_each_path(host: Any, ask: Any, tmp_path: Any) -> None:
    container = await host("sensor", paths=["/", str(tmp_path)])
    disks = json.loads(await ask(container, "disk", type=READ))
    assert disks.keys() == {"/", str(tmp_path)}
    assert disks["/"].keys() == {"total", "used", "free", "percent"}


async def test_disk_tells_why_a_path_cannot_be_asked_beside_the_others(host: Any, ask: Any, tmp_path: Any) -> None:
    gone = str(tmp_path / "gone")
    disks = json.loads(await ask(await host("sensor", paths=["/", gone]), "disk", type=READ))
    assert disks[gone] == {"error": os.strerror(2)}
    assert disks["/"]["total"] > 0


async def test_only_disk_needs_a_thread(host: Any) -> None:
    container = await host("sensor")
    threads = {device.name for device in container.registry if device.request_execution is Execution.THREAD}
    assert threads == {"disk"}


async def test_the_devices_are_for_reading_only(host: Any) -> None:
    assert {(device.mode, device.accepts) for device in (await host("sensor")).registry} == {(0o444, frozenset({READ}))}


async def test_a_call_is_refused(host: Any, ask: Any) -> None:
    with pytest.raises(NotSupported):
        await ask(await host("sensor"), "load", b"now")


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.delitem(sys.modules, "ldmfs_providers.sensor", raising=False)
    with pytest.raises(ConfigurationError, match=r"psutil is not installed; run: pip install 'ldmfs\[sensor\]'"):
        load("ldmfs_providers.sensor:Sensor")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"paths": "/"}, r"box\.sensor\.paths: expected array, got str"),
        ({"paths": ["/", 7]}, r"box\.sensor\.paths\[1\]: expected str, got int"),
        ({"path": "/"}, r"box\.sensor\.path: there is no such key; known are: paths"),
    ],
)
def test_a_bad_setting_is_refused_by_its_key(configured: Any, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=r"test\.toml: " + message):
        configured("sensor", **table)
