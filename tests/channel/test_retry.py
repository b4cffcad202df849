"""Devices opened with `retry`: what their consumers see of a provider's end, over the channel and through the file."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import select
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from mounted.fixtures import _can_mount  # noqa: F401
from mounted.trees import Tree
from mounted.waiting import kill as kill_provider
from support import Gated, Plain, fail_with

import ldmfs
from ldmfs import Device, HandleClosed, InvalidRequest, LdmError, NoSuchDevice, NotServed, ProviderDied
from ldmfs.channel.address import listen
from ldmfs.consumer import aio, blocking
from ldmfs.consumer.local import Here
from ldmfs.consumer.retry import FIRST_PAUSE, LONGEST_PAUSE, Patience
from ldmfs.consumer.tree import channel_socket

from .served import (
    SECONDS,
    Blocking,
    Completions,
    Served,
    Side,
    Trio,
    descriptors,
    error_of,
    kill,
    line_of,
    opened,
    program,
    until,
)

LARGE = 300_000
"""Bytes of a request that travels in shared memory where it may."""


class Instances:
    """A container with one instance after the other, at a socket that outlives them, as the supervisor's does."""

    def __init__(self, root: Path, nursery: trio.Nursery) -> None:
        self.root = root
        self.path = channel_socket(root, "box")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        (root / "box").mkdir(exist_ok=True)
        self.listener = listen(self.path)
        self.instance: Served | None = None
        self._nursery = nursery
        self._ended = trio.Event()

    async def start(self, **devices: Device) -> Served:
        """Let an instance serve; the one before is ended."""
        await self.end()
        self.instance = Served(self.root, "box")
        for name, device in devices.items():
            self.instance.create(name, device)
        self._ended = trio.Event()
        self._nursery.start_soon(self._serve, self.instance, self._ended)
        return self.instance

    async def _serve(self, instance: Served, ended: trio.Event) -> None:
        await instance.serve(self.listener)
        ended.set()

    async def end(self) -> None:
        """End the instance, if there is one; consumers then wait for the next."""
        if self.instance is not None:
            self.instance.end()
            await self._ended.wait()
            assert not self.instance.consumers
            self.instance = None


@pytest.fixture
def boxes(tmp_path: Path) -> Callable[[], contextlib.AbstractAsyncContextManager[Instances]]:
    """Give what makes a container of instances; at the end nothing is outstanding."""

    @contextlib.asynccontextmanager
    async def made() -> AsyncIterator[Instances]:
        async with trio.open_nursery() as nursery:
            box = Instances(tmp_path, nursery)
            try:
                with trio.fail_after(SECONDS):
                    yield box
                    if box.instance is not None:
                        await box.instance.without_consumers()
            finally:
                blocking._connections.close()
                with trio.CancelScope(shield=True):
                    await box.end()
                box.listener.close()

    return made


Boxes = Callable[[], contextlib.AbstractAsyncContextManager[Instances]]


async def sending(side: Side, device: Any, data: bytes, into: list[Any], **_: Any) -> None:
    """Send a request and keep what comes of it."""
    try:
        into.append(await side.send(device, data))
    except LdmError as error:
        into.append(error)


# -- what a consumer sees


async def test_a_request_that_is_outstanding_is_answered_by_the_next_instance(boxes: Boxes, side: Side) -> None:
    gated, plain, seen = Gated(), Plain(), []
    async with boxes() as box, trio.open_nursery() as nursery:
        await box.start(d=gated)
        async with opened(side, retry=True) as device:
            nursery.start_soon(sending, side, device, b"hello", seen)
            await until(lambda: gated.started)
            await box.start(d=plain)
            await until(lambda: seen)
    assert seen == [b"HELLO"]
    assert (len(gated.closed), [what for what, _ in plain.calls]) == (1, ["open", "request", "close"])


