"""Containers that are run by hand: they ask the supervisor for their mount, and are gone when their process is.

The socket `<root>/.ldmfs/supervisor` takes one line, `Join`, and answers with `Start`, to which the three descriptors
of a new instance are attached, or with `Failed`.  From then on it is the control link.
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
from ..channel.address import listen as channel_listen
from ..consumer import tree
from ..container.control import MAX_JOIN, Failed, Join, Link, Start, decode, encode
from ..core.device import check_name
from ..core.errors import LdmError
from ..fuse.mount import Connection, MountError
from ..fuse.session import relay_init
from .child import CONSUMER_IDS, Child
from .conversation import Conversation
from .tree import Tree

JOIN_SECONDS = 10.0
"""How long a process may take to say what it wants."""


class House(Protocol):
    """What a guest needs of the supervisor."""

    tree: Tree
    children: dict[str, Child | Guest]


class Guest:
    """A container whose process was not started by the supervisor."""

    def __init__(self, name: str, pid: int, at: Tree) -> None:
        self.name = name
        self.pid: int | None = pid
        self.state = "starting"
        self.since = time.time()
        self.reason = ""
        self.settled = trio.Event()
        self._tree = at
        self._conversation: Conversation | None = None
        self._ended = trio.Event()

    @property
    def active(self) -> bool:
        """Whether its process is there."""
        return not self._ended.is_set()

    async def run(self, end: socket.socket) -> None:
        """Mount, hand the mount's descriptor over, and take the mount away when the process has gone."""
        try:
            connection = await trio.to_thread.run_sync(Connection.mount, self._tree.mount_point(self.name))
            try:
                await self._serve(connection, end)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(connection.unmount)
                tree.channel_socket(self._tree.root, self.name).unlink(missing_ok=True)
        finally:
            with contextlib.suppress(OSError):
                (self._tree.root / self.name).rmdir()
            self.settled.set()
            self._ended.set()

    async def _serve(self, connection: Connection, end: socket.socket) -> None:
        init, instance_init, fuse_fd = connection.instance()
        path = tree.channel_socket(self._tree.root, self.name)
        with init, channel_listen(path) as listener:
            try:
                start = Start(self.name, str(self._tree.root), (), int(time.time()) * CONSUMER_IDS % (1 << 62) + 1)
                socket.send_fds(end, [encode(start)], [instance_init.fileno(), fuse_fd, listener.fileno()])
            finally:
                instance_init.close()
                os.close(fuse_fd)
                listener.close()
            self._conversation = Conversation(Link(end), self._now_running)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay_init, connection, init)
                await self._conversation.run()
                nursery.cancel_scope.cancel()
            await self._conversation.aclose()

    def _now_running(self) -> None:
        self.state, self.since = "running", time.time()
        self.settled.set()

    async def stop(self) -> None:
        """Ask the process to stop; return when it is gone."""
        if self._conversation is not None:
            await self._conversation.stop()
        await self._ended.wait()

    async def describe(self) -> dict[str, Any] | None:
        """Return `Registry.describe` of the container, None when it does not answer."""
        return await self._conversation.describe() if self._conversation else None

    def status(self) -> dict[str, Any]:
        """Return what `containers` and the graph tell of the container itself."""
        return {
            "name": self.name,
            "state": self.state,
            "pid": self.pid,
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
    with end:
        pid, uid, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        with trio.move_on_after(JOIN_SECONDS), contextlib.suppress(OSError):
            try:
                join = decode(await end.recv(MAX_JOIN))
                name = _admit(house, join, uid)
            except (LdmError, ValueError) as error:
                await end.send(encode(Failed(str(error), usage=True)))
                return
        own = socket.socket(fileno=os.dup(end.fileno()))
    own.setblocking(False)
    guest = Guest(name, pid, house.tree)
    house.children[name] = guest
    try:
        await guest.run(own)
    except (MountError, OSError) as error:
        with contextlib.suppress(OSError):
            own.send(encode(Failed(str(error))))
    finally:
        own.close()
        del house.children[name]


def _admit(house: House, join: object, uid: int) -> str:
    if not isinstance(join, Join):
        raise LdmError("the first message is not 'join'")
    if uid not in (0, os.geteuid()):
        raise LdmError("only the user of the supervisor may add a container")
    check_name(join.name, "container")
    if join.name in tree.RESERVED or join.name.startswith(".") or join.name in house.children:
        raise LdmError(f"there is a container {join.name!r} already; choose another name with --name")
    return join.name
