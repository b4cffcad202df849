"""Taking over: how long the users of an open file wait when the process behind it is killed."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from pathlib import Path
from time import perf_counter_ns as now

from .report import Section, Table, Target
from .servers import START_SECONDS, BenchError, Setup, pid_of, pin, tree

CONTAINERS = {"cold": ("a new process", 250.0), "standby": ("a standby", 20.0)}
"""Who takes over, and the most that it may take at the median, in ms."""

CONFIGURATION = """\
[cold]
max_crashes = 1000000
max_pause = "0 s"
[cold.null]
[standby]
standby = true
max_crashes = 1000000
max_pause = "0 s"
[standby.null]
"""

ABOUT = """\
A consumer has `null/echo` open. Its container's process is killed (SIGKILL), and at once the consumer sends a request
through the open file; the time is from before the kill to the reply, so until the supervisor has noticed, the next
instance has started, or been told to, and serves. Each kill waits for the standby to be there again.

"""


def measure(setup: Setup) -> Section:
    """Measure both ways, pinned and not."""
    kills = 5 if setup.quick else 40
    section = Section("Taking over", f"{ABOUT}{kills} kills each.")
    table = Table("**From the kill to the reply**, in ms", ("next instance", "", "p50", "p90", "longest"))
    with tree(setup, CONFIGURATION) as root:
        for where, cpus in (("pinned", setup.cpus[-1:]), ("unpinned", setup.cpus)):
            _pin_all(root, cpus)
            for container, (label, most) in CONTAINERS.items():
                took = sorted(_kill(root, container) / 1e6 for _ in range(kills))
                p50, p90 = statistics.median(took), took[len(took) * 9 // 10]
                table.rows.append((label, where, *(f"{value:.1f}" for value in (p50, p90, took[-1]))))
                section.targets.append(Target(f"taking over by {label}, {where}: ms / {most:g} ms", p50 / most, 1))
    section.tables.append(table)
    return section


def _kill(root: Path, container: str) -> int:
    """Kill a container's process and return how long it took until its file answered, in ns."""
    _wait_until_ready(root, container)
    pid = pid_of(root, container)
    fd = os.open(root / container / "echo", os.O_RDWR)
    try:
        os.write(fd, b"before")
        os.read(fd, 100)
        os.read(fd, 100)
        begin = now()
        os.kill(pid, signal.SIGKILL)
        while True:
            try:
                os.write(fd, b"after")
                reply = os.read(fd, 100)
                break
            except ConnectionAbortedError:  # the process had read it before the signal came
                continue
        took = now() - begin
    finally:
        os.close(fd)
    if reply != b"after":
        raise BenchError(f"{reply!r} came back from a container that was taken over")
    return took


def _wait_until_ready(root: Path, container: str) -> None:
    """Wait until the container runs, and its standby waits, if it is to have one."""
    for _ in range(START_SECONDS * 100):
        graph = json.loads((root / "system" / "graph").read_bytes())
        this = next(each for each in graph["containers"] if each["name"] == container)
        if this["state"] == "running" and (container != "standby" or this["standby"]):
            return
        time.sleep(0.01)
    raise BenchError(f"container {container} is not ready after {START_SECONDS} s")


def _pin_all(root: Path, cpus: list[int]) -> None:
    """Let the consumer and every process of the tree, and those that they start, run on these CPUs only."""
    supervisor = pid_of(root, "system")
    pids = [os.getpid(), supervisor]
    for pid in pids:
        pin(pid, cpus)
        if pid != os.getpid():
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pids += map(int, children)
