"""Consumers and providers that are killed at each stage of a request, over the channel and through the file."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from mounted.fixtures import _can_mount  # noqa: F401
from mounted.trees import Tree, exchange
from mounted.waiting import kill as kill_provider

import ldmfs
from ldmfs import LdmError, Request, RequestType
from ldmfs.consumer import aio, blocking
from ldmfs.consumer.file import File
from ldmfs.consumer.name import parse

from .served import Blocking, Completions, Trio, descriptors, error_of, kill, line_of, program, until
from .stages import install

CONTAINER = """\
[box.stages]
log = "{log}"
release = "{release}"
"""
CHAIN = """\
[x.relay.x]
lower = "y/y"
[y.relay.y]
lower = "box/async"
"""

CONSUMER = """
import sys, ldmfs
from ldmfs.consumer.file import File
from ldmfs.consumer.name import parse
root, name, path, size, close = sys.argv[1:]
def tell(*words):
    print(*words, flush=True)
tell("starting")
try:
    if path == "file":
        device = File(parse(name, root))
        send = device.request
    else:
        device = ldmfs.open_device(name, root=root, blocks=8 if path == "arena" else 0)
        send = device.send
    tell("open")
    sys.stdin.readline()
    if size:
        send(ldmfs.Request(ldmfs.RequestType.CALL, bytes(int(size))))
        tell("answered")
    if close:
        device.close()
        tell("closed")
except ldmfs.LdmError as error:
    tell("error", error.errno)
sys.stdin.read()
"""

SIZE = 300_000
"""Bytes of a request that travels in shared memory where it may, and inline in three frames."""

STAGES = {
    "the open handler runs": ("opening", "", "", "opening", ["opening", "cancelled"]),
    "opened": ("idle", "", "", "open", ["open", "close"]),
    "the handler runs inline": ("inline", SIZE, "", "start", ["open", "start", "done", "close"]),
    "the handler runs in a thread": ("thread", SIZE, "", "start", ["open", "start", "done", "close"]),
    "the handler waits": ("async", SIZE, "", "start", ["open", "start", "cancelled", "close"]),
    "the close handler runs": ("closing", "", "x", "closing", ["open", "closing", "close"]),
}
"""Device, what it sends, whether it closes, what to wait for, what will have happened."""

DIED = {errno.ECONNABORTED, errno.ENOTCONN}
GONE = {*DIED, errno.ESTALE}

SAME = 10
"""How often in a row a container has the same, when it has let go of what has just ended."""

SYSTEM_CALLS = {0: "read", 1: "write", 7: "poll", 45: "recvfrom", 47: "recvmsg", 257: "openat"}
"""Of x86-64 (`arch/x86/entry/syscalls/syscall_64.tbl`): those in which a consumer waits."""


class Staged(Tree):
    """A tree with a container `box` of `stages`."""

    @property
    def release(self) -> Path:
        return self.base / "release"

    def start(self, more: str = "") -> None:
        done = self.mount(CONTAINER.format(log=self.log, release=self.release) + more)
        assert (done.returncode, done.stderr) == (0, "")

    def what(self, device: str, after: int = 0) -> list[str]:
        """Return what has happened to a device since `after` events."""
        return [what for what, _ in self.events(device)][after:]

    def consumers(self, container: str = "box") -> list[dict[str, Any]]:
        """Return what the graph tells of the container's consumers."""
        return [each for device in self.containers()[container]["devices"] for each in device["consumers"]]

    def resources(self, container: str = "box") -> tuple[int, int, int]:
        """Return what the container's process has: descriptors, arenas, consumers."""
        pid = self.pid(container)
        mapped = Path(f"/proc/{pid}/maps").read_text().count("ldmfs-arena")
        return len(os.listdir(f"/proc/{pid}/fd")), mapped, len(self.consumers(container))

    def descriptors(self, container: str) -> list[str]:
        """Return what the descriptors of the container's process are, for who has to find out what is left."""
        found = Path(f"/proc/{self.pid(container)}/fd")
        return [f"{container} {fd.name}: {os.readlink(fd)}" for fd in found.iterdir()]

    def close_counts(self) -> bool:
        """Tell whether each consumer that was opened was closed once."""
        events = [line.split() for line in self.log.read_text().splitlines()]
        opened = sorted(number for _, what, number in events if what == "open")
        return opened == sorted(number for _, what, number in events if what == "close")

    @contextlib.contextmanager
    def stopped(self) -> Iterator[int]:
        """Stop the container's process for a while."""
        pid = self.pid("box")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def plug_in(plug_ins: Path) -> Path:
    install(plug_ins)
    return plug_ins


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, plug_in: Path) -> Iterator[Staged]:
    """Give a tree whose containers live on."""
    tree = Staged(tmp_path_factory.mktemp("deaths"), plug_in)
    try:
        tree.start(CHAIN)
        warm_up(tree, "x/x")
        yield tree
    finally:
        tree.end()


