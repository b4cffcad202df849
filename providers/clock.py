"""clock: the time, as devices.

    utc          the date and time, ISO 8601 with microseconds and a Z
    monotonic    seconds of a clock that is never set, with nanoseconds; its start has no meaning
    uptime       seconds since the machine was started, with nanoseconds, time asleep included

There is nothing to send: a READ gives the time of that moment and a newline.

    $ cat /ldm/clock/utc
    2026-01-31T12:34:56.789012Z

Configuration, in which `clock.clock` is the container and the plug-in; there are no keys:

    [clock.clock]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from ldmfs import Device, Provider, Request, RequestType


def utc() -> str:
    """Return the date and time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds(nanoseconds: int) -> str:
    """Return nanoseconds as decimal seconds; a float has not enough digits."""
    whole, rest = divmod(nanoseconds, 10**9)
    return f"{whole}.{rest:09d}"


CLOCKS: dict[str, tuple[Callable[[], str], str]] = {
    "utc": (utc, "the date and time in UTC, ISO 8601"),
    "monotonic": (lambda: seconds(time.monotonic_ns()), "seconds of a clock that is never set"),
    "uptime": (lambda: seconds(time.clock_gettime_ns(time.CLOCK_BOOTTIME)), "seconds since the machine was started"),
}


class ClockDevice(Device):
    """Tells the time of one clock."""

    mode = 0o444
    accepts = frozenset({RequestType.READ})
    takes = "nothing"

    def __init__(self, tell: Callable[[], str], gives: str) -> None:
        self.tell = tell
        self.description = gives
        self.gives = f"{gives}, and a newline"

    def request(self, consumer_id: int, request: Request) -> bytes:
        """Return the time of this moment."""
        return self.tell().encode() + b"\n"


class Clock(Provider):
    """Clocks: utc, monotonic, uptime."""

    def start(self) -> None:
        """Create the devices."""
        for name, (tell, gives) in CLOCKS.items():
            self.create_device(name, ClockDevice(tell, gives))
