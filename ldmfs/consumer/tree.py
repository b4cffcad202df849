"""Where a tree of devices is, and what stands where in it.

<root>/<container>/<device>     a device
<root>/kernel                   the kernel's devices, a symlink
<root>/.ldmfs/                  the supervisor's own: sockets, logs, lock
"""

from __future__ import annotations

import os
from pathlib import Path

from ..channel.address import file_name

RESERVED = frozenset({"system", "kernel", ".ldmfs"})
"""Names that no container of a configuration may have."""


def default_root() -> Path:
    """Return `$LDMFS_ROOT`, else `/ldm` as root and `$XDG_RUNTIME_DIR/ldm` as a user."""
    if chosen := os.environ.get("LDMFS_ROOT"):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/ldm")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "ldm"


def private(root: Path) -> Path:
    """Return the directory of the supervisor's own files."""
    return root / ".ldmfs"


def lock_file(root: Path) -> Path:
    """Return the file that the supervisor holds locked and that has its process number."""
    return private(root) / "lock"


def supervisor_socket(root: Path) -> Path:
    """Return the socket at which a container that is run by hand asks for its mount."""
    return private(root) / "supervisor"


def channel_socket(root: Path, container: str) -> Path:
    """Return the socket of a container's direct channel."""
    return private(root) / "channel" / file_name(container)


def log_file(root: Path, container: str) -> Path:
    """Return the file that a container's output goes to."""
    return private(root) / "log" / container


def adoption_socket(root: Path, container: str) -> Path:
    """Return the socket at which a container's instance waits for a supervisor, once it has none."""
    return private(root) / "adopt" / file_name(container)


def standby_file(root: Path, container: str) -> Path:
    """Return the file that has the process number of a container's standby."""
    return private(root) / "standby" / container


def successor_file(root: Path, container: str) -> Path:
    """Return the file that has the process number of the instance that is to take over in an upgrade."""
    return private(root) / "upgrade" / container


def pid_file(root: Path, container: str) -> Path:
    """Return the file that has the process number of a container's instance."""
    return private(root) / "run" / container