async def test_without_retry_the_error_is_the_consumers(boxes: Boxes, side: Side) -> None:
    gated, seen = Gated(), []
    async with boxes() as box, trio.open_nursery() as nursery:
        await box.start(d=gated)
        async with opened(side) as device:
            nursery.start_soon(sending, side, device, b"hello", seen)
            await until(lambda: gated.started)
            await box.start(d=Plain())
            await until(lambda: seen)
    assert [type(error) for error in seen] == [ProviderDied]


@pytest.mark.parametrize("size", [5, LARGE], ids=["small", "large"])
async def test_a_device_that_was_idle_goes_on_with_the_next_instance(boxes: Boxes, side: Side, size: int) -> None:
    data = os.urandom(size)
    async with boxes() as box:
        await box.start(d=Plain(bytes_of))
        async with opened(side, retry=True) as device:
            for _ in range(3):
                assert await side.send(device, data) == data
                await box.start(d=Plain(bytes_of))


def bytes_of(request: ldmfs.Request) -> bytes:
    return bytes(request.data)


async def test_an_open_waits_for_the_next_instance(boxes: Boxes, side: Side) -> None:
    async with boxes() as box, trio.open_nursery() as nursery:
        opens: list[Any] = []

        async def open() -> None:
            opens.append(await side.open(retry=True))

        nursery.start_soon(open)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not opens
        await box.start(d=Plain())
        await until(lambda: opens)
        await side.close(opens[0])


async def test_an_open_that_its_provider_dies_in_is_tried_again(boxes: Boxes, side: Side) -> None:
    class Slow(Plain):
        async def open(self, consumer_id: int) -> None:
            self.calls.append(("open", consumer_id))
            await trio.sleep_forever()

    slow, opens = Slow(), []
    async with boxes() as box, trio.open_nursery() as nursery:
        await box.start(d=slow)

        async def open() -> None:
            opens.append(await side.open(retry=True))

        nursery.start_soon(open)
        await until(lambda: slow.calls)
        await box.start(d=Plain())
        await until(lambda: opens)
        await side.close(opens[0])


async def test_the_consumer_id_is_that_of_the_latest_open(boxes: Boxes, side: Side) -> None:
    async with boxes() as box:
        await box.start(d=Plain())
        async with opened(side, retry=True) as device:
            before = device.consumer_id
            second = Plain()
            await box.start(d=second)
            async with opened(side, "box/d"):  # has the id that the device had before
                await side.send(device, b"x")
                assert ("request", device.consumer_id) in second.calls
                assert device.consumer_id != before


async def test_what_the_next_instance_refuses_is_the_consumers(boxes: Boxes, side: Side) -> None:
    async with boxes() as box:
        await box.start(d=Plain())
        async with opened(side, retry=True) as device:
            await box.start(other=Plain())
            assert isinstance(await error_of(side.send(device, b"x")), NoSuchDevice)


async def test_no_other_error_is_tried_again(boxes: Boxes, side: Side) -> None:
    plain = Plain(fail_with(InvalidRequest("no")))
    async with boxes() as box:
        await box.start(d=plain)
        async with opened(side, retry=True) as device:
            assert isinstance(await error_of(side.send(device, b"x")), InvalidRequest)
    assert [what for what, _ in plain.calls].count("request") == 1


async def test_a_living_provider_that_passes_an_end_on_is_asked_again_by_the_same_consumer(
    boxes: Boxes, side: Side
) -> None:
    ends = [ProviderDied("below"), NotServed("below")]

    def answer(request: ldmfs.Request) -> bytes:
        if ends:
            raise ends.pop()
        return b"at last"

    plain = Plain(answer)
    async with boxes() as box:
        await box.start(d=plain)
        async with opened(side, retry=True) as device:
            assert await side.send(device, b"x") == b"at last"
    assert [what for what, _ in plain.calls] == ["open", "request", "request", "request", "close"]


