"""Open files that outlive the process behind them: adopted consumers, reissued requests, the state that is kept."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ldmfs
from ldmfs.fuse.signals import waiting_on

from .trees import Tree, anew, errno_of, opened, read_all
from .waiting import SECONDS, wait_until

Mount = Callable[[str], Tree]

KILLS = 50
OPTIONS = """\
on_crash = "{policy}"
max_crashes = 1000
max_pause = "0 s"
"""
TEXT = "[text]\n" + OPTIONS + "[text.text]\n"
SLOW = "[slow]\n" + OPTIONS + '[slow.faulty]\nprovider = "text"\ndelay = "300 ms"\n'
KEEPER = "[probe]\n" + OPTIONS + '[probe.probe]\nlog = @log\nkeeps = "{released}"\n'


def kill(tree: Tree, container: str) -> None:
    """Kill a container's process, and wait until the next one is known."""
    pid = tree.pid(container)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: tree.pid(container) != pid, what=f"the next instance of {container}")


class Loop(threading.Thread):
    """Exchanges messages with `text/upper` until it is stopped, in one way; notes errors and wrong replies."""

    def __init__(self, tree: Tree, exchange: Callable[[int, bytes], bytes], *, reopen: bool = False) -> None:
        super().__init__(daemon=True)
        self.path = tree.root / "text/upper"
        self.exchange = exchange
        self.reopen = reopen
        self.done = 0
        self.errors: list[int | None] = []
        self.wrong: list[tuple[bytes, bytes]] = []
        self.stopped = False

    def run(self) -> None:
        fd = os.open(self.path, os.O_RDWR)
        while not self.stopped:
            message = b"message %d" % self.done
            try:
                if self.reopen:
                    fd = anew(fd, self.path)
                reply = self.exchange(fd, message)
                if reply != message.upper():
                    self.wrong.append((message, reply))
            except OSError as error:
                self.errors.append(error.errno)
            self.done += 1
        os.close(fd)


def once(fd: int, message: bytes) -> bytes:
    os.write(fd, message)
    return os.read(fd, 100)


def to_its_end(fd: int, message: bytes) -> bytes:
    os.write(fd, message)
    return read_all(fd)


def in_parts(fd: int, message: bytes) -> bytes:
    os.write(fd, message)
    return b"".join(iter(lambda: os.read(fd, 3), b""))


@contextlib.contextmanager
def running(*loops: Loop) -> Iterator[None]:
    for loop in loops:
        loop.start()
    try:
        go_on(*loops)  # an open that a kill meets is none of theirs
        yield
    finally:
        for loop in loops:
            loop.stopped = True
        for loop in loops:
            loop.join(SECONDS)
    assert not any(loop.is_alive() for loop in loops)


def go_on(*loops: Loop) -> None:
    """Wait until each loop has gone on."""
    before = [loop.done for loop in loops]
    wait_until(lambda: all(loop.done > done + 5 for loop, done in zip(loops, before, strict=True)), what="the loops")


# -- reissue


@pytest.mark.timeout(180)
def test_loops_see_nothing_of_fifty_kills(mount: Mount) -> None:
    tree = mount(TEXT.format(policy="reissue"))
    loops = Loop(tree, once), Loop(tree, to_its_end), Loop(tree, in_parts), Loop(tree, once, reopen=True)
    with running(*loops):
        for _ in range(KILLS):
            kill(tree, "text")
            go_on(*loops)
    assert [(loop.errors, loop.wrong) for loop in loops] == [([], [])] * len(loops)
    assert tree.containers()["text"]["restarts"] == KILLS


def test_a_request_that_runs_is_done_again(mount: Mount) -> None:
    tree = mount(SLOW.format(policy="reissue"))
    with opened(tree.root / "slow/upper") as fd:
        os.write(fd, b"hello")
        kill(tree, "slow")
        assert os.read(fd, 100) == b"HELLO"
        assert os.read(fd, 100) == b""


def test_a_reader_that_waits_gets_its_reply(mount: Mount, tmp_path: Path) -> None:
    released = tmp_path / "released"
    tree = mount(KEEPER.format(policy="reissue", released=released))
    replies: list[bytes] = []
    with opened(tree.root / "probe/keeper") as fd:
        os.write(fd, b"this")
        reader = threading.Thread(target=lambda: replies.append(os.read(fd, 100)))
        reader.start()
        for kills in range(3):
            wait_until(lambda times=kills + 1: started(tree) >= times, what="its handler")
            kill(tree, "probe")
        released.touch()
        reader.join(SECONDS)
    assert replies == [b"kept this"]


