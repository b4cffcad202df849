"""The name space of a container."""

from __future__ import annotations

import threading
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PEER, Plain

from ldmfs.container.host import Container, create_device, destroy_device
from ldmfs.core import registry as registry_module
from ldmfs.core.device import BLOCK_TYPES, MESSAGE_TYPES, Device, Execution, Kind, LogicalDevice
from ldmfs.core.errors import (
    DeviceBusy,
    DeviceExists,
    HandleClosed,
    InvalidRequest,
    LdmError,
    NameTooLong,
    NoSuchDevice,
    QueueFull,
)
from ldmfs.core.registry import ROOT_ID, Registry
from ldmfs.core.request import RequestType


@pytest.fixture
def registry() -> Registry:
    return Registry("test", owner=(10, 20))


# -- create and destroy


def test_a_created_device_is_found_by_name(registry: Registry) -> None:
    assert registry.create_device("upper", Plain()) is registry.find("upper")


def test_a_created_device_is_found_by_id(registry: Registry) -> None:
    device = registry.create_device("upper", Plain())
    assert registry.find_id(device.id) is device


def test_a_name_that_is_taken_is_refused(registry: Registry) -> None:
    registry.create_device("upper", Plain())
    with pytest.raises(DeviceExists, match="'test' has a device 'upper'"):
        registry.create_device("upper", Plain())


def test_a_refused_creation_leaves_the_first_device(registry: Registry) -> None:
    first = registry.create_device("upper", Plain())
    with pytest.raises(DeviceExists):
        registry.create_device("upper", Plain())
    assert list(registry) == [first]


def test_a_destroyed_device_is_not_found(registry: Registry) -> None:
    device = registry.create_device("upper", Plain())
    registry.destroy_device("upper")
    with pytest.raises(NoSuchDevice, match="no device 'upper'"):
        registry.find("upper")
    with pytest.raises(NoSuchDevice):
        registry.find_id(device.id)


def test_an_unknown_device_cannot_be_destroyed(registry: Registry) -> None:
    with pytest.raises(NoSuchDevice):
        registry.destroy_device("upper")


def test_a_device_with_a_consumer_cannot_be_destroyed(registry: Registry) -> None:
    registry.add_consumer(registry.create_device("upper", Plain()), PEER)
    with pytest.raises(DeviceBusy, match="1 consumer"):
        registry.destroy_device("upper")


def test_a_device_that_was_busy_is_still_there(registry: Registry) -> None:
    device = registry.create_device("upper", Plain())
    registry.add_consumer(device, PEER)
    with pytest.raises(DeviceBusy):
        registry.destroy_device("upper")
    assert registry.find("upper") is device


def test_a_device_can_be_destroyed_after_its_last_consumer(registry: Registry) -> None:
    consumer = registry.add_consumer(registry.create_device("upper", Plain()), PEER)
    registry.remove_consumer(consumer)
    registry.destroy_device("upper")
    assert len(registry) == 0


def test_a_name_can_be_used_again(registry: Registry) -> None:
    registry.create_device("upper", Plain())
    registry.destroy_device("upper")
    again = registry.create_device("upper", Plain())
    assert registry.find("upper") is again


def test_a_bad_name_is_refused(registry: Registry) -> None:
    with pytest.raises(InvalidRequest):
        registry.create_device("a/b", Plain())


def test_devices_may_be_destroyed_while_they_are_listed(registry: Registry) -> None:
    for name in "abc":
        registry.create_device(name, Plain())
    for device in registry:
        registry.destroy_device(device.name)
    assert len(registry) == 0


