"""Containers with providers in C in a mounted tree: crashes, kills, stacks over containers, the shell."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mounted.trees import Tree, errno_of, exchange, opened, read_all
from mounted.waiting import kill, wait_until

import ldmfs
from ldmfs import Request, RequestType

from .hosted import Built

TREE = """\
[text.text]
[fast]
max_crashes = 100
[fast.native.crc32]
[fast.native.disk]
source = "ramdisk"
parameters.size = "1 MiB"
[fast.native.delay]
parameters.milliseconds = 20
[fast.native.over]
source = "relay"
parameters.lower = "text/upper"
[gate]
max_crashes = 100
[gate.native.gate]
source = "{gate}"
[bad]
max_crashes = 100
[bad.native.caller]
source = "{caller}"
parameters.lower = "gate/gate"
[x.relay.x]
lower = "bad/sync"
"""

CONSUMER = """
import os, sys, threading
import ldmfs
device = ldmfs.open_device(sys.argv[1])
threading.Thread(target=device.send, args=(ldmfs.Request(ldmfs.RequestType.CALL, b"x"),), daemon=True).start()
sys.stdin.read()
"""
"""Has a request outstanding until it is killed."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, plug_ins: Path, built: Built) -> Iterator[Tree]:
    """Give a tree with containers of all kinds."""
    tree = Tree(tmp_path_factory.mktemp("native"), plug_ins)
    try:
        done = tree.mount(TREE.format(gate=built("gate"), caller=built("caller")))
        assert (done.returncode, done.stderr) == (0, "")
        yield tree
    finally:
        tree.end()


def report(tree: Tree) -> dict[str, int]:
    """Return what the provider `gate` counts."""
    with ldmfs.open_device("gate/keeper", root=tree.root) as keeper:
        words = bytes(ldmfs.send_request(keeper, Request(RequestType.READ, length=200)).data).decode().split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def release(tree: Tree) -> None:
    """Let the provider `gate` answer what it holds."""
    with ldmfs.open_device("gate/keeper", root=tree.root) as keeper:
        ldmfs.send_request(keeper, b"release")


class Asking(threading.Thread):
    """Sends one request, and keeps what comes of it."""

    def __init__(self, tree: Tree, name: str, data: bytes = b"x") -> None:
        super().__init__()
        self.outcome: Any = None
        self._ask = tree.root, name, data
        self.start()

    def run(self) -> None:
        root, name, data = self._ask
        try:
            with ldmfs.open_device(name, root=root) as device:
                self.outcome = ldmfs.send_request(device, data)
        except ldmfs.LdmError as error:
            self.outcome = error

    def end(self) -> Any:
        self.join(20)
        assert not self.is_alive()
        return self.outcome


def running(tree: Tree) -> dict[str, int]:
    return {name: container["pid"] for name, container in tree.containers().items()}


def test_a_provider_in_c_answers_the_shell(tree: Tree) -> None:
    done = tree.sh(
        "printf abc >fast/crc32; cat fast/crc32; echo hello >fast/over; cat fast/over;"
        "echo a >fast/delay; cat fast/delay"
    )
    assert (done.stdout, done.stderr) == ("352441c2\nHELLO\na\n", "")


def test_an_error_of_a_provider_in_c_is_that_of_the_file(tree: Tree) -> None:
    with opened(tree.root / "gate/plain") as fd:
        os.write(fd, b"fail 28")
        assert errno_of(os.read, fd, 10) == errno.ENOSPC


def test_a_disk_takes_a_file_system(tree: Tree) -> None:
    done = tree.sh("/sbin/mkfs.ext4 -qF fast/disk && /sbin/e2fsck -fn fast/disk")
    assert done.returncode == 0, done.stderr


def test_what_a_device_says_of_itself_is_listed(tree: Tree) -> None:
    done = tree.ldmfs("ls", "fast")
    assert "CRC-32 of the message" in done.stdout
    assert os.getxattr(tree.root / "fast/crc32", "user.ldm.provider") == b"native"


@pytest.mark.parametrize("way", ["channel", "file"])
def test_a_consumer_that_is_killed_has_its_request_cancelled_and_is_closed(tree: Tree, way: str) -> None:
    before = report(tree)
    program = (
        CONSUMER
        if way == "channel"
        else f"fd = __import__('os').open('{tree.root}/gate/gate', 2)\n"
        "__import__('os').write(fd, b'x'); __import__('os').read(fd, 9)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "gate/gate"], stdin=subprocess.PIPE, env=tree.environment
    )
    assert process.stdin is not None
    with process.stdin:
        wait_until(lambda: report(tree)["held"] == 1)
        process.kill()
        process.wait()
        wait_until(lambda: report(tree)["closed"] == before["closed"] + 1)
    after = report(tree)
    assert (after["held"], after["cancelled"]) == (0, before["cancelled"] + 1)


