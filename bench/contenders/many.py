"""many: as many echo devices as `count` says, called `device-0`, `device-1` and so on.

Run: ldmfs run bench/contenders/many.py --set count=1000 --root DIR
"""

from __future__ import annotations

from typing import Annotated

from ldmfs import Device, Provider, Request
from ldmfs.container.settings import Doc, Settings


class Echo(Device):
    """Gives back what it got."""

    def request(self, consumer_id: int, request: Request) -> bytes:
        """Return the input."""
        return bytes(request.data)


class ManySettings(Settings):
    """The keys of many."""

    count: Annotated[int, Doc("how many devices")] = 10


class Many(Provider):
    """Creates the devices, each an object of its own."""

    Settings = ManySettings
    settings: ManySettings

    def start(self) -> None:
        """Create them."""
        for number in range(self.settings.count):
            self.create_device(f"device-{number}", Echo())