async def test_a_non_standard_request_is_marshalled_once_and_sent_to_each_instance(boxes: Boxes, side: Side) -> None:
    class Lengths(Plain):
        def unmarshal(self, data: bytes) -> Any:
            return data.decode()

        def marshal(self, value: Any) -> bytes:
            return b"%d" % value

        def request(self, consumer_id: int, request: ldmfs.Request) -> ldmfs.Reply:
            return ldmfs.Reply(object=len(request.object))

    marshalled: list[str] = []

    def marshal(text: str) -> bytes:
        marshalled.append(text)
        return text.encode()

    async with boxes() as box:
        await box.start(d=Plain())
        async with opened(side, retry=True, marshal=marshal, unmarshal=int) as device:
            await box.start(d=Lengths(accepts=frozenset({ldmfs.RequestType.NON_STANDARD})))
            request = ldmfs.Request(ldmfs.RequestType.NON_STANDARD, object="four")
            assert (await side.send(device, request)).object == 4
    assert marshalled == ["four"]


async def test_a_device_of_the_own_container_is_called_as_ever(boxes: Boxes) -> None:
    async with boxes() as box:
        instance = await box.start(d=Plain())
        Here.current = Here(box.root, instance.container.registry, instance.container.dispatch)
        try:
            for side in (Trio(box.root), Blocking(box.root)):
                async with opened(side, retry=True) as device:
                    assert await side.send(device, b"x") == b"X"
        finally:
            Here.current = None
        assert not instance.container.registry.consumers


# -- completion handlers


@pytest.mark.parametrize("size", [5, LARGE], ids=["small", "large"])
async def test_each_completion_handler_is_called_once_with_its_reply(
    boxes: Boxes, side: Side, blocks: int, size: int
) -> None:
    gated, done = Gated(bytes_of), Completions()
    sent = [random.Random(number).randbytes(size) for number in range(40)]
    async with boxes() as box:
        await box.start(d=gated)
        async with opened(side, retry=True, blocks=blocks) as device:
            for number, data in enumerate(sent):
                await side.soon(device, data, done, number)
            await until(lambda: gated.started == len(sent))
            assert not done.seen
            await box.start(d=Plain(bytes_of))
            replies = dict(await done.wait(len(sent)))
    assert [replies[number] for number in range(len(sent))] == sent


async def test_a_request_with_a_completion_handler_to_an_idle_device_is_sent_again(boxes: Boxes, side: Side) -> None:
    done = Completions()
    async with boxes() as box:
        await box.start(d=Plain())
        async with opened(side, retry=True) as device:
            await box.end()
            await side.soon(device, b"a", done)
            await side.soon(device, b"b", done)
            await box.start(d=Plain())
            assert sorted(outcome for _, outcome in await done.wait(2)) == [b"A", b"B"]


async def test_a_senders_buffer_may_change_when_the_request_is_sent(boxes: Boxes, side: Side) -> None:
    gated, done, buffer = Gated(), Completions(), bytearray(b"first")
    async with boxes() as box:
        await box.start(d=gated)
        async with opened(side, retry=True) as device:
            await side.soon(device, buffer, done)
            await until(lambda: gated.started)
            buffer[:] = b"other"
            await box.start(d=Plain())
            assert await done.only() == b"FIRST"


async def test_as_many_requests_as_may_be_are_all_sent_again(boxes: Boxes, side: Side) -> None:
    gated, done = Gated(), Completions()
    async with boxes() as box:
        await box.start(d=gated)
        async with opened(side, retry=True) as device:
            sent = 0
            with contextlib.suppress(ldmfs.QueueFull):
                while True:
                    await side.soon(device, b"%d" % sent, done, sent)
                    sent += 1
            await until(lambda: gated.started == sent)
            await box.start(d=Plain())
            assert dict(await done.wait(sent)) == {number: b"%d" % number for number in range(sent)}
    assert sent > 1000


# -- the end of patience


