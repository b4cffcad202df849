"""Consumers' processes and threads: forks, signals, many threads on one device, calls from a container's own loop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from support import Gated, Plain

import ldmfs
from ldmfs import LdmError, NotSupported
from ldmfs.consumer.local import Here

from .raw import raw_container
from .served import MIB, Blocking, Facts, kill, line_of, opened, output, program, served, until

# -- fork

FORK = """
import os, sys, ldmfs
root = sys.argv[1]
device = ldmfs.open_device("box/d", root=root)
assert ldmfs.send_request(device, b"before") == b"BEFORE"
pid = os.fork()
if not pid:
    try:
        ldmfs.send_request(device, b"of the child")
        told = "answered"
    except ldmfs.LdmError as error:
        told = type(error).__name__
    with ldmfs.open_device("box/d", root=root) as own:
        told += " " + ldmfs.send_request(own, b"own").decode() + f" {own.consumer_id != device.consumer_id}"
    print(told, flush=True)
    device.close()
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
print(ldmfs.send_request(device, b"after").decode(), ldmfs.send_request(device, bytes(1 << 20)) == bytes(1 << 20))
device.close()
"""


async def test_a_forked_process_begins_anew_and_leaves_its_parents_devices_alone(tmp_path: Path) -> None:
    plain = Plain()
    async with served(tmp_path, d=plain) as box:
        lines = (await output(await program(FORK, tmp_path))).splitlines()
        await box.without_consumers()
    assert lines[0].split()[0] != "answered"
    assert lines[0].split()[1:] == ["OWN", "True"]
    assert lines[1] == "AFTER True"
    events = [what for what, _ in plain.calls]
    assert (events.count("open"), events.count("close"), events.count("request")) == (2, 2, 4)


FORK_AMID = """
import os, sys, threading, ldmfs
root = sys.argv[1]
device = ldmfs.open_device("box/d", root=root)
waiting = threading.Thread(target=lambda: print(ldmfs.send_request(device, b"slow").decode(), flush=True))
waiting.start()
print("sent", flush=True)
sys.stdin.readline()
pid = os.fork()
if not pid:
    with ldmfs.open_device("box/fast", root=root) as own:
        print(ldmfs.send_request(own, b"child").decode(), flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print("forked", flush=True)
waiting.join()
device.close()
"""


async def test_a_fork_while_a_thread_waits_harms_neither_process(tmp_path: Path) -> None:
    gated = Gated()
    async with served(tmp_path, d=gated, fast=Plain()) as box:
        process = await program(FORK_AMID, tmp_path)
        try:
            assert await line_of(process) == "sent"
            await until(lambda: gated.started)
            assert process.stdin is not None
            await process.stdin.send_all(b"\n")
            assert [await line_of(process) for _ in range(2)] == ["CHILD", "forked"]
            gated.gate.set()
            assert await line_of(process) == "SLOW"
            assert await process.wait() == 0
        finally:
            await kill(process)
        await box.without_consumers()
    assert (gated.cancelled, len(gated.closed)) == (0, 1)


# -- signals

INTERRUPTED = """
import gc, os, sys, ldmfs
from ldmfs.consumer import blocking
root, size, soon = sys.argv[1:]
def tell(text):
    os.write(1, text.encode() + b"\\n")
def descriptors():
    return len(os.listdir("/proc/self/fd"))
def use():
    with ldmfs.open_device("box/d", root=root) as device:
        tell("open")
        try:
            if soon:
                ldmfs.send_request(device, b"first", lambda context, outcome: tell("completed"))
            ldmfs.send_request(device, bytes(int(size)))
        except KeyboardInterrupt:
            tell("interrupted")
            with ldmfs.open_device("box/fast", root=root) as fast:
                tell(ldmfs.send_request(fast, b"well").decode())
    tell("closed")
before = descriptors()
try:
    use()
except KeyboardInterrupt:
    tell("interrupted")
gc.collect()
blocking._connections.close()
tell(str(descriptors() - before))
"""
WARNS = {**os.environ, "PYTHONWARNINGS": "default::ResourceWarning"}


@pytest.mark.parametrize("size", [3, MIB], ids=["small", "large"])
async def test_an_interrupt_cancels_the_request_that_is_waited_for_and_no_more(tmp_path: Path, size: int) -> None:
    gated = Gated()
    async with served(tmp_path, d=gated, fast=Plain()) as box:
        process = await program(INTERRUPTED, tmp_path, size, "")
        await until(lambda: gated.started)
        process.send_signal(signal.SIGINT)
        assert (await output(process)).splitlines() == ["open", "interrupted", "WELL", "closed", "0"]
        await box.without_consumers()
    assert (gated.cancelled, len(gated.closed)) == (1, 1)


async def test_an_interrupt_leaves_a_request_with_a_completion_handler_alone(tmp_path: Path) -> None:
    gated = Gated()
    async with served(tmp_path, d=gated, fast=Plain()) as box:
        process = await program(INTERRUPTED, tmp_path, 3, "x")
        await until(lambda: gated.started == 2)
        process.send_signal(signal.SIGINT)
        assert [await line_of(process) for _ in range(2)] == ["open", "interrupted"]
        rest = (await output(process)).splitlines()
        await box.without_consumers()
    assert sorted(rest) == sorted(["WELL", "completed", "closed", "0"])
    assert gated.cancelled == 2  # the one by the interrupt, the other by the close


async def test_an_interrupt_of_an_open_closes_what_it_has_opened(tmp_path: Path) -> None:
    class SlowOpen(Gated):
        opening = 0

        async def open(self, consumer_id: int) -> None:  # type: ignore[override]
            self.opening += 1
            await self.gate.wait()

    slow = SlowOpen()
    async with served(tmp_path, d=slow) as box:
        process = await program(INTERRUPTED, tmp_path, 3, "")
        await until(lambda: slow.opening)
        process.send_signal(signal.SIGINT)
        assert (await output(process)).splitlines() == ["interrupted", "0"]
        await box.without_consumers()


async def test_an_interrupt_of_a_greeting_leaves_nothing(tmp_path: Path) -> None:
    with raw_container(tmp_path) as container:
        process = await program(INTERRUPTED, tmp_path, 3, "", stderr=subprocess.PIPE, env=WARNS)
        peer = await container.accept()
        await peer.receive()
        process.send_signal(signal.SIGINT)
        assert (await output(process)).splitlines() == ["interrupted", "0"]
        assert process.stderr is not None
        async with process.stderr:
            assert b"".join([part async for part in process.stderr]) == b""


END_AMID = """
import sys, threading, ldmfs
threading.Thread(target=ldmfs.open_device, args=["box/d"], kwargs={"root": sys.argv[1]}, daemon=True).start()
sys.stdin.readline()
"""


async def test_a_program_can_end_while_a_thread_of_it_waits_for_a_greeting(tmp_path: Path) -> None:
    with raw_container(tmp_path) as container:
        process = await program(END_AMID, tmp_path)
        try:
            peer = await container.accept()
            await peer.receive()
            assert process.stdin is not None
            await process.stdin.send_all(b"\n")
            with trio.fail_after(10):
                assert await process.wait() == 0
        finally:
            await kill(process)


# -- a script

SCRIPT = """
import sys, ldmfs
with ldmfs.open_device("box/d", root=sys.argv[1]) as device:
    ldmfs.send_request(device, b"x")
    ldmfs.send_request(device, b"y", lambda context, outcome: None)
print("trio" in sys.modules)
"""


async def test_a_script_does_without_trio(tmp_path: Path) -> None:
    async with served(tmp_path, d=Plain()) as box:
        assert await output(await program(SCRIPT, tmp_path)) == "False\n"
        await box.without_consumers()


# -- the program's end

ENDS = """
import os, sys, ldmfs
root, retry = sys.argv[1:]
device = ldmfs.open_device("box/d", root=root, retry=bool(retry))
def done(number, outcome):
    os.write(1, f"{number} {type(outcome).__name__}\\n".encode())
for number in range(3):
    ldmfs.send_request(device, b"x", done, number)
sys.stdin.readline()
"""


@pytest.mark.parametrize("retry", ["", "retry"])
async def test_the_end_of_a_program_completes_what_is_outstanding(tmp_path: Path, retry: str) -> None:
    gated = Gated()
    async with served(tmp_path, d=gated) as box:
        process = await program(ENDS, tmp_path, retry)
        await until(lambda: gated.started == 3)
        await end(process)
        told = sorted(line.split() for line in (await output(process)).splitlines())
        assert [number for number, _ in told] == ["0", "1", "2"]
        assert {error for _, error in told} <= {"RequestCancelled", "NotServed"}
        await box.without_consumers()
    assert gated.cancelled == 3


async def test_the_end_of_a_program_completes_what_is_sent_again(tmp_path: Path) -> None:
    gated = Gated()
    async with served(tmp_path, d=gated) as box:
        process = await program(ENDS, tmp_path, "retry")
        await until(lambda: gated.started == 3)
        box.end()
        await box.without_consumers()
    await end(process)
    assert len((await output(process)).splitlines()) == 3


async def test_the_end_of_a_program_completes_what_waits_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    os.mkfifo(tmp_path / "box/d")  # a file whose end never comes
    process = await program(ENDS, tmp_path, "")
    await end(process)
    assert sorted((await output(process)).splitlines()) == [f"{number} RequestCancelled" for number in range(3)]


async def end(process: trio.Process) -> None:
    """Let a program go on to its end."""
    assert process.stdin is not None
    await process.stdin.send_all(b"\n")


ENDS_AMID = """
import os, sys, threading, ldmfs
device, begun = ldmfs.open_device("box/d", root=sys.argv[1]), threading.Event()
def done(context, outcome):
    begun.set()
    sys.stdin.readline()
    os.write(1, outcome)
ldmfs.send_request(device, b"x", done)
begun.wait()
os.write(1, b"ending\\n")
"""


async def test_the_end_of_a_program_waits_for_a_completion_handler_that_runs(tmp_path: Path) -> None:
    async with served(tmp_path, d=Plain()) as box:
        process = await program(ENDS_AMID, tmp_path)
        assert await line_of(process) == "ending"
        await box.without_consumers()  # the connection was ended, and the handler runs still
        await end(process)
        assert await output(process) == "X"


# -- threads


@pytest.mark.parametrize("thread", [False, True], ids=["inline", "thread"])
async def test_many_threads_use_one_device(tmp_path: Path, blocks: int, thread: bool) -> None:
    wrong: list[object] = []

    def use(device: ldmfs.OpenDevice, number: int) -> None:
        for round in range(50):
            data = b"%d.%d." % (number, round) * (40_000 if round % 10 == 0 else 1)
            try:
                reply = ldmfs.send_request(device, data)
            except LdmError as error:
                wrong.append(error)
            else:
                if reply != data:
                    wrong.append((data[:20], reply[:20]))

    async with (
        served(tmp_path, d=Facts(thread=thread)), opened(Blocking(tmp_path), blocks=blocks) as device,
        trio.open_nursery() as nursery,
    ):  # fmt: skip
        for number in range(16):
            nursery.start_soon(trio.to_thread.run_sync, use, device, number)
    assert wrong == []


async def test_a_device_that_is_closed_under_many_threads_ends_each_of_their_requests(tmp_path: Path) -> None:
    gated, ended = Gated(), []

    def use(device: ldmfs.OpenDevice) -> None:
        try:
            ldmfs.send_request(device, b"x")
        except LdmError as error:
            ended.append(error.errno)

    async with served(tmp_path, d=gated), trio.open_nursery() as nursery:
        device = await Blocking(tmp_path).open()
        for _ in range(16):
            nursery.start_soon(trio.to_thread.run_sync, use, device)
        await until(lambda: gated.started == 16)
        await trio.to_thread.run_sync(ldmfs.close_device, device)
        await until(lambda: len(ended) == 16)
    assert len(gated.closed) == 1


async def test_the_providers_end_ends_the_request_of_each_thread(tmp_path: Path) -> None:
    gated, ended = Gated(), []

    def use(device: ldmfs.OpenDevice) -> None:
        try:
            ldmfs.send_request(device, b"x")
        except LdmError as error:
            ended.append(type(error))

    async with served(tmp_path, d=gated) as box, opened(Blocking(tmp_path)) as device, trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(trio.to_thread.run_sync, use, device)
        await until(lambda: gated.started == 16)
        box.end()
        await until(lambda: len(ended) == 16)
    assert set(ended) == {ldmfs.ProviderDied}


async def test_threads_that_open_at_one_time_share_one_connection(tmp_path: Path) -> None:
    devices: list[ldmfs.OpenDevice] = []
    lock = threading.Lock()

    def open() -> None:
        device = ldmfs.open_device("box/d", root=tmp_path)
        with lock:
            devices.append(device)

    before = len(os.listdir("/proc/self/fd"))
    async with served(tmp_path, d=Plain()):
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(trio.to_thread.run_sync, open)
        assert len({device.consumer_id for device in devices}) == 16
        assert len(os.listdir("/proc/self/fd")) == before + 3  # the listening socket, and both ends of one connection
        for device in devices:
            await trio.to_thread.run_sync(ldmfs.close_device, device)


# -- the container's own loop


@contextlib.contextmanager
def in_this_container(box: Any) -> Iterator[None]:
    Here.current = Here(box.root, box.container.registry, box.container.dispatch)
    try:
        yield
    finally:
        Here.current = None


def use(root: Path) -> bytes:
    with ldmfs.open_device("box/d", root=root) as device:
        return ldmfs.send_request(device, b"hello")


async def test_a_blocking_call_on_the_containers_loop_is_made_where_nothing_waits(tmp_path: Path) -> None:
    plain = Plain()
    async with served(tmp_path, d=plain) as box:
        with in_this_container(box), ldmfs.open_device("box/d", root=tmp_path) as device:
            assert ldmfs.send_request(device, b"hello") == b"HELLO"
    assert [what for what, _ in plain.calls] == ["open", "request", "close"]


@pytest.mark.parametrize("device", [Gated, lambda: Plain(thread=True)], ids=["async", "thread"])
async def test_a_blocking_call_on_the_containers_loop_is_refused_where_it_would_wait(
    tmp_path: Path, device: Any
) -> None:
    async with served(tmp_path, d=device()) as box:
        with in_this_container(box), pytest.raises(NotSupported, match="aio"):
            use(tmp_path)
        await box.without_consumers()


async def test_a_blocking_call_in_another_thread_of_the_container_is_served(tmp_path: Path) -> None:
    gated = Gated()
    gated.gate.set()
    async with served(tmp_path, d=gated) as box:
        with in_this_container(box):
            assert await trio.to_thread.run_sync(use, tmp_path) == b"HELLO"


async def test_a_blocking_call_on_the_containers_loop_to_another_container_does_not_hang(tmp_path: Path) -> None:
    """The other container is served by the same loop here, as one is that waits for this one: it must be refused."""
    async with served(tmp_path, "here") as here, served(tmp_path, "box", d=Plain()):
        with in_this_container(here), pytest.raises(NotSupported, match="aio"):
            ldmfs.open_device("box/d", root=tmp_path)
