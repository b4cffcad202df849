"""Containers with providers in C that a test's trio run hosts, served over their channel."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from channel.served import Served, served

import ldmfs
from ldmfs.container.plug_ins import PlugIn
from ldmfs.container.provider import configure, load

TESTS = Path(__file__).resolve().parent.parent

Built = Callable[[str], str]
"""Builds one of `SOURCES` and returns the path of its shared object."""

SOURCES = {
    "caller": TESTS / "native" / "providers" / "caller.c",
    "gate": TESTS / "kernel" / "providers" / "gate.c",
}
"""The providers of the tests.  `gate` is the one that the kernel's tests load as a module."""


def configured(container: ldmfs.Container, tables: dict[str, Any]) -> Any:
    """Return the plug-in `native`, configured by `tables`."""
    plug_in = PlugIn("native", "", f"test.toml: {container.name}.native", tables)
    return configure(load("ldmfs_providers.native:Native"), container, plug_in)


@contextlib.asynccontextmanager
async def native(
    root: Path, tables: dict[str, Any], name: str = "box", **devices: ldmfs.Device
) -> AsyncIterator[Served]:
    """Serve a container with the plug-in `native`, configured by `tables`, and some devices in Python.

    Every consumer comes over the channel, the devices of the container itself included.
    """
    async with served(root, name, **devices) as it:
        provider = configured(it.container, tables)
        try:
            await provider.start()
            yield it
            await it.without_consumers()
        finally:
            await provider.stop()
            assert not it.container.registry.devices.keys() - devices.keys()


async def ask(root: Path, name: str, request: Any) -> Any:
    """Open a device, send a request, close it."""
    async with await ldmfs.aio.open_device(name, root=root) as device:
        return await ldmfs.aio.send_request(device, request)
