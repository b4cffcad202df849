"""A provider that moves: what consumers ask is answered once, by one process or by the next, whatever crosses."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import ldmfs
from ldmfs import (
    Container,
    Device,
    LdmError,
    Lower,
    NoSuchDevice,
    NotServed,
    ProviderDied,
    Request,
    RequestCancelled,
    StackedDevice,
    StaleHandle,
)
from ldmfs.channel import server
from ldmfs.channel.address import listen
from ldmfs.consumer import blocking
from ldmfs.consumer.tree import channel_socket
from ldmfs.core.events import CloseRequested, OpenRequested, RequestReceived

from .raw import raw_container
from .served import MIB, SECONDS, Completions, Side, error_of, opened, until

IDS = 1 << 32

Devices = Callable[["Instance"], dict[str, Device]]


class Instance:
    """One instance of a container, which is served over its channel alone."""

    def __init__(self, root: Path, name: str, number: int, listener: socket.socket) -> None:
        self.number = number
        self.container = Container(name, number * IDS + 1, root)
        self.server = server.Server(listener, self.container.registry, self.container.dispatch)
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    async def serve(self) -> None:
        with self.scope:
            await trio.lowlevel.checkpoint()
            await self.server.run()
        self.ended.set()

    async def hand_over(self, seconds: float = math.inf) -> None:
        """Hand over, and end."""
        others = trio.Event()
        others.set()
        await self.server.hand_over(trio.current_time() + seconds, others)
        assert not self.container.registry.consumers
        self.scope.cancel()
        await self.ended.wait()


class Moving:
    """A container, whose instances follow each other."""

    def __init__(self, root: Path, nursery: trio.Nursery, devices: Devices, name: str = "box") -> None:
        self.root = root
        self.name = name
        self.nursery = nursery
        self.devices = devices
        path = channel_socket(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.listener = listen(path)
        self.instances: list[Instance] = []
        self.start()

    @property
    def now(self) -> Instance:
        return self.instances[-1]

    def start(self) -> None:
        self.instances.append(Instance(self.root, self.name, len(self.instances), self.listener))
        for name, device in self.devices(self.now).items():
            self.now.container.create_device(name, device)
        self.nursery.start_soon(self.now.serve)

    async def upgrade(self, seconds: float = math.inf) -> None:
        """Let the next instance take over."""
        await self.now.hand_over(seconds)
        self.start()

    def end(self) -> None:
        self.now.scope.cancel()
        self.listener.close()


@contextlib.asynccontextmanager
async def moving(root: Path, devices: Devices) -> AsyncIterator[Moving]:
    async with trio.open_nursery() as nursery:
        box = Moving(root, nursery, devices)
        try:
            with trio.fail_after(SECONDS):
                yield box
        finally:
            blocking._connections.close()
            box.end()
    assert not box.now.container.registry.consumers
    assert not box.now.container.dispatch.outstanding


class Shout(Device):
    """Gives the data in upper case; counts what it is asked, and who opens and closes it."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.opens: list[int] = []
        self.closes: list[int] = []

    def open(self, consumer_id: int) -> None:
        self.opens.append(consumer_id)

    def adopt(self, consumer_id: int) -> None:
        """Adopt it."""

    def close(self, consumer_id: int) -> None:
        self.closes.append(consumer_id)

    def request(self, consumer_id: int, request: Request) -> bytes:
        self.asked.append(bytes(request.data[:20]))
        return bytes(request.data).upper()


