"""The plug-in `mortal`: devices in a process that kills itself once, at the place that is written in the file `order`.

A place is a function of ldmfs and whether it is about to begin or has just ended, or a handler of a device.  What
happens to the consumers is written to the file `log`, a line each: device, what, consumer id, process.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from ldmfs import Device, Provider, Request, Settings
from ldmfs.container.host import Container
from ldmfs.core.dispatch import Dispatch
from ldmfs.core.tables import ConsumerTable
from ldmfs.fuse.operations import Operations

PLACES: dict[str, tuple[type, str]] = {
    "open": (Operations, "open"),
    "entry": (ConsumerTable, "add"),
    "opened": (ConsumerTable, "opened"),
    "answered": (ConsumerTable, "answered"),
    "write": (Operations, "write"),
    "read": (Operations, "read"),
    "flush": (Operations, "flush"),
    "release": (Operations, "release"),
    "close": (Dispatch, "close"),
    "closing": (ConsumerTable, "closing"),
    "removed": (ConsumerTable, "remove"),
}
"""Each is two places: `before NAME` and `after NAME`."""

HANDLERS = "open handler", "request handler", "close handler"
"""In their middle: what they do is done, and they have not returned."""


class MortalSettings(Settings):
    """Keys of `[container.mortal]`."""

    log: str
    order: str


class Mortal(Provider):
    """Dies where it is told to."""

    Settings = MortalSettings
    settings: MortalSettings

    def start(self) -> None:
        for name, (owner, function) in PLACES.items():
            setattr(owner, function, self.around(name, getattr(owner, function)))
        adopt = Container.adopt

        async def adopted(container: Container, *args: Any) -> None:
            await adopt(container, *args)
            self.is_serving = True

        Container.adopt = adopted  # type: ignore[method-assign]
        self.is_serving = False
        self.create_device("plain", Plain(self, "plain"))
        self.create_device("async", Async(self, "async"))

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def plain(*args: Any) -> Any:
            self.pass_by(f"before {name}")
            result = function(*args)
            self.pass_by(f"after {name}")
            return result

        @functools.wraps(function)
        async def waiting(*args: Any) -> Any:
            self.pass_by(f"before {name}")
            result = await function(*args)
            self.pass_by(f"after {name}")
            return result

        return waiting if inspect.iscoroutinefunction(function) else plain

    def pass_by(self, place: str) -> None:
        """Die here, if this is the place."""
        order = Path(self.settings.order)
        if self.is_serving and order.exists() and order.read_text() == place:
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(self, device: str, what: str, consumer_id: int) -> None:
        with open(self.settings.log, "a", encoding="utf-8") as file:
            file.write(f"{device} {what} {consumer_id} {os.getpid()}\n")


class Plain(Device):
    """Plain handlers."""

    def __init__(self, mortal: Mortal, name: str) -> None:
        self.mortal = mortal
        self.name = name

    def handle(self, what: str, consumer_id: int) -> None:
        self.mortal.tell(self.name, what, consumer_id)
        self.mortal.pass_by(f"{what} handler")

    def open(self, consumer_id: int) -> None:
        self.handle("open", consumer_id)

    def adopt(self, consumer_id: int) -> None:
        self.handle("adopt", consumer_id)

    def close(self, consumer_id: int) -> None:
        self.handle("close", consumer_id)

    def request(self, consumer_id: int, request: Request) -> bytes:
        self.handle("request", consumer_id)
        return bytes(request.data).upper()


class Async(Plain):
    """The same, by handlers that wait."""

    async def open(self, consumer_id: int) -> None:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        super().open(consumer_id)
        await trio.lowlevel.checkpoint()

    async def adopt(self, consumer_id: int) -> None:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        super().adopt(consumer_id)

    async def close(self, consumer_id: int) -> None:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        super().close(consumer_id)
        await trio.lowlevel.checkpoint()

    async def request(self, consumer_id: int, request: Request) -> bytes:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        return super().request(consumer_id, request)
