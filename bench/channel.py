"""The direct channel: ldmfs beside other ways of one process to call another, with small and with large messages."""

from __future__ import annotations

import contextlib
import importlib.util
import select
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .report import Section, Table, Target, microseconds, times
from .servers import HERE, START_SECONDS, BenchError, Setup, call, pid_of, pin, spawned, tree

MIB = 1 << 20
SMALL, TOGETHER, LARGE, HUGE = ("once", 32), ("many", 32), ("once", MIB), ("once", 16 * MIB)
OPERATIONS = (SMALL, TOGETHER, LARGE, HUGE)

LDMFS, LENT, INLINE, RAW, PYZMQ, DBUS = "ldmfs", "ldmfs lent", "ldmfs inline", "packets", "pyzmq", "dbus-fast"
MOST_OF_RAW, MOST_OF_PYZMQ, LEAST_OF_ARENA = 2, 1, 5


@dataclass(frozen=True)
class Contender:
    """A way of calling: what it is called in the tables, what it needs, and what it is not asked to do."""

    label: str
    module: str = ""
    skips: tuple[tuple[str, int], ...] = ()


CONTENDERS = {
    RAW: Contender("raw socket pair, SOCK_SEQPACKET", skips=(LARGE, HUGE)),
    "stream": Contender("raw socket pair, SOCK_STREAM", skips=(SMALL, TOGETHER)),
    LDMFS: Contender("ldmfs, blocking"),
    "ldmfs trio": Contender("ldmfs, trio"),
    LENT: Contender("ldmfs, blocking, replies lent", skips=(SMALL, TOGETHER)),
    INLINE: Contender("ldmfs, blocking, inline", skips=(SMALL, TOGETHER)),
    "ldmfs file": Contender("ldmfs, the file", skips=(TOGETHER, LARGE, HUGE)),
    PYZMQ: Contender("pyzmq, REQ/REP over ipc", "zmq"),
    "pynng": Contender("pynng, Req0/Rep0 over ipc", "pynng"),
    DBUS: Contender("dbus-fast, over dbus-daemon", "dbus_fast"),
    "grpcio": Contender("grpcio, over a Unix socket", "grpc"),
    "multiprocessing": Contender("multiprocessing.connection"),
}

ABOUT = """\
One process calls an echo server in another one (`contenders/peers.py`), in each of these ways, all of them in Python
and over Unix sockets. The server of ldmfs is `null/echo`, a plain handler, in a container that a supervisor started.
dbus-fast needs a message bus, a third process on the way, which is pinned with the others. "64 at once" sends 64
requests before the first reply is taken, where the way allows it (completion handlers, tasks, futures); the time is
that of one. Requests and replies are `bytes` of the caller's own, so that by arena, too, data is copied twice: in and
out; a reply that is lent is a view of the memory that the provider left it in, and copied once less. A reply is kept
until the next one is there. What is not in a table cannot do it: a packet of the raw socket ends at about 200 KiB, a
message to the file at 1 MiB - 4 KiB.

"""

BUS = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
"""


@dataclass
class Server:
    """The server of a contender: its address, its processes."""

    name: str
    address: str
    pids: list[int]


@dataclass
class Samples:
    """The times of one operation by one contender, of all rounds, in ns."""

    p50s: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)

    @property
    def p50(self) -> float:
        """The median of the rounds' medians."""
        return statistics.median(self.p50s)

    @property
    def p99(self) -> float:
        """The median of the rounds' 99th percentiles."""
        return statistics.median(self.p99s)


Found = dict[str, dict[tuple[str, int], Samples]]


def measure(setup: Setup) -> Section:
    """Measure all operations by all contenders, pinned and not, in rounds that take each contender in turn."""
    rounds, counts = (2, (300, 10, 20, 5)) if setup.quick else (5, (1500, 40, 40, 7))
    how = (
        f"{rounds} rounds take each contender in turn, with {counts[0]} calls of 32 B, {counts[1]} of 64 times 32 B,\n"
        f"{counts[2]} of 1 MiB and {counts[3]} of 16 MiB, after some that do not count; p50 and p99 are the medians\n"
        "over the rounds."
    )
    section = Section("The direct channel", ABOUT + how)
    with contextlib.ExitStack() as stack:
        servers = _start(setup, stack, section)
        for where, cpus in (("pinned", setup.cpus[-1:]), ("unpinned", setup.cpus)):
            found = _rounds(servers, rounds, counts, cpus)
            section.tables += [_small_table(where, found), _large_table(where, found)]
            if where == "pinned":
                section.targets = _targets(found)
    return section


# -- servers


def _start(setup: Setup, stack: contextlib.ExitStack, section: Section) -> list[Server]:
    root = stack.enter_context(tree(setup, "[null.null]\n"))
    servers = []
    for name, contender in CONTENDERS.items():
        if name.startswith(LDMFS):
            servers.append(Server(name, f"{root}:null/echo", [pid_of(root, "null")]))
            continue
        try:
            _require(name, contender)
        except BenchError as error:
            section.missing.append(f"{contender.label}: {error}")
            continue
        path = setup.new_directory() / "socket"
        bus = [stack.enter_context(_bus(path))] if name == DBUS else []
        servers.append(Server(name, str(path), [*bus, stack.enter_context(peer(name, path))]))
    return servers


