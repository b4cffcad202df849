"""What the kernel's FUSE can do, as it tells itself: its version is no guide, since distributions port changes back."""

from __future__ import annotations

import array
import fcntl
import os
import struct
from typing import NamedTuple

from .mount import FUSE_DEV_IOC_CLONE

FUSE_INIT_EXT = 1 << 30
"""INIT has a second word of flags; this one and the next are of `include/uapi/linux/fuse.h`."""

FUSE_HAS_RESEND = 1 << 39
"""The kernel takes FUSE_NOTIFY_RESEND, and then hands out once more what was read and not answered."""

_HEADER_BYTES = 40  # struct fuse_in_header
_INIT = struct.Struct("=IIII")  # the protocol's version, max_readahead, flags
_MORE_FLAGS = struct.Struct("=I")


class Abilities(NamedTuple):
    """What an INIT request tells."""

    protocol: tuple[int, int]
    resend: bool
    """Whether requests that a dead process held can be given to its successor."""


def abilities(init: bytes) -> Abilities:
    """Return what the kernel can do that has sent the INIT request `init`, a whole one with its header."""
    major, minor, _, flags = _INIT.unpack_from(init, _HEADER_BYTES)
    if flags & FUSE_INIT_EXT:
        (more,) = _MORE_FLAGS.unpack_from(init, _HEADER_BYTES + _INIT.size)
        flags |= more << 32
    return Abilities((major, minor), bool(flags & FUSE_HAS_RESEND))


def can_clone(fd: int) -> bool:
    """Tell, by trying, whether a second descriptor can be made of the connection that `fd` is one of."""
    clone = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(clone, FUSE_DEV_IOC_CLONE, array.array("I", [fd]))
    except OSError:
        return False
    finally:
        os.close(clone)
    return True
