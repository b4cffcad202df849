"""The load: which consumers there are, and the processes that are them."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
import traceback
from pathlib import Path

from . import channels, consumers
from .consumers import Consumer
from .ledger import Ledger

POLICIES = {"fail": "fail", "reissue": "reissue", "upper": "fail"}
"""The containers, and what becomes of their requests."""


STANDBY = "reissue"
"""The container that has a standby."""


class Stacked(consumers.LongFile):
    """A device over one in another container."""

    path = "stack"
    devices = ("line",)


class StackedFresh(consumers.FreshFile):
    """The same, with a file for each exchange."""

    path = "stack"
    devices = ("line",)


class StackedChannel(channels.Channel):
    """The same, over the channel."""

    devices = ("line",)


FILES = (
    consumers.FreshFile, consumers.LongFile, consumers.PolledFile, consumers.Shell, consumers.BlockFile,
    consumers.TallyFile,
)  # fmt: skip
CHANNELS = (
    channels.Channel, channels.RetryingChannel, channels.Completions, channels.RetryingCompletions, channels.Trio,
    channels.RetryingTrio,
)  # fmt: skip
SLOTS: list[tuple[type[Consumer], str]] = [
    *((kind, container) for kind in FILES for container in ("fail", "reissue")),
    *((kind, ("fail", "reissue")[number % 2]) for number, kind in enumerate(CHANNELS)),
    (Stacked, "upper"), (StackedFresh, "upper"), (StackedChannel, "upper"),
]  # fmt: skip


class Process:
    """The process of one slot; when it is killed, another one takes its place."""

    def __init__(self, slot: int, root: Path, ledger: Ledger, seed: int, traces: Path) -> None:
        self.slot = slot
        self.kind, self.container = SLOTS[slot]
        self.name = f"{self.kind.__name__}-{self.container}"
        self._root, self._ledger, self._seed, self._traces = root, ledger, seed, traces
        self._generation = 0
        self.pid = 0

    def start(self) -> None:
        """Start the process."""
        self._generation += 1
        self._ledger.begin(self.slot)
        self.pid = os.fork()
        if self.pid == 0:
            self._live()

    def _live(self) -> None:
        status = 1
        try:
            os.setsid()
            trace = os.open(self._traces, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            faulthandler.register(signal.SIGUSR1, trace)
            seed = f"{self._seed} {self.slot} {self._generation}"
            policy = POLICIES[self.container]
            self.kind(self._root, self.container, policy, self._ledger, self.slot, seed).run()
            status = 0
        except BaseException:
            with contextlib.suppress(BaseException):
                self._ledger.broke(self.name, traceback.format_exc())
        finally:
            os._exit(status)

    def kill(self) -> None:
        """Kill it, and start another one."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.start()

    def ended(self) -> bool:
        """Tell whether it has ended."""
        return os.waitpid(self.pid, os.WNOHANG)[0] != 0

    def dump(self) -> str:
        """Return what it is doing."""
        found = [f"{self.name}, process {self.pid}, idle for {self._ledger.idle_seconds(self.slot):.0f} s"]
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            for what in ("syscall", "stack"):
                with contextlib.suppress(OSError):
                    found.append(f"{task.name} {what}: {(task / what).read_text().strip()}")
        os.kill(self.pid, signal.SIGUSR1)  # which interrupts it, and leaves its stack in `traces`
        time.sleep(0.2)
        return "\n".join(found)
