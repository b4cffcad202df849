"""A container's side of its control link: to its supervisor and, when that has died, to the one that adopts it.

The container keeps duplicates of what the supervisor held for it.  When the link ends without `Stop` it goes on serving
and waits at its own socket, `<root>/.ldmfs/adopt/<container>`, for whoever takes the supervisor's place: root or the
container's own user.  The socket listens from before the start on, so that who comes early waits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import time

import trio

from .control import Describe, Description, HandOver, Kept, KeptFds, Message, Ready, Start, StartFds, Stop
from .host import Container
from .link import Link

log = logging.getLogger("ldmfs.container")


class Attendance:
    """The supervisors of a container's process, one after the other."""

    def __init__(self, link: Link) -> None:
        self.stopping = trio.Event()
        """Set when a supervisor has said that the container is to end."""
        self.handing_over = trio.Event()
        """Set when a supervisor has said that the container is to hand over, within `seconds`."""
        self.seconds = 0.0
        self._link = link
        self._start: Start | None = None
        self._kept: list[int] = []
        self._adoption: trio.socket.SocketType | None = None
        self._ready_since = 0.0

    async def receive(self) -> Message | None:
        """Return what the supervisor says next, None when it is gone: for a process that is not started yet."""
        return await self._link.receive()

    def keep(self, start: Start) -> StartFds:
        """Return the descriptors that have come with `start`, and keep for another supervisor what it will need."""
        self._start, fds = start, StartFds(*self._link.take_fds())
        device = os.dup(fds.device)  # the session closes its own
        self._kept = [fd for fd in KeptFds(fds.connection, device, fds.channel, fds.state) if fd >= 0]
        self._adoption = trio.socket.from_stdlib_socket(socket.socket(fileno=fds.adoption))
        return fds

    async def tell(self, message: Message) -> None:
        """Say something to the supervisor; where there is none, nothing is done."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._link.send(message)

    async def ready(self) -> None:
        """Tell that the container serves its devices."""
        self._ready_since = time.time()
        await self.tell(Ready(self._ready_since))

    async def attend(self, container: Container) -> None:
        """Do what the supervisors say, until one says `Stop`."""
        while not self.stopping.is_set():
            async for message in self._link:
                if isinstance(message, Describe):
                    await self.tell(Description(message.number, container.registry.describe()))
                elif isinstance(message, HandOver):
                    self.seconds = message.seconds
                    self.handing_over.set()
                elif isinstance(message, Stop):
                    self.stopping.set()
                    return
            log.warning("the supervisor is gone; the container goes on, and 'ldmfs mount' takes it over")
            await self._adopted()

    async def aclose(self) -> None:
        """Close the link."""
        if self._adoption is not None:
            self._adoption.close()
        await self._link.aclose()

    async def _adopted(self) -> None:
        """Wait for a supervisor, and give it what was kept."""
        assert self._start is not None
        await self._link.aclose()
        self._link = Link(await self._accept())
        with contextlib.suppress(trio.BrokenResourceError):
            kept = Kept(self._start, os.getpid(), self._ready_since > 0, self._ready_since)
            await self._link.send(kept, self._kept)

    async def _accept(self) -> socket.socket:
        assert self._adoption is not None
        while True:
            try:
                end, _ = await self._adoption.accept()
            except OSError as error:
                log.warning("a supervisor could not be let in: %s", error.strerror)
                await trio.sleep(0.1)  # out of descriptors, most likely: some will be given back
                continue
            _, uid, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid in (0, os.geteuid()):
                return socket.socket(fileno=end.detach())
            end.close()
