"""Forgetting a device that was destroyed: its name, which the kernel may have for long, and its kept replies."""

from __future__ import annotations

import contextlib
import logging

import pyfuse3
import trio
from pyfuse3 import InodeT

from ..core.device import LogicalDevice
from ..core.kept import KeptReplies
from ..core.registry import ROOT_ID, Registry

log = logging.getLogger("ldmfs.fuse")


class Invalidations:
    """Follows a registry until `detach`; its tasks run in `nursery`."""

    def __init__(self, registry: Registry, kept: KeptReplies, nursery: trio.Nursery) -> None:
        self._registry = registry
        self._kept = kept
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._attached = True
        self._running: set[trio.Event] = set()
        registry.observers.append(self._changed)

    def detach(self) -> None:
        """Stop following the registry: the session is about to end."""
        if self._attached:
            self._attached = False
            self._registry.observers.remove(self._changed)

    async def settle(self) -> None:
        """Wait until the kernel knows of all devices that are gone, and no thread writes to the session's descriptor.

        Then the descriptor may be closed, or another take its place for a moment.
        """
        while self._running:
            await next(iter(self._running)).wait()

    def _changed(self, device: LogicalDevice, created: bool) -> None:
        """Take note of what happens to a device; called in the thread that destroyed it."""
        if not created:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._forget, device)

    def _forget(self, device: LogicalDevice) -> None:
        self._kept.forget_device(device.id)
        if self._attached:
            self._nursery.start_soon(self._invalidate, device.name.encode(), device.id)

    async def _invalidate(self, name: bytes, id: int) -> None:
        # In a thread: the kernel takes the directory's lock for it, which may be held for a request to this loop.
        done = trio.Event()
        self._running.add(done)
        try:
            await trio.to_thread.run_sync(invalidate, name, id, abandon_on_cancel=True)
        finally:
            self._running.remove(done)
            done.set()


def invalidate(name: bytes, id: int) -> None:
    """Tell the kernel that a device is gone, as a deletion, which inotify sees; it may not know of it at all."""
    try:
        pyfuse3.invalidate_entry(InodeT(ROOT_ID), pyfuse3.FileNameT(name), InodeT(id))
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("the kernel could not be told that device %s is gone: %s", name.decode(), error)
