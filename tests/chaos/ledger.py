"""What consumers have done and seen, in memory that they share with the killer: a kill loses nothing of it."""

from __future__ import annotations

import errno
import json
import mmap
import os
import time
from pathlib import Path

DONE, ERRORS, WHEN, NUMBERS = 0, 1, 2, 3
"""Of each slot: exchanges that are done, errors that were promised, when the last exchange ended in monotonic ns."""


class Ledger:
    """One slot for each consumer, which stays when the consumer is replaced by another one.

    `broken` is a file to which consumers write what must not be, a line each.
    """

    def __init__(self, slots: int, broken: Path) -> None:
        # Items, since a number is stored at once in them, and no reader finds half of it.
        self._numbers = memoryview(mmap.mmap(-1, 8 * (1 + slots * NUMBERS))).cast("Q")
        self._slots = slots
        self._broken = broken
        self._broken.touch()

    @property
    def stopping(self) -> bool:
        """Consumers are to end after the exchange that they are in."""
        return bool(self._numbers[0])

    def stop(self) -> None:
        self._numbers[0] = 1

    def exchanged(self, slot: int) -> None:
        """Count an exchange."""
        self._numbers[self._at(slot, DONE)] += 1
        self.begin(slot)

    def suffered(self, slot: int) -> None:
        """Count an error."""
        self._numbers[self._at(slot, ERRORS)] += 1

    def begin(self, slot: int) -> None:
        """Note that a consumer begins, or goes on."""
        self._numbers[self._at(slot, WHEN)] = time.monotonic_ns()

    def done(self, slot: int | None = None) -> int:
        """Return the exchanges of a slot, or of all."""
        slots = range(self._slots) if slot is None else (slot,)
        return sum(self._numbers[self._at(each, DONE)] for each in slots)

    def errors(self, slot: int) -> int:
        """Return the errors of a slot."""
        return self._numbers[self._at(slot, ERRORS)]

    def idle_seconds(self, slot: int) -> float:
        """Return for how long a slot has done nothing."""
        return (time.monotonic_ns() - self._numbers[self._at(slot, WHEN)]) / 1e9

    def broke(self, who: str, what: str) -> None:
        """Note what must not be."""
        fd = os.open(self._broken, os.O_WRONLY | os.O_APPEND)
        os.write(fd, json.dumps(f"{who}: {what}").encode() + b"\n")
        os.close(fd)

    def broken(self) -> list[str]:
        """Return what must not be."""
        return [json.loads(line) for line in self._broken.read_text().splitlines()]

    @staticmethod
    def _at(slot: int, number: int) -> int:
        return 1 + slot * NUMBERS + number


def name_of(number: int | None) -> str:
    """Return an errno's name."""
    return errno.errorcode.get(number or 0, str(number))