def warm_up(tree: Staged, *more: str) -> None:
    """Let the containers make what they keep: pipes, threads, connections, and the arenas of these."""
    tree.release.touch()
    for device in ("box/idle", "box/thread", "box/async", *more):
        assert exchange(tree.root / device, bytes(SIZE))
        for blocks in (0, 8):
            with ldmfs.open_device(device, root=tree.root, blocks=blocks) as opened:
                ldmfs.send_request(opened, bytes(SIZE))
            blocking._connections.close()
    tree.release.unlink()


@pytest.fixture
def staged(shared: Staged) -> Iterator[Staged]:
    shared.release.unlink(missing_ok=True)
    yield shared
    shared.release.unlink(missing_ok=True)


@pytest.fixture
def doomed(tmp_path: Path, plug_in: Path) -> Iterator[Staged]:
    """Give a tree whose container is going to be killed."""
    tree = Staged(tmp_path, plug_in)
    try:
        tree.start()
        yield tree
    finally:
        tree.release.touch()
        tree.end()


@pytest.fixture(autouse=True)
def _connections() -> Iterator[None]:
    yield
    blocking._connections.close()


PATHS = ["arena", "inline", "file"]
paths = pytest.mark.parametrize("path", PATHS)


@contextlib.asynccontextmanager
async def consumer(
    tree: Staged, device: str, path: str, size: int | str = "", close: str = "", *, wait: bool = False
) -> AsyncIterator[trio.Process]:
    """Give a program that uses a device and tells what happens to it; it is killed at the end.

    With `wait` it goes on with the open device at `go`.
    """
    name = device if "/" in device else f"box/{device}"
    process = await program(CONSUMER, tree.root, name, path, size, close)
    try:
        assert await line_of(process) == "starting"
        if not wait:
            await go(process)
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await kill(process)


async def go(process: trio.Process) -> None:
    """Let a program go on that has opened its device."""
    assert process.stdin is not None
    await process.stdin.send_all(b"\n")


async def waits(process: trio.Process) -> None:
    """Wait until a program waits in a system call, on a descriptor that is no pipe of the test."""

    def waiting() -> bool:
        words = Path(f"/proc/{process.pid}/syscall").read_text().split()
        return words[0].isdigit() and int(words[0]) in SYSTEM_CALLS and int(words[1], 16) > 2

    await until(waiting, "the system call")


async def settled(tree: Staged, container: str = "box") -> tuple[int, int, int]:
    """Return what the container has, once it has let go of the connections that have just ended."""
    last: list[tuple[int, int, int]] = []

    def same() -> bool:
        last.append(tree.resources(container))
        return len(last) >= SAME and len(set(last[-SAME:])) == 1

    await until(same, "the end of what was before")
    return last[-1]


async def has_again(tree: Staged, container: str, before: tuple[int, int, int]) -> None:
    """Wait until the container has what it had."""
    try:
        await until(lambda: tree.resources(container) == before)
    except AssertionError:
        assert tree.resources(container) == before, tree.descriptors(container)
        raise


