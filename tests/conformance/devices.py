"""Devices that keep every rule, or break one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from ldmfs import Device, Kind, Provider, Request, RequestType


class Upper(Device):
    """Keeps every rule."""

    accepts = frozenset({RequestType.CALL})

    def request(self, consumer_id: int, request: Request) -> bytes:
        return bytes(request.data).upper()


class Slow(Upper):
    """Waits for long when it is told `wait`."""

    async def request(self, consumer_id: int, request: Request) -> bytes:  # type: ignore[override]
        if bytes(request.data) == b"wait":
            await trio.sleep_forever()
        return super().request(consumer_id, request)


class Memory(Device):
    """A block device."""

    kind = Kind.BLOCK
    size = 10_000

    def __init__(self, **attributes: Any) -> None:
        self.memory = bytearray(self.size)
        self.__dict__.update(attributes)

    def request(self, consumer_id: int, request: Request) -> bytes:
        begin, end = request.offset, request.offset + request.length
        if request.type is RequestType.READ:
            return bytes(self.memory[begin:end])
        if request.type is RequestType.WRITE:
            self.memory[begin:end] = request.data
        return b""


class Conformance(Provider):
    """The plug-in `conformance`, which has the device `slow`."""

    def start(self) -> None:
        self.create_device("slow", Slow())


def install(plug_ins: Path) -> None:
    """Make the plug-in known to whoever knows those of the mounted tests."""
    info = plug_ins / "ldmfs_conformance-1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ldmfs-conformance\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ldmfs.providers]\nconformance = conformance.devices:Conformance\n")