def test_devices_may_be_created_from_other_threads(registry: Registry) -> None:
    start = threading.Barrier(8)

    def create(part: int) -> None:
        start.wait()
        for number in range(50):
            registry.create_device(f"{part}-{number}", Plain())

    threads = [threading.Thread(target=create, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({device.id for device in registry}) == 400


def test_one_of_many_threads_gets_a_name(registry: Registry) -> None:
    start = threading.Barrier(8)
    outcomes: list[str] = []

    def create() -> None:
        start.wait()
        try:
            registry.create_device("one", Plain())
            outcomes.append("created")
        except DeviceExists:
            outcomes.append("exists")

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["created"] + ["exists"] * 7


# -- observers


def test_an_observer_is_told_of_a_creation(registry: Registry) -> None:
    told: list[tuple[LogicalDevice, bool]] = []
    registry.observers.append(lambda device, created: told.append((device, created)))
    device = registry.create_device("upper", Plain())
    assert told == [(device, True)]


def test_an_observer_is_told_of_a_destruction(registry: Registry) -> None:
    device = registry.create_device("upper", Plain())
    told: list[tuple[LogicalDevice, bool]] = []
    registry.observers.append(lambda device, created: told.append((device, created)))
    registry.destroy_device("upper")
    assert told == [(device, False)]


def test_an_observer_finds_what_it_is_told_of(registry: Registry) -> None:
    found: list[LogicalDevice] = []
    registry.observers.append(lambda device, created: found.append(registry.find(device.name)))
    device = registry.create_device("upper", Plain())
    assert found == [device]


def test_an_observer_is_not_told_of_what_is_refused(registry: Registry) -> None:
    registry.add_consumer(registry.create_device("upper", Plain()), PEER)
    told: list[bool] = []
    registry.observers.append(lambda device, created: told.append(created))
    for refused in (lambda: registry.create_device("upper", Plain()), lambda: registry.destroy_device("upper")):
        with pytest.raises(LdmError):
            refused()
    assert told == []


def test_an_observer_may_ask_and_change_the_registry(registry: Registry) -> None:
    def destroy_at_once(device: LogicalDevice, created: bool) -> None:
        if created:
            registry.destroy_device(device.name)

    registry.observers.append(destroy_at_once)
    registry.create_device("upper", Plain())
    assert len(registry) == 0


# -- node ids


@given(st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=3, max_size=20)))
def test_node_ids_are_the_same_in_every_instance(names: list[str]) -> None:
    forwards, backwards = Registry("a"), Registry("b")
    names = list(dict.fromkeys(name for name in names if name != "..."))
    for name in names:
        forwards.create_device(name, Plain())
    for name in reversed(names):
        backwards.create_device(name, Plain())
    assert {device.name: device.id for device in forwards} == {device.name: device.id for device in backwards}


@pytest.mark.parametrize("name", ["upper", "lower", "é", "lun0"])
def test_node_ids_are_whole_in_a_floating_point_number(registry: Registry, name: str) -> None:
    number = registry.create_device(name, Plain()).id
    assert int(float(number)) == number
    assert ROOT_ID < number < 1 << 53


def hash_to(monkeypatch: pytest.MonkeyPatch, value: int) -> None:
    """Make every name have the node id `value`."""
    digest = (value << 11).to_bytes(8, "big")
    fake = types.SimpleNamespace(blake2b=lambda *_args, **_kw: types.SimpleNamespace(digest=lambda: digest))
    monkeypatch.setattr(registry_module, "hashlib", fake)


