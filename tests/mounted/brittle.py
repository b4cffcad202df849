"""A plug-in whose import does not always work: it waits while the file `hold` is there, and fails where `break` is.

What the file `version` held at its import is its version.
"""

import os
import time
from pathlib import Path

from ldmfs import Device, Provider, Request

BASE = Path(os.environ["LDMFS_ROOT"]).parent

while (BASE / "hold").exists():
    time.sleep(0.01)
if (BASE / "break").exists():
    raise RuntimeError("it is broken")
VERSION = (BASE / "version").read_text() if (BASE / "version").exists() else "0"


class Version(Device):
    """Tells which code this is."""

    def request(self, consumer_id: int, request: Request) -> bytes:
        return VERSION.encode()


class Echo(Device):
    """Gives back what it got."""

    def request(self, consumer_id: int, request: Request) -> bytes:
        return bytes(request.data)


class Brittle(Provider):
    """Two devices."""

    def start(self) -> None:
        self.create_device("echo", Echo())
        self.create_device("version", Version())
