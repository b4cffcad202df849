"""What a container costs that does nothing: memory and start time."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .report import Section, Table
from .servers import BenchError, Setup, pid_of, run_ldmfs, take_down, tree

ABOUT = """\
A container with the plug-in `null`. Memory is PSS of `/proc/<pid>/smaps_rollup`, in which a page that n processes
share counts as 1/n in each."""


def measure(setup: Setup) -> Section:
    """Measure memory beside 1 and 8 containers, and the time from the command to being ready."""
    repeats = 3 if setup.quick else 7
    section = Section("An idle container", ABOUT)
    section.tables = [_memory(setup), _start(setup, repeats)]
    return section


def _memory(setup: Setup) -> Table:
    table = Table(
        "**Memory (PSS)**, in MiB", ("containers in the tree", "a container (median)", "the supervisor", "all")
    )
    for containers in (1, 8):
        with tree(setup, _configuration(containers)) as root:
            each = [_pss(pid_of(root, f"c{number}")) for number in range(containers)]
            supervisor = _pss(pid_of(root, "system"))
        cells = statistics.median(each), supervisor, sum(each) + supervisor
        table.rows.append((str(containers), *(f"{kib / 1024:.1f}" for kib in cells)))
    return table


def _start(setup: Setup, repeats: int) -> Table:
    table = Table(f"**Start time**, in ms, of {repeats} times", ("", "median", "fastest", "slowest"))
    with tree(setup, _configuration(1)) as root:

        def control(command: str) -> None:
            (root / "system" / "control").write_text(command)

        _timed(table, "`start` by system/control, until ready", repeats, lambda: control("start c0"),
               before=lambda: control("stop c0"))  # fmt: skip
        _timed(table, "`restart` by system/control, until ready again", repeats, lambda: control("restart c0"))
    for containers in (1, 4):
        root = setup.new_directory() / "root"
        file = setup.new_directory() / "bench.toml"
        file.write_text(_configuration(containers))
        try:
            _timed(
                table, f"`ldmfs mount --background` with {containers} container(s)", repeats,
                lambda root=root, file=file: _mount(root, file),  # type: ignore[misc]
                after=lambda root=root: _umount(root),  # type: ignore[misc]
            )  # fmt: skip
        finally:
            take_down(root)
    for code, label in (
        ("pass", "an interpreter that does nothing"),
        ("import trio, pyfuse3", "one that imports trio and pyfuse3"),
    ):
        _timed(table, f"for comparison: {label}", repeats, lambda code=code: _python(code))  # type: ignore[misc]
    return table


def _timed(
    table: Table, label: str, repeats: int, call: Callable[[], None],
    before: Callable[[], None] = lambda: None, after: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    took = []
    for _ in range(repeats):
        before()
        begin = time.perf_counter()
        call()
        took.append((time.perf_counter() - begin) * 1000)
        after()
    table.rows.append((label, *(f"{value:.0f}" for value in (statistics.median(took), min(took), max(took)))))


def _mount(root: Path, file: Path) -> None:
    done = run_ldmfs("mount", "--background", "--root", root, "--config", file)
    if done.returncode:
        raise BenchError(f"ldmfs mount failed: {done.stderr.strip()}")


def _umount(root: Path) -> None:
    run_ldmfs("umount", "--root", root)


def _python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], start_new_session=True, check=True)


def _configuration(containers: int) -> str:
    return "".join(f"[c{number}.null]\n" for number in range(containers))


def _pss(pid: int) -> int:
    """Return the PSS of a process in KiB."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
