"""The kernel's devices as the consumer library uses them, against a module that is a function: what it is asked by."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import ldmfs
import ldmfs.aio
from ldmfs import Kind, LdmError, Request, RequestType
from ldmfs.kernel import device as edge
from ldmfs.kernel.device import Call, KernelDevice
from ldmfs.kernel.ioctl import ABOUT, CALL, CALL_ID, CANCEL, LAYOUTS, MAX_DATA, MAX_METADATA, SEND, TELL
from ldmfs.native.build import compiler, includes

MASK = sum(1 << type for type in (RequestType.READ, RequestType.CALL, RequestType.FLUSH))
OUTPUT, OUTPUT_METADATA = "output", "output_metadata"
FIELDS = [field.name for field in CALL.fields]


LIMIT = 20.0
"""Seconds that only matter where a test fails."""


class Module:
    """What ldm.ko does with its calls: it reads and writes the caller's memory, and notes what it was asked."""

    def __init__(self) -> None:
        self.about = 7, 0, MASK, 1, 1
        self.answer: Callable[[dict[str, Any], bytes, bytes], tuple[bytes, bytes]] = lambda call, data, more: (
            data,
            more,
        )
        self.calls: list[dict[str, Any]] = []
        self.cancelled: list[int] = []
        self.held: dict[int, threading.Event] = {}
        """The calls that wait until they are cancelled, by their ids."""

    def hold(self, call: dict[str, Any], data: bytes, more: bytes) -> tuple[bytes, bytes]:
        """Answer as a handler does that waits until its request is cancelled."""
        self.held[call["id"]] = ended = threading.Event()
        assert ended.wait(LIMIT)
        raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def ioctl(self, fd: int, number: int, memory: Any) -> Any:
        os.fstat(fd)
        if number == TELL:
            return ABOUT.struct.pack(*self.about)
        if number == CANCEL:
            (call_id,) = CALL_ID.struct.unpack(memory)
            self.cancelled.append(call_id)
            if call_id not in self.held:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            self.held.pop(call_id).set()
            return 0
        assert number == SEND
        call = dict(zip(FIELDS, CALL.struct.unpack(memory), strict=True))
        self.calls.append(call)
        data = ctypes.string_at(call["input"], call["input_size"])
        replies = self.answer(call, data, ctypes.string_at(call["input_metadata"], call["input_metadata_size"]))
        for part, reply in zip((OUTPUT, OUTPUT_METADATA), replies, strict=True):
            room, call[f"{part}_size"] = call[f"{part}_size"], len(reply)
            assert len(reply) <= room
            ctypes.memmove(call[part], reply, len(reply))
        memory[:] = CALL.struct.pack(*call.values())
        return 0