def _require(name: str, contender: Contender) -> None:
    """Raise `BenchError` where a contender cannot be had."""
    if contender.module and importlib.util.find_spec(contender.module) is None:
        raise BenchError(f"the package {name} is not installed; run: pip install 'ldmfs[bench]'")
    if name == DBUS and shutil.which("dbus-daemon") is None:
        raise BenchError("the message bus is not installed; run: apt-get install dbus-daemon")


@contextlib.contextmanager
def _bus(path: Path) -> Iterator[int]:
    """Run a message bus, for this user only, that listens at `path`; yields its process."""
    configuration = path.with_suffix(".conf")
    configuration.write_text(BUS.format(path=path))
    command = ["dbus-daemon", f"--config-file={configuration}", "--nofork", "--nopidfile", "--print-address"]
    with _server(command[0], command, configuration) as pid:
        yield pid


def peer(name: str, path: Path, *lower: Path) -> contextlib.AbstractContextManager[int]:
    """Run a server of `contenders/peers.py` at `path`; yields its process."""
    return _server(name, [sys.executable, "-m", "bench.contenders.peers", name, str(path), *map(str, lower)], path)


@contextlib.contextmanager
def _server(name: str, command: list[str], path: Path) -> Iterator[int]:
    """Run a server, which prints a line when it is ready; yields its process."""
    log = path.with_suffix(".log")
    with (
        log.open("w") as errors,
        spawned(command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], START_SECONDS)[0] or not process.stdout.readline():
            raise BenchError(f"the server of {name} did not come up: {log.read_text().strip().rpartition(chr(10))[2]}")
        yield process.pid


# -- rounds


def _rounds(servers: list[Server], rounds: int, counts: tuple[int, ...], cpus: list[int]) -> Found:
    found: Found = {server.name: defaultdict(Samples) for server in servers}
    for pid in {pid for server in servers for pid in server.pids}:
        pin(pid, cpus)
    for _ in range(rounds):
        for server in servers:
            skips = CONTENDERS[server.name].skips
            asked = [(*each, count) for each, count in zip(OPERATIONS, counts, strict=True) if each not in skips]
            for (what, size, _), (one,) in zip(asked, call(server.name, [server.address], cpus, asked), strict=True):
                samples = found[server.name][what, size]
                samples.p50s.append(one["p50"])
                samples.p99s.append(one["p99"])
    return found


# -- reports


def _small_table(where: str, found: Found) -> Table:
    header = ("", "p50", "p99", "p50 / raw", "64 at once, each", "each / raw")
    table = Table(f"**32 B, {where}** ({_explained(where)}), in µs", header)
    raw = found[RAW]
    for name, each in found.items():
        if SMALL not in each:
            continue
        cells = [microseconds(each[SMALL].p50), microseconds(each[SMALL].p99), times(each[SMALL].p50 / raw[SMALL].p50)]
        if TOGETHER in each:
            cells += [microseconds(each[TOGETHER].p50), times(each[TOGETHER].p50 / raw[TOGETHER].p50)]
        table.rows.append((CONTENDERS[name].label, *cells, *["-"] * (len(header) - 1 - len(cells))))
    return table


def _large_table(where: str, found: Found) -> Table:
    header = ("", "1 MiB", "1 MiB / by arena", "16 MiB", "16 MiB / by arena")
    table = Table(f"**Large, {where}** ({_explained(where)}), p50 in µs", header)
    own = found[LDMFS]
    for name, each in found.items():
        if LARGE not in each:
            continue
        by_arena = ", by arena" if name in (LDMFS, LENT, "ldmfs trio") else ""
        cells = [
            cell
            for what in (LARGE, HUGE)
            for cell in (microseconds(each[what].p50), times(each[what].p50 / own[what].p50))
        ]
        table.rows.append((CONTENDERS[name].label + by_arena, *cells))
    return table


def _explained(where: str) -> str:
    return "all processes on one CPU" if where == "pinned" else "all processes on any CPU"


def _targets(found: Found) -> list[Target]:
    own, raw = found[LDMFS], found[RAW]
    targets = [Target("32 B, pinned: ldmfs, blocking / raw socket pair", own[SMALL].p50 / raw[SMALL].p50, MOST_OF_RAW)]
    if PYZMQ in found:
        ratio = own[SMALL].p50 / found[PYZMQ][SMALL].p50
        targets.append(Target("32 B, pinned: ldmfs, blocking / pyzmq", ratio, MOST_OF_PYZMQ))
    ratio = found[INLINE][HUGE].p50 / own[HUGE].p50
    return [
        *targets,
        Target("16 MiB, pinned: ldmfs, blocking: inline / by arena", ratio, LEAST_OF_ARENA, at_least=True),
    ]
