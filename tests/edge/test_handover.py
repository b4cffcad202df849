"""What an instance leaves of its open files when it hands over, and how the next one goes on with them."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from support import PEER, Around, Gated, Plain, fail_with, on_virtual_clock

from ldmfs.container.state import SharedState, create
from ldmfs.core.device import Device
from ldmfs.core.errors import InvalidRequest, LdmError, ProviderDied
from ldmfs.core.request import Request, RequestType
from ldmfs.fuse import handover, signals
from ldmfs.fuse.block_file import StaleFile
from ldmfs.fuse.files import File, adopted_file
from ldmfs.fuse.message_file import MessageFile
from ldmfs.fuse.signals import Pending

SECONDS = 5.0
"""Of the virtual clock."""


@pytest.fixture(autouse=True)
def _nothing_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "pending", lambda _tid: Pending.NONE)
    monkeypatch.setattr(signals, "waiting_on", lambda _inode, opener, _openers: iter([opener]))
    monkeypatch.setattr(signals, "exiting_with", lambda _opener: False)


@pytest.fixture
def area() -> Iterator[int]:
    """Give a state area."""
    fd = create()
    yield fd
    os.close(fd)


@pytest.fixture(params=[False, True], ids=["fail", "reissue"])
def reissue(request: pytest.FixtureRequest) -> bool:
    """Give both policies."""
    both: bool = request.param
    return both


class Quiet(Device):
    """Gives what `answer` makes of a request, and knows nothing of its consumers."""

    def __init__(self, answer: Callable[[Request], Any] = lambda request: bytes(request.data).upper()) -> None:
        self.answer = answer
        self.requests: list[RequestType] = []

    def request(self, consumer_id: int, request: Request) -> Any:
        self.requests.append(request.type)
        return self.answer(request)


class Instance(Around):
    """One instance of a container with the device `d`, and its open files."""

    def __init__(self, nursery: trio.Nursery, fd: int, device: Device, *, reissue: bool = False) -> None:
        self.shared = SharedState(fd)
        super().__init__(nursery, self.shared)
        self.container.nursery = nursery
        self.reissue = reissue
        self.files_by_id: dict[int, File] = {}
        self.registry.create_device("d", device)

    def open_files(self) -> list[File]:
        return list(self.files_by_id.values())

    def give_up_opens(self) -> None:
        """Have none."""

    async def hand_over(self) -> None:
        """Hand over, and end."""
        await handover.drain(self, trio.current_time() + SECONDS)
        await trio.testing.wait_all_tasks_blocked()  # what was answered has gone out
        handover.leave(self)
        self.nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()


class OpenFile:
    """An open file as the kernel sees it, over all instances: it counts the offset."""

    def __init__(self, instance: Instance, id: int) -> None:
        self.instance = instance
        self.id = id
        self.offset = 0

    @property
    def file(self) -> MessageFile:
        file = self.instance.files_by_id[self.id]
        assert isinstance(file, MessageFile)
        return file

    def write(self, data: bytes) -> None:
        self.offset += self.file.write(data, self.offset)

    async def read(self, size: int = 4096) -> bytes:
        data = self.file.read_now(size, self.offset)
        if data is None:
            data = await self.file.read(self.offset, size)
        self.offset += len(data)
        return bytes(data)

    async def rest(self) -> bytes:
        """Read to the end of the reply."""
        parts = []
        while part := await self.read():
            parts.append(part)
        return b"".join(parts)

    async def error(self) -> int:
        """Return the errno that a read gives."""
        with pytest.raises(LdmError) as caught:
            await self.read()
        return caught.value.errno


async def own_nursery(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    async with trio.open_nursery() as nursery:
        task_status.started(nursery)
        await trio.sleep_forever()


class Life:
    """The instances of a container, one after the other."""

    def __init__(self, nursery: trio.Nursery, fd: int, *, reissue: bool = False) -> None:
        self.nursery = nursery
        self.fd = fd
        self.reissue = reissue
        self.opened: list[OpenFile] = []

    async def begin(self, device: Device) -> Instance:
        """Start an instance, which takes over what there is."""
        instance = Instance(await self.nursery.start(own_nursery), self.fd, device, reissue=self.reissue)
        await instance.container.adopt()
        for consumer in tuple(instance.registry.consumers.values()):
            instance.files_by_id[consumer.id] = adopted_file(instance, consumer)
        assert instance.files is not None
        handover.go_on(instance.files, instance.kept, instance.files_by_id, reissue=self.reissue)
        for file in self.opened:
            file.instance = instance
        return instance

    async def open(self, instance: Instance, flags: int = os.O_RDWR) -> OpenFile:
        file = await instance.open(Device(), flags)
        instance.files_by_id[file.consumer.id] = file
        opened = OpenFile(instance, file.consumer.id)
        self.opened.append(opened)
        return opened


@asynccontextmanager
async def life(fd: int, *, reissue: bool = False) -> AsyncIterator[Life]:
    async with trio.open_nursery() as nursery:
        yield Life(nursery, fd, reissue=reissue)
        nursery.cancel_scope.cancel()


async def test_a_reply_that_nobody_has_read_is_read_from_the_next_instance(area: int, reissue: bool) -> None:
    async with life(area, reissue=reissue) as box:
        first = await box.begin(Quiet())
        file = await box.open(first)
        file.write(b"hello")
        await first.hand_over()
        device = Quiet()
        await box.begin(device)
        assert [await file.read(), await file.read()] == [b"HELLO", b""]
        assert device.requests == []


async def test_a_reply_goes_on_at_the_next_byte(area: int, reissue: bool) -> None:
    async with life(area, reissue=reissue) as box:
        instance = await box.begin(Quiet())
        file = await box.open(instance)
        file.write(b"question")  # so that the offsets differ
        await file.rest()
        file.write(b"hello there")
        got = b""
        for _ in range(4):
            got += await file.read(2)
            await instance.hand_over()
            instance = await box.begin(Quiet())
        assert got + await file.rest() == b"HELLO THERE"


async def test_a_reply_at_its_end_has_its_end(area: int, reissue: bool) -> None:
    async with life(area, reissue=reissue) as box:
        first = await box.begin(Quiet())
        file = await box.open(first)
        file.write(b"hello")
        assert await file.read() == b"HELLO"
        await first.hand_over()
        device = Quiet()
        await box.begin(device)
        assert await file.read() == b""
        assert device.requests == []


async def test_an_idle_file_sends_its_next_request_to_the_next_instance(area: int, reissue: bool) -> None:
    async with life(area, reissue=reissue) as box:
        first = await box.begin(Quiet())
        file = await box.open(first)
        file.write(b"hello")
        await file.rest()
        await first.hand_over()
        device = Quiet(lambda request: request.type.name.encode())
        await box.begin(device)
        assert await file.rest() == b"READ"


async def test_an_error_that_nobody_was_told_is_told_once(area: int, reissue: bool) -> None:
    async with life(area, reissue=reissue) as box:
        gated = Gated(fail_with(InvalidRequest("no")))
        gated.adopt = lambda consumer_id: None  # type: ignore[method-assign]
        first = await box.begin(gated)
        file = await box.open(first)
        file.write(b"hello")
        gated.gate.set()
        await first.hand_over()
        await box.begin(Quiet(lambda request: request.type.name.encode()))
        assert await file.error() == errno.EINVAL
        assert await file.rest() == b"READ"


@on_virtual_clock
async def test_a_handler_that_runs_is_waited_for(area: int, reissue: bool) -> None:
    async with life(area, reissue=reissue) as box:
        gated = Gated()
        first = await box.begin(gated)
        file = await box.open(first)
        file.write(b"hello")

        async def release() -> None:
            await trio.sleep(SECONDS / 2)
            gated.gate.set()

        box.nursery.start_soon(release)
        await first.hand_over()
        device = Quiet()
        await box.begin(device)
        assert await file.rest() == b"HELLO"
        assert device.requests == []


@on_virtual_clock
async def test_a_handler_that_runs_at_the_deadline_is_given_up(area: int) -> None:
    async with life(area) as box:
        gated = Gated()
        first = await box.begin(gated)
        unread, waiting = await box.open(first), await box.open(first)
        unread.write(b"unread")
        waiting.write(b"waiting")
        errors: list[int] = []

        async def wait() -> None:
            errors.append(await waiting.error())

        box.nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await first.hand_over()
        assert (errors, gated.cancelled) == ([ProviderDied.errno], 2)
        device = Quiet(lambda request: request.type.name.encode())
        await box.begin(device)
        assert await unread.error() == ProviderDied.errno
        assert [await unread.rest(), await waiting.rest()] == [b"READ", b"READ"]


@on_virtual_clock
async def test_a_handler_that_runs_at_the_deadline_is_run_again_where_requests_are(area: int) -> None:
    async with life(area, reissue=True) as box:
        gated = Gated()
        first = await box.begin(gated)
        file = await box.open(first)
        file.write(b"hello")
        await first.hand_over()
        device = Quiet()
        await box.begin(device)
        assert await file.rest() == b"HELLO"
        assert device.requests == [RequestType.CALL]


async def test_a_kill_after_a_handover_loses_nothing_that_was_handed_over(area: int, reissue: bool) -> None:
    async with life(area, reissue=reissue) as box:
        first = await box.begin(Quiet())
        file = await box.open(first)
        file.write(b"hello there")
        await first.hand_over()
        got = b""
        for _ in range(3):
            await box.begin(Quiet())
            got += await file.read(3)
        assert got + await file.rest() == b"HELLO THERE"


async def test_what_was_handed_over_is_no_reply_to_what_was_written_later(area: int) -> None:
    async with life(area) as box:
        first = await box.begin(Quiet())
        file = await box.open(first)
        file.write(b"one")
        await first.hand_over()
        await box.begin(Quiet())
        file.write(b"two")
        await box.begin(Quiet())  # the one before was killed
        assert await file.error() == ProviderDied.errno
        assert await file.read() == b""


async def test_what_was_read_to_its_end_leaves_nothing(area: int, reissue: bool) -> None:
    async with life(area, reissue=reissue) as box:
        first = await box.begin(Quiet())
        file = await box.open(first)
        file.write(b"one")
        await first.hand_over()
        second = await box.begin(Quiet())
        assert await file.rest() == b"ONE"
        await second.hand_over()
        third = await box.begin(Quiet())
        await third.close(file.file)
        del third.files_by_id[file.id]
        box.opened.clear()
        fourth = await box.begin(Quiet())
        assert fourth.files is not None
        assert len(fourth.files) == 0


async def test_what_is_kept_for_the_next_reader_is_kept_on(area: int, reissue: bool) -> None:
    async with life(area, reissue=reissue) as box:
        first = await box.begin(Quiet())
        file = await box.open(first)
        file.write(b"hello")
        await first.close(file.file)
        del first.files_by_id[file.id]
        box.opened.clear()
        await first.hand_over()
        second = await box.begin(Quiet())
        reader = await box.open(second)
        assert await reader.rest() == b"HELLO"
        assert len(second.kept) == 0


async def test_an_error_is_kept_on_too(area: int) -> None:
    async with life(area) as box:
        first = await box.begin(Quiet())
        first.kept.keep(first.registry.find("d").id, PEER, 1, b"", InvalidRequest("no"))
        await first.hand_over()
        second = await box.begin(Quiet())
        reader = await box.open(second)
        assert await reader.error() == errno.EINVAL


async def test_what_its_writer_goes_on_with_is_kept_no_more(area: int) -> None:
    async with life(area) as box:
        first = await box.begin(Quiet())
        file = await box.open(first)
        file.write(b"hello")
        await file.file.flush()  # of a duplicate
        await first.hand_over()
        second = await box.begin(Quiet())
        assert len(second.kept) == 1
        assert await file.read() == b"HELLO"
        assert len(second.kept) == 0


async def test_what_does_not_fit_is_lost_and_its_reader_is_told(area: int, caplog: pytest.LogCaptureFixture) -> None:
    async with life(area) as box:
        first = await box.begin(Quiet(lambda request: bytes(65 << 20)))
        file = await box.open(first)
        file.write(b"hello")
        await first.hand_over()
        assert "lost" in caplog.text
        caplog.clear()
        await box.begin(Quiet())
        assert await file.error() == ProviderDied.errno


async def test_a_device_that_keeps_consumers_and_adopts_none_loses_them(area: int) -> None:
    async with life(area) as box:
        first = await box.begin(Plain())
        file = await box.open(first)
        file.write(b"hello")
        await first.hand_over()
        second = await box.begin(Plain())
        assert isinstance(second.files_by_id[file.id], StaleFile)
