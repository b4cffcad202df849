"""What the kernel tells of its devices: /sys/class/ldm/<device>/, and their nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .device import DIRECTORY

CLASS = Path("/sys/class/ldm")
"""There is a directory in it for each device; it is there while the module is loaded."""

_TEXTS = ("provider", "kind", "description", "takes", "gives")
_NUMBERS = ("size", "consumers")


def loaded() -> bool:
    """Tell whether the module ldm is loaded."""
    return CLASS.is_dir()


def since() -> float:
    """Return when the module was loaded, in seconds since the epoch; 0 where it is not."""
    try:
        return CLASS.stat().st_ctime
    except OSError:
        return 0.0


def devices() -> list[dict[str, Any]]:
    """Return what the graph tells of each device, as plain data, but `consumers`: that is their number.

    A device that goes away meanwhile is left out.
    """
    try:
        names = sorted(path.name for path in CLASS.iterdir())
    except OSError:
        return []
    return [device for name in names if (device := _device(name)) is not None]


def describe() -> dict[str, Any]:
    """Return what the graph tells of the container `kernel`.  The kernel says how many consumers, and not which."""
    known = devices()
    return {
        "name": "kernel",
        "state": "running",
        "pid": None,
        "since": since(),
        "restarts": 0,
        "reason": "",
        "providers": sorted({device["provider"] for device in known}),
        "devices": [{**device, "consumers": [], "consumer_count": device["consumers"]} for device in known],
    }


def consumers(device: str) -> int:
    """Return how many consumers a device has now.  Raises `FileNotFoundError` where there is no such device."""
    return int(_attribute(device, "consumers"))


def _device(name: str) -> dict[str, Any] | None:
    try:
        node = (DIRECTORY / name).stat()
        told = {key: _attribute(name, key) for key in (*_TEXTS, *_NUMBERS)}
    except OSError:
        return None
    about = {"name": name, "mode": node.st_mode & 0o7777, "uid": node.st_uid, "gid": node.st_gid}
    return {**about, **told, **{key: int(told[key] or 0) for key in _NUMBERS}}


def _attribute(name: str, key: str) -> str:
    return (CLASS / name / key).read_text(encoding="utf-8", errors="replace").rstrip("\n")