async def nothing_is_left(tree: Staged, before: tuple[int, int, int]) -> None:
    """Wait until the container has what it had; each consumer was closed once."""
    await has_again(tree, "box", before)
    assert tree.close_counts()


# -- a consumer is killed


@paths
@pytest.mark.parametrize("stage", STAGES)
async def test_a_consumer_is_killed(staged: Staged, path: str, stage: str) -> None:
    device, size, close, event, result = STAGES[stage]
    before, events = await settled(staged), len(staged.what(device))
    async with consumer(staged, device, path, size, close) as process:
        await until(lambda: event in staged.what(device, events), event)
        process.kill()
        if "cancelled" not in result:
            staged.release.touch()
    await until(lambda: staged.what(device, events) == result, f"{result}: {staged.what(device, events)}")
    await nothing_is_left(staged, before)


@paths
async def test_a_consumer_is_killed_before_it_is_taken_in(staged: Staged, path: str) -> None:
    before = await settled(staged)
    with staged.stopped():
        async with consumer(staged, "idle", path) as process:
            await waits(process)
            process.kill()
            os.kill(staged.pid("box"), signal.SIGCONT)
    await nothing_is_left(staged, before)


@paths
async def test_a_consumer_is_killed_whose_request_was_not_taken(staged: Staged, path: str) -> None:
    before, events = await settled(staged), len(staged.what("async"))
    async with consumer(staged, "async", path, 3, wait=True) as process:
        assert await line_of(process) == "open"
        with staged.stopped():
            await go(process)
            await waits(process)
            process.kill()
    await until(lambda: "close" in staged.what("async", events))
    assert staged.what("async", events) in (["open", "close"], ["open", "start", "cancelled", "close"])
    await nothing_is_left(staged, before)


@paths
@pytest.mark.parametrize("device", ["async", "large"], ids=["written", "being written"])
async def test_a_consumer_is_killed_that_has_not_read_its_reply(staged: Staged, path: str, device: str) -> None:
    before, events = await settled(staged), len(staged.what(device))
    async with consumer(staged, device, path, SIZE) as process:
        await until(lambda: "start" in staged.what(device, events))
        process.send_signal(signal.SIGSTOP)
        staged.release.touch()
        await until(lambda: "done" in staged.what(device, events))
        await until(lambda: not any(each["outstanding"] for each in staged.consumers()))
    await until(lambda: staged.what(device, events) == ["open", "start", "done", "close"])
    await nothing_is_left(staged, before)


@pytest.mark.parametrize("blocks", [8, 0], ids=["arena", "inline"])
async def test_a_consumer_is_killed_with_many_requests_outstanding(staged: Staged, blocks: int) -> None:
    source = """
import sys, ldmfs
device = ldmfs.open_device("box/async", root=sys.argv[1], blocks=int(sys.argv[2]))
for _ in range(100):
    ldmfs.send_request(device, bytes(100_000), print)
sys.stdin.read()
"""
    before, events = await settled(staged), len(staged.what("async"))
    process = await program(source, staged.root, blocks)
    await until(lambda: staged.what("async", events).count("start") == 100)
    await kill(process)
    await until(lambda: staged.what("async", events).count("close") == 1)
    assert staged.what("async", events).count("cancelled") == 100
    await nothing_is_left(staged, before)


# -- a provider is killed


class ByFile:
    """The way through the file, each call in a thread."""

    def __init__(self, root: Path) -> None:
        self.root = root

    async def open(self, name: str, **_: Any) -> File:
        return await trio.to_thread.run_sync(File, parse(name, self.root), abandon_on_cancel=True)

    async def send(self, device: File, data: bytes) -> bytes:
        request = Request(RequestType.CALL, data)
        return bytes((await trio.to_thread.run_sync(device.request, request, abandon_on_cancel=True)).data)

    async def close(self, device: File) -> None:
        await trio.to_thread.run_sync(device.close)


WAYS: dict[str, tuple[Any, int]] = {
    "blocking, arena": (Blocking, 8),
    "blocking, inline": (Blocking, 0),
    "trio, arena": (Trio, 8),
    "trio, inline": (Trio, 0),
    "file": (ByFile, 0),
}


