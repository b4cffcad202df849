"""Chains of containers: what each further one on the way of a request costs."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

from .channel import peer
from .report import Section, Table, Target, microseconds, times
from .servers import Setup, call, pid_of, pin, tree

LENGTHS = (1, 2, 3, 4)
SIZES = (32, 16 << 20)
RAW = "packets"
CONSUMERS = {RAW: "raw socket", "ldmfs": "blocking", "ldmfs trio": "trio"}
MOST_OF_FIRST = 1.1

ABOUT = """\
A consumer calls `null/echo` in one container, and through 1, 2 and 3 more containers, each with a device of the plug-in
`relay`, which consumes that of the next. A hop is from one party to the next: the first is that of the consumer to a
container, and its time is the round trip with one container; the time of a further one is what that container adds.
Data of 16 MiB goes by arena: it is copied in and out by the consumer, and by nobody else on its way.

The raw sockets are the same chain of processes, each of which does nothing but `recv`, `send` to the next, `recv` and
`send` back: what the machine makes of a further process on the way. The more processes take turns on a CPU, the less of
what each needs is in its caches when it has its turn.

"""


def measure(setup: Setup) -> Section:
    """Measure chains of 1 to 4 containers by both kinds of consumers, pinned and not."""
    rounds, counts = (2, (100, 5)) if setup.quick else (7, (500, 5))
    how = (
        f"{rounds} rounds, in each of which a consumer calls chains of all lengths in turn, {counts[0]} and {counts[1]}"
        " times;\nmedians over the rounds."
    )
    section = Section("A chain of containers", ABOUT + how)
    operations = [("once", size, count) for size, count in zip(SIZES, counts, strict=True)]
    with tree(setup, _configuration()) as root, contextlib.ExitStack() as stack:
        sockets, pids = _sockets(setup, stack)
        devices = [f"{root}:c{length}/{'echo' if length == 1 else 'x'}" for length in LENGTHS]
        pids += [pid_of(root, f"c{length}") for length in LENGTHS]
        addresses = {name: sockets if name == RAW else devices for name in CONSUMERS}
        for where, cpus in (("pinned", setup.cpus[-1:]), ("unpinned", setup.cpus)):
            for pid in pids:
                pin(pid, cpus)
            for consumer, found in _rounds(rounds, addresses, cpus, operations).items():
                label = CONSUMERS[consumer]
                section.tables.append(_table(f"**From a {label} consumer, {where}**, p50 in µs", *found))
                if where == "pinned" and consumer != RAW:
                    for what, whole in zip(("32 B", "16 MiB by arena"), found, strict=True):
                        section.targets += _targets(f"{label} consumer, {what}", whole)
    return section


def _sockets(setup: Setup, stack: contextlib.ExitStack) -> tuple[list[str], list[int]]:
    """Start chains of servers of packets, which have one connection each; return their addresses and processes."""
    addresses, pids = [], []
    for length in LENGTHS:
        lower: tuple[Path, ...] = ()
        for _ in range(length):
            path = setup.new_directory() / "socket"
            pids.append(stack.enter_context(peer(RAW, path, *lower)))
            lower = (path,)
        addresses.append(str(path))
    return addresses, pids


def _configuration() -> str:
    """Return that of containers of which each consumes the one before it."""
    lower, parts = "c1/echo", ["[c1.null]\n"]
    for length in LENGTHS[1:]:
        parts.append(f'[c{length}.relay.x]\nlower = "{lower}"\n')
        lower = f"c{length}/x"
    return "".join(parts)


def _rounds(
    rounds: int, addresses: dict[str, list[str]], cpus: list[int], operations: list[tuple[str, int, int]]
) -> dict[str, list[list[float]]]:
    """Return, for each consumer, for each operation, the p50 of each length.  A raw packet is small."""
    asked = {name: operations[:1] if name == RAW else operations for name in addresses}
    measured = [{name: call(name, at, cpus, asked[name]) for name, at in addresses.items()} for _ in range(rounds)]
    return {
        name: [
            [statistics.median(each[name][what][place]["p50"] for each in measured) for place in range(len(LENGTHS))]
            for what in range(len(asked[name]))
        ]
        for name in addresses
    }


def _table(caption: str, small: Sequence[float], large: Sequence[float] = ()) -> Table:
    header = ("containers", "32 B", "this hop", "hop / first", "hop / second")
    table = Table(caption, (*header, "16 MiB", "16 MiB / one container") if large else header)
    hops = _hops(small)
    for place, length in enumerate(LENGTHS):
        of_second = times(hops[place] / hops[1]) if place else "-"
        cells = microseconds(small[place]), microseconds(hops[place]), times(hops[place] / hops[0]), of_second
        more = (microseconds(large[place]), times(large[place] / large[0])) if large else ()
        table.rows.append((str(length), *cells, *more))
    return table


def _targets(label: str, whole: Sequence[float]) -> list[Target]:
    first, *further = _hops(whole)
    return [
        Target(f"a chain from a {label}, pinned: hop {number} / first", hop / first, MOST_OF_FIRST)
        for number, hop in enumerate(further, 2)
    ]


def _hops(whole: Sequence[float]) -> list[float]:
    """Return what each container adds to the round trip; the first one all of it."""
    return [longer - shorter for shorter, longer in itertools.pairwise([0, *whole])]
