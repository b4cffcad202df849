"""One run: a tree, its load, the killer, and what is left after it."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from mounted.trees import Tree
from mounted.waiting import wait_until

from ldmfs.core.state import StateArea
from ldmfs.fuse.handover import KEPT

from .killer import HANG_SECONDS, Killer
from .ledger import Ledger
from .load import POLICIES, SLOTS, STANDBY, Process


class Run:
    """Everything from the mount to the umount; `run` returns what was wrong."""

    def __init__(self, tree: Tree, configuration: str, seed: int) -> None:
        self.tree = tree
        self.configuration = configuration
        self.seed = seed
        self.wrong: list[str] = []
        self.ledger = Ledger(len(SLOTS), tree.base / "broken")
        self.traces = tree.base / "traces"
        self.processes = [Process(slot, tree.root, self.ledger, seed, self.traces) for slot in range(len(SLOTS))]
        self.killer = Killer(tree, self.ledger, self.processes)

    def run(self, seconds: float) -> list[str]:
        """Mount, kill for so long, look, unmount."""
        done = self.tree.mount(self.configuration)
        if done.returncode:
            return [done.stderr]
        self.tree.containers()  # libfuse's pipe is made with the first request
        for name in POLICIES:
            os.listdir(self.tree.root / name)
        self.before = {name: self._descriptors(pid) for name, pid in self._pids().items()}
        try:
            self._load(seconds)
            if not self.wrong:
                self._check(self._look_at_consumers)
                self._check(self._look_at_records)
                self._check(self._look_at_errors)
                self._check(self._look_at_states)
                self._check(self._look_at_descriptors)
            if self.wrong:
                self._tell_of_containers()
        finally:
            self._kill_consumers()
            self._check(self.tree.end)
        return self.wrong

    def _load(self, seconds: float) -> None:
        for process in self.processes:
            process.start()
        self.killer.run(self.seed, seconds)
        self.ledger.stop()
        deadline = time.monotonic() + HANG_SECONDS
        running = list(self.processes)
        while running and time.monotonic() < deadline:
            running = [process for process in running if not process.ended()]
            time.sleep(0.01)
        self.running = running
        self.wrong += self.ledger.broken()
        for process in running:
            self.wrong.append(f"hangs: {process.dump()}")
        if running:
            with contextlib.suppress(OSError):
                self.wrong.append(self.traces.read_text())
        print(f"{self.ledger.done()} exchanges, actions {dict(self.killer.actions)}, kills {dict(self.killer.kills)}")
        for process in self.processes:
            done, errors = self.ledger.done(process.slot), self.ledger.errors(process.slot)
            print(f"  {process.name:<32} {done:>8} exchanges {errors:>5} errors")

    def _check(self, check: Callable[[], object]) -> None:
        try:
            check()
        except (AssertionError, OSError) as error:
            self.wrong.append(f"{type(error).__name__}: {error}")

    # -- what is left

    def _look_at_consumers(self) -> None:
        def left() -> list[str]:
            return [
                f"{name}/{device['name']}: {device['consumers']}"
                for name, container in self.tree.containers().items()
                for device in container.get("devices", ())
                if name in POLICIES and device["consumers"]
            ]

        with contextlib.suppress(AssertionError):
            wait_until(lambda: not left(), what="the close of each consumer")
        assert not (found := left()), f"consumers that nobody closes: {found}"
        for name, container in self.tree.containers().items():
            if name in POLICIES:
                assert container["state"] == "running", container
                kills = self.killer.kills[name]
                more = self.killer.standbys if name == STANDBY else 0
                assert kills <= container["restarts"] <= kills + more, f"{container} was killed {kills} times"

    def _look_at_records(self) -> None:
        """Each consumer that was opened is closed, once in a process, and once more only where that was killed."""
        opened: dict[str, set[str]] = defaultdict(set)
        closed: dict[str, list[str]] = defaultdict(list)
        for line in self.tree.log.read_text().splitlines():
            device, what, consumer, pid = line.split()
            at = f"{device.partition('/')[0]} {consumer}"
            if what == "open":
                opened[at].add(pid)
            elif what == "close":
                closed[at].append(pid)
        unclosed = [at for at in opened if at not in closed]
        assert not unclosed, f"close handlers that never ran: {unclosed[:20]}"
        again = Counter(len(pids) - 1 for pids in closed.values() if len(pids) > 1)
        assert all(len(set(pids)) == len(pids) for pids in closed.values()), "a close handler ran twice in one process"
        print(f"  {len(opened)} consumers, close handlers that were killed and run again: {dict(again)}")
        assert sum(again.values()) <= 4 * sum(self.killer.kills.values())

    def _look_at_errors(self) -> None:
        kills = self.killer.kills
        for process in self.processes:
            if process.kind.path != "file":
                continue
            errors = self.ledger.errors(process.slot)
            assert errors <= kills[process.container], f"{process.name}: {errors} errors of {dict(kills)}"

    def _look_at_states(self) -> None:
        """No entry is left in any state area, which is looked at as the next instance would."""
        found = 0
        supervisor = self.tree.supervisor()
        for fd in Path(f"/proc/{supervisor}/fd").iterdir():
            if "memfd:ldmfs-state" not in os.readlink(fd):
                continue
            found += 1
            with open(fd, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping, memoryview(mapping) as view:
                area = StateArea(view)
                left = area.recover()
                files = [key for key in area.files if not key.startswith(KEPT)]  # replies are kept for a while
                del area
                entries = (*left.consumers, left.damaged or (), left.store_damage, files)
                assert not any(entries), f"a state area has {left}, and {files} of files that are closed"
        assert found == len(POLICIES), f"{found} state areas"

    def _look_at_descriptors(self) -> None:
        """No process has more descriptors than before the load."""
        assert self.tree.ldmfs("restart", "upper").returncode == 0  # which keeps a connection, and arenas, to another
        self._look_at_descriptors_of(*POLICIES)
        for name in POLICIES:  # an older template lives as long as its processes
            assert self.tree.ldmfs("restart", name).returncode == 0
        self._look_at_descriptors_of("supervisor")

    def _look_at_descriptors_of(self, *names: str) -> None:
        def more() -> dict[str, Counter[str]]:
            pids = self._pids()
            now = {name: self._descriptors(pids[name]) - self.before[name] for name in names}
            return {name: found for name, found in now.items() if found}

        with contextlib.suppress(AssertionError):
            wait_until(lambda: not more())
        assert not more(), f"descriptors that were not there before: {more()}"

    def _pids(self) -> dict[str, int]:
        return {"supervisor": self.tree.supervisor(), **{name: self.tree.pid(name) for name in POLICIES}}

    @staticmethod
    def _descriptors(pid: int) -> Counter[str]:
        """Return how many descriptors of each kind a process has."""
        found: Counter[str] = Counter()
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found[os.readlink(fd).partition(":[")[0]] += 1
        return found

    # -- when something is wrong

    def _tell_of_containers(self) -> None:
        for log in sorted((self.tree.root / ".ldmfs/log").iterdir()):
            self.wrong.append(f"{log.name}: {log.read_text()[-3000:]}")

    def _kill_consumers(self) -> None:
        for process in self.processes:
            with contextlib.suppress(OSError):  # it has ended and was waited for
                if os.waitpid(process.pid, os.WNOHANG)[0] == 0:
                    os.kill(process.pid, signal.SIGKILL)
                    os.waitpid(process.pid, 0)
