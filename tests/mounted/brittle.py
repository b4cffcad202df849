"""A plug-in whose import does not always work: it waits while the file `hold` is there, and fails where `break` is."""

import os
import time
from pathlib import Path

from ldmfs import Device, Provider, Request

BASE = Path(os.environ["LDMFS_ROOT"]).parent

while (BASE / "hold").exists():
    time.sleep(0.01)
if (BASE / "break").exists():
    raise RuntimeError("it is broken")


class Echo(Device):
    """Gives back what it got."""

    def request(self, consumer_id: int, request: Request) -> bytes:
        return bytes(request.data)


class Brittle(Provider):
    """One device."""

    def start(self) -> None:
        self.create_device("echo", Echo())
