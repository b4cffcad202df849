"""The FUSE operations of a container, called as pyfuse3 calls them, without a mount."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing
from pyfuse3 import EntryAttributes, FUSEError
from support import Gated, Plain, fail_with

from ldmfs.container.host import Container
from ldmfs.core.device import Device, Kind
from ldmfs.core.errors import AccessDenied, DeviceExists, InvalidRequest
from ldmfs.core.registry import ROOT_ID
from ldmfs.core.request import MAX_MESSAGE, Request, RequestType
from ldmfs.fuse.attributes import CACHE_SECONDS
from ldmfs.fuse.lean import BargingLock
from ldmfs.fuse.operations import Operations
from ldmfs.fuse.safe import operation

CONTEXT: Any = types.SimpleNamespace(pid=os.getpid(), uid=os.getuid(), gid=os.getgid(), umask=0o22)
GONE = 999_999
"""A node id or handle that nothing has."""


@pytest.fixture(autouse=True)
def invalidated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bytes, int]]:
    """Note what the kernel is told to forget."""
    calls: list[tuple[int, bytes, int]] = []

    def invalidate(parent: int, name: bytes, deleted: int = 0) -> None:
        calls.append((parent, name, deleted))

    monkeypatch.setattr(pyfuse3, "invalidate_entry", invalidate)
    return calls


class Served:
    """The operations of a container with some devices."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.container = Container("box")
        self.registry = self.container.registry
        self.operations = Operations(self.registry, self.container.dispatch, nursery)

    def create(self, name: str, device: Device | None = None) -> int:
        """Create a device and return its node id."""
        return self.container.create_device(name, device or Plain(), provider="text").id

    async def open(self, device: Device | None = None, flags: int = os.O_RDWR, name: str = "d") -> int:
        """Create a device, open it, and return the handle."""
        info = await self.operations.open(self.create(name, device), flags, CONTEXT)
        return info.fh


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[Served]:
    async with trio.open_nursery() as nursery:
        box = Served(nursery)
        yield box
        box.operations.invalidations.detach()
        await box.operations.invalidations.settle()
        nursery.cancel_scope.cancel()


async def errno_of(awaitable: Awaitable[Any]) -> int:
    """Return the number of the FUSEError that is raised."""
    with pytest.raises(FUSEError) as caught:
        await awaitable
    return caught.value.errno


# -- names and attributes


async def test_lookup_finds_a_device() -> None:
    async with served() as box:
        number = box.create("upper")
        assert (await box.operations.lookup(ROOT_ID, b"upper", CONTEXT)).st_ino == number


@pytest.mark.parametrize("name", [b"lower", b"", b"\xff\xfe", b"a" * 255, "é".encode()])
async def test_lookup_of_an_unknown_name(name: bytes) -> None:
    async with served() as box:
        assert await errno_of(box.operations.lookup(ROOT_ID, name, CONTEXT)) == errno.ENOENT


async def test_lookup_finds_a_name_that_is_no_ascii() -> None:
    async with served() as box:
        number = box.create("größe")
        assert (await box.operations.lookup(ROOT_ID, "größe".encode(), CONTEXT)).st_ino == number


async def test_lookup_in_a_device_finds_nothing() -> None:
    async with served() as box:
        number = box.create("upper")
        assert await errno_of(box.operations.lookup(number, b"upper", CONTEXT)) == errno.ENOENT


async def test_a_new_device_is_found_at_once() -> None:
    async with served() as box:
        assert await errno_of(box.operations.lookup(ROOT_ID, b"upper", CONTEXT)) == errno.ENOENT
        box.create("upper")
        await box.operations.lookup(ROOT_ID, b"upper", CONTEXT)


async def test_a_device_is_a_file_with_its_mode_and_owner() -> None:
    async with served() as box:
        number = box.create("d", Plain(mode=0o640, uid=5, gid=6))
        entry = await box.operations.getattr(number, CONTEXT)
        assert (entry.st_mode, entry.st_uid, entry.st_gid) == (stat.S_IFREG | 0o640, 5, 6)


async def test_a_message_device_has_no_size() -> None:
    async with served() as box:
        assert (await box.operations.getattr(box.create("d"), CONTEXT)).st_size == 0


