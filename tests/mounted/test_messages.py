"""The open file of a message device: one write one request, its reply or its error, and who waits for whom."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable

import pytest

from ldmfs.core.request import MAX_MESSAGE

from .trees import Tree, errno_of, exchange, opened, read_all
from .waiting import SECONDS, wait_until

RAISED = {"ldm 28": errno.ENOSPC, "error": errno.EIO, "exit": errno.EIO, "keyboard": errno.EIO, "type": errno.EIO}
WRONG = pytest.mark.parametrize(("request_", "number"), RAISED.items(), ids=[name.split()[0] for name in RAISED])


# -- replies


@pytest.mark.parametrize("kind", ["echo", "async", "thread"])
def test_the_reply_is_read_from_the_same_open_file(tree: Tree, kind: str) -> None:
    with tree.made(kind) as device:
        assert exchange(device, b"hello") == b"hello"


@pytest.mark.parametrize("kind", ["echo", "async", "thread"])
def test_a_reply_is_read_in_small_pieces_and_then_ends_once(tree: Tree, kind: str) -> None:
    with tree.made(kind) as device, opened(device) as fd:
        os.write(fd, b"abcdefg")
        assert [os.read(fd, 3) for _ in range(4)] == [b"abc", b"def", b"g", b""]
        assert os.read(fd, 100) == b"read 1\n"


def test_a_reply_longer_than_a_request_can_be_is_read_whole(tree: Tree) -> None:
    with tree.made("zeros") as device, opened(device) as fd:
        os.write(fd, b"5000000")
        reply = read_all(fd)
    assert len(reply) == 5_000_000
    assert reply == (bytes(range(256)) * (5_000_000 // 256 + 1))[:5_000_000]


def test_a_second_write_replaces_a_reply_that_was_not_read(tree: Tree) -> None:
    with tree.made("echo") as device, opened(device) as fd:
        os.write(fd, b"one")
        os.write(fd, b"two")
        assert read_all(fd) == b"two"


def test_a_read_with_nothing_written_sends_a_read_request(tree: Tree) -> None:
    with tree.made("echo") as device, opened(device, os.O_RDONLY) as fd:
        assert [read_all(fd), read_all(fd)] == [b"read 1\n", b"read 2\n"]


def test_each_open_is_a_consumer_with_its_own_reply(tree: Tree) -> None:
    with tree.made("echo") as device, opened(device) as one, opened(device) as two:
        os.write(one, b"one")
        os.write(two, b"two")
        assert (read_all(one), read_all(two)) == (b"one", b"two")
        assert device.count("open") == 2


def test_duplicates_of_a_descriptor_are_one_consumer(tree: Tree) -> None:
    with tree.made("echo") as device, opened(device) as fd:
        other = os.dup(fd)
        os.write(fd, b"hello")
        os.close(fd)
        assert read_all(other) == b"hello"
        assert (device.count("open"), device.count("close")) == (1, 0)
        os.dup2(other, fd)
        os.close(other)


def test_the_close_handler_runs_once_for_each_open(tree: Tree) -> None:
    with tree.made("echo") as device:
        for _ in range(3):
            exchange(device, b"x")
        device.wait("close", 3)
        assert sorted(n for what, n in tree.events(device.name) if what == "open") == sorted(
            n for what, n in tree.events(device.name) if what == "close"
        )


# -- lengths


@pytest.mark.parametrize("length", [1, 4096, 128 << 10, MAX_MESSAGE])
def test_a_message_arrives_as_one_request(tree: Tree, length: int) -> None:
    message = os.urandom(length)
    with tree.made("echo") as device:
        assert exchange(device, message) == message


@pytest.mark.parametrize("kind", ["echo", "async"])
@pytest.mark.parametrize("length", [MAX_MESSAGE + 1, 1 << 20, 2 << 20])
def test_a_longer_message_is_refused_whole(tree: Tree, kind: str, length: int) -> None:
    with tree.made(kind) as device, opened(device) as fd:
        assert errno_of(os.write, fd, bytes(length)) == errno.EMSGSIZE
        os.write(fd, b"next")
        assert read_all(fd) == b"next"


# -- errors


@WRONG
def test_what_a_plain_handler_raises_is_the_error_of_the_write(tree: Tree, request_: str, number: int) -> None:
    with tree.made("fail") as device, opened(device) as fd:
        assert errno_of(os.write, fd, request_.encode()) == number
        os.write(fd, b"fine")
        assert read_all(fd) == b"fine"


@WRONG
@pytest.mark.parametrize("kind", ["asyncfail", "threadfail"])
def test_what_another_handler_raises_is_the_error_of_the_read(
    tree: Tree, kind: str, request_: str, number: int
) -> None:
    with tree.made(kind) as device, opened(device) as fd:
        os.write(fd, request_.encode())
        assert errno_of(os.read, fd, 100) == number
        os.write(fd, b"fine")
        assert read_all(fd) == b"fine"


@WRONG
@pytest.mark.parametrize("kind", ["asyncfail", "threadfail"])
def test_an_error_that_nobody_reads_is_the_error_of_the_close(
    tree: Tree, kind: str, request_: str, number: int
) -> None:
    with tree.made(kind) as device:
        fd = os.open(device, os.O_WRONLY)
        os.write(fd, request_.encode())
        assert errno_of(os.close, fd) == number


def test_the_log_of_the_container_has_the_traceback_of_a_bug(tree: Tree) -> None:
    with tree.made("fail") as device:
        assert errno_of(exchange, device, b"error") == errno.EIO
        log = (tree.root / ".ldmfs/log/probe").read_text()
    assert f"device {device.name}: its request handler raised" in log
    assert "ZeroDivisionError: a bug of this provider" in log


def test_a_device_that_refuses_to_be_opened_tells_its_error(tree: Tree) -> None:
    with tree.made("refusing") as device:
        assert errno_of(os.open, device, os.O_RDWR) == errno.EACCES
        assert tree.xattr(device.path, "consumers") == "0"
        assert device.count("close") == 0


# -- waiting


def test_close_waits_for_a_handler_that_is_running(tree: Tree, start: Callable) -> None:
    with tree.made("gate") as device:
        writer = start(["sh", "-c", f"echo hello > {device}; cat {device}"])
        device.wait("start")
        assert writer.poll() is None
        device.release()
        assert writer.communicate(timeout=SECONDS)[0] == "hello\n"


@pytest.mark.parametrize("kind", ["gate", "threadgate"])
def test_a_write_does_not_wait_for_a_slow_handler(tree: Tree, kind: str) -> None:
    with tree.made(kind) as device, opened(device) as fd:
        os.write(fd, b"slow")
        device.wait("start")
        assert device.count("done") == 0
        device.release()
        assert read_all(fd) == b"slow"


def test_a_slow_handler_holds_up_no_other_consumer_of_the_device(tree: Tree) -> None:
    with tree.made("gate") as device, opened(device) as slow:
        os.write(slow, b"slow")
        device.wait("start")
        assert exchange(device, b"now") == b"now"
        assert device.count("done") == 1  # the fast one's
        device.release()
        assert read_all(slow) == b"slow"


def test_a_consumer_that_waits_in_read_holds_up_no_other(tree: Tree, start: Callable) -> None:
    with tree.made("gate") as device:
        reader = start(["cat", str(device)])
        device.wait("start")
        assert exchange(device, b"now") == b"now"
        assert reader.poll() is None
        device.release()
        assert reader.communicate(timeout=SECONDS)[0] == "read\n"


def test_a_handler_in_a_thread_holds_up_no_other_device(tree: Tree) -> None:
    with tree.made("threadgate") as slow, tree.made("echo") as fast, opened(slow) as fd:
        os.write(fd, b"slow")
        slow.wait("start")
        assert exchange(fast, b"hello") == b"hello"
        assert slow.count("done") == 0
        slow.release()
        assert read_all(fd) == b"slow"


def test_a_write_while_a_request_runs_is_busy(tree: Tree) -> None:
    with tree.made("gate") as device, opened(device) as fd:
        os.write(fd, b"first")
        assert errno_of(os.write, fd, b"second") == errno.EBUSY
        device.release()
        assert read_all(fd) == b"first"
        os.write(fd, b"second")
        assert read_all(fd) == b"second"


def test_the_graph_counts_what_is_outstanding(tree: Tree) -> None:
    with tree.made("gate") as device, opened(device) as fd:
        os.write(fd, b"first")
        device.wait("start")
        (consumer,) = tree.device(f"probe/{device.name}")["consumers"]
        assert (consumer["outstanding"], consumer["requests"], consumer["pid"]) == (1, 1, os.getpid())
        device.release()
        assert read_all(fd) == b"first"


# -- non-blocking mode


def test_a_non_blocking_read_is_told_to_try_again_until_the_reply_is_there(tree: Tree) -> None:
    with tree.made("gate") as device, opened(device, os.O_RDWR | os.O_NONBLOCK) as fd:
        os.write(fd, b"hello")
        assert errno_of(os.read, fd, 100) == errno.EAGAIN
        device.release()
        device.wait("done")
        wait_until(lambda: errno_of(os.read, fd, 0) is None)
        assert read_all(fd) == b"hello"


def test_a_non_blocking_read_with_nothing_written_starts_a_read(tree: Tree) -> None:
    with tree.made("gate") as device, opened(device, os.O_RDONLY | os.O_NONBLOCK) as fd:
        assert errno_of(os.read, fd, 100) == errno.EAGAIN
        assert errno_of(os.read, fd, 100) == errno.EAGAIN
        device.release()
        device.wait("done")
        assert device.count("start") == 1
        assert wait_until(lambda: errno_of(os.read, fd, 0) is None)


def test_poll_wakes_when_the_reply_is_there(tree: Tree) -> None:
    with tree.made("gate") as device, opened(device, os.O_RDWR | os.O_NONBLOCK) as fd:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(0) == []
        os.write(fd, b"hello")
        assert poll.poll(20) == []
        device.release()
        assert poll.poll(SECONDS * 1000) == [(fd, select.POLLIN)]
        assert os.read(fd, 100) == b"hello"


def test_epoll_wakes_when_the_reply_is_there(tree: Tree) -> None:
    with tree.made("threadgate") as device, opened(device, os.O_RDWR | os.O_NONBLOCK) as fd, select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN)
        os.write(fd, b"hello")
        assert epoll.poll(0.02) == []
        device.release()
        assert epoll.poll(SECONDS) == [(fd, select.EPOLLIN)]
        assert os.read(fd, 100) == b"hello"


def test_poll_tells_that_a_request_can_be_written(tree: Tree) -> None:
    with tree.made("gate") as device, opened(device, os.O_RDWR | os.O_NONBLOCK) as fd:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        assert poll.poll(0) == [(fd, select.POLLOUT)]
        os.write(fd, b"hello")
        assert poll.poll(0) == []
        device.release()
        assert poll.poll(SECONDS * 1000) == [(fd, select.POLLOUT)]


def test_closing_a_non_blocking_file_waits_for_nothing_and_cancels(tree: Tree) -> None:
    with tree.made("gate") as device:
        with opened(device, os.O_RDWR | os.O_NONBLOCK) as fd:
            os.write(fd, b"hello")
            device.wait("start")
        device.wait("cancelled")
        device.wait("close")
        assert device.count("done") == 0
