"""What a container tells the kernel of its directory and its devices: attributes, extended attributes, totals."""

from __future__ import annotations

import stat

import pyfuse3
from pyfuse3 import EntryAttributes, InodeT

from ..core.device import LogicalDevice
from ..core.registry import ROOT_ID, Registry

CACHE_SECONDS = 300.0
"""How long the kernel may keep names and attributes; what changes is invalidated at once."""

XATTR_PREFIX = b"user.ldm."


def attributes_of(registry: Registry, device: LogicalDevice | None) -> EntryAttributes:
    """Return the attributes of a device, or of the directory for None."""
    entry = EntryAttributes()
    entry.attr_timeout = entry.entry_timeout = CACHE_SECONDS
    created = registry.created if device is None else device.created
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = int(created * 1e9)
    if device is None:
        entry.st_ino = InodeT(ROOT_ID)
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
        entry.st_nlink = 2
        entry.st_uid, entry.st_gid = registry.owner
        return entry
    entry.st_ino = InodeT(device.id)
    entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | device.mode)
    entry.st_uid, entry.st_gid = device.uid, device.gid
    entry.st_size = device.size
    entry.st_blocks = device.size // 512
    return entry


def xattrs_of(registry: Registry, device: LogicalDevice | None) -> dict[bytes, str]:
    """Return the extended attributes of a device, or of the directory for None."""
    if device is None:
        told = {"container": registry.container, "devices": str(len(registry))}
    else:
        told = {
            "container": registry.container,
            "provider": device.provider,
            "kind": device.kind.value,
            "description": device.description,
            "takes": device.takes,
            "gives": device.gives,
            "consumers": str(len(device.consumers)),
        }
    return {XATTR_PREFIX + name.encode(): value for name, value in told.items()}


def totals_of(registry: Registry) -> pyfuse3.StatvfsData:
    """Return the sum of the block devices' sizes, and the number of devices."""
    data = pyfuse3.StatvfsData()
    data.f_bsize = data.f_frsize = 4096
    data.f_blocks = sum(device.size for device in registry) // 4096
    data.f_files = len(registry)
    data.f_namemax = 255
    return data
