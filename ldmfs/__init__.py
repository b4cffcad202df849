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
        "ProtocolError", "ProviderDied", "ProviderFailed", "QueueFull", "RequestCancelled", "StaleHandle", "TimedOut",
        "WouldBlock",
    ),
    "core.request": ("Reply", "Request", "RequestType"),
    "container.host": ("Container", "create_device", "destroy_device"),
    "container.provider": ("Provider", "require"),
    "container.settings": ("Doc", "Duration", "Settings", "Size"),
    "container.process": ("run",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604

if TYPE_CHECKING:
    from .container.host import Container, create_device, destroy_device
    from .container.process import run
    from .container.provider import Provider, require
    from .container.settings import Doc, Duration, Settings, Size
    from .core.device import Device, Kind
    from .core.errors import (
        AccessDenied,
        DeviceBusy,
        DeviceExists,
        DeviceLoop,
        HandleClosed,
        InvalidRequest,
        LdmError,
        MessageTooLong,
        NameTooLong,
        NoSpace,
        NoSuchDevice,
        NotPermitted,
        NotServed,
        NotSupported,
        ProtocolError,
        ProviderDied,
        ProviderFailed,
        QueueFull,
        RequestCancelled,
        StaleHandle,
        TimedOut,
        WouldBlock,
    )
    from .core.request import Reply, Request, RequestType


def __getattr__(name: str) -> Any:
    """Import what is asked for: a consumer's script needs neither trio nor pyfuse3."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ldmfs' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value
