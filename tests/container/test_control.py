"""The control link, and a container's side of it when its supervisor has died."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from mounted.trees import become

from ldmfs.channel.address import address, listen
from ldmfs.container.adoption import Attendance
from ldmfs.container.control import Describe, Description, Kept, Message, Ready, Start, Stop, encode
from ldmfs.container.host import Container
from ldmfs.container.link import Link

NOBODY = 65534

CONNECT = """\
import socket, sys
end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
end.connect(sys.argv[1])
print(end.recv(1000))
"""


def links() -> tuple[Link, Link]:
    ours, theirs = socket.socketpair()
    return Link(ours), Link(theirs)


async def test_messages_arrive_in_order_with_their_descriptors() -> None:
    one, two = links()
    read, write = os.pipe()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.send, Describe(1), [write])
        assert await two.receive() == Describe(1)
    (got,) = two.take_fds()
    assert two.take_fds() == []
    assert not os.get_inheritable(got)
    os.write(got, b"here")
    assert os.read(read, 10) == b"here"
    for fd in (read, write, got):
        os.close(fd)
    await one.send(Ready(1.0))
    await one.aclose()
    assert [message async for message in two] == [Ready(1.0)]
    assert await two.receive() is None
    await two.aclose()


async def test_a_message_may_be_larger_than_the_sockets_buffer() -> None:
    one, two = links()
    message = Description(1, {"devices": ["x" * 100] * 20000})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.send, message)
        assert await two.receive() == message
    await one.aclose()
    await two.aclose()


@pytest.mark.logs
async def test_what_is_not_understood_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    link = Link(theirs)
    with ours:
        ours.send(b'{"type":"of a later version"}\nnonsense\n' + encode(Stop()))
    assert await link.receive() == Stop()
    assert await link.receive() is None
    await link.aclose()


async def test_what_a_dead_process_said_last_is_read() -> None:
    ours, theirs = socket.socketpair()
    link = Link(theirs)
    ours.send(encode(Ready(1.0)) + encode(Stop())[:5])
    assert list(link.rest()) == [Ready(1.0)]
    ours.send(encode(Stop())[5:] + encode(Describe(3)))
    ours.close()
    assert list(link.rest()) == [Stop(), Describe(3)]
    await link.aclose()


async def test_descriptors_that_nobody_takes_are_closed() -> None:
    one, two = links()
    read, write = os.pipe()
    await one.send(Stop(), [write])
    os.close(write)
    assert await two.receive() == Stop()
    await two.aclose()
    assert os.read(read, 1) == b""
    os.close(read)
    await one.aclose()


class Served:
    """A container's side of a link, with a pipe in the place of the FUSE connection, and its socket."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "adopt"
        self.ours, theirs = socket.socketpair()
        self.attendance = Attendance(Link(theirs))

    async def start(self) -> None:
        read, write = os.pipe()
        with listen(self.socket, 0o666, socket.SOCK_STREAM) as adoption, socket.socket() as channel:
            link = Link(self.ours.dup())
            await link.send(Start("x", "/", ()), [write, write, channel.fileno(), adoption.fileno()])
            await link.aclose()
        message = await self.attendance.receive()
        assert isinstance(message, Start)
        for fd in (read, write, self.attendance.keep(message).device):
            os.close(fd)

    def connect(self) -> Link:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with address(self.socket) as at:
            end.connect(at)
        return Link(end)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Give a directory that every user can search: pytest's own are root's alone."""
    with tempfile.TemporaryDirectory(prefix="ldmfs-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


async def expect(link: Link, kind: type[Message]) -> Message:
    with trio.fail_after(30):  # never reached
        message = await link.receive()
    assert isinstance(message, kind)
    return message


@pytest.mark.logs
async def test_each_supervisor_gets_what_was_kept_and_is_obeyed(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = Served(directory)
    await served.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.attendance.attend, Container("x"))
        early = served.connect()  # it waits
        served.ours.close()
        kept = await expect(early, Kept)
        assert (kept.start, kept.pid, kept.ready) == (Start("x", "/", ()), os.getpid(), False)
        for fd in early.take_fds():
            os.close(fd)
        await served.attendance.ready()
        ready = await expect(early, Ready)
        await early.aclose()
        for _ in range(3):  # and these are killed
            await served.connect().aclose()
        last = served.connect()
        kept = await expect(last, Kept)
        assert (kept.ready, kept.since) == (True, ready.since)
        await last.send(Describe(7))
        assert (await expect(last, Description)).number == 7
        await last.send(Stop())
        with trio.fail_after(30):
            await served.attendance.stopping.wait()
        await last.aclose()
    await served.attendance.aclose()


@pytest.mark.logs
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
async def test_another_user_is_turned_away(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    served = Served(directory)
    await served.start()
    served.ours.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.attendance.attend, Container("x"))
        done = await trio.run_process(
            [*become(NOBODY), sys.executable, "-c", CONNECT, str(served.socket)], capture_stdout=True
        )
        assert done.stdout == b"b''\n"
        own = served.connect()
        await expect(own, Kept)
        await own.send(Stop())
        await served.attendance.stopping.wait()
        await own.aclose()
    await served.attendance.aclose()
