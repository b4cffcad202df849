"""What requests cost with many devices and with many open handles: the cost of one must not grow."""

from __future__ import annotations

import contextlib
import resource
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .report import Section, Table, Target, microseconds, times
from .servers import CONTENDERS, Setup, consume, pin, provider

DEVICES = (10, 1_000, 100_000)
HANDLES = 10_000
AT_MOST = 1.5
"""How much more the largest may cost than the smallest; the rest is noise and processor caches."""

SOME_NAMES = 10
LOOKUPS, LOOKUP_ABSENT, READDIR, OPEN, EXCHANGE = (
    "lookup of a name", "lookup of a name that is not there", "readdir, an entry", "open+close", "write+read, 32 B",
)  # fmt: skip

ABOUT = f"""\
`many.py` makes the devices, each an object of its own, in a container that is run by hand; server and consumer are
pinned to one CPU. A lookup is the first `stat` of a name; readdir is `os.listdir` of the whole directory, divided by
the number of entries (names and attributes, since the kernel asks for both); open+close and write+read are on
{SOME_NAMES} of the devices, evenly spread. Rounds take each size in turn; medians, in µs. The target is that the
largest costs at most {AT_MOST} times the smallest."""


def measure(setup: Setup) -> Section:
    """Measure with 10, 1,000 and 100,000 devices, then with 10,000 open handles."""
    section = Section("Scale", ABOUT)
    sizes = DEVICES[:2] if setup.quick else DEVICES
    _many_devices(setup, section, sizes)
    _many_handles(setup, section)
    return section


def _many_devices(setup: Setup, section: Section, sizes: tuple[int, ...]) -> None:
    rounds = 2 if setup.quick else 5
    found: dict[int, dict[str, list[float]]] = {devices: defaultdict(list) for devices in sizes}
    smallest, *larger = sizes
    with contextlib.ExitStack() as stack:
        running = {devices: stack.enter_context(_served(setup, devices)) for devices in larger}
        for number in range(rounds):  # lookups first: a listing would tell the kernel all names
            with _served(setup, smallest) as directory:  # a new mount, since a name is looked up once in each
                found[smallest][LOOKUPS] += _lookups(setup, directory, smallest, 0)
            for devices, directory in running.items():
                found[devices][LOOKUPS] += _lookups(setup, directory, devices, number)
        running = {smallest: stack.enter_context(_served(setup, smallest))} | running
        for _ in range(rounds):
            for devices, directory in running.items():
                _others(setup, found[devices], directory, devices)
    table = Table("**Many devices**", ("", *(f"{devices:,}" for devices in sizes), "largest / smallest"))
    for what in (LOOKUPS, LOOKUP_ABSENT, READDIR, OPEN, EXCHANGE):
        values = [statistics.median(found[devices][what]) for devices in sizes]
        ratio = values[-1] / values[0]
        table.rows.append((what, *map(microseconds, values), times(ratio)))
        section.targets.append(Target(f"{what}, {sizes[-1]:,} devices / {sizes[0]}", ratio, AT_MOST))
    section.tables.append(table)


@contextlib.contextmanager
def _served(setup: Setup, devices: int) -> Iterator[Path]:
    with provider(setup, CONTENDERS / "many.py", f"count={devices}", devices) as (directory, pid):
        pin(pid, setup.cpus[-1:])
        yield directory


def _lookups(setup: Setup, directory: Path, devices: int, number: int) -> list[float]:
    """Measure lookups of some names, others for another `number`."""
    paths = _spread(directory, devices, SOME_NAMES, number)
    return list(consume(what="lookup", paths=paths, cpus=setup.cpus[-1:]))


def _others(setup: Setup, found: dict[str, list[float]], directory: Path, devices: int) -> None:
    """Measure each other operation once."""
    cpus, count = setup.cpus[-1:], 300 if setup.quick else 2000
    some = _spread(directory, devices, SOME_NAMES)
    jobs: dict[str, dict[str, Any]] = {
        LOOKUP_ABSENT: {"what": "absent", "directory": str(directory), "count": count},
        READDIR: {"what": "listing", "directory": str(directory), "count": max(1, min(50, 5000 // devices))},
        OPEN: {"what": "open_close", "paths": some, "count": count},
        EXCHANGE: {"what": "exchange", "path": some[-1], "size": 32, "count": count},
    }
    for what, job in jobs.items():
        found[what].append(consume(cpus=cpus, **job)["p50"])


def _many_handles(setup: Setup, section: Section) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < HANDLES + 100:
        section.missing.append(f"{HANDLES:,} open handles: a process may have only {hard:,} (ulimit -Hn)")
        return
    devices, cpus = DEVICES[1], setup.cpus[-1:]
    rounds, count = (2, 300) if setup.quick else (5, 2000)
    samples: dict[tuple[str, int], list[float]] = defaultdict(list)
    with _served(setup, devices) as directory:
        paths = _spread(directory, devices, devices)
        some = _spread(directory, devices, SOME_NAMES)
        for _ in range(rounds):
            for handles in (0, HANDLES):
                about: dict[str, Any] = {"held": {"paths": paths, "count": handles}, "cpus": cpus, "count": count}
                samples[OPEN, handles].append(consume(what="open_close", paths=some, **about)["p50"])
                samples[EXCHANGE, handles].append(consume(what="exchange", path=some[-1], size=32, **about)["p50"])
    table = Table(
        f"**Many open handles**, over {devices:,} devices, by the same consumer",
        ("", "none", f"{HANDLES:,}", "largest / smallest"),
    )
    for what in (OPEN, EXCHANGE):
        few, many = (statistics.median(samples[what, handles]) for handles in (0, HANDLES))
        table.rows.append((what, microseconds(few), microseconds(many), times(many / few)))
        section.targets.append(Target(f"{what}, {HANDLES:,} open handles / none", many / few, AT_MOST))
    section.tables.append(table)


def _spread(directory: Path, devices: int, wanted: int, shift: int = 0) -> list[str]:
    """Return the paths of `wanted` devices, evenly spread; others for another `shift`."""
    return [f"{directory}/device-{number * devices // wanted + shift}" for number in range(wanted)]
