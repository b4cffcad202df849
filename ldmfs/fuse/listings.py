"""Directory listings: the devices as they were when a directory was opened."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from ..core.device import LogicalDevice
from ..core.registry import Registry


class Listings:
    """The listings of one container's directory, by number.

    Devices are in the order of their ids, which are the same in every instance, and the place behind one is its id: so
    a listing goes on with another instance of the container.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._listings: dict[int, list[LogicalDevice]] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._listings)

    def open(self) -> int:
        """Take a listing of the devices as they are now; return its number."""
        self._last += 1
        self._find(self._last)
        return self._last

    def behind(self, number: int, device_id: int) -> Iterator[LogicalDevice]:
        """Yield the devices of a listing whose ids are greater, as far as they are still there."""
        listing = self._find(number)
        for index in range(bisect.bisect_right(listing, device_id, key=_id_of), len(listing)):
            device = listing[index]
            if self._registry.by_id.get(device.id) is device:
                yield device

    def close(self, number: int) -> None:
        """Forget a listing."""
        self._listings.pop(number, None)

    def _find(self, number: int) -> list[LogicalDevice]:
        """Return a listing; for a directory that was opened under an earlier instance, one that is taken now."""
        if number not in self._listings:
            self._listings[number] = sorted(self._registry, key=_id_of)
        return self._listings[number]


def _id_of(device: LogicalDevice) -> int:
    return device.id
