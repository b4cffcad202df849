"""What a kill may leave in shared memory: between any two stores, and in the middle of any copy."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any, NamedTuple, cast


class Stored(NamedTuple):
    """One store: where, and what."""

    begin: int
    data: bytes


class Memory:
    """A buffer that keeps every store that is made to it.

    `stored` is called after each, with how many there were: what it raises is as if a signal handler had.
    """

    def __init__(self, image: bytes) -> None:
        self.image = bytearray(image)
        self.stores: list[Stored] = []

    @property
    def view(self) -> memoryview:
        """The buffer as the code under test takes it: it uses items and slices, and `len`."""
        return cast(memoryview, self)

    def stored(self, stores: int) -> None:
        """Do nothing; a test replaces it."""

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, item: Any) -> Any:
        return memoryview(self.image)[item]

    def __setitem__(self, item: Any, value: Any) -> None:
        memoryview(self.image)[item] = value  # refuses what a real view refuses
        begin, data = (item, bytes([value])) if isinstance(item, int) else (item.start or 0, bytes(value))
        self.stores.append(Stored(begin, data))
        self.stored(len(self.stores))


def images(before: bytes, stores: list[Stored], random: random.Random) -> Iterator[bytes]:
    """Yield what may be found when the process was killed while it made these stores."""
    image = bytearray(before)
    for begin, data in stores:
        yield bytes(image)
        at = slice(begin, begin + len(data))
        old = bytes(image[at])
        for torn in tears(old, data, random):
            image[at] = torn
            yield bytes(image)
        image[at] = data
    yield bytes(image)


def tears(old: bytes, new: bytes, random: random.Random) -> Iterator[bytes]:
    """Yield what a copy may leave when it is cut: a copy may begin at either end, and take its parts in any order."""
    size = len(new)
    cuts = range(1, size) if size <= 64 else {1, 4, size // 2, size - 4, size - 1, *random.sample(range(1, size), 4)}
    for cut in cuts:
        yield new[:cut] + old[cut:]
        yield old[:cut] + new[cut:]
    if size > 1:
        words = [old, new, new]
        yield b"".join(random.choice(words)[at : at + 8] for at in range(0, size, 8))


def torn(before: bytes, stores: list[Stored], random: random.Random) -> bytes:
    """Return one image of `images`, all stores being as likely."""
    image = bytearray(before)
    last = random.randrange(len(stores) + 1)
    for begin, data in itertools.islice(stores, last):
        image[begin : begin + len(data)] = data
    if last < len(stores):
        begin, data = stores[last]
        at = slice(begin, begin + len(data))
        image[at] = random.choice([bytes(image[at]), *tears(bytes(image[at]), data, random)])
    return bytes(image)
