"""The killer: what the seed decides, and what is done of it."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mounted.trees import Tree

from .ledger import Ledger
from .load import POLICIES, SLOTS, STANDBY, Process

HANG_SECONDS = 45.0
"""After which a consumer that gets nothing done is taken to hang."""

ACTIONS = {
    "container": 10, "consumer": 6, "both": 3, "containers": 1, "twice": 2, "standby": 2, "supervisor": 2,
    "upgrade": 2, "template": 1,
}  # fmt: skip
"""What is done, and how often."""


class Decision(NamedTuple):
    """After `gap` more exchanges, do `action` to a container and a consumer."""

    gap: int
    action: str
    container: str
    slot: int


def decisions(seed: int) -> Iterator[Decision]:
    """Yield what the seed decides."""
    chance = random.Random(seed)
    while True:
        yield Decision(
            chance.randrange(20, 2000),
            chance.choices(list(ACTIONS), list(ACTIONS.values()))[0],
            chance.choice(list(POLICIES)),
            chance.randrange(len(SLOTS)),
        )


class Killer:
    """Does what is decided."""

    def __init__(self, tree: Tree, ledger: Ledger, processes: list[Process]) -> None:
        self.tree = tree
        self.ledger = ledger
        self.processes = processes
        self.kills: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self.standbys = 0
        """Standbys that were killed, or instances that had been one a moment before."""
        self._since: dict[str, int] = dict.fromkeys(POLICIES, 0)

    def run(self, seed: int, seconds: float) -> bool:
        """Kill for a while; return whether all went well until then."""
        end = time.monotonic() + seconds
        for decision in decisions(seed):
            target = self.ledger.done() + decision.gap
            if not self._wait(lambda target=target: self.ledger.done() >= target, end):
                return time.monotonic() >= end and not self.ledger.broken()
            self.actions[decision.action] += 1
            getattr(self, f"do_{decision.action}")(decision, end)
        raise AssertionError

    # -- actions

    def do_container(self, decision: Decision, end: float) -> None:
        self.kill(decision.container, end)

    def do_consumer(self, decision: Decision, end: float) -> None:
        self.processes[decision.slot].kill()

    def do_both(self, decision: Decision, end: float) -> None:
        process = self.processes[decision.slot]
        self.kill(process.container, end)
        process.kill()

    def do_containers(self, decision: Decision, end: float) -> None:
        for container in POLICIES:
            self.kill(container, end)

    def do_twice(self, decision: Decision, end: float) -> None:
        """Kill the next instance too, while it starts."""
        pid = self.tree.pid(decision.container)
        if self.kill(decision.container, end) and self._wait(lambda: self.tree.pid(decision.container) != pid, end):
            self._kill_now(decision.container)
            self._since[decision.container] = self._served(decision.container)

    def do_standby(self, decision: Decision, end: float) -> None:
        """Kill the process that waits to take over, if there is one by now."""
        with contextlib.suppress(OSError, ValueError):
            self._kill_process(int((self.tree.root / ".ldmfs/standby" / STANDBY).read_text()))
            self.standbys += 1

    def do_template(self, decision: Decision, end: float) -> None:
        """Kill the process of which the next instances are to be forks."""
        supervisor = self.tree.supervisor()
        for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"container.template" in Path(f"/proc/{child}/cmdline").read_bytes():
                    self._kill_process(int(child))

    def do_upgrade(self, decision: Decision, end: float) -> None:
        """Put the code that is there now in a container's place: nobody is to see anything of it."""
        container = decision.container
        if self._wait(lambda: self._served(container) > self._since[container] + 3, end):
            done = self.tree.ldmfs("upgrade", container)
            if done.returncode:
                self.ledger.broke("ldmfs upgrade", done.stderr + self.tree.ldmfs("ls").stdout)

    def do_supervisor(self, decision: Decision, end: float) -> None:
        """Kill the supervisor while its containers run, and start another one."""
        for container in POLICIES:
            if not self._wait(lambda name=container: self._served(name) > self._since[name] + 3, end):
                return
        self._kill_process(self.tree.supervisor())
        done = self.tree.ldmfs("mount", "--background", "--config", self.tree.base / "tree.toml")
        if done.returncode:
            self.ledger.broke("ldmfs mount", done.stderr)

    # -- how

    def kill(self, container: str, end: float) -> bool:
        """Kill a container's process, once it has served somebody; its consumers have their turn between kills."""
        if not self._wait(lambda: self._served(container) > self._since[container] + 3, end):
            return False
        self._kill_now(container)
        self._since[container] = self._served(container)
        return True

    def _kill_now(self, container: str) -> None:
        if self._kill_process(self.tree.pid(container)):
            self.kills[container] += 1

    @staticmethod
    def _kill_process(pid: int) -> bool:
        """Kill a process of ldmfs; return False where it is gone."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            pidfd = os.pidfd_open(pid)
            try:
                if b"ldmfs" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    select.select([pidfd], [], [], HANG_SECONDS)
                    return True
            finally:
                os.close(pidfd)
        return False

    def _served(self, container: str) -> int:
        return sum(self.ledger.done(process.slot) for process in self.processes if process.container == container)

    def _wait(self, condition: object, end: float) -> bool:
        """Wait until something is so; return False at the end, and when something is wrong."""
        while not condition():  # type: ignore[operator]
            if time.monotonic() >= end or self.ledger.broken() or self.hanging():
                return False
            time.sleep(0.001)
        return True

    def hanging(self) -> list[Process]:
        """Return the consumers that get nothing done."""
        return [each for each in self.processes if self.ledger.idle_seconds(each.slot) > HANG_SECONDS]
