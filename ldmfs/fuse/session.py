"""One pyfuse3 session: from a descriptor to the end of its service."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

import pyfuse3
import trio

from ..core.dispatch import Dispatch
from ..core.registry import Registry
from ..core.store import Store
from . import lean
from .mount import INIT_BYTES, Connection
from .operations import Operations
from .polls import Polls

MAX_TASKS = 1 << 20
"""Tasks of pyfuse3's loop.  Each request that is waiting has one; what bounds them is `dispatch.MAX_OUTSTANDING`."""

SETTLE_SECONDS = 1.0
"""How long the end of a session waits for the kernel to take note of devices that are gone."""


@contextlib.asynccontextmanager
async def serve(
    registry: Registry,
    dispatch: Dispatch,
    connection: Connection,
    device: int,
    files: Store | None = None,
    *,
    reissue: bool = False,
) -> AsyncIterator[Operations]:
    """Serve a container's directory on `device`, a descriptor of `connection`, while the context is open.

    The session starts on one end of a socket pair, from which INIT is replayed; then `device`, which belongs to it from
    here on, takes the place of that.  In `files` an instance leaves to the next one what its open files hold: when it
    hands over, and with `reissue` all the time what was asked.  Consumers that are in the registry have their files
    open from an earlier instance.  The context's body is cancelled when the kernel ends the connection (an unmount, an
    abort).  pyfuse3's session is global, so there is one at a time in a process.
    """
    initialised = trio.Event()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def on_init() -> None:
        connection.answer(ours.recv(INIT_BYTES))
        initialised.set()

    polls: Polls | None = None
    reader = lean.install(device, on_init)
    try:
        with ours, theirs:
            ours.setblocking(False)
            ours.send(connection.init)
            async with trio.open_nursery() as nursery:
                operations = Operations(registry, dispatch, nursery, files, reissue=reissue)
                operations.stop_reading = reader.stop
                fd = theirs.detach()
                pyfuse3.init(operations, f"/dev/fd/{fd}", set())
                try:
                    nursery.start_soon(_main, nursery.cancel_scope)
                    await initialised.wait()
                    polls = Polls(fd)
                    operations.wake_waiters(polls)
                    yield operations
                finally:
                    operations.invalidations.detach()
                    with trio.move_on_after(SETTLE_SECONDS, shield=True):
                        await operations.invalidations.settle()
                    nursery.cancel_scope.cancel()
    finally:
        if polls is not None:
            polls.close()
        pyfuse3.close(unmount=False)
        lean.uninstall()


async def _main(scope: trio.CancelScope) -> None:
    await pyfuse3.main(1, MAX_TASKS)
    scope.cancel()
