"""Requests per second over several containers with as many consumers."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
from pathlib import Path

from .report import Section, Table, times
from .servers import BenchError, Setup, consumer, spawned, tree

CONTAINERS = (1, 2, 4)
SIZE = 32


def measure(setup: Setup) -> Section:
    """Let 1, 2 and 4 consumers send as much as they can, each to a container of its own."""
    rounds, seconds = (2, 0.3) if setup.quick else (5, 1.0)
    section = Section(
        "Throughput",
        f"Consumers write {SIZE} B and read the reply as often as they can for {seconds:g} s, each on the echo device\n"
        "of a container of its own; nothing is pinned. A request is one write with its read. Median of "
        f"{rounds} rounds.\nThis run had {len(setup.cpus)} CPU(s) for all consumers and containers together.",
    )
    table = Table("**Requests per second**", ("containers and consumers", "all together", "of each", "of one alone"))
    with tree(setup, "".join(f"[c{number}.null]\n" for number in range(max(CONTAINERS)))) as root:
        found: dict[int, list[int]] = {containers: [] for containers in CONTAINERS}
        for _ in range(rounds):
            for containers in CONTAINERS:
                files = [root / f"c{number}" / "echo" for number in range(containers)]
                found[containers].append(sum(_together(files, seconds, setup.cpus)) / seconds)  # type: ignore[arg-type]
    alone = statistics.median(found[1])
    for containers, sums in found.items():
        total = statistics.median(sums)
        cells = f"{total:,.0f}", f"{total / containers:,.0f}", f"{times(total / alone)} times"
        table.rows.append((str(containers), *cells))
    section.tables.append(table)
    return section


def _together(files: list[Path], seconds: float, cpus: list[int]) -> list[int]:
    """Run a consumer on each file, begun at one time; return how many requests each has sent."""
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                spawned(
                    consumer(what="throughput", path=str(file), size=SIZE, seconds=seconds, cpus=cpus),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for file in files
        ]
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise BenchError("a consumer did not start")
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [json.loads(process.communicate()[0]) for process in processes]
