"""Waiting for what another process does: look until it is there, with a deadline."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SECONDS = 15.0
"""Far more than anything takes on a machine that is busy with the other tests."""


def kill(pid: int) -> None:
    """Kill a process, and wait until its descriptors are closed: /proc no longer tells of it a while before."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], SECONDS)[0], f"process {pid} does not end"
    finally:
        os.close(pidfd)


def wait_until(condition: Callable[[], T], seconds: float = SECONDS, what: str = "what was waited for") -> T:
    """Return the first true value that `condition` gives; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} is not there after {seconds:g} s"
        time.sleep(0.005)
    return value
