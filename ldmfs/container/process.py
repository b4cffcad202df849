"""A container's process: under a supervisor, or by hand.

Under a supervisor (`python -m ldmfs.container.process`) it is given five descriptors, of which the last three outlive
it: the control link, the socket from which INIT is replayed, its descriptor of the FUSE connection, the listening
socket of the direct channel, and the state area.
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
from ..fuse.operations import Operations
from ..fuse.session import serve
from ..fuse.unanswered import NOTHING, Unanswered
from .control import Describe, Description, Failed, HandedOver, HandOver, Link, Ready, Start, Stop
from .host import Container
from .provider import PlugIn, Provider, configure, load
from .settings import ConfigurationError
from .state import SharedState

log = logging.getLogger("ldmfs.container")


@contextlib.asynccontextmanager
async def hosting(
    container: Container, providers: Iterable[Provider], unanswered: Unanswered = NOTHING
) -> AsyncIterator[None]:
    """Start providers, and stop them, in reverse, when the context ends; consumers that are left are closed first."""
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


class Service:
    """A container that is being served on both of its paths."""

    def __init__(self, container: Container, operations: Operations) -> None:
        self._container = container
        self._operations = operations

    async def hand_over(self, seconds: float) -> None:
        """Answer no further request, let those that run end within `seconds`, and leave the rest to the next instance.

        The contexts are to be left then.  Cancelled, the container serves no more and has handed nothing over.
        """
        await self._operations.hand_over(trio.current_time() + seconds)
        handover.leave(self._operations)
        self._container.handed_over = True


@contextlib.asynccontextmanager
async def serving(container: Container, init_fd: int, fuse_fd: int, listener: socket.socket) -> AsyncIterator[Service]:
    """Serve a container on both of its paths, the files and the direct channel, while the context is open."""
    files = container.area.files
    async with (
        serve(container.registry, container.dispatch, init_fd, fuse_fd, files, reissue=container.reissue) as operations,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(channel_server.serve, listener, container.registry, container.dispatch)
        try:
            yield Service(container, operations)
        finally:
            nursery.cancel_scope.cancel()


async def _settled(value: object) -> None:
    if inspect.isawaitable(value):
        await value


class Supervised:
    """The life of a container's process under a supervisor."""

    def __init__(self, link: Link, init_fd: int, fuse_fd: int, listener: socket.socket, shared: SharedState) -> None:
        self.link = link
        self.shared = shared
        self.init_fd = init_fd
        self.fuse_fd = fuse_fd
        self.listener = listener

    async def run(self) -> int:
        """Serve until told to stop; return the process's exit status."""
        messages = aiter(self.link)
        start = await anext(messages, None)
        if not isinstance(start, Start):
            return 1
        logging.basicConfig(format=f"{start.name}: %(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr)
        try:
            container = Container(
                start.name, start.first_consumer_id, Path(start.root), self.shared, reissue=start.reissue
            )
            providers = [
                configure(load(plug_in.target, plug_in.where), container, plug_in) for plug_in in start.plug_ins
            ]
            async with (
                hosting(container, providers, start.unanswered),
                serving(container, self.init_fd, self.fuse_fd, self.listener) as service,
            ):
                await self.link.send(Ready())
                await self._obey(messages, container, service)
            if container.handed_over:
                await self.link.send(HandedOver())
        except Exception as error:
            usage = isinstance(error, ConfigurationError)
            if not usage:
                log.exception("container %s ends", start.name)
            with contextlib.suppress(trio.BrokenResourceError):
                await self.link.send(Failed(_one_line(error), usage))
            return 1
        return 0

    async def _obey(self, messages: AsyncIterator[object], container: Container, service: Service) -> None:
        async with trio.open_nursery() as nursery:

            async def hand_over(seconds: float) -> None:
                await service.hand_over(seconds)
                nursery.cancel_scope.cancel()

            async def listen() -> None:
                async for message in messages:
                    if isinstance(message, Describe):
                        with contextlib.suppress(trio.BrokenResourceError):
                            await self.link.send(Description(message.number, container.registry.describe()))
                    elif isinstance(message, Stop):
                        nursery.cancel_scope.cancel()
                    elif isinstance(message, HandOver):
                        nursery.start_soon(hand_over, message.seconds)

            nursery.start_soon(listen)
            await terminated()
            nursery.cancel_scope.cancel()


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


def main() -> int:
    """Run a container whose descriptors stand in the arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which then stops its containers
    logging.raiseExceptions = False
    return trio.run(_supervised, [int(argument) for argument in sys.argv[1:6]])


async def _supervised(fds: list[int]) -> int:
    for fd in fds:
        os.set_inheritable(fd, False)
    control_fd, init_fd, fuse_fd, listener_fd, state_fd = fds
    link = Link(socket.socket(fileno=control_fd))
    shared = SharedState(state_fd)
    os.close(state_fd)
    return await Supervised(link, init_fd, fuse_fd, socket.socket(fileno=listener_fd), shared).run()


def run(provider: type[Provider], name: str | None = None, root: str | os.PathLike[str] | None = None) -> None:
    """Host `provider` in this process until Ctrl-C or SIGTERM: the last line of a provider that is run by hand.

    The container is called `name`, by default after the file that is run.  It joins the tree at `root` (default:
    `$LDMFS_ROOT`, else `/ldm` as root or `$XDG_RUNTIME_DIR/ldm`) through the supervisor there, or mounts itself when
    there is none.  A mistake ends the program with one line and exit status 2.
    """
    from .by_hand import run_by_hand

    sys.exit(run_by_hand(provider, name or Path(sys.argv[0]).stem, root, PlugIn("", "", "")))


if __name__ == "__main__":
    sys.exit(main())
