"""Consumers that are interrupted or killed while they wait for a slow device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from .fixtures import Start
from .trees import Probed, Tree
from .waiting import SECONDS

ALARMED = """
import os, signal, sys
def alarm(number, frame):
    print("alarm", flush=True)
signal.signal(signal.SIGALRM, alarm)
fd = os.open(sys.argv[1], os.O_RDWR)
os.write(fd, b"hello")
signal.setitimer(signal.ITIMER_REAL, 0.1)
print(os.read(fd, 100).decode(), flush=True)
"""

SENT = "import os, subprocess, sys; fd = os.open(sys.argv[1], os.O_RDWR); os.write(fd, b'x')"
"""A consumer with a request outstanding."""


@pytest.fixture
def gate(tree: Tree) -> Iterator[Probed]:
    with tree.made("gate") as device:
        yield device


def check_ended(gate: Probed, consumer: int) -> None:
    """Assert that the handler was cancelled, and after that the device closed, for this consumer."""
    gate.wait("close")
    assert [what for what, number in gate.tree.events(gate.name) if number == consumer] == [
        "open", "start", "cancelled", "close",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_cat_that_waits_for_a_slow_device(start: Start, gate: Probed, number: signal.Signals) -> None:
    cat = start(["cat", str(gate)])
    consumer = gate.wait("start")
    cat.send_signal(number)
    assert cat.wait(SECONDS) == -number
    check_ended(gate, consumer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_a_writer_that_waits_in_close(start: Start, gate: Probed, number: signal.Signals) -> None:
    writer = start([sys.executable, "-c", f"import os; fd = os.open('{gate}', 1); os.write(fd, b'x'); os.close(fd)"])
    consumer = gate.wait("start")
    writer.send_signal(number)
    assert writer.wait(SECONDS) in (-number, 1)  # Python tells Ctrl-C as an exception, or the EINTR of close
    check_ended(gate, consumer)


def test_a_killed_reader_of_an_inherited_descriptor_is_gone_at_once(start: Start, gate: Probed) -> None:
    shell = start(["sh", "-c", f"exec 3<>{gate}; cat <&3 & echo $!; wait $!; echo status $?; printf now >&3; cat <&3"])
    cat = int(shell.stdout.readline())
    consumer = gate.wait("start")
    subprocess.run(["kill", "-KILL", str(cat)], check=True)
    assert shell.communicate(timeout=SECONDS)[0] == "status 137\nnow"  # the shell goes on with the same open file
    gate.wait("close")
    assert [what for what, _ in gate.tree.events(gate.name)] == ["open", "start", "cancelled", "start", "done", "close"]
    assert {number for _, number in gate.tree.events(gate.name)} == {consumer}


def test_of_two_readers_only_the_killed_one_is_cancelled(start: Start, gate: Probed) -> None:
    killed = start(["cat", str(gate)])
    consumer = gate.wait("start")
    other = start(["cat", str(gate)])
    gate.wait("start", 2)
    killed.kill()
    assert killed.wait(SECONDS) == -signal.SIGKILL
    check_ended(gate, consumer)
    assert other.poll() is None
    gate.release()
    assert other.communicate(timeout=SECONDS)[0] == "read\n"
    assert gate.count("cancelled") == 1


def test_a_signal_that_the_reader_handles_does_not_cancel_its_request(start: Start, gate: Probed) -> None:
    reader = start([sys.executable, "-c", ALARMED, str(gate)])
    gate.wait("start")
    assert reader.stdout.readline() == "alarm\n"  # it ran while the read had not returned to the program
    gate.release()
    assert reader.communicate(timeout=SECONDS)[0] == "hello\n"
    gate.wait("close")
    assert [what for what, _ in gate.tree.events(gate.name)] == ["open", "start", "done", "close"]


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)"], ids=["exit", "kill"])
def test_a_process_that_ends_with_a_request_outstanding_does_not_hang(start: Start, gate: Probed, end: str) -> None:
    process = start([sys.executable, "-c", f"{SENT}; {end}", str(gate)])
    assert process.wait(SECONDS) in (0, -signal.SIGKILL)
    gate.wait("close")
    assert gate.count("done") == 0
    assert gate.count("start") == gate.count("cancelled")  # it may be cancelled before it has started


@pytest.mark.parametrize(
    "call",
    [
        "subprocess.run(['true'])",
        "[os.dup2(*each) for each in ((0, 30), (0, 31), (fd, 40))]; subprocess.run(['true'], pass_fds=[30, 31])",
        "os.posix_spawn('/bin/true', ['true'], {})",
    ],
    ids=["subprocess", "one by one", "spawn"],
)
def test_a_process_with_a_request_outstanding_can_start_others(start: Start, gate: Probed, call: str) -> None:
    """Their copies of the descriptor are closed on the way to the other program, which waits for no handler."""
    process = start([sys.executable, "-c", f"{SENT}; {call}; print('started', flush=True); os._exit(0)", str(gate)])
    assert process.wait(SECONDS) == 0
    assert process.stdout.read() == "started\n"


def test_a_killed_process_that_closes_an_inherited_descriptor_is_gone_at_once(start: Start, gate: Probed) -> None:
    forks = "pid = os.fork() or os.close(fd); print(pid, flush=True); print(os.waitpid(pid, 0)[1], flush=True)"
    process = start([sys.executable, "-c", f"{SENT}; {forks}; os._exit(0)", str(gate)])
    pid = int(process.stdout.readline())
    gate.wait("start")
    os.kill(pid, signal.SIGKILL)
    assert process.wait(SECONDS) == 0
    assert process.stdout.read() == f"{int(signal.SIGKILL)}\n"


def test_a_reader_of_a_handler_in_a_thread_can_be_killed(tree: Tree, start: Start) -> None:
    with tree.made("threadgate") as device:
        shell = start(["sh", "-c", f"exec 3<>{device}; printf x >&3; exec cat <&3"])
        device.wait("start")
        shell.kill()
        assert shell.wait(SECONDS) == -signal.SIGKILL
        assert device.count("close") == 0  # the close handler waits for the thread, which cannot be cut short
        device.release()
        device.wait("close")
        assert device.count("done") == 1
