"""One instance hands over to the next, under load: users of open files see a pause, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import random
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

import ldmfs
import ldmfs.aio

from .instances import Instances, disk_bytes, instances
from .test_takeover import PollWaiter
from .trees import anew, errno_of, opened, read_all
from .waiting import SECONDS, wait_until

HANDOVERS = 8


@pytest.fixture(params=[False, True], ids=["fail", "reissue"])
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Instances]:
    """Give a container that is being served, with both policies."""
    with instances(tmp_path, reissue=request.param) as box:
        yield box


class Load(threading.Thread):
    """A consumer that does something over and over until it is stopped, and keeps what went wrong."""

    def __init__(self, path: Path, act: Callable[[int, int], object], *, reopen: bool = False) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.act = act
        self.reopen = reopen
        self.done = 0
        self.wrong: list[str] = []
        self.stopped = False

    def run(self) -> None:
        fd = os.open(self.path, os.O_RDWR)
        while not self.stopped:
            try:
                if self.reopen:
                    fd = anew(fd, self.path)
                self.act(fd, self.done)
            except (OSError, AssertionError) as error:
                self.wrong.append(f"{self.done}: {error!r}")
            self.done += 1
        os.close(fd)


def shout(fd: int, number: int) -> None:
    os.write(fd, b"message %d" % number)
    assert read_all(fd) == b"MESSAGE %d" % number


def shout_in_parts(fd: int, number: int) -> None:
    os.write(fd, b"message %d" % number)
    assert b"".join(iter(lambda: os.read(fd, 3), b"")) == b"MESSAGE %d" % number


def shout_once(fd: int, number: int) -> None:
    os.write(fd, b"message %d" % number)
    assert os.read(fd, 100) == b"MESSAGE %d" % number


def shout_polled(fd: int, number: int) -> None:
    os.write(fd, b"message %d" % number)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(1000 * SECONDS)
    assert read_all(fd) == b"MESSAGE %d" % number


def count(fd: int, number: int) -> None:
    os.write(fd, b"count")
    assert read_all(fd) == b"%d" % (number + 1)


def read_disk(fd: int, number: int) -> None:
    offset = random.Random(number).randrange(1 << 19)
    assert os.pread(fd, 1000, offset) == disk_bytes(offset, 1000)


def refused(fd: int, number: int) -> None:
    os.write(fd, b"%d" % errno.ENOSPC)
    assert errno_of(os.read, fd, 100) == errno.ENOSPC


@contextlib.contextmanager
def running(*loads: Load | ChannelLoad) -> Iterator[None]:
    for load in loads:
        load.start()
    try:
        yield
    finally:
        for load in loads:
            load.stopped = True
        for load in loads:
            load.join(SECONDS)
    assert not any(load.is_alive() for load in loads)
    assert [load.wrong for load in loads] == [[]] * len(loads)


def go_on(*loads: Load | ChannelLoad) -> None:
    """Wait until each load has gone on."""
    before = [load.done for load in loads]
    wait_until(lambda: all(load.done > done + 2 for load, done in zip(loads, before, strict=True)), what="the loads")


def is_balanced(box: Instances, name: str) -> bool:
    """Tell whether each consumer that opened a device has closed it, once."""
    events = box.events(name)
    opens = sorted(id for what, id in events if what == "open")
    return len(set(opens)) == len(opens) and opens == sorted(id for what, id in events if what == "close")


@pytest.mark.timeout(180)
def test_a_load_sees_nothing_of_handovers(box: Instances) -> None:
    loads = [
        Load(box.path / "shout", shout),
        Load(box.path / "async", shout_in_parts),
        Load(box.path / "thread", shout, reopen=True),
        Load(box.path / "async", shout_once, reopen=True),
        Load(box.path / "async", shout_polled),
        Load(box.path / "count", count),
        Load(box.path / "disk", read_disk),
        Load(box.path / "refuse", refused),
    ]
    with running(*loads):
        for _ in range(HANDOVERS):
            box.upgrade()
            go_on(*loads)
    for name in ("shout", "async", "thread", "count", "disk", "refuse"):
        wait_until(lambda name=name: is_balanced(box, name), what=f"the close of each consumer of {name}")


# -- the channel


class ChannelLoad(threading.Thread):
    """A consumer over the channel, until it is stopped; `consume` gets what tells that, and counts."""

    def __init__(self, box: Instances, consume: Callable[[ChannelLoad], None]) -> None:
        super().__init__(daemon=True)
        self.root = box.root
        self.consume = consume
        self.done = 0
        self.wrong: list[str] = []
        self.stopped = False

    def run(self) -> None:
        try:
            self.consume(self)
        except BaseException as error:
            self.wrong.append(repr(error))


def call(load: ChannelLoad) -> None:
    with ldmfs.open_device("box/count", root=load.root) as device:
        while not load.stopped:
            assert ldmfs.send_request(device, b"count") == b"%d" % (load.done + 1)
            load.done += 1


def call_with_large_data(load: ChannelLoad) -> None:
    with ldmfs.open_device("box/shout", root=load.root) as device:
        while not load.stopped:
            data = b"%d " % load.done + b"x" * 300_000
            assert ldmfs.send_request(device, data) == data.upper()
            load.done += 1


def pipeline(load: ChannelLoad) -> None:
    replies: queue.SimpleQueue[tuple[int, object]] = queue.SimpleQueue()
    with ldmfs.open_device("box/async", root=load.root) as device:
        while not load.stopped:
            for number in range(20):
                ldmfs.send_request(device, b"message %d" % number, lambda *both: replies.put(both), number)
            got = dict(replies.get(timeout=SECONDS) for _ in range(20))
            assert got == {number: b"MESSAGE %d" % number for number in range(20)}
            load.done += 1


def open_and_close(load: ChannelLoad) -> None:
    while not load.stopped:
        with ldmfs.open_device("box/thread", root=load.root) as device:
            assert ldmfs.send_request(device, b"hello") == b"HELLO"
        load.done += 1


def under_trio(load: ChannelLoad) -> None:
    async def task(number: int) -> None:
        async with await ldmfs.aio.open_device("box/async", root=load.root) as device:
            while not load.stopped:
                data = b"%d of %d" % (load.done, number)
                assert await ldmfs.aio.send_request(device, data) == data.upper()
                load.done += 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(task, number)

    trio.run(main)


@pytest.mark.timeout(180)
def test_a_load_over_the_channel_sees_nothing_of_handovers(tmp_path: Path) -> None:
    with instances(tmp_path) as box:
        ways = call, call_with_large_data, pipeline, open_and_close, under_trio
        loads = [ChannelLoad(box, way) for way in ways]
        with running(*loads):
            for _ in range(HANDOVERS):
                box.upgrade()
                go_on(*loads)
        for name in ("shout", "async", "thread", "count"):
            wait_until(lambda name=name: is_balanced(box, name), what=f"the close of each consumer of {name}")


# -- what open files hold


def test_a_consumer_that_lives_on_is_adopted_and_closed_once(box: Instances) -> None:
    with opened(box.path / "shout") as fd:
        for number in range(3):
            box.upgrade()
            shout(fd, number)
    wait_until(lambda: is_balanced(box, "shout"), what="its close")
    assert [what for what, _ in box.events("shout")] == ["open", "adopt", "adopt", "adopt", "close"]


def test_the_next_instance_is_another_process(box: Instances) -> None:
    with opened(box.path / "shout") as fd:
        before = read_all(fd)
        box.upgrade()
        assert read_all(fd) not in (before, b"")


def test_a_reply_is_read_on_where_its_reader_was(box: Instances) -> None:
    with opened(box.path / "async") as fd:
        os.write(fd, b"hello there")
        got = b""
        for _ in range(3):
            got += os.read(fd, 2)
            box.upgrade()
        assert got + read_all(fd) == b"HELLO THERE"


def test_a_handler_that_runs_comes_to_its_end(box: Instances) -> None:
    with opened(box.path / "gate") as fd:
        os.write(fd, b"hello")
        replies: list[bytes] = []
        reader = threading.Thread(target=lambda: replies.append(os.read(fd, 100)))
        reader.start()
        upgrade = threading.Thread(target=box.upgrade)
        upgrade.start()
        box.gate.touch()
        reader.join(SECONDS)
        upgrade.join(2 * SECONDS)
        assert replies == [b"HELLO"]
    assert [what for what, _ in box.events("gate")].count("start") == 1


def test_what_runs_at_the_deadline_is_the_policys(box: Instances) -> None:
    with opened(box.path / "gate") as waiting, opened(box.path / "gate") as unread:
        os.write(unread, b"unread")
        os.write(waiting, b"waiting")
        ends: list[bytes | int] = []

        def read() -> None:
            try:
                ends.append(os.read(waiting, 100))
            except OSError as error:
                ends.append(error.errno or 0)

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: len(box.events("gate")) == 4, what="both handlers")
        box.upgrade(seconds=0)
        if box.reissue:
            box.gate.touch()
            reader.join(SECONDS)
            assert ends == [b"WAITING"]
            assert read_all(unread) == b"UNREAD"
        else:
            reader.join(SECONDS)
            assert ends == [errno.ECONNABORTED]
            assert errno_of(os.read, unread, 100) == errno.ECONNABORTED
            box.gate.touch()
            shout(unread, 1)


def test_who_waits_in_poll_is_told_by_the_next_instance(box: Instances) -> None:
    with opened(box.path / "gate") as fd:
        os.write(fd, b"hello")
        waiter = PollWaiter(fd)
        waiter.start()
        wait_until(waiter.sleeps, what="the wait in poll")
        box.upgrade(seconds=0)
        box.gate.touch()
        waiter.join(SECONDS)
        assert waiter.events == [select.POLLIN]


def test_a_kept_reply_is_for_the_next_reader_still(box: Instances) -> None:
    with opened(box.path / "shout") as fd:
        os.write(fd, b"hello")
    box.upgrade()
    with opened(box.path / "shout", os.O_RDONLY) as fd:
        assert read_all(fd) == b"HELLO"


def test_a_device_that_keeps_consumers_and_adopts_none_says_so(box: Instances) -> None:
    with opened(box.path / "keeping") as fd:
        box.upgrade()
        assert errno_of(os.write, fd, b"hello") == errno.ESTALE
    wait_until(lambda: is_balanced(box, "keeping"), what="its close")


def test_handovers_and_kills_may_take_turns(box: Instances) -> None:
    with opened(box.path / "async") as fd:
        for number in range(4):
            os.write(fd, b"message")
            assert os.read(fd, 2) == b"ME"
            box.upgrade()
            assert os.read(fd, 3) == b"SSA"
            box.kill()
            assert read_all(fd) == b"GE"
            shout(fd, number)
    wait_until(lambda: is_balanced(box, "async"), what="its close")
