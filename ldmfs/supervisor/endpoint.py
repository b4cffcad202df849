"""What outlives the instances of a container: its mount, the socket of its direct channel, its state area.

The supervisor holds it and gives duplicates to each instance, which keeps them for another supervisor.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import trio

from ..channel.address import listen
from ..consumer import tree
from ..container import state
from ..container.control import KeptFds, Start, StartFds
from ..core.state import Sizes
from ..fuse.mount import Connection
from ..fuse.unanswered import NOTHING, Unanswered, take_back
from .tree import Tree


class Endpoint:
    """The endpoint of one container, at which consumers reach its instances."""

    def __init__(
        self,
        at: Tree,
        name: str,
        connection: Connection,
        channel: socket.socket,
        state_fd: int,
        device: int = -1,
    ) -> None:
        self.connection = connection
        self._device = device
        self._tree = at
        self._name = name
        self._channel = channel
        self._state_fd = state_fd

    @classmethod
    async def open(cls, at: Tree, name: str, state_size: int | None) -> Endpoint:
        """Mount, and make the rest; without `state_size` there is no state area.

        Raises `MountError`, and `OSError` or `ValueError` where there is no room for the state area.
        """
        connection = await trio.to_thread.run_sync(Connection.mount, at.mount_point(name))
        try:
            channel = listen(tree.channel_socket(at.root, name))
            try:
                state_fd = -1 if state_size is None else state.create(Sizes(capacity=state_size))
            except BaseException:
                channel.close()
                raise
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(connection.unmount)
            raise
        return cls(at, name, connection, channel, state_fd)

    @classmethod
    def adopted(cls, at: Tree, start: Start, fds: KeptFds) -> Endpoint:
        """Return the endpoint that an instance has kept."""
        connection = Connection(at.root / start.name, fds.connection, start.init)
        return cls(at, start.name, connection, socket.socket(fileno=fds.channel), fds.state, fds.device)

    @contextlib.contextmanager
    def given(self, *, reissue: bool = False) -> Iterator[list[int]]:
        """Give the descriptors for a new instance, in the order of `StartFds`.

        From here on that instance is the one that can be adopted.  The one on which it serves is kept, so that the
        kernel keeps what the instance leaves unanswered, until `take_back`.
        """
        self._device = self.connection.device(reissue=reissue)
        with self._adoption() as adoption:
            fds = StartFds(self.connection.fd, self._device, self._channel.fileno(), adoption.fileno(), self._state_fd)
            yield [fd for fd in fds if fd >= 0]

    def take_back(self, *, fail: bool) -> Unanswered:
        """Take what an instance that has ended left unanswered, and let go of its descriptor: `fuse.unanswered`.

        Where the kernel cannot hand it out once more, it ends it.  An instance must have been ready at this endpoint.
        """
        try:
            return take_back(self.connection, fail=fail) if self.connection.can_resend else NOTHING
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Let the kernel end what an instance that has ended left unanswered."""
        if self._device >= 0:
            os.close(self._device)
            self._device = -1

    def _adoption(self) -> socket.socket:
        new = tree.private(self._tree.root) / "adopt.new"
        listener = listen(new, 0o600, socket.SOCK_STREAM)
        new.replace(tree.adoption_socket(self._tree.root, self._name))
        return listener

    async def close(self) -> None:
        """Take the mount away, and everything else; nobody waits in vain."""
        with trio.CancelScope(shield=True):
            self._channel.close()
            self.let_go()
            if self._state_fd >= 0:
                os.close(self._state_fd)
                self._state_fd = -1
            await trio.to_thread.run_sync(self.connection.unmount)
        self._tree.forget(self._name)
