"""sensor: how busy the machine is, as devices.  Needs the package psutil.

    cpu       {"percent", "cores": [percent of each]}: since the reading before, whoever took it
    memory    {"total", "available", "used", "percent", "swap_total", "swap_used"}, in bytes
    load      {"1min", "5min", "15min"}: tasks that run or wait to, on average
    disk      {path: {"total", "used", "free", "percent"}}, in bytes; {"error": why} for a path that cannot be asked

There is nothing to send: a READ gives one line of JSON.

    $ cat /ldm/sensor/load
    {"1min": 0.31, "5min": 0.22, "15min": 0.12}

Configuration, in which `sensor.sensor` is the container and the plug-in; this is the default:

    [sensor.sensor]
    paths = ["/"]    # one path in each file system that the device disk tells of
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from ldmfs import Device, Doc, Provider, Request, RequestType, Settings, require

psutil = require("psutil", "sensor")


class SensorSettings(Settings):
    """Keys of `[container.sensor]`."""

    paths: Annotated[tuple[str, ...], Doc("one path in each file system that the device disk tells of")] = ("/",)


class SensorDevice(Device):
    """Tells what `measure` returns, as JSON."""

    mode = 0o444
    accepts = frozenset({RequestType.READ})
    takes = "nothing"
    gives = "one line of JSON"

    def __init__(self, measure: Callable[[], dict[str, Any]], description: str, *, thread: bool = False) -> None:
        self.measure = measure
        self.description = description
        self.thread = thread

    def request(self, consumer_id: int, request: Request) -> bytes:
        """Measure, now."""
        return json.dumps(self.measure()).encode() + b"\n"


def cpu() -> dict[str, Any]:
    """Return how busy the processors were since the last call in this thread, in percent."""
    return {"percent": psutil.cpu_percent(), "cores": psutil.cpu_percent(percpu=True)}


def memory() -> dict[str, Any]:
    """Return the main memory and the swap space, in bytes."""
    ram, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {name: getattr(ram, name) for name in ("total", "available", "used", "percent")} | {
        "swap_total": swap.total,
        "swap_used": swap.used,
    }


def load() -> dict[str, Any]:
    """Return the load averages."""
    return dict(zip(("1min", "5min", "15min"), psutil.getloadavg(), strict=True))


class Sensor(Provider):
    """How busy the machine is: cpu, memory, load, disk."""

    Settings = SensorSettings
    settings: SensorSettings

    def start(self) -> None:
        """Create the devices, and take the sample that the first reading of the processors is compared with."""
        cpu()
        self.create_device("cpu", SensorDevice(cpu, "how busy the processors were since the last reading"))
        self.create_device("memory", SensorDevice(memory, "how much memory is used"))
        self.create_device("load", SensorDevice(load, "how many tasks run or wait to"))
        # A file system on a network may not answer.
        self.create_device("disk", SensorDevice(self.disk, "how full the file systems are", thread=True))

    def disk(self) -> dict[str, Any]:
        """Return how full the file systems are, in bytes."""
        return {path: usage(path) for path in self.settings.paths}


def usage(path: str) -> dict[str, Any]:
    """Return how full the file system of `path` is, or why that cannot be told."""
    try:
        return dict(psutil.disk_usage(path)._asdict())
    except OSError as error:
        return {"error": error.strerror}
