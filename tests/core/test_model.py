"""Any sequence of create, open, request, close and destroy, against a small model, without any loop.

A handler that waits is a coroutine that this file drives by hand: so it is also proved that the core needs no more of a
loop than `Runtime` says, and that what needs no waiting never waits.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from support import PEER

from ldmfs.core.device import Consumer, Device
from ldmfs.core.dispatch import Dispatch
from ldmfs.core.errors import AccessDenied, DeviceBusy, DeviceExists, HandleClosed, InvalidRequest, NoSuchDevice
from ldmfs.core.registry import Registry
from ldmfs.core.request import Request, RequestType

NAMES = ["a", "b", "c"]


class Cancelled(BaseException):
    """How this file's loop cancels."""


@types.coroutine
def suspend() -> Generator[None, Any, Any]:
    """Wait until the machine goes on with this coroutine; return what it sends."""
    return (yield)


class Event:
    def __init__(self) -> None:
        self.happened = False

    def set(self) -> None:
        self.happened = True

    def is_set(self) -> bool:
        return self.happened

    async def wait(self) -> None:
        while not self.happened:
            await suspend()


class Loop:
    """A runtime in which nothing happens by itself."""

    cancelled: type[BaseException] = Cancelled
    event = Event

    async def in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run what must not wait."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("it waited")


class Recorder(Device):
    """Says in what order its handlers ran, and refuses consumers when told to."""

    def __init__(self, log: list[tuple[str, int]]) -> None:
        self.log = log
        self.refuses = False
        self.running: list[int] = []

    def open(self, consumer_id: int) -> None:
        if self.refuses:
            raise AccessDenied
        self.log.append(("open", consumer_id))

    def close(self, consumer_id: int) -> None:
        assert consumer_id not in self.running
        self.log.append(("close", consumer_id))

    async def request(self, consumer_id: int, request: Request) -> Any:
        self.running.append(consumer_id)
        try:
            return await suspend()
        finally:
            self.running.remove(consumer_id)


class Running:
    """A request whose handler waits."""

    def __init__(self, dispatch: Dispatch, consumer: Consumer) -> None:
        self.consumer = consumer
        self.cancel_called = False
        self.ended = False
        number = dispatch.admit(consumer, self.cancel)
        self.coroutine = dispatch.request(consumer, Request(RequestType.CALL), number)
        self.coroutine.send(None)

    def cancel(self) -> None:
        self.cancel_called = True


class Model(RuleBasedStateMachine):
    """The model: the devices that exist, the consumers of each, and how many requests of each consumer run."""

    consumers = Bundle("consumers")
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry("model", owner=(0, 0))
        self.dispatch = Dispatch(self.registry, Loop())
        self.log: list[tuple[str, int]] = []
        self.told: list[tuple[str, bool]] = []
        self.registry.observers.append(lambda device, created: self.told.append((device.name, created)))
        self.devices: dict[str, Recorder] = {}
        self.open_ones: dict[int, tuple[str, Consumer]] = {}
        self.closed: set[int] = set()
        self.running: list[Running] = []
        self.changes: list[tuple[str, bool]] = []

    def consumers_of(self, name: str) -> list[int]:
        return [id for id, (device, _) in self.open_ones.items() if device == name]

    @rule(name=st.sampled_from(NAMES))
    def create(self, name: str) -> None:
        device = Recorder(self.log)
        if name in self.devices:
            with pytest.raises(DeviceExists):
                self.registry.create_device(name, device)
            return
        self.registry.create_device(name, device)
        self.devices[name] = device
        self.changes.append((name, True))

    @rule(name=st.sampled_from(NAMES))
    def destroy(self, name: str) -> None:
        if name not in self.devices:
            with pytest.raises(NoSuchDevice):
                self.registry.destroy_device(name)
        elif self.consumers_of(name):
            with pytest.raises(DeviceBusy):
                self.registry.destroy_device(name)
        else:
            self.registry.destroy_device(name)
            del self.devices[name]
            self.changes.append((name, False))

    @rule(target=consumers, name=st.sampled_from(NAMES), refuses=st.booleans())
    def open(self, name: str, refuses: bool) -> Any:
        if name not in self.devices:
            with pytest.raises(NoSuchDevice):
                self.registry.find(name)
            return multiple()
        self.devices[name].refuses = refuses
        opening = self.dispatch.open(self.registry.find(name), PEER)
        if refuses:
            with pytest.raises(AccessDenied):
                at_once(opening)
            return multiple()
        consumer = at_once(opening)
        assert consumer.id not in self.open_ones
        self.open_ones[consumer.id] = name, consumer
        return consumer

    @rule(target=requests, consumer=consumers)
    def request(self, consumer: Consumer) -> Any:
        if consumer.id in self.closed:
            with pytest.raises(HandleClosed):
                Running(self.dispatch, consumer)
            return multiple()
        running = Running(self.dispatch, consumer)
        self.running.append(running)
        return running

    @rule(running=consumes(requests), data=st.binary(max_size=5))
    def reply(self, running: Running, data: bytes) -> None:
        if running.ended:
            return
        with pytest.raises(StopIteration) as stop:
            running.coroutine.send(data)
        assert stop.value.value.data == data
        self.running.remove(running)

    @rule(running=consumes(requests))
    def fail(self, running: Running) -> None:
        if running.ended:
            return
        with pytest.raises(InvalidRequest):
            running.coroutine.throw(InvalidRequest())
        self.running.remove(running)

    @rule(consumer=consumers)
    def close(self, consumer: Consumer) -> None:
        own = [running for running in self.running if running.consumer is consumer]
        closing = self.dispatch.close(consumer)
        if own:
            closing.send(None)
            assert all(running.cancel_called for running in own)
            at_once(self.dispatch.close(consumer))  # another one has nothing to do
        for running in own:
            assert ("close", consumer.id) not in self.log
            with pytest.raises(Cancelled):
                running.coroutine.throw(Cancelled())
            running.ended = True
            self.running.remove(running)
        at_once(closing)
        self.open_ones.pop(consumer.id, None)
        self.closed.add(consumer.id)

    @invariant()
    def the_registry_has_the_devices_of_the_model(self) -> None:
        assert {device.name for device in self.registry} == set(self.devices)
        assert {device.name: device for device in self.registry.by_id.values()} == self.registry.devices

    @invariant()
    def the_registry_has_the_consumers_of_the_model(self) -> None:
        assert set(self.registry.consumers) == set(self.open_ones)
        for device in self.registry:
            assert set(device.consumers) == set(self.consumers_of(device.name))

    @invariant()
    def as_many_requests_are_outstanding_as_run(self) -> None:
        assert self.dispatch.outstanding == len(self.running)
        for _, consumer in self.open_ones.values():
            assert len(consumer.cancels) == sum(running.consumer is consumer for running in self.running)

    @invariant()
    def nothing_is_cancelled_that_was_not_closed(self) -> None:
        assert not any(running.cancel_called for running in self.running)

    @invariant()
    def each_consumer_was_opened_once_and_closed_once_if_it_is(self) -> None:
        assert sorted(self.log) == sorted(
            [("open", id) for id in (*self.open_ones, *self.closed)] + [("close", id) for id in self.closed]
        )

    @invariant()
    def observers_were_told_of_every_change(self) -> None:
        assert self.told == self.changes

    def teardown(self) -> None:
        for running in self.running:
            running.coroutine.close()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