def test_the_hash_of_the_tests_is_used(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_to(monkeypatch, 4711)
    assert registry.create_device("a", Plain()).id == 4711


@pytest.mark.parametrize("value", [0, ROOT_ID])
def test_a_node_id_is_never_that_of_the_directory_or_none(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, value: int
) -> None:
    hash_to(monkeypatch, value)
    assert registry.create_device("a", Plain()).id == ROOT_ID + 1


def test_devices_of_equal_hash_get_different_node_ids(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_to(monkeypatch, 4711)
    assert [registry.create_device(name, Plain()).id for name in "abc"] == [4711, 4712, 4713]


def test_each_device_of_equal_hash_is_found_by_its_id(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_to(monkeypatch, 4711)
    devices = [registry.create_device(name, Plain()) for name in "abc"]
    assert [registry.find_id(device.id) for device in devices] == devices


def test_probing_goes_round_past_the_directory(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_to(monkeypatch, (1 << 53) - 1)
    assert [registry.create_device(name, Plain()).id for name in "ab"] == [(1 << 53) - 1, ROOT_ID + 1]


def test_the_id_of_a_destroyed_device_is_free_again(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    hash_to(monkeypatch, 4711)
    registry.create_device("a", Plain())
    registry.destroy_device("a")
    assert registry.create_device("b", Plain()).id == 4711


# -- consumers


def test_each_open_has_an_id_of_its_own(registry: Registry) -> None:
    device = registry.create_device("upper", Plain())
    ids = {registry.add_consumer(device, PEER).id for _ in range(100)}
    assert len(ids) == 100


def test_consumer_ids_begin_where_the_last_instance_ended() -> None:
    registry = Registry("test", first_consumer_id=5000)
    assert registry.add_consumer(registry.create_device("upper", Plain()), PEER).id == 5000


def test_the_id_of_a_closed_consumer_is_not_used_again(registry: Registry) -> None:
    device = registry.create_device("upper", Plain())
    first = registry.add_consumer(device, PEER)
    registry.remove_consumer(first)
    assert registry.add_consumer(device, PEER).id != first.id


def test_a_consumer_is_found_by_its_id(registry: Registry) -> None:
    consumer = registry.add_consumer(registry.create_device("upper", Plain()), PEER)
    assert registry.consumer(consumer.id) is consumer


def test_a_removed_consumer_is_closed(registry: Registry) -> None:
    consumer = registry.add_consumer(registry.create_device("upper", Plain()), PEER)
    registry.remove_consumer(consumer)
    with pytest.raises(HandleClosed):
        registry.consumer(consumer.id)


def test_removing_a_consumer_twice_is_harmless(registry: Registry) -> None:
    consumer = registry.add_consumer(registry.create_device("upper", Plain()), PEER)
    registry.remove_consumer(consumer)
    registry.remove_consumer(consumer)
    assert registry.consumers == {}


def test_a_device_that_was_just_destroyed_gets_no_consumer(registry: Registry) -> None:
    device = registry.create_device("upper", Plain())
    registry.destroy_device("upper")
    with pytest.raises(NoSuchDevice, match="destroyed"):
        registry.add_consumer(device, PEER)


def test_a_device_that_was_replaced_gets_no_consumer(registry: Registry) -> None:
    device = registry.create_device("upper", Plain())
    registry.destroy_device("upper")
    registry.create_device("upper", Plain())
    with pytest.raises(NoSuchDevice):
        registry.add_consumer(device, PEER)


def test_one_consumer_too_many_is_refused(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "MAX_CONSUMERS", 3)
    device = registry.create_device("upper", Plain())
    for _ in range(3):
        registry.add_consumer(device, PEER)
    with pytest.raises(QueueFull):
        registry.add_consumer(device, PEER)


def test_a_closed_consumer_makes_room(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "MAX_CONSUMERS", 1)
    device = registry.create_device("upper", Plain())
    registry.remove_consumer(registry.add_consumer(device, PEER))
    assert registry.add_consumer(device, PEER).device is device


def test_the_graph_tells_of_a_consumer(registry: Registry) -> None:
    registry.add_consumer(registry.create_device("upper", Plain(description="shouts")), PEER)
    (device,) = registry.describe()["devices"]
    assert (device["name"], device["description"], device["consumers"][0]["pid"]) == ("upper", "shouts", PEER.pid)


# -- what a device's record takes from its author


@pytest.mark.parametrize(
    ("attribute", "value"), [("mode", 0o640), ("uid", 5), ("gid", 6), ("description", "x"), ("takes", "t"), ("size", 9)]
)
def test_an_attribute_is_taken_over(registry: Registry, attribute: str, value: Any) -> None:
    assert getattr(registry.create_device("d", Plain(**{attribute: value})), attribute) == value


def test_a_device_without_owner_belongs_to_the_container(registry: Registry) -> None:
    device = registry.create_device("d", Plain())
    assert (device.uid, device.gid) == (10, 20)


def test_an_owner_of_root_is_an_owner(registry: Registry) -> None:
    device = registry.create_device("d", Plain(uid=0, gid=0))
    assert (device.uid, device.gid) == (0, 0)


@pytest.mark.parametrize(("kind", "types_"), [(Kind.MESSAGE, MESSAGE_TYPES), (Kind.BLOCK, BLOCK_TYPES)])
def test_a_device_accepts_what_its_kind_does(registry: Registry, kind: Kind, types_: frozenset[RequestType]) -> None:
    assert registry.create_device("d", Plain(kind=kind)).accepts == types_


def test_a_device_may_accept_nothing(registry: Registry) -> None:
    assert registry.create_device("d", Plain(accepts=frozenset())).accepts == frozenset()


def test_an_unknown_kind_is_refused(registry: Registry) -> None:
    with pytest.raises(InvalidRequest, match=r"'d'.*'tape'"):
        registry.create_device("d", Plain(kind="tape"))


# -- the provider API of a container


def answer(name: str, consumer_id: int, request: object) -> bytes:
    return f"{name} {consumer_id}".encode()


async def answer_later(name: str, consumer_id: int, request: object) -> bytes:
    return b""


def test_handlers_get_the_name_of_their_device() -> None:
    device = Container("test").create_device("d", request_handler=answer)
    assert device.request_handler(7, None) == b"d 7"


def test_handlers_may_be_given_in_order() -> None:
    calls: list[tuple[str, str, int]] = []
    device = Container("test").create_device(
        "d",
        lambda name, consumer_id: calls.append(("open", name, consumer_id)),
        lambda name, consumer_id: calls.append(("close", name, consumer_id)),
        answer,
    )
    device.open_handler(7)
    device.close_handler(7)
    assert calls == [("open", "d", 7), ("close", "d", 7)]


def test_an_async_handler_is_recognised_through_its_wrapping() -> None:
    device = Container("test").create_device("d", request_handler=answer_later)
    assert device.request_execution is Execution.ASYNC


def test_a_handler_may_ask_for_a_thread() -> None:
    device = Container("test").create_device("d", request_handler=answer, thread=True)
    assert device.request_execution is Execution.THREAD


def test_a_handler_that_does_nothing_needs_no_thread() -> None:
    device = Container("test").create_device("d", request_handler=answer, thread=True)
    assert (device.open_execution, device.close_execution) == (Execution.INLINE, Execution.INLINE)


def test_async_wins_over_a_thread() -> None:
    device = Container("test").create_device("d", request_handler=answer_later, thread=True)
    assert device.request_execution is Execution.ASYNC


def test_an_object_with_an_async_call_is_an_async_handler() -> None:
    class Handler:
        async def __call__(self, name: str, consumer_id: int, request: object) -> bytes:
            return b""

    assert Container("test").create_device("d", request_handler=Handler()).request_execution is Execution.ASYNC


def test_a_device_needs_a_request_handler() -> None:
    with pytest.raises(InvalidRequest, match="request_handler"):
        Container("test").create_device("d", answer, answer)


@pytest.mark.parametrize("attribute", ["colour", "__class__", "_x", "request", "open"])
def test_an_unknown_attribute_is_refused(attribute: str) -> None:
    with pytest.raises(InvalidRequest, match=attribute):
        Container("test").create_device("d", request_handler=answer, **{attribute: 1})


def test_a_long_name_is_refused() -> None:
    with pytest.raises(NameTooLong):
        Container("test").create_device("d" * 256, request_handler=answer)


def test_a_device_says_which_provider_made_it() -> None:
    assert Container("test").create_device("d", Plain(), provider="text").provider == "text"


def test_the_class_form_needs_only_a_request_method() -> None:
    class Echo(Device):
        def request(self, consumer_id: int, request: object) -> bytes:
            return b"echo"

    assert Container("test").create_device("d", Echo()).request_handler(1, None) == b"echo"


def test_a_class_without_request_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="Device has no request handler"):
        Device().request(1, None)  # type: ignore[arg-type]


def test_the_functions_of_the_package_act_on_the_container_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    container = Container("test")
    monkeypatch.setattr(Container, "current", container)
    create_device("d", Plain())
    assert [device.name for device in container.registry] == ["d"]
    destroy_device("d")
    assert len(container.registry) == 0


def test_a_program_that_is_no_container_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Container, "current", None)
    with pytest.raises(LdmError, match="is no container"):
        create_device("d", Plain())
