"""A provider that is run by hand, in a process of its own: `ldmfs run`, or `ldmfs.run` at the end of a script."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from ..channel.address import address, listen
from ..consumer import tree
from ..core.device import check_name
from ..core.errors import LdmError
from ..fuse.mount import Connection, MountError
from ..fuse.session import relay_init
from .control import MAX_JOIN, Describe, Description, Failed, Join, Link, Ready, Start, Stop, decode, encode
from .host import Container
from .process import hosting, serving
from .provider import PlugIn, Provider, configure
from .settings import ConfigurationError


def run_by_hand(provider: type[Provider], name: str, root: str | os.PathLike[str] | None, plug_in: PlugIn) -> int:
    """Host `provider` until SIGINT or SIGTERM; return the exit status, 2 for a mistake, which is told in one line."""
    logging.basicConfig(format=f"{name}: %(levelname)s: %(message)s", level=logging.INFO)
    at = Path(root).absolute() if root else tree.default_root()
    try:
        check_name(name, "container")
        container = Container(name, root=at)
        trio.run(_run, container, configure(provider, container, plug_in), at)
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        if not isinstance(cause, (ConfigurationError, MountError, LdmError)):
            raise
        print(f"ldmfs: {cause}", file=sys.stderr)
        return 2
    return 0


async def _run(container: Container, provider: Provider, root: Path) -> None:
    joined = await _join(container.name, root)
    async with hosting(container, [provider]):
        session = _as_guest(container, *joined) if joined else _alone(container, root)
        async with session, trio.open_nursery() as nursery:
            for device in container.registry:
                print(root / container.name / device.name, flush=True)
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    break
            nursery.cancel_scope.cancel()


async def _join(name: str, root: Path) -> tuple[socket.socket, int, int, int] | None:
    """Ask the supervisor for a mount; return the control link and three descriptors, None when there is none."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address(tree.supervisor_socket(root)) as at:
            end.connect(at)
    except OSError:
        end.close()
        return None
    end.send(encode(Join(name)))
    data, fds, _, _ = socket.recv_fds(end, MAX_JOIN, 3)
    answer = decode(data) if data else Failed("the supervisor went away")
    if isinstance(answer, Failed):
        end.close()
        raise ConfigurationError(answer.reason)
    assert isinstance(answer, Start)
    for fd in fds:
        os.set_inheritable(fd, False)
    return end, fds[0], fds[1], fds[2]


@contextlib.asynccontextmanager
async def _as_guest(
    container: Container, end: socket.socket, init_fd: int, fuse_fd: int, listener_fd: int
) -> AsyncIterator[None]:
    link = Link(end)
    listener = socket.socket(fileno=listener_fd)
    async with serving(container, init_fd, fuse_fd, listener), trio.open_nursery() as nursery:

        async def obey() -> None:
            async for message in link:
                if isinstance(message, Describe):
                    with contextlib.suppress(trio.BrokenResourceError):
                        await link.send(Description(message.number, container.registry.describe()))
                elif isinstance(message, Stop):
                    os.kill(os.getpid(), signal.SIGTERM)

        await link.send(Ready())
        nursery.start_soon(obey)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
    await link.aclose()


@contextlib.asynccontextmanager
async def _alone(container: Container, root: Path) -> AsyncIterator[None]:
    path, channel = root / container.name, tree.channel_socket(root, container.name)
    made = [directory for directory in (path, channel.parent, *channel.parents) if not directory.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        channel.parent.mkdir(parents=True, exist_ok=True)
        listener = listen(channel)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; choose another root with --root") from None
    connection = await trio.to_thread.run_sync(Connection.mount, path)
    ours, theirs, clone = connection.instance()
    try:
        async with (
            serving(container, theirs.detach(), clone, listener),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(relay_init, connection, ours)
            yield
            nursery.cancel_scope.cancel()
    finally:
        ours.close()
        listener.close()
        channel.unlink(missing_ok=True)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(connection.unmount)
        for directory in made:
            with contextlib.suppress(OSError):
                directory.rmdir()