def test_a_crash_in_c_is_one_container_s_and_nobody_else_s(tree: Tree) -> None:
    before = running(tree)
    other = Asking(tree, "gate/stubborn")
    victim = Asking(tree, "bad/slow", b"wait")
    wait_until(lambda: report(tree)["held"] == 1)
    wait_until(lambda: b"1" in os.getxattr(tree.root / "bad/slow", "user.ldm.consumers"))
    crasher = Asking(tree, "bad/crash")
    assert isinstance(crasher.end(), ldmfs.ProviderDied)
    assert isinstance(victim.end(), ldmfs.ProviderDied)
    with ldmfs.open_device("bad/slow", root=tree.root) as device:  # waits for the new instance
        assert ldmfs.send_request(device, b"again") == b"again"
    release(tree)
    assert other.end() == b"x"
    after = running(tree)
    assert {name for name in before if before[name] != after[name]} == {"bad"}


def test_a_crash_in_c_ends_a_request_through_the_file(tree: Tree) -> None:
    with opened(tree.root / "bad/crash") as fd:
        os.write(fd, b"x")
        assert errno_of(os.read, fd, 10) in (errno.ECONNABORTED, errno.ESTALE)  # as the read came before or after it
    wait_until(lambda: exchange(tree.root / "bad/slow", b"a") == b"a")


@pytest.mark.parametrize("device", ["fast/crc32", "fast/over"])
def test_an_open_file_outlives_a_crash(tree: Tree, device: str) -> None:
    reply = {"fast/crc32": b"352441c2\n", "fast/over": b"ABC"}[device]
    with opened(tree.root / device) as fd, opened(tree.root / device) as unused:
        for _ in range(2):
            os.write(fd, b"abc")
            assert read_all(fd) == reply
            kill(running(tree)["fast"])
        os.write(fd, b"abc")
        assert read_all(fd) == reply
        os.fstat(unused)
    wait_until(lambda: os.getxattr(tree.root / device, "user.ldm.consumers") == b"0")


def test_the_reason_of_a_crash_names_the_signal(mount: Callable[[str], Tree], built: Built) -> None:
    tree = mount(f'[bad]\nmax_crashes = 1\n[bad.native.caller]\nsource = "{built("caller")}"\n')
    Asking(tree, "bad/crash").end()
    wait_until(lambda: tree.containers()["bad"]["state"] == "failed")
    assert "killed by SIGSEGV" in tree.containers()["bad"]["reason"]


def test_a_stack_of_python_over_c_over_c(tree: Tree) -> None:
    asking = Asking(tree, "x/x", b"hello")
    wait_until(lambda: report(tree)["held"] == 1)
    release(tree)
    assert asking.end() == b"hello"


def test_a_kill_at_the_bottom_of_a_stack_is_an_error_at_its_top(tree: Tree) -> None:
    asking = Asking(tree, "x/x", b"hello")
    wait_until(lambda: report(tree)["held"] == 1)
    kill(running(tree)["gate"])
    assert isinstance(asking.end(), ldmfs.ProviderDied)
    wait_until(lambda: report(tree)["held"] == 0)


def test_a_kill_at_the_top_of_a_stack_cancels_at_its_bottom(tree: Tree) -> None:
    before = report(tree)
    process = subprocess.Popen([sys.executable, "-c", CONSUMER, "x/x"], stdin=subprocess.PIPE, env=tree.environment)
    assert process.stdin is not None
    with process.stdin:
        wait_until(lambda: report(tree)["held"] == 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: report(tree)["closed"] == before["closed"] + 1)
    after = report(tree)
    assert (after["held"], after["cancelled"]) == (0, before["cancelled"] + 1)


def test_a_stop_ends_what_is_outstanding(mount: Callable[[str], Tree], built: Built) -> None:
    tree = mount(f'[gate.native.gate]\nsource = "{built("gate")}"\n')
    asking = Asking(tree, "gate/gate")
    wait_until(lambda: report(tree)["held"] == 1)
    done = tree.ldmfs("stop", "gate")
    assert (done.returncode, done.stderr) == (0, "")
    assert isinstance(asking.end(), ldmfs.LdmError)


def test_non_blocking_reads_wait_for_what_is_completed_later(tree: Tree) -> None:
    fd = os.open(tree.root / "gate/gate", os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(fd, b"later")
        assert errno_of(os.read, fd, 10) == errno.EAGAIN
        wait_until(lambda: report(tree)["held"] == 1)
        release(tree)
        wait_until(lambda: errno_of(os.read, fd, 0) is None)
        assert read_all(fd) == b"later"
    finally:
        os.close(fd)
