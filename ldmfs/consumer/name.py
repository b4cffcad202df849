"""Names of devices as consumers write them: `container/device`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..core.device import check_name
from ..core.errors import InvalidRequest, LdmError, NoSuchDevice, NotSupported
from ..core.request import Reply, Request, RequestType
from .tree import channel_socket, default_root

Marshal = Callable[[Any], bytes]
Unmarshal = Callable[[bytes], Any]
Outcome = Reply | LdmError


class DeviceName(NamedTuple):
    """A device and the tree that it is in."""

    root: Path
    container: str
    device: str

    def __str__(self) -> str:
        return f"{self.container}/{self.device}"

    @property
    def file(self) -> Path:
        """The device's file."""
        return self.root / self.container / self.device

    @property
    def socket(self) -> Path:
        """The socket of its container's direct channel."""
        return channel_socket(self.root, self.container)


def parse(name: str, root: str | os.PathLike[str] | None = None) -> DeviceName:
    """Return what `container/device` names, or the path of a device's file below the root.

    Raises `InvalidRequest` or `NameTooLong` for what cannot be a name.
    """
    at = Path(root).absolute() if root is not None else default_root()
    text = os.fspath(name)
    if text.startswith("/") and Path(text).is_relative_to(at):
        text = str(Path(text).relative_to(at))
    container, slash, device = text.partition("/")
    if not slash:
        raise InvalidRequest(f"{text!r} is not the name of a device; write it as container/device")
    check_name(container, "container")
    check_name(device)
    return DeviceName(at, container, device)


def missing(name: DeviceName) -> NoSuchDevice:
    """Return the error for a device in a container that is not there."""
    if not name.root.is_dir():
        return NoSuchDevice(f"{name}: no tree is mounted at {name.root}")
    return NoSuchDevice(f"{name}: there is no container {name.container!r} below {name.root}")


def as_request(request: Request | bytes | bytearray | memoryview | str) -> Request:
    """Return a `Request`: that of the caller, or a CALL with the caller's bytes."""
    if isinstance(request, Request):
        return request
    if isinstance(request, (bytes, bytearray, memoryview)):
        return Request(RequestType.CALL, request)  # type: ignore[arg-type]
    raise InvalidRequest(f"a request is bytes or a Request, not {type(request).__name__}")


def marshalled(request: Request, marshal: Marshal | None) -> Request:
    """Return a request as it leaves the container: the object of a NON_STANDARD one as bytes.

    Raises `NotSupported` where there is no `marshal`, and what `marshal` raises.
    """
    if request.type is not RequestType.NON_STANDARD:
        return request
    if marshal is None:
        raise NotSupported("a NON_STANDARD request leaves its container only with a 'marshal' function")
    return request.forward(data=marshal(request.object), object=None)


def unmarshalled(request: Request, reply: Reply, unmarshal: Unmarshal | None) -> Reply:
    """Return the reply to a NON_STANDARD request with the object that its bytes stand for."""
    if request.type is not RequestType.NON_STANDARD or unmarshal is None:
        return reply
    return Reply(reply.data, reply.metadata, unmarshal(bytes(reply.data)))


def outcome_of(request: Request, outcome: Outcome, unmarshal: Unmarshal | None) -> Outcome:
    """Return what a completion handler is told: it gets an error also where `unmarshal` raises one."""
    if isinstance(outcome, LdmError):
        return outcome
    try:
        return unmarshalled(request, outcome, unmarshal)
    except Exception as error:
        return as_error(error)


def as_error(error: Exception) -> LdmError:
    """Return what `marshal` or `unmarshal` raised as an error of the model."""
    if isinstance(error, LdmError):
        return error
    return InvalidRequest(f"the request or its reply could not be converted: {type(error).__name__}: {error}")