async def test_a_block_device_has_its_size() -> None:
    async with served() as box:
        entry = await box.operations.getattr(box.create("d", Plain(kind=Kind.BLOCK, size=1 << 30)), CONTEXT)
        assert (entry.st_size, entry.st_blocks) == (1 << 30, (1 << 30) // 512)


async def test_the_directory_is_one_that_others_may_read() -> None:
    async with served() as box:
        entry = await box.operations.getattr(ROOT_ID, CONTEXT)
        assert (entry.st_ino, entry.st_mode) == (ROOT_ID, stat.S_IFDIR | 0o755)


@pytest.mark.parametrize("name", ["directory", "device"])
async def test_attributes_and_names_are_cached_long(name: str) -> None:
    async with served() as box:
        number = ROOT_ID if name == "directory" else box.create("d")
        entry = await box.operations.getattr(number, CONTEXT)
        assert (entry.attr_timeout, entry.entry_timeout) == (CACHE_SECONDS, CACHE_SECONDS)


async def test_attributes_of_a_device_that_is_gone() -> None:
    async with served() as box:
        assert await errno_of(box.operations.getattr(GONE, CONTEXT)) == errno.ENOENT


def fields(*updated: str) -> Any:
    names = ("atime", "mtime", "ctime", "mode", "uid", "gid", "size")
    return types.SimpleNamespace(**{f"update_{name}": name in updated for name in names})


def wanted(**values: int) -> EntryAttributes:
    entry = EntryAttributes()
    for name, value in values.items():
        setattr(entry, f"st_{name}", value)
    return entry


@pytest.mark.parametrize(("field", "value", "result"), [("mode", 0o100600, 0o600), ("uid", 5, 5), ("gid", 6, 6)])
async def test_chmod_and_chown_are_taken_over(field: str, value: int, result: int) -> None:
    async with served() as box:
        number = box.create("d")
        await box.operations.setattr(number, wanted(**{field: value}), fields(field), None, CONTEXT)
        assert getattr(box.registry.find("d"), field) == result


async def test_chmod_answers_with_the_new_mode() -> None:
    async with served() as box:
        number = box.create("d")
        entry = await box.operations.setattr(number, wanted(mode=0o100600), fields("mode"), None, CONTEXT)
        assert entry.st_mode == stat.S_IFREG | 0o600


async def test_truncating_to_nothing_is_harmless() -> None:
    async with served() as box:
        number = box.create("d", Plain(kind=Kind.BLOCK, size=100))
        entry = await box.operations.setattr(number, wanted(size=0), fields("size"), None, CONTEXT)
        assert entry.st_size == 100


async def test_truncating_to_another_size_is_refused() -> None:
    async with served() as box:
        number = box.create("d")
        changing = box.operations.setattr(number, wanted(size=7), fields("size", "mode"), None, CONTEXT)
        assert await errno_of(changing) == errno.EINVAL
        assert box.registry.find("d").mode == 0o666


async def test_setting_times_does_nothing() -> None:
    async with served() as box:
        number = box.create("d")
        before = (await box.operations.getattr(number, CONTEXT)).st_mtime_ns
        entry = await box.operations.setattr(number, wanted(mtime_ns=5), fields("mtime", "atime"), None, CONTEXT)
        assert entry.st_mtime_ns == before


async def test_the_directory_cannot_be_changed() -> None:
    async with served() as box:
        changing = box.operations.setattr(ROOT_ID, wanted(mode=0), fields("mode"), None, CONTEXT)
        assert await errno_of(changing) == errno.EPERM


# -- listings


class Listing:
    """Takes directory entries as the kernel does: as many as there is room for at a time."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.part: list[tuple[bytes, int, int]] = []

    def reply(self, token: object, name: bytes, entry: EntryAttributes, next_id: int) -> bool:
        if len(self.part) == self.room:
            return False
        self.part.append((name, entry.st_ino, next_id))
        return True

    async def parts(self, operations: Operations, handle: int) -> AsyncIterator[list[bytes]]:
        start = 0
        while True:
            self.part = []
            await operations.readdir(handle, start, None)  # type: ignore[arg-type]
            if not self.part:
                return
            start = self.part[-1][2]
            yield [name for name, _, _ in self.part]


@pytest.mark.parametrize("room", [1, 2, 3, 100])
async def test_a_listing_has_each_device_once(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing(room)
    monkeypatch.setattr(pyfuse3, "readdir_reply", listing.reply)
    async with served() as box:
        for name in "abcde":
            box.create(name)
        handle = await box.operations.opendir(ROOT_ID, CONTEXT)
        found = [name async for part in listing.parts(box.operations, handle) for name in part]
        assert sorted(found) == [b"a", b"b", b"c", b"d", b"e"]


async def test_a_listing_leaves_out_what_was_destroyed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing(1)
    monkeypatch.setattr(pyfuse3, "readdir_reply", listing.reply)
    async with served() as box:
        for name in "abc":
            box.create(name)
        handle = await box.operations.opendir(ROOT_ID, CONTEXT)
        box.container.destroy_device("b")
        found = [name async for part in listing.parts(box.operations, handle) for name in part]
        assert sorted(found) == [b"a", b"c"]


async def test_an_entry_of_a_listing_has_its_node_id(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing(10)
    monkeypatch.setattr(pyfuse3, "readdir_reply", listing.reply)
    async with served() as box:
        number = box.create("a")
        handle = await box.operations.opendir(ROOT_ID, CONTEXT)
        await box.operations.readdir(handle, 0, None)  # type: ignore[arg-type]
        assert listing.part == [(b"a", number, number)]


async def test_a_listing_goes_on_with_the_next_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing(2)
    monkeypatch.setattr(pyfuse3, "readdir_reply", listing.reply)
    found, start = [], 0
    for names in ("abcde", "edcba", "bdxace"):
        async with served() as box:
            for name in names:
                box.create(name)
            listing.part = []
            await box.operations.readdir(GONE, start, None)  # type: ignore[arg-type]
            start = listing.part[-1][2]
            found += [name for name, _, _ in listing.part if name != b"x"]
    assert len(set(found)) == len(found) >= 5 - (b"x" not in found)


async def test_a_released_listing_is_forgotten() -> None:
    async with served() as box:
        handle = await box.operations.opendir(ROOT_ID, CONTEXT)
        await box.operations.releasedir(handle)
        await box.operations.releasedir(handle)
        assert len(box.operations._listings) == 0


# -- open files


async def test_an_open_file_is_a_consumer() -> None:
    async with served() as box:
        handle = await box.open()
        assert box.registry.consumer(handle).peer.pid == os.getpid()


async def test_a_consumer_has_the_session_of_its_process() -> None:
    async with served() as box:
        handle = await box.open()
        assert box.registry.consumer(handle).peer.session == os.getsid(0)


async def test_a_consumer_that_opened_in_a_thread_is_its_process() -> None:
    async with served() as box:
        number, handles = box.create("d"), []
        ready, end = threading.Event(), threading.Event()

        def wait() -> None:
            ready.set()
            end.wait()

        thread = threading.Thread(target=wait)
        thread.start()
        ready.wait()
        context: Any = types.SimpleNamespace(pid=thread.native_id, uid=0, gid=0)
        handles.append((await box.operations.open(number, os.O_RDWR, context)).fh)
        end.set()
        thread.join()
        assert box.registry.consumer(handles[0]).peer.pid == os.getpid()


@pytest.mark.parametrize(("kind", "nonseekable"), [(Kind.MESSAGE, True), (Kind.BLOCK, False)])
async def test_files_bypass_the_page_cache(kind: Kind, nonseekable: bool) -> None:
    async with served() as box:
        info = await box.operations.open(box.create("d", Plain(kind=kind, size=512)), os.O_RDWR, CONTEXT)
        assert (info.direct_io, info.keep_cache, info.nonseekable) == (True, False, nonseekable)


async def test_opening_what_is_gone_makes_the_kernel_look_up_again() -> None:
    async with served() as box:
        assert await errno_of(box.operations.open(GONE, os.O_RDWR, CONTEXT)) == errno.ESTALE


async def test_a_refused_open_is_its_error() -> None:
    class Closed(Plain):
        def open(self, consumer_id: int) -> None:
            raise AccessDenied

    async with served() as box:
        assert await errno_of(box.open(Closed())) == errno.EACCES
        assert box.operations._files == {}


async def test_create_opens_a_device_that_exists() -> None:
    async with served() as box:
        number = box.create("d")
        info, entry = await box.operations.create(ROOT_ID, b"d", 0o644, os.O_RDWR | os.O_CREAT, CONTEXT)
        assert (entry.st_ino, box.registry.consumer(info.fh).device.name) == (number, "d")


async def test_create_of_no_device_is_refused() -> None:
    async with served() as box:
        creating = box.operations.create(ROOT_ID, b"d", 0o644, os.O_RDWR | os.O_CREAT, CONTEXT)
        assert await errno_of(creating) == errno.ENOENT
        assert len(box.registry) == 0


async def test_a_message_is_written_and_its_reply_read() -> None:
    async with served() as box:
        handle = await box.open()
        assert await box.operations.write(handle, 0, b"hello") == 5
        assert [bytes(await box.operations.read(handle, 0, 100)) for _ in range(2)] == [b"HELLO", b""]


async def test_the_offset_of_the_kernel_does_not_matter_for_a_message() -> None:
    async with served() as box:
        handle = await box.open()
        await box.operations.write(handle, 5, b"hello")
        assert await box.operations.read(handle, 10, 100) == b"HELLO"


async def test_a_message_that_is_answered_at_once_needs_no_waiting() -> None:
    async with served() as box:
        handle = await box.open()
        with trio.testing.assert_no_checkpoints():
            await box.operations.write(handle, 0, b"hello")
            await box.operations.read(handle, 0, 100)


async def test_an_async_reply_is_waited_for() -> None:
    async with served() as box:
        device = Gated()
        device.gate.set()
        handle = await box.open(device)
        await box.operations.write(handle, 0, b"hello")
        assert await box.operations.read(handle, 0, 100) == b"HELLO"


async def test_a_waiting_read_lets_another_request_in(monkeypatch: pytest.MonkeyPatch) -> None:
    woken = []
    monkeypatch.setattr(BargingLock, "current", types.SimpleNamespace(wake=lambda: woken.append(True)))
    async with served() as box:
        device = Gated()
        handle = await box.open(device)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.operations.read, handle, 0, 100)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == [True]
            device.gate.set()


@pytest.mark.parametrize(
    ("error", "number"), [(InvalidRequest(), errno.EINVAL), (DeviceExists(), errno.EEXIST)], ids=["EINVAL", "EEXIST"]
)
async def test_an_error_of_the_model_has_its_number(error: Exception, number: int) -> None:
    async with served() as box:
        handle = await box.open(Plain(fail_with(error)))
        assert await errno_of(box.operations.write(handle, 0, b"hello")) == number


async def test_an_async_error_has_its_number_at_the_read() -> None:
    async with served() as box:
        device = Gated(fail_with(InvalidRequest()))
        device.gate.set()
        handle = await box.open(device)
        await box.operations.write(handle, 0, b"hello")
        assert await errno_of(box.operations.read(handle, 0, 100)) == errno.EINVAL


async def test_an_async_error_has_its_number_at_the_close() -> None:
    async with served() as box:
        device = Gated(fail_with(InvalidRequest()))
        device.gate.set()
        handle = await box.open(device)
        await box.operations.write(handle, 0, b"hello")
        assert await errno_of(box.operations.flush(handle)) == errno.EINVAL


async def test_a_long_message_has_its_number() -> None:
    async with served() as box:
        handle = await box.open()
        assert await errno_of(box.operations.write(handle, 0, bytes(MAX_MESSAGE + 1))) == errno.EMSGSIZE


async def test_a_running_request_is_busy() -> None:
    async with served() as box:
        handle = await box.open(Gated())
        await box.operations.write(handle, 0, b"hello")
        assert await errno_of(box.operations.write(handle, 0, b"hello")) == errno.EBUSY


async def test_non_blocking_reads_try_again() -> None:
    async with served() as box:
        handle = await box.open(Gated(), os.O_RDWR | os.O_NONBLOCK)
        assert await errno_of(box.operations.read(handle, 0, 100)) == errno.EAGAIN


@pytest.mark.logs
async def test_a_bug_of_a_handler_is_an_input_output_error(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as box:
        handle = await box.open(Plain(fail_with(SystemExit(1))))
        assert await errno_of(box.operations.write(handle, 0, b"hello")) == errno.EIO
    assert "SystemExit" in caplog.text


@pytest.mark.parametrize("name", ["read", "write", "fsync", "poll"])
async def test_a_handle_of_a_predecessor_is_stale(name: str) -> None:
    calls: dict[str, Callable[[Operations], Awaitable[Any]]] = {
        "read": lambda operations: operations.read(GONE, 0, 100),
        "write": lambda operations: operations.write(GONE, 0, b"hello"),
        "fsync": lambda operations: operations.fsync(GONE, False),
        "poll": lambda operations: operations.poll(ROOT_ID, GONE, None, CONTEXT),
    }
    async with served() as box:
        assert await errno_of(calls[name](box.operations)) == errno.ESTALE


async def test_closing_a_handle_of_a_predecessor_is_harmless() -> None:
    async with served() as box:
        await box.operations.flush(GONE)
        await box.operations.release(GONE)
        assert box.operations._files == {}


async def test_release_closes_the_device() -> None:
    async with served() as box:
        device = Plain()
        handle = await box.open(device)
        await box.operations.release(handle)
        assert (device.calls[-1], box.operations._files) == (("close", handle), {})


async def test_a_block_device_is_read_and_written_at_an_offset() -> None:
    data = bytearray(100)

    def answer(request: Request) -> bytes:
        if request.type is RequestType.WRITE:
            data[request.offset : request.offset + request.length] = request.data
            return b""
        return bytes(data[request.offset : request.offset + request.length])

    async with served() as box:
        handle = await box.open(Plain(answer, kind=Kind.BLOCK, size=100))
        assert await box.operations.write(handle, 10, b"hello") == 5
        assert await box.operations.read(handle, 8, 8) == b"\0\0hello\0"


async def test_a_write_behind_a_block_device_has_no_space() -> None:
    async with served() as box:
        handle = await box.open(Plain(kind=Kind.BLOCK, size=100))
        assert await errno_of(box.operations.write(handle, 100, b"hello")) == errno.ENOSPC


async def test_fsync_flushes_a_block_device() -> None:
    seen = []
    async with served() as box:
        handle = await box.open(Plain(lambda request: seen.append(request.type), kind=Kind.BLOCK, size=100))
        await box.operations.fsync(handle, True)
    assert seen == [RequestType.FLUSH]


async def test_fsync_of_a_message_device_does_nothing() -> None:
    async with served() as box:
        device = Plain()
        handle = await box.open(device)
        await box.operations.fsync(handle, False)
        assert device.calls == [("open", handle)]


# -- rm


async def test_rm_destroys_the_device() -> None:
    async with served() as box:
        box.create("d")
        await box.operations.unlink(ROOT_ID, b"d", CONTEXT)
        assert len(box.registry) == 0


async def test_rm_of_a_device_with_a_consumer_is_busy() -> None:
    async with served() as box:
        await box.open()
        assert await errno_of(box.operations.unlink(ROOT_ID, b"d", CONTEXT)) == errno.EBUSY


async def test_rm_of_no_device() -> None:
    async with served() as box:
        assert await errno_of(box.operations.unlink(ROOT_ID, b"d", CONTEXT)) == errno.ENOENT


async def test_the_kernel_forgets_the_name_of_a_destroyed_device(invalidated: list[Any]) -> None:
    async with served() as box:
        number = box.create("größe")
        box.container.destroy_device("größe")
        while not invalidated:
            await trio.lowlevel.checkpoint()
        assert invalidated == [(ROOT_ID, "größe".encode(), number)]


async def test_a_name_destroyed_twice_before_the_kernel_knew_of_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, told = threading.Semaphore(0), []

    def invalidate(parent: int, name: bytes, deleted: int) -> None:
        kernel.acquire()
        told.append(name)

    monkeypatch.setattr(pyfuse3, "invalidate_entry", invalidate)
    async with served() as box:
        for _ in range(2):
            box.create("d")
            box.container.destroy_device("d")
            await trio.testing.wait_all_tasks_blocked()
        kernel.release(2)
        await box.operations.invalidations.settle()
    assert told == [b"d", b"d"]


async def test_nothing_is_invalidated_for_a_new_device(invalidated: list[Any]) -> None:
    async with served() as box:
        box.create("d")
    assert invalidated == []


async def test_kept_replies_end_with_their_device() -> None:
    async with served() as box:
        handle = await box.open()
        await box.operations.write(handle, 0, b"hello")
        await box.operations.flush(handle)
        await box.operations.release(handle)
        assert len(box.operations.kept) == 1
        box.container.destroy_device("d")
        await trio.testing.wait_all_tasks_blocked()
        assert len(box.operations.kept) == 0


async def test_operations_that_ended_no_longer_follow_the_registry(invalidated: list[Any]) -> None:
    async with served() as box:
        box.create("d")
        box.operations.invalidations.detach()
        box.container.destroy_device("d")
        await trio.testing.wait_all_tasks_blocked()
    assert invalidated == []


# -- extended attributes and statfs


async def test_extended_attributes_tell_of_a_device() -> None:
    async with served() as box:
        number = box.create("d", Plain(description="größer", takes="text", gives="TEXT"))
        names = await box.operations.listxattr(number, CONTEXT)
        values = {name: await box.operations.getxattr(number, name, CONTEXT) for name in names}
        assert values == {
            b"user.ldm.container": b"box",
            b"user.ldm.provider": b"text",
            b"user.ldm.kind": b"message",
            b"user.ldm.description": "größer".encode(),
            b"user.ldm.takes": b"text",
            b"user.ldm.gives": b"TEXT",
            b"user.ldm.consumers": b"0",
        }


async def test_extended_attributes_count_consumers() -> None:
    async with served() as box:
        await box.open()
        number = box.registry.find("d").id
        assert await box.operations.getxattr(number, b"user.ldm.consumers", CONTEXT) == b"1"


async def test_extended_attributes_tell_of_the_container() -> None:
    async with served() as box:
        box.create("d")
        names = await box.operations.listxattr(ROOT_ID, CONTEXT)
        values = {name: await box.operations.getxattr(ROOT_ID, name, CONTEXT) for name in names}
        assert values == {b"user.ldm.container": b"box", b"user.ldm.devices": b"1"}


@pytest.mark.parametrize(
    "name", [b"user.ldm.none", b"user.ldm.", b"user.kind", b"kind", b"security.x", b"user.ldm.\xff"]
)
async def test_other_attributes_are_not_there(name: bytes) -> None:
    async with served() as box:
        assert await errno_of(box.operations.getxattr(box.create("d"), name, CONTEXT)) == pyfuse3.ENOATTR


async def test_extended_attributes_of_what_is_gone() -> None:
    async with served() as box:
        assert await errno_of(box.operations.getxattr(GONE, b"user.ldm.kind", CONTEXT)) == errno.ENOENT
        assert await errno_of(box.operations.listxattr(GONE, CONTEXT)) == errno.ENOENT


async def test_statfs_adds_up_the_block_devices() -> None:
    async with served() as box:
        for name in ("a", "b"):
            box.create(name, Plain(kind=Kind.BLOCK, size=1 << 20))
        box.create("c")
        data = await box.operations.statfs(CONTEXT)
        assert (data.f_blocks * data.f_frsize, data.f_files, data.f_namemax) == (2 << 20, 3, 255)


# -- what is refused, and what must not happen


@pytest.mark.parametrize("name", ["mknod", "mkdir", "rmdir", "symlink", "rename", "link", "setxattr", "removexattr"])
async def test_what_is_not_for_devices_is_refused(name: str) -> None:
    async with served() as box:
        box.create("d")
        assert await errno_of(getattr(box.operations, name)(ROOT_ID, b"d", CONTEXT)) == errno.EPERM
        assert [device.name for device in box.registry] == ["d"]


@pytest.mark.logs
@pytest.mark.parametrize("name", ["getattr", "opendir", "listxattr"])
async def test_anything_unexpected_is_an_input_output_error_and_logged(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError("the moon is full")

    async with served() as box:
        number = box.create("d")
        monkeypatch.setattr(box.operations, "_device", broken)
        monkeypatch.setattr(type(box.registry), "__iter__", broken)
        assert await errno_of(getattr(box.operations, name)(number, CONTEXT)) == errno.EIO
    (record,) = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the moon is full"


@pytest.mark.logs
@pytest.mark.parametrize(("name", "argument"), [("read", 100), ("write", b"hello")])
async def test_anything_unexpected_on_the_fast_path_is_an_input_output_error_and_logged(
    name: str, argument: object, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError("the moon is full")

    async with served() as box:
        handle = await box.open()
        monkeypatch.setattr(type(box.operations._files[handle]), "_begin", broken)
        assert await errno_of(getattr(box.operations, name)(handle, 0, argument)) == errno.EIO
    assert "the moon is full" in caplog.text


async def test_an_operation_passes_a_fuse_error() -> None:
    @operation
    async def failing() -> None:
        raise FUSEError(errno.EXDEV)

    assert await errno_of(failing()) == errno.EXDEV


async def test_an_operation_passes_a_cancellation() -> None:
    @operation
    async def waiting() -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        scope.cancel()
        await waiting()
    assert scope.cancelled_caught


async def test_a_device_may_be_destroyed_in_another_thread() -> None:
    async with served() as box:
        box.create("d")
        await trio.to_thread.run_sync(box.container.destroy_device, "d")
        assert await errno_of(box.operations.lookup(ROOT_ID, b"d", CONTEXT)) == errno.ENOENT
