"""What the tests of the providers share: a container without a mount, and a consumer of its devices."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from ldmfs import Container, Request, RequestType
from ldmfs.container.plug_ins import PlugIn, found
from ldmfs.container.provider import Provider, configure, load
from ldmfs.core.device import Execution, Peer

Host = Callable[..., Awaitable[Container]]
Ask = Callable[..., Awaitable[bytes]]


def configured(name: str, container: Container | None = None, **table: Any) -> Provider:
    """Load and configure a bundled plug-in, as `[box.<name>]` of a configuration would."""
    target = found()[name].value
    return configure(load(target), container or Container("box"), PlugIn(name, target, f"test.toml: box.{name}", table))


async def started(provider: Provider) -> Container:
    """Start a provider; return its container."""
    starting = provider.start()
    if inspect.isawaitable(starting):
        await starting
    return provider.container


async def hosted(name: str, **table: Any) -> Container:
    """Return a container that hosts the bundled plug-in `name`, with the devices there."""
    container = Container("box")
    await started(configured(name, container, **table))
    return container


async def answered(
    container: Container, device: str, data: Any = b"", type: Any = RequestType.CALL, **fields: Any
) -> Any:
    """Open a device, send one request as its handler is to be run, close it; return the reply."""
    dispatch = container.dispatch
    consumer = await dispatch.open(container.registry.find(device), Peer())
    try:
        request = Request(type, data, **fields)
        if consumer.device.request_execution is Execution.INLINE:
            return dispatch.request_inline(consumer, request)
        with trio.CancelScope() as scope:
            return await dispatch.request(consumer, request, dispatch.admit(consumer, scope.cancel))
    finally:
        await dispatch.close(consumer)


async def asked(container: Container, device: str, *args: Any, **fields: Any) -> bytes:
    """Like `answered`; return the bytes of the reply."""
    return bytes((await answered(container, device, *args, **fields)).data)


@pytest.fixture(scope="session", name="configured")
def _configured() -> Callable[..., Provider]:
    return configured


@pytest.fixture(scope="session")
def host() -> Host:
    return hosted


@pytest.fixture(scope="session")
def ask() -> Ask:
    return asked


@pytest.fixture(scope="session")
def answer() -> Callable[..., Awaitable[Any]]:
    return answered