class Uses:
    """One consumer on each way, all going through a device's stages; what each has come to is in `ended`.

    All have opened the device before the first sends, so that none of them meets the next instance.
    """

    def __init__(self, root: Path, stage: str) -> None:
        self.root = root
        self._open = 0
        self._all_open = trio.Event()
        self.device, self.size, self.closes, *_ = STAGES[stage]
        self.ended: dict[str, list[LdmError | None]] = {way: [] for way in WAYS}

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for way in WAYS:
                nursery.start_soon(self._use, way)

    async def _use(self, name: str) -> None:
        kind, blocks = WAYS[name]
        way, device = kind(self.root), None
        try:
            device = await way.open(f"box/{self.device}", blocks=blocks)
            self._open += 1
            if self._open == len(WAYS):
                self._all_open.set()
            await self._all_open.wait()
            if self.size:
                await way.send(device, bytes(int(self.size)))
            if self.closes:
                await way.close(device)
            self.ended[name].append(None)
        except LdmError as error:
            self.ended[name].append(error)
        finally:
            if device is not None:
                with contextlib.suppress(LdmError):
                    await way.close(device)


@contextlib.asynccontextmanager
async def keeps_nothing() -> AsyncIterator[None]:
    """See that this process has afterwards what it had before."""
    blocking._connections.close()

    def has() -> tuple[int, int, int, int]:
        mapped = Path("/proc/self/maps").read_text().count("ldmfs-arena")
        threads = sum(thread.name.startswith("ldmfs") for thread in threading.enumerate())
        return descriptors(), mapped, threads, trio.lowlevel.current_statistics().tasks_living

    aio._Connections.of_run()
    before = has()
    yield
    blocking._connections.close()
    await until(lambda: has() == before, f"{before}, not {has()}")


def is_running(tree: Staged) -> bool:
    return bool(tree.containers()["box"]["state"] == "running")


async def ended_by(uses: Uses) -> None:
    """Wait until each consumer has ended."""
    await until(lambda: all(uses.ended.values()), f"an end of each: {uses.ended}")


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "opened"])
async def test_a_provider_is_killed_and_each_waiter_gets_its_error_once(doomed: Staged, stage: str) -> None:
    uses, event = Uses(doomed.root, stage), STAGES[stage][3]
    alone = stage == "the handler runs inline"  # the others' requests are not taken meanwhile
    async with keeps_nothing(), trio.open_nursery() as nursery:
        nursery.start_soon(uses.run)
        await until(lambda: doomed.what(uses.device).count(event) == (1 if alone else len(WAYS)), event)
        box = doomed.pid("box")
        kill_provider(box)
        await ended_by(uses)
    for way, ended in uses.ended.items():
        (error,) = ended
        assert (error is None and uses.closes) or (error is not None and error.errno in GONE), way
    await until(lambda: doomed.pid("box") != box and is_running(doomed), "an instance that serves")
    doomed.release.touch()  # a close handler that is owed has held up nobody, and may end
    await until(lambda: doomed.consumers() == [], "an instance without consumers")


@pytest.mark.parametrize("way", WAYS)
async def test_a_provider_is_killed_that_has_a_device_open(doomed: Staged, way: str) -> None:
    kind, blocks = WAYS[way]
    async with keeps_nothing():
        it = kind(doomed.root)
        device = await it.open("box/idle", blocks=blocks)
        assert await it.send(device, bytes(SIZE)) == bytes(SIZE)
        kill_provider(doomed.pid("box"))
        assert (await error_of(it.send(device, b"x"))).errno in GONE
        with contextlib.suppress(LdmError):
            await it.close(device)
        again = await it.open("box/idle", blocks=blocks)
        assert await it.send(again, b"x") == b"x"
        await it.close(again)
        if isinstance(it, Trio):  # the run keeps one connection to the container, as before
            aio._Connections.of_run()._clients.popitem()[1].aclose()
    assert doomed.what("idle").count("open") == 2