def fails(number: int) -> Callable[..., Any]:
    def answer(*_: object) -> Any:
        raise OSError(number, os.strerror(number))

    return answer


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    """Give the module that answers instead of the kernel."""
    module = Module()
    monkeypatch.setattr(edge, "fcntl", module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a root below which there is the file kernel/x."""
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "x").touch()
    return tmp_path


@pytest.fixture
def opened(module: Module, root: Path) -> Iterator[KernelDevice]:
    """Give the device, open."""
    device = KernelDevice(root / "kernel" / "x", "kernel/x")
    yield device
    device.close()


# -- layouts


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Give what the compiler says of the header: sizes, offsets, numbers."""
    lines = [f'\tprintf("{layout.name} %zu\\n", sizeof(struct {layout.name}));' for layout in LAYOUTS]
    for layout in LAYOUTS:
        for field in layout.fields:
            name = f"{layout.name}, {field.name}"
            lines.append(f'\tprintf("{layout.name}.{field.name} %zu\\n", offsetof(struct {name}));')
    calls = ("LDM_IOC_SEND", "LDM_IOC_ABOUT", "LDM_IOC_CANCEL")
    numbers = (*calls, "LDM_MAX_DATA", "LDM_MAX_METADATA", "LDM_MESSAGE", "LDM_BLOCK")
    lines += [f'\tprintf("{name} %lu\\n", (unsigned long){name});' for name in numbers]
    lines += [f'\tprintf("LDM_{type.name} %d\\n", LDM_{type.name});' for type in RequestType]
    source = tmp_path_factory.mktemp("layout") / "layout.c"
    source.write_text("\n".join(['#include "ldm.h"', "int main(void)", "{", *lines, "\treturn 0;", "}\n"]))
    program = source.with_suffix("")
    subprocess.run([compiler(), f"-I{includes()}", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in (line.split() for line in output.splitlines())}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_layout_is_that_of_the_header(told: dict[str, int], layout: Any) -> None:
    assert layout.size == told[layout.name]
    assert layout.offsets == {field.name: told[f"{layout.name}.{field.name}"] for field in layout.fields}


def test_the_numbers_are_those_of_the_header(told: dict[str, int]) -> None:
    assert (told["LDM_IOC_SEND"], told["LDM_IOC_ABOUT"], told["LDM_IOC_CANCEL"]) == (SEND, TELL, CANCEL)
    assert (told["LDM_MAX_DATA"], told["LDM_MAX_METADATA"]) == (MAX_DATA, MAX_METADATA)
    assert (told["LDM_MESSAGE"], told["LDM_BLOCK"]) == (1, 2)
    assert {type.name: int(type) for type in RequestType} == {
        type.name: told[f"LDM_{type.name}"] for type in RequestType
    }


# -- opening


def test_what_was_opened_is_known(module: Module, root: Path) -> None:
    module.about = 9, 4096, 1 << RequestType.READ | 1 << RequestType.WRITE, 2, 3
    device = KernelDevice(root / "kernel" / "x", "kernel/x")
    assert (device.consumer_id, device.kind, device.size) == (9, Kind.BLOCK, 4096)
    assert device.accepts == {RequestType.READ, RequestType.WRITE}
    device.close()


def test_a_file_that_is_no_device_of_the_module_is_refused(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ldmfs.NotSupported, match="is no device of the kernel module ldm"):
        KernelDevice(root / "kernel" / "x", "kernel/x")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_device_that_is_not_there_is_named(root: Path) -> None:
    with pytest.raises(ldmfs.NoSuchDevice, match="kernel/y: the kernel has no such device"):
        ldmfs.open_device("kernel/y", root=root)


def test_where_the_module_is_not_loaded_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "kernel").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ldmfs.NoSuchDevice, match="kernel/x: the kernel module ldm is not loaded"):
        ldmfs.open_device("kernel/x", root=tmp_path)


def test_the_kernel_s_devices_need_no_tree(module: Module, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldmfs.consumer.file.DIRECTORY", root / "kernel")
    with ldmfs.open_device("kernel/x", root=root / "not mounted") as device:
        assert ldmfs.send_request(device, b"hello") == b"hello"


def test_an_error_of_the_open_handler_is_the_consumer_s(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", fails(errno.ELOOP))
    with pytest.raises(ldmfs.DeviceLoop):
        KernelDevice(root / "kernel" / "x", "kernel/x")


@pytest.mark.parametrize(
    ("mode", "accepts"),
    [
        (os.O_RDONLY, {RequestType.READ}),
        (os.O_WRONLY, {RequestType.CALL, RequestType.FLUSH}),
        (None, None),
    ],
    ids=["read", "write", "nothing"],
)
def test_a_device_may_be_for_reading_or_writing_only(
    module: Module, root: Path, monkeypatch: pytest.MonkeyPatch, mode: int | None, accepts: set[RequestType] | None
) -> None:
    real = os.open

    def allowing(path: Path, flags: int) -> int:
        if flags & os.O_ACCMODE != mode:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags)

    monkeypatch.setattr(os, "open", allowing)
    if accepts is None:
        with pytest.raises(ldmfs.AccessDenied):
            KernelDevice(root / "kernel" / "x", "kernel/x")
        return
    device = KernelDevice(root / "kernel" / "x", "kernel/x")
    assert device.accepts == accepts
    for type in {RequestType.READ, RequestType.CALL} - accepts:
        with pytest.raises(ldmfs.AccessDenied):
            device.request(Request(type))
    if RequestType.TRIM not in device._types:
        with pytest.raises(ldmfs.NotSupported):
            device.request(Request(RequestType.TRIM))
    assert not module.calls
    device.close()


# -- requests


def test_a_request_is_told_whole(module: Module, opened: KernelDevice) -> None:
    opened.request(Request(RequestType.READ, b"data", offset=5, length=6, metadata=b"about"))
    (call,) = module.calls
    assert (call["type"], call["reserved"], call["offset"], call["length"]) == (1, bytes(6), 5, 6)
    assert (call["input_size"], call["input_metadata_size"]) == (4, 5)


def test_the_reply_has_data_and_metadata(module: Module, opened: KernelDevice) -> None:
    reply = opened.request(Request(RequestType.CALL, b"data", metadata=b"about"))
    assert (reply.data, reply.metadata) == (b"data", b"about")


@pytest.mark.parametrize("size", [0, 1, 1 << 20, MAX_DATA])
def test_data_of_any_size_comes_back(module: Module, opened: KernelDevice, size: int) -> None:
    data = os.urandom(size)
    for _ in range(2):
        assert opened.request(Request(RequestType.CALL, memoryview(data))).data == data


def test_memory_of_a_large_request_is_given_back(module: Module, opened: KernelDevice) -> None:
    opened.request(Request(RequestType.CALL, b"x" * MAX_DATA))
    (room,) = opened._rooms
    assert not any(room.memory[place] for place in room.places)


@pytest.mark.parametrize("request_", [Request(RequestType.CALL, bytes(MAX_DATA + 1)),
                                      Request(RequestType.CALL, b"", metadata=bytes(MAX_METADATA + 1))],
                         ids=["data", "metadata"])  # fmt: skip
def test_what_is_too_long_is_not_sent(module: Module, opened: KernelDevice, request_: Request) -> None:
    with pytest.raises(ldmfs.MessageTooLong):
        opened.request(request_)
    assert not module.calls


@pytest.mark.parametrize("offset", [1 << 63, -(1 << 63) - 1])
def test_a_number_out_of_range_is_refused(module: Module, opened: KernelDevice, offset: int) -> None:
    with pytest.raises(ldmfs.InvalidRequest):
        opened.request(Request(RequestType.READ, offset=offset))


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, ldmfs.NoSpace), (errno.EOPNOTSUPP, ldmfs.NotSupported), (errno.EINTR, LdmError),
     (errno.ECONNABORTED, ldmfs.ProviderDied), (errno.ENODEV, LdmError)],
)  # fmt: skip
def test_the_error_is_that_of_the_call(
    module: Module, opened: KernelDevice, number: int, error: type[LdmError]
) -> None:
    module.answer = fails(number)
    with pytest.raises(error) as raised:
        opened.request(Request(RequestType.CALL, b"x"))
    assert raised.value.errno == number
    assert str(raised.value) == f"kernel/x: {os.strerror(number)}"


