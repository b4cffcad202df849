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
from .adoption import Attendance
from .control import Failed, Join, Start
from .host import Container
from .link import Link
from .plug_ins import PlugIn
from .process import hosting, serving
from .provider import Provider, configure
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
    served = trio.CancelScope()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                async for _ in signals:
                    (served if ready else nursery.cancel_scope).cancel()

            ready = False
            nursery.start_soon(obey)
            attendance = await _join(container.name, root)
            async with hosting(container, [provider]):
                session = _as_guest(container, *attendance) if attendance else _alone(container, root)
                async with session as told_to_stop:
                    ready = True
                    for device in container.registry:
                        print(root / container.name / device.name, flush=True)
                    with served:
                        await told_to_stop.wait()
            nursery.cancel_scope.cancel()


async def _join(name: str, root: Path) -> tuple[Attendance, Start] | None:
    """Ask the supervisor for a mount; return the link to it and what it says, None when there is none."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address(tree.supervisor_socket(root)) as at:
            end.connect(at)
    except OSError:
        end.close()
        return None
    attendance = Attendance(Link(end))
    await attendance.tell(Join(name))
    answer = await attendance.receive() or Failed("the supervisor went away")
    if isinstance(answer, Failed):
        await attendance.aclose()
        raise ConfigurationError(answer.reason)
    assert isinstance(answer, Start)
    return attendance, answer


@contextlib.asynccontextmanager
async def _as_guest(container: Container, attendance: Attendance, start: Start) -> AsyncIterator[trio.Event]:
    fds = attendance.keep(start)
    connection = Connection(Path(start.root) / start.name, fds.connection, start.init)
    listener = socket.socket(fileno=fds.channel)
    async with serving(container, connection, fds.device, listener), trio.open_nursery() as nursery:
        await attendance.ready()
        nursery.start_soon(attendance.attend, container)
        try:
            yield attendance.stopping
        finally:
            nursery.cancel_scope.cancel()
    await attendance.aclose()


@contextlib.asynccontextmanager
async def _alone(container: Container, root: Path) -> AsyncIterator[trio.Event]:
    path, channel = root / container.name, tree.channel_socket(root, container.name)
    made = [directory for directory in (path, channel.parent, *channel.parents) if not directory.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        channel.parent.mkdir(parents=True, exist_ok=True)
        listener = listen(channel)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; choose another root with --root") from None
    connection = await trio.to_thread.run_sync(Connection.mount, path)
    try:
        async with serving(container, connection, connection.device(), listener):
            yield trio.Event()
    finally:
        listener.close()
        channel.unlink(missing_ok=True)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(connection.unmount)
        for directory in made:
            with contextlib.suppress(OSError):
                directory.rmdir()