def started(tree: Tree) -> int:
    return sum(what == "start" for what, _ in tree.events("keeper"))


# -- waiting in poll


class PollWaiter(threading.Thread):
    """A thread that waits in poll(2) until a file is readable; `events` is what it was told."""

    def __init__(self, fd: int) -> None:
        super().__init__(daemon=True)
        self.fd = fd
        self.events: list[int] = []

    def run(self) -> None:
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        self.events += [event for _, event in poller.poll(1000 * SECONDS)]

    def sleeps(self) -> bool:
        """Tell whether it was answered that there is nothing, and waits for more."""
        try:
            return "poll_schedule" in Path(f"/proc/self/task/{self.native_id}/wchan").read_text()
        except OSError:
            return False


def test_who_waits_in_poll_for_a_killed_instance_is_told_by_the_next(mount: Mount, tmp_path: Path) -> None:
    tree = mount(KEEPER.format(policy="fail", released=tmp_path / "released"))
    with opened(tree.root / "probe/keeper") as fd:
        os.write(fd, b"this")
        waiter = PollWaiter(fd)
        waiter.start()
        wait_until(waiter.sleeps, what="the wait in poll")
        kill(tree, "probe")
        waiter.join(SECONDS)
        assert waiter.events == [select.POLLIN]
        assert errno_of(os.read, fd, 100) == errno.ECONNABORTED


def test_who_waits_in_poll_waits_on_for_what_is_done_again(mount: Mount, tmp_path: Path) -> None:
    released = tmp_path / "released"
    tree = mount(KEEPER.format(policy="reissue", released=released))
    with opened(tree.root / "probe/keeper") as fd:
        os.write(fd, b"this")
        waiter = PollWaiter(fd)
        waiter.start()
        for kills in range(3):
            wait_until(lambda times=kills + 1: started(tree) >= times, what="its handler")
            wait_until(waiter.sleeps, what="the wait in poll")
            kill(tree, "probe")
        assert waiter.events == []
        released.touch()
        waiter.join(SECONDS)
        assert waiter.events == [select.POLLIN]
        assert os.read(fd, 100) == b"kept this"


def test_an_epoll_outlives_kills(mount: Mount) -> None:
    tree = mount(TEXT.format(policy="reissue"))
    with opened(tree.root / "text/upper") as fd, select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        for _ in range(3):
            assert epoll.poll(0) == []
            kill(tree, "text")
            os.write(fd, b"hello")
            assert epoll.poll(SECONDS) == [(fd, select.EPOLLIN)]
            assert to_its_end(fd, b"hello") == b"HELLO"
            epoll.poll(0)


def test_a_reply_that_is_kept_for_the_next_reader_outlives_kills(mount: Mount) -> None:
    tree = mount(TEXT.format(policy="reissue"))
    path = tree.root / "text/upper"
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"hello")
    kill(tree, "text")
    kill(tree, "text")
    with opened(path, os.O_RDONLY) as fd:
        assert os.read(fd, 2) == b"HE"
        kill(tree, "text")
        assert read_all(fd) == b"LLO"
    kill(tree, "text")
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"again")
    with opened(path, os.O_RDONLY) as fd:
        assert read_all(fd) == b"AGAIN"


# -- fail


def test_a_loop_gets_one_error_for_a_kill_at_most_and_goes_on(mount: Mount) -> None:
    tree = mount(TEXT.format(policy="fail"))
    loops = Loop(tree, once), Loop(tree, to_its_end)
    with running(*loops):
        for _ in range(10):
            kill(tree, "text")
            go_on(*loops)
    for loop in loops:
        assert set(loop.errors) <= {errno.ECONNABORTED}
        assert len(loop.errors) <= 10
        assert loop.wrong == []


def test_a_reply_that_was_lost_is_an_error_once(mount: Mount) -> None:
    tree = mount(TEXT.format(policy="fail"))
    with opened(tree.root / "text/upper") as fd:
        os.write(fd, b"hello")
        kill(tree, "text")
        assert errno_of(os.read, fd, 100) == errno.ECONNABORTED
        assert once(fd, b"again") == b"AGAIN"


