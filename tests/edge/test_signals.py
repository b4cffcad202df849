"""What /proc tells of threads that wait: on real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ldmfs.core.device import NO_SESSION
from ldmfs.fuse import signals
from ldmfs.fuse.signals import PF_EXITING, Pending, exiting, exiting_with, pending, process_of, session_of, waiting_on

GONE = 2**22 + 1
"""No process has this number: it is above the kernel's limit."""

PREAMBLE = """
import os, signal, sys, threading
def say(*words):
    print(*words, flush=True)
"""


def eventually(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Return what `true` returns once it is true; fail after a while."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.002)
    return value


class Child:
    """A Python process that runs `code` and says when it is ready."""

    def __init__(self, code: str, *args: str | Path, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PREAMBLE + code, *map(str, args)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options,
        )  # fmt: skip
        self.pid = self.process.pid

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    with contextlib.ExitStack() as stack:

        def start(code: str, *args: str | Path, **options: Any) -> Child:
            child = Child(code, *args, **options)
            stack.callback(child.end)
            return child

        yield start


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def stopped(child: Child) -> Child:
    child.process.send_signal(signal.SIGSTOP)
    eventually(lambda: state(child.pid) == "T")
    return child


def zombie(start: Callable[..., Child]) -> Child:
    child = start("")
    eventually(lambda: state(child.pid) == "Z")
    return child


IDLE = "say('ready')\nsys.stdin.read()"
HANDLES = "signal.signal(signal.SIGUSR1, lambda *_: None)\n" + IDLE
BLOCKS = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n" + IDLE


# -- pending


def test_nothing_is_pending_for_an_idle_process(start: Callable[..., Child]) -> None:
    child = start(IDLE)
    child.line()
    assert pending(child.pid) is Pending.NONE


def test_a_signal_that_was_not_taken_is_pending(start: Callable[..., Child]) -> None:
    child = start(HANDLES)
    child.line()
    stopped(child).process.send_signal(signal.SIGUSR1)
    assert pending(child.pid) is Pending.SIGNAL


def test_a_blocked_signal_does_not_count(start: Callable[..., Child]) -> None:
    child = start(BLOCKS)
    child.line()
    stopped(child).process.send_signal(signal.SIGUSR1)
    assert pending(child.pid) is Pending.NONE


def test_a_thread_that_is_gone_is_ended() -> None:
    assert pending(GONE) is Pending.FATAL


def test_a_zombie_is_ended(start: Callable[..., Child]) -> None:
    assert pending(zombie(start).pid) is Pending.FATAL


@pytest.mark.parametrize("field", ["SigPnd", "ShdPnd"])
def test_a_pending_kill_is_the_end_though_blocked(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    status = {"State": "S (sleeping)", "SigPnd": "0", "ShdPnd": "0", "SigBlk": "ffffffffffffffff", field: "100"}
    monkeypatch.setattr(signals, "_status", lambda _tid: status)
    assert pending(1) is Pending.FATAL


@pytest.mark.parametrize("field", ["SigPnd", "ShdPnd"])
def test_signals_of_the_thread_and_of_the_process_count(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    status = {"State": "S (sleeping)", "SigPnd": "0", "ShdPnd": "0", "SigBlk": "0", field: "2"}
    monkeypatch.setattr(signals, "_status", lambda _tid: status)
    assert pending(1) is Pending.SIGNAL


# -- exiting


def test_a_running_process_is_not_exiting() -> None:
    assert not exiting(os.getpid())


def test_a_zombie_is_exiting(start: Callable[..., Child]) -> None:
    assert exiting(zombie(start).pid)


def test_a_process_that_is_gone_is_exiting() -> None:
    assert exiting(GONE)


def test_a_process_with_spaces_and_parentheses_in_its_name_is_read_right(start: Callable[..., Child]) -> None:
    child = start("open('/proc/self/comm', 'w').write(') Z 1 (x')\n" + IDLE)
    child.line()
    assert not exiting(child.pid)


def fake_processes(monkeypatch: pytest.MonkeyPatch, processes: dict[int, tuple[str, int, int]]) -> None:
    """Make /proc say that there are these processes, each with its state, parent and flags."""

    def stat(pid: int) -> list[str] | None:
        if pid not in processes:
            return None
        state, parent, flags = processes[pid]
        return [state, str(parent), "0", "0", "0", "0", str(flags)]

    monkeypatch.setattr(signals, "_stat", stat)
    monkeypatch.setattr(signals, "_processes", lambda: iter(processes))


def test_the_flag_of_an_exiting_process_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_processes(monkeypatch, {10: ("R", 1, 0x400000 | PF_EXITING)})
    assert exiting(10)


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ({10: ("S", 1, 0)}, False),
        ({10: ("R", 1, PF_EXITING)}, True),
        ({10: ("S", 1, 0), 11: ("R", 10, PF_EXITING)}, True),
        ({10: ("S", 1, 0), 11: ("S", 10, 0), 12: ("R", 11, PF_EXITING)}, True),
        ({10: ("S", 1, 0), 11: ("Z", 10, PF_EXITING)}, False),
        ({10: ("S", 1, 0), 20: ("R", 1, PF_EXITING)}, False),
        ({}, True),
    ],
    ids=["idle", "opener", "child", "grandchild", "zombie child", "stranger", "gone"],
)
def test_who_may_hold_a_file_and_is_exiting(
    monkeypatch: pytest.MonkeyPatch, processes: dict[int, tuple[str, int, int]], expected: bool
) -> None:
    fake_processes(monkeypatch, processes)
    assert exiting_with(10) is expected


# -- threads, processes, sessions


def test_the_process_of_a_process_is_itself() -> None:
    assert process_of(os.getpid()) == os.getpid()


def test_the_process_of_a_thread_is_found() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert thread.native_id != os.getpid()
        assert process_of(thread.native_id) == os.getpid()
    finally:
        end.set()
        thread.join()


def test_a_thread_that_is_gone_is_its_own_process() -> None:
    assert process_of(GONE) == GONE


def test_looking_for_a_process_leaves_no_descriptor() -> None:
    process_of(os.getpid())
    before = os.listdir("/proc/self/fd")
    process_of(os.getpid())
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_process_is_in_the_session_of_its_parent(start: Callable[..., Child]) -> None:
    child = start(IDLE)
    assert session_of(child.pid) == os.getsid(0)


def test_a_process_may_have_a_session_of_its_own(start: Callable[..., Child]) -> None:
    child = start(IDLE, start_new_session=True)
    child.line()
    assert session_of(child.pid) == child.pid


def test_a_process_that_is_gone_has_no_session() -> None:
    assert session_of(GONE) == NO_SESSION


# -- who waits


OPENS = "fd = os.open(sys.argv[1], os.O_RDWR)\n"
READS = OPENS + "say('ready')\nos.read(fd, 1)"
READS_IN_THREAD = OPENS + (
    "thread = threading.Thread(target=lambda: (say(threading.get_native_id()), os.read(fd, 1)))\nthread.start()\n"
    "sys.stdin.read()"
)
FORKS = OPENS + (
    "pid = os.fork()\nif pid:\n    say(pid)\n    sys.stdin.read()\n    os.kill(pid, 9)\nelse:\n    os.read(fd, 1)"
)
LEAVES_A_CHILD = OPENS + "pid = os.fork()\nif pid:\n    say(pid)\nelse:\n    os.read(fd, 1)"
BOTH_READ = OPENS + "pid = os.fork()\nif pid:\n    say(pid)\nos.read(fd, 1)"
OPENS_ONLY = OPENS + IDLE


def waiters(fifo: Path, opener: int, *openers: int) -> list[int]:
    return list(waiting_on(fifo.stat().st_ino, opener, {opener, *openers}))


def test_the_opener_is_found_that_reads(start: Callable[..., Child], fifo: Path) -> None:
    child = start(READS, fifo)
    child.line()
    assert eventually(lambda: waiters(fifo, child.pid)) == [child.pid]


def test_a_thread_of_the_opener_is_found_that_reads(start: Callable[..., Child], fifo: Path) -> None:
    child = start(READS_IN_THREAD, fifo)
    thread = int(child.line())
    assert thread != child.pid
    assert eventually(lambda: waiters(fifo, child.pid)) == [thread]


def test_a_child_is_found_that_got_the_descriptor(start: Callable[..., Child], fifo: Path) -> None:
    child = start(FORKS, fifo)
    heir = int(child.line())
    try:
        assert eventually(lambda: waiters(fifo, child.pid)) == [heir]
    finally:
        os.kill(heir, signal.SIGKILL)


def test_a_child_is_not_asked_when_the_opener_itself_waits(start: Callable[..., Child], fifo: Path) -> None:
    child = start(BOTH_READ, fifo)
    heir = int(child.line())
    try:
        eventually(lambda: waiters(fifo, heir))
        assert eventually(lambda: child.pid in (found := waiters(fifo, child.pid)) and found) == [child.pid]
    finally:
        os.kill(heir, signal.SIGKILL)


def test_an_orphan_is_found_that_got_the_descriptor(start: Callable[..., Child], fifo: Path) -> None:
    child = start(LEAVES_A_CHILD, fifo)
    orphan = int(child.line())
    try:
        child.process.wait()
        assert eventually(lambda: waiters(fifo, child.pid)) == [orphan]
    finally:
        os.kill(orphan, signal.SIGKILL)


def reading(child: Child, fifo: Path) -> None:
    """Wait until `child` is in its read."""
    eventually(lambda: waiters(fifo, child.pid))


def test_who_opened_the_device_himself_does_not_wait_for_another(start: Callable[..., Child], fifo: Path) -> None:
    idle, reader = start(OPENS_ONLY, fifo), start(READS, fifo)
    idle.line()
    reading(reader, fifo)
    assert waiters(fifo, idle.pid, reader.pid) == []


def test_a_stranger_is_no_heir_of_a_living_opener(start: Callable[..., Child], fifo: Path) -> None:
    idle, reader = start(OPENS_ONLY, fifo), start(READS, fifo)
    idle.line()
    reading(reader, fifo)
    assert waiters(fifo, idle.pid) == []


def test_another_opener_is_no_heir_of_one_that_is_gone(start: Callable[..., Child], fifo: Path) -> None:
    reader = start(READS, fifo)
    reading(reader, fifo)
    assert waiters(fifo, GONE, reader.pid) == []


def test_a_read_of_another_file_is_not_found(start: Callable[..., Child], fifo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    os.mkfifo(other)
    child = start(OPENS + "other = os.open(sys.argv[2], os.O_RDWR)\nos.read(other, 1)", fifo, other)
    eventually(lambda: waiters(other, child.pid))
    assert waiters(fifo, child.pid) == []


def test_nobody_waits_on_a_file_that_is_only_open(start: Callable[..., Child], fifo: Path) -> None:
    child = start(OPENS_ONLY, fifo)
    child.line()
    assert waiters(fifo, child.pid) == []


def test_an_opener_that_is_gone_waits_for_nothing(fifo: Path) -> None:
    assert waiters(fifo, GONE) == []
