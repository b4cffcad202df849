"""Waiting for what another process does: look until it is there, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SECONDS = 15.0
"""Far more than anything takes on a machine that is busy with the other tests."""


def wait_until(condition: Callable[[], T], seconds: float = SECONDS, what: str = "what was waited for") -> T:
    """Return the first true value that `condition` gives; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} is not there after {seconds:g} s"
        time.sleep(0.005)
    return value