class Slow(Shout):
    """An `async` one that waits for `gate`, where a request says so."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.running = 0

    async def request(self, consumer_id: int, request: Request) -> bytes:  # type: ignore[override]
        self.running += 1
        try:
            if bytes(request.data[:4]) == b"wait":
                await self.gate.wait()
            else:
                await trio.lowlevel.checkpoint()
            return super().request(consumer_id, request)
        finally:
            self.running -= 1


class Made:
    """Makes the device `d` of each instance, and keeps it."""

    def __init__(self, make: Callable[[], Shout] = Shout) -> None:
        self.make = make
        self.all: list[Any] = []

    def __call__(self, instance: Instance) -> dict[str, Device]:
        self.all.append(self.make())
        return {"d": self.all[-1]}

    def asked(self) -> list[bytes]:
        return [data for device in self.all for data in device.asked]

    def balanced(self) -> bool:
        return all(sorted(device.opens) == sorted(device.closes) for device in self.all)


async def test_a_consumer_goes_on_with_the_next_process(tmp_path: Path, side: Side) -> None:
    made = Made()
    async with moving(tmp_path, made) as box:
        async with opened(side) as device:
            ids = []
            for number in range(4):
                assert await side.send(device, b"message %d" % number) == b"MESSAGE %d" % number
                ids.append(device.consumer_id)
                await box.upgrade()
        await until(made.balanced, "the close of each consumer")
    assert made.asked() == [b"message %d" % number for number in range(4)]
    assert [device.opens for device in made.all] == [[id] for id in ids] + [[]]


async def test_a_consumer_that_was_idle_for_several_processes_finds_the_last(tmp_path: Path, side: Side) -> None:
    made = Made()
    async with moving(tmp_path, made) as box, opened(side) as device:
        for _ in range(3):
            await box.upgrade()
        assert await side.send(device, b"hello") == b"HELLO"
        assert [len(each.asked) for each in made.all] == [0, 0, 0, 1]


async def test_each_device_of_a_connection_is_opened_anew(tmp_path: Path, side: Side) -> None:
    def devices(instance: Instance) -> dict[str, Device]:
        return {"one": Shout(), "two": Slow()}

    async with (
        moving(tmp_path, devices) as box,
        opened(side, "box/one") as one, opened(side, "box/two") as two, opened(side, "box/two") as third,
    ):  # fmt: skip
        for _ in range(3):
            await box.upgrade()
            assert [await side.send(each, b"hello") for each in (third, two, one)] == [b"HELLO"] * 3
            assert len({one.consumer_id, two.consumer_id, third.consumer_id}) == 3


async def test_what_runs_is_answered_by_the_process_that_runs_it(tmp_path: Path, side: Side) -> None:
    made = Made(Slow)
    async with moving(tmp_path, made) as box, opened(side) as device:
        replies: list[bytes] = []

        async def ask() -> None:
            replies.append(await side.send(device, b"wait"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: made.all[0].running, "the handler")
            nursery.start_soon(box.upgrade)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(made.all) == 1
            made.all[0].gate.set()
        assert replies == [b"WAIT"]
        assert made.asked() == [b"wait"]


async def test_what_is_asked_meanwhile_waits_for_the_next_process(tmp_path: Path, side: Side) -> None:
    made = Made(Slow)
    async with moving(tmp_path, made) as box, opened(side) as device:
        done = Completions()
        await side.soon(device, b"wait", done, 0)
        await until(lambda: made.all[0].running, "the handler")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.upgrade)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for number in range(1, 20):
                await side.soon(device, b"message %d" % number, done, number)
            made.all[0].gate.set()
        outcomes = dict(await done.wait(20))
        assert outcomes == {0: b"WAIT"} | {number: b"MESSAGE %d" % number for number in range(1, 20)}
        assert made.all[0].asked == [b"wait"]
        assert made.all[1].asked == [b"message %d" % number for number in range(1, 20)]


@pytest.mark.parametrize("make", [Shout, Slow])
async def test_pipelined_requests_are_each_carried_out_once(
    tmp_path: Path, side: Side, make: Callable[[], Shout]
) -> None:
    made = Made(make)
    async with moving(tmp_path, made) as box, opened(side) as device:
        done = Completions()
        for number in range(400):
            await side.soon(device, b"message %d" % number, done, number)
            if number % 100 == 50:
                box.nursery.start_soon(box.upgrade)
            if number % 100 == 99:
                await until(lambda: len(made.all) == number // 100 + 2, "the next process")  # noqa: B023
        assert dict(await done.wait(400)) == {number: b"MESSAGE %d" % number for number in range(400)}
        assert sorted(made.asked()) == sorted(b"message %d" % number for number in range(400))


async def test_a_load_sees_nothing_of_it(tmp_path: Path, side: Side, blocks: int) -> None:
    made = Made(Slow)
    stop = False
    counts = [0] * 4

    async def load(number: int, size: int) -> None:
        device = await side.open(blocks=blocks)
        while not stop:
            data = b"%d of %d " % (counts[number], number) + bytes(size)
            assert await side.send(device, data) == data.upper()
            counts[number] += 1
            if number == 3:
                await side.close(device)
                device = await side.open(blocks=blocks)
        await side.close(device)

    async with moving(tmp_path, made) as box:
        async with trio.open_nursery() as nursery:
            for number, size in enumerate((0, 10, 200_000, 0)):
                nursery.start_soon(load, number, size)
            for _ in range(10):
                before = list(counts)
                await box.upgrade()
                await until(lambda before=before: all(now > then + 1 for now, then in zip(counts, before, strict=True)))
            stop = True
        await until(made.balanced, "the close of each consumer")
    assert len(made.asked()) == sum(counts)


async def test_large_data_is_sent_again_as_it_was_when_it_was_sent(tmp_path: Path, side: Side, blocks: int) -> None:
    """The first process takes the first request alone, so that the second one is sent to the next."""
    with raw_container(tmp_path) as container:
        async with trio.open_nursery() as nursery:
            done, buffer = Completions(), bytearray(b"x" * MIB)
            devices: list[Any] = []

            async def consume() -> None:
                devices.append(await side.open(blocks=blocks))
                await side.soon(devices[0], memoryview(buffer), done, 0)
                buffer[:] = b"y" * MIB

            nursery.start_soon(consume)
            with trio.fail_after(SECONDS):
                first = await (await container.accept()).greet()
                id = await first.opens()
                await first.send(*first.opened(id))
                await until(lambda: buffer[0] == ord("y"), "the request")
                await first.send(*first.machine.moving(inner=False))
                first.close()
                second = await (await container.accept()).greet()
                await second.send(*second.opened(await second.opens(), 7))
                event = await second.receive()
                assert isinstance(event, RequestReceived)
                if event.blocks:
                    taken = second.arenas[0].arena.take(event.block, event.blocks, 7, event.request.type)
                    data = bytes(taken.request(event.request.type, 0, 0).data)
                else:
                    data = bytes(event.request.data)
                await second.send(*second.machine.replied(event.id, b"done"))
                assert data == b"x" * MIB
                assert await done.only() == b"done"
                nursery.start_soon(side.close, devices[0])
                closing = await second.receive()
                assert isinstance(closing, CloseRequested)
                await second.send(*second.machine.closed(closing.id))
        blocking._connections.close()


async def test_what_crosses_with_the_notice_is_sent_again(tmp_path: Path, side: Side) -> None:
    with raw_container(tmp_path) as container:
        async with trio.open_nursery() as nursery:
            replies: list[bytes] = []

            async def consume() -> None:
                async with opened(side) as device:
                    replies.append(await side.send(device, b"hello"))

            nursery.start_soon(consume)
            with trio.fail_after(SECONDS):
                first = await (await container.accept()).greet()
                await first.send(*first.opened(await first.opens()))
                await first.send(*first.machine.moving(inner=False))  # before the request is read, whenever it came
                event = None
                with trio.move_on_after(0.05):
                    event = await first.receive()
                assert event is None
                first.close()
                second = await (await container.accept()).greet()
                opening = await second.receive()
                assert isinstance(opening, OpenRequested)
                assert opening.again
                await second.send(*second.opened(opening.id, 7))
                event = await second.receive()
                assert isinstance(event, RequestReceived)
                assert event.consumer_id == 7
                await second.send(*second.machine.replied(event.id, b"HELLO"))
                closing = await second.receive()
                assert isinstance(closing, CloseRequested)
                await second.send(*second.machine.closed(closing.id))
        assert replies == [b"HELLO"]
        blocking._connections.close()


async def test_what_was_taken_and_not_answered_ends_with_the_process(tmp_path: Path, side: Side) -> None:
    made = Made(Slow)
    async with moving(tmp_path, made) as box, opened(side) as device:
        errors: list[LdmError] = []

        async def ask() -> None:
            errors.append(await error_of(side.send(device, b"wait")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: made.all[0].running, "the handler")
            await box.upgrade(seconds=0)
        assert type(errors[0]) is ProviderDied
        assert await side.send(device, b"hello") == b"HELLO"


async def test_a_process_that_is_killed_while_it_moves_fails_what_it_had_taken(tmp_path: Path, side: Side) -> None:
    made = Made(Slow)
    async with moving(tmp_path, made) as box, opened(side) as device:
        done = Completions()
        await side.soon(device, b"wait", done, 0)
        await until(lambda: made.all[0].running, "the handler")
        others = trio.Event()
        others.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.now.server.hand_over, math.inf, others)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await side.soon(device, b"hello", done, 1)
            box.now.scope.cancel()
            await box.now.ended.wait()
            nursery.cancel_scope.cancel()
        box.start()
        outcomes = dict(await done.wait(2))
        assert type(outcomes[0]) is ProviderDied
        assert outcomes[1] == b"HELLO"


class Keeping(Shout):
    """Knows its consumers, and adopts none."""

    adopt = Device.adopt  # type: ignore[assignment]


async def test_a_device_that_keeps_consumers_and_adopts_none_is_stale(tmp_path: Path, side: Side) -> None:
    made = Made(Keeping)
    async with moving(tmp_path, made) as box:
        async with opened(side) as device:
            await box.upgrade()
            for _ in range(2):
                assert type(await error_of(side.send(device, b"hello"))) is StaleHandle
        async with opened(side) as device:
            assert await side.send(device, b"hello") == b"HELLO"
        await until(made.balanced)


async def test_with_retry_a_stale_device_is_opened_anew(tmp_path: Path, side: Side) -> None:
    made = Made(Keeping)
    async with moving(tmp_path, made) as box, opened(side, retry=True) as device:
        assert await side.send(device, b"one") == b"ONE"
        await box.upgrade()
        assert await side.send(device, b"two") == b"TWO"
        assert device.consumer_id > IDS


async def test_a_device_that_the_next_process_has_not_is_gone(tmp_path: Path, side: Side) -> None:
    def devices(instance: Instance) -> dict[str, Device]:
        return {"d": Shout()} if not instance.number else {"other": Shout()}

    async with moving(tmp_path, devices) as box, opened(side) as device:
        await box.upgrade()
        assert type(await error_of(side.send(device, b"hello"))) is NoSuchDevice
        async with opened(side, "box/other") as other:
            assert await side.send(other, b"hello") == b"HELLO"


async def test_where_nobody_takes_over_consumers_are_told(tmp_path: Path, side: Side) -> None:
    async with moving(tmp_path, Made()) as box, opened(side) as device:
        await box.now.hand_over()
        box.listener.close()
        assert type(await error_of(side.send(device, b"hello"))) is NotServed


async def test_a_device_can_be_closed_while_its_provider_is_away(tmp_path: Path, side: Side) -> None:
    made = Made()
    async with moving(tmp_path, made) as box:
        device, other = await side.open(), await side.open()
        await box.now.hand_over()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.send, other, b"hello")
            await trio.testing.wait_all_tasks_blocked(0.01)
            await side.close(device)
            box.start()
        await side.close(other)
        await until(made.balanced)
        assert [len(each.opens) for each in made.all] == [2, 1]


async def test_what_is_held_back_can_be_cancelled(tmp_path: Path) -> None:
    made = Made()
    async with moving(tmp_path, made) as box, await ldmfs.aio.open_device("box/d", root=tmp_path) as device:
        await box.now.hand_over()
        for _ in range(3):
            with trio.move_on_after(0.01) as scope:
                await ldmfs.aio.send_request(device, b"cancelled")
            assert scope.cancelled_caught
        box.start()
        assert await ldmfs.aio.send_request(device, b"hello") == b"HELLO"
        assert made.asked() == [b"hello"]


async def test_closing_ends_what_is_held_back(tmp_path: Path, side: Side) -> None:
    async with moving(tmp_path, Made()) as box:
        device, done = await side.open(), Completions()
        await box.now.hand_over()
        await side.soon(device, b"hello", done)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await side.close(device)
        outcome = await done.only()
        assert type(outcome) is RequestCancelled
        box.start()


async def test_who_connects_while_it_moves_gets_to_the_next_process(tmp_path: Path, side: Side) -> None:
    made = Made()
    async with moving(tmp_path, made) as box:
        await box.now.hand_over()
        async with trio.open_nursery() as nursery:

            async def consume() -> None:
                async with opened(side) as device:
                    assert await side.send(device, b"hello") == b"HELLO"

            nursery.start_soon(consume)
            await trio.testing.wait_all_tasks_blocked(0.01)
            box.start()
        assert [len(each.asked) for each in made.all] == [0, 1]


class Through(StackedDevice, Device):
    """Passes on what it gets, when `gate` is set."""

    def __init__(self, lower: Lower, gate: trio.Event) -> None:
        self.lowers = (lower,)
        self.gate = gate
        self.entered = 0

    async def request(self, consumer_id: int, request: Request) -> Any:
        self.entered += 1
        await self.gate.wait()
        return await self.lowers[0].send(consumer_id, request.forward())


async def test_a_stack_goes_on_over_the_move_of_what_it_stands_on(tmp_path: Path, side: Side) -> None:
    made = Made(Slow)
    async with moving(tmp_path, made) as box, trio.open_nursery() as nursery:
        gate = trio.Event()
        gate.set()

        def stacked(instance: Instance) -> dict[str, Device]:
            return {"x": Through(Lower(instance.container, "x", "box/d"), gate)}

        upper = Moving(tmp_path, nursery, stacked, "upper")
        async with opened(side, "upper/x") as device:
            for _ in range(3):
                assert await side.send(device, b"hello") == b"HELLO"
                await box.upgrade()
                assert await side.send(device, b"hello") == b"HELLO"
                await upper.upgrade()
        upper.end()


async def test_a_request_that_comes_back_to_the_container_that_moves_is_taken(tmp_path: Path, side: Side) -> None:
    """box/top -> side/x -> box/bottom: the process that moves waits for itself, through another container."""
    gate = trio.Event()
    middle_gate = trio.Event()
    middle_gate.set()
    tops: list[Through] = []

    def devices(instance: Instance) -> dict[str, Device]:
        tops.append(Through(Lower(instance.container, "top", "side/x"), gate))
        return {"top": tops[-1], "bottom": Slow()}

    async with moving(tmp_path, devices) as box, trio.open_nursery() as nursery:

        def middle(instance: Instance) -> dict[str, Device]:
            return {"x": Through(Lower(instance.container, "x", "box/bottom"), middle_gate)}

        other = Moving(tmp_path, nursery, middle, "side")
        async with opened(side, "box/top") as device:
            replies: list[bytes] = []

            async def ask() -> None:
                replies.append(await side.send(device, b"hello"))

            async with trio.open_nursery() as asking:
                asking.start_soon(ask)
                await until(lambda: tops[0].entered, "the request")
                asking.start_soon(box.upgrade)
                await trio.testing.wait_all_tasks_blocked(0.01)
                gate.set()
            assert replies == [b"HELLO"]
            assert await side.send(device, b"again") == b"AGAIN"
        other.end()
