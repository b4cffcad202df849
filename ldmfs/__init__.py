"""ldmfs: code becomes a device.

A provider creates logical devices, a consumer opens one and sends it requests.  Each device is the file
`/ldm/<container>/<device>`.  See README.md for a first session and docs/design.md for how it holds together.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "core.device": ("Device", "Kind"),
    "core.errors": (
        "AccessDenied", "DeviceBusy", "DeviceExists", "DeviceLoop", "HandleClosed", "InvalidRequest", "LdmError",
        "MessageTooLong", "NameTooLong", "NoSpace", "NoSuchDevice", "NotPermitted", "NotServed", "NotSupported",
        "ProtocolError", "ProviderDied", "ProviderFailed", "QueueFull", "RequestCancelled", "StaleHandle",
        "StateConflict", "StateDamaged", "TimedOut", "WouldBlock",
    ),
    "core.request": ("Reply", "Request", "RequestType"),
    "container.host": ("Container", "create_device", "destroy_device"),
    "container.provider": ("Provider", "require"),
    "container.stack": ("Lower", "StackedDevice"),
    "container.settings": ("Doc", "Duration", "Settings", "Size"),
    "container.process": ("run",),
    "consumer.blocking": ("OpenDevice", "close_device", "open_device", "send_request"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604

if TYPE_CHECKING:
    from . import aio as aio
    from .consumer.blocking import OpenDevice as OpenDevice
    from .consumer.blocking import close_device as close_device
    from .consumer.blocking import open_device as open_device
    from .consumer.blocking import send_request as send_request
    from .container.host import Container as Container
    from .container.host import create_device as create_device
    from .container.host import destroy_device as destroy_device
    from .container.process import run as run
    from .container.provider import Provider as Provider
    from .container.provider import require as require
    from .container.settings import Doc as Doc
    from .container.settings import Duration as Duration
    from .container.settings import Settings as Settings
    from .container.settings import Size as Size
    from .container.stack import Lower as Lower
    from .container.stack import StackedDevice as StackedDevice
    from .core.device import Device as Device
    from .core.device import Kind as Kind
    from .core.errors import AccessDenied as AccessDenied
    from .core.errors import DeviceBusy as DeviceBusy
    from .core.errors import DeviceExists as DeviceExists
    from .core.errors import DeviceLoop as DeviceLoop
    from .core.errors import HandleClosed as HandleClosed
    from .core.errors import InvalidRequest as InvalidRequest
    from .core.errors import LdmError as LdmError
    from .core.errors import MessageTooLong as MessageTooLong
    from .core.errors import NameTooLong as NameTooLong
    from .core.errors import NoSpace as NoSpace
    from .core.errors import NoSuchDevice as NoSuchDevice
    from .core.errors import NotPermitted as NotPermitted
    from .core.errors import NotServed as NotServed
    from .core.errors import NotSupported as NotSupported
    from .core.errors import ProtocolError as ProtocolError
    from .core.errors import ProviderDied as ProviderDied
    from .core.errors import ProviderFailed as ProviderFailed
    from .core.errors import QueueFull as QueueFull
    from .core.errors import RequestCancelled as RequestCancelled
    from .core.errors import StaleHandle as StaleHandle
    from .core.errors import StateConflict as StateConflict
    from .core.errors import StateDamaged as StateDamaged
    from .core.errors import TimedOut as TimedOut
    from .core.errors import WouldBlock as WouldBlock
    from .core.request import Reply as Reply
    from .core.request import Request as Request
    from .core.request import RequestType as RequestType


def __getattr__(name: str) -> Any:
    """Import what is asked for: a consumer's script needs neither trio nor pyfuse3."""
    if name == "aio":
        return importlib.import_module(".aio", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ldmfs' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value
