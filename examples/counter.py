"""counter: devices with state, in the class form.

    total    adds up what everybody sends
    own      adds up for each open file by itself

A request is a whole number, or nothing at all; the reply is the sum and a newline.

    $ ldmfs run examples/counter.py &
    /ldm/counter/total
    /ldm/counter/own
    $ echo 40 > /ldm/counter/total; echo 2 > /ldm/counter/total; cat /ldm/counter/total
    42
"""

from __future__ import annotations

import ldmfs


def number(request: ldmfs.Request) -> int:
    """Return the number that a request holds, 0 for a READ, which holds nothing."""
    try:
        return int(bytes(request.data) or b"0")
    except ValueError:
        raise ldmfs.InvalidRequest(f"expected a whole number, got {bytes(request.data)[:40]!r}") from None


class Total(ldmfs.Device):
    """One sum for all consumers."""

    takes, gives = "a whole number", "the sum so far"

    def __init__(self) -> None:
        self.sum = 0

    def request(self, consumer_id: int, request: ldmfs.Request) -> bytes:
        """Add what the request holds."""
        self.sum += number(request)
        return b"%d\n" % self.sum


class Own(ldmfs.Device):
    """A sum for each consumer, from its `open` to its `close`."""

    takes, gives = "a whole number", "the sum of this open file"

    def __init__(self) -> None:
        self.sums: dict[int, int] = {}

    def open(self, consumer_id: int) -> None:
        """Begin at nothing."""
        self.sums[consumer_id] = 0

    def close(self, consumer_id: int) -> None:
        """Forget the sum: this runs once, also when the consumer was killed."""
        del self.sums[consumer_id]

    def request(self, consumer_id: int, request: ldmfs.Request) -> bytes:
        """Add what the request holds to the consumer's own sum."""
        self.sums[consumer_id] += number(request)
        return b"%d\n" % self.sums[consumer_id]


class Counter(ldmfs.Provider):
    """Sums: total, own."""

    def start(self) -> None:
        """Create the devices."""
        self.create_device("total", Total())
        self.create_device("own", Own())


if __name__ == "__main__":
    ldmfs.run(Counter)