def test_threads_send_at_the_same_time(module: Module, opened: KernelDevice) -> None:
    all_in = threading.Barrier(6, timeout=20)

    def answer(call: dict[str, Any], data: bytes, more: bytes) -> tuple[bytes, bytes]:
        all_in.wait()
        return data.upper(), b""

    module.answer = answer
    replies: dict[bytes, bytes] = {}

    def send(data: bytes) -> None:
        replies[data] = bytes(opened.request(Request(RequestType.CALL, data)).data)

    threads = [threading.Thread(target=send, args=(b"abcdef"[place : place + 1],)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert replies == {data: data.upper() for data in (b"a", b"b", b"c", b"d", b"e", b"f")}
    assert len(opened._rooms) == edge.SPARE_ROOMS


# -- closing


def test_a_request_after_the_close_is_refused(module: Module, opened: KernelDevice) -> None:
    opened.close()
    opened.close()
    with pytest.raises(ldmfs.HandleClosed):
        opened.request(Request(RequestType.CALL, b"x"))


class Sending(threading.Thread):
    """A request in a thread of its own."""

    def __init__(self, device: KernelDevice, call: Call | None = None) -> None:
        super().__init__(daemon=True)
        self._device, self._call = device, call
        self.outcome: object = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._device.request(Request(RequestType.CALL, b"x"), self._call).data
        except LdmError as error:
            self.outcome = type(error)


def test_the_descriptor_lives_as_long_as_a_call_that_uses_it(module: Module, opened: KernelDevice) -> None:
    """As one does whose handler goes on in the caller's thread, cancelled or not."""
    began, go_on = threading.Event(), threading.Event()

    def answer(call: dict[str, Any], data: bytes, more: bytes) -> tuple[bytes, bytes]:
        module.held[call["id"]] = threading.Event()
        began.set()
        assert go_on.wait(LIMIT)
        os.fstat(opened._fd)
        return data, b""

    module.answer = answer
    sending = Sending(opened)
    assert began.wait(LIMIT)
    opened.close()
    os.fstat(opened._fd)
    go_on.set()
    sending.join(LIMIT)
    assert sending.outcome == b"x"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened._fd)


# -- cancelling


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    for _ in range(int(LIMIT * 1000)):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never came about")


def test_a_call_is_cancelled_by_its_id(module: Module, opened: KernelDevice) -> None:
    module.answer = module.hold
    calls = [Call(), Call()]
    sending = [Sending(opened, call) for call in calls]
    until(lambda: len(module.held) == 2)
    opened.cancel(calls[0])
    sending[0].join(LIMIT)
    assert sending[0].outcome is ldmfs.RequestCancelled
    assert list(module.held) == [calls[1].id]
    opened.cancel(calls[1])
    sending[1].join(LIMIT)


def test_a_call_that_has_not_got_to_the_module_is_looked_for_again(module: Module, opened: KernelDevice) -> None:
    on_its_way, go_on = threading.Event(), threading.Event()

    def answer(call: dict[str, Any], data: bytes, more: bytes) -> tuple[bytes, bytes]:
        on_its_way.set()
        assert go_on.wait(LIMIT)
        return module.hold(call, data, more)

    module.answer = answer
    call = Call()
    sending = Sending(opened, call)
    assert on_its_way.wait(LIMIT)
    opened.cancel_soon(call)
    until(lambda: len(module.cancelled) > 2)
    assert sending.outcome is None
    go_on.set()
    sending.join(LIMIT)
    assert sending.outcome is ldmfs.RequestCancelled


def test_a_call_that_is_cancelled_before_is_not_sent(module: Module, opened: KernelDevice) -> None:
    call = Call()
    opened.cancel(call)
    with pytest.raises(ldmfs.RequestCancelled):
        opened.request(Request(RequestType.CALL, b"x"), call)
    assert not module.calls
    assert not module.cancelled


def test_cancelling_what_has_ended_asks_nothing(module: Module, opened: KernelDevice) -> None:
    call = Call()
    opened.request(Request(RequestType.CALL, b"x"), call)
    opened.cancel(call)
    opened.cancel_soon(call)
    assert not module.cancelled


def test_a_close_cancels_what_is_outstanding(module: Module, opened: KernelDevice) -> None:
    module.answer = module.hold
    sending = [Sending(opened) for _ in range(3)]
    until(lambda: len(module.held) == 3)
    opened.close()
    for each in sending:
        each.join(LIMIT)
    assert [each.outcome for each in sending] == [ldmfs.RequestCancelled] * 3
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened._fd)


