"""A plug-in whose import does not always work: it waits while the file `hold` is there, and fails where `break` is.

What is in the file `version` when it is imported is its version; with the version `bad` its provider does not start.
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


VERSION = (BASE / "version").read_text() if (BASE / "version").exists() else "first"


class Version(Device):
    """Tells the version of the code."""

    def request(self, consumer_id: int, request: Request) -> bytes:
        return VERSION.encode()


class Echo(Device):
    """Gives back what it got."""

    def request(self, consumer_id: int, request: Request) -> bytes:
        return bytes(request.data)


class Brittle(Provider):
    """One device."""

    def start(self) -> None:
        if VERSION == "bad":
            raise RuntimeError("this version is bad")
        self.create_device("echo", Echo())
        self.create_device("version", Version())