@pytest.mark.parametrize("way", WAYS)
async def test_an_open_after_a_restart_connects_anew(doomed: Staged, way: str) -> None:
    kind, blocks = WAYS[way]
    it, box = kind(doomed.root), doomed.pid("box")
    await it.close(await it.open("box/idle", blocks=blocks))
    kill_provider(box)
    await until(lambda: doomed.pid("box") != box and is_running(doomed))
    device = await it.open("box/idle", blocks=blocks)
    assert await it.send(device, b"x") == b"x"
    await it.close(device)


@paths
async def test_a_provider_is_killed_before_it_takes_the_consumer_in(doomed: Staged, path: str) -> None:
    """The open waits for the next instance, or fails; it does not hang."""
    with doomed.stopped() as pid:
        async with consumer(doomed, "idle", path) as process:
            await waits(process)
            kill_provider(pid)
            assert await line_of(process) in {"open", *(f"error {number}" for number in DIED)}


@paths
async def test_a_provider_is_killed_that_has_not_taken_the_request(doomed: Staged, path: str) -> None:
    async with consumer(doomed, "async", path, SIZE, wait=True) as process:
        assert await line_of(process) == "open"
        with doomed.stopped() as pid:
            await go(process)
            await waits(process)
            kill_provider(pid)
        assert await line_of(process) in {f"error {number}" for number in GONE}
    assert doomed.what("async")[0] == "open"
    assert "start" not in doomed.what("async")


@paths
async def test_a_reply_that_was_written_is_read_after_the_providers_death(doomed: Staged, path: str) -> None:
    async with consumer(doomed, "async", path, SIZE) as process:
        assert await line_of(process) == "open"
        await until(lambda: "start" in doomed.what("async"))
        process.send_signal(signal.SIGSTOP)
        doomed.release.touch()
        await until(lambda: not any(each["outstanding"] for each in doomed.consumers()))
        kill_provider(doomed.pid("box"))
        process.send_signal(signal.SIGCONT)
        line = await line_of(process)
    if path == "file":  # the reply's end is told by another read
        assert line in {"answered", *(f"error {number}" for number in GONE)}
    else:
        assert line == "answered"


@pytest.mark.parametrize("path", ["inline", "file"])
async def test_a_provider_is_killed_while_it_writes_its_reply(doomed: Staged, path: str) -> None:
    async with consumer(doomed, "large", path, SIZE) as process:
        assert await line_of(process) == "open"
        await until(lambda: "start" in doomed.what("large"))
        process.send_signal(signal.SIGSTOP)
        doomed.release.touch()
        await until(lambda: not any(each["outstanding"] for each in doomed.consumers()))
        kill_provider(doomed.pid("box"))
        process.send_signal(signal.SIGCONT)
        assert await line_of(process) in {f"error {number}" for number in GONE}


@pytest.mark.parametrize("way", ["blocking, arena", "blocking, inline", "trio, arena", "trio, inline"])
async def test_a_provider_is_killed_with_a_thousand_completions_due(doomed: Staged, way: str) -> None:
    kind, blocks = WAYS[way]
    async with keeps_nothing():
        done, it = Completions(), kind(doomed.root)
        device = await it.open("box/async", blocks=blocks)
        for number in range(1000):
            await it.soon(device, bytes(70_000 if number < 20 else 10), done, number)
        await until(lambda: doomed.what("async").count("start") == 1000)
        kill_provider(doomed.pid("box"))
        seen = await done.wait(1000)
        await it.close(device)
    assert sorted(context for context, _ in seen) == list(range(1000))
    assert {outcome.errno for _, outcome in seen} == {errno.ECONNABORTED}