# -- the consumer library


def test_the_blocking_api_uses_the_call(module: Module, root: Path) -> None:
    with ldmfs.open_device("kernel/x", root=root) as device:
        assert (device.consumer_id, device.accepts) == (7, {RequestType.READ, RequestType.CALL, RequestType.FLUSH})
        assert ldmfs.send_request(device, b"hello") == b"hello"
    assert len(module.calls) == 1


async def test_the_api_for_trio_uses_the_call(module: Module, root: Path) -> None:
    async with await ldmfs.aio.open_device("kernel/x", root=root) as device:
        assert await ldmfs.aio.send_request(device, b"hello") == b"hello"
    assert len(module.calls) == 1


async def test_the_loop_goes_on_while_the_kernel_takes_its_time(module: Module, root: Path) -> None:
    go_on = threading.Event()

    def answer(call: dict[str, Any], data: bytes, more: bytes) -> tuple[bytes, bytes]:
        assert go_on.wait(20)
        return data, b""

    module.answer = answer
    async with await ldmfs.aio.open_device("kernel/x", root=root) as device, trio.open_nursery() as nursery:
        nursery.start_soon(ldmfs.aio.send_request, device, b"hello")
        while not module.calls:
            await trio.lowlevel.checkpoint()
        go_on.set()


async def test_a_task_that_is_cancelled_cancels_its_call(module: Module, root: Path) -> None:
    module.answer = module.hold
    async with await ldmfs.aio.open_device("kernel/x", root=root) as device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ldmfs.aio.send_request, device, b"hello")
            await trio.to_thread.run_sync(until, lambda: module.held)
            (held,) = module.held
            nursery.cancel_scope.cancel()
        await trio.to_thread.run_sync(until, lambda: module.cancelled)
        assert set(module.cancelled) == {held}


def test_a_completion_handler_is_called_once(module: Module, root: Path) -> None:
    seen: list[object] = []
    done = threading.Event()

    def handler(context: object, outcome: object) -> None:
        seen.append((context, outcome))
        done.set()

    with ldmfs.open_device("kernel/x", root=root) as device:
        ldmfs.send_request(device, b"hello", handler, "context")
        assert done.wait(20)
    assert seen == [("context", b"hello")]


def test_an_object_is_marshalled_on_its_way_to_the_kernel(module: Module, root: Path) -> None:
    with ldmfs.open_device("kernel/x", root=root, marshal=str.encode, unmarshal=bytes.decode) as device:
        reply = device.send(Request(RequestType.NON_STANDARD, object="hello"))
    assert reply.object == "hello"
    assert module.calls[0]["type"] == RequestType.NON_STANDARD
