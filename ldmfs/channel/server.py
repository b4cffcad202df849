"""The provider's side of the direct channel: a container's listening socket, and the connections that come by it."""

from __future__ import annotations

import logging
import socket

import trio

from ..core.dispatch import Dispatch
from ..core.registry import Registry
from .connection import Connection

log = logging.getLogger("ldmfs.channel")


async def serve(listener: socket.socket, registry: Registry, dispatch: Dispatch) -> None:
    """Take in connections on a listening `SOCK_SEQPACKET` socket until cancelled."""
    await Server(listener, registry, dispatch).run()


class Server:
    """What takes in connections on a listening `SOCK_SEQPACKET` socket, which stays the caller's, and those it has."""

    def __init__(self, listener: socket.socket, registry: Registry, dispatch: Dispatch) -> None:
        self._listener = listener
        self._registry = registry
        self._dispatch = dispatch
        self._accepting = trio.CancelScope()
        self._all_accepted = trio.Event()
        self._connections: set[Connection] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        listening = trio.socket.from_stdlib_socket(self._listener)
        async with trio.open_nursery() as nursery:
            with self._accepting:
                await self._accept(listening, nursery)
            self._all_accepted.set()
            await trio.sleep_forever()  # and serve the connections that there are

    async def _accept(self, listening: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            try:
                sock, _ = await listening.accept()
            except OSError as error:
                log.warning("a connection could not be taken: %s", error.strerror)
                await trio.sleep(0.1)  # out of descriptors, most likely: some will be given back
                continue
            end = socket.socket(fileno=sock.detach())
            end.setblocking(False)
            connection = Connection(end, self._registry, self._dispatch, nursery)
            self._connections.add(connection)
            nursery.start_soon(self._serve, connection)

    async def _serve(self, connection: Connection) -> None:
        await connection.run()
        await connection.ended.wait()
        self._connections.discard(connection)

    async def hand_over(self, deadline: float, others: trio.Event) -> None:
        """Answer what has come, until `deadline`, and end the connections: consumers go on with the next instance.

        What is outstanding may wait for requests that come on behalf of this container, over any connection, so these
        are taken until nothing is outstanding, on this path or, as `others` tells, on another one.  What still runs at
        the deadline fails with `ProviderDied`.
        """
        self._accepting.cancel()
        await self._all_accepted.wait()  # it may have one in hand
        with trio.move_on_at(deadline) as time:
            self._announce(inner=True)
            await others.wait()
            await self._all_idle()
            self._announce(inner=False)
            await self._all_idle()
        if time.cancelled_caught:
            self._announce(inner=False)
        async with trio.open_nursery() as nursery:
            for connection in self._connections:
                nursery.start_soon(connection.finish)

    def _announce(self, *, inner: bool) -> None:
        for connection in self._connections:
            connection.move(inner=inner)

    async def _all_idle(self) -> None:
        while busy := [connection for connection in self._connections if not connection.idle]:
            await busy[0].wait_idle()
