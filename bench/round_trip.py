"""One request and its reply: ldmfs beside plain pyfuse3, mfusepy and C libfuse."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from .report import Section, Table, Target, microseconds, times
from .servers import CONTENDERS, BenchError, Setup, consume, pid_of, pin, plain, tree

LDMFS, PYFUSE3, MFUSEPY, C = "ldmfs", "plain pyfuse3", "mfusepy", "C libfuse"

OPERATIONS = (
    ("write+read, 32 B", "exchange", 32),
    ("write+read, 64 KiB", "exchange", 64 << 10),
    ("open+write+read+close, 32 B", "session", 32),
)
TARGET_OPERATION = OPERATIONS[0][0]
MOST_OF_C, LEAST_OF_PYFUSE3 = 2.2, 2.8

ABOUT = """\
A consumer (`consumer.py`, one process, one thread) sends messages to an echo device and reads them back. Contenders:

- **ldmfs**: `null/echo`, a plain handler, in a container that a supervisor started
- **plain pyfuse3**: the same in pyfuse3 with its own session loop under trio
- **mfusepy**: the same over the high level of libfuse, single-threaded
- **C libfuse**: the same in C on the low level of libfuse, single-threaded, compiled with `gcc -O2`

Unpinned, most of the time is the waking of another CPU, and it varies with where the scheduler puts the two.

All four serve the same FUSE requests (also FLUSH and RELEASE), with direct I/O, and let the kernel keep names and
attributes for 300 s. \
"""


@dataclass
class Server:
    """A contender that runs: the file to open, and the process that answers."""

    name: str
    file: Path
    pid: int


def measure(setup: Setup) -> Section:
    """Measure all operations on all contenders, pinned and not, in rounds that take each contender in turn."""
    rounds, count = (3, 500) if setup.quick else (7, 2000)
    how = (
        f"{rounds} rounds take each contender in turn, with {count} operations each\n"
        "(of 64 KiB a quarter of that); p50 and p99 are the medians over the rounds."
    )
    section = Section("Round trip", ABOUT + how)
    with contextlib.ExitStack() as stack:
        servers = _start(setup, stack, section)
        for where, cpus in (("pinned", setup.cpus[-1:]), ("unpinned", setup.cpus)):
            for server in servers:
                pin(server.pid, cpus)
            for label, what, size in OPERATIONS:
                found = _rounds(
                    servers, rounds, what=what, size=size, count=count if size < 4096 else count // 4, cpus=cpus
                )
                section.tables.append(_table(f"{label}, {where}", where, found))
                if where == "pinned" and label == TARGET_OPERATION:
                    section.targets = _targets(found)
    return section


def _start(setup: Setup, stack: contextlib.ExitStack, section: Section) -> list[Server]:
    root = stack.enter_context(tree(setup, "[null.null]\n"))
    servers = [Server(LDMFS, root / "null" / "echo", pid_of(root, "null"))]
    commands: dict[str, list[str | Path]] = {
        PYFUSE3: [sys.executable, CONTENDERS / "plain_pyfuse3.py"],
        MFUSEPY: [sys.executable, CONTENDERS / "plain_mfusepy.py"],
        C: [setup.directory / "plain_c"],
    }
    for name, command in commands.items():
        try:
            _require(name, setup.directory / "plain_c")
        except BenchError as error:
            section.missing.append(f"{name}: {error}")
            continue
        directory = setup.new_directory()
        servers.append(Server(name, directory / "echo", stack.enter_context(plain(command, directory))))
    return servers


def _require(name: str, binary: Path) -> None:
    """Raise `BenchError` where a contender cannot be had; compile the one in C."""
    if name == MFUSEPY and importlib.util.find_spec("mfusepy") is None:
        raise BenchError("the package mfusepy is not installed; run: pip install 'ldmfs[bench]'")
    if name == C:
        if shutil.which("gcc") is None or shutil.which("pkg-config") is None:
            raise BenchError("gcc and pkg-config are needed; install gcc, pkg-config and libfuse3-dev")
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=False
        )
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", str(CONTENDERS / "plain_c.c"), "-o", str(binary)]
        done = subprocess.run([*command, *flags.stdout.split()], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"it could not be compiled: {done.stderr.strip()[:200]}")


Found = dict[str, dict[str, float]]


def _rounds(servers: list[Server], rounds: int, **job: object) -> Found:
    samples: dict[str, dict[str, list[int]]] = {server.name: defaultdict(list) for server in servers}
    for _ in range(rounds):
        for server in servers:
            for key, value in consume(path=str(server.file), **job).items():
                samples[server.name][key].append(value)
    return {name: {key: statistics.median(values) for key, values in each.items()} for name, each in samples.items()}


def _table(label: str, where: str, found: Found) -> Table:
    what = (
        "all threads of the server and the consumer on one CPU"
        if where == "pinned"
        else "server and consumer on any CPU"
    )
    table = Table(f"**{label}** ({what}), in µs", ("", "p50", "p99", "p50 / C", "plain pyfuse3 / p50"))
    for name, values in found.items():
        of_c = times(values["p50"] / found[C]["p50"]) if C in found else "-"
        of_pyfuse3 = times(found[PYFUSE3]["p50"] / values["p50"]) if PYFUSE3 in found else "-"
        table.rows.append((name, microseconds(values["p50"]), microseconds(values["p99"]), of_c, of_pyfuse3))
    return table


def _targets(found: Found) -> list[Target]:
    targets, own = [], found[LDMFS]["p50"]
    if C in found:
        targets.append(Target(f"{TARGET_OPERATION}, pinned: ldmfs / C libfuse", own / found[C]["p50"], MOST_OF_C))
    if PYFUSE3 in found:
        ratio = found[PYFUSE3]["p50"] / own
        targets.append(
            Target(f"{TARGET_OPERATION}, pinned: plain pyfuse3 / ldmfs", ratio, LEAST_OF_PYFUSE3, at_least=True)
        )
    return targets
