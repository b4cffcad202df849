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

from ..consumer import tree
from ..core.device import check_name
from ..core.errors import LdmError
from ..fuse.mount import Connection, MountError
from ..fuse.session import relay_init, serve
from .control import MAX_JOIN, Describe, Description, Failed, Join, Link, Ready, Start, Stop, decode, encode
from .host import Container
from .process import hosting
from .provider import PlugIn, Provider, configure
from .settings import ConfigurationError


def run_by_hand(provider: type[Provider], name: str, root: str | os.PathLike[str] | None, plug_in: PlugIn) -> int:
    """Host `provider` until SIGINT or SIGTERM; return the exit status, 2 for a mistake, which is told in one line."""
    logging.basicConfig(format=f"{name}: %(levelname)s: %(message)s", level=logging.INFO)
    at = Path(root).absolute() if root else tree.default_root()
    try:
        check_name(name, "container")
        container = Container(name)
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


async def _join(name: str, root: Path) -> tuple[socket.socket, int, int] | None:
    """Ask the supervisor for a mount; return the control link and the two descriptors, None when there is none."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        end.connect(str(tree.supervisor_socket(root)))
    except OSError:
        end.close()
        return None
    end.send(encode(Join(name)))
    data, fds, _, _ = socket.recv_fds(end, MAX_JOIN, 2)
    answer = decode(data) if data else Failed("the supervisor went away")
    if isinstance(answer, Failed):
        end.close()
        raise ConfigurationError(answer.reason)
    assert isinstance(answer, Start)
    for fd in fds:
        os.set_inheritable(fd, False)
    return end, fds[0], fds[1]


@contextlib.asynccontextmanager
async def _as_guest(container: Container, end: socket.socket, init_fd: int, fuse_fd: int) -> AsyncIterator[None]:
    link = Link(end)
    async with serve(container.registry, container.dispatch, init_fd, fuse_fd), trio.open_nursery() as nursery:

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
    path = root / container.name
    made = [directory for directory in (path, *path.parents) if not directory.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; choose another root with --root") from None
    connection = await trio.to_thread.run_sync(Connection.mount, path)
    ours, theirs, clone = connection.instance()
    try:
        async with (
            serve(container.registry, container.dispatch, theirs.detach(), clone),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(relay_init, connection, ours)
            yield
            nursery.cancel_scope.cancel()
    finally:
        ours.close()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(connection.unmount)
        for directory in made:
            with contextlib.suppress(OSError):
                directory.rmdir()
