"""A container's process: under a supervisor, or by hand.

Under a supervisor it is a fork of the template (`container.template`) and is given one descriptor, the control link.
What it is to be comes by that, with the descriptors that outlive it: at once, or when it has waited as a standby.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import trio

from ..channel import server as channel_server
from ..consumer.local import Here
from ..fuse import handover
from ..fuse.mount import Connection
from ..fuse.operations import Operations
from ..fuse.session import serve
from ..fuse.unanswered import Unanswered
from .adoption import Attendance
from .control import Failed, HandedOver, Prepare, Prepared, Start
from .host import Container
from .link import Link
from .plug_ins import PlugIn
from .provider import Provider, check, configure, load
from .settings import ConfigurationError
from .state import SharedState

log = logging.getLogger("ldmfs.container")


@contextlib.asynccontextmanager
async def hosting(
    container: Container, providers: Iterable[Provider], unanswered: Iterable[Unanswered] = ()
) -> AsyncIterator[None]:
    """Start providers, and stop them, in reverse, when the context ends; consumers that are left are closed first."""
    before = Container.current, Here.current
    Container.current = container
    Here.current = Here(container.root, container.registry, container.dispatch)
    started: list[Provider] = []
    async with trio.open_nursery() as nursery:
        container.nursery = nursery
        try:
            for provider in providers:
                started.append(provider)
                await _settled(provider.start())
            await container.adopt(unanswered)
            yield
        finally:
            with trio.CancelScope(shield=True):
                await container.close_consumers()
                for provider in reversed(started):
                    try:
                        await _settled(provider.stop())
                    except Exception:
                        log.exception("provider %s: stop raised", provider.name)
            nursery.cancel_scope.cancel()
            Container.current, Here.current = before


class Service:
    """A container that is being served on both of its paths."""

    def __init__(self, container: Container, operations: Operations, server: channel_server.Server) -> None:
        self._container = container
        self._operations = operations
        self._server = server

    async def hand_over(self, seconds: float) -> None:
        """Answer no further request, let those that run end within `seconds`, and leave the rest to the next instance.

        The contexts are to be left then.  Cancelled, the container serves no more and has handed nothing over.
        """
        deadline = trio.current_time() + seconds
        files_done = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._server.hand_over, deadline, files_done)
            await self._operations.hand_over(deadline)
            files_done.set()
        handover.leave(self._operations)
        self._container.handed_over = True


@contextlib.asynccontextmanager
async def serving(
    container: Container, connection: Connection, device: int, listener: socket.socket
) -> AsyncIterator[Service]:
    """Serve a container on both of its paths, the files and the direct channel, while the context is open."""
    files = container.area.files
    async with (
        serve(
            container.registry, container.dispatch, connection, device, files, reissue=container.reissue
        ) as operations,
        trio.open_nursery() as nursery,
    ):
        server = channel_server.Server(listener, container.registry, container.dispatch)
        nursery.start_soon(server.run)
        try:
            yield Service(container, operations, server)
        finally:
            nursery.cancel_scope.cancel()


async def _settled(value: object) -> None:
    if inspect.isawaitable(value):
        await value


async def supervised(link: Link) -> int:
    """Live as a process of a supervisor, first as a standby where it says so; return the exit status."""
    attendance = Attendance(link)
    try:
        message = await attendance.receive()
        if isinstance(message, Prepare):
            _log_as(message.name)
            for plug_in in message.plug_ins:
                check(load(plug_in.target, plug_in.where), plug_in)
            await attendance.tell(Prepared())
            message = await attendance.receive()
        if not isinstance(message, Start):
            return 1  # the supervisor is gone, or has no use for this process
        _log_as(message.name)
        await _serve(message, attendance)
    except Exception as error:
        usage = isinstance(error, ConfigurationError)
        if not usage:
            log.exception("the container ends")
        await attendance.tell(Failed(_one_line(error), usage))
        return 1
    return 0


async def _serve(start: Start, attendance: Attendance) -> None:
    """Host and serve what `start` says until told to stop."""
    fds = attendance.keep(start)
    root = Path(start.root)
    container = Container(start.name, start.first_consumer_id, root, SharedState(fds.state), reissue=start.reissue)
    providers = [configure(load(plug_in.target, plug_in.where), container, plug_in) for plug_in in start.plug_ins]
    connection = Connection(root / start.name, fds.connection, start.init)
    listener = socket.socket(fileno=fds.channel)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attendance.attend, container)
        async with (
            hosting(container, providers, start.unanswered),
            serving(container, connection, fds.device, listener) as service,
        ):
            await attendance.ready()
            await _told_to_end(attendance, service)
        if container.handed_over:
            await attendance.tell(HandedOver())
        nursery.cancel_scope.cancel()


async def _told_to_end(attendance: Attendance, service: Service) -> None:
    """Wait for `Stop` or SIGTERM, or for `HandOver` and hand over."""
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await attendance.stopping.wait()
            nursery.cancel_scope.cancel()

        async def hand_over() -> None:
            await attendance.handing_over.wait()
            await service.hand_over(attendance.seconds)
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop)
        nursery.start_soon(hand_over)
        await terminated()
        nursery.cancel_scope.cancel()


def _log_as(name: str) -> None:
    logging.basicConfig(format=f"{name}: %(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr)


async def terminated() -> None:
    """Wait for SIGTERM."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            return


def _one_line(error: BaseException) -> str:
    """Return the reason in one line: of a group, that of its first error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split())
    return text if isinstance(error, ConfigurationError) else f"{type(error).__name__}: {text}"


def serve_on(fd: int) -> int:
    """Run a container whose control link is the descriptor `fd`; return the exit status."""
    logging.raiseExceptions = False
    return trio.run(_on_link, fd)


async def _on_link(fd: int) -> int:
    return await supervised(Link(socket.socket(fileno=fd)))


def run(provider: type[Provider], name: str | None = None, root: str | os.PathLike[str] | None = None) -> None:
    """Host `provider` in this process until Ctrl-C or SIGTERM: the last line of a provider that is run by hand.

    The container is called `name`, by default after the file that is run.  It joins the tree at `root` (default:
    `$LDMFS_ROOT`, else `/ldm` as root or `$XDG_RUNTIME_DIR/ldm`) through the supervisor there, or mounts itself when
    there is none.  A mistake ends the program with one line and exit status 2.
    """
    from .by_hand import run_by_hand

    sys.exit(run_by_hand(provider, name or Path(sys.argv[0]).stem, root, PlugIn("", "", "")))