def test_a_reader_that_waits_is_told_and_nobody_once_more(mount: Mount, tmp_path: Path) -> None:
    tree = mount(KEEPER.format(policy="fail", released=tmp_path / "released"))
    told: list[int | None] = []
    fd = os.open(tree.root / "probe/keeper", os.O_RDWR)
    inode = os.fstat(fd).st_ino
    os.write(fd, b"this")
    reader = threading.Thread(target=lambda: told.append(errno_of(os.read, fd, 100)))
    reader.start()
    wait_until(lambda: list(waiting_on(inode, os.getpid(), set())), what="the reader")
    kill(tree, "probe")
    reader.join(SECONDS)
    assert told == [errno.ECONNABORTED]
    os.close(fd)  # raises what a read would


def test_a_reply_that_was_read_is_at_its_end(mount: Mount) -> None:
    tree = mount(TEXT.format(policy="fail"))
    with opened(tree.root / "text/upper") as fd:
        assert once(fd, b"hello") == b"HELLO"
        kill(tree, "text")
        assert os.read(fd, 100) == b""


def test_what_was_read_in_part_is_an_error_and_no_wrong_byte(mount: Mount) -> None:
    tree = mount(TEXT.format(policy="fail"))
    with opened(tree.root / "text/upper") as fd:
        os.write(fd, b"hello")
        assert os.read(fd, 2) == b"HE"
        kill(tree, "text")
        assert errno_of(os.read, fd, 100) == errno.ECONNABORTED


def test_an_idle_file_sees_nothing(mount: Mount) -> None:
    tree = mount(TEXT.format(policy="fail"))
    with opened(tree.root / "text/upper") as fd:
        kill(tree, "text")
        assert to_its_end(fd, b"hello") == b"HELLO"


# -- consumers


@pytest.mark.parametrize("policy", ["fail", "reissue"])
def test_a_device_takes_over_its_consumers_and_closes_each_once(mount: Mount, tmp_path: Path, policy: str) -> None:
    (tmp_path / "released").touch()
    tree = mount(KEEPER.format(policy=policy, released=tmp_path / "released"))
    with opened(tree.root / "probe/keeper") as fd:
        kill(tree, "probe")
        assert once(fd, b"this") == b"kept this"
    wait_until(lambda: ("close", 1) in [(what, 1) for what, _ in tree.events("keeper")], what="the close handler")
    whats = [what for what, _ in tree.events("keeper")]
    assert (whats.count("open"), whats.count("adopt"), whats.count("close")) == (1, 1, 1)
    assert len({number for _, number in tree.events("keeper")}) == 1


def test_a_device_that_keeps_consumers_and_adopts_none_says_so(mount: Mount, tmp_path: Path) -> None:
    tree = mount(KEEPER.format(policy="fail", released=tmp_path))
    with opened(tree.root / "probe/loser") as fd:
        kill(tree, "probe")
        assert errno_of(os.write, fd, b"hello") == errno.ESTALE
        assert errno_of(os.read, fd, 10) == errno.ESTALE
    wait_until(lambda: [what for what, _ in tree.events("loser")] == ["open", "close"], what="the close handler")
    with opened(tree.root / "probe/loser") as fd:
        assert once(fd, b"hello") == b"hello"


def test_who_came_by_a_channel_is_closed_by_the_next_instance(mount: Mount, tmp_path: Path) -> None:
    tree = mount(KEEPER.format(policy="fail", released=tmp_path))
    with ldmfs.open_device("probe/loser", root=tree.root) as device:
        kill(tree, "probe")
        wait_until(lambda: [what for what, _ in tree.events("loser")] == ["open", "close"], what="the close handler")
        with pytest.raises(ldmfs.ProviderDied):
            ldmfs.send_request(device, b"hello")


def test_whom_nobody_holds_any_more_is_not_counted_for_ever(mount: Mount) -> None:
    tree = mount(TEXT.format(policy="fail"))
    path = tree.root / "text/upper"
    with opened(path) as fd:
        kill(tree, "text")
        assert to_its_end(fd, b"hello") == b"HELLO"
        assert tree.xattr(path, "consumers") == "1"
    wait_until(lambda: tree.xattr(path, "consumers") == "0", what="its close")


# -- state


def test_what_was_committed_is_there_after_a_kill(mount: Mount, tmp_path: Path) -> None:
    tree = mount(KEEPER.format(policy="fail", released=tmp_path))
    with opened(tree.root / "probe/tally") as fd:
        assert once(fd, b"count") == b"1"
        assert errno_of(os.write, fd, b"end") == errno.ECONNABORTED
        assert once(fd, b"count") == b"3"