# -- both are killed


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("first", ["provider", "consumers"])
async def test_consumers_and_their_provider_are_killed_at_once(doomed: Staged, stage: str, first: str) -> None:
    device, size, close, event, _ = STAGES[stage]
    async with contextlib.AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(consumer(doomed, device, path, size, close)) for path in PATHS]
        await until(lambda: doomed.what(device).count(event) == (1 if device == "inline" else len(PATHS)))
        box = doomed.pid("box")
        pids = [box, *(each.pid for each in processes)]
        for pid in pids if first == "provider" else reversed(pids):
            os.kill(pid, signal.SIGKILL)
        for process in processes:
            assert await process.wait() == -signal.SIGKILL
    await until(lambda: doomed.pid("box") != box and is_running(doomed), "an instance that serves")
    assert exchange(doomed.root / "box/idle", b"x") == b"x"
    doomed.release.touch()
    await until(lambda: doomed.consumers() == [], "an instance without consumers")


# -- chains


@paths
async def test_killing_the_consumer_of_a_chain_cancels_its_bottom(staged: Staged, path: str) -> None:
    before, events = await settled(staged), len(staged.what("async"))
    async with consumer(staged, "x/x", path, SIZE):
        await until(lambda: "start" in staged.what("async", events))
    await until(lambda: staged.what("async", events) == ["open", "start", "cancelled", "close"])
    await nothing_is_left(staged, before)
    await until(lambda: staged.consumers("x") == staged.consumers("y") == [])


async def test_a_chain_does_not_keep_the_arenas_of_consumers_that_are_gone(staged: Staged) -> None:
    staged.release.touch()
    before = {name: await settled(staged, name) for name in ("x", "y", "box")}
    for _ in range(5):
        with ldmfs.open_device("x/x", root=staged.root) as device:
            assert ldmfs.send_request(device, bytes(SIZE)) == b"released"
        blocking._connections.close()
    for name, resources in before.items():
        await has_again(staged, name, resources)


@pytest.mark.parametrize("victim", ["x", "y", "box"])
async def test_a_provider_of_a_chain_is_killed(tmp_path: Path, plug_in: Path, victim: str) -> None:
    tree = Staged(tmp_path, plug_in)
    try:
        tree.start(CHAIN)
        warm_up(tree, "x/x")
        others = [name for name in ("x", "y", "box") if name != victim]
        before, events = {name: await settled(tree, name) for name in others}, len(tree.what("async"))
        async with contextlib.AsyncExitStack() as stack:
            processes = [await stack.enter_async_context(consumer(tree, "x/x", path, SIZE)) for path in PATHS]
            for process in processes:
                assert await line_of(process) == "open"
            await until(lambda: tree.what("async", events).count("start") == len(PATHS))
            kill_provider(tree.pid(victim))
            for process in processes:
                assert await line_of(process) in {f"error {number}" for number in GONE}
        if victim != "box":
            result = sorted(["open", "start", "cancelled", "close"] * len(PATHS))
            await until(lambda: sorted(tree.what("async", events)) == result, f"{result}: {tree.what('async', events)}")
            assert tree.close_counts()
        warm_up(tree, "x/x")  # what is kept between two requests is there again
        for name in others:
            await has_again(tree, name, before[name])
    finally:
        tree.release.touch()
        tree.end()


# -- the file where there is no channel


@pytest.mark.parametrize("way", [Blocking, Trio], ids=["blocking", "trio"])
async def test_where_there_is_no_channel_the_file_is_taken(doomed: Staged, way: Any) -> None:
    (doomed.root / ".ldmfs/channel/box").unlink()
    side = way(doomed.root)
    device = await side.open("box/idle")
    assert device.consumer_id == 0
    assert await side.send(device, b"hello") == b"hello"
    done = Completions()
    await side.soon(device, b"soon", done, 1)
    assert await done.wait() == [(1, b"soon")]
    await side.close(device)
    await until(lambda: doomed.what("idle") == ["open", "close"])
    assert doomed.close_counts()


async def test_threads_share_one_open_file(doomed: Staged) -> None:
    (doomed.root / ".ldmfs/channel/box").unlink()
    side = Blocking(doomed.root)
    device = await side.open("box/idle")
    wrong: list[bytes] = []

    async def use(number: int) -> None:
        for round in range(20):
            data = b"%d.%d" % (number, round)
            if await side.send(device, data) != data:
                wrong.append(data)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(use, number)
    await side.close(device)
    assert wrong == []
