"""A container that is killed at each place of the life of an open file: who is told, and that no consumer is left."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .mortal import HANDLERS, PLACES
from .trees import Tree, read_all
from .waiting import wait_until

CONTAINER = """\
[{policy}]
on_crash = "{policy}"
max_crashes = 1000
max_pause = "0 s"
[{policy}.mortal]
log = @log
order = "{order}"
"""
POLICIES = "fail", "reissue"
ALL = [f"{when} {place}" for place in PLACES for when in ("before", "after")] + [*HANDLERS]

INLINE = "open handler", "after opened", "after open", "after write", "after read", "request handler", "before release"
"""Where it matters that a device's handlers are plain functions."""


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory, plug_ins: Path) -> Iterator[Tree]:
    """Give a tree with a container for each policy."""
    base = tmp_path_factory.mktemp("mortal")
    tree = Tree(base, plug_ins)
    try:
        done = tree.mount("".join(CONTAINER.format(policy=policy, order=base / policy) for policy in POLICIES))
        assert (done.returncode, done.stderr) == (0, "")
        yield tree
    finally:
        tree.end()


class Life:
    """One open file, from its open to its close; `told` are the errors on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[int | None] = []

    def attempt(self, call: Callable[..., object], *args: object) -> object:
        """Call once more where the container was killed in the call."""
        try:
            return call(*args)
        except OSError as error:
            self.told.append(error.errno)
            return call(*args)

    def live(self) -> None:
        fd = self.attempt(os.open, self.path, os.O_RDWR)
        assert isinstance(fd, int)
        try:
            for message in (b"one", b"two"):
                assert self.attempt(self.exchange, fd, message) == message.upper()
        finally:
            try:
                os.close(fd)
            except OSError as error:
                self.told.append(error.errno)

    @staticmethod
    def exchange(fd: int, message: bytes) -> bytes:
        os.write(fd, message)
        return read_all(fd)


@pytest.mark.parametrize(
    ("device", "place"), [("async", place) for place in ALL] + [("plain", place) for place in INLINE]
)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_kill_at(mortal: Tree, policy: str, device: str, place: str) -> None:
    path = mortal.root / policy / device
    pid = mortal.pid(policy)
    begin = len(told(mortal))
    life = Life(path)
    (mortal.base / policy).write_text(place)
    life.live()
    wait_until(lambda: not (mortal.base / policy).exists(), what="the kill")
    wait_until(lambda: mortal.pid(policy) != pid, what="the next instance")
    wait_until(lambda: mortal.xattr(path, "consumers") == "0", what="the close of each consumer")

    assert len(life.told) <= (policy == "fail")
    assert set(life.told) <= {errno.ECONNABORTED}
    events = told(mortal)[begin:]
    opened = {number for what, number, _ in events if what == "open"}
    closed = Counter(number for what, number, _ in events if what == "close")
    assert opened <= closed.keys(), "a consumer whose close handler never ran"
    assert len(opened) == 1 + (place in OPENED_TWICE), events
    twice = {number for number, times in closed.items() if times > 1}
    assert bool(twice) <= (place in IN_CLOSE), f"a close handler that ran twice: {events}"


OPENED_TWICE = "open handler", "before opened", "after opened", "after open"
"""Where the opener had not been told, and opened once more."""

IN_CLOSE = "close handler", "before removed", "after closing", "before closing"


def told(tree: Tree) -> list[tuple[str, int, int]]:
    lines = [line.split() for line in tree.log.read_text().splitlines()]
    return [(what, int(number), int(pid)) for _, what, number, pid in lines]
