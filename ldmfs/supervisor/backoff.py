"""Crashes in a row: how many there were lately, and how long to wait before the next attempt."""

from __future__ import annotations

from collections import deque

import trio

from .configuration import ContainerOptions

FIRST_PAUSE = 0.1
"""Seconds before the second new start after crashes in a row, which double with each further one; the first is at once.
"""


class Backoff:
    """The crashes of one container, or those of its standby, within `crash_window`."""

    def __init__(self, options: ContainerOptions) -> None:
        self._options = options
        self._crashes: deque[float] = deque()

    def count(self) -> int:
        """Note a crash, and return how many there were within the window."""
        now = trio.current_time()
        self._crashes.append(now)
        while now - self._crashes[0] > self._options.crash_window:
            self._crashes.popleft()
        return len(self._crashes)

    async def pause(self) -> None:
        """Wait for as long as the crashes call for."""
        if len(self._crashes) > 1:
            await trio.sleep(min(FIRST_PAUSE * 2 ** min(len(self._crashes) - 2, 20), self._options.max_pause))
