"""Consumers under load, each of which checks every reply: files in several ways, and the shell."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ldmfs import LdmError

from .ledger import Ledger, name_of
from .promises import PROMISED
from .providers import NOTHING

REGION = 32 << 10
"""Bytes of a block device that are one consumer's."""


class WrongError(Exception):
    """What must not be."""


class Consumer:
    """A consumer in a process of its own, which exchanges until it is told to stop."""

    path = "file"
    devices: tuple[str, ...] = ("plain", "async", "thread")

    def __init__(self, root: Path, container: str, policy: str, ledger: Ledger, slot: int, seed: str) -> None:
        self.root = root
        self.container = container
        self.allowed = PROMISED[self.path, policy]
        self.policy = policy
        self.ledger = ledger
        self.slot = slot
        self.random = random.Random(seed)

    def run(self) -> None:
        """Exchange until it is time to stop."""
        while not self.ledger.stopping:
            with self.promised():
                self.exchange()
            self.ledger.exchanged(self.slot)
        with self.promised():
            self.end()

    @contextlib.contextmanager
    def promised(self) -> Iterator[None]:
        """Count an error that is promised."""
        try:
            yield
        except (OSError, LdmError) as error:
            self.suffer(error)

    def suffer(self, error: OSError | LdmError) -> None:
        if error.errno not in self.allowed:
            raise WrongError(f"{type(error).__name__} {name_of(error.errno)}: {error}") from error
        self.ledger.suffered(self.slot)

    def exchange(self) -> None:
        """Send something and check what comes."""

    def end(self) -> None:
        """Let go of what is open."""

    def message(self) -> bytes:
        """Return a message, now and then one that takes its time, or a long one."""
        kind = self.random.random()
        size = self.random.randrange(1, 100) if kind < 0.9 else self.random.randrange(1, 300_000)
        return (b"wait" if 0.8 < kind < 0.9 else b"") + self.random.randbytes(size)

    def check(self, message: bytes, reply: bytes) -> None:
        if reply != message[::-1]:
            wrong(f"the reply to {len(message)} bytes {message[:40]!r} is {len(reply)} bytes {reply[:40]!r}")

    def name(self) -> str:
        return f"{self.container}/{self.random.choice(self.devices)}"


def wrong(what: str) -> NoReturn:
    raise WrongError(what)


class FreshFile(Consumer):
    """Opens the file for each exchange."""

    def exchange(self) -> None:
        fd = os.open(self.root / self.name(), os.O_RDWR)
        try:
            message = self.message()
            os.write(fd, message)
            self.check(message, read_all(fd))
        finally:
            with self.promised():
                os.close(fd)


class LongFile(Consumer):
    """Keeps the file open over many exchanges."""

    fd = -1
    flags = os.O_RDWR

    def exchange(self) -> None:
        if self.fd >= 0 and self.random.random() < 0.02:
            self.end()
        if self.fd < 0:
            self.fd = os.open(self.root / self.name(), self.flags)
        message = self.message()
        os.write(self.fd, message)
        self.check(message, self.reply())

    def reply(self) -> bytes:
        way = self.random.randrange(3)
        if way == 0:  # and not to its end
            return os.read(self.fd, 1 << 20)
        return read_all(self.fd, (0, 1 << 16, 37_000)[way])

    def end(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class PolledFile(LongFile):
    """Waits for each reply in poll(2)."""

    flags = os.O_RDWR | os.O_NONBLOCK

    def reply(self) -> bytes:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while True:
            poll.poll()
            try:
                return os.read(self.fd, 1 << 20)
            except BlockingIOError:
                continue


class Shell(Consumer):
    """`echo` to a device and `cat` of it, in one login session."""

    devices = ("plain", "async")

    def exchange(self) -> None:
        message = f"message {self.random.random()}"
        device = self.name()
        done = subprocess.run(
            ["sh", "-c", f"echo '{message}' > {device} && cat {device}"],
            cwd=self.root, capture_output=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            told = done.stderr.decode()
            if os.strerror(errno.ECONNABORTED) not in told and "echo: I/O error" not in told:
                wrong(told)
            self.suffer(OSError(errno.ECONNABORTED, told))
        elif done.stdout == NOTHING and self.policy == "fail":  # the reply was lost with its process
            self.ledger.suffered(self.slot)
        else:
            self.check(f"{message}\n".encode(), done.stdout)


class BlockFile(Consumer):
    """Reads and writes a part of a block device that is its own, and knows what is there."""

    fd = -1
    pending: tuple[int, bytes] | None = None
    """What is to be written once more: how much of it is there is not known."""

    def exchange(self) -> None:
        if self.fd < 0:
            self.fd = os.open(self.root / self.container / "block", os.O_RDWR)
            self.there = bytearray(os.pread(self.fd, REGION, self.slot * REGION))
        if self.pending is not None:
            return self.write(*self.pending)
        begin = self.random.randrange(REGION)
        size = self.random.randrange(1, REGION - begin + 1)
        kind = self.random.randrange(5)
        if kind < 2:
            self.write(begin, self.random.randbytes(size))
        elif kind < 4:
            data = os.pread(self.fd, size, self.slot * REGION + begin)
            if data != self.there[begin : begin + size]:
                wrong(f"{size} bytes at {begin} are not what was written there")
        else:
            os.fsync(self.fd)
            if self.random.random() < 0.1:
                self.end()
        return None

    def write(self, begin: int, data: bytes) -> None:
        self.pending = begin, data
        if os.pwrite(self.fd, data, self.slot * REGION + begin) != len(data):
            wrong("a write was cut")
        self.there[begin : begin + len(data)] = data
        self.pending = None

    def end(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class TallyFile(Consumer):
    """Has the numbers 1, 2, 3, ... committed: what was answered is there after a kill, and each is done once."""

    fd = -1
    number = -1

    def exchange(self) -> None:
        if self.fd < 0:
            self.fd = os.open(self.root / self.container / "tally", os.O_RDWR)
        if self.number < 0:
            self.number = int(self.ask(b"slot%d" % self.slot))
        number = b"%d" % (self.number + 1)
        if self.ask(b"slot%d %s" % (self.slot, number)) != number:
            wrong(f"{number!r} was not committed")
        self.number += 1

    def ask(self, message: bytes) -> bytes:
        os.write(self.fd, message)
        return read_all(self.fd)

    def end(self) -> None:
        os.close(self.fd)


def read_all(fd: int, size: int = 1 << 20) -> bytes:
    """Return a reply to its end."""
    return b"".join(iter(lambda: os.read(fd, size), b""))