async def test_it_is_given_up_after_retry_seconds(boxes: Boxes, side: Side) -> None:
    gated, seen, done = Gated(), [], Completions()
    async with boxes() as box, trio.open_nursery() as nursery:
        await box.start(d=gated)
        async with opened(side, retry=True, retry_seconds=0.3) as device:
            nursery.start_soon(sending, side, device, b"x", seen)
            await side.soon(device, b"y", done)
            await until(lambda: gated.started == 2)
            await box.end()
            began = trio.current_time()
            await until(lambda: seen and done.seen)
            assert trio.current_time() - began >= 0.25
    assert isinstance(seen[0], (NotServed, ProviderDied))
    assert isinstance(await done.only(), (NotServed, ProviderDied))


async def test_an_open_is_given_up_after_retry_seconds(boxes: Boxes, side: Side) -> None:
    async with boxes():
        began = trio.current_time()
        error = await error_of(side.open(retry=True, retry_seconds=0.3))
        assert isinstance(error, NotServed)
        assert "not answered in time" in str(error)
        assert trio.current_time() - began >= 0.25


async def test_a_second_open_does_not_wait_longer_than_its_own_patience(boxes: Boxes, side: Side) -> None:
    async with boxes() as box, trio.open_nursery() as nursery:
        opens: list[Any] = []

        async def open() -> None:
            opens.append(await side.open(retry=True))

        nursery.start_soon(open)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert isinstance(await error_of(side.open(retry=True, retry_seconds=0.1)), NotServed)
        await box.start(d=Plain())
        await until(lambda: opens)
        await side.close(opens[0])


