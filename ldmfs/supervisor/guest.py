"""Containers that are run by hand: they ask the supervisor for their mount, and are gone when their process is.

The socket `<root>/.ldmfs/supervisor` takes `Join` and answers with `Start`, as for an instance of a container of the
configuration, or with `Failed`.  From then on it is the control link.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import Any, Protocol

import trio

from ..channel.address import address
from ..consumer import tree
from ..container.control import Failed, Join, Message, Start
from ..container.link import Link
from ..core.device import check_name
from ..core.errors import LdmError
from ..fuse.mount import MountError
from .child import CONSUMER_IDS, Child
from .configuration import Configuration
from .endpoint import Endpoint
from .instance import Instance, any_of
from .orphan import Adopted
from .process import Process
from .tree import Tree

JOIN_SECONDS = 10.0
"""How long a process may take to say what it wants."""


class House(Protocol):
    """What a guest needs of the supervisor."""

    tree: Tree
    configuration: Configuration
    children: dict[str, Child | Guest]


class Guest:
    """A container whose process was not started by a supervisor."""

    def __init__(self, name: str, instance: Instance, house: House) -> None:
        self.name = name
        self.pid: int | None = instance.pid
        self.state = "starting"
        self.since = time.time()
        self.reason = ""
        self.settled = trio.Event()
        self._instance = instance
        self._tree = house.tree
        self._stop_timeout = house.configuration.system.stop_timeout
        self._ended = trio.Event()

    @property
    def active(self) -> bool:
        """Whether its process is there."""
        return not self._ended.is_set()

    async def run(self, adopted: Adopted | None = None) -> None:
        """Mount, hand that over, and take it away when the process has gone; with `adopted` it is there already."""
        endpoint = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._instance.run)
                try:
                    endpoint = await self._open(adopted)
                    await any_of(self._instance.ready, self._instance.ended)
                    if self._instance.ready.is_set():
                        self.state, self.since = "running", self._instance.since
                    self.settled.set()
                    await self._instance.ended.wait()
                except (MountError, OSError) as error:
                    await self._instance.tell(Failed(str(error)))
                finally:
                    with trio.CancelScope(shield=True):
                        await self._instance.end(self._stop_timeout)
        finally:
            if endpoint is not None:
                await endpoint.close()
            self._instance.close()
            self.settled.set()
            self._ended.set()

    async def _open(self, adopted: Adopted | None) -> Endpoint:
        if adopted is not None:
            return Endpoint.adopted(self._tree, adopted.kept.start, adopted.fds)
        endpoint = await Endpoint.open(self._tree, self.name, None)
        first_id = int(time.time()) * CONSUMER_IDS % (1 << 62) + 1
        start = Start(self.name, str(self._tree.root), (), endpoint.connection.init, first_id, by_hand=True)
        try:
            self._tree.note(tree.pid_file(self._tree.root, self.name), self._instance.pid)
            with endpoint.given() as fds:
                await self._instance.tell(start, fds)
        except BaseException:
            await endpoint.close()
            raise
        return endpoint

    async def stop(self) -> None:
        """Ask the process to stop, kill it when it does not; return when it is gone."""
        await self._instance.end(self._stop_timeout)
        await self._ended.wait()

    async def describe(self) -> dict[str, Any] | None:
        """Return `Registry.describe` of the container, None when it does not answer."""
        return await self._instance.describe()

    def status(self) -> dict[str, Any]:
        """Return what `containers` and the graph tell of the container itself."""
        return {
            "name": self.name,
            "state": self.state,
            "pid": self.pid,
            "standby": None,
            "since": self.since,
            "restarts": 0,
            "reason": self.reason,
            "providers": [],
        }


async def listen(house: House, nursery: trio.Nursery) -> None:
    """Take in containers that are run by hand by the supervisor's own user, or by root."""
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        path = tree.supervisor_socket(house.tree.root)
        with address(path) as at:
            await listener.bind(at)
        path.chmod(0o600)
        listener.listen()
        while True:
            end, _ = await listener.accept()
            nursery.start_soon(_welcome, house, end)


async def _welcome(house: House, end: trio.socket.SocketType) -> None:
    pid, uid, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    link = Link(socket.socket(fileno=end.detach()))
    message = None
    with trio.move_on_after(JOIN_SECONDS):
        message = await link.receive()
    try:
        name = _admit(house, message, uid)
    except LdmError as error:
        with contextlib.suppress(trio.BrokenResourceError):
            await link.send(Failed(str(error), usage=True))
        await link.aclose()
        return
    await host(house, name, Guest(name, Instance(Process(pid), link, by_hand=True), house))


async def host(house: House, name: str, guest: Guest, adopted: Adopted | None = None) -> None:
    """Have a guest among the containers until its end."""
    house.children[name] = guest
    try:
        await guest.run(adopted)
    finally:
        del house.children[name]


def _admit(house: House, join: Message | None, uid: int) -> str:
    if not isinstance(join, Join):
        raise LdmError("the first message is not 'join'")
    if uid not in (0, os.geteuid()):
        raise LdmError("only the user of the supervisor may add a container")
    check_name(join.name, "container")
    if join.name in tree.RESERVED or join.name.startswith(".") or join.name in house.children:
        raise LdmError(f"there is a container {join.name!r} already; choose another name with --name")
    return join.name
