"""The name space of one container: its devices and who consumes them."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from .device import Consumer, Device, LogicalDevice, Peer, check_name
from .errors import DeviceBusy, DeviceExists, HandleClosed, NoSuchDevice, QueueFull

ROOT_ID = 1
"""The node id of the container's directory, as FUSE fixes it."""

MAX_CONSUMERS = 1 << 20
"""Opens of one container's devices at one time; one more is refused with `EAGAIN`."""

Observer = Callable[[LogicalDevice, bool], None]


class Registry:
    """The devices of one container, by name and by id, and their consumers.

    Devices may be created and destroyed from any thread, at any time; everything else belongs to the container's loop.
    An observer is called with each device that was created (`True`) or destroyed (`False`), in the thread that did it.
    """

    def __init__(self, container: str, owner: tuple[int, int] | None = None, first_consumer_id: int = 1) -> None:
        self.container = container
        self.owner = owner or (os.geteuid(), os.getegid())
        self.created = time.time()
        self.devices: dict[str, LogicalDevice] = {}
        self.by_id: dict[int, LogicalDevice] = {}
        self.consumers: dict[int, Consumer] = {}
        self.observers: list[Observer] = []
        self._ids = itertools.count(first_consumer_id)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[LogicalDevice]:
        return iter(tuple(self.devices.values()))

    def __len__(self) -> int:
        return len(self.devices)

    def create_device(self, name: str, device: Device, provider: str = "") -> LogicalDevice:
        """Make `device` available as `name`.

        Raises `InvalidRequest` or `NameTooLong` for what cannot be a name, `DeviceExists` for one that is taken.
        """
        check_name(name)
        with self._lock:
            if name in self.devices:
                raise DeviceExists(f"container {self.container!r} has a device {name!r} already")
            logical = LogicalDevice(name, self._node_id(name), device, provider, self.owner)
            self.devices[name] = self.by_id[logical.id] = logical
        self._tell(logical, created=True)
        return logical

    def destroy_device(self, name: str) -> None:
        """Make the device unavailable.  Raises `NoSuchDevice`, and `DeviceBusy` while it has a consumer."""
        with self._lock:
            logical = self.find(name)
            if logical.consumers:
                raise DeviceBusy(f"device {name!r} has {len(logical.consumers)} consumer(s)")
            del self.devices[name], self.by_id[logical.id]
        self._tell(logical, created=False)

    def find(self, name: str) -> LogicalDevice:
        """Return the device of that name; raise `NoSuchDevice` where there is none."""
        try:
            return self.devices[name]
        except KeyError:
            raise NoSuchDevice(f"container {self.container!r} has no device {name!r}") from None

    def find_id(self, id: int) -> LogicalDevice:
        """Return the device of that node id; raise `NoSuchDevice` where there is none."""
        try:
            return self.by_id[id]
        except KeyError:
            raise NoSuchDevice(f"container {self.container!r} has no device with the id {id}") from None

    def add_consumer(self, device: LogicalDevice, peer: Peer, flags: int = 0, id: int | None = None) -> Consumer:
        """Enter a consumer of `device`, which thereby cannot be destroyed; raise `NoSuchDevice` if it just was.

        It gets a new id, unless it has one from an earlier instance of the container.
        """
        with self._lock:
            if self.by_id.get(device.id) is not device:
                raise NoSuchDevice(f"device {device.name!r} was destroyed")
            if len(self.consumers) >= MAX_CONSUMERS:
                raise QueueFull(f"container {self.container!r} has {MAX_CONSUMERS} consumers, as many as it may")
            consumer = Consumer(next(self._ids) if id is None else id, device, peer, flags)
            self.consumers[consumer.id] = device.consumers[consumer.id] = consumer
        return consumer

    def remove_consumer(self, consumer: Consumer) -> None:
        """Forget a consumer."""
        with self._lock:
            self.consumers.pop(consumer.id, None)
            consumer.device.consumers.pop(consumer.id, None)

    def consumer(self, id: int) -> Consumer:
        """Return the consumer of that id; raise `HandleClosed` where it is closed or never was."""
        try:
            return self.consumers[id]
        except KeyError:
            raise HandleClosed(f"there is no consumer {id}") from None

    def describe(self) -> dict[str, Any]:
        """Return what the graph tells of this container, as plain data."""
        return {"name": self.container, "devices": [device.describe() for device in self]}

    def _node_id(self, name: str) -> int:
        """Return a node id that the same name gets in every instance of the container, so that it outlives them.

        53 bits of a hash, so that JSON readers with floating point numbers keep it whole; probing settles a collision.
        """
        node = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 11
        while node <= ROOT_ID or node in self.by_id:
            node = (node + 1) & ((1 << 53) - 1)
        return node

    def _tell(self, logical: LogicalDevice, *, created: bool) -> None:
        for observer in self.observers:
            observer(logical, created)