async def test_a_container_that_refuses_connections_is_not_asked_without_pause(
    boxes: Boxes, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0
    module = blocking if side.name == "blocking" else aio
    connect = module.connect

    def counted(path: Path) -> Any:
        nonlocal attempts
        attempts += 1
        return connect(path)

    monkeypatch.setattr(module, "connect", counted)
    async with boxes() as box:
        box.listener.close()
        assert isinstance(await error_of(side.open(retry=True, retry_seconds=0.5)), NotServed)
    assert 2 <= attempts <= 9  # at once twice, then after 10, 20, 40, 80, 160, 320 ms


def test_patience_pauses_longer_each_time_and_ends() -> None:
    now = 100.0
    patience = Patience(3.0, lambda: now)
    pauses = []
    while (pause := patience.pause()) is not None:
        pauses.append(pause)
        now += pause
    assert pauses[:3] == [0.0, FIRST_PAUSE, 2 * FIRST_PAUSE]
    assert max(pauses) == LONGEST_PAUSE
    assert now == pytest.approx(103.0)


async def test_a_request_that_was_served_for_longer_than_retry_seconds_has_them_again(boxes: Boxes, side: Side) -> None:
    seen: list[Any] = []
    async with boxes() as box, trio.open_nursery() as nursery:
        gated = Gated()
        await box.start(d=gated)
        async with opened(side, retry=True, retry_seconds=1) as device:
            nursery.start_soon(sending, side, device, b"x", seen)
            for _ in range(2):
                await until(lambda: gated.started)  # noqa: B023
                await trio.sleep(1.1)  # what is proved is that this time does not count
                gated = Gated()
                await box.start(d=gated)
            gated.gate.set()
            await until(lambda: seen)
    assert seen == [b"X"]


# -- giving up by oneself


async def test_cancelling_stops_it_and_the_device_is_good_for_more(boxes: Boxes, tmp_path: Path) -> None:
    side, gated = Trio(tmp_path), Gated()
    async with boxes() as box:
        await box.start(d=gated)
        async with opened(side, retry=True) as device:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(side.send, device, b"x")
                await until(lambda: gated.started)
                await box.end()
                await trio.testing.wait_all_tasks_blocked(0.02)
                nursery.cancel_scope.cancel()
            plain = Plain()
            await box.start(d=plain)
            assert await side.send(device, b"y") == b"Y"
    assert [what for what, _ in plain.calls] == ["open", "request", "close"]


INTERRUPTED = """
import sys, ldmfs
device = ldmfs.open_device("box/d", root=sys.argv[1], retry=True)
print("open", flush=True)
try:
    ldmfs.send_request(device, b"x")
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.readline()
print(ldmfs.send_request(device, b"y").decode(), flush=True)
device.close()
"""


async def test_an_interrupt_stops_it_and_the_device_is_good_for_more(boxes: Boxes, tmp_path: Path) -> None:
    gated = Gated()
    async with boxes() as box:
        await box.start(d=gated)
        process = await program(INTERRUPTED, tmp_path)
        try:
            assert await line_of(process) == "open"
            await until(lambda: gated.started)
            await box.end()
            await until(lambda: select.select([box.listener], (), (), 0)[0], "the new connection")
            process.send_signal(signal.SIGINT)
            assert await line_of(process) == "interrupted"
            await box.start(d=Plain())
            assert process.stdin is not None
            await process.stdin.send_all(b"\n")
            assert await line_of(process) == "Y"
            assert await process.wait() == 0
        finally:
            await kill(process)


async def test_closing_ends_what_is_tried_again(boxes: Boxes, side: Side) -> None:
    gated, seen, done = Gated(), [], Completions()
    async with boxes() as box, trio.open_nursery() as nursery:
        await box.start(d=gated)
        device = await side.open(retry=True, retry_seconds=0.5)
        nursery.start_soon(sending, side, device, b"x", seen)
        await side.soon(device, b"y", done)
        await until(lambda: gated.started == 2)
        await box.end()
        await trio.testing.wait_all_tasks_blocked(0.02)
        await side.close(device)
        await until(lambda: seen and done.seen)
        plain = Plain()
        await box.start(d=plain)
        assert isinstance(await error_of(side.send(device, b"z")), HandleClosed)
        await trio.testing.wait_all_tasks_blocked(0.02)
    assert isinstance(seen[0], LdmError)
    assert isinstance(await done.only(), LdmError)
    assert "request" not in [what for what, _ in plain.calls]


async def test_a_device_with_retry_that_is_given_up_without_a_close_is_told(boxes: Boxes, tmp_path: Path) -> None:
    async with boxes() as box:
        await box.start(d=Plain())
        await trio.to_thread.run_sync(give_up, tmp_path)


def give_up(root: Path) -> None:
    device = ldmfs.open_device("box/d", root=root, retry=True)
    way = device._way
    assert way is not None
    with pytest.warns(ResourceWarning, match="box/d was not closed"):
        del device
    way.close()


# -- stacks


class Passing(ldmfs.StackedDevice, Device):
    """Passes requests on."""

    def __init__(self, lower: ldmfs.Lower) -> None:
        self.lowers = (lower,)

    async def request(self, consumer_id: int, request: ldmfs.Request) -> ldmfs.Reply:
        return await self.lowers[0].send(consumer_id, request.forward())


@pytest.mark.parametrize("size", [5, LARGE], ids=["small", "large"])
async def test_a_lower_device_with_retry_hides_its_providers_end(
    boxes: Boxes, side: Side, tmp_path: Path, size: int
) -> None:
    gated, seen, data = Gated(bytes_of), [], os.urandom(size)
    upper = Served(tmp_path, "top")
    upper.create("d", Passing(ldmfs.Lower(upper.container, "d", "box/d", retry=True)))
    async with boxes() as box, trio.open_nursery() as nursery:
        await box.start(d=gated)
        with listen(upper.socket) as listener:
            nursery.start_soon(upper.serve, listener)
            async with opened(side, "top/d") as device:
                nursery.start_soon(sending, side, device, data, seen)
                await until(lambda: gated.started)
                await box.start(d=Plain(bytes_of))
                await until(lambda: seen)
                assert bytes(seen[0]) == data
            await upper.without_consumers()
            upper.end()


# -- real containers, which are killed

TREE = """\
[box]
max_crashes = 1000
crash_window = "1 ms"
[box.faulty]
provider = "null"
delay = "2 ms"
jitter = "20 ms"
"""
KILLS = 5


class Load:
    """What consumers send to `echo` until they are told to end, and what was wrong with the replies."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.answered = 0
        self.wrong: list[object] = []
        self._numbers = iter(range(1 << 62))

    def data(self) -> bytes:
        number = next(self._numbers)
        return b"%d." % number * (40_000 if number % 20 == 0 else 3)

    def take(self, sent: bytes, outcome: object) -> None:
        self.answered += 1
        if outcome != sent:
            self.wrong.append((sent[:20], outcome if isinstance(outcome, Exception) else bytes(outcome[:20])))  # type: ignore[index]


async def load_by_tasks(load: Load, root: Path) -> None:
    async def one() -> None:
        async with await ldmfs.aio.open_device("box/echo", root=root, retry=True) as device:
            while not load.stop.is_set():
                data = load.data()
                try:
                    load.take(data, await ldmfs.aio.send_request(device, data))
                except LdmError as error:
                    load.take(data, error)

    async def soon() -> None:
        slots = trio.CapacityLimiter(30)

        def done(sent: tuple[object, bytes], outcome: object) -> None:
            slots.release_on_behalf_of(sent[0])
            load.take(sent[1], outcome)

        async with await ldmfs.aio.open_device("box/echo", root=root, retry=True) as device:
            while not load.stop.is_set():
                token, data = object(), load.data()
                await slots.acquire_on_behalf_of(token)
                await ldmfs.aio.send_request(device, data, done, (token, data))
            await until(lambda: not slots.borrowed_tokens)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)
        nursery.start_soon(soon)


def load_by_threads(load: Load, root: Path) -> None:
    def one() -> None:
        with ldmfs.open_device("box/echo", root=root, retry=True) as device:
            while not load.stop.is_set():
                data = load.data()
                try:
                    load.take(data, ldmfs.send_request(device, data))
                except LdmError as error:
                    load.take(data, error)

    def soon() -> None:
        slots = threading.Semaphore(30)

        def done(sent: bytes, outcome: object) -> None:
            load.take(sent, outcome)
            slots.release()

        with ldmfs.open_device("box/echo", root=root, retry=True) as device:
            while not load.stop.is_set():
                slots.acquire()
                data = load.data()
                ldmfs.send_request(device, data, done, data)
            for _ in range(30):
                assert slots.acquire(timeout=SECONDS)

    threads = [threading.Thread(target=target) for target in (one, one, one, one, soon)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("api", ["blocking", "trio"])
@pytest.mark.parametrize("path", ["channel", "file"])
async def test_no_kill_of_the_container_is_seen_under_load(mount: Callable[[str], Tree], api: str, path: str) -> None:
    tree = mount(TREE)
    if path == "file":
        channel_socket(tree.root, "box").unlink()
    before, load = descriptors(), Load()
    async with trio.open_nursery() as nursery:
        if api == "trio":  # in a run of its own, since connections end with the run
            nursery.start_soon(trio.to_thread.run_sync, trio.run, load_by_tasks, load, tree.root)
        else:
            nursery.start_soon(trio.to_thread.run_sync, load_by_threads, load, tree.root)
        for _ in range(KILLS):
            answered = load.answered
            await until(lambda: load.answered > answered + 50, "answers of the next instance")  # noqa: B023
            await trio.to_thread.run_sync(kill_provider, tree.pid("box"))
        load.stop.set()
    assert load.wrong == []
    assert tree.containers()["box"]["restarts"] == KILLS
    await until(lambda: tree.xattr(tree.root / "box/echo", "consumers") == "0", "the close of every consumer")
    blocking._connections.close()
    await until(lambda: not [each for each in threading.enumerate() if each.name.startswith("ldmfs-")], "their end")
    gc.collect()  # a lost connection's errors and its frames refer to each other, and to its memory
    assert descriptors() <= before
