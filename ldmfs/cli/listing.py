"""`ldmfs ls` and `ldmfs providers`."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..container.settings import ConfigurationError, keys
from ..kernel import sysfs
from .main import UsageError
from .mounting import chosen_root, without_supervisor
from .output import rows


def ls(root: Path | None, containers: list[str], *, as_json: bool) -> int:
    """List the containers, or the devices of those that are named."""
    at = chosen_root(root)
    if not containers:
        graph = _graph(at)
        titles = ("CONTAINER", "STATE", "PID", "STANDBY", "DEVICES", "RESTARTS", "PROVIDERS", "REASON")
        rows(titles, graph if as_json else [_line(container) for container in graph], as_json=as_json)
        if not as_json:
            _print_logs(graph)
        return 0
    devices = [device for container in containers for device in _devices(at, container)]
    rows(("DEVICE", "KIND", "MODE", "CONSUMERS", "TAKES", "GIVES", "DESCRIPTION"), devices, as_json=as_json)
    return 0


def _line(container: dict[str, Any]) -> dict[str, Any]:
    reason = container["reason"].partition("\n")[0]
    return {**container, "container": container["name"], "devices": len(container["devices"]), "reason": reason}


def _print_logs(graph: list[dict[str, Any]]) -> None:
    """Print the last lines of the log of each container that is not well."""
    for container in graph:
        reason, _, lines = container["reason"].partition("\n")
        if lines:
            print(f"\n{container['name']}: {reason}; its last lines:\n{lines}")


def _graph(root: Path) -> list[dict[str, Any]]:
    try:
        text = (root / "system" / "graph").read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{root}: no tree is mounted there; 'ldmfs mount --root {root}' mounts one") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise UsageError(without_supervisor(root)) from None
        raise UsageError(f"{root}/system/graph: {error.strerror}") from None
    containers: list[dict[str, Any]] = msgspec.json.decode(text)["containers"]
    return containers


def _devices(root: Path, container: str) -> Iterator[dict[str, Any]]:
    """Read what the files themselves tell: that needs no supervisor."""
    if container == "kernel":
        yield from _kernel_devices()
        return
    directory = root / container
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        there = ", ".join(sorted(path.name for path in root.glob("[!.]*") if path.exists())) or "none"
        raise UsageError(f"there is no container {container!r} below {root}; there are: {there}") from None
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}") from None
    for name in names:
        path = directory / name
        yield {
            "device": f"{container}/{name}",
            "mode": stat.filemode(path.stat().st_mode),
            **{key: _xattr(path, key) for key in ("kind", "consumers", "takes", "gives", "description", "provider")},
        }


def _kernel_devices() -> Iterator[dict[str, Any]]:
    """Read what /sys tells: the kernel's devices have no extended attributes."""
    if not sysfs.loaded():
        raise UsageError("there is no container 'kernel': its module, ldm, is not loaded; 'ldmfs doctor' says more")
    for device in sysfs.devices():
        mode = stat.filemode(stat.S_IFCHR | device["mode"])
        yield {**device, "device": f"kernel/{device['name']}", "mode": mode}


def _xattr(path: Path, key: str) -> str:
    try:
        return os.getxattr(path, f"user.ldm.{key}").decode(errors="replace")
    except OSError:
        return ""


def providers(*, as_json: bool) -> int:
    """List the plug-ins that are installed, each with its configuration keys."""
    from ..container.plug_ins import found
    from ..container.provider import load

    records = []
    for name, point in found().items():
        record: dict[str, Any] = {"plug-in": name, "key": "", "from": point.dist.name if point.dist else ""}
        try:
            provider = load(point.value)
        except ConfigurationError as error:
            records.append({**record, "meaning": str(error)})
            continue
        records.append({**record, "meaning": (provider.__doc__ or "").strip().partition("\n")[0]})
        for key, type, default, doc in keys(provider.Settings):
            records.append({**record, "key": key, "type": type, "default": default, "meaning": doc})
        if provider.DeviceSettings is not None:
            for key, type, default, doc in keys(provider.DeviceSettings):
                records.append({**record, "key": f"<device>.{key}", "type": type, "default": default, "meaning": doc})
    rows(("PLUG-IN", "KEY", "TYPE", "DEFAULT", "MEANING", "FROM"), records, as_json=as_json)
    return 0
